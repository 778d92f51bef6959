"""An answer: matches in order, what they rest on, and whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.types.checks import fraction
from pipeline.types.coverage import Coverage
from pipeline.types.tracklet import CropReference


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the way from what was asked to a match.

    from_tracklet: where the step began, "" for the probe itself; modality and similarity: what led on; gap_s: time between the two, 0 for
    the probe; probability: 0..1 that both ends show one person.
    """

    from_tracklet: str
    modality: str
    similarity: float
    gap_s: float
    probability: float

    def __post_init__(self) -> None:
        fraction(self.probability, "Step.probability")


@dataclass(frozen=True, slots=True)
class Match:
    """One tracklet of a ranking. score: calibrated 0..1; similarities: per modality, of the probe; why: short phrases for the operator.

    path: the steps that led here where the probe alone would not have; identity_id: the identity it was linked into, "" for none.
    """

    rank: int
    tracklet_id: str
    camera_id: str
    started_at_ns: int
    ended_at_ns: int
    score: float
    similarities: Mapping[str, float] = field(default_factory=dict)
    why: tuple[str, ...] = ()
    crops: tuple[CropReference, ...] = ()
    path: tuple[Step, ...] = ()
    identity_id: str = ""


@dataclass(frozen=True, slots=True)
class Stay:
    """A stay in one camera: its tracklets, in order of time."""

    camera_id: str
    from_ns: int
    to_ns: int
    tracklet_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sighting:
    """Matches that are probably one person: their way over the cameras.

    identity_id: "" where nothing was linked; score: of the best match, 0..1; trajectory: by time, also the identity's other
    tracklets.
    """

    identity_id: str
    score: float
    trajectory: tuple[Stay, ...]

    def __post_init__(self) -> None:
        fraction(self.score, "Sighting.score")


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer to a query; is_partial when the deadline passed or a part of the index did not answer.

    sightings: the same matches put together by person, best first.
    """

    query_id: str
    matches: tuple[Match, ...]
    coverage: Coverage
    elapsed_s: float
    is_partial: bool = False
    sightings: tuple[Sighting, ...] = ()
