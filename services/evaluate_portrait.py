"""`sightline evaluate portrait`: how well one picture of a face finds the others of the same person, and whom it takes for them.

faces: PERSON/*.{jpg,png}, one folder per person, which may hold more folders; every picture is searched among all others (leave one
out). pairs: CSV with columns first, second (paths, from the file's own folder or from ``faces``) and same (1 or 0). gallery: PERSON/* adds
pictures of known people, pictures that lie in the folder itself add every face in them as somebody unknown. sizes: the same, each face
shrunk to so many pixels. In each picture of a person the largest face counts. Intervals are 95 %, over people.
"""

from __future__ import annotations

import csv
import functools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError, NotFoundError
from pipeline.evaluate.open_set import area_under_curve, best_accuracy, equal_error_rate
from pipeline.ports import Face, FaceEncoder
from services.key_figures import key_figures, samples_of
from services.portraits import read_picture

Float32 = NDArray[np.float32]
Booleans = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")
SOMEBODY = ""  # the person of a face that nobody named


@dataclass(frozen=True, slots=True, eq=False)
class Portraits:
    """N faces: where each lies, whom it shows, vectors float32 (N, D), quality float32 (N,) 0..1; pictures without a face are not here."""

    paths: NDArray[np.str_]
    person: NDArray[np.str_]
    vectors: Float32
    quality: Float32

    def where(self, keep: Booleans) -> Portraits:
        """The faces at the mask ``keep``."""
        return Portraits(self.paths[keep], self.person[keep], self.vectors[keep], self.quality[keep])


def pictures_of(folder: Path) -> list[tuple[Path, str]]:
    """Every picture of DIR/<person>/ with its person; raises NotFoundError when there is none."""
    found = samples_of(folder, PICTURES)
    if not found:
        raise NotFoundError(f"{folder} must hold a folder of pictures per person ({', '.join(PICTURES)}), found none")
    return found


def largest(faces: Sequence[Face]) -> Face | None:
    """The face that a portrait is of: the largest, each as far as the detector is sure of it; None when there is none with a vector."""
    usable = [face for face in faces if face.embedding is not None]
    return max(usable, key=lambda face: face.confidence * _height(face), default=None)


def _height(face: Face) -> float:
    return float(face.xyxy[3] - face.xyxy[1])


def shrunk(bgr: Pixels, face: Face, side_px: int) -> Pixels:
    """The picture made so small that the face is ``side_px`` high; as it is when it was smaller."""
    factor = min(1.0, side_px / max(_height(face), 1.0))
    size = (max(1, round(bgr.shape[1] * factor)), max(1, round(bgr.shape[0] * factor)))
    return np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_AREA), np.uint8)


def _faces(pictures: Sequence[tuple[Path, str]], encoder: FaceEncoder, unreadable: list[str] | None = None) -> dict[Path, Face]:
    """The face of each picture that shows one. unreadable: takes the paths of pictures that do not decode; None: they are errors."""
    found: dict[Path, Face | None] = {}
    for path, _ in pictures:
        try:
            found[path] = largest(encoder.faces(read_picture(path)))
        except BadInputError:  # no picture, or one too large
            if unreadable is None:
                raise
            unreadable.append(str(path))
    return {path: face for path, face in found.items() if face is not None}


def _shrunk_faces(faces: Mapping[Path, Face], encoder: FaceEncoder, side_px: int) -> dict[Path, Face]:
    """What is found of the same faces when each is ``side_px`` high."""
    found = {path: largest(encoder.faces(shrunk(read_picture(path), face, side_px))) for path, face in faces.items()}
    return {path: face for path, face in found.items() if face is not None}


def _portraits(rows: Sequence[tuple[str, str, Face]]) -> Portraits:
    """Path, person and face of each."""
    known = [(path, person, face.quality, face.embedding.vector) for path, person, face in rows if face.embedding is not None]
    dimensions = len(known[0][3]) if known else 0
    return Portraits(
        np.array([row[0] for row in known], np.str_),
        np.array([row[1] for row in known], np.str_),
        np.array([row[3] for row in known], np.float32).reshape(len(known), dimensions),
        np.array([row[2] for row in known], np.float32),
    )


def _named(faces: Mapping[Path, Face], pictures: Sequence[tuple[Path, str]]) -> Portraits:
    return _portraits([(str(path), person, faces[path]) for path, person in pictures if path in faces])


def _gallery(folder: Path, encoder: FaceEncoder) -> Portraits:
    """Faces of known people in DIR/<person>/, and every face of the pictures in DIR itself as somebody unknown."""
    inside = samples_of(folder, PICTURES)
    loose = [path for path in sorted(folder.glob("[!.]*")) if path.suffix.lower() in PICTURES and path.is_file()]
    if not inside and not loose:
        raise NotFoundError(f"{folder} must hold pictures, or a folder of pictures per person ({', '.join(PICTURES)}), found none")
    faces = _faces(inside, encoder)
    rows = [(str(path), person, faces[path]) for path, person in inside if path in faces]
    rows += [(f"{path}#{number}", SOMEBODY, face) for path in loose for number, face in enumerate(encoder.faces(read_picture(path)))]
    if not (held := _portraits(rows)).paths.size:
        raise BadInputError(f"{folder} must show faces, found none in {len(inside) + len(loose)} pictures")
    return held


def evaluate_portrait(
    faces: Path,
    encoder: FaceEncoder,
    least_quality: float,
    threshold: float,
    *,
    pairs: Path | None = None,
    gallery: Path | None = None,
    sizes: Sequence[int] = (),
    dump: Path | None = None,
) -> dict[str, Any]:
    """The figures of ``faces`` without the quality gate, and with it ("above_gate"); of each of ``sizes``, against ``gallery``
    ("with_gallery") and of ``pairs``.

    encoder: one without a gate; least_quality: that of the gate; threshold: the similarity at which the same and another person are
    equally likely by the calibration, for false match rates. dump: similarities and labels of all pictures with a face (.npz).
    "unreadable": pictures of people that do not decode; they count among those in which no face was found.
    Raises NotFoundError, BadInputError; UnreadableMediaError for such a picture in ``gallery`` or ``pairs``.
    """
    started_s = time.monotonic()
    pictures = pictures_of(faces)
    if dump is not None:
        dump.parent.mkdir(parents=True, exist_ok=True)
    unreadable: list[str] = []
    found = _faces(pictures, encoder, unreadable)
    portraits = _named(found, pictures)
    if (seen := len(set(portraits.person.tolist()))) < 2:
        broken = f"; {len(unreadable)} pictures do not decode, the first is {unreadable[0]}" if unreadable else ""
        raise BadInputError(f"{faces} must show the faces of two people or more, found {seen} in {len(pictures)} pictures{broken}")
    measure = functools.partial(_with_and_without_gate, least_quality=least_quality, threshold=threshold)
    result: dict[str, Any] = {
        **_all(measure(portraits, portraits), portraits, pictures, least_quality),
        "people": len({person for _, person in pictures}),
        "unreadable": unreadable,
        "space": encoder.space,
    }
    if sizes:
        result["sizes"] = {}
        for side_px in sizes:
            small = _named(_shrunk_faces(found, encoder, side_px), pictures)
            against_full = measure(small, portraits)
            result["sizes"][str(side_px)] = {
                **_all(measure(small, small), small, pictures, least_quality),
                "against_full_size": against_full,
            }
    if gallery is not None:
        held = _gallery(gallery, encoder)
        figures = measure(portraits, held)
        result["with_gallery"] = {**figures, "faces": len(held.person), "unknown": int((held.person == SOMEBODY).sum())}
    if pairs is not None:
        result["pairs"] = _pairs(pairs, faces, encoder, least_quality, threshold)
    if dump is not None:
        np.savez(
            dump,
            similarity=portraits.vectors @ portraits.vectors.T,
            query_person=portraits.person,
            gallery_person=portraits.person,
            query=portraits.paths,
            gallery=portraits.paths,
            quality=portraits.quality,
            pictures=np.array([str(path) for path, _ in pictures]),
        )
    return {**result, "elapsed_s": round(time.monotonic() - started_s, 2)}


def _all(figures: dict[str, Any], portraits: Portraits, pictures: Sequence[tuple[Path, str]], least_quality: float) -> dict[str, Any]:
    """The figures, how many pictures have no face or a poor one, and rank-1 with those counted as misses."""
    shown = Counter(person for _, person in pictures)
    mated = sum(count for count in shown.values() if count > 1)

    def of_all(of: dict[str, Any]) -> float | None:
        return round(of["rank_1"] * of["queries"] / mated, 4) if mated and of["queries"] else None

    return figures | {
        "pictures": len(pictures),
        "not_found": len(pictures) - len(portraits.paths),
        "below_gate": int((portraits.quality < least_quality).sum()),
        "rank_1_of_all_pictures": of_all(figures),
        "above_gate": figures["above_gate"] | {"rank_1_of_all_pictures": of_all(figures["above_gate"])},
    }


def _with_and_without_gate(probes: Portraits, gallery: Portraits, least_quality: float, threshold: float) -> dict[str, Any]:
    good_probes, good_gallery = (each.where(each.quality >= least_quality) for each in (probes, gallery))
    return {**_figures(probes, gallery, threshold), "above_gate": _figures(good_probes, good_gallery, threshold)}


def _figures(probes: Portraits, gallery: Portraits, threshold: float) -> dict[str, Any]:
    """Every probe searched in the gallery without its own picture; rates are parts of 1, None where nothing was compared."""
    if not len(probes.paths) or not len(gallery.paths):
        return {"queries": 0, "gallery": len(gallery.paths)}
    similarity = (probes.vectors @ gallery.vectors.T).astype(np.float64)  # (Q, G)
    is_match = (probes.person[:, None] == gallery.person[None]) & (probes.person != SOMEBODY)[:, None]
    is_own = probes.paths[:, None] == gallery.paths[None]
    return key_figures(similarity, is_match, is_own, probes.person, threshold)


def _pairs(file: Path, faces: Path, encoder: FaceEncoder, least_quality: float, threshold: float) -> dict[str, Any]:
    """AUC, EER and accuracy of labelled pairs; those without a face in both pictures are left out and counted."""
    labelled = _read_pairs(file, faces)
    found = _faces([(path, "") for path in sorted({path for first, second, _ in labelled for path in (first, second)})], encoder)
    compared = [(found[first], found[second], same) for first, second, same in labelled if first in found and second in found]
    gated = [pair for pair in compared if min(pair[0].quality, pair[1].quality) >= least_quality]
    return {**_pair_figures(compared, threshold), "pairs": len(labelled), "above_gate": _pair_figures(gated, threshold)}


def _pair_figures(compared: Sequence[tuple[Face, Face, bool]], threshold: float) -> dict[str, Any]:
    similarity = np.array(
        [first.embedding.similarity(second.embedding) for first, second, _ in compared if first.embedding and second.embedding]
    )
    same = np.array([same for _, _, same in compared], bool)
    measured: dict[str, Any] = {"compared": len(compared), "same": int(same.sum())}
    if not same.any() or same.all():
        return measured
    genuine, impostor = similarity[same], similarity[~same]
    accuracy, chosen = best_accuracy(genuine, impostor)
    return measured | {
        "AUC": round(area_under_curve(genuine, impostor), 4),
        "EER": round(equal_error_rate(genuine, impostor), 4),
        "accuracy": round(float(((similarity >= threshold) == same).mean()), 4),  # at the calibration's own threshold
        "best_accuracy": round(accuracy, 4),
        "best_threshold": round(chosen, 4),
    }


def _read_pairs(file: Path, faces: Path) -> list[tuple[Path, Path, bool]]:
    """The pairs of a CSV; raises NotFoundError for a picture that is not there, BadInputError naming the line for what cannot be read."""
    if not file.is_file():
        raise NotFoundError(f"pairs must be a CSV file with columns first, second, same; {file} is not there")
    pairs = []
    try:
        table = csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines(keepends=True))
        columns, lines = table.fieldnames or (), list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{file.name} must be a CSV file in UTF-8: {error}") from error
    if not {"first", "second", "same"} <= set(columns):
        raise BadInputError(f"{file.name} must have the columns first, second, same, got {', '.join(columns) or 'none'}")
    for number, line in enumerate(lines, 2):
        said = (line["same"] or "").strip().lower()
        if said not in (*TRUE, *FALSE):
            raise BadInputError(f"line {number} of {file.name}: same must be 1 or 0, got {line['same']!r}")
        first, second = (_place(line[column] or "", file, faces, number) for column in ("first", "second"))
        pairs.append((first, second, said in TRUE))
    if not pairs:
        raise BadInputError(f"{file.name} must hold one pair or more, got none")
    return pairs


def _place(named: str, file: Path, faces: Path, number: int) -> Path:
    places = [file.parent / named, faces / named, Path(named)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise NotFoundError(f"line {number} of {file.name}: picture {named!r} must be beside the file or in {faces}")
    return found.resolve()
