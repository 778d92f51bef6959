"""Training of the associative network: one curve per space, fitted to pairs of samples whose takes differ.

Few identities can be had, so the network is small (twelve numbers a space), held by a prior, and its figures are of people it did not see:
people are halved anew several times, fitted on one half and measured on the other. The shipped weights are then fitted on everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from models.association.network import KNOTS, WEIGHTS, Curve, Midpoints, save
from models.training.tracklets import Encoders, Random, Samples, gathered
from pipeline.calibration import DEFAULTS, LIKE_PICTURES
from pipeline.errors import BadInputError
from pipeline.types import TEXT

Float = NDArray[np.float64]

MOST_PAIRS = 30_000
HALVINGS = 10
WITNESSES = 100  # a person is worth so many independent observations against the prior
UNEVEN, POOR = (-0.4, 0.1), (-0.3, 0.3)  # bounds of these midpoints, from the one of two good samples
RIGHT, MOST_WRONG = (0.004, 0.3), 0.1  # bounds of the doubts
LEAST_WRONG = (0.0004, 0.03)  # one in so many couples of people as were seen, between these: rarer look-alikes cannot be ruled out
SPREAD = np.array([1.0, 0.15, 1.5, 1.5, 1.5, 1.5, *[1.0] * (len(KNOTS) - 1)])  # of the prior of each number, as ``_Fit`` orders them
BINS = 10
PRIORS = (0.0, 3.0)  # log-odds against a pair before it is compared: a fair question, and one among twenty


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """P pairs of one space: cosine, quality and other quality (P,), is_same (P,), weight (P,): right and wrong pairs sum to a half each."""

    cosine: Float
    quality: Float
    other_quality: Float
    is_same: NDArray[np.bool_]
    weight: Float


def pairs_of(samples: Samples, random: Random, most: int = MOST_PAIRS) -> Pairs:
    """Right pairs (of one person, no take in common) and as many wrong ones at most, every person and every two people worth the same.

    Raises BadInputError when there are no right or no wrong pairs.
    """
    first, second = np.triu_indices(len(samples), 1)
    is_same = samples.person[first] == samples.person[second]
    right = np.flatnonzero(is_same & ((samples.takes[first] & samples.takes[second]) == 0))
    wrong = np.flatnonzero(~is_same)
    if not len(right) or not len(wrong):
        raise BadInputError(f"{samples.modality} must show two people or more, and each in two takes; got {len(samples.people)} people")
    chosen = [random.choice(rows, min(len(rows), most // 2), replace=False) for rows in (right, wrong)]
    rows = np.concatenate(chosen)
    a, b = first[rows], second[rows]
    number = np.unique(samples.person, return_inverse=True)[1]
    owners = np.minimum(number[a], number[b]) * len(samples.people) + np.maximum(number[a], number[b])
    count = np.unique(owners, return_inverse=True, return_counts=True)
    weight = 1.0 / count[2][count[1]]
    is_right = np.arange(len(rows)) < len(chosen[0])
    weight[is_right] /= 2 * weight[is_right].sum()
    weight[~is_right] /= 2 * weight[~is_right].sum()
    cosine = np.einsum("pd,pd->p", samples.vectors[a], samples.vectors[b]).astype(np.float64)
    return Pairs(cosine, samples.quality[a], samples.quality[b], is_right, weight)


def fit(groups: Sequence[Samples], random: Random) -> Curve:
    """The curve of one space, from groups of samples: its shape from the first, its midpoints moved as suits all groups alike.

    People are told apart within a group alone: a crowd of one place and hour looks more alike than people of anywhere, and the few people
    of a clip cannot show how quality tells. Raises BadInputError as ``pairs_of``.
    """
    parts = [pairs_of(group, random, MOST_PAIRS // len(groups)) for group in groups]
    people = len(groups[0].people)
    task = _Fit(parts[0], groups[0].modality, WITNESSES * people, people * (people - 1) // 2)
    found = minimize(task.loss, task.centre, jac=True, method="L-BFGS-B", options={"maxiter": 300})
    width = groups[0].vectors.shape[1]
    curve = task.curve(found.x, width)
    return curve if len(groups) == 1 else _moved_for(curve, parts)


def _moved_for(curve: Curve, parts: Sequence[Pairs]) -> Curve:
    """The curve with its midpoints moved together to where the mean log loss of all groups is least."""

    def loss(by: float) -> float:
        moved = curve.moved(by)
        return sum(Goodness.of(moved.log_odds(part.cosine, part.quality, part.other_quality), part).log_loss for part in parts)

    return curve.moved(float(minimize_scalar(loss, bounds=(-0.3, 0.3), method="bounded").x))


def fit_all(samples: Sequence[Samples], random: Random) -> dict[str, Curve]:
    """The curves of all spaces; samples of one space are groups."""
    groups: dict[str, list[Samples]] = {}
    for each in samples:
        groups.setdefault(each.space, []).append(each)
    return {space: fit(own, random) for space, own in groups.items()}


class _Fit:
    """The mean log loss of a curve and its gradient.

    Numbers: log slope, the good midpoint, how far the uneven and the poor one lie off it, both doubts, steps of trust; all but the first
    two as unbounded numbers behind a sigmoid or a softmax.
    """

    def __init__(self, pairs: Pairs, modality: str, witnesses: int, couples: int) -> None:
        usual = LIKE_PICTURES if modality == TEXT else DEFAULTS[modality]
        self.centre = np.array([np.log(usual.slope), usual.midpoint, 0.0, 0.0, -2.0, -2.0, *[0.0] * (len(KNOTS) - 1)])
        self._pairs, self._modality, self._witnesses = pairs, modality, witnesses
        self._ramps = [_ramps(quality) for quality in (pairs.quality, pairs.other_quality)]  # two of (P, K - 1)
        self._wrong = (float(np.clip(1 / couples, *LEAST_WRONG)), MOST_WRONG)
        self._sign = np.where(pairs.is_same, 1.0, -1.0)

    def curve(self, numbers: Float, width: int) -> Curve:
        """The curve behind the numbers."""
        trust = np.concatenate([[0.0], np.cumsum(_softmax(numbers[6:]))])
        good = float(numbers[1])
        midpoints = Midpoints(good, good + _between(numbers[2], UNEVEN)[0], good + _between(numbers[3], POOR)[0])
        right, wrong = _between(numbers[4], RIGHT)[0], _between(numbers[5], self._wrong)[0]
        return Curve(self._modality, float(np.exp(numbers[0])), midpoints, right, wrong, trust / trust[-1], width)

    def loss(self, numbers: Float) -> tuple[float, Float]:
        """Loss with the prior, and its gradient."""
        pairs, sign = self._pairs, self._sign
        slope, good = float(np.exp(numbers[0])), float(numbers[1])
        (below, below_slope), (beside, beside_slope) = _between(numbers[2], UNEVEN), _between(numbers[3], POOR)
        uneven, poor = good + below, good + beside
        (e, e_slope), (d, d_slope) = _between(numbers[4], RIGHT), _between(numbers[5], self._wrong)
        steps = _softmax(numbers[6:])
        one, two = (ramps @ steps for ramps in self._ramps)
        both = one * two
        off = pairs.cosine - (good * both + uneven * (one + two - 2 * both) + poor * (1 - one) * (1 - two))
        plain = slope * both * off
        top, bottom = np.logaddexp(np.log1p(-e) + plain, np.log(e)), np.logaddexp(np.log1p(-d), np.log(d) + plain)
        value, by_odds = 0.0, np.zeros_like(plain)
        for against in PRIORS:
            share = 1 / (1 + np.exp(sign * against))  # of right or wrong pairs when the odds are so much against
            scale = 2 * pairs.weight * share / (len(PRIORS) * _entropy(against))
            signed = sign * (top - bottom - against)
            value += float(scale @ np.logaddexp(0, -signed))
            by_odds -= scale * sign / (1 + np.exp(np.clip(signed, -60, 60)))  # d loss / d log-odds
        by_plain = by_odds * (np.exp(np.log1p(-e) + plain - top) - np.exp(np.log(d) + plain - bottom))
        raised = np.exp(np.clip(plain, -60, 60))
        by_off = slope * by_plain * both
        by_one, by_two = (
            slope * by_plain * other * off - by_off * (good * other + uneven * (1 - 2 * other) - poor * (1 - other)) for other in (two, one)
        )
        by_steps = self._ramps[0].T @ by_one + self._ramps[1].T @ by_two  # (K - 1,)
        gradient = np.array(
            [
                by_plain @ plain,
                -float(by_off.sum()),  # all three midpoints move with the first, and their shares sum to 1
                -below_slope * (by_off @ (one + two - 2 * both)),
                -beside_slope * (by_off @ ((1 - one) * (1 - two))),
                e_slope * (by_odds @ ((1 - raised) * np.exp(-top))),
                d_slope * (by_odds @ ((1 - raised) * np.exp(-bottom))),
                *(steps * (by_steps - steps @ by_steps)),
            ]
        )
        away = (numbers - self.centre) / SPREAD
        return value + float(away @ away) / (2 * self._witnesses), gradient + away / SPREAD / self._witnesses


def _entropy(against: float) -> float:
    """Nats in the answer to a question with such odds against it, as a share of a fair coin's."""
    right = 1 / (1 + np.exp(against))
    return float(-(right * np.log(right) + (1 - right) * np.log(1 - right)) / np.log(2))


def _ramps(quality: Float) -> Float:
    """How far each quality (P,) has come in every stretch between knots, (P, K - 1) 0..1."""
    made: Float = np.clip((quality[:, None] - KNOTS[:-1]) / np.diff(KNOTS), 0, 1)
    return made


def _softmax(x: Float) -> Float:
    raised = np.exp(x - x.max())
    made: Float = raised / raised.sum()
    return made


def _between(x: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """A number between bounds, and its derivative."""
    share = 1 / (1 + np.exp(-x))
    return bounds[0] + (bounds[1] - bounds[0]) * share, (bounds[1] - bounds[0]) * share * (1 - share)


# ------------------------------------------------------------------------------------------------- figures


def halves(people: Sequence[str], random: Random) -> tuple[set[str], set[str]]:
    """People in two halves by chance, the first the larger."""
    drawn = random.permutation(sorted(people))
    middle = (len(drawn) + 1) // 2
    return set(drawn[:middle].tolist()), set(drawn[middle:].tolist())


@dataclass(frozen=True, slots=True)
class Goodness:
    """How good log-odds are on pairs: log_loss in nats (0.693: they say nothing), error: mean distance of the probability said from the
    part that was right (ECE), area: under the ROC curve, worst: part of wrong pairs given more than 0.9."""

    log_loss: float
    error: float
    area: float
    sure_and_wrong: float

    def rounded(self) -> dict[str, float]:
        """By name, to four digits."""
        return {name: round(value, 4) for name, value in asdict(self).items()}

    @classmethod
    def of(cls, log_odds: Float, pairs: Pairs) -> Goodness:
        said = 1 / (1 + np.exp(-log_odds))
        signed = np.where(pairs.is_same, log_odds, -log_odds)
        bins = np.minimum((said * BINS).astype(int), BINS - 1)
        mass, right, hoped = (np.bincount(bins, pairs.weight * each, BINS) for each in (1.0, pairs.is_same, said))
        order = np.argsort(log_odds, kind="stable")
        below = np.cumsum(np.where(pairs.is_same, 0.0, pairs.weight)[order]) * 2
        area = float((np.where(pairs.is_same, pairs.weight, 0.0)[order] * 2 * below).sum())
        wrong = float((pairs.weight * ~pairs.is_same * (said > 0.9)).sum() * 2)
        return cls(float(pairs.weight @ np.logaddexp(0, -signed)), float(np.abs(hoped - right).sum() / mass.sum()), area, wrong)


def held_out_figures(samples: Samples, random: Random, halvings: int = HALVINGS) -> dict[str, dict[str, float]]:
    """Means over halvings, on pairs of the people not fitted on: the network, the same without qualities, and with qualities shuffled."""
    rows: dict[str, list[Goodness]] = {"learned": [], "without quality": [], "quality shuffled": []}
    for _ in range(halvings):
        ours, theirs = (samples.of(half) for half in halves(samples.people, random))
        try:
            curve, flat, pairs = fit([ours], random), fit([without_quality(ours)], random), pairs_of(theirs, random)
        except BadInputError:
            continue
        ones = np.ones(len(pairs.cosine))
        mixed = [random.permutation(quality) for quality in (pairs.quality, pairs.other_quality)]
        rows["learned"].append(Goodness.of(curve.log_odds(pairs.cosine, pairs.quality, pairs.other_quality), pairs))
        rows["without quality"].append(Goodness.of(flat.log_odds(pairs.cosine, ones, ones), pairs))
        rows["quality shuffled"].append(Goodness.of(curve.log_odds(pairs.cosine, *mixed), pairs))
    return {key: Goodness(*np.mean([astuple(each) for each in found], axis=0).tolist()).rounded() for key, found in rows.items() if found}


def without_quality(samples: Samples) -> Samples:
    """The same samples, all said to be perfect: what a network that knows no quality is fitted on."""
    return Samples(samples.modality, samples.space, samples.vectors, np.ones(len(samples)), samples.person, samples.takes)


def train(
    data: Path, encoders: Encoders, out: Path, kept: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Fit the network on ``data`` (folders as ``gathered`` reads them), write association.npz to ``out``; figures of people held out.

    Raises NotFoundError, BadInputError, UnreadableMediaError.
    """
    groups = gathered(data, encoders, kept, say=say)
    found = [each for own in groups.values() for each in own if is_comparable(each)]
    curves = fit_all(found, np.random.default_rng(0))
    out.mkdir(parents=True, exist_ok=True)
    save(curves, out / WEIGHTS.name)
    held_out = {
        name: {each.space: held_out_figures(each, np.random.default_rng(1)) for each in own if not name.startswith("clip")}
        for name, own in groups.items()
    }
    return {
        "curves": described(curves),
        "held_out": {name: figures for name, figures in held_out.items() if figures},
        "other_clips": _on_other_clips(groups),
        "samples": {name: {"samples": len(own[0]), "people": len(own[0].people)} for name, own in groups.items()},
    }


def _on_other_clips(groups: Mapping[str, Sequence[Samples]]) -> dict[str, dict[str, Any]]:
    """How good a curve of body or text is on each clip that was left out of its fit, and that of crops alone."""
    made: dict[str, dict[str, Any]] = {}
    for name, own in groups.items():
        if not name.startswith("clip"):
            continue
        for each in own:
            random = np.random.default_rng(2)
            others = [other for key, many in groups.items() if key != name for other in many if other.space == each.space]
            crops = [other for other in groups["persons"] if other.space == each.space]
            pairs = pairs_of(each, random)
            ways = {"clip left out": others, "crops alone": crops}
            odds = {way: fit(some, random).log_odds(pairs.cosine, pairs.quality, pairs.other_quality) for way, some in ways.items()}
            made.setdefault(name, {})[each.space] = {way: Goodness.of(some, pairs).rounded() for way, some in odds.items()}
    return made


def is_comparable(samples: Samples) -> bool:
    """Whether there are right pairs and wrong ones."""
    return len(samples.people) > 1 and any(np.bitwise_and.reduce(samples.takes[samples.person == who]) == 0 for who in samples.people)


def described(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """The numbers of curves, for people."""
    return {
        space: {
            "slope": round(curve.slope, 2),
            "midpoints": [round(each, 3) for each in curve.midpoints],
            "doubts": [round(curve.doubt_right, 4), round(curve.doubt_wrong, 4)],
            "trust": {str(knot): round(float(trust), 2) for knot, trust in zip(KNOTS, curve.trust, strict=True)},
        }
        for space, curve in curves.items()
    }
