"""Cuts footage into jobs that any number of archive workers share.

What happens at a cut: a shard is the half-open stretch [from_s, to_s) of its file, so every frame belongs to exactly one shard and
none is worked twice. Tracking starts afresh in each shard: a person in view at a cut becomes two tracklets that meet there, which
linking may join later. Shards are therefore long (ten minutes), and a short rest is added to the shard before it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pipeline.types import ArchiveJob, Camera

SHARD_S = 600.0


@dataclass(frozen=True, slots=True)
class Footage:
    """A file to work off: the camera it stands for (its uri is the file) and how long it runs; 0 where that is not known.

    fingerprint: anything that changes when the file does (size and modification time, say), so that a changed file is a new job.
    """

    camera: Camera
    duration_s: float = 0.0
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not (self.duration_s >= 0 and math.isfinite(self.duration_s)):
            raise ValueError(f"Footage.duration_s must be finite and 0 (not known) or more, got {self.duration_s}")


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Where one job stands. state: queued, started, done or failed; worker: who works on it; tracklets: revisions given so far."""

    job_id: str
    shard: int
    state: str
    worker: str = ""
    tracklets: int = 0
    error: str = ""

    STATES: ClassVar[tuple[str, ...]] = ("queued", "started", "done", "failed")

    def __post_init__(self) -> None:
        if self.state not in JobProgress.STATES:
            raise ValueError(f"JobProgress.state must be one of {', '.join(JobProgress.STATES)}, got {self.state!r}")


def job_key(job: ArchiveJob | JobProgress) -> str:
    """The name of one shard of one file."""
    return f"{job.job_id}/{job.shard}"


def plan_jobs(footage: Iterable[Footage], shard_s: float = SHARD_S) -> tuple[ArchiveJob, ...]:
    """The jobs of all footage, in order; the same footage always gives the same jobs. Raises ValueError for shard_s <= 0."""
    if not shard_s > 0:
        raise ValueError(f"shard_s must be above 0, got {shard_s}")
    return tuple(job for piece in footage for job in _shards(piece, shard_s))


def _shards(piece: Footage, shard_s: float) -> list[ArchiveJob]:
    count = max(1, round(piece.duration_s / shard_s))  # a rest under half a shard joins the one before it
    job_id = _job_id(piece, count, shard_s)
    # The last shard runs to the end of the file, whatever its header says the duration is: nothing is left out.
    return [
        ArchiveJob(job_id, shard, piece.camera, from_s=shard * shard_s, to_s=(shard + 1) * shard_s if shard + 1 < count else 0.0)
        for shard in range(count)
    ]


def _job_id(piece: Footage, count: int, shard_s: float) -> str:
    camera = piece.camera
    cut = "whole" if count == 1 else f"{count}x{shard_s:.6f}"
    parts = (camera.camera_id, camera.uri, str(camera.starts_at_ns), f"{camera.sampling_hz:.6f}", piece.fingerprint, cut)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
