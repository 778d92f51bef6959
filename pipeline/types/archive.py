"""A piece of footage to be worked off."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.types.frame import Camera


@dataclass(frozen=True, slots=True)
class ArchiveJob:
    """One shard of footage: the camera (its uri is the file), and the part of it from_s..to_s seconds into the file (to_s 0 = end)."""

    job_id: str
    shard: int
    camera: Camera
    from_s: float = 0.0
    to_s: float = 0.0
