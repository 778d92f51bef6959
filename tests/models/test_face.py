"""Faces: found once each, aligned, gated by quality, and nearer to the same person than to others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.blazeface import BlazeFace, anchors, one_each
from models.face import (
    TEMPLATE,
    FaceRes,
    GatedFaceEncoder,
    MobileFaceNet,
    OwnFaceModel,
    aligned,
    face_quality,
    flatness,
    frontality,
    similarity_transform,
    square_crop,
)
from pipeline.errors import SettingsError

FRONTAL = np.asarray([[30, 30], [70, 30], [50, 54], [50, 72], [20, 40], [80, 40]], np.float32)  # eyes, nose, mouth, ears
Encoders = dict[str, GatedFaceEncoder]


@pytest.fixture(scope="module")
def detector(weights: Callable[[str], Path]) -> BlazeFace:
    return BlazeFace(weights("blazeface"))


@pytest.fixture(scope="module")
def encoder(detector: BlazeFace, weights: Callable[[str], Path]) -> GatedFaceEncoder:
    return GatedFaceEncoder(detector, MobileFaceNet(weights("mobilefacenet")))


def read(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path)), np.uint8)


def shrink(bgr: np.ndarray, factor: float) -> np.ndarray:
    return np.asarray(cv2.resize(bgr, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)


def sharp_crop() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """The points with the head leant to a shoulder."""
    angle = np.deg2rad(degrees)
    turn = np.asarray([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return ((points - 50) @ turn.T + 50).astype(np.float32)


def cartoon(side: int = 240) -> np.ndarray:
    """A face of filled shapes, with all that a detector looks for."""
    page = np.full((side, side, 3), 255, np.uint8)

    def at(x: float, y: float) -> tuple[int, int]:
        return round((0.5 + x) * side), round((0.5 + y) * side)

    cv2.ellipse(page, at(0, 0.02), (round(0.30 * side), round(0.38 * side)), 0, 0, 360, (180, 210, 250), -1, cv2.LINE_AA)
    for x in (-0.12, 0.12):
        cv2.ellipse(page, at(x, -0.08), (round(0.055 * side), round(0.035 * side)), 0, 0, 360, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(page, at(x, -0.08), round(0.022 * side), (60, 30, 20), -1, cv2.LINE_AA)
        cv2.line(page, at(x - 0.06, -0.15), at(x + 0.06, -0.155), (20, 20, 20), 3, cv2.LINE_AA)
    cv2.line(page, at(0, -0.04), at(-0.02, 0.08), (90, 120, 160), 2, cv2.LINE_AA)
    cv2.line(page, at(-0.02, 0.08), at(0.02, 0.085), (90, 120, 160), 2, cv2.LINE_AA)
    cv2.ellipse(page, at(0, 0.18), (round(0.1 * side), round(0.04 * side)), 0, 0, 180, (60, 60, 200), -1, cv2.LINE_AA)
    return page


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


def test_a_large_face_is_averaged_when_it_is_made_small() -> None:
    stripes = np.zeros((800, 800, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.ptp(square_crop(stripes, np.asarray([0, 0, 800, 800], np.float32), 64)[2:-2, 2:-2]) <= 8, "no moire"


def test_half_a_face_inside_a_surer_one_is_not_a_second_face() -> None:
    found = np.asarray([[0, 0, 40, 40], [0, 0, 100, 100], [200, 0, 300, 100]], np.float32)
    assert one_each(found, np.asarray([0.6, 0.9, 0.7], np.float32)).tolist() == [1, 2]
    assert one_each(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)).tolist() == []


def test_points_turned_scaled_and_moved_come_back_onto_the_template() -> None:
    angle = np.deg2rad(25)
    turn = 3.7 * np.asarray([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    there = TEMPLATE @ turn.T + [400, -80]
    matrix = similarity_transform(there, TEMPLATE)
    np.testing.assert_allclose(there @ matrix[:, :2].T + matrix[:, 2], TEMPLATE, atol=1e-6)


def test_a_face_is_never_mirrored_onto_the_template() -> None:
    mirrored = TEMPLATE * [-1, 1]
    assert np.linalg.det(similarity_transform(mirrored, TEMPLATE)[:, :2]) > 0


def test_an_aligned_face_has_its_eyes_where_the_template_has() -> None:
    picture = np.zeros((300, 300, 3), np.uint8)
    points = (turned(FRONTAL, 20) * 2 + 40).astype(np.float32)
    for x, y in points[:2]:
        cv2.circle(picture, (round(float(x)), round(float(y))), 6, (255, 255, 255), -1)
    chip = aligned(picture, points)
    assert chip.shape == (112, 112, 3)
    for eye in TEMPLATE[:2]:
        x, y = (int(value) for value in eye.round())
        assert chip[y - 3 : y + 4, x - 3 : x + 4].mean() > 100


def test_quality_falls_with_size_blur_doubt_and_turning_away() -> None:
    box = np.asarray([0, 0, 100, 100], np.float32)
    best, flaw = face_quality(box, FRONTAL, sharp_crop())
    away = FRONTAL.copy()
    away[2, 0] = 72  # the nose under one eye
    assert 0.9 < best <= 1
    assert flaw == ""
    assert face_quality(box, away, sharp_crop())[0] < 0.6
    assert 0 < face_quality(box * 0.4, FRONTAL, sharp_crop())[0] < best
    assert face_quality(box, FRONTAL, sharp_crop(), 0.6)[0] < 0.5
    assert face_quality(box * 0.2, FRONTAL, sharp_crop()) == (0.0, "too small: 20 px, 24 needed")
    assert face_quality(box, FRONTAL, np.full((64, 64, 3), 90, np.uint8)) == (0.0, "blurred")
    assert face_quality(box, FRONTAL, sharp_crop(), 0.53)[1] == "perhaps no face"


def test_a_head_leant_to_a_shoulder_is_as_good_as_an_upright_one() -> None:
    assert frontality(turned(FRONTAL, 35)) == pytest.approx(frontality(FRONTAL), abs=0.02)
    assert frontality(FRONTAL) > 0.95


def test_a_face_from_the_side_from_below_or_without_size_is_not_frontal() -> None:
    side, below = FRONTAL.copy(), FRONTAL.copy()
    side[:2, 0], side[2, 0] = [60, 68], 44  # both eyes behind the nose
    below[2, 1] = 33  # the nose as high as the eyes
    assert frontality(side) < 0.5
    assert frontality(below) < 0.3
    assert frontality(np.zeros((6, 2), np.float32)) == 0.0


@pytest.mark.parametrize("shape", [(480, 640), (1, 1), (1, 900), (10, 10), (1200, 1600)])
def test_a_blank_picture_has_no_face(encoder: GatedFaceEncoder, shape: tuple[int, int]) -> None:
    assert encoder.faces(np.full((*shape, 3), 127, np.uint8)) == []


def test_a_drawn_face_is_found_and_gets_no_vector(encoder: GatedFaceEncoder) -> None:
    (face,) = encoder.faces(cartoon())
    assert face.confidence > 0.7, "the detector takes it for a face"
    assert face.embedding is None
    assert face.flaw == "drawn, not photographed"


def test_photographs_are_not_taken_for_drawings(detector: BlazeFace, shared_data: Path) -> None:
    for path in sorted((shared_data / "faces" / "sitcom").glob("*/*1.png")):
        picture = read(path)
        assert flatness(square_crop(picture, detector.find(picture).boxes[0], 64)) < 0.3


def test_one_face_is_found_in_a_portrait(encoder: GatedFaceEncoder, shared_data: Path) -> None:
    faces = encoder.faces(read(shared_data / "faces" / "stills" / "obama_small.jpg"))
    assert len(faces) == 1
    assert faces[0].confidence > 0.8
    assert faces[0].quality > 0.8
    assert faces[0].embedding is not None
    assert faces[0].embedding.space == encoder.space == "mobilefacenet@1"
    x, y = (faces[0].xyxy[:2] + faces[0].xyxy[2:]) / 2
    assert 110 < x < 210
    assert 80 < y < 180


def test_a_read_only_picture_will_do(encoder: GatedFaceEncoder, shared_data: Path) -> None:
    picture = read(shared_data / "faces" / "stills" / "obama_small.jpg")
    picture.flags.writeable = False
    assert len(encoder.faces(picture)) == 1


def test_a_face_that_fills_the_picture_is_found_with_its_head_only_guessed(detector: BlazeFace, shared_data: Path) -> None:
    picture = read(shared_data / "faces" / "stills" / "obama_small.jpg")
    x1, y1, x2, y2 = detector.find(picture).boxes[0].round().astype(int)
    whole = detector.find(picture).points[0, :4] - [x1, y1]
    tight = detector.find(np.ascontiguousarray(picture[y1:y2, x1:x2]))
    assert len(tight.boxes) == 1
    assert np.abs(tight.points[0, :4] - whole).max() < 0.1 * (x2 - x1), "eyes, nose and mouth stay where they were"


def test_a_blurred_and_a_tiny_face_get_no_vector(encoder: GatedFaceEncoder, shared_data: Path) -> None:
    picture = read(shared_data / "faces" / "stills" / "obama_small.jpg")
    for spoiled in (np.asarray(cv2.GaussianBlur(picture, (0, 0), 8), np.uint8), shrink(picture, 0.15)):
        assert all(face.embedding is None and face.flaw for face in encoder.faces(spoiled))


def test_without_the_gate_a_poor_face_gets_a_vector_too(detector: BlazeFace, weights: Callable[[str], Path], shared_data: Path) -> None:
    open_gate = GatedFaceEncoder(detector, MobileFaceNet(weights("mobilefacenet")), is_gated=False)
    (face,) = open_gate.faces(shrink(read(shared_data / "faces" / "stills" / "obama_small.jpg"), 0.15))
    assert face.quality == 0.0
    assert face.embedding is not None


def test_a_face_small_in_a_large_picture_is_found_where_it_is(encoder: GatedFaceEncoder, shared_data: Path) -> None:
    face = shrink(read(shared_data / "faces" / "stills" / "obama_small.jpg"), 0.5)
    street = np.full((1080, 1920, 3), 120, np.uint8)
    street[700 : 700 + face.shape[0], 1500 : 1500 + face.shape[1]] = face
    found = encoder.faces(street)
    assert len(found) == 1
    assert found[0].embedding is not None
    x, y = (found[0].xyxy[:2] + found[0].xyxy[2:]) / 2
    assert 1550 < x < 1610
    assert 735 < y < 795


def test_a_huge_picture_is_searched_at_a_size_that_can_be_borne(encoder: GatedFaceEncoder, shared_data: Path) -> None:
    small = read(shared_data / "faces" / "sitcom" / "bbt3.jpg")
    found = encoder.faces(np.asarray(cv2.resize(small, (6000, 3869)), np.uint8))
    assert len(found) == 5
    assert all(face.xyxy[2] - face.xyxy[0] > 400 for face in found)


def test_a_strip_many_times_as_long_as_it_is_high_has_no_face(encoder: GatedFaceEncoder) -> None:
    assert encoder.faces(np.full((24, 300_000, 3), 90, np.uint8)) == []


def test_faces_come_best_first(encoder: GatedFaceEncoder, shared_data: Path) -> None:
    qualities = [face.quality for face in encoder.faces(read(shared_data / "faces" / "stills" / "two_people.jpg"))]
    assert len(qualities) >= 2
    assert qualities == sorted(qualities, reverse=True)


def test_noise_has_no_face(encoder: GatedFaceEncoder) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (400, 400, 3)).astype(np.uint8)
    assert [face for face in encoder.faces(noise) if face.embedding is not None] == []


@pytest.mark.accuracy
def test_bodies_without_heads_have_hardly_a_face(encoder: GatedFaceEncoder, shared_data: Path) -> None:
    crops = [read(path) for path in sorted((shared_data / "persons").glob("*/a1.jpg"))[:150:3]]
    bodies = [cv2.resize(crop[round(0.28 * len(crop)) :], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC) for crop in crops]
    with_vector = [face for body in bodies for face in encoder.faces(np.asarray(body, np.uint8)) if face.embedding is not None]
    assert len(with_vector) <= 3


# ---------------------------------------------------------------------------------------------- own models


def own_model(folder: Path, name: str = "mine", side: int = 112, dimensions: int = 5, channels: int = 3) -> Path:
    """A network of insightface's layout with random weights: mean colours of 16 cells, times a matrix."""
    weight = np.random.default_rng(1).normal(size=(16 * channels, dimensions)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["x"], ["cells"], kernel_shape=[side // 4] * 2, strides=[side // 4] * 2),
        helper.make_node("Flatten", ["cells"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, dimensions])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_a_model_of_ones_own_gives_its_vectors_in_a_space_named_after_it(tmp_path: Path) -> None:
    model = OwnFaceModel(own_model(tmp_path, "arcface_r50"))
    stem, digits = model.space.split("@")
    assert stem == "arcface_r50"
    assert len(digits) == 8
    vector = model.vector(sharp_crop(), np.zeros(4, np.float32), FRONTAL)
    assert vector.shape == (5,)
    assert float(np.linalg.norm(vector)) == pytest.approx(1.0, abs=1e-5)


def test_it_is_given_rgb_between_minus_one_and_one(tmp_path: Path) -> None:
    model = OwnFaceModel(own_model(tmp_path))
    weight = np.random.default_rng(1).normal(size=(48, 5)).astype(np.float32)
    blue = np.zeros((200, 200, 3), np.uint8)
    blue[..., 0] = 255
    expected = np.repeat([-1.0, -1.0, 1.0], 16) @ weight
    np.testing.assert_allclose(model.vector(blue, np.zeros(4, np.float32), FRONTAL), expected / np.linalg.norm(expected), atol=1e-5)


def test_another_file_of_the_same_name_is_another_space(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first, second = own_model(tmp_path), own_model(tmp_path / "b", dimensions=6)
    assert OwnFaceModel(first).space != OwnFaceModel(second).space


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "nobody.onnx", "is not there"),
        (lambda folder: own_model(folder, side=224), r"must take \(1, 3, 112, 112\)"),
        (lambda folder: own_model(folder, channels=1), r"must take \(1, 3, 112, 112\)"),
        (lambda folder: own_model(folder, dimensions=1), r"must give \(1, D\)"),
    ],
)
def test_a_file_that_is_no_such_model_is_refused(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        OwnFaceModel(make(tmp_path))


def test_a_file_that_is_no_model_at_all_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.onnx"
    path.write_text("these are words")
    with pytest.raises(SettingsError, match="does not load"):
        OwnFaceModel(path)


# ------------------------------------------------------------------------------------------------ accuracy


def area(encoder: GatedFaceEncoder, folder: Path) -> float:
    """Area under the ROC curve of all pairs of faces with a vector; every picture must show one."""
    names, vectors = [], []
    for path in sorted(folder.glob("*/*")):
        (face,) = encoder.faces(read(path))
        if face.embedding is not None:
            names.append(path.parent.name)
            vectors.append(face.embedding.vector)
    assert len(names) >= 38
    first, second = np.triu_indices(len(names), 1)
    cosine = np.sum(np.stack(vectors)[first] * np.stack(vectors)[second], axis=1)
    is_same = np.asarray(names)[first] == np.asarray(names)[second]
    return float((cosine[is_same][:, None] > cosine[~is_same][None]).mean())


@pytest.mark.accuracy
def test_the_same_person_is_nearer_than_others(encoder: GatedFaceEncoder, shared_data: Path) -> None:
    assert area(encoder, shared_data / "faces" / "sitcom") >= 0.999


@pytest.mark.accuracy
def test_faceres_tells_people_apart_too(detector: BlazeFace, weights: Callable[[str], Path], shared_data: Path) -> None:
    encoder = GatedFaceEncoder(detector, FaceRes(weights("faceres")))
    assert encoder.space == "faceres@1"
    assert area(encoder, shared_data / "faces" / "sitcom") >= 0.985


@pytest.mark.accuracy
def test_everybody_in_the_group_pictures_is_found(encoder: GatedFaceEncoder, shared_data: Path) -> None:
    found = sum(len(encoder.faces(read(path))) for path in sorted((shared_data / "faces" / "sitcom").glob("bbt*.jpg")))
    assert 21 <= found <= 24  # 23 are found as measured
