"""How a frame is looked at, and how what was seen becomes one answer."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.detect import MOST_BOXES, View, is_cut, merge, views_of

WIDTH, HEIGHT = 1920, 1080
WHOLE = View(0, 0, WIDTH, HEIGHT)


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.asarray(rows, np.float32).reshape(-1, 4)


def sure(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


@pytest.mark.parametrize("tiles", ["auto", "off"])
def test_a_frame_is_looked_at_whole_unless_tiles_are_asked_for(tiles: str) -> None:
    assert views_of(768, 576, tiles) == (View(0, 0, 768, 576),)


def test_a_wide_or_tall_frame_is_looked_at_larger() -> None:
    assert views_of(1920, 1080)[0].magnified > 1.5
    assert views_of(1080, 1920)[0].magnified > 1.5
    assert views_of(1280, 720)[0].magnified == 1.0


def test_tiles_cover_the_frame_and_overlap() -> None:
    views = views_of(WIDTH, HEIGHT, "on")
    assert len(views) == 5
    seen = np.zeros((HEIGHT, WIDTH), int)
    for view in views[1:]:
        seen[view.y1 : view.y2, view.x1 : view.x2] += 1
    assert seen.min() == 1
    assert seen[HEIGHT // 2, WIDTH // 2] == 4


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 50), (2, 2), (3, 2), (7, 5)])
def test_tiny_frames_have_views_inside_them(width: int, height: int) -> None:
    for view in views_of(width, height, "on"):
        assert 0 <= view.x1 < view.x2 <= width
        assert 0 <= view.y1 < view.y2 <= height


def test_a_box_at_an_inner_edge_is_cut_and_one_at_the_frames_own_is_not() -> None:
    tile = View(0, 0, 1000, 600)
    found = boxes((0, 0, 50, 100), (950, 10, 999, 90), (10, 500, 60, 598), (100, 100, 150, 200))
    assert is_cut(found, tile, WIDTH, HEIGHT).tolist() == [False, True, True, False]
    assert not is_cut(found, WHOLE, WIDTH, HEIGHT).any()


def test_a_person_seen_in_two_views_is_given_once_with_the_surer_box() -> None:
    tile = View(0, 0, 1104, 621)
    merged = merge([(WHOLE, boxes((100, 100, 150, 220)), sure(0.6)), (tile, boxes((101, 99, 151, 221)), sure(0.8))], WIDTH, HEIGHT)
    np.testing.assert_allclose(merged.xyxy, [[101, 99, 151, 221]])
    np.testing.assert_allclose(merged.confidence, [0.8])


def test_half_a_person_at_a_tiles_edge_does_not_stand_beside_the_whole_one() -> None:
    tile = View(0, 0, 1104, 621)
    merged = merge([(WHOLE, boxes((1080, 100, 1130, 220)), sure(0.6)), (tile, boxes((1080, 100, 1104, 220)), sure(0.9))], WIDTH, HEIGHT)
    np.testing.assert_allclose(merged.xyxy, [[1080, 100, 1130, 220]])


def test_boxes_are_clipped_and_slivers_dropped() -> None:
    merged = merge([(WHOLE, boxes((-20, -10, 60, 100), (300, 300, 301, 400), (400, 400, 500, 403)), sure(0.9, 0.8, 0.7))], WIDTH, HEIGHT)
    np.testing.assert_allclose(merged.xyxy, [[0, 0, 60, 100]])


def test_a_box_wholly_outside_the_frame_is_dropped() -> None:
    assert len(merge([(WHOLE, boxes((2000, 10, 2100, 200)), sure(0.9))], WIDTH, HEIGHT)) == 0


def test_nothing_found_is_no_people() -> None:
    assert len(merge([(WHOLE, boxes(), sure())], WIDTH, HEIGHT)) == 0


def test_of_too_many_boxes_the_surest_are_kept() -> None:
    x, y = np.meshgrid(np.arange(0, 1800, 30), np.arange(0, 1000, 60))
    many = np.stack([x, y, x + 20, y + 50], axis=-1).reshape(-1, 4).astype(np.float32)
    confidence = np.linspace(0, 1, len(many)).astype(np.float32)
    merged = merge([(WHOLE, many, confidence)], WIDTH, HEIGHT)
    assert len(merged) == MOST_BOXES < len(many)
    np.testing.assert_allclose(merged.confidence, confidence[::-1][:MOST_BOXES])
