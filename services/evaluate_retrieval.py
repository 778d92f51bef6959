"""`sightline evaluate text-search` and `sightline evaluate reid`: figures on plain folders of crops and a file of captions.

persons: PERSON/<camera><n>.jpg, one folder per person, the first letter of a file its camera. captions: JSON lines with ``person`` and
``caption`` (and ``images``, not needed). distractors: a folder of crops of anybody else, in any depth, that only enlarge the gallery.
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
from pipeline.evaluate.retrieval import RankingFigures, ranked_hits, ranking_figures
from pipeline.ports import AppearanceEncoder, BodyEncoder, TextEncoder

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


def _encode(paths: Sequence[Path], encoder: BodyEncoder | AppearanceEncoder) -> Float32:
    """Vectors of pictures, (N, D)."""
    parts = [encoder.encode([_read(path) for path in paths[start : start + BATCH]]) for start in range(0, len(paths), BATCH)]
    return np.concatenate(parts)


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


def _plain(figures: RankingFigures, gallery: int) -> dict[str, float]:
    measured = {f"rank_{k}": round(figures.rank(k), 4) for k in (1, 5, 10, 20)}
    return {**measured, "mAP": round(figures.mean_average_precision, 4), "queries": figures.queries, "gallery": gallery}


def evaluate_text_search(
    persons: Path,
    captions: Path,
    distractors: Path | None,
    appearance: AppearanceEncoder,
    text: TextEncoder,
    dump: Path | None = None,
) -> dict[str, Any]:
    """How well captions find their people: rank-k and mAP over crops, and over crops pooled per person and camera (as a tracklet is).

    Every caption is a query; the gallery is all crops of the people named in the captions, and the distractors.

    ``dump``: a file for the similarity matrix and its labels (.npz). A caption in which nothing can be seen ranks
    the gallery in file order.
    Raises NotFoundError, BadInputError, UnreadableMediaError.
    """
    started_s = time.monotonic()
    crops = crops_of(persons, distractors)
    asked = _captions(captions, set(crops.person.tolist()))
    crops = crops.where(np.isin(crops.person, [NOBODY, *(person for person, _ in asked)]))
    looks = _encode(crops.paths, appearance)  # (G, D)
    words, refused = _words(asked, text, looks.shape[1])  # (Q, D)
    wanted = np.array([person for person, _ in asked])
    similarity = words @ looks.T  # (Q, G)
    pooled, owners = _pooled(looks, crops)
    if dump is not None:
        np.savez(dump, similarity=similarity, query_person=wanted, gallery_person=crops.person, gallery=_names(crops))
    by_crop = ranking_figures(ranked_hits(similarity, wanted[:, None] == crops.person[None]))
    by_tracklet = ranking_figures(ranked_hits(words @ pooled.T, wanted[:, None] == owners[None]))
    return {
        "crops": _plain(by_crop, len(crops.paths)),
        "tracklets": _plain(by_tracklet, len(owners)),
        "people": len(set(wanted.tolist())),
        "captions_not_understood": refused,
        "space": appearance.space,
        "elapsed_s": round(time.monotonic() - started_s, 2),
    }


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


def evaluate_reid(persons: Path, distractors: Path | None, body: BodyEncoder, dump: Path | None = None) -> dict[str, Any]:
    """How well a crop finds the same person in another camera: rank-k and mAP.

    Every crop of camera a is a query; the gallery is all crops of camera b, the distractors' among them.
    ``dump``: a file for the similarity matrix and its labels (.npz). Raises NotFoundError, UnreadableMediaError, BadInputError.
    """
    started_s = time.monotonic()
    crops = crops_of(persons, distractors)
    queries = crops.where((crops.person != NOBODY) & (crops.camera == "a"))
    gallery = crops.where(crops.camera == "b")
    if not queries.paths or not gallery.paths:
        raise BadInputError(f"{persons} must hold crops of cameras a and b (a1.jpg, b1.jpg), got {sorted(set(crops.camera.tolist()))}")
    similarity = _encode(queries.paths, body) @ _encode(gallery.paths, body).T  # (Q, G)
    same = queries.person[:, None] == gallery.person[None]
    if dump is not None:
        np.savez(
            dump,
            similarity=similarity,
            query_person=queries.person,
            gallery_person=gallery.person,
            query=_names(queries),
            gallery=_names(gallery),
        )
    figures = ranking_figures(ranked_hits(similarity, same))
    return {
        **_plain(figures, len(gallery.paths)),
        "people": len(set(queries.person.tolist())),
        "space": body.space,
        "elapsed_s": round(time.monotonic() - started_s, 2),
    }
