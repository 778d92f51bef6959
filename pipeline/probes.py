"""Probes to vectors: what a query and a standing watch ask, in the form that can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pipeline.errors import BadInputError, NotFoundError
from pipeline.ports import TextEncoder
from pipeline.types import BODY, FACE, TEXT, VOICE, Attribute, Embedding, Probe, Tracklet

# How far each vector of a tracklet or picture speaks for the person: the face and the voice stay, clothes change.
SHARES: Mapping[str, float] = {FACE: 1.0, VOICE: 1.0, BODY: 0.7, TEXT: 0.3}


class Reading(Protocol):
    """What a text encoder made of a description: unknown words, and words that are not used to label people."""

    @property
    def unknown(self) -> Sequence[str]: ...
    @property
    def ignored(self) -> Sequence[str]: ...


@runtime_checkable
class ReadsWords(Protocol):
    """A text encoder that can say which words it did not use; one that reads whole sentences may not know."""

    def parse(self, text: str) -> Reading: ...


@dataclass(frozen=True, slots=True)
class Part:
    """One vector of a probe: how much it weighs, whether it speaks against a match, and the words behind it ("" for a picture)."""

    embedding: Embedding
    weight: float
    is_negative: bool = False
    words: str = ""

    @property
    def is_picture(self) -> bool:
        """Whether a picture stands behind it, not a description."""
        return not self.words


@dataclass(frozen=True, slots=True)
class Resolved:
    """The parts of all probes; notes on what could not be used; the probes' own tracklets, which are no answer to themselves."""

    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    own_tracklets: frozenset[str] = frozenset()


def resolve(probes: Sequence[Probe], text: TextEncoder | None, lookup: Callable[[Sequence[str]], list[Tracklet]]) -> Resolved:
    """The vectors of ``probes``; ``lookup`` gives stored tracklets by id.

    A probe that cannot be used leaves a note. Raises BadInputError when none can, or when all that can are negative.
    """
    parts: list[Part] = []
    notes: list[str] = []
    errors: list[BadInputError] = []
    for probe in probes:
        try:
            found, missing = _parts(probe, text, lookup)
        except BadInputError as error:
            errors.append(error)
            notes.append(f"{probe.kind} not used: {error}")
            continue
        parts.extend(found)
        notes.extend(missing)
    if not parts and errors:
        raise errors[0]
    if not any(not part.is_negative for part in parts):
        raise BadInputError("a query must say what to look for, not only what to avoid: add a probe that is not negative")
    own = frozenset(probe.tracklet_id for probe in probes if probe.kind == "tracklet")
    return Resolved(tuple(parts), tuple(notes), own)


def _parts(probe: Probe, text: TextEncoder | None, lookup: Callable[[Sequence[str]], list[Tracklet]]) -> tuple[list[Part], list[str]]:
    """The parts of one probe and notes on what it lacks."""
    if probe.kind in ("text", "speech"):
        if text is None:
            raise BadInputError("no text encoder is set up: search by picture, or choose one in the settings")
        return [Part(text.encode(probe.text), probe.weight, probe.is_negative, probe.text)], _unused_words(text, probe.text)
    embeddings, notes = probe.embeddings, list[str]()
    if probe.kind == "tracklet":
        stored = lookup([probe.tracklet_id])
        if not stored:
            raise NotFoundError(f"tracklet {probe.tracklet_id!r} is not in the index: it may have expired, or the id is mistyped")
        embeddings = stored[0].embeddings
        if not embeddings:
            raise BadInputError(f"tracklet {probe.tracklet_id!r} holds no vector to compare with: choose another one of that person")
        if stored[0].embedding(FACE) is None:
            notes.append(f"tracklet {probe.tracklet_id} shows no usable face: compared by body and appearance")
    total = sum(SHARES[embedding.modality] for embedding in embeddings)
    return [
        Part(embedding, probe.weight * SHARES[embedding.modality] / total, probe.is_negative, probe.text) for embedding in embeddings
    ], notes


def _unused_words(text: TextEncoder, words: str) -> list[str]:
    """Notes on what of a description was left out."""
    if not isinstance(text, ReadsWords):
        return []
    reading = text.parse(words)
    notes = []
    if reading.unknown:
        notes.append(f"words not understood: {', '.join(reading.unknown)}")
    if reading.ignored:
        notes.append(f"words not used, by rule: {', '.join(reading.ignored)}")
    return notes


def reasons(
    parts: Sequence[Part], similarities: Sequence[float], attributes: Sequence[Attribute], text: TextEncoder | None
) -> tuple[str, ...]:
    """Why a tracklet was ranked, for an operator: "face 0.62 in mobilefacenet@1", and what of a description fits.

    similarities: the cosine of each part, nan where the tracklet has no such vector.
    """
    phrases: list[str] = []
    for part, similarity in zip(parts, similarities, strict=True):
        modality, space = part.embedding.modality, part.embedding.space
        if similarity != similarity:  # nan: not compared
            phrases.append(f"no {modality} to compare" if not part.is_negative else "")
        elif part.is_negative:
            phrases.append(
                f"unlike what to avoid: {modality} {similarity:.2f}" if similarity < 0.5 else f"like what to avoid: {similarity:.2f}"
            )
        elif modality == TEXT and part.words and text is not None:
            phrases.extend(text.explain(part.words, attributes))
        else:
            phrases.append(f"{modality} {similarity:.2f} in {space}")
    return tuple(dict.fromkeys(phrase for phrase in phrases if phrase))
