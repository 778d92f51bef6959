"""Synonyms, and the sentence encoder on its real weights where they can be fetched."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from models.registry import Registry
from models.text_encoder import END, START, UNKNOWN, Pieces, Synonyms, UniversalSentenceEncoder
from pipeline.errors import SightlineError, UnreadableMediaError
from pipeline.search.description import parse
from services.settings import Settings

NAME = "use-multilingual"


@pytest.fixture(scope="module")
def sentences() -> UniversalSentenceEncoder:
    registry = Registry(Settings().storage.cache_folder)
    try:
        return UniversalSentenceEncoder(registry.path(NAME))
    except SightlineError as first:
        try:
            registry.fetch([NAME])
            return UniversalSentenceEncoder(registry.path(NAME))
        except SightlineError as second:
            pytest.skip(f"the weights {NAME} cannot be had: {first}; {second}")


class CountingSentences:
    """A sentence encoder of letters that counts how often it is asked."""

    space = "letters@1"

    def __init__(self) -> None:
        self.asked = 0

    def encode(self, texts: list[str]) -> np.ndarray:
        self.asked += 1
        rows = np.array([[text.count(chr(97 + letter)) for letter in range(26)] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pieces_file(path: Path, pieces: dict[str, float]) -> Path:
    """A SentencePiece model of these pieces and scores."""
    messages = []
    for piece, score in pieces.items():
        text = piece.encode()
        messages.append(b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score))
    path.write_bytes(b"".join(b"\x0a" + bytes([len(message)]) + message for message in messages))
    return path


def test_text_is_cut_into_the_most_likely_pieces(tmp_path: Path) -> None:
    model = pieces_file(tmp_path / "sp.model", {"<unk>": 0, "<s>": 0, "</s>": 0, "▁": -3, "▁re": -2, "d": -2, "▁red": -2.5, "▁cap": -2})
    pieces = Pieces(model)
    assert pieces.ids("red cap") == [START, 6, 7, END]
    assert pieces.ids("  red   cap ") == pieces.ids("red cap")
    assert pieces.ids("redé")[-2] == UNKNOWN


@pytest.mark.parametrize("content", [b"", b"\x0a\x7fshort", b"no model"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sp.model").write_bytes(content)
    with pytest.raises(UnreadableMediaError, match="SentencePiece"):
        Pieces(tmp_path / "sp.model")


def test_a_missing_folder_is_named_at_the_first_use(tmp_path: Path) -> None:
    encoder = UniversalSentenceEncoder(tmp_path / "gone")
    with pytest.raises(UnreadableMediaError, match=r"sp\.model"):
        encoder.encode(["red"])


def test_the_nearest_word_is_taken_only_when_near_enough() -> None:
    synonyms = Synonyms(CountingSentences(), at_least=0.8, words=["jacket", "shoes"])
    assert synonyms("jackets") == "jacket"
    assert synonyms("www") is None


def test_a_word_is_looked_up_once() -> None:
    letters = CountingSentences()
    synonyms = Synonyms(letters, words=["jacket"])
    synonyms("jackets")
    asked = letters.asked
    synonyms("jackets")
    assert letters.asked == asked


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("mujer con chaqueta roja y pantalones negros", {"woman", "red jacket", "black trousers"}),
        ("Mann mit schwarzer Jacke und roter Mütze", {"man", "black jacket", "red hat"}),
        ("femme avec un manteau bleu", {"woman", "blue coat"}),
    ],
)
def test_other_languages_are_read(sentences: UniversalSentenceEncoder, text: str, phrases: set[str]) -> None:
    assert {phrase.text for phrase in parse(text, Synonyms(sentences)).phrases} == phrases


def test_the_sentence_vectors_have_length_one(sentences: UniversalSentenceEncoder) -> None:
    vectors = sentences.encode(["backpack", "rucksack", "elephant"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert sentences.encode([]).shape == (0, 512)
