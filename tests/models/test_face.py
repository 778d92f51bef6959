"""Faces: who is who, and what is too small or blurred to tell."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.face import BlazeFaceEncoder, anchors, face_quality, square_crop
from models.registry import Registry
from pipeline.errors import SightlineError
from pipeline.types import FACE


@pytest.fixture(scope="module")
def encoder() -> BlazeFaceEncoder:
    """The encoder with its weights, fetched now where they can be; skips otherwise."""
    registry = Registry(Path(os.environ.get("SIGHTLINE_CACHE", Path.home() / ".cache" / "sightline")))
    try:
        return BlazeFaceEncoder(registry.path("blazeface"), registry.path("faceres"))
    except SightlineError as error:
        pytest.skip(f"face weights cannot be fetched: {error}")


def noise(side: int = 112) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (side, side, 3)).astype(np.uint8)


FRONTAL = np.asarray([[30, 40], [70, 40], [50, 60], [50, 80], [10, 45], [90, 45]], np.float32)


def box(side: float) -> np.ndarray:
    return np.asarray([0, 0, side, side], np.float32)


def test_anchors_are_cell_centres() -> None:
    made = anchors()
    assert made.shape == (896, 2)
    np.testing.assert_allclose(made[0], [1 / 32, 1 / 32])
    np.testing.assert_allclose(made[-1], [15 / 16, 15 / 16])


def test_a_crop_over_the_edge_of_the_picture_is_still_square() -> None:
    assert square_crop(noise(40), np.asarray([-10, -10, 20, 30], np.float32), 64, 0.5).shape == (64, 64, 3)


def test_quality_rises_with_size_and_is_nought_when_small() -> None:
    qualities = [face_quality(box(side), FRONTAL, noise()) for side in (12, 23, 30, 60, 100)]
    assert qualities[:2] == [0.0, 0.0]
    assert qualities == sorted(qualities)
    assert qualities[-1] > qualities[2] > 0


def test_a_blurred_face_has_no_quality() -> None:
    assert face_quality(box(100), FRONTAL, np.full((112, 112, 3), 128, np.uint8)) == 0.0


def test_a_turned_face_tells_less_than_a_frontal_one() -> None:
    turned = FRONTAL.copy()
    turned[2, 0] = 66
    assert face_quality(box(100), turned, noise()) < 0.7 * face_quality(box(100), FRONTAL, noise())


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (256, 256)])
def test_pictures_without_a_face_give_none(encoder: BlazeFaceEncoder, shape: tuple[int, int]) -> None:
    assert encoder.faces(np.full((*shape, 3), 60, np.uint8)) == []


def best_vectors(encoder: BlazeFaceEncoder, folder: Path) -> list[tuple[str, np.ndarray]]:
    """(name, vector) of the best face of every picture in the folder's folders."""
    found = []
    for path in sorted(folder.glob("*/*.*")):
        faces = encoder.faces(np.asarray(cv2.imread(str(path)), np.uint8))
        if faces and faces[0].embedding is not None:
            found.append((path.parent.name, faces[0].embedding.vector))
    return found


@pytest.mark.accuracy
def test_pictures_of_one_person_are_more_alike_than_of_two(encoder: BlazeFaceEncoder, shared_data: Path) -> None:
    found = best_vectors(encoder, shared_data / "faces" / "sitcom")
    pairs = [(a == b, float(x @ y)) for (a, x), (b, y) in combinations(found, 2)]
    same = np.asarray([similarity for is_same, similarity in pairs if is_same])
    other = np.asarray([similarity for is_same, similarity in pairs if not is_same])
    assert len(found) >= 30
    assert (same[:, None] > other[None]).mean() > 0.97  # area under the curve


@pytest.mark.accuracy
def test_a_known_face_is_found_among_two_people(encoder: BlazeFaceEncoder, shared_data: Path) -> None:
    stills = shared_data / "faces" / "stills"
    vectors = {
        name: [face.embedding for face in encoder.faces(np.asarray(cv2.imread(str(stills / name)), np.uint8)) if face.embedding]
        for name in ("obama.jpg", "obama2.jpg", "biden.jpg")
    }
    assert all(vectors.values())
    first, again, other = (vectors[name][0] for name in ("obama.jpg", "obama2.jpg", "biden.jpg"))
    assert first.modality == FACE
    assert first.space == encoder.space
    assert first.similarity(again) > first.similarity(other)
