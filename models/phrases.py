"""Words and looks in one space: crops and descriptions to vectors that can be compared, and plain attributes of a person.

Image side: frozen MobileNetV2 stripes and colours, one linear map. Text side: a three-word convolution over word vectors (max-pooled)
plus a vector for each parsed phrase, signed, so that "red jacket, blue jeans" and "blue jacket, red jeans" differ and "no bag" counts
against a bag. Both were trained together on captions by models/training/phrases.py; numpy runs them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.body import LookProjection, look_features, read_weights, unit
from models.text_encoder import Synonyms
from pipeline.calibration import Logistic, score
from pipeline.errors import BadInputError
from pipeline.ports import SentenceEncoder
from pipeline.search.description import Description, Phrase, Term, parse
from pipeline.types import Attribute, Embedding

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]

PHRASE_WEIGHTS = Path(__file__).parent / "weights" / "phrases.npz"
SHOWN_AUC = 0.75  # an attribute that is told apart worse than this on unseen people is never shown
LISTED = 0.3  # probabilities below this are not listed
YES, NO = 0.6, 0.4
PADDING, OTHER_WORD = 0, 1  # ids of the word table


def sigmoid(logits: Float32) -> Float32:
    """1 / (1 + exp(-x)), (..., )."""
    value: Float32 = (1 / (1 + np.exp(-np.clip(logits, -30, 30)))).astype(np.float32)
    return value


def calibration(weights: Path = PHRASE_WEIGHTS) -> dict[str, Logistic]:
    """The curve from cosine to log-odds of "the person described", as many right as wrong ones: space -> curve. Fitted on unseen people."""
    arrays = read_weights(weights)
    slope, offset = (float(value) for value in arrays["calibration"])
    return {str(arrays["space"]): Logistic(-offset / slope, slope)}


def _terms(names: NDArray[Any]) -> tuple[Term, ...]:
    pairs = (str(name).partition("|") for name in names)
    return tuple((name, value) for name, _, value in pairs)


class PhraseEncoder:
    """AppearanceEncoder: crops to vectors of the text's space, and attributes with probabilities calibrated on unseen people."""

    def __init__(self, path: Path, threads: int = 1, weights: Path = PHRASE_WEIGHTS) -> None:
        """``path``: MobileNetV2 as convert_mobilenet writes it. Raises SettingsError when ``weights`` cannot be read."""
        arrays = read_weights(weights)
        self.space = str(arrays["space"])
        self._features = look_features(path, threads)
        self._project = LookProjection.of(arrays)
        self._heads = LookProjection.of(arrays, "head")
        self._slope, self._offset = (np.asarray(arrays[key], np.float32) for key in ("head_slope", "head_offset"))
        self._shown = [
            (index, term)
            for index, (term, auc) in enumerate(zip(_terms(arrays["head_terms"]), arrays["head_auc"], strict=True))
            if auc >= SHOWN_AUC
        ]

    def encode(self, crops: Sequence[Uint8]) -> Float32:
        """BGR uint8 (h, w, 3) crops of any size -> float32 (N, D), length 1. Raises BadInputError for another shape."""
        return unit(self._project(*self._features.of(crops)))

    def attributes(self, crops: Sequence[Uint8], quality: Sequence[float]) -> tuple[Attribute, ...]:
        """The plain attributes of one person seen in these crops, most certain first; (), without crops.

        Only attributes told apart with an AUC of at least SHOWN_AUC on unseen people, with a probability of at least LISTED.
        Raises ValueError when ``quality`` has another length.
        """
        if not crops:
            return ()
        logits = self._heads(*self._features.of(crops)) * self._slope + self._offset  # (N, T)
        weight = np.maximum(np.asarray(quality, np.float32), 1e-3)
        if weight.shape != (len(crops),):
            raise ValueError(f"quality must be ({len(crops)},), one per crop, got {weight.shape}")
        chance = sigmoid((weight / weight.sum()) @ logits)  # (T,)
        found = [Attribute(*term, float(chance[index])) for index, term in self._shown if chance[index] >= LISTED]
        return tuple(sorted(found, key=lambda attribute: -attribute.score))


class PhraseTextEncoder:
    """TextEncoder: a description to a vector of the PhraseEncoder's space."""

    def __init__(self, sentences: SentenceEncoder | None = None, weights: Path = PHRASE_WEIGHTS, cache: Path | None = None) -> None:
        """sentences: finds the known word nearest to an unknown one, in other languages too; None: such words are left out.

        cache: folder that keeps the lexicon's sentence vectors.
        """
        arrays = read_weights(weights)
        self.space = str(arrays["space"])
        self._synonyms = Synonyms(sentences, cache=cache) if sentences is not None else None
        self._ids = {str(word): index for index, word in enumerate(arrays["words"])}
        self._term_ids = {term: index for index, term in enumerate(_terms(arrays["terms"]))}
        names = ("word_vectors", "convolution", "convolution_bias", "word_weight", "word_bias", "term_vectors")
        self._vectors, self._kernel, self._kernel_bias, self._weight, self._bias, self._term_vectors = (
            np.ascontiguousarray(arrays[name], np.float32) for name in names
        )
        self._curve = calibration(weights)[self.space]
        self._shown = {term for term, auc in zip(_terms(arrays["head_terms"]), arrays["head_auc"], strict=True) if auc >= SHOWN_AUC}

    def parse(self, text: str) -> Description:
        """The phrases read from ``text``, with synonyms replaced."""
        return parse(text, self._synonyms)

    def encode(self, text: str) -> Embedding:
        """The description as a vector of modality text; quality is the part of its content words that was understood.

        Raises BadInputError, naming the words, when nothing in it can be seen in a picture.
        """
        description = self.parse(text)
        if not description.phrases:
            raise BadInputError(_nothing_to_see(description))
        understood = len(description.phrases) / (len(description.phrases) + len(description.unknown))
        return Embedding("text", self.space, self._vector(description), quality=understood)

    def score(self, similarity: float, others: int = 1000) -> float:
        """The chance, 0..1, that a person with this cosine is the one described, among ``others`` equally likely people."""
        return score(self._curve.slope * (similarity - self._curve.midpoint) - math.log(max(others, 1)))

    def explain(self, text: str, attributes: Sequence[Attribute]) -> tuple[str, ...]:
        """For each phrase whether the attributes agree: "red upper body: yes, 0.91", "backpack: no, under 0.30"."""
        seen = {(attribute.name, attribute.value): attribute.score for attribute in attributes}
        lines = [self._verdict(phrase, term, seen) for phrase in self.parse(text).phrases for term in _plain(phrase.terms())]
        return tuple(dict.fromkeys(lines))

    def _vector(self, description: Description) -> Float32:
        ids = [self._ids.get(word, OTHER_WORD) for word in description.words]
        words = self._vectors[ids]  # (L, E)
        padded = np.pad(words, ((1, 1), (0, 0)))
        windows = np.concatenate([padded[:-2], padded[1:-1], padded[2:]], 1)  # (L, 3E)
        heard = np.maximum(windows @ self._kernel + self._kernel_bias, 0).max(0)  # (H,)
        vector = heard @ self._weight + self._bias  # (D,)
        for term, sign in description.terms().items():
            if term in self._term_ids:
                vector = vector + np.float32(sign) * self._term_vectors[self._term_ids[term]]
        return unit(vector[None]).reshape(-1)

    def _verdict(self, phrase: Phrase, term: Term, seen: dict[Term, float]) -> str:
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
