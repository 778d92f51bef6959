"""Cast search: portraits of a cast against the tracklets of a film. mAP and R@k as CSM's makers count them.

Huang et al., Person Search in Videos with One Portrait Through Visual and Temporal Links, ECCV 2018. mAP asks for each cast member's
tracklets; R@k asks for each tracklet of a cast member whether the right one is among its k nearest portraits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.evaluate.retrieval import average_precision

Float = NDArray[np.float64]

OTHERS = "others"
RANKS = (1, 3, 5)


@dataclass(frozen=True, slots=True)
class CastFigures:
    """mean_average_precision: over cast members who appear; as_published: by the makers' own program, which counts "others" as a cast
    member who is never found; recall: by k; cast: how many there are, tracklets: of the cast."""

    mean_average_precision: float
    as_published: float
    recall: Mapping[int, float]
    cast: int
    tracklets: int
    precision: Mapping[str, float] = field(default_factory=dict)


def cast_figures(similarity: ArrayLike, cast: Sequence[str], labels: Sequence[str]) -> CastFigures:
    """The figures of one gallery. similarity: (C, T), bigger is nearer, equal ones keep their order; labels: (T,), of the cast or OTHERS.

    Tracklets of others stay in the gallery and ask nothing. Raises ValueError for other shapes.

    >>> figures = cast_figures([[0.9, 0.1, 0.8], [0.2, 0.7, 0.1]], ["anna", "bert"], ["anna", "bert", "others"])
    >>> figures.mean_average_precision, round(figures.as_published, 3), figures.recall[1]
    (1.0, 0.667, 1.0)
    """
    scores, names = np.asarray(similarity, np.float64), np.asarray(labels)
    if scores.shape != (len(cast), len(labels)):
        raise ValueError(f"similarity must be (cast, tracklets) {(len(cast), len(labels))}, got {scores.shape}")
    order = np.argsort(-scores, axis=1, kind="stable")  # (C, T)
    precision = {name: average_precision(names[order[row]] == name) for row, name in enumerate(cast) if (names == name).any()}
    found = float(sum(precision.values()))
    asked = np.flatnonzero(np.isin(names, list(cast)))  # tracklets that show one of the cast
    nearest = np.argsort(-scores[:, asked], axis=0, kind="stable")  # (C, A)
    is_right = np.asarray(cast)[nearest] == names[asked][None] if len(asked) else np.zeros((len(cast), 0), bool)
    recall = {k: float(is_right[:k].any(axis=0).mean()) if len(asked) else 0.0 for k in RANKS}
    return CastFigures(
        found / len(precision) if precision else 0.0,
        found / len(set(labels)) if labels else 0.0,
        recall,
        len(cast),
        len(asked),
        precision,
    )


def over_films(figures: Sequence[CastFigures]) -> CastFigures:
    """The figures within films as published: mAP is weighed by the size of each cast, R@k is the plain mean over films.

    >>> one, two = (CastFigures(m, m, {1: m, 3: 1.0, 5: 1.0}, cast, 10) for m, cast in ((1.0, 3), (0.0, 1)))
    >>> both = over_films([one, two])
    >>> both.mean_average_precision, both.recall[1], both.cast
    (0.75, 0.5, 4)
    """
    weights = np.array([each.cast for each in figures], np.float64)
    total = float(weights.sum())
    if not figures or total == 0:
        return CastFigures(0.0, 0.0, dict.fromkeys(RANKS, 0.0), 0, 0)
    means = [
        float(weights @ np.array([getattr(each, name) for each in figures]) / total) for name in ("mean_average_precision", "as_published")
    ]
    recall = {k: float(np.mean([each.recall[k] for each in figures])) for k in RANKS}
    return CastFigures(means[0], means[1], recall, int(total), sum(each.tracklets for each in figures))


def spread(to_cast: ArrayLike, between: ArrayLike, steps: int = 5, frozen: float = 0.5, temperature: float = 0.03) -> Float:
    """Labels spread over tracklets by competitive consensus (PPCC, section 4): (C, T), bigger is surer.

    to_cast: affinities (C, T); between: (T, T). Each step a tracklet hears of every cast member from its one most convincing neighbour,
    portraits among them, and the cast members compete (softmax); the surest ``frozen`` part is then fixed and tells others, more at every
    step, all at the last. Raises ValueError for other shapes.
    """
    portraits, links = np.asarray(to_cast, np.float64), np.asarray(between, np.float64)
    cast, tracklets = portraits.shape
    if links.shape != (tracklets, tracklets):
        raise ValueError(f"between must be (tracklets, tracklets) {(tracklets, tracklets)}, got {links.shape}")
    told = np.zeros((tracklets, cast))  # what fixed tracklets say
    now, fixed = told.copy(), np.zeros(tracklets, bool)
    for step in range(steps):
        heard = portraits.T.copy()  # (T, C): a portrait speaks for its own
        for member in range(cast):
            speakers = np.flatnonzero(told[:, member] > 0.001)
            if len(speakers):
                heard[:, member] = np.maximum(heard[:, member], (links[:, speakers] * told[speakers, member]).max(axis=1))
        raised = np.exp((heard - heard.max(axis=1, keepdims=True)) / temperature)
        now = np.where(fixed[:, None], told, raised / raised.sum(axis=1, keepdims=True))
        share = frozen + (1 - frozen) * (step / max(steps - 1, 1))
        surest = np.argsort(-now.max(axis=1), kind="stable")[: round(tracklets * share)]
        fixed[surest] = True
        told = np.where(fixed[:, None], now, 0.0)
    made: Float = (portraits.T + now).T
    return made


def walked(to_cast: ArrayLike, between: ArrayLike, steps: int = 3, caution: float = 1.5) -> Float:
    """The most probable path from each portrait to each tracklet over others: log-probability (C, T).

    to_cast, between: log-odds (C, T), (T, T). As the product walks (search/progressive.py), every step after the first costs ``caution``,
    and the probabilities of the steps multiply; here over all tracklets at once, without a budget.

    >>> walked([[4.0, -4.0]], [[0.0, 6.0], [6.0, 0.0]]).round(2).tolist()  # the second has no face, but wears what the first wears
    [[-0.02, -0.03]]
    """
    first = -np.logaddexp(0, -np.asarray(to_cast, np.float64))  # (C, T)
    links = -np.logaddexp(0, -(np.asarray(between, np.float64) - caution))  # (T, T)
    best = first
    for _ in range(steps):
        onward = np.stack([(row[:, None] + links).max(axis=0) for row in best])
        if (onward <= best).all():
            break
        best = np.maximum(best, onward)
    return best
