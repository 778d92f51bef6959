"""A tracklet that must be gone everywhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Erasure:
    """Every copy of the index removes the tracklet and never takes it in again. erased_at_ns: UTC."""

    tracklet_id: str
    erased_at_ns: int

    def __post_init__(self) -> None:
        if not self.tracklet_id:
            raise ValueError("Erasure.tracklet_id must not be empty")
