"""People found in one frame, as arrays that share N."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.types.checks import read_only


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Vectors of N people in one embedding space: float32 (N, D) of length 1. Raises ValueError for another shape."""

    space: str
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", read_only(self.values, "Vectors.values", np.float32, (None, None)))


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The people of one frame.

    xyxy: float32 (N, 4) pixels of the original frame; confidence: float32 (N,) 0..1, calibrated so that 0.5 means
    half of such boxes are people; vectors: modality -> vectors of the same N people, {} where the detector gives none.
    Raises ValueError when the lengths differ.
    """

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    vectors: Mapping[str, Vectors] = field(default_factory=dict)

    def __post_init__(self) -> None:
        xyxy = read_only(self.xyxy, "Detections.xyxy", np.float32, (None, 4))
        confidence = read_only(self.confidence, "Detections.confidence", np.float32, (len(xyxy),))
        for modality, vectors in self.vectors.items():
            if len(vectors.values) != len(xyxy):
                raise ValueError(f"Detections.vectors[{modality!r}] must be float32 ({len(xyxy)}, D), got {vectors.values.shape}")
        object.__setattr__(self, "xyxy", xyxy)
        object.__setattr__(self, "confidence", confidence)

    def __len__(self) -> int:
        return len(self.xyxy)

    def where(self, keep: ArrayLike) -> Detections:
        """The detections at ``keep``: a boolean mask (N,) or indices."""
        chosen = np.asarray(keep)
        vectors = {modality: Vectors(each.space, each.values[chosen]) for modality, each in self.vectors.items()}
        return Detections(self.xyxy[chosen], self.confidence[chosen], vectors)

    @staticmethod
    def none() -> Detections:
        """No people."""
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
