"""Faces: found once each, gated by quality, and nearer to the same person than to others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.face import BlazeFaceEncoder, anchors, face_quality, one_each, square_crop

FRONTAL = np.asarray([[30, 30], [70, 30], [50, 50], [50, 70], [20, 40], [80, 40]], np.float32)  # eyes, nose, mouth, ears


@pytest.fixture(scope="module")
def encoder(weights: Callable[[str], Path]) -> BlazeFaceEncoder:
    return BlazeFaceEncoder(weights("blazeface"), weights("faceres"))


def read(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path)), np.uint8)


def shrink(bgr: np.ndarray, factor: float) -> np.ndarray:
    return np.asarray(cv2.resize(bgr, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)


def sharp_crop() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)


def test_there_are_896_anchors_inside_the_picture() -> None:
    made = anchors()
    assert made.shape == (896, 2)
    np.testing.assert_allclose(made[:2], 1 / 32)  # two in the first cell of 16 pixels
    assert ((made > 0) & (made < 1)).all()


def test_a_square_crop_holds_the_box_and_repeats_the_edge_outside() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[40:60, 40:60] = 200
    assert (square_crop(picture, np.asarray([42, 42, 58, 58], np.float32), 32) == 200).all()
    beyond = square_crop(np.full((10, 10, 3), 77, np.uint8), np.asarray([-50, -50, 60, 60], np.float32), 32)
    assert (beyond == 77).all()


def test_half_a_face_inside_a_surer_one_is_not_a_second_face() -> None:
    found = np.asarray([[0, 0, 40, 40], [0, 0, 100, 100], [200, 0, 300, 100]], np.float32)
    assert one_each(found, np.asarray([0.6, 0.9, 0.7], np.float32)).tolist() == [1, 2]
    assert one_each(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)).tolist() == []


def test_quality_falls_with_size_blur_and_turning_away() -> None:
    box = np.asarray([0, 0, 100, 100], np.float32)
    best = face_quality(box, FRONTAL, sharp_crop())
    turned = FRONTAL.copy()
    turned[2, 0] = 72  # the nose under one eye
    assert 0.9 < best <= 1
    assert face_quality(box, turned, sharp_crop()) < 0.6
    assert 0 < face_quality(box * 0.4, FRONTAL, sharp_crop()) < best
    assert face_quality(box * 0.2, FRONTAL, sharp_crop()) == 0
    assert face_quality(box, FRONTAL, np.full((64, 64, 3), 90, np.uint8)) == 0


@pytest.mark.parametrize("shape", [(480, 640), (1, 1), (1, 900), (1200, 1600)])
def test_a_blank_picture_has_no_face(encoder: BlazeFaceEncoder, shape: tuple[int, int]) -> None:
    assert encoder.faces(np.full((*shape, 3), 127, np.uint8)) == []


def test_one_face_is_found_in_a_portrait(encoder: BlazeFaceEncoder, shared_data: Path) -> None:
    faces = encoder.faces(read(shared_data / "faces" / "stills" / "obama_small.jpg"))
    assert len(faces) == 1
    assert faces[0].confidence > 0.8
    assert faces[0].quality > 0.8
    assert faces[0].embedding is not None
    assert faces[0].embedding.space == encoder.space
    x, y = (faces[0].xyxy[:2] + faces[0].xyxy[2:]) / 2
    assert 110 < x < 210
    assert 80 < y < 180


def test_a_read_only_picture_will_do(encoder: BlazeFaceEncoder, shared_data: Path) -> None:
    picture = read(shared_data / "faces" / "stills" / "obama_small.jpg")
    picture.flags.writeable = False
    assert len(encoder.faces(picture)) == 1


def test_a_blurred_and_a_tiny_face_get_no_vector(encoder: BlazeFaceEncoder, shared_data: Path) -> None:
    picture = read(shared_data / "faces" / "stills" / "obama_small.jpg")
    for spoiled in (np.asarray(cv2.GaussianBlur(picture, (0, 0), 8), np.uint8), shrink(picture, 0.15)):
        assert all(face.embedding is None for face in encoder.faces(spoiled))


def test_a_face_small_in_a_large_picture_is_found_where_it_is(encoder: BlazeFaceEncoder, shared_data: Path) -> None:
    face = shrink(read(shared_data / "faces" / "stills" / "obama_small.jpg"), 0.5)
    street = np.full((1080, 1920, 3), 120, np.uint8)
    street[700 : 700 + face.shape[0], 1500 : 1500 + face.shape[1]] = face
    found = encoder.faces(street)
    assert len(found) == 1
    assert found[0].embedding is not None
    x, y = (found[0].xyxy[:2] + found[0].xyxy[2:]) / 2
    assert 1550 < x < 1610
    assert 735 < y < 795


def test_faces_come_best_first(encoder: BlazeFaceEncoder, shared_data: Path) -> None:
    qualities = [face.quality for face in encoder.faces(read(shared_data / "faces" / "stills" / "two_people.jpg"))]
    assert len(qualities) >= 2
    assert qualities == sorted(qualities, reverse=True)


@pytest.mark.accuracy
def test_the_same_person_is_nearer_than_others(encoder: BlazeFaceEncoder, shared_data: Path) -> None:
    names, vectors = [], []
    for path in sorted((shared_data / "faces" / "sitcom").glob("*/*")):
        faces = encoder.faces(read(path))
        assert len(faces) == 1, f"one face in {path.name}"
        if faces[0].embedding is not None:
            names.append(path.parent.name)
            vectors.append(faces[0].embedding.vector)
    assert len(names) >= 38
    first, second = np.triu_indices(len(names), 1)
    cosine = np.sum(np.stack(vectors)[first] * np.stack(vectors)[second], axis=1)
    is_same = np.asarray(names)[first] == np.asarray(names)[second]
    assert (cosine[is_same][:, None] > cosine[~is_same][None]).mean() >= 0.97  # area under the ROC curve


@pytest.mark.accuracy
def test_everybody_in_the_group_pictures_is_found(encoder: BlazeFaceEncoder, shared_data: Path) -> None:
    found = sum(len(encoder.faces(read(path))) for path in sorted((shared_data / "faces" / "sitcom").glob("bbt*.jpg")))
    assert 21 <= found <= 24  # 23 are found as measured
