"""How good a long-term key (a face, a voice) is when the person asked for may not be in the gallery at all.

Pairs: ``equal_error_rate``, ``area_under_curve``, ``best_accuracy``. Searches: ``searches`` gives what an open-set search is judged by,
``fnir_at_fpir`` judges it (ISO/IEC 19795-1: FNIR and FPIR of identification).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


def _known(values: ArrayLike, name: str) -> Float64:
    known = np.asarray(values, np.float64)
    if known.ndim != 1 or not len(known) or np.isnan(known).any():
        raise ValueError(f"{name} must be (N,) with N > 0 and no nan, got {known.shape}")
    return known


def equal_error_rate(genuine: ArrayLike, impostor: ArrayLike) -> float:
    """The rate, 0..1, at which as many pairs of two people pass as pairs of one person are turned away.

    genuine: (N,) similarities of pairs of one person, impostor: (M,) of two. A pair passes when its similarity is at or above the
    threshold; between two thresholds the rates are taken as straight lines. Raises ValueError for an empty side or nan.

    >>> equal_error_rate([0.9, 0.8, 0.7, 0.4], [0.5, 0.3, 0.2, 0.1])
    0.25
    >>> equal_error_rate([0.9, 0.8], [0.2, 0.1])
    0.0
    """
    own, other = np.sort(_known(genuine, "genuine")), np.sort(_known(impostor, "impostor"))
    thresholds = np.concatenate([[-np.inf], np.unique(np.concatenate([own, other])), [np.inf]])  # (T,)
    rejected = np.searchsorted(own, thresholds, "left") / len(own)  # (T,), rises
    accepted = 1 - np.searchsorted(other, thresholds, "left") / len(other)  # (T,), falls
    after = int(np.argmax(rejected >= accepted))
    gaps = accepted[after - 1 : after + 1] - rejected[after - 1 : after + 1]
    share = gaps[0] / (gaps[0] - gaps[1])
    return float(rejected[after - 1] + share * (rejected[after] - rejected[after - 1]))


def area_under_curve(genuine: ArrayLike, impostor: ArrayLike) -> float:
    """How often a pair of one person is nearer than a pair of two, 0..1; a tie counts half. Shapes as in ``equal_error_rate``.

    >>> area_under_curve([0.9, 0.4], [0.5, 0.1])
    0.75
    """
    own, other = _known(genuine, "genuine"), np.sort(_known(impostor, "impostor"))
    below = np.searchsorted(other, own, "left") + np.searchsorted(other, own, "right")
    return float(below.mean() / (2 * len(other)))


def best_accuracy(genuine: ArrayLike, impostor: ArrayLike) -> tuple[float, float]:
    """The largest part of all pairs that one threshold puts on the right side, and that threshold (the middle of its gap).

    Chosen on the pairs it is measured on: a bound, not a forecast. Shapes as in ``equal_error_rate``.

    >>> best_accuracy([0.9, 0.8, 0.4], [0.5, 0.2])
    (0.8, 0.65)
    """
    own, other = np.sort(_known(genuine, "genuine")), np.sort(_known(impostor, "impostor"))
    values = np.unique(np.concatenate([own, other]))
    cuts = np.concatenate([[values[0] - 1.0], (values[:-1] + values[1:]) / 2, [values[-1] + 1.0]])
    right = len(own) - np.searchsorted(own, cuts, "left") + np.searchsorted(other, cuts, "left")
    best = np.flatnonzero(right == right.max())
    chosen = float(cuts[best[-1]])
    return float(right.max() / (len(own) + len(other))), round(chosen, 12)


@dataclass(frozen=True, slots=True, eq=False)
class Searches:
    """Q searches of an open set, float64 (Q,) each.

    mated: how near the right person came, -inf where somebody else came first, nan where the right person is not in the gallery;
    strangers: how near the nearest wrong person came, -inf in an empty gallery: what the same search gives of a person who is unknown.
    """

    mated: Float64
    strangers: Float64


def searches(similarity: ArrayLike, is_match: ArrayLike, is_ignored: ArrayLike | None = None) -> Searches:
    """What Q probes find in a gallery of G.

    similarity, is_match, is_ignored: (Q, G); ignored ones (the probe itself) are taken out. Every probe is asked twice: with its own
    person in the gallery (mated) and with that person taken out, as if nobody knew them (strangers). Raises ValueError for other shapes.

    >>> found = searches([[0.9, 0.3], [0.6, 0.5]], [[True, False], [False, True]])
    >>> found.mated.tolist(), found.strangers.tolist()
    ([0.9, -inf], [0.3, 0.6])
    """
    scores, matches = np.asarray(similarity, np.float64), np.asarray(is_match, bool)
    ignored = np.zeros(matches.shape, bool) if is_ignored is None else np.asarray(is_ignored, bool)
    if scores.ndim != 2 or not scores.shape == matches.shape == ignored.shape:
        raise ValueError(f"similarity, is_match and is_ignored must share (Q, G), got {scores.shape}, {matches.shape}, {ignored.shape}")
    own = np.where(matches & ~ignored, scores, -np.inf).max(axis=1, initial=-np.inf)  # (Q,)
    other = np.where(matches | ignored, -np.inf, scores).max(axis=1, initial=-np.inf)  # (Q,)
    mated = np.where(own > other, own, -np.inf)
    mated[~(matches & ~ignored).any(axis=1)] = np.nan
    return Searches(mated, other)


def threshold_at_fpir(strangers: ArrayLike, fpir: float = 0.01) -> float:
    """The lowest similarity that at most ``fpir`` of the searches for unknown people go beyond.

    strangers: (M,), as in Searches. With fewer than 1 / fpir searches it is the highest similarity seen: none may go beyond.

    >>> threshold_at_fpir([0.1, 0.2, 0.3, 0.4], fpir=0.25)
    0.3
    """
    if not 0.0 <= fpir < 1.0:
        raise ValueError(f"fpir must be at least 0 and below 1, got {fpir}")
    falling = -np.sort(-_known(strangers, "strangers"))
    return float(falling[int(fpir * len(falling) + 1e-9)])


def fnir_at_fpir(mated: ArrayLike, strangers: ArrayLike, fpir: float = 0.01) -> float:
    """FNIR, 0..1: the part of searches for people who are in the gallery that miss them (not first, or not beyond the threshold at
    which at most ``fpir`` of the searches for unknown people answer with anybody).

    mated: (N,) and strangers: (M,), as in Searches; nan of ``mated`` (not in the gallery) are left out. Raises ValueError when none is
    left.

    >>> fnir_at_fpir([0.9, 0.35, float("-inf"), 0.5], [0.1, 0.2, 0.3, 0.4], fpir=0.0)
    0.5
    """
    own = np.asarray(mated, np.float64)
    own = _known(own[~np.isnan(own)], "mated")
    return float((own <= threshold_at_fpir(strangers, fpir)).mean())


def people_drawn(person: ArrayLike, resamples: int, seed: int = 0) -> Iterator[NDArray[np.intp]]:
    """Rows of ``person`` (N,) of as many people drawn anew, each with all of its rows, ``resamples`` times: for bootstrap intervals.

    >>> [sorted(set(rows.tolist())) for rows in people_drawn(["anna", "anna"], 1)]
    [[0, 1]]
    """
    people, owner = np.unique(np.asarray(person), return_inverse=True)
    rows = [np.flatnonzero(owner == number) for number in range(len(people))]
    random = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.concatenate([rows[number] for number in random.integers(len(people), size=len(people))])
