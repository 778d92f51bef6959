"""CenterNet's decoding on a made-up heat map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.centernet import CenterNetDetector
from pipeline.types import Frame

SIZE = (64, 32)


@pytest.fixture(scope="module")
def detector(weights: Callable[[str], Path]) -> CenterNetDetector:
    return CenterNetDetector(weights("centernet"))


def empty_outputs(batch: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((batch, 8, 16, 80), np.float32), np.zeros((batch, 8, 16, 4), np.float32)


def test_a_peak_becomes_a_box_of_its_four_sides(detector: CenterNetDetector) -> None:
    heat, sides = empty_outputs()
    heat[0, 3, 5, 0] = 0.6
    sides[0, 3, 5] = (4, 8, 6, 10)
    xyxy, raw = detector.decode([heat, sides], 0, SIZE)
    np.testing.assert_allclose(xyxy, [[20 - 4, 12 - 8, 20 + 6, 12 + 10]])
    np.testing.assert_allclose(raw, [0.6])
    np.testing.assert_array_equal(detector.decode([sides, heat], 0, SIZE)[0], xyxy)


def test_only_the_top_of_a_hill_counts_and_only_of_people(detector: CenterNetDetector) -> None:
    heat, sides = empty_outputs()
    heat[0, 3, 4:7, 0] = (0.5, 0.6, 0.5)
    heat[0, 6, 12, 1] = 0.9  # a bicycle
    assert detector.decode([heat, sides], 0, SIZE)[1].tolist() == [np.float32(0.6)]


def test_each_row_of_a_batch_is_its_own(detector: CenterNetDetector) -> None:
    heat, sides = empty_outputs(2)
    heat[1, 0, 0, 0] = 0.6
    assert len(detector.decode([heat, sides], 0, SIZE)[0]) == 0
    assert len(detector.decode([heat, sides], 1, SIZE)[0]) == 1


def test_the_input_is_rgb_as_it_is(detector: CenterNetDetector) -> None:
    blue = np.zeros((32, 64, 3), np.uint8)
    blue[..., 0] = 255
    tensor = detector.tensor([blue, blue])
    assert tensor.shape == (2, 32, 64, 3)
    assert tensor[0, 0, 0].tolist() == [0, 0, 255]


def test_two_cameras_of_different_sizes_in_one_batch_equal_single_calls(detector: CenterNetDetector) -> None:
    random = np.random.default_rng(4)
    frames = [Frame("gate", 0, random.integers(0, 255, size).astype(np.uint8)) for size in ((288, 384, 3), (240, 432, 3), (1, 1, 3))]
    for each, batched in zip(frames, detector.detect(frames), strict=True):
        alone = detector.detect([each])[0]
        np.testing.assert_allclose(batched.xyxy, alone.xyxy, atol=0.1)
        np.testing.assert_allclose(batched.confidence, alone.confidence, atol=1e-3)
