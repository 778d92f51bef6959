"""Descriptions to vectors, attributes from vectors, and what is said about why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.detector_retriever.words import (
    CLAUSES,
    LISTED,
    LONGEST,
    SHOWN_AUC,
    WEIGHTS,
    Attributes,
    RetrieverTextEncoder,
    calibration,
    read_weights,
    sub_sentences,
    term_words,
)
from pipeline.errors import BadInputError, SettingsError
from pipeline.search.description import FORBIDDEN
from pipeline.types import Attribute


class Dictionary:
    """A sentence encoder that knows two words: every other text has a vector of its own."""

    space = "dictionary@1"

    def __init__(self, **pairs: str) -> None:
        self._pairs = pairs

    def encode(self, texts: list[str]) -> np.ndarray:
        rows = [np.random.default_rng(list(self._pairs.get(text, text).encode())).normal(size=64) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


@pytest.fixture(scope="module")
def text() -> RetrieverTextEncoder:
    return RetrieverTextEncoder()


# ------------------------------------------------------------------------------------------- descriptions


def test_a_description_is_a_unit_vector_of_the_text_aligned_space(text: RetrieverTextEncoder) -> None:
    words = text.encode("red jacket, blue jeans")
    assert (words.modality, words.space) == ("text", str(read_weights(WEIGHTS)["text_space"]))
    assert float(np.linalg.norm(words.vector)) == pytest.approx(1, abs=1e-5)


def test_swapped_colours_are_another_description(text: RetrieverTextEncoder) -> None:
    described = text.encode("red jacket, blue jeans")
    swapped = text.encode("blue jacket, red jeans")
    other_words = text.encode("blue jeans and a red coat")
    assert described.similarity(other_words) > described.similarity(swapped) + 0.2


def test_what_is_denied_moves_away(text: RetrieverTextEncoder) -> None:
    bag = text.encode("backpack")
    assert bag.similarity(text.encode("man in a grey coat with a backpack")) > bag.similarity(
        text.encode("man in a grey coat, no backpack")
    )


def test_ignored_words_change_nothing(text: RetrieverTextEncoder) -> None:
    plain = text.encode("woman with long hair and a red coat")
    for word in ("asian", "muslim", "disabled"):
        assert plain.similarity(text.encode(f"{word} woman with long hair and a red coat")) == pytest.approx(1, abs=1e-5)


def test_no_weight_was_learnt_for_a_word_that_labels_people() -> None:
    arrays = read_weights(WEIGHTS)
    assert not FORBIDDEN & {str(word) for word in arrays["words"]}
    terms = [*arrays["attribute_terms"], *arrays["terms"]]
    assert not {"skin", "ethnicity", "religion", "health"} & {str(term).split("|")[0] for term in terms}


@pytest.mark.parametrize("empty", ["", "person walking quickly", "the asian", "zorp zarp"])
def test_a_description_of_nothing_visible_is_refused(text: RetrieverTextEncoder, empty: str) -> None:
    for ask in (text.encode, text.read):
        with pytest.raises(BadInputError, match="red jacket, blue jeans"):
            ask(empty)


def test_the_refusal_names_the_words(text: RetrieverTextEncoder) -> None:
    with pytest.raises(BadInputError, match=r"zorp.*asian"):
        text.encode("asian zorp")


def test_a_word_of_another_language_counts_as_its_synonym() -> None:
    text = RetrieverTextEncoder(Dictionary(mochila="backpack", roja="red"))
    assert text.encode("mochila roja").similarity(text.encode("backpack red")) == pytest.approx(1, abs=1e-5)


def test_unknown_words_lower_the_quality(text: RetrieverTextEncoder) -> None:
    assert text.encode("red coat").quality == 1
    assert text.encode("red coat zorp").quality == 0.5


def test_clauses_end_at_commas_and_before_what_is_worn_or_carried() -> None:
    assert sub_sentences("a man with grey hair, wearing a red coat. blue jeans") == [
        "a man",
        "grey hair",
        "a red coat",
        "blue jeans",
    ]
    assert sub_sentences("") == [""]


def test_a_description_is_read_whole_by_clauses_and_by_words(text: RetrieverTextEncoder) -> None:
    sentence = text.read("red jacket, blue jeans")
    assert sentence.is_clause.tolist() == [True, True] + [False] * (CLAUSES - 2)
    assert sentence.parts.shape == (1 + 2 + 4, len(sentence.whole))
    assert float(np.linalg.norm(sentence.whole)) == pytest.approx(1, abs=1e-5)


def test_a_description_without_an_end_is_read_as_far_as_there_is_room(text: RetrieverTextEncoder) -> None:
    sentence = text.read(", ".join(["red jacket and blue jeans"] * 40))
    assert len(sentence.parts) == 1 + CLAUSES + LONGEST
    assert np.isfinite(sentence.parts).all()


# ------------------------------------------------------------------------------------------- why


def test_why_a_person_fits_reads_as_words(text: RetrieverTextEncoder) -> None:
    seen = [Attribute("upper colour", "red", 0.91), Attribute("carrying", "backpack", 0.48), Attribute("upper type", "jacket", 0.8)]
    lines = text.explain("red jacket, backpack, no umbrella", seen)
    assert "red upper body: yes, 0.91" in lines
    assert "backpack: unclear, 0.48" in lines
    assert text.explain("red trousers", [])[-1].startswith("red lower body: ")


def test_what_is_denied_and_seen_is_a_no(text: RetrieverTextEncoder) -> None:
    assert text.explain("no backpack", [Attribute("carrying", "backpack", 0.9)]) == ("no backpack: no, 0.10",)


def test_what_cannot_be_told_is_said_so(text: RetrieverTextEncoder) -> None:
    arrays = read_weights(WEIGHTS)
    badly = {str(name) for name, auc in zip(arrays["attribute_terms"], arrays["attribute_auc"], strict=True) if auc < SHOWN_AUC}
    if "carrying|umbrella" not in badly:
        pytest.skip("these weights tell umbrellas")
    assert text.explain("umbrella", []) == ("umbrella: cannot be told",)


def test_the_score_rises_with_the_cosine_and_falls_with_the_crowd(text: RetrieverTextEncoder) -> None:
    assert 0 <= text.score(0.0) < text.score(0.5) < text.score(0.9) <= 1
    assert text.score(0.5, others=10) > text.score(0.5, others=1000)


def test_both_spaces_have_a_curve_that_rises() -> None:
    arrays = read_weights(WEIGHTS)
    curves = calibration()
    assert set(curves) == {str(arrays["text_space"]), str(arrays["body_space"])}
    assert all(curve.slope > 0 for curve in curves.values())


def test_terms_read_as_plain_words() -> None:
    assert term_words(("upper colour", "red")) == "red upper body"
    assert term_words(("hair", "long")) == "long hair"
    assert term_words(("carrying", "backpack")) == "backpack"


# ------------------------------------------------------------------------------------------- attributes


def three_heads(**changes: object) -> Attributes:
    """Heads for a red top, a hat and an umbrella, each the sign of one number of a vector; the umbrella is told badly."""
    arrays = {
        "attribute_weight": 4 * np.eye(3, dtype=np.float32),
        "attribute_bias": np.zeros(3),
        "attribute_slope": np.ones(3),
        "attribute_offset": np.zeros(3),
        "attribute_terms": np.array(["upper colour|red", "wearing|hat", "carrying|umbrella"]),
        "attribute_auc": np.array([0.9, SHOWN_AUC, SHOWN_AUC - 0.01]),
    }
    return Attributes({**arrays, **changes})  # type: ignore[dict-item]


def test_attributes_are_probabilities_the_most_certain_first() -> None:
    found = three_heads().of(np.array([[0.5, 1, 0]], np.float32), [0.9])
    assert [(each.name, each.value) for each in found] == [("wearing", "hat"), ("upper colour", "red")]
    assert found[0].score == pytest.approx(1 / (1 + np.exp(-4)))


def test_what_is_told_apart_badly_is_never_shown() -> None:
    found = three_heads().of(np.array([[1, 1, 1]], np.float32), [0.9])
    assert {each.value for each in found} == {"red", "hat"}


def test_what_is_unlikely_is_not_listed() -> None:
    assert LISTED == 0.3
    assert three_heads().of(np.array([[-1, -0.3, 1]], np.float32), [0.9]) == ()


def test_the_better_look_counts_more() -> None:
    vectors = np.array([[1, 0, 0], [-1, 0, 0]], np.float32)
    mostly, hardly = three_heads().of(vectors, [0.9, 0.1]), three_heads().of(vectors, [0.1, 0.9])
    assert "red" in {each.value for each in mostly}
    assert "red" not in {each.value for each in hardly}


def test_nobody_has_no_attributes_and_lengths_must_agree() -> None:
    assert three_heads().of(np.zeros((0, 3), np.float32), []) == ()
    with pytest.raises(ValueError, match="one per vector"):
        three_heads().of(np.zeros((1, 3), np.float32), [0.5, 0.5])


def test_missing_or_broken_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.npz"):
        RetrieverTextEncoder(weights=tmp_path / "gone.npz")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(SettingsError, match=r"broken\.npz"):
        RetrieverTextEncoder(weights=tmp_path / "broken.npz")
