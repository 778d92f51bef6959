"""CMC, mAP and R@n IoU>m on rankings small enough to work out by hand."""

from __future__ import annotations

import doctest
import time

import numpy as np
import pytest

import pipeline.evaluate.retrieval
from pipeline.evaluate.retrieval import (
    Touching,
    average_precision,
    best_in_frames,
    intervals,
    lies_on,
    outcomes,
    ranked_box_hits,
    ranked_hits,
    ranking_figures,
    touching,
)
from pipeline.evaluate.tracking import IdentifiedBoxes


def boxes(*rows: tuple[int, float, float, float, float]) -> IdentifiedBoxes:
    """Rows of (frame, x1, y1, x2, y2)."""
    table = np.asarray(rows, np.float64).reshape(-1, 5)
    return IdentifiedBoxes(table[:, 0].astype(np.int64), np.arange(len(table)), table[:, 1:], np.ones(len(table)))


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(pipeline.evaluate.retrieval).failed == 0


def test_the_worked_example() -> None:
    figures = ranking_figures([[True, False, True], [False, True, False]])
    assert figures.rank(1) == 0.5
    assert figures.rank(2) == 1.0
    assert figures.mean_average_precision == pytest.approx(((1 / 1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_average_precision_of_hits_at_one_and_three() -> None:
    assert average_precision([True, False, True]) == pytest.approx(0.8333, abs=1e-4)
    assert average_precision([False, False]) == 0


def test_ignored_items_neither_help_nor_harm() -> None:
    hits = ranked_hits([[0.9, 0.8, 0.7]], [[True, False, True]], [[True, False, False]])
    assert hits[0].tolist() == [False, True]


def test_a_query_without_any_match_is_not_counted() -> None:
    figures = ranking_figures([[False, False], [True, False]])
    assert figures.queries == 1
    assert figures.rank(1) == 1.0


def test_equal_similarities_keep_the_order_of_the_gallery() -> None:
    assert ranked_hits([[0.5, 0.5]], [[False, True]])[0].tolist() == [False, True]


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="must share"):
        ranked_hits(np.zeros((1, 2)), np.zeros((1, 3), bool))


def test_recall_at_n_needs_the_right_frame_and_enough_overlap() -> None:
    truth = boxes((7, 0, 0, 10, 20))
    found = boxes((8, 0, 0, 10, 20), (7, 0, 0, 10, 11), (7, 0, 0, 10, 5))  # best first; IoU in frame 7: 110 / 200 and 50 / 200
    pairs = touching(found, truth)

    def recall(n: int, overlap: float) -> float:
        return float(outcomes(ranked_box_hits([[0.9], [0.8], [0.7]], pairs, [[True]], overlap), [1]).within(n).mean())

    assert recall(1, 0.5) == 0
    assert recall(2, 0.5) == 1
    assert recall(3, 0.6) == 0


def test_a_true_box_is_hit_once_and_by_the_best_ranked_box() -> None:
    truth = boxes((1, 0, 0, 10, 20), (2, 0, 0, 10, 20))
    found = boxes((1, 0, 0, 10, 18), (1, 0, 0, 10, 20), (2, 0, 0, 10, 20))
    hits = ranked_box_hits([[0.9], [0.8], [0.7]], touching(found, truth), [[True], [True]], 0.5)
    assert hits[0].tolist() == [True, False, True]
    assert outcomes(hits, [2]).precision[0] == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_true_boxes_that_nothing_found_lower_the_average_precision() -> None:
    truth = boxes((1, 0, 0, 10, 20), (2, 0, 0, 10, 20))
    hits = ranked_box_hits([[0.9]], touching(boxes((1, 0, 0, 10, 20)), truth), [[True], [True]], 0.5)
    assert outcomes(hits, [2]).precision.tolist() == [0.5]


def test_boxes_left_out_count_again_where_they_lie_on_a_wanted_one() -> None:
    pairs = Touching(np.array([0]), np.array([0]), np.array([0.9]))
    hits = ranked_box_hits([[0.9, 0.9], [0.8, 0.8]], pairs, [[True, False]], 0.5, left_out=[True, False])
    assert [row.tolist() for row in hits] == [[True, False], [False]]


def test_a_box_between_two_people_lies_on_the_one_it_covers_more() -> None:
    pairs = Touching(np.array([0, 0]), np.array([0, 1]), np.array([0.6, 0.7]))
    assert lies_on(pairs, [True, False], 1, 0.5).tolist() == [False]
    assert lies_on(pairs, [False, True], 1, 0.5).tolist() == [True]
    assert lies_on(pairs, [False, True], 1, 0.75).tolist() == [False]


def test_within_a_frame_only_its_own_boxes_compete() -> None:
    truth, found = boxes((1, 0, 0, 10, 20), (2, 0, 0, 10, 20)), boxes((1, 0, 0, 10, 20), (2, 0, 0, 10, 20), (2, 50, 0, 60, 20))
    answers = best_in_frames([[0.1], [0.8], [0.9]], found.frame, touching(found, truth), truth.frame, [[True], [True]], 0.5)
    assert answers.is_right.tolist() == [1.0, 0.0]
    assert answers.chance.tolist() == [1.0, 0.5]


def test_shapes_of_boxes_and_queries_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, Q\) and \(T, Q\)"):
        ranked_box_hits(np.zeros((1, 2)), Touching(*np.zeros((2, 0), np.int64), np.zeros(0)), np.zeros((1, 3), bool), 0.5)


def test_an_interval_holds_the_mean_and_narrows_with_people_not_with_captions() -> None:
    chance = np.random.default_rng(0)
    found = chance.random(50) < 0.4
    few, often = intervals(found[:, None], np.arange(50))[0], intervals(np.repeat(found, 20)[:, None], np.repeat(np.arange(50), 20))[0]
    many = intervals((chance.random(5000) < 0.4)[:, None], np.arange(5000))[0]
    assert few[0] < found.mean() < few[1]
    assert few == pytest.approx(often)
    assert few[1] - few[0] == pytest.approx(2 * 1.96 * np.sqrt(0.24 / 50), rel=0.15)
    assert many[1] - many[0] < 0.15 * (few[1] - few[0])


def test_a_paired_interval_of_two_equal_ways_is_zero() -> None:
    assert intervals(np.zeros((6, 1)), list("aabbcc")).tolist() == [[0.0, 0.0]]


def test_a_thousand_resamples_of_two_thousand_queries_take_less_than_a_second() -> None:
    values = np.random.default_rng(0).random((2000, 3))
    began = time.process_time()
    intervals(values, np.arange(2000))
    assert time.process_time() - began < 1.0


def test_intervals_need_one_person_for_each_query() -> None:
    with pytest.raises(ValueError, match="Q > 0"):
        intervals(np.zeros((2, 1)), ["anna"])
    with pytest.raises(ValueError, match="Q > 0"):
        intervals(np.zeros((0, 1)), [])
