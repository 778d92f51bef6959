"""A vector and the space it lives in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError, SpaceMismatchError
from pipeline.types.checks import fraction, read_only

BODY, TEXT, FACE, VOICE = "body", "text", "face", "voice"
MODALITIES = (BODY, TEXT, FACE, VOICE)


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A unit vector of one modality.

    modality: body, text, face or voice; space: "model@version", compared before vectors are; vector: float32 (D,), length 1;
    quality: 0..1, how much the sample behind it can be trusted. Raises ValueError for a vector that is not finite or of length 0.
    """

    modality: str
    space: str
    vector: NDArray[np.float32]
    quality: float = 1.0

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ValueError(f"Embedding.modality must be one of {', '.join(MODALITIES)}, got {self.modality!r}")
        if "@" not in self.space:
            raise ValueError(f"Embedding.space must read model@version, got {self.space!r}")
        fraction(self.quality, "Embedding.quality")
        vector = np.asarray(self.vector, np.float32)
        length = float(np.linalg.norm(vector)) if vector.ndim == 1 else 0.0
        if not np.isfinite(length) or length == 0.0:
            raise ValueError(f"Embedding.vector must be finite float32 (D,) of length > 0, got {vector.shape} of length {length}")
        if abs(length - 1.0) > 1e-3:
            vector = vector / np.float32(length)
        object.__setattr__(self, "vector", read_only(vector, "Embedding.vector", np.float32, (None,)))

    def similarity(self, other: Embedding) -> float:
        """Cosine with ``other``, -1..1; raises SpaceMismatchError across spaces, BadInputError where the lengths differ."""
        if self.space != other.space:
            raise SpaceMismatchError(self.space, other.space)
        if self.vector.shape != other.vector.shape:
            raise BadInputError(f"vectors of space {self.space!r} must have {len(self.vector)} numbers, got {len(other.vector)}")
        return float(self.vector @ other.vector)
