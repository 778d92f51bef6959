"""Descriptions to vectors of the detector-retriever's text-aligned space, and why a person fits. numpy alone.

The network is network.WordNet: word vectors, a convolution over three words, the maximum over a sub-sentence or the sentence, plus a
signed vector for every parsed term, so that "red jacket, blue jeans" and "blue jacket, red jeans" differ and "no bag" counts against one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.text_encoder import Synonyms
from pipeline.calibration import Logistic, score
from pipeline.errors import BadInputError, SettingsError
from pipeline.ports import SentenceEncoder
from pipeline.search.description import Description, Phrase, Term, parse
from pipeline.types import Attribute, Embedding

Float32 = NDArray[np.float32]

WEIGHTS = Path(__file__).parents[1] / "weights" / "detector_retriever.npz"
SHOWN_AUC = 0.75  # an attribute that is told apart worse than this on unseen people is never shown
LISTED = 0.3  # probabilities below this are not listed
YES, NO = 0.6, 0.4
PADDING, OTHER_WORD = 0, 1  # ids of the word table
LONGEST = 60  # words of a description that are read
CLAUSES = 6  # sub-sentences; later words belong to the last
_CLAUSE_ENDS = re.compile(r"[.,;:]| with | wearing | wears | carrying | carries | holding ")


def sub_sentences(text: str) -> list[str]:
    """The clauses of a description: split at commas and stops (SDRPN) and before what is worn or carried."""
    return [clause.strip() for clause in _CLAUSE_ENDS.split(text) if clause.strip()] or [text]


class Numbers(NamedTuple):
    """A description as the network reads it. words, clauses: int64 (LONGEST,), 0 padded; terms: float32 (T,) signs."""

    words: NDArray[np.int64]
    clauses: NDArray[np.int64]
    terms: Float32


@dataclass(frozen=True)
class Vocabulary:
    """Ids of words and of terms."""

    words: Mapping[str, int]
    terms: Mapping[Term, int]

    def numbers(self, description: Description, synonyms: Synonyms | None = None) -> Numbers:
        """Ids and signs of a parsed description."""
        words, clauses = np.zeros(LONGEST, np.int64), np.zeros(LONGEST, np.int64)
        place = 0
        for number, clause in enumerate(sub_sentences(description.text)):
            for word in parse(clause, synonyms).words[: LONGEST - place]:
                words[place], clauses[place] = self.words.get(word, OTHER_WORD), min(number, CLAUSES - 1)
                place += 1
        signs = np.zeros(len(self.terms), np.float32)
        for term, sign in description.terms().items():
            if term in self.terms:
                signs[self.terms[term]] = sign
        return Numbers(words, clauses, signs)


class Sentence(NamedTuple):
    """What was read. whole: (D,) length 1; parts: (n, D) of sentence, sub-sentences and words; clauses: (C, D) with is_clause (C,)."""

    whole: Float32
    parts: Float32
    clauses: Float32
    is_clause: NDArray[np.bool_]


def read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a weights file; raises SettingsError, naming it, when it is missing or broken."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise SettingsError(f"the weights {path.name} must be a readable .npz file: {error}; train them or reinstall") from error


def unit(vectors: Float32) -> Float32:
    """Rows of length 1, (..., D); rows of nothing stay so."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    normal: Float32 = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return normal


def terms_of(names: NDArray[Any]) -> tuple[Term, ...]:
    """Terms as they are stored: "upper colour|red"."""
    pairs = (str(name).partition("|") for name in names)
    return tuple((name, value) for name, _, value in pairs)


class Attributes:
    """Plain attributes read from text-aligned vectors: one calibrated logistic head per attribute."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._weight, self._bias, self._slope, self._offset = (
            np.asarray(arrays[f"attribute_{name}"], np.float32) for name in ("weight", "bias", "slope", "offset")
        )
        self.shown = [
            (index, term)
            for index, (term, auc) in enumerate(zip(terms_of(arrays["attribute_terms"]), arrays["attribute_auc"], strict=True))
            if auc >= SHOWN_AUC
        ]

    def of(self, vectors: Float32, quality: Sequence[float]) -> tuple[Attribute, ...]:
        """The attributes of one person from the vectors (K, D) of some looks, weighted by quality, most certain first; () without looks.

        Only those told apart with an AUC of at least SHOWN_AUC on unseen people, with a probability of at least LISTED.
        Raises ValueError when ``quality`` has another length.
        """
        weight = np.maximum(np.asarray(quality, np.float32), 1e-3)
        if weight.shape != (len(vectors),):
            raise ValueError(f"quality must be ({len(vectors)},), one per vector, got {weight.shape}")
        if not len(vectors):
            return ()
        logits = (vectors @ self._weight + self._bias) * self._slope + self._offset  # (K, T)
        chance = 1 / (1 + np.exp(-np.clip((weight / weight.sum()) @ logits, -30, 30)))  # (T,)
        found = [Attribute(*term, float(chance[index])) for index, term in self.shown if chance[index] >= LISTED]
        return tuple(sorted(found, key=lambda attribute: -attribute.score))


def calibration(weights: Path = WEIGHTS) -> dict[str, Logistic]:
    """The curves from cosine to log-odds, as many right as wrong ones: space -> curve. Fitted on unseen people."""
    arrays = read_weights(weights)
    curves = {}
    for kind in ("text", "body"):
        slope, offset = (float(value) for value in arrays[f"{kind}_calibration"])
        curves[str(arrays[f"{kind}_space"])] = Logistic(-offset / slope, slope)
    return curves


class WordReader:
    """WordNet without torch."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.vocabulary = Vocabulary(
            {str(word): index for index, word in enumerate(arrays["words"])},
            {term: index for index, term in enumerate(terms_of(arrays["terms"]))},
        )
        names = (
            "word_vectors", "convolution", "convolution_bias", "sentence_weight", "sentence_bias",
            "clause_weight", "clause_bias", "word_weight", "word_bias", "term_vectors",
        )  # fmt: skip
        self._w = {name: np.ascontiguousarray(arrays[name], np.float32) for name in names}

    def read(self, numbers: Numbers) -> Sentence:
        """See Sentence."""
        w = self._w
        is_word = numbers.words != PADDING
        vectors = w["word_vectors"][numbers.words] * is_word[:, None]  # (L, E)
        padded = np.pad(vectors, ((1, 1), (0, 0)))
        windows = np.concatenate([padded[:-2], padded[1:-1], padded[2:]], 1)  # (L, 3E)
        heard = np.maximum(windows @ w["convolution"] + w["convolution_bias"], 0) * is_word[:, None]  # (L, H)
        whole = heard.max(0) @ w["sentence_weight"] + w["sentence_bias"] + numbers.terms @ w["term_vectors"]  # (D,)
        member = (numbers.clauses[:, None] == np.arange(CLAUSES)) & is_word[:, None]  # (L, C)
        pooled = np.stack([(heard * member[:, [c]]).max(0) for c in range(CLAUSES)])  # (C, H)
        clauses = pooled @ w["clause_weight"] + w["clause_bias"]  # (C, D)
        words = heard[is_word] @ w["word_weight"] + w["word_bias"]
        is_clause = member.any(0)
        parts = np.concatenate([whole[None], clauses[is_clause], words])
        return Sentence(unit(whole), parts.astype(np.float32), clauses.astype(np.float32), is_clause)


class RetrieverTextEncoder:
    """TextEncoder of the detector-retriever."""

    def __init__(self, sentences: SentenceEncoder | None = None, weights: Path = WEIGHTS, cache: Path | None = None) -> None:
        """sentences: finds the known word nearest to an unknown one, in other languages too; None: such words are left out.

        cache: folder that keeps the lexicon's sentence vectors. Raises SettingsError when ``weights`` cannot be read.
        """
        arrays = read_weights(weights)
        self.space = str(arrays["text_space"])
        self._synonyms = Synonyms(sentences, cache=cache) if sentences is not None else None
        self._reader = WordReader(arrays)
        self._curve = calibration(weights)[self.space]
        self._shown = {term for _, term in Attributes(arrays).shown}

    def parse(self, text: str) -> Description:
        """The phrases read from ``text``, with synonyms replaced."""
        return parse(text, self._synonyms)

    def read(self, text: str) -> Sentence:
        """Sentence, sub-sentences and words. Raises BadInputError, naming the words, when nothing in it can be seen in a picture."""
        description = self.parse(text)
        if not description.phrases:
            raise BadInputError(_nothing_to_see(description))
        return self._reader.read(self._reader.vocabulary.numbers(description, self._synonyms))

    def encode(self, text: str) -> Embedding:
        """The description as a vector of modality text; quality is the part of its content words that was understood.

        Raises BadInputError, naming the words, when nothing in it can be seen in a picture.
        """
        description = self.parse(text)
        understood = len(description.phrases) / max(len(description.phrases) + len(description.unknown), 1)
        return Embedding("text", self.space, self.read(text).whole, quality=understood)

    def score(self, similarity: float, others: int = 1000) -> float:
        """The chance, 0..1, that a person with this cosine is the one described, among ``others`` equally likely people."""
        return score(self._curve.slope * (similarity - self._curve.midpoint) - math.log(max(others, 1)))

    def explain(self, text: str, attributes: Sequence[Attribute]) -> tuple[str, ...]:
        """For each phrase whether the attributes agree: "red upper body: yes, 0.91", "backpack: no, under 0.30"."""
        seen = {(attribute.name, attribute.value): attribute.score for attribute in attributes}
        lines = [self._verdict(phrase, term, seen) for phrase in self.parse(text).phrases for term in _plain(phrase.terms())]
        return tuple(dict.fromkeys(lines))

    def _verdict(self, phrase: Phrase, term: Term, seen: Mapping[Term, float]) -> str:
        words = ("no " if phrase.is_negated else "") + term_words(term)
        if term not in self._shown:
            return f"{words}: cannot be told"
        if term not in seen:
            return f"{words}: {'yes' if phrase.is_negated else 'no'}, {'over' if phrase.is_negated else 'under'} " + (
                f"{1 - LISTED if phrase.is_negated else LISTED:.2f}"
            )
        chance = 1 - seen[term] if phrase.is_negated else seen[term]
        verdict = "yes" if chance >= YES else "no" if chance <= NO else "unclear"
        return f"{words}: {verdict}, {chance:.2f}"


def _plain(terms: Sequence[Term]) -> list[Term]:
    """The terms worth a line of their own: a backpack says already that there is a bag, a colour that it is dark."""
    coloured = {name.split()[0] for name, _ in terms if name.endswith("colour")}
    carried = [value for name, value in terms if name == "carrying"]
    return [
        (name, value)
        for name, value in terms
        if not (name.endswith("tone") and name.split()[0] in coloured) and not ((name, value) == ("carrying", "bag") and len(carried) > 1)
    ]


def term_words(term: Term) -> str:
    """A term in plain words, such as "red upper body"."""
    name, value = term
    place, _, what = name.partition(" ")
    if what in ("colour", "tone"):
        return f"{value} {place}" + (" body" if place in ("upper", "lower") else "")
    return {"hair": f"{value} hair", "sleeves": f"{value} sleeves", "pattern": f"{value} clothes"}.get(name, value)


def _nothing_to_see(description: Description) -> str:
    said = ", ".join(description.unknown) or description.text.strip() or "nothing"
    ignored = f" (not used, by rule: {', '.join(description.ignored)})" if description.ignored else ""
    return (
        f"a description must name clothes, colours, hair or things carried, got: {said}{ignored}; say for example 'red jacket, blue jeans'"
    )
