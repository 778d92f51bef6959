"""`sightline evaluate cast-search`: portraits of a cast against the tracklets of films, as CSM and CSM-V ask it.

On CSM as published (affinities or vectors of its makers' networks) every way to search works on these numbers. Where the folder holds
pictures (and sounds), our own encoders look and listen, the associator weighs, and the search goes in one step (face alone) or in several
(face, then body and voice). Files and what was assumed of CSM-V's voices: models/training/datasets/csmv.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.training.datasets.csmv import (
    BETWEEN_TRACKLETS,
    CAST_TO_TRACKLET,
    CsmFolder,
    Film,
    PicturedFilm,
    as_one,
    pictured_films,
)
from models.training.tracklets import ReadSound, read_picture
from pipeline.embed import BestShots
from pipeline.errors import BadInputError, NotFoundError
from pipeline.evaluate.cast_search import CastFigures, cast_figures, over_films, spread, walked
from pipeline.evidence import HOUR_S, Associator
from pipeline.ports import FaceEncoder, LookEncoder, VoiceEncoder
from pipeline.types import BODY, FACE, VOICE, Embedding

Float = NDArray[np.float64]
Scores = dict[str, Float]

SUBSETS = ("test", "val", "train")
FACE_SHARE = 0.8  # of face against body where both are averaged, as published
OTHER_FILM_S = 10_000 * HOUR_S  # between films: nobody wears the same
CONFIDENCE = 0.9  # of boxes drawn by hand


@dataclass(frozen=True, slots=True)
class Searchers:
    """What looks, listens and weighs where there are pictures."""

    face: FaceEncoder
    looks: LookEncoder
    voice: VoiceEncoder
    read_sound: ReadSound
    associator: Associator


def evaluate_cast_search(data: Path, subset: str | None, searchers: Callable[[], Searchers]) -> dict[str, Any]:
    """mAP and R@1, 3, 5 of every way to search, "within_films" and "across_films".

    Raises NotFoundError where the folder holds neither layout, BadInputError, UnreadableMediaError for broken files.
    """
    started_s = time.monotonic()
    for name in [subset] if subset else SUBSETS:
        folder = CsmFolder(data, name)
        if folder.is_there:
            made = _of_affinities(folder)
        elif pictured := pictured_films(data, name):
            made = _of_pictures(pictured, searchers())
        else:
            continue
        return {**made, "subset": name, "elapsed_s": round(time.monotonic() - started_s, 2)}
    wanted = subset or " or ".join(SUBSETS)
    raise NotFoundError(f"{data} must hold meta/SUBSET.json (CSM) or SUBSET.json (cast search by portrait) for {wanted}: found neither")


# ------------------------------------------------------------------------------------------------- published numbers


def _of_affinities(folder: CsmFolder) -> dict[str, Any]:
    films, whole = folder.films(), folder.across()
    within = [(film, scores) for film in films if (scores := _scores(folder, film))]
    if films and not within:
        raise NotFoundError(f"{folder.folder} must hold face affinities or vectors of its films (affinity/ or feature/), found none")
    across = _scores(folder, whole) if whole is not None else {}
    return {
        "within_films": _films_table(within),
        "across_films": {name: _row(cast_figures(score, whole.cast, whole.labels)) for name, score in across.items()} if whole else {},
        "layout": "CSM",
    }


def _scores(folder: CsmFolder, film: Film) -> Scores:
    """Every way to search that the numbers of a film allow, (C, T) each; {} without faces."""
    faces = folder.affinity(film, FACE, CAST_TO_TRACKLET)
    if faces is None:
        return {}
    face = _known(faces, -1.0)
    made: Scores = {"face": face}
    body = folder.affinity(film, BODY, CAST_TO_TRACKLET)
    if body is not None:
        made |= {"body": _known(body, -1.0), "face + body": FACE_SHARE * face + (1 - FACE_SHARE) * _known(body, 0.0)}
    dressed, heard = (_links(folder, film, modality) for modality in (BODY, VOICE))
    if dressed is not None:
        made["face, then body"] = spread(face, dressed)
    if heard is not None:
        made["face, then voice"] = spread(face, heard)
    if dressed is not None and heard is not None:
        made["face, then body and voice"] = spread(face, np.maximum(dressed, heard))
    return made


def _links(folder: CsmFolder, film: Film, modality: str) -> Float | None:
    """Similarities of tracklets, (T, T), 0 where one has none; None where the folder holds none."""
    found = folder.affinity(film, modality, BETWEEN_TRACKLETS)
    return None if found is None else _known(found, 0.0)


def _known(values: NDArray[np.float32], otherwise: float) -> Float:
    return np.nan_to_num(np.asarray(values, np.float64), nan=otherwise)


# ------------------------------------------------------------------------------------------------- pictures and sounds


def _of_pictures(films: Sequence[PicturedFilm], searchers: Searchers) -> dict[str, Any]:
    seen = [_Seen.of(film, searchers) for film in films]
    within = [(film.film, each.scores(film.film, searchers.associator)) for film, each in zip(films, seen, strict=True)]
    whole = as_one(list(films)).film
    portraits: dict[str, tuple[Embedding, ...]] = {}
    for film, each in zip(films, seen, strict=True):
        for name, own in zip(film.film.cast, each.cast, strict=True):
            portraits.setdefault(name, own)
    one = _Seen(tuple(portraits[name] for name in whole.cast), tuple(own for each in seen for own in each.tracklets))
    across = one.scores(whole, searchers.associator) if len(films) > 1 else {}
    return {
        "within_films": _films_table(within),
        "across_films": {name: _row(cast_figures(score, whole.cast, whole.labels)) for name, score in across.items()},
        "layout": "cast search by portrait",
        "tracklets_with": {m: sum(any(e.modality == m for e in own) for own in one.tracklets) for m in (FACE, BODY, VOICE)},
    }


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was seen and heard of a film: vectors of each portrait and of each tracklet."""

    cast: tuple[tuple[Embedding, ...], ...]
    tracklets: tuple[tuple[Embedding, ...], ...]

    @classmethod
    def of(cls, film: PicturedFilm, by: Searchers) -> _Seen:
        cast = tuple(_face(by.face, read_picture(portrait.picture)) for portrait in film.cast)
        tracklets = []
        for candidate in film.candidates:
            frame = read_picture(candidate.picture)
            left, top, width, height = candidate.box
            box = np.array([left, top, left + width, top + height], np.float32)
            shot = BestShots(1).offer(frame, 0, box, CONFIDENCE, 0.0)
            own: list[Embedding] = []
            if shot is not None:
                own += _face(by.face, shot.crop)
                vectors = by.looks.encode([shot.crop])[BODY]
                own.append(Embedding(BODY, vectors.space, vectors.values[0], shot.quality))
            if candidate.voice is not None:
                own += _voice(by, candidate.voice)
            tracklets.append(tuple(own))
        return cls(cast, tuple(tracklets))

    def scores(self, film: Film, associator: Associator) -> Scores:
        """One step and several, (C, T) each."""
        face = _odds(self.cast, self.tracklets, FACE, associator)
        films = np.asarray(film.films)
        gap_s = np.where(films[:, None] == films[None], 0.0, OTHER_FILM_S)
        between = {m: _odds(self.tracklets, self.tracklets, m, associator, gap_s) for m in (FACE, BODY, VOICE)}
        made = {"face": face, "face, then body": walked(face, between[FACE] + between[BODY])}
        if any(e.modality == VOICE for own in self.tracklets for e in own):
            made["face, then voice"] = walked(face, between[FACE] + between[VOICE])
            made["face, then body and voice"] = walked(face, between[FACE] + between[BODY] + between[VOICE])
        return made


def _face(encoder: FaceEncoder, picture: NDArray[np.uint8]) -> tuple[Embedding, ...]:
    """The best face's vector, () where there is none."""
    found = encoder.faces(picture)
    return (found[0].embedding,) if found and found[0].embedding is not None else ()


def _voice(by: Searchers, path: Path) -> tuple[Embedding, ...]:
    try:
        return (by.voice.encode(by.read_sound(path)),)
    except BadInputError:  # nobody speaks there
        return ()


def _odds(
    ours: Sequence[Sequence[Embedding]], theirs: Sequence[Sequence[Embedding]], modality: str, associator: Associator, gap_s: Any = 0.0
) -> Float:
    """Log-odds by one modality, (len(ours), len(theirs)), 0 where either has none."""
    first, second = ([next((e for e in own if e.modality == modality), None) for own in side] for side in (ours, theirs))
    known = next((e for e in (*first, *second) if e is not None), None)
    if known is None:
        return np.zeros((len(ours), len(theirs)))
    columns = []
    for side in (first, second):
        vectors = np.stack([e.vector if e is not None else np.full_like(known.vector, np.nan) for e in side])
        columns.append((vectors, np.array([e.quality if e is not None else 0.0 for e in side])))
    (left, quality), (right, other) = columns
    cosine = left.astype(np.float64) @ right.T.astype(np.float64)
    return associator.log_odds(modality, known.space, cosine, quality[:, None], other[None], gap_s)


# ------------------------------------------------------------------------------------------------- tables


def _films_table(films: Sequence[tuple[Film, Mapping[str, Float]]]) -> dict[str, Any]:
    """Every way to search, over the films whose numbers allow it."""
    names = dict.fromkeys(name for _, scores in films for name in scores)
    table: dict[str, Any] = {}
    for name in names:
        figures = [cast_figures(scores[name], film.cast, film.labels) for film, scores in films if name in scores]
        table[name] = {**_row(over_films(figures)), "films": len(figures)}
    return table


def _row(figures: CastFigures) -> dict[str, Any]:
    return {
        "mAP": round(figures.mean_average_precision, 4),
        "mAP_as_published": round(figures.as_published, 4),
        **{f"R@{k}": round(value, 4) for k, value in figures.recall.items()},
        "cast": figures.cast,
        "tracklets": figures.tracklets,
    }
