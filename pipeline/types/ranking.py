"""An answer: matches in order, what they rest on, and whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.types.coverage import Coverage
from pipeline.types.tracklet import CropReference


@dataclass(frozen=True, slots=True)
class Match:
    """One tracklet of a ranking. score: calibrated 0..1; similarities: per modality; why: short phrases for the operator."""

    rank: int
    tracklet_id: str
    camera_id: str
    started_at_ns: int
    ended_at_ns: int
    score: float
    similarities: Mapping[str, float] = field(default_factory=dict)
    why: tuple[str, ...] = ()
    crops: tuple[CropReference, ...] = ()


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer to a query; is_partial when the deadline passed or a part of the index did not answer."""

    query_id: str
    matches: tuple[Match, ...]
    coverage: Coverage
    elapsed_s: float
    is_partial: bool = False
