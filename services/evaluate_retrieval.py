"""`sightline evaluate text-search` and `sightline evaluate reid`: figures on plain folders of crops and a file of captions.

persons: PERSON/<camera><n>.jpg, one folder per person, the first letter of a file its camera. captions: JSON lines with ``person`` and
``caption`` (and ``images``, not needed). distractors: a folder of crops of anybody else, in any depth, that only enlarge the gallery.
Where folders are called SOURCE_NAME, every figure is also given for each source alone. Intervals are 95 %, over people.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError, NotFoundError, UnreadableMediaError
from pipeline.evaluate.retrieval import intervals, outcomes, ranked_hits, ranking_figures
from pipeline.ports import LookEncoder, TextEncoder
from pipeline.types import BODY, TEXT

Float32 = NDArray[np.float32]
PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
BATCH = 32
NOBODY = ""  # the person of a distractor


@dataclass(frozen=True, slots=True)
class Crops:
    """Pictures of people: where each lies, whom it shows (NOBODY: a distractor) and from which camera."""

    paths: list[Path]
    person: NDArray[np.str_]
    camera: NDArray[np.str_]

    def where(self, keep: NDArray[np.bool_]) -> Crops:
        """The crops at ``keep``, a mask."""
        return Crops([path for path, kept in zip(self.paths, keep, strict=True) if kept], self.person[keep], self.camera[keep])


def crops_of(persons: Path, distractors: Path | None) -> Crops:
    """The crops below ``persons`` and ``distractors``; raises NotFoundError when a folder is missing or holds no picture."""
    own = _pictures(persons)
    others = _pictures(distractors) if distractors is not None else []
    person = [path.relative_to(persons).parts[0] for path in own] + [NOBODY] * len(others)
    camera = [path.name[0] for path in (*own, *others)]
    return Crops(own + others, np.array(person), np.array(camera))


def _pictures(folder: Path) -> list[Path]:
    walked = os.walk(folder, followlinks=True)  # a folder of links to a larger collection is a collection too
    found = sorted(Path(place) / name for place, _, names in walked for name in names if Path(name).suffix.lower() in PICTURES)
    if not found:
        raise NotFoundError(f"{folder} must be a folder with pictures ({', '.join(PICTURES)}), found none")
    return found


def _names(crops: Crops) -> NDArray[np.str_]:
    return np.array([str(path) for path in crops.paths])


def _read(path: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(path))
    if picture is None:
        raise UnreadableMediaError(f"{path} must be a picture that can be decoded")
    return np.asarray(picture, np.uint8)


def _encode(paths: Sequence[Path], looks: LookEncoder, modality: str) -> Float32:
    """Vectors of pictures, (N, D)."""
    blocks = ([_read(path) for path in paths[start : start + BATCH]] for start in range(0, len(paths), BATCH))
    return np.concatenate([looks.encode(block)[modality].values for block in blocks])


def _captions(path: Path, people: set[str]) -> list[tuple[str, str]]:
    """(person, caption) of every caption whose person is there; lines with ``captions`` count once for each of them."""
    if not path.is_file():
        raise NotFoundError(f"captions must be a file of JSON lines, {path} is not there")
    found: list[tuple[str, str]] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            texts = entry["captions"] if "captions" in entry else [entry["caption"]]
            found += [(str(entry["person"]), str(text)) for text in texts]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise BadInputError(f"line {number} of {path.name} must be JSON with person and caption: {error!r}") from error
    found = [pair for pair in found if pair[0] in people]
    if not found:
        raise BadInputError(f"{path.name} must describe at least one person of the persons folder, it describes none")
    return found


def _figures(similarity: Float32, wanted: NDArray[np.str_], owners: NDArray[np.str_]) -> dict[str, Any]:
    """Rank-k and mAP of the queries whose person is in the gallery, and intervals over people; similarity (Q, G), labels (Q,) and (G,)."""
    hits = ranked_hits(similarity, wanted[:, None] == owners[None])
    figures, result = ranking_figures(hits), outcomes(hits)
    measured: dict[str, Any] = {f"rank_{k}": round(figures.rank(k), 4) for k in (1, 5, 10, 20)}
    measured |= {"mAP": round(figures.mean_average_precision, 4), "queries": figures.queries, "gallery": len(owners)}
    is_there = result.first > 0
    if is_there.any():
        result = result.where(is_there)
        bounds = intervals(np.stack([result.within(1), result.within(10), result.precision], axis=1), wanted[is_there])  # (3, 2)
        measured["intervals"] = {
            name: [round(float(bound), 4) for bound in pair] for name, pair in zip(("rank_1", "rank_10", "mAP"), bounds, strict=True)
        }
    return measured


def _source_of(person: str) -> str:
    """The part of a folder's name before the first "_"; "" where it has none."""
    return person.partition("_")[0] if "_" in person else ""


def _sources(people: NDArray[np.str_]) -> dict[str, NDArray[np.str_]]:
    """Each source and who is of it."""
    named: dict[str, list[str]] = {}
    for person in np.unique(people).tolist():
        if source := _source_of(person):
            named.setdefault(source, []).append(person)
    return {source: np.array(members) for source, members in sorted(named.items())}


def evaluate_text_search(
    persons: Path,
    captions: Path,
    distractors: Path | None,
    looks: LookEncoder,
    text: TextEncoder,
    dump: Path | None = None,
) -> dict[str, Any]:
    """How well captions find their people: rank-k and mAP over crops, and over crops pooled per person and camera (as a tracklet is).

    Every caption is a query; the gallery is all crops of the people named in the captions, and the distractors. "persons" ranks people
    by the best of their pooled vectors. "sources": each source's queries against its own people alone, without distractors.
    ``dump``: a file for the similarity matrix and its labels (.npz). A caption in which nothing can be seen ranks
    the gallery in file order.
    Raises NotFoundError, BadInputError, UnreadableMediaError.
    """
    started_s = time.monotonic()
    crops = crops_of(persons, distractors)
    asked = _captions(captions, set(crops.person.tolist()))
    crops = crops.where(np.isin(crops.person, [NOBODY, *(person for person, _ in asked)]))
    vectors = _encode(crops.paths, looks, TEXT)  # (G, D)
    words, refused = _words(asked, text, vectors.shape[1])  # (Q, D)
    wanted = np.array([person for person, _ in asked])
    similarity = words @ vectors.T  # (Q, G)
    pooled, owners = _pooled(vectors, crops)
    by_tracklet = words @ pooled.T  # (Q, T)
    if dump is not None:
        np.savez(dump, similarity=similarity, query_person=wanted, gallery_person=crops.person, gallery=_names(crops))
    sources = {}
    for source, members in _sources(wanted).items():
        asking, in_crops, in_tracklets = (np.isin(labels, members) for labels in (wanted, crops.person, owners))
        sources[source] = {
            **_by_crop_tracklet_and_person(
                similarity[np.ix_(asking, in_crops)],
                by_tracklet[np.ix_(asking, in_tracklets)],
                wanted[asking],
                crops.person[in_crops],
                owners[in_tracklets],
            ),
            "people": len(members),
        }
    return {
        **_by_crop_tracklet_and_person(similarity, by_tracklet, wanted, crops.person, owners),
        "people": len(set(wanted.tolist())),
        "sources": sources,
        "captions_not_understood": refused,
        "space": looks.spaces[TEXT],
        "elapsed_s": round(time.monotonic() - started_s, 2),
    }


def _by_crop_tracklet_and_person(
    by_crop: Float32, by_tracklet: Float32, wanted: NDArray[np.str_], in_crops: NDArray[np.str_], in_tracklets: NDArray[np.str_]
) -> dict[str, dict[str, Any]]:
    """The figures of three galleries; similarities (Q, crops) and (Q, tracklets), the people asked for and those of each gallery."""
    by_person, people = _best_of_each(by_tracklet, in_tracklets)
    return {
        "crops": _figures(by_crop, wanted, in_crops),
        "tracklets": _figures(by_tracklet, wanted, in_tracklets),
        "persons": _figures(by_person, wanted, people),
    }


def _best_of_each(by_tracklet: Float32, owners: NDArray[np.str_]) -> tuple[Float32, NDArray[np.str_]]:
    """Similarity to each person's best tracklet (Q, P), and who they are; every distractor is somebody of its own."""
    keys = [person if person != NOBODY else f"/{row}" for row, person in enumerate(owners.tolist())]
    people, owner = np.unique(keys, return_inverse=True)
    best = np.full((len(people), len(by_tracklet)), -np.inf, np.float32)
    np.maximum.at(best, owner, by_tracklet.T)
    return best.T, people


def _words(asked: Sequence[tuple[str, str]], text: TextEncoder, dimensions: int) -> tuple[Float32, int]:
    """Vectors of the captions; zeros, and counted, where one was refused."""
    vectors, refused = np.zeros((len(asked), dimensions), np.float32), 0
    for row, (_, caption) in enumerate(asked):
        try:
            vectors[row] = text.encode(caption).vector
        except BadInputError:
            refused += 1
    return vectors, refused


def _pooled(vectors: Float32, crops: Crops) -> tuple[Float32, NDArray[np.str_]]:
    """Mean vectors per person and camera (a distractor stays alone), length 1, and their people."""
    keys = [
        f"{person}/{camera}" if person != NOBODY else f"/{row}"
        for row, (person, camera) in enumerate(zip(crops.person, crops.camera, strict=True))
    ]
    names, owner = np.unique(keys, return_inverse=True)
    sums = np.zeros((len(names), vectors.shape[1]), np.float32)
    np.add.at(sums, owner, vectors)
    lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return (sums / lengths).astype(np.float32), np.array([name.split("/")[0] for name in names])


def evaluate_reid(persons: Path, distractors: Path | None, looks: LookEncoder, dump: Path | None = None) -> dict[str, Any]:
    """How well a crop finds the same person in another camera: rank-k and mAP.

    Every crop of camera a is a query; the gallery is all crops of camera b, the distractors' among them. "sources": each source's
    queries against its own people alone, without distractors.
    ``dump``: a file for the similarity matrix and its labels (.npz). Raises NotFoundError, UnreadableMediaError, BadInputError.
    """
    started_s = time.monotonic()
    crops = crops_of(persons, distractors)
    queries = crops.where((crops.person != NOBODY) & (crops.camera == "a"))
    gallery = crops.where(crops.camera == "b")
    if not queries.paths or not gallery.paths:
        raise BadInputError(f"{persons} must hold crops of cameras a and b (a1.jpg, b1.jpg), got {sorted(set(crops.camera.tolist()))}")
    similarity = _encode(queries.paths, looks, BODY) @ _encode(gallery.paths, looks, BODY).T  # (Q, G)
    if dump is not None:
        np.savez(
            dump,
            similarity=similarity,
            query_person=queries.person,
            gallery_person=gallery.person,
            query=_names(queries),
            gallery=_names(gallery),
        )
    sources = {}
    for source, members in _sources(queries.person).items():
        asking, held = np.isin(queries.person, members), np.isin(gallery.person, members)
        if held.any():
            figures = _figures(similarity[np.ix_(asking, held)], queries.person[asking], gallery.person[held])
            sources[source] = {**figures, "people": len(members)}
    return {
        **_figures(similarity, queries.person, gallery.person),
        "people": len(set(queries.person.tolist())),
        "sources": sources,
        "space": looks.spaces[BODY],
        "elapsed_s": round(time.monotonic() - started_s, 2),
    }
