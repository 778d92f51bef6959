"""People found in one frame, as arrays that share N."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.types.checks import read_only


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The people of one frame.

    xyxy: float32 (N, 4) pixels of the original frame; confidence: float32 (N,) 0..1, calibrated so that 0.5 means
    half of such boxes are people; vectors: float32 (N, D) of length 1, or (N, 0) where the detector gives none;
    space: the vectors' embedding space, "" with none. Raises ValueError when the lengths differ.
    """

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    vectors: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    space: str = ""

    def __post_init__(self) -> None:
        xyxy = read_only(self.xyxy, "Detections.xyxy", np.float32, (None, 4))
        confidence = read_only(self.confidence, "Detections.confidence", np.float32, (len(xyxy),))
        vectors = np.asarray(self.vectors, np.float32)
        if vectors.shape[0] != len(xyxy):
            if vectors.size:
                raise ValueError(f"Detections.vectors must be float32 ({len(xyxy)}, D), got {vectors.shape}")
            vectors = np.zeros((len(xyxy), 0), np.float32)
        object.__setattr__(self, "xyxy", xyxy)
        object.__setattr__(self, "confidence", confidence)
        object.__setattr__(self, "vectors", read_only(vectors, "Detections.vectors", np.float32, (len(xyxy), None)))

    def __len__(self) -> int:
        return len(self.xyxy)

    def where(self, keep: ArrayLike) -> Detections:
        """The detections at ``keep``: a boolean mask (N,) or indices."""
        chosen = np.asarray(keep)
        return Detections(self.xyxy[chosen], self.confidence[chosen], self.vectors[chosen], self.space)

    @staticmethod
    def none() -> Detections:
        """No people."""
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
