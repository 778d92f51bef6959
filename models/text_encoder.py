"""Words to vectors: the multilingual Universal Sentence Encoder, run by numpy, and the synonyms found with it."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import tempfile
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnreadableMediaError
from pipeline.ports import SentenceEncoder
from pipeline.search.description import lexicon

Float32 = NDArray[np.float32]

UNKNOWN, START, END = 0, 1, 2  # ids of the piece table
SPACE = "▁"
PARTS = 17  # the embedding table is stored in so many parts: row i lies in part i % PARTS
BRANCHES = ((2, 0), (3, 1), (5, 2))  # words a convolution sees, and how many of them lie to the left


class Pieces:
    """The unigram word-piece model of a SentencePiece file: text to ids of the most likely pieces (Kudo, ACL 2018)."""

    def __init__(self, path: Path) -> None:
        """Raises UnreadableMediaError when ``path`` is no SentencePiece model."""
        try:
            pieces = list(_pieces(path.read_bytes()))
        except (OSError, IndexError, struct.error, UnicodeDecodeError) as error:
            raise UnreadableMediaError(f"{path.name} must be a SentencePiece model: {error}") from error
        if not pieces:
            raise UnreadableMediaError(f"{path.name} must be a SentencePiece model, found no pieces")
        self._ids = {piece: index for index, (piece, _) in enumerate(pieces)}
        self._scores = [score for _, score in pieces]
        self._longest = max(len(piece) for piece, _ in pieces)
        self._unknown_score = min(self._scores) - 10

    def ids(self, text: str) -> list[int]:
        """Ids with start and end; a character that no piece holds is UNKNOWN."""
        words = SPACE + SPACE.join(unicodedata.normalize("NFKC", text).split())
        best, came_from, taken = [0.0] + [-np.inf] * len(words), [0] * (len(words) + 1), [UNKNOWN] * (len(words) + 1)
        for start in range(len(words)):
            for end in range(start + 1, min(start + self._longest, len(words)) + 1):
                index = self._ids.get(words[start:end], UNKNOWN if end == start + 1 else None)
                if index is None:
                    continue
                score = best[start] + (self._unknown_score if index == UNKNOWN else self._scores[index])
                if score > best[end]:
                    best[end], came_from[end], taken[end] = score, start, index
        found, position = [], len(words)
        while position > 0:
            found.append(taken[position])
            position = came_from[position]
        return [START, *reversed(found), END]


def _pieces(data: bytes) -> Iterator[tuple[str, float]]:
    """Every (piece, score) of a ModelProto: its field 1, messages with the piece in field 1 and the score in field 2."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        if tag & 7 != 2:
            return  # the pieces come first
        length, position = _varint(data, position)
        message, position = data[position : position + length], position + length
        if tag >> 3 == 1 and message[:1] == b"\x0a":
            size, start = _varint(message, 1)
            piece, rest = message[start : start + size].decode(), message[start + size :]
            yield piece, struct.unpack("<f", rest[1:5])[0] if rest[:1] == b"\x15" else 0.0


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7


class UniversalSentenceEncoder:
    """SentenceEncoder of 16 languages, 512-d.

    Yang et al., Multilingual Universal Sentence Encoder for Semantic Retrieval, ACL 2020: word pieces, three convolution branches, sums
    divided by the root of the length, two residual layers. The files are read at the first use (about a second), not before.
    """

    space = "use-multilingual@1"

    def __init__(self, path: Path) -> None:
        """``path``: the folder with sp.model and weights.npz (the registry's use-multilingual)."""
        self._path = path
        self._network: _Network | None = None
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> Float32:
        """float32 (N, 512), length 1. Raises UnreadableMediaError when the files are missing or something else."""
        with self._lock:
            if self._network is None:
                self._network = _Network(self._path)
        return np.stack([self._network.vector(text) for text in texts]) if texts else np.zeros((0, 512), np.float32)


class _Network:
    """Weights and the forward pass of one text."""

    def __init__(self, folder: Path) -> None:
        self._pieces = Pieces(folder / "sp.model")
        try:
            with np.load(folder / "weights.npz", allow_pickle=False) as file:
                self._weights: dict[str, NDArray[Any]] = {name: file[name] for name in file.files}
            self._epsilon = float(self._weights["eps"])
            for name, joined in (("proj", "proj"), ("proj_b", "proj_b"), ("ln_g", "joined_g"), ("ln_b", "joined_b")):
                self._weights[joined] = np.concatenate([self._weights[f"{name}{wide}"] for wide, _ in BRANCHES], -1)
        except (OSError, ValueError, KeyError) as error:
            raise UnreadableMediaError(f"weights.npz must hold the sentence encoder's arrays: {error!r}") from error

    def vector(self, text: str) -> Float32:
        """float32 (512,), length 1."""
        w = self._weights
        words = self._embed(np.array(self._pieces.ids(text)))  # (L, 512)
        starts = self._normal(words @ w["proj"] + w["proj_b"], w["joined_g"], w["joined_b"])  # (L, 768), normalised together
        branches = [self._branch(x, *shape) for x, shape in zip(np.split(starts, len(BRANCHES), 1), BRANCHES, strict=True)]  # 3 × (L, 256)
        features = self._normal(np.concatenate([words, *branches], 1), w["ln_g"], w["ln_b"])  # (L, 1280)
        summed = (features @ w["cnn_W"] + w["cnn_b"]).sum(0) / np.sqrt(len(words))
        first = np.maximum(summed @ w["p1"] + np.maximum(summed @ w["d0"], 0) @ w["d1"], 0)
        second = np.tanh(first @ w["p3"] + np.maximum(first @ w["d2"], 0) @ w["d3"])  # (512,)
        vector: Float32 = (second / max(float(np.linalg.norm(second)), 1e-12)).astype(np.float32)
        return vector

    def _embed(self, ids: NDArray[np.intp]) -> Float32:
        """Piece vectors, stored as bytes with a scale and a lowest value for each part: (L, 512)."""
        w = self._weights
        rows = [w[f"q{index % PARTS + 1}"][index // PARTS] * w["scale"][index % PARTS] + w["lo"][index % PARTS] for index in ids]
        return np.stack(rows).astype(np.float32)

    def _branch(self, x: Float32, wide: int, left: int) -> Float32:
        """Two residual convolutions over ``wide`` words, ``left`` of them before the word: (L, 256)."""
        w = self._weights
        for layer in ("1", "2"):
            padded = np.pad(x, ((left, wide - 1 - left), (0, 0)))
            windows = np.concatenate([padded[shift : shift + len(x)] for shift in range(wide)], 1)  # (L, wide * 256)
            made = np.maximum(windows @ w[f"w{layer}_{wide}"] + w[f"b{layer}_{wide}"], 0)
            x = made + x
        return x

    def _normal(self, x: Float32, gain: Float32, bias: Float32) -> Float32:
        centred = x - x.mean(1, keepdims=True)
        normal: Float32 = centred / np.sqrt((centred**2).mean(1, keepdims=True) + self._epsilon) * gain + bias
        return normal


class Synonyms:
    """For a word that is not known, the nearest word of the description lexicon, or None when none is near enough."""

    def __init__(
        self, encoder: SentenceEncoder, at_least: float = 0.6, words: Sequence[str] | None = None, cache: Path | None = None
    ) -> None:
        """at_least: the cosine below which a word is left unknown; words: instead of the description lexicon.

        cache: folder that keeps the lexicon's vectors between processes (encoding them takes seconds).
        """
        self._encoder = encoder
        self._at_least = at_least
        self._words = tuple(words or lexicon())
        self._cache = cache
        self._vectors: Float32 | None = None
        self._found: dict[str, str | None] = {}

    def __call__(self, word: str) -> str | None:
        if self._vectors is None:
            self._vectors = self._of_lexicon()  # (W, D)
        if word not in self._found:
            similarity = self._vectors @ self._encoder.encode([word])[0]  # (W,)
            best = int(np.argmax(similarity))
            self._found[word] = self._words[best] if similarity[best] >= self._at_least else None
        return self._found[word]

    def _of_lexicon(self) -> Float32:
        """The lexicon's vectors, (W, D), from the cache where they are there and whole."""
        if self._cache is None:
            return self._encoder.encode(self._words)
        key = hashlib.sha256("\n".join((self._encoder.space, *self._words)).encode()).hexdigest()[:16]
        path = self._cache / f"lexicon-{key}.npy"
        try:
            kept: Float32 = np.load(path)
        except (OSError, ValueError, EOFError):
            kept = self._encoder.encode(self._words)
            with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
                self._cache.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=self._cache, suffix=".npy", delete=False) as scratch:
                    np.save(scratch, kept)
                Path(scratch.name).replace(path)
        return kept
