"""Cast search in movies: CSM (Huang et al., ECCV 2018), the WIDER challenge's "cast search by portrait" (2019), and CSM-V.

CSM as its makers published it, affinities of their networks and labels, no pictures:

    meta/SUBSET.json                      {"movie": [film], "info": {film: {"num_tracklet", "pids": [cast], "labels": [one per tracklet]}}}
    meta/across_SUBSET.json               [{"plabel": number of the cast member, "pid": name}], one per tracklet of all films; the cast of
                                          all films has numbers from 0, "others" any other number
    affinity/SUBSET/in/FILM/MODALITY_LINK_KIND_affmat.npy, affinity/SUBSET/across/... without FILM
                                          MODALITY face, body; LINK mean, max; KIND ct (cast to tracklet), tt (tracklet to tracklet)
    feature/SUBSET/in/FILM/WHOSE_MODALITY_feat.npy                         WHOSE cast, tracklet; rows of vectors

The challenge's layout, with pictures:

    SUBSET.json        {film: {"cast": [{"id", "img", "label"}], "candidates": [{"id", "img", "bbox", "label"}]}}; bbox: left, top,
                       width, height
    SUBSET_label.json  {cast id: [candidate ids]}, where SUBSET.json has no labels
    SUBSET/IMG         the pictures

CSM-V (Wang et al., Listen, Look, and Find the One, 2020) adds voices to CSM's tracklets; a public description of its files could not be
found. Assumed here: the same names with MODALITY voice (a tracklet without one is a row of nan, or of zeros in a feature file), and in the
challenge's layout "voice", a sound file below SUBSET/, of a candidate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError, NotFoundError
from pipeline.evaluate.cast_search import OTHERS

Float32 = NDArray[np.float32]

ACROSS = "across"  # the name of all films as one
CAST_TO_TRACKLET, BETWEEN_TRACKLETS = "ct", "tt"


@dataclass(frozen=True, slots=True)
class Film:
    """Who plays, and who is on each of T tracklets: one of the cast or OTHERS. films: (T,), of each tracklet, "" where not known."""

    name: str
    cast: tuple[str, ...]
    labels: tuple[str, ...]
    films: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CsmFolder:
    """A folder as CSM's makers published it."""

    folder: Path
    subset: str = "test"

    @property
    def is_there(self) -> bool:
        """Whether there are labels within films or across them."""
        return any((self.folder / "meta" / name).is_file() for name in (f"{self.subset}.json", f"across_{self.subset}.json"))

    def films(self) -> list[Film]:
        """The films, to be searched one by one; [] where only labels across films are there. Raises BadInputError."""
        path = self.folder / "meta" / f"{self.subset}.json"
        if not path.is_file():
            return []
        content = _read_json(path)
        try:
            found = [
                Film(str(name), *(tuple(map(str, content["info"][name][key])) for key in ("pids", "labels"))) for name in content["movie"]
            ]
            counts = {name: int(content["info"][name].get("num_tracklet", -1)) for name in content["movie"]}
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(f"{path.name} must hold movie and info with pids and labels of every film: {error!r}") from error
        for film in found:
            if counts[film.name] not in (-1, len(film.labels)):
                raise BadInputError(
                    f"{path.name}: film {film.name} must have a label for each of {counts[film.name]} tracklets, got {len(film.labels)}"
                )
        return found

    def across(self) -> Film | None:
        """All films as one; None where there are no such labels. Raises BadInputError."""
        path = self.folder / "meta" / f"across_{self.subset}.json"
        if not path.is_file():
            return None
        content = _read_json(path)
        try:
            pairs = [(int(each["plabel"]), str(each["pid"])) for each in content]
            films = tuple(str(each.get("movie", "")) for each in content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInputError(f"{path.name} must be a list of plabel and pid: {error!r}") from error
        numbers = {number: name for number, name in pairs if name != OTHERS}
        if sorted(numbers) != list(range(len(numbers))):
            raise BadInputError(f"{path.name} must number its {len(numbers)} cast members from 0, got {sorted(numbers)[:5]}...")
        return Film(ACROSS, tuple(numbers[number] for number in range(len(numbers))), tuple(name for _, name in pairs), films)

    def affinity(self, film: Film, modality: str, kind: str, link: str = "mean") -> Float32 | None:
        """Similarities (C, T) of CAST_TO_TRACKLET or (T, T) of BETWEEN_TRACKLETS, as published or from the vectors; None where there is
        neither. Voices: nan where a tracklet has none. Raises BadInputError for another shape."""
        path = self._place("affinity", film) / f"{modality}_{link}_{kind}_affmat.npy"
        rows = len(film.cast) if kind == CAST_TO_TRACKLET else len(film.labels)
        if path.is_file():
            made = _read_array(path)
        else:
            first = self.vectors(film, "cast" if kind == CAST_TO_TRACKLET else "tracklet", modality)
            second = self.vectors(film, "tracklet", modality)
            if first is None or second is None:
                return None
            made = first @ second.T
        if made.shape != (rows, len(film.labels)):
            raise BadInputError(f"{modality} {kind} of {film.name} must be {(rows, len(film.labels))}, got {made.shape}")
        return made

    def vectors(self, film: Film, whose: str, modality: str) -> Float32 | None:
        """Vectors of length 1 of "cast" (C, D) or "tracklet" (T, D), nan where a row is of zeros; None where there is no file."""
        path = self._place("feature", film) / f"{whose}_{modality}_feat.npy"
        if not path.is_file():
            return None
        raw = _read_array(path)
        if raw.ndim != 2:
            raise BadInputError(f"{path.name} of {film.name} must be (N, D), got {raw.shape}")
        length = np.linalg.norm(raw, axis=1, keepdims=True)
        made: Float32 = np.where(length > 0, raw / np.maximum(length, 1e-12), np.nan).astype(np.float32)
        return made

    def _place(self, what: str, film: Film) -> Path:
        whole = self.folder / what / self.subset
        return whole / ACROSS if film.name == ACROSS else whole / "in" / film.name


@dataclass(frozen=True, slots=True)
class Portrait:
    """A picture of a cast member."""

    name: str
    picture: Path


@dataclass(frozen=True, slots=True)
class Candidate:
    """A person on a frame: box (left, top, width, height) in px; voice: a sound file, or None."""

    picture: Path
    box: tuple[float, float, float, float]
    voice: Path | None = None


@dataclass(frozen=True, slots=True)
class PicturedFilm:
    """A film of the challenge: what ``film`` names, with pictures in the same order."""

    film: Film
    cast: tuple[Portrait, ...]
    candidates: tuple[Candidate, ...] = field(default_factory=tuple)


def pictured_films(folder: Path, subset: str = "val") -> list[PicturedFilm]:
    """The films of SUBSET.json, [] where there is none. Raises BadInputError, NotFoundError where labels are missing."""
    path = folder / f"{subset}.json"
    if not path.is_file():
        return []
    content = _read_json(path)
    aside = folder / f"{subset}_label.json"
    wanted: Mapping[str, Any] = _read_json(aside) if aside.is_file() else {}
    try:
        return [_pictured(str(name), each, folder / subset, wanted) for name, each in content.items()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInputError(f"{path.name} must hold cast and candidates of every film: {error!r}") from error


def _pictured(name: str, content: Mapping[str, Any], pictures: Path, wanted: Mapping[str, Any]) -> PicturedFilm:
    cast = [(str(each["id"]), str(each.get("label", each["id"])), str(each["img"])) for each in content["cast"]]
    owner = {str(candidate): label for who, label, _ in cast for candidate in wanted.get(who, ())}
    labels, candidates = [], []
    for each in content["candidates"]:
        if "label" not in each and not wanted:
            raise NotFoundError(f"the candidates of {name} must have labels, in the same file or in SUBSET_label.json: none are there")
        labels.append(str(each["label"]) if "label" in each else owner.get(str(each["id"]), OTHERS))
        left, top, width, height = (float(value) for value in each["bbox"])
        voice = pictures / str(each["voice"]) if each.get("voice") else None
        candidates.append(Candidate(pictures / str(each["img"]), (left, top, width, height), voice))
    film = Film(name, tuple(label for _, label, _ in cast), tuple(labels), (name,) * len(labels))
    return PicturedFilm(film, tuple(Portrait(label, pictures / picture) for _, label, picture in cast), tuple(candidates))


def as_one(films: list[PicturedFilm]) -> PicturedFilm:
    """All films as one; a cast member of several has the first portrait."""
    portraits: dict[str, Portrait] = {}
    for each in films:
        for portrait in each.cast:
            portraits.setdefault(portrait.name, portrait)
    whole = Film(
        ACROSS,
        tuple(portraits),
        tuple(label for each in films for label in each.film.labels),
        tuple(name for each in films for name in each.film.films),
    )
    return PicturedFilm(whole, tuple(portraits.values()), tuple(candidate for each in films for candidate in each.candidates))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path.name} must be readable JSON: {error}") from error


def _read_array(path: Path) -> Float32:
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float32)
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path.name} must be a NumPy array of numbers: {error}") from error
