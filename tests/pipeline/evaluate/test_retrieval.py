"""CMC, mAP and R@n IoU>m on rankings small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluate.retrieval import average_precision, ranked_hits, ranking_figures, recall_at


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
    wanted = [("frame 7", (0, 0, 10, 20))]
    ranked = [("frame 8", (0, 0, 10, 20)), ("frame 7", (0, 0, 10, 11)), ("frame 7", (0, 0, 10, 5))]
    assert recall_at([ranked], [wanted], n=1, overlap=0.5) == 0
    assert recall_at([ranked], [wanted], n=2, overlap=0.5) == 1  # IoU 110 / 200
    assert recall_at([ranked], [wanted], n=2, overlap=0.6) == 0
    assert recall_at([ranked, []], [wanted, []], n=2, overlap=0.5) == 1  # wants nothing: not counted
