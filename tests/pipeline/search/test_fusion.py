"""Weighing faces, bodies and words against each other."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

import pipeline.calibration
from pipeline.calibration import Calibration, Logistic, fuse, fuse_by_owner, score
from pipeline.probes import Part
from pipeline.search.fusion import in_order, similarities_to
from pipeline.types import BODY, FACE, TEXT
from tests.fakes import a_tracklet, embedding

EVEN = Calibration({}, {modality: Logistic(0.5, 10.0) for modality in (BODY, FACE, TEXT)})


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(pipeline.calibration, extraglobs={"np": np}).failed == 0


def test_the_midpoint_is_even_odds_and_more_likeness_is_more() -> None:
    odds = EVEN.log_odds(FACE, "fake-face@1", [0.2, 0.5, 0.8])
    assert score(float(odds[1])) == 0.5
    assert odds[0] < odds[1] < odds[2]


def test_a_space_with_its_own_curve_uses_it() -> None:
    calibration = Calibration.default({"arcface@2": Logistic(0.3, 20.0)})
    assert score(float(calibration.log_odds(FACE, "arcface@2", 0.3))) == 0.5
    assert score(float(calibration.log_odds(FACE, "mobilefacenet@1", 0.3))) < 0.2


def test_two_pictures_must_be_nearer_than_a_picture_and_its_description() -> None:
    calibration = Calibration.default({"retriever-text@1": Logistic(0.2, 14.0)})
    described, alike = (float(calibration.log_odds(TEXT, "retriever-text@1", 0.5, is_picture)) for is_picture in (False, True))
    assert described > 0 > alike


def test_scores_stay_between_nought_and_one() -> None:
    assert [score(value) for value in (-800.0, 0.0, 800.0)] == [0.0, 0.5, 1.0]
    assert 0.99 < score(float(Calibration.default().log_odds(FACE, "m@1", 1.0))) < 1.0


def test_a_curve_that_falls_is_refused() -> None:
    with pytest.raises(ValueError, match="slope above 0, got"):
        Logistic(0.5, -1.0)


def test_no_face_ranks_between_a_fitting_and_a_foreign_face() -> None:
    odds = np.array([[2.0, 3.0], [2.0, np.nan], [2.0, -3.0]])
    fused = fuse(odds, np.ones(2), np.zeros(2, bool))
    assert fused[0] > fused[1] > fused[2]


def test_a_negative_part_costs_where_it_fits_and_earns_nothing_elsewhere() -> None:
    odds = np.array([[2.0, 5.0], [2.0, -5.0], [2.0, np.nan]])
    fused = fuse(odds, np.ones(2), np.array([False, True]))
    assert fused[0] < -2.9
    assert fused[1] == pytest.approx(2.0, abs=0.01)
    assert fused[2] == 2.0


def test_weights_say_who_is_heard() -> None:
    odds = np.array([[3.0, -3.0]])
    assert fuse(odds, np.array([3.0, 1.0]), np.zeros(2, bool))[0] > 0 > fuse(odds, np.array([1.0, 3.0]), np.zeros(2, bool))[0]


def test_one_candidate_for_many_questions_is_the_same_as_one_by_one() -> None:
    rng = np.random.default_rng(3)
    odds, weights, owner = rng.normal(size=40), rng.uniform(0.5, 2, 40), np.arange(40) // 4
    odds[::7] = np.nan
    is_negative = np.arange(40) % 4 == 3
    together = fuse_by_owner(odds, weights, is_negative, owner, 10)
    apart = [fuse(odds[owner == n][None], weights[owner == n], is_negative[owner == n])[0] for n in range(10)]
    assert together.tolist() == pytest.approx(apart)


def test_similarities_that_the_index_did_not_answer_come_from_the_stored_vectors() -> None:
    parts = [Part(embedding(FACE, 1, 0), 1.0), Part(embedding(BODY, 1, 0), 1.0)]
    known = a_tracklet("a", embedding(FACE, 1, 0), embedding(BODY, 0.6, 0.8))
    faceless = a_tracklet("b", embedding(BODY, 1, 0))
    compared = similarities_to(parts, [{"a": 0.99}, {}], {"a": known, "b": faceless})
    assert compared.similarities[0].tolist() == pytest.approx([0.99, 0.6])
    assert np.isnan(compared.similarities[1, 0])
    assert compared.similarities[1, 1] == pytest.approx(1.0)


def test_equal_candidates_are_ordered_by_id() -> None:
    parts = [Part(embedding(BODY, 1, 0), 1.0)]
    tracklets = {name: a_tracklet(name, embedding(BODY, 1, 0)) for name in ("c", "a", "b")}
    assert in_order(parts, similarities_to(parts, [{}], tracklets), EVEN).tracklet_ids == ("a", "b", "c")


def test_beyond_the_clip_the_larger_cosine_still_leads() -> None:
    steep = Calibration({}, {BODY: Logistic(0.0, 100.0)})
    parts = [Part(embedding(BODY, 1, 0), 1.0)]
    tracklets = {"far": a_tracklet("far", embedding(BODY, 0.8, 0.6)), "near": a_tracklet("near", embedding(BODY, 1, 0))}
    assert in_order(parts, similarities_to(parts, [{}], tracklets), steep).tracklet_ids == ("near", "far")
