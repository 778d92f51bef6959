"""Grids to boxes, frames to batches, and people found in real clips."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.centernet import CenterNetDetector
from models.nanodet import BINS, CLASSES, STRIDES, NanoDetDetector
from models.preprocess import letterbox, network_size
from models.registry import Registry
from models.tiled_detector import Calibration, TiledDetector
from pipeline.errors import SightlineError
from pipeline.geometry import iou
from pipeline.types import Detections, Frame


def weights(name: str) -> Path:
    """A fetched weight, fetched now where it can be; skips otherwise."""
    cache = Path(os.environ.get("SIGHTLINE_CACHE", Path.home() / ".cache" / "sightline"))
    try:
        return Registry(cache).path(name)
    except SightlineError as error:
        pytest.skip(f"{name} cannot be fetched: {error}")


def a_frame(width: int, height: int, seed: int = 0) -> Frame:
    bgr = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    return Frame("north", 1, bgr)


@pytest.fixture(scope="module")
def blank_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NanoDet-shaped session nobody has trained; the tests of decoding never run it."""
    picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, "h", "w"])
    mean = helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)
    graph = helper.make_graph([mean], "blank", [picture], [helper.make_empty_tensor_value_info("y")], [])
    path = tmp_path_factory.mktemp("blank") / "blank.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def nanodet_outputs(size: tuple[int, int], stride: int, cell: tuple[int, int], sides: Sequence[int], score: float) -> list[np.ndarray]:
    """Raw outputs with one person in one cell (column, row) whose sides reach so many strides."""
    outputs = []
    for each in STRIDES:
        across, down = size[0] // each, size[1] // each
        scores = np.zeros((1, across * down, CLASSES), np.float32)
        bins = np.zeros((1, across * down, 4, BINS), np.float32)
        if each == stride:
            index = cell[1] * across + cell[0]
            scores[0, index, 0] = score
            scores[0, index, 2] = 0.99  # a car: not asked for
            for side, reach in enumerate(sides):
                bins[0, index, side, reach] = 50.0
        outputs += [scores, bins.reshape(1, across * down, 4 * BINS)]
    return outputs


@pytest.mark.parametrize("stride", STRIDES)
def test_nanodet_decodes_a_cell_and_its_sides(blank_network: Path, stride: int) -> None:
    detector = NanoDetDetector(blank_network)
    outputs = nanodet_outputs((416, 256), stride, (3, 2), (1, 2, 3, 4), 0.8)
    xyxy, raw = detector.decode(outputs, 0, (416, 256))
    np.testing.assert_allclose(xyxy, [[2.5 * stride, 0.5 * stride, 6.5 * stride, 6.5 * stride]], atol=0.1)
    np.testing.assert_allclose(raw, [0.8])


def test_nanodet_finds_nobody_among_cars(blank_network: Path) -> None:
    outputs = nanodet_outputs((416, 256), 8, (3, 2), (1, 1, 1, 1), 0.0)
    xyxy, _ = NanoDetDetector(blank_network).decode(outputs, 0, (416, 256))
    assert xyxy.shape == (0, 4)


def test_centernet_decodes_peaks_and_leaves_slopes(blank_network: Path) -> None:
    heat, sides = np.zeros((1, 32, 64, 80), np.float32), np.full((1, 32, 64, 4), 8.0, np.float32)
    heat[0, 10, 20, 0], heat[0, 10, 21, 0] = 0.7, 0.6
    xyxy, raw = CenterNetDetector(blank_network).decode([sides, heat], 0, (256, 128))
    np.testing.assert_allclose(xyxy, [[72, 32, 88, 48]])
    np.testing.assert_allclose(raw, [0.7])


def test_calibration_rises_and_turns_back() -> None:
    calibration = Calibration(slope=3.0, offset=-0.9)
    confidence = calibration.confidence(np.linspace(0, 1, 50, dtype=np.float32))
    assert (np.diff(confidence) >= 0).all()
    assert calibration.confidence(np.asarray([calibration.raw(0.5)], np.float32))[0] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("frame", "side", "expected"),
    [((768, 576), 416, (416, 320)), ((1920, 1080), 640, (640, 384)), ((100, 400), 416, (128, 416)), ((1, 1), 416, (416, 416))],
)
def test_the_network_is_no_larger_than_the_frames_aspect_needs(frame: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert network_size(*frame, side) == expected


def test_a_letterbox_keeps_the_aspect() -> None:
    boxed = letterbox(np.zeros((100, 300, 3), np.uint8), 96, 64)
    assert boxed.bgr.shape == (64, 96, 3)
    assert boxed.scale == pytest.approx(0.32)
    assert (boxed.bgr[:32] == 0).all()
    assert (boxed.bgr[32:] == 114).all()


DETECTORS: list[tuple[str, Callable[..., TiledDetector]]] = [("nanodet", NanoDetDetector), ("centernet", CenterNetDetector)]


@pytest.mark.parametrize(("name", "make"), DETECTORS)
def test_frames_of_several_cameras_and_sizes_are_answered_in_order(name: str, make: Callable[..., TiledDetector]) -> None:
    detector = make(weights(name))
    frames = [a_frame(320, 240), a_frame(200, 300, 1), a_frame(320, 240, 2), a_frame(1, 1, 3)]
    together = detector.detect(frames)
    alone = [detector.detect([frame])[0] for frame in frames]
    assert [len(found) for found in together] == [len(found) for found in alone]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.xyxy, other.xyxy, atol=0.1)


@pytest.mark.parametrize(("name", "make"), DETECTORS)
def test_no_frames_give_no_detections(name: str, make: Callable[..., TiledDetector]) -> None:
    assert make(weights(name)).detect([]) == []


def people_of(truth: Path, number: int, width: int, height: int) -> np.ndarray:
    """Boxes of a MOT file, cut at the frame's border as detections are: those of Town Centre hang far over it."""
    rows = np.loadtxt(truth, delimiter=",", ndmin=2)
    left_top, sides = rows[rows[:, 0] == number, 2:4], rows[rows[:, 0] == number, 4:6]
    limits = [width, height, width, height]
    return np.clip(np.hstack([left_top, left_top + sides]), 0, limits).astype(np.float32)


def found_and_wrong(found: Detections, truth: np.ndarray, least: float) -> tuple[int, int]:
    """How many people were found by boxes of at least ``least`` confidence, and how many boxes are none."""
    sure = found.where(found.confidence >= least)
    overlaps = iou(sure.xyxy, truth) >= 0.5
    return int(overlaps.any(axis=0).sum()), int((~overlaps.any(axis=1)).sum())


@pytest.mark.accuracy
@pytest.mark.parametrize(("name", "make"), DETECTORS)
@pytest.mark.parametrize(("clip", "least_recall"), [("pets_view001_a", 0.75), ("towncentre_a", 0.6)])
def test_a_confidence_of_a_half_means_the_same_for_both_detectors(
    shared_data: Path, name: str, make: Callable[..., TiledDetector], clip: str, least_recall: float
) -> None:
    detector = make(weights(name))
    reader = cv2.VideoCapture(str(shared_data / "video" / f"{clip}.mp4"))
    right = wrong = people = 0
    for number in range(1, 121):
        is_read, bgr = reader.read()
        if not is_read or number % 20 != 1:
            continue
        frame = Frame("north", number, bgr)
        truth = people_of(shared_data / "video" / f"{clip}.txt", number, frame.width, frame.height)
        hits, misses = found_and_wrong(detector.detect([frame])[0], truth, 0.5)
        right, wrong, people = right + hits, wrong + misses, people + len(truth)
    assert right / people > least_recall
    assert wrong / (right + wrong) < 0.25
