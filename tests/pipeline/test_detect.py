"""Where the detector looks, and how its answers become one."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.detect import MOST_BOXES, View, is_cut, merge, views_of


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.asarray(rows, np.float32).reshape(-1, 4)


def confidences(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def test_a_small_frame_is_looked_at_whole() -> None:
    assert views_of(768, 576) == (View(0, 0, 768, 576),)


def test_a_wide_frame_is_looked_at_whole_but_larger() -> None:
    (view,) = views_of(1920, 1080)
    assert (view.x2, view.y2) == (1920, 1080)
    assert view.magnified > 1.0


def test_tiles_cover_the_frame_and_overlap() -> None:
    views = views_of(1920, 1080, "on")
    seen = np.zeros((1080, 1920), np.int32)
    for view in views[1:]:
        seen[view.y1 : view.y2, view.x1 : view.x2] += 1
    assert len(views) == 5
    assert seen.min() == 1
    assert seen[540, 960] == 4


def test_a_picture_of_one_pixel_is_never_tiled() -> None:
    assert views_of(1, 1, "on") == (View(0, 0, 1, 1),)


def test_a_box_at_an_inner_edge_is_cut_and_one_at_the_frames_edge_is_not() -> None:
    tile = View(0, 0, 100, 100)
    xyxy = boxes((60, 10, 99, 90), (0, 10, 40, 90), (30, 20, 60, 80))
    assert is_cut(xyxy, tile, 200, 100).tolist() == [True, False, False]


def test_half_a_person_in_a_tile_gives_way_to_the_whole_one() -> None:
    whole = (View(0, 0, 200, 100), boxes((80, 10, 120, 90)), confidences(0.6))
    tile = (View(0, 0, 100, 100), boxes((80, 10, 100, 90)), confidences(0.9))
    found = merge([whole, tile], 200, 100)
    np.testing.assert_allclose(found.xyxy, [[80, 10, 120, 90]])


def test_a_person_seen_twice_counts_once_with_the_better_confidence() -> None:
    whole = (View(0, 0, 200, 100), boxes((20, 10, 50, 90)), confidences(0.6))
    tile = (View(0, 0, 100, 100), boxes((21, 11, 50, 90)), confidences(0.8))
    found = merge([whole, tile], 200, 100)
    np.testing.assert_allclose(found.confidence, [0.8])


def test_boxes_stay_inside_the_frame_and_slivers_go() -> None:
    view = View(0, 0, 200, 100)
    found = merge([(view, boxes((-20, -5, 30, 130), (150, 50, 151, 90)), confidences(0.9, 0.9))], 200, 100)
    np.testing.assert_allclose(found.xyxy, [[0, 0, 30, 100]])


def test_nothing_found_is_no_people() -> None:
    assert len(merge([(View(0, 0, 64, 64), boxes(), confidences())], 64, 64)) == 0


@pytest.mark.parametrize("count", [MOST_BOXES, 5 * MOST_BOXES])
def test_a_flood_of_boxes_is_capped_to_the_best(count: int) -> None:
    left = np.arange(count, dtype=np.float32) * 20
    flood = np.stack([left, left * 0, left + 10, left * 0 + 30], axis=1)
    found = merge([(View(0, 0, 20 * count, 40), flood, np.linspace(0.1, 0.9, count, dtype=np.float32))], 20 * count, 40)
    assert len(found) == MOST_BOXES
    assert found.confidence.max() == pytest.approx(0.9)
