"""What two samples say together."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.calibration import Calibration, log_odds_of, score
from pipeline.evidence import HOUR_S, PlainAssociator, are_two_at_once, compare, gap_between_s, is_out_of_reach, together
from pipeline.types import BODY, FACE, TEXT, VOICE
from tests.fakes import embedding

PLAIN = PlainAssociator(Calibration.default())


def test_clothes_never_outvote_a_face() -> None:
    assert float(together({FACE: -4.0, BODY: 6.0})) == -4.0
    assert float(together({FACE: -3.0, VOICE: 2.5, BODY: 6.0})) == pytest.approx(-0.5 + 6.0 * (1 - 0.5 / 1.5))
    assert float(together({FACE: 2.0, BODY: 3.0})) == 5.0


def test_clothes_speak_against_somebody_in_any_case() -> None:
    assert float(together({FACE: -4.0, BODY: -2.0})) == -6.0
    assert float(together({FACE: 4.0, BODY: -2.0})) == 2.0


def test_a_face_that_says_nothing_leaves_all_to_the_clothes() -> None:
    assert float(together({FACE: 0.0, BODY: 3.0})) == float(together({BODY: 3.0})) == 3.0


def test_many_pairs_are_weighed_at_once() -> None:
    odds = {FACE: np.array([-4.0, 0.0, 1.0]), BODY: np.array([5.0, 5.0, -1.0])}
    assert together(odds).tolist() == [-4.0, 5.0, 0.0]
    assert together({}).shape == ()


def test_only_what_both_have_in_one_space_is_compared_and_the_same_pixels_are_one_witness() -> None:
    ours = (embedding(FACE, 1, 0), embedding(BODY, 1, 0), embedding(TEXT, 1, 0))
    theirs = (embedding(FACE, 1, 0, space="other@1"), embedding(BODY, 1, 0), embedding(TEXT, 1, 0), embedding(VOICE, 1, 0))
    assert set(compare(PLAIN, ours, theirs).similarities) == {BODY}
    assert compare(PLAIN, ours, ()).probability == 0.5


def test_clothes_fade_with_the_hours_and_a_voice_does_not() -> None:
    now, later = (compare(PLAIN, (embedding(BODY, 1, 0),), (embedding(BODY, 1, 0),), hours * HOUR_S).total for hours in (0, 4))
    assert later == pytest.approx(now / 2)
    voice = (embedding(VOICE, 1, 0),)
    assert compare(PLAIN, voice, voice, 0).total == compare(PLAIN, voice, voice, 1000 * HOUR_S).total


def test_a_poor_sample_says_little() -> None:
    good, poor = embedding(FACE, 1, 0, quality=0.9), embedding(FACE, 1, 0, quality=0.1)
    assert compare(PLAIN, (good,), (poor,)).total == pytest.approx(compare(PLAIN, (good,), (good,)).total / 9)


def test_nobody_walks_faster_than_people_do() -> None:
    assert is_out_of_reach((0, 0), (1000, 0), 60, 8.0)
    assert not is_out_of_reach((0, 0), (1000, 0), 600, 8.0)
    assert not is_out_of_reach((0, 0), (40, 0), 0, 8.0), "both cameras may see one place"
    assert not is_out_of_reach(None, (1000, 0), 0, 8.0), "nobody said where it hangs"
    assert not is_out_of_reach((0, 0), (1000, 0), 0, 0.0), "no top speed is set"


def test_two_of_one_camera_at_once_are_two_unless_one_track_hands_over_to_the_next() -> None:
    second = 1_000_000_000
    assert are_two_at_once((0, 10 * second), (5 * second, 20 * second))
    assert are_two_at_once((0, 10 * second), (5 * second, 5 * second + second // 10)), "one inside the other, however short"
    assert not are_two_at_once((0, 10 * second), (10 * second - second // 4, 20 * second))
    assert not are_two_at_once((0, second), (2 * second, 3 * second))


def test_a_gap_is_the_time_between_two_stretches() -> None:
    second = 1_000_000_000
    assert gap_between_s((0, 2 * second), (5 * second, 6 * second)) == 3.0
    assert gap_between_s((5 * second, 6 * second), (0, 2 * second)) == 3.0
    assert gap_between_s((0, 2 * second), (second, 6 * second)) == 0.0


def test_a_probability_and_its_log_odds_are_each_others_inverse() -> None:
    assert [score(log_odds_of(p)) for p in (0.02, 0.5, 0.97)] == pytest.approx([0.02, 0.5, 0.97])
    assert log_odds_of(1.0) == -log_odds_of(0.0) == 8.0
