"""The cheap look of a detection tells clothes apart and leaves out what others cover."""

from __future__ import annotations

import numpy as np

from pipeline.track.appearance import LOOK_SIZE, looks


def street() -> np.ndarray:
    """A grey frame with a red-over-blue person at x 20 and a green one at x 120."""
    frame = np.full((240, 320, 3), 128, np.uint8)
    frame[40:120, 20:60] = (30, 30, 200)
    frame[120:200, 20:60] = (200, 30, 30)
    frame[40:200, 120:160] = (30, 200, 30)
    return frame


RED, GREEN = (20.0, 40.0, 60.0, 200.0), (120.0, 40.0, 160.0, 200.0)


def test_a_look_is_a_unit_vector_equal_to_itself_and_far_from_another() -> None:
    made = looks(street(), np.asarray([RED, GREEN], np.float32))
    assert made.shape == (2, LOOK_SIZE)
    assert np.allclose(np.linalg.norm(made, axis=1), 1)
    assert made[0] @ made[1] < 0.6


def test_a_look_changes_little_when_the_box_is_a_little_off() -> None:
    off = (22.0, 44.0, 63.0, 205.0)
    one, other = looks(street(), np.asarray([RED], np.float32)), looks(street(), np.asarray([off], np.float32))
    assert float(one[0] @ other[0]) > 0.9


def test_one_who_is_covered_has_no_look() -> None:
    cover = (10.0, 30.0, 80.0, 230.0)
    made = looks(street(), np.asarray([RED, cover], np.float32))
    assert not made[0].any()
    assert made[1].any()


def test_a_box_outside_the_frame_has_no_look() -> None:
    assert not looks(street(), np.asarray([(400, 300, 440, 380)], np.float32)).any()


def test_nobody_has_no_looks() -> None:
    assert looks(street(), np.zeros((0, 4), np.float32)).shape == (0, LOOK_SIZE)
