"""A standing query."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.types.checks import fraction
from pipeline.types.query import Probe


@dataclass(frozen=True, slots=True)
class Watch:
    """A standing query that raises alerts until it expires.

    threshold: score 0..1 at or above which a tracklet raises an alert; cameras: empty = all; zones: empty = all;
    expires_at_ns: UTC; approvals: who approved it (four eyes); is_removed: a tombstone on the compacted topic.
    """

    watch_id: str
    probes: tuple[Probe, ...]
    threshold: float
    cameras: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    created_at_ns: int = 0
    expires_at_ns: int = 2**62
    issued_by: str = ""
    purpose: str = ""
    approvals: tuple[str, ...] = ()
    is_removed: bool = False

    def __post_init__(self) -> None:
        fraction(self.threshold, "Watch.threshold")
        if not self.probes:
            raise ValueError("Watch.probes must hold at least one probe, got none")
