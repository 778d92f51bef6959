"""Clothing colours of painted people."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pipeline.attributes import COLOURS, colour_attributes, hsv, lab, pooled_colours, region_colours, stripe_colours, stripe_histogram

RGB = {
    "black": (25, 25, 28),
    "grey": (115, 115, 115),
    "white": (225, 225, 228),
    "red": (175, 35, 40),
    "orange": (225, 110, 45),
    "yellow": (225, 205, 70),
    "green": (60, 110, 65),
    "blue": (50, 70, 140),
    "purple": (100, 65, 135),
    "pink": (225, 140, 165),
    "brown": (95, 65, 48),
    "beige": (190, 170, 138),
}


def painted(upper: str, lower: str, ground: tuple[int, int, int] = (128, 128, 126)) -> np.ndarray:
    """A person of two colours in front of grey: 160 × 64, BGR, with a little noise."""
    crop = np.full((160, 64, 3), ground, np.int16)
    crop[20:84, 14:50] = RGB[upper]
    crop[84:150, 18:46] = RGB[lower]
    noise = np.random.default_rng(7).integers(-6, 7, crop.shape)
    return np.clip(crop + noise, 0, 255).astype(np.uint8)[..., ::-1].copy()


@pytest.mark.parametrize("colour", COLOURS)
def test_a_painted_colour_gets_its_name(colour: str) -> None:
    upper, lower = region_colours(painted(colour, "blue" if colour != "blue" else "red"))
    assert COLOURS[int(upper.argmax())] == colour
    assert COLOURS[int(lower.argmax())] == ("blue" if colour != "blue" else "red")


def test_shares_sum_to_one_for_any_size() -> None:
    for shape in ((1, 1, 3), (3, 2, 3), (700, 250, 3)):
        crop = np.zeros(shape, np.uint8)
        np.testing.assert_allclose(region_colours(crop).sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(stripe_colours(crop, 8).sum(1), 1, atol=1e-5)
        np.testing.assert_allclose((stripe_histogram(crop, 4) ** 2).sum(1), 1, atol=1e-5)


def test_good_crops_weigh_more_when_pooled() -> None:
    pooled = pooled_colours([painted("red", "black"), painted("green", "black")], [0.9, 0.1])
    assert colour_attributes(pooled)[0].name in ("upper colour", "lower colour")
    assert COLOURS[int(pooled[0].argmax())] == "red"
    with pytest.raises(ValueError, match="at least one crop"):
        pooled_colours([], [])


def test_attributes_are_most_certain_first() -> None:
    scores = [attribute.score for attribute in colour_attributes(region_colours(painted("yellow", "black")))]
    assert scores == sorted(scores, reverse=True)


def test_lab_and_hsv_agree_with_known_values() -> None:
    np.testing.assert_allclose(lab(np.array([255.0, 0, 0], np.float32)), [53.24, 80.09, 67.20], atol=0.1)
    np.testing.assert_allclose(lab(np.array([255.0, 255, 255], np.float32)), [100, 0, 0], atol=0.1)
    np.testing.assert_allclose(hsv(np.array([0, 255, 0], np.float32)), [1 / 3, 1, 1], atol=1e-4)


def test_naming_a_crop_is_quick() -> None:
    crop = painted("red", "blue")
    region_colours(crop)
    times_s = []
    for _ in range(20):
        started_s = time.perf_counter()
        region_colours(crop)
        times_s.append(time.perf_counter() - started_s)
    assert min(times_s) < 0.001
