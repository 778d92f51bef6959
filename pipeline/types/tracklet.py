"""One person's closed or growing run in one camera."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.types.checks import fraction, in_order, read_only, storable
from pipeline.types.embedding import VOICE, Embedding


@dataclass(frozen=True, slots=True)
class Attribute:
    """A plain visible property. name: e.g. "upper colour"; value: e.g. "red"; score 0..1."""

    name: str
    value: str
    score: float

    def __post_init__(self) -> None:
        fraction(self.score, "Attribute.score")


@dataclass(frozen=True, slots=True)
class CropReference:
    """Where a best shot lies in the media store, when it was taken and its box (x1, y1, x2, y2) in the original frame."""

    key: str
    captured_at_ns: int
    box: tuple[float, float, float, float]
    quality: float


@dataclass(frozen=True, slots=True, eq=False)
class Tracklet:
    """One revision of a person's run in one camera; the same id with a higher revision replaces it.

    at_ns: int64 (T,) rising; xyxy: float32 (T, 4); confidence: float32 (T,), 0 where the box was bridged, not seen;
    embeddings: at most one per (modality, space); crops: best first; zones: the camera's zones its feet touched.
    """

    tracklet_id: str
    revision: int
    camera_id: str
    started_at_ns: int
    ended_at_ns: int
    at_ns: NDArray[np.int64]
    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    embeddings: tuple[Embedding, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    crops: tuple[CropReference, ...] = ()
    zones: tuple[str, ...] = ()
    is_closed: bool = False
    model_versions: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        in_order(self.started_at_ns, self.ended_at_ns, "Tracklet")
        storable(self.revision, "Tracklet.revision")
        if self.revision < 1:
            raise ValueError(f"Tracklet.revision must be 1 or more, got {self.revision}")
        at_ns = read_only(self.at_ns, "Tracklet.at_ns", np.int64, (None,))
        object.__setattr__(self, "at_ns", at_ns)
        object.__setattr__(self, "xyxy", read_only(self.xyxy, "Tracklet.xyxy", np.float32, (len(at_ns), 4)))
        object.__setattr__(self, "confidence", read_only(self.confidence, "Tracklet.confidence", np.float32, (len(at_ns),)))

    def embedding(self, modality: str) -> Embedding | None:
        """The embedding of ``modality``, or None."""
        return next((e for e in self.embeddings if e.modality == modality), None)

    @property
    def is_speaker_turn(self) -> bool:
        """Whether it is a voice that nobody was seen to speak with: no boxes, no pictures."""
        return not len(self.at_ns) and not self.crops and all(e.modality == VOICE for e in self.embeddings)

    @property
    def duration_s(self) -> float:
        return (self.ended_at_ns - self.started_at_ns) / 1e9
