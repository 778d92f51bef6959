"""Cosines to odds, odds to one score: what lets a face, a body and a sentence be weighed against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.types import BODY, FACE, TEXT, VOICE

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Logistic:
    """Cosine -> log-odds of "the same": slope * (cosine - midpoint). midpoint: the cosine where both are equally likely; slope > 0."""

    midpoint: float
    slope: float

    def __post_init__(self) -> None:
        if not (self.slope > 0 and math.isfinite(self.slope) and math.isfinite(self.midpoint)):
            raise ValueError(f"Logistic must have a finite midpoint and a slope above 0, got {self.midpoint} and {self.slope}")


# Starting points where nothing was fitted: a face of another person lies around 0.1 and one's own above 0.5; a description is never
# as near as a picture. BODY and LIKE_PICTURES were fitted on 28 people of two public clips, one half of each track against the other
# halves of the same camera (area under the curve 0.99 and 0.98): people in one scene are alike, so between cameras they ask for much.
DEFAULTS: Mapping[str, Logistic] = {
    FACE: Logistic(0.45, 14.0),
    BODY: Logistic(0.63, 16.0),
    TEXT: Logistic(0.40, 8.0),
    VOICE: Logistic(0.45, 12.0),
}
LIKE_PICTURES = Logistic(0.63, 14.0)  # two pictures compared in a space of words: far nearer than a picture and its description
MAX_LOG_ODDS = 8.0  # one modality alone never claims more than 0.9997: a calibration is not trusted outside the range it was made on


@dataclass(frozen=True, slots=True)
class Calibration:
    """The curve of every embedding space; a space without its own takes its modality's.

    like_pictures: the curve of modality text where both sides are pictures. All curves are as if right and wrong matches were
    equally many: a score orders and compares, and a watch's threshold on it sets how many false alarms are borne.
    """

    by_space: Mapping[str, Logistic]
    by_modality: Mapping[str, Logistic]
    like_pictures: Logistic = LIKE_PICTURES

    @staticmethod
    def default(by_space: Mapping[str, Logistic] | None = None) -> Calibration:
        """The starting points, with fitted curves for some spaces where there are any."""
        return Calibration(dict(by_space or {}), DEFAULTS)

    def log_odds(self, modality: str, space: str, cosine: ArrayLike, is_picture: bool = False) -> Float:
        """Cosines of any shape -> log-odds of the same shape; nan (not compared) stays nan. is_picture: the probe is one, not words."""
        is_like = is_picture and modality == TEXT
        curve = self.like_pictures if is_like else self.by_space.get(space, self.by_modality[modality])
        odds: Float = np.clip(curve.slope * (np.asarray(cosine, np.float64) - curve.midpoint), -MAX_LOG_ODDS, MAX_LOG_ODDS)
        return odds


def fuse(log_odds: Float, weights: Float, is_negative: NDArray[np.bool_]) -> Float:
    """The weighted mean log-odds of every candidate.

    log_odds: (C, P) of C candidates against P probe parts, nan where the candidate has no such vector; weights: (P,) above 0;
    is_negative: (P,). Gives (C,).

    A missing part counts as no evidence (log-odds 0), so that a person without a visible face ranks between one whose face
    fits and one whose face does not. A negative part takes away -log(1 - p), p its probability: likeness to it costs,
    unlikeness earns nothing.

    >>> fuse(np.array([[2.0, np.nan], [2.0, 2.0]]), np.ones(2), np.array([False, False])).tolist()
    [1.0, 2.0]
    """
    total = float(weights[~is_negative].sum())
    mean: Float = (_evidence(log_odds, is_negative) @ weights) / (total if total > 0 else float(weights.sum()))
    return mean


def fuse_by_owner(log_odds: Float, weights: Float, is_negative: NDArray[np.bool_], owner: NDArray[np.intp], owners: int) -> Float:
    """``fuse`` of one candidate for many questions in one go: log_odds, weights, is_negative, owner are (P,); gives (owners,)."""
    gained = np.bincount(owner, _evidence(log_odds, is_negative) * weights, owners)  # (W,)
    total = np.bincount(owner, np.where(is_negative, 0.0, weights), owners)  # (W,)
    mean: Float = gained / np.where(total > 0, total, 1.0)
    return mean


def _evidence(log_odds: Float, is_negative: NDArray[np.bool_]) -> Float:
    """What each part adds before weighting, the shape of ``log_odds``: 0 where nothing was compared."""
    values = np.where(np.isnan(log_odds), 0.0, log_odds)
    cost = np.where(np.isnan(log_odds), 0.0, -np.logaddexp(0.0, values))
    return np.where(is_negative, cost, values)


def score(log_odds: float) -> float:
    """Log-odds -> 0..1."""
    return 1.0 / (1.0 + math.exp(-log_odds)) if log_odds >= 0 else math.exp(log_odds) / (1.0 + math.exp(log_odds))


def log_odds_of(probability: float) -> float:
    """0..1 -> log-odds, at most ``MAX_LOG_ODDS`` either way."""
    bounded = min(max(probability, 1e-9), 1.0 - 1e-9)
    return min(max(math.log(bounded / (1.0 - bounded)), -MAX_LOG_ODDS), MAX_LOG_ODDS)
