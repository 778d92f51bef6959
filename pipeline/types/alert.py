"""One hit of a watch, for a human to decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.types.tracklet import CropReference


@dataclass(frozen=True, slots=True)
class Alert:
    """A watch met a tracklet. alert_id derives from both, so a replay raises the same alert, never a second one.

    seen_at_ns: stream time of the tracklet revision that crossed the threshold; raised_at_ns: wall clock of the alert worker.
    """

    alert_id: str
    watch_id: str
    tracklet_id: str
    revision: int
    camera_id: str
    seen_at_ns: int
    raised_at_ns: int
    score: float
    threshold: float
    similarities: Mapping[str, float] = field(default_factory=dict)
    why: tuple[str, ...] = ()
    crops: tuple[CropReference, ...] = ()
