"""A vector and the space it lives in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError, SpaceMismatchError
from pipeline.types.checks import fraction, read_only, storable

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


@dataclass(frozen=True, slots=True, eq=False)
class Reembedding:
    """What another model makes of a stored tracklet's pictures: its vectors in ``space``, beside those that the tracklet has.

    It holds for that revision alone; embeddings: at most one per modality, all in ``space``, none where the model saw nothing to describe.
    """

    tracklet_id: str
    revision: int
    space: str
    embeddings: tuple[Embedding, ...] = ()

    def __post_init__(self) -> None:
        if not self.tracklet_id:
            raise ValueError("Reembedding.tracklet_id must not be empty")
        storable(self.revision, "Reembedding.revision")
        if self.revision < 1:
            raise ValueError(f"Reembedding.revision must be 1 or more, got {self.revision}")
        if "@" not in self.space:
            raise ValueError(f"Reembedding.space must read model@version, got {self.space!r}")
        strays = {embedding.space for embedding in self.embeddings} - {self.space}
        if strays:
            raise ValueError(f"Reembedding.embeddings must all lie in {self.space}, got {', '.join(sorted(strays))}")
        if len({embedding.modality for embedding in self.embeddings}) < len(self.embeddings):
            raise ValueError("Reembedding.embeddings must hold at most one of each modality")
