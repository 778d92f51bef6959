"""Descriptions and crops in one space, and what is said about why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.body import read_weights
from models.phrases import PHRASE_WEIGHTS, PhraseEncoder, PhraseTextEncoder, calibration, term_words
from pipeline.errors import BadInputError, SettingsError
from pipeline.search.description import FORBIDDEN
from pipeline.types import Attribute

Painter = Callable[..., np.ndarray]


class Dictionary:
    """A sentence encoder that knows two words: every other text has a vector of its own."""

    space = "dictionary@1"

    def __init__(self, **pairs: str) -> None:
        self._pairs = pairs

    def encode(self, texts: list[str]) -> np.ndarray:
        rows = [np.random.default_rng(list(self._pairs.get(text, text).encode())).normal(size=64) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


@pytest.fixture(scope="module")
def text() -> PhraseTextEncoder:
    return PhraseTextEncoder()


def test_a_description_is_a_unit_vector_of_the_crops_space(text: PhraseTextEncoder, small_network: Path, noise_person: Painter) -> None:
    words = text.encode("red jacket, blue jeans")
    looks = PhraseEncoder(small_network)
    assert words.modality == "text"
    assert words.space == looks.space == "phrases@1"
    assert looks.encode([noise_person(1), noise_person(2)]).shape == (2, len(words.vector))
    assert looks.encode([]).shape == (0, len(words.vector))


def test_swapped_colours_are_another_description(text: PhraseTextEncoder) -> None:
    described = text.encode("red jacket, blue jeans")
    swapped = text.encode("blue jacket, red jeans")
    other_words = text.encode("blue jeans and a red coat")
    assert described.similarity(other_words) > described.similarity(swapped) + 0.2


def test_what_is_denied_moves_away(text: PhraseTextEncoder) -> None:
    bag = text.encode("backpack")
    assert bag.similarity(text.encode("man in a grey coat with a backpack")) > bag.similarity(
        text.encode("man in a grey coat, no backpack")
    )


def test_ignored_words_change_nothing(text: PhraseTextEncoder) -> None:
    plain = text.encode("woman with long hair and a red coat")
    for word in ("asian", "muslim", "disabled"):
        assert plain.similarity(text.encode(f"{word} woman with long hair and a red coat")) == pytest.approx(1, abs=1e-5)


def test_no_weight_was_learnt_for_a_word_that_labels_people() -> None:
    arrays = read_weights(PHRASE_WEIGHTS)
    assert not FORBIDDEN & {str(word) for word in arrays["words"]}
    assert not {"skin", "ethnicity", "religion", "health"} & {str(term).split("|")[0] for term in arrays["head_terms"]}


@pytest.mark.parametrize("empty", ["", "person walking quickly", "the asian", "zorp zarp"])
def test_a_description_of_nothing_visible_is_refused(text: PhraseTextEncoder, empty: str) -> None:
    with pytest.raises(BadInputError, match="red jacket, blue jeans"):
        text.encode(empty)


def test_the_refusal_names_the_words(text: PhraseTextEncoder) -> None:
    with pytest.raises(BadInputError, match=r"zorp.*asian"):
        text.encode("asian zorp")


def test_a_word_of_another_language_counts_as_its_synonym() -> None:
    text = PhraseTextEncoder(Dictionary(mochila="backpack", roja="red"))
    assert text.encode("mochila roja").similarity(text.encode("backpack red")) == pytest.approx(1, abs=1e-5)


def test_unknown_words_lower_the_quality(text: PhraseTextEncoder) -> None:
    assert text.encode("red coat").quality == 1
    assert text.encode("red coat zorp").quality == 0.5


def test_why_a_person_fits_reads_as_words(text: PhraseTextEncoder) -> None:
    seen = [Attribute("upper colour", "red", 0.91), Attribute("carrying", "backpack", 0.48), Attribute("upper type", "jacket", 0.8)]
    lines = text.explain("red jacket, backpack, no umbrella", seen)
    assert "red upper body: yes, 0.91" in lines
    assert "backpack: unclear, 0.48" in lines
    assert text.explain("red trousers", [])[-1].startswith("red lower body: ")


def test_what_is_denied_and_seen_is_a_no(text: PhraseTextEncoder) -> None:
    assert text.explain("no backpack", [Attribute("carrying", "backpack", 0.9)]) == ("no backpack: no, 0.10",)


def test_the_score_rises_with_the_cosine_and_falls_with_the_crowd(text: PhraseTextEncoder) -> None:
    assert 0 <= text.score(0.0) < text.score(0.5) < text.score(0.9) <= 1
    assert text.score(0.5, others=10) > text.score(0.5, others=1000)
    assert calibration()[text.space].slope > 0


def test_attributes_are_probabilities_of_what_can_be_told(small_network: Path, noise_person: Painter) -> None:
    encoder = PhraseEncoder(small_network)
    found = encoder.attributes([noise_person(1), noise_person(2)], [0.9, 0.2])
    assert [attribute.score for attribute in found] == sorted((attribute.score for attribute in found), reverse=True)
    assert encoder.attributes([], []) == ()
    with pytest.raises(ValueError, match="one per crop"):
        encoder.attributes([noise_person(1)], [0.5, 0.5])


def test_terms_read_as_plain_words() -> None:
    assert term_words(("upper colour", "red")) == "red upper body"
    assert term_words(("hair", "long")) == "long hair"
    assert term_words(("carrying", "backpack")) == "backpack"


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.npz"):
        PhraseTextEncoder(weights=tmp_path / "gone.npz")
