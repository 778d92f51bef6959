"""Rates of an open set, on numbers that can be counted by hand."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from pipeline.evaluate import open_set
from pipeline.evaluate.open_set import (
    area_under_curve,
    best_accuracy,
    equal_error_rate,
    fnir_at_fpir,
    people_drawn,
    searches,
    threshold_at_fpir,
)


def test_the_worked_examples_hold() -> None:
    assert doctest.testmod(open_set).failed == 0


def test_pairs_that_are_told_apart_have_no_equal_error() -> None:
    assert equal_error_rate([0.7, 0.8], [0.1, 0.6]) == 0.0
    assert area_under_curve([0.7, 0.8], [0.1, 0.6]) == 1.0


def test_pairs_that_are_all_alike_are_a_coin() -> None:
    assert equal_error_rate([0.5] * 4, [0.5] * 7) == pytest.approx(0.5)
    assert area_under_curve([0.5] * 4, [0.5] * 7) == 0.5


def test_pairs_the_wrong_way_round_are_all_wrong() -> None:
    assert equal_error_rate([0.1], [0.9]) == 1.0


def test_the_equal_error_rate_is_that_of_two_bells() -> None:
    random = np.random.default_rng(0)
    genuine, impostor = random.normal(2.0, 1.0, 20_000), random.normal(0.0, 1.0, 60_000)
    assert equal_error_rate(genuine, impostor) == pytest.approx(0.1587, abs=0.005)  # Phi(-1)
    assert area_under_curve(genuine, impostor) == pytest.approx(0.9214, abs=0.003)  # Phi(2 / sqrt 2)


def test_no_threshold_does_better_than_the_best() -> None:
    random = np.random.default_rng(1)
    genuine, impostor = random.normal(1.0, 1.0, 60), random.normal(0.0, 1.0, 40)
    accuracy, threshold = best_accuracy(genuine, impostor)
    assert accuracy == pytest.approx(((genuine >= threshold).sum() + (impostor < threshold).sum()) / 100)
    assert all((genuine >= t).sum() + (impostor < t).sum() <= round(accuracy * 100) for t in np.linspace(-3, 4, 200))


@pytest.mark.parametrize(("genuine", "impostor"), [([], [0.1]), ([0.1], []), ([float("nan")], [0.1]), ([[0.1]], [0.1])])
def test_what_cannot_be_compared_is_refused(genuine: list[float], impostor: list[float]) -> None:
    with pytest.raises(ValueError, match=r"must be \(N,\) with N > 0 and no nan"):
        equal_error_rate(genuine, impostor)


def test_a_probe_is_not_found_by_itself() -> None:
    similarity = [[1.0, 0.8, 0.3], [0.8, 1.0, 0.4], [0.3, 0.4, 1.0]]
    person = np.array(["anna", "anna", "bert"])
    found = searches(similarity, person[:, None] == person[None], np.eye(3, dtype=bool))
    assert found.mated[:2].tolist() == [0.8, 0.8]
    assert np.isnan(found.mated[2]), "nobody else is bert"
    assert found.strangers.tolist() == [0.3, 0.4, 0.4]


def test_a_right_person_behind_a_wrong_one_is_missed_at_any_threshold() -> None:
    found = searches([[0.7, 0.8]], [[True, False]])
    assert found.mated.tolist() == [-np.inf]
    assert fnir_at_fpir(found.mated, [0.1]) == 1.0


def test_fewer_than_a_hundred_strangers_allow_none_at_one_percent() -> None:
    strangers = np.linspace(0.0, 0.49, 50)
    assert threshold_at_fpir(strangers) == pytest.approx(0.49)
    assert fnir_at_fpir([0.49, 0.5, 0.6, 0.2], strangers) == 0.5


def test_one_of_a_hundred_strangers_may_go_beyond() -> None:
    strangers = np.append(np.linspace(0.0, 0.5, 99), 0.95)
    assert threshold_at_fpir(strangers, 0.01) == pytest.approx(0.5)
    assert threshold_at_fpir(strangers, 0.0) == pytest.approx(0.95)


def test_a_rate_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"below 1, got 1\.0"):
        threshold_at_fpir([0.1], 1.0)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must share \(Q, G\)"):
        searches([[0.1, 0.2]], [[True]])


def test_people_are_drawn_with_all_their_rows() -> None:
    person = np.array(["anna", "bert", "anna", "carl"])
    for rows in people_drawn(person, 20):
        counts = np.bincount(rows, minlength=4)
        assert counts[0] == counts[2]
        assert len(set(person[rows].tolist())) <= 3
    assert [rows.tolist() for rows in people_drawn(person, 3, seed=5)] == [rows.tolist() for rows in people_drawn(person, 3, seed=5)]
