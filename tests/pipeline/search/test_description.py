"""Descriptions to phrases: which colour belongs to which garment, what is denied, and what is never used."""

from __future__ import annotations

import pytest

from pipeline.search.description import lexicon, parse


def said(text: str) -> set[str]:
    return {phrase.text for phrase in parse(text).phrases}


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("red jacket, blue jeans", {"red jacket", "blue jeans"}),
        ("blue jacket, red jeans", {"blue jacket", "red jeans"}),
        ("red jacket blue jeans", {"red jacket", "blue jeans"}),  # a recogniser writes no commas
        ("His jacket is black and his shoes are white", {"man", "black jacket", "white shoes"}),
        ("a t-shirt that is red", {"red t-shirt"}),
        ("a man dressed in black carrying a red backpack", {"man", "black clothes", "red backpack"}),
        ("woman in a black and white striped shirt with navy shorts", {"woman", "striped black white shirt", "dark blue shorts"}),
        ("short, dark hair and khaki pants with a grey hoodie", {"dark short hair", "beige trousers", "grey hoodie"}),
        ("tennis shoes that are white and a denim jacket", {"white sneakers", "denim jacket"}),
        ("light coloured pants, long-sleeved blue shirt", {"light trousers", "long sleeves blue shirt"}),
    ],
)
def test_each_colour_goes_to_its_garment(text: str, phrases: set[str]) -> None:
    assert said(text) == phrases


def test_terms_bind_colour_and_region() -> None:
    terms = parse("red jacket, blue jeans").terms()
    assert terms[("upper colour", "red")] == 1
    assert terms[("lower colour", "blue")] == 1
    assert ("upper colour", "blue") not in terms


@pytest.mark.parametrize(
    ("text", "denied"),
    [
        ("red coat, no bag", {"no bag"}),
        ("without hat", {"no hat"}),
        ("not wearing a hat, black trousers", {"no hat"}),
        ("without a bag or hat, wearing a green dress", {"no bag", "no hat"}),
    ],
)
def test_what_is_denied_counts_against(text: str, denied: set[str]) -> None:
    description = parse(text)
    assert {phrase.text for phrase in description.phrases if phrase.is_negated} == denied
    assert -1.0 in description.terms().values()


def test_no_backpack_says_nothing_of_other_bags() -> None:
    assert parse("no backpack").terms() == {("carrying", "backpack"): -1.0}


def test_sleeves_of_another_colour_are_an_accent() -> None:
    (shirt,) = parse("white shirt with blue sleeves").phrases
    assert shirt.colours == ("white",)
    assert shirt.accents == ("blue",)


@pytest.mark.parametrize(
    "text", ["asian woman with dark skin and long hair", "a black man in jeans", "muslim woman", "man in a wheelchair"]
)
def test_words_that_label_people_are_ignored_and_reported(text: str) -> None:
    description = parse(text)
    assert description.ignored
    assert not set(description.ignored) & set(description.words)
    assert not any(phrase.colours or phrase.tones for phrase in description.phrases)


def test_a_skin_colour_goes_but_the_trousers_keep_theirs() -> None:
    description = parse("a black man in black jeans")
    assert description.ignored == ("black",)
    assert said("a black man in black jeans") == {"man", "black jeans"}


def test_unknown_words_are_reported_and_replaced_where_a_synonym_is_known() -> None:
    assert parse("a red flurb").unknown == ("flurb",)
    words = {"chaqueta": "jacket", "roja": "red", "pantalones": "trousers", "negros": "black"}
    description = parse("chaqueta roja y pantalones negros", words.get)
    assert {phrase.text for phrase in description.phrases} == {"red jacket", "black trousers"}
    assert description.replaced[0] == ("chaqueta", "jacket")
    assert description.unknown == ()


@pytest.mark.parametrize("text", ["", "   ", "?!", "12345", "person walking on the street"])
def test_nothing_to_see_gives_no_phrase(text: str) -> None:
    assert parse(text).phrases == ()


def test_every_word_of_the_lexicon_is_understood() -> None:
    assert [word for word in lexicon() if parse(word).unknown] == []
