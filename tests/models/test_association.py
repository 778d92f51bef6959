"""The associative network: what is not known costs nothing, good samples count more than poor ones, and nothing is ever certain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.association.network import KNOTS, WEIGHTS, AssociativeNetwork, Curve, Midpoints, associative_network, doubted, faded, load, save
from models.training.association import Goodness, Pairs, _Fit, described, fit, fit_all, halves, held_out_figures, pairs_of
from models.training.tracklets import Samples
from pipeline.calibration import MAX_LOG_ODDS, Calibration
from pipeline.errors import BadInputError, SettingsError
from pipeline.evidence import PlainAssociator, compare
from pipeline.types import BODY, FACE, VOICE, Embedding

DAY_S = 86_400.0
PLAIN = PlainAssociator(Calibration.default())


def curve(modality: str = FACE, **changes: object) -> Curve:
    usual = Curve(modality, 20.0, Midpoints(0.4, 0.35, 0.3), 0.02, 0.002, np.sqrt(KNOTS), 16)
    return replace(usual, **changes)  # type: ignore[arg-type]


def network() -> AssociativeNetwork:
    return AssociativeNetwork({"face@1": curve(), "body@1": curve(BODY), "voice@1": curve(VOICE)}, PLAIN)


def embedding(modality: str, angle: float = 0.0, quality: float = 0.8) -> Embedding:
    """A vector whose cosine with that of angle 0 is cos(angle)."""
    vector = np.zeros(16, np.float32)
    vector[:2] = np.cos(angle), np.sin(angle)
    return Embedding(modality, f"{modality}@1", vector, quality)


def samples(people: int = 12, each: int = 8, seed: int = 0) -> Samples:
    """People whose vectors are near their own and whose noise grows as quality falls."""
    random = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), each)
    quality = random.uniform(0.05, 1.0, len(person))
    centre = random.normal(size=(people, 32))
    raw = centre[person] + random.normal(size=(len(person), 32)) * (2.2 - 2 * quality)[:, None]
    vectors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    return Samples(FACE, "face@1", vectors, quality, np.array([f"p{n}" for n in person]), np.int64(1) << np.tile(np.arange(each), people))


def test_log_odds_rise_with_the_cosine_and_stay_between_the_doubts() -> None:
    odds = network().log_odds(FACE, "face@1", np.linspace(-1, 1, 50), 0.7, 0.5)
    assert (np.diff(odds) > 0).all()
    assert odds.min() > np.log(0.02)
    assert odds.max() < -np.log(0.002)
    assert np.abs(odds).max() <= MAX_LOG_ODDS


@pytest.mark.parametrize(("quality", "other"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_a_sample_that_cannot_be_trusted_says_nothing(quality: float, other: float) -> None:
    np.testing.assert_allclose(network().log_odds(FACE, "face@1", [-1.0, 0.0, 0.9], quality, other), 0.0, atol=1e-12)


def test_what_was_not_compared_says_nothing() -> None:
    odds = network().log_odds(BODY, "body@1", [np.nan, 0.9], 0.8, 0.8, 60.0)
    assert odds[0] == 0.0
    assert odds[1] > 0.0


def test_the_same_likeness_says_more_between_good_samples() -> None:
    learned = network()
    good, poor = (float(learned.log_odds(FACE, "face@1", 0.8, quality, quality)) for quality in (0.9, 0.1))
    assert good > poor > 0


def test_arguments_broadcast() -> None:
    cosine = np.random.default_rng(0).uniform(-1, 1, (3, 4))
    odds = network().log_odds(BODY, "body@1", cosine, np.full((3, 1), 0.5), np.full((1, 4), 0.6), np.zeros((3, 4)))
    assert odds.shape == (3, 4)


def test_clothes_tell_less_by_the_hour_and_faces_do_not() -> None:
    learned = network()
    body = [float(learned.log_odds(BODY, "body@1", 0.9, 0.8, 0.8, gap)) for gap in (0.0, 4 * 3600.0, DAY_S, 30 * DAY_S)]
    assert body == sorted(body, reverse=True)
    assert 0 <= body[-1] < 1e-6
    face = [float(learned.log_odds(FACE, "face@1", 0.9, 0.8, 0.8, gap)) for gap in (0.0, 30 * DAY_S)]
    assert face[0] == face[1]


def test_other_clothes_after_a_day_say_nothing_against_it() -> None:
    learned = network()
    now, later = (float(learned.log_odds(BODY, "body@1", -0.2, 0.8, 0.8, gap)) for gap in (0.0, DAY_S))
    assert now < -2
    assert -0.1 < later < 0


def test_fading_at_once_and_never_are_the_ends() -> None:
    odds = np.array([-3.0, 0.0, 3.0])
    np.testing.assert_allclose(faded(odds, 0.0, 3600.0), odds)
    np.testing.assert_allclose(faded(odds, 1e9, 3600.0), 0.0, atol=1e-12)


def test_doubt_leaves_nothing_at_nothing() -> None:
    assert doubted(np.zeros(1), 0.1, 0.01)[0] == pytest.approx(0.0)


def test_a_space_that_was_not_learnt_is_left_to_the_plain_curves() -> None:
    learned, arguments = network(), (FACE, "another@9", [0.2, 0.9], 0.5, 0.5)
    np.testing.assert_array_equal(learned.log_odds(*arguments), PLAIN.log_odds(*arguments))


def test_a_space_of_another_modality_is_not_taken_for_it() -> None:
    learned, arguments = network(), (VOICE, "face@1", 0.9, 0.5, 0.5)
    np.testing.assert_array_equal(learned.log_odds(*arguments), PLAIN.log_odds(*arguments))


def test_a_face_adds_to_a_body_and_a_missing_one_costs_nothing() -> None:
    learned = network()
    body = [embedding(BODY), embedding(BODY, 0.5)]
    alone = compare(learned, [body[0]], [body[1]]).total
    assert compare(learned, [body[0], embedding(FACE)], [body[1]]).total == alone
    assert compare(learned, [body[0], embedding(FACE)], [body[1], embedding(FACE, 0.3)]).total > alone


def test_weights_follow_the_quality_of_the_sample() -> None:
    weights = network().weights([embedding(FACE, quality=0.9), embedding(BODY, quality=0.4), embedding(VOICE, quality=0.0)])
    assert weights[FACE] > weights[BODY] > weights[VOICE] == 0.0
    assert sum(weights.values()) == pytest.approx(1.0)
    assert network().weights([]) == {}


def test_the_one_representation_leaves_room_for_what_is_missing() -> None:
    learned = network()
    whole, part = learned.represent([embedding(FACE), embedding(BODY)]), learned.represent([embedding(FACE)])
    assert whole.shape == part.shape == (48,)
    assert np.linalg.norm(whole) == pytest.approx(1.0, abs=1e-6)
    assert 0 < float(whole @ part) < 1
    assert not learned.represent([Embedding(FACE, "another@9", np.ones(4, np.float32))]).any()


@pytest.mark.parametrize("changes", [{"slope": -1.0}, {"doubt_wrong": 0.0}, {"trust": np.linspace(1, 0, len(KNOTS))}, {"slope": np.nan}])
def test_a_curve_that_could_not_be_learnt_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        curve(**changes)


def test_weights_come_back_as_they_were_written(tmp_path: Path) -> None:
    curves = dict(network().curves)
    save(curves, tmp_path / "a.npz")
    read = load(tmp_path / "a.npz")
    assert described(read) == described(curves)
    assert [each.width for each in read.values()] == [16, 16, 16]


def test_broken_weights_are_refused_by_name(tmp_path: Path) -> None:
    whole = WEIGHTS.read_bytes()
    spoilt = whole[:300] + bytes(each ^ 255 for each in whole[300:340]) + whole[340:]
    for content in (b"no weights", b"", whole[:-100], spoilt):
        (tmp_path / "association.npz").write_bytes(content)
        with pytest.raises(SettingsError, match=r"association\.npz"):
            associative_network(PLAIN, path=tmp_path / "association.npz")
    with (tmp_path / "association.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(SettingsError, match=r"association\.npz"):
        associative_network(PLAIN, path=tmp_path / "association.npz")


# ------------------------------------------------------------------------------------------------- training


def test_pairs_share_no_take_and_weigh_a_half_each_way() -> None:
    own = samples(people=3, each=4)
    same_take = replace_takes(own, np.ones(len(own), np.int64))
    with pytest.raises(BadInputError, match="two takes"):
        pairs_of(same_take, np.random.default_rng(0))
    pairs = pairs_of(own, np.random.default_rng(0))
    assert pairs.is_same.sum() == 3 * 6
    assert pairs.weight[pairs.is_same].sum() == pytest.approx(0.5)
    assert pairs.weight.sum() == pytest.approx(1.0)


def replace_takes(own: Samples, takes: np.ndarray) -> Samples:
    return Samples(own.modality, own.space, own.vectors, own.quality, own.person, takes)


def test_the_gradient_is_that_of_the_loss() -> None:
    random = np.random.default_rng(0)
    is_same = random.random(300) < 0.5
    cosine = np.where(is_same, 0.6, 0.1) + random.normal(0, 0.2, 300)
    task = _Fit(Pairs(cosine, random.random(300), random.random(300), is_same, np.full(300, 1 / 300)), FACE, 100, 50)
    place = task.centre + random.normal(0, 0.3, len(task.centre))
    _, gradient = task.loss(place)
    for number in range(len(place)):
        step = np.zeros(len(place))
        step[number] = 1e-6
        numeric = (task.loss(place + step)[0] - task.loss(place - step)[0]) / 2e-6
        assert gradient[number] == pytest.approx(numeric, abs=1e-6)


def test_training_learns_that_poor_samples_tell_less() -> None:
    learned = fit([samples()], np.random.default_rng(0))
    good, poor = (float(learned.log_odds(0.8, quality, quality)) for quality in (0.9, 0.1))
    assert good > poor
    figures = held_out_figures(samples(people=20), np.random.default_rng(0), halvings=3)
    assert figures["learned"]["log_loss"] < figures["without quality"]["log_loss"]
    assert figures["learned"]["log_loss"] < figures["quality shuffled"]["log_loss"]
    assert figures["learned"]["area"] > 0.8


def test_few_people_never_make_it_nearly_certain() -> None:
    few, many = (fit([samples(people=people, each=6)], np.random.default_rng(0)) for people in (8, 40))
    assert few.doubt_wrong >= 0.03
    assert few.doubt_wrong > many.doubt_wrong


def test_samples_of_one_space_are_fitted_together() -> None:
    curves = fit_all([samples(seed=0), samples(seed=1)], np.random.default_rng(0))
    assert list(curves) == ["face@1"]


def test_halves_share_nobody() -> None:
    first, second = halves([f"p{n}" for n in range(9)], np.random.default_rng(0))
    assert len(first) == 5
    assert len(second) == 4
    assert not first & second


def test_goodness_knows_the_perfect_and_the_silent() -> None:
    pairs = Pairs(np.array([0.9, 0.1]), np.ones(2), np.ones(2), np.array([True, False]), np.full(2, 0.5))
    perfect, silent = Goodness.of(np.array([8.0, -8.0]), pairs), Goodness.of(np.zeros(2), pairs)
    assert perfect.area == 1.0
    assert perfect.error < 0.001
    assert silent.log_loss == pytest.approx(np.log(2))


# ------------------------------------------------------------------------------------------------- the weights that ship


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no association.npz here")
def test_the_shipped_network_behaves_in_every_space() -> None:
    learned = associative_network(PLAIN)
    assert {curve.modality for curve in learned.curves.values()} >= {FACE, BODY, VOICE}
    cosines = np.linspace(-1, 1, 81)
    for space, own in learned.curves.items():
        for quality in (0.0, 0.1, 0.4, 1.0):
            odds = learned.log_odds(own.modality, space, cosines, quality, 0.6)
            assert (np.diff(odds) > -1e-9).all()
            assert np.abs(odds).max() <= MAX_LOG_ODDS
        assert learned.log_odds(own.modality, space, 0.95, 0.8, 0.8) > 1.0, f"two good samples that are alike in {space}"
        assert learned.log_odds(own.modality, space, 0.0, 0.8, 0.8) < -0.5, f"two good samples that are not alike in {space}"
