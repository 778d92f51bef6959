"""NanoDet's decoding on made-up outputs, and what the real network finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from models.nanodet import BINS, CLASSES, PERSON, STRIDES, NanoDetDetector
from models.preprocess import letterbox, network_size
from models.tiled_detector import Calibration, TiledDetector
from pipeline.evaluate.tracking import IdentifiedBoxes, average_precision, read_mot
from pipeline.types import Frame

SIZE = (64, 32)  # width, height in network pixels


def frame(height: int = 90, width: int = 120, seed: int = 0) -> Frame:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    return Frame("gate", 0, pixels)


@pytest.fixture(scope="module")
def detector(weights: Callable[[str], Path]) -> NanoDetDetector:
    return NanoDetDetector(weights("nanodet"))


def outputs_with(stride: int, cell: tuple[int, int], sides: Sequence[int], score: float, batch: int = 1, row: int = 0) -> list[np.ndarray]:
    """Network outputs where one cell (column, row) sees a person whose sides lie so many bins away: left, top, right, bottom."""
    outputs = []
    for each in STRIDES:
        across, down = SIZE[0] // each, SIZE[1] // each
        scores = np.zeros((batch, across * down, CLASSES), np.float32)
        bins = np.zeros((batch, across * down, 4 * BINS), np.float32)
        if each == stride:
            index = cell[1] * across + cell[0]
            scores[row, index, PERSON] = score
            for side, distance in enumerate(sides):
                bins[row, index, side * BINS + distance] = 50.0  # all weight on one bin
        outputs += [scores, bins]
    return outputs


@pytest.mark.parametrize(
    ("stride", "cell", "expected"), [(8, (3, 2), (20, 4, 52, 44)), (16, (1, 1), (8, -8, 72, 72)), (32, (1, 0), (16, -48, 144, 112))]
)
def test_a_box_is_read_from_its_cell_and_its_four_distances(
    detector: NanoDetDetector, stride: int, cell: tuple[int, int], expected: tuple[int, ...]
) -> None:
    xyxy, raw = detector.decode(outputs_with(stride, cell, (1, 2, 3, 3), 0.9), 0, SIZE)
    middle = [(cell[0] + 0.5) * stride, (cell[1] + 0.5) * stride]
    by_hand = [middle[0] - stride, middle[1] - 2 * stride, middle[0] + 3 * stride, middle[1] + 3 * stride]
    np.testing.assert_allclose(xyxy, [by_hand], atol=1e-3)
    np.testing.assert_allclose(by_hand, expected)
    assert raw.tolist() == [np.float32(0.9)]


def test_a_side_between_two_bins_lies_between_them(detector: NanoDetDetector) -> None:
    outputs = outputs_with(8, (2, 2), (4, 4, 4, 4), 0.9)
    outputs[1][0, 2 * 8 + 2, 5] = 50.0  # the left side: bin 4 and bin 5 alike
    xyxy, _ = detector.decode(outputs, 0, SIZE)
    np.testing.assert_allclose(xyxy[0, 0], 20 - 4.5 * 8, atol=1e-3)


def test_each_row_of_a_batch_is_its_own(detector: NanoDetDetector) -> None:
    outputs = outputs_with(8, (3, 2), (1, 1, 1, 1), 0.9, batch=2, row=1)
    assert len(detector.decode(outputs, 0, SIZE)[0]) == 0
    assert len(detector.decode(outputs, 1, SIZE)[0]) == 1


def test_the_order_of_the_outputs_does_not_matter(detector: NanoDetDetector) -> None:
    outputs = outputs_with(16, (1, 1), (1, 2, 3, 3), 0.9)
    np.testing.assert_array_equal(detector.decode(outputs, 0, SIZE)[0], detector.decode(outputs[::-1], 0, SIZE)[0])


def test_boxes_below_the_least_confidence_are_not_given(weights: Callable[[str], Path]) -> None:
    strict = NanoDetDetector(weights("nanodet"), minimum_confidence=0.5)
    floor = NanoDetDetector.calibration.raw(0.5)
    assert len(strict.decode(outputs_with(8, (3, 2), (1, 1, 1, 1), floor - 0.01), 0, SIZE)[0]) == 0
    assert len(strict.decode(outputs_with(8, (3, 2), (1, 1, 1, 1), floor + 0.01), 0, SIZE)[0]) == 1


@pytest.mark.parametrize("calibration", [Calibration(3.0, -0.9), Calibration(3.3, 1.2)])
def test_calibration_rises_and_turns_back(calibration: Calibration) -> None:
    raw = np.linspace(0.02, 0.98, 50).astype(np.float32)
    confidence = calibration.confidence(raw)
    assert (np.diff(confidence) > 0).all()
    np.testing.assert_allclose([calibration.raw(float(value)) for value in confidence], raw, atol=1e-3)
    edges = calibration.confidence(np.asarray([0, 1], np.float32))
    assert 0 <= edges[0] < 1e-3
    assert 0.999 < edges[1] <= 1


def test_two_cameras_of_different_sizes_in_one_batch_equal_single_calls(detector: NanoDetDetector) -> None:
    frames = [frame(288, 384, 1), frame(240, 432, 2), frame(288, 384, 3)]
    together = detector.detect(frames)
    for each, batched in zip(frames, together, strict=True):
        alone = detector.detect([each])[0]
        np.testing.assert_allclose(batched.xyxy, alone.xyxy, atol=0.1)
        np.testing.assert_allclose(batched.confidence, alone.confidence, atol=1e-3)
    assert detector.detect([]) == []


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 2), (3, 5), (33, 17)])
@pytest.mark.parametrize("tiles", ["auto", "on"])
def test_tiny_frames_do_no_harm(weights: Callable[[str], Path], height: int, width: int, tiles: str) -> None:
    small = NanoDetDetector(weights("nanodet"), tiles=tiles, side=96)
    found = small.detect([frame(height, width)])[0]
    assert (found.xyxy >= 0).all()
    assert (found.xyxy <= [width, height, width, height]).all()


def test_a_wide_frame_is_looked_at_larger_and_tiles_only_when_asked_for(detector: NanoDetDetector, weights: Callable[[str], Path]) -> None:
    usual, wide = frame(576, 768), frame(1080, 1920)
    assert [each.size for each in detector.prepare([usual])] == [(416, 320)]
    assert [each.size for each in detector.prepare([wide])] == [(640, 384)]
    tiled = NanoDetDetector(weights("nanodet"), tiles="on").prepare([wide])
    assert [(each.size, len(each.rows)) for each in tiled] == [((640, 384), 1), ((416, 256), 4)]
    assert [len(each.rows) for each in detector.prepare([usual, usual, wide])] == [2, 1]


def test_the_input_is_standardised_bgr_with_channels_first(detector: NanoDetDetector) -> None:
    blue = np.zeros((32, 64, 3), np.uint8)
    blue[..., 0] = 255
    tensor = detector.tensor([blue])
    assert tensor.shape == (1, 3, 32, 64)
    np.testing.assert_allclose(tensor[0, :, 0, 0], [(255 - 103.53) / 57.375, -116.28 / 57.12, -123.675 / 58.395], rtol=1e-5)


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(768, 576, (416, 320)), (576, 768, (320, 416)), (1, 1, (416, 416)), (5000, 3, (416, 32))]
)
def test_network_sizes_are_whole_strides_no_longer_than_needed(width: int, height: int, expected: tuple[int, int]) -> None:
    assert network_size(width, height, 416) == expected


def test_a_letterbox_keeps_the_aspect_and_pads_right_and_below() -> None:
    boxed = letterbox(np.full((50, 100, 3), 9, np.uint8), 64, 64)
    assert boxed.scale == 0.64
    assert (boxed.bgr[:32] == 9).all()
    assert (boxed.bgr[32:] == 114).all()


@pytest.fixture(scope="module")
def pets(shared_data: Path) -> tuple[list[Frame], IdentifiedBoxes]:
    """Every 8th frame of PETS view 1 and its people."""
    with av.open(str(shared_data / "video" / "pets_view001_a.mp4")) as clip:
        pictures = [picture.to_ndarray(format="bgr24") for number, picture in enumerate(clip.decode(video=0)) if number % 8 == 0]
    truth = read_mot(shared_data / "video" / "pets_view001_a.txt")
    return [Frame("pets", 0, picture, 8 * index) for index, picture in enumerate(pictures)], truth.where((truth.frame - 1) % 8 == 0)


def average_precision_of(detector: TiledDetector, pets: tuple[list[Frame], IdentifiedBoxes]) -> float:
    found = detector.detect(pets[0])
    numbers = np.concatenate([np.full(len(each), frame.number + 1) for frame, each in zip(pets[0], found, strict=True)])
    confidence = np.concatenate([each.confidence for each in found]).astype(np.float64)
    xyxy = np.concatenate([each.xyxy for each in found]).astype(np.float64)
    return average_precision(pets[1], IdentifiedBoxes(numbers, np.arange(len(numbers)), xyxy, confidence))


@pytest.mark.accuracy
def test_nanodet_finds_the_people_of_pets(detector: NanoDetDetector, pets: tuple[list[Frame], IdentifiedBoxes]) -> None:
    assert average_precision_of(detector, pets) >= 0.88


@pytest.mark.accuracy
def test_centernet_finds_the_people_of_pets(weights: Callable[[str], Path], pets: tuple[list[Frame], IdentifiedBoxes]) -> None:
    from models.centernet import CenterNetDetector

    assert average_precision_of(CenterNetDetector(weights("centernet")), pets) >= 0.83
