"""How good a ranking is: CMC and rank-k, mean average precision, their intervals over people, and the same for boxes in frames.

Pure functions of arrays. Crops: ``ranked_hits``, then ``outcomes``. Boxes in frames (R@n IoU>m): ``touching``, ``ranked_box_hits``, then
``outcomes``; ``best_in_frames`` looks at each frame alone. ``intervals`` takes what any of them gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.evaluate.tracking import IdentifiedBoxes, box_iou

Booleans = NDArray[np.bool_]
Integers = NDArray[np.int64]
Float64 = NDArray[np.float64]

RESAMPLES = 1000
INTERVAL_PERCENT = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class RankingFigures:
    """cmc: the part of queries with a hit among the first k, for k = 1, 2, ...; mean_average_precision 0..1; queries that had a match."""

    cmc: tuple[float, ...]
    mean_average_precision: float
    queries: int

    def rank(self, k: int) -> float:
        """Rank-k, 0..1; beyond the gallery's size it is the last value."""
        return self.cmc[min(k, len(self.cmc)) - 1] if self.cmc else 0.0


def ranked_hits(similarity: ArrayLike, is_match: ArrayLike, is_ignored: ArrayLike | None = None) -> list[Booleans]:
    """For each query (row) whether each gallery item is a match, best first; ignored items (same camera, say) are taken out.

    similarity, is_match, is_ignored: (Q, G). Equal similarities keep the gallery's order. Raises ValueError for other shapes.
    """
    scores, matches = np.asarray(similarity, np.float64), np.asarray(is_match, bool)
    ignored = np.zeros(matches.shape, bool) if is_ignored is None else np.asarray(is_ignored, bool)
    if scores.ndim != 2 or not scores.shape == matches.shape == ignored.shape:
        raise ValueError(f"similarity, is_match and is_ignored must share (Q, G), got {scores.shape}, {matches.shape}, {ignored.shape}")
    order = np.argsort(-scores, axis=1, kind="stable")  # (Q, G)
    return [matches[row, columns[~ignored[row, columns]]] for row, columns in enumerate(order)]


def average_precision(hits: ArrayLike, wanted: int | None = None) -> float:
    """Mean of the precision at each hit of one ranking (non-interpolated); 0 without hits.

    wanted: how many there were to be found, where the ranking may lack some; each of those counts 0 (CUHK-SYSU's protocol).

    >>> round(average_precision([True, False, True]), 4)  # (1/1 + 2/3) / 2
    0.8333
    >>> round(average_precision([True, False, True], wanted=4), 4)  # (1/1 + 2/3) / 4
    0.4167
    """
    ranks = np.flatnonzero(np.asarray(hits, bool)) + 1
    count = len(ranks) if wanted is None else wanted
    return float((np.arange(1, len(ranks) + 1) / ranks).sum() / count) if len(ranks) else 0.0


def ranking_figures(hits: Sequence[ArrayLike], length: int = 50) -> RankingFigures:
    """CMC to ``length`` and mAP over the queries that have a match at all.

    Two queries with hits at ranks (1, 3) and (2): rank-1 0.5, rank-2 1.0, mAP (0.8333 + 0.5) / 2 = 0.6667.
    """
    answered = [np.asarray(row, bool) for row in hits if np.asarray(row, bool).any()]
    if not answered:
        return RankingFigures((0.0,) * length, 0.0, 0)
    first = np.array([int(row.argmax()) for row in answered])  # (Q,)
    cmc = tuple(float((first < k).mean()) for k in range(1, length + 1))
    return RankingFigures(cmc, float(np.mean([average_precision(row) for row in answered])), len(answered))


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What became of Q queries. first: int64 (Q,), the rank of the first hit, from 1, 0 where there is none; precision: float64 (Q,)."""

    first: Integers
    precision: Float64

    def within(self, k: int) -> Float64:
        """1 for each query with a hit among the first ``k``, else 0, (Q,)."""
        return ((self.first > 0) & (self.first <= k)).astype(np.float64)

    def where(self, keep: Booleans) -> Outcomes:
        """The queries at the mask ``keep`` (Q,)."""
        return Outcomes(self.first[keep], self.precision[keep])


def outcomes(hits: Sequence[ArrayLike], wanted: ArrayLike | None = None) -> Outcomes:
    """The first hit and the average precision of each ranking; ``wanted`` (Q,): as in average_precision.

    >>> result = outcomes([[False, True], [False, False]], wanted=[1, 3])
    >>> result.first.tolist(), result.precision.tolist(), result.within(2).tolist()
    ([2, 0], [0.5, 0.0], [1.0, 0.0])
    """
    rows = [np.asarray(row, bool) for row in hits]
    counts = [None] * len(rows) if wanted is None else [int(count) for count in np.asarray(wanted)]
    first = np.array([int(row.argmax()) + 1 if row.any() else 0 for row in rows], np.int64)
    precision = np.array([average_precision(row, count) for row, count in zip(rows, counts, strict=True)], np.float64)
    return Outcomes(first, precision)


def intervals(values: ArrayLike, person: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Float64:
    """95 % bootstrap intervals of the mean of each column: (F, 2), low and high.

    values: (Q, F), one row per query; person: (Q,), whom it asks for. People are drawn anew, each with all of their queries, because
    captions of one person stand or fall together. For two ways of searching, give their difference: the interval is then a paired one.
    Raises ValueError when the lengths differ or there is no query.

    >>> intervals([[1.0], [1.0], [1.0]], ["anna", "anna", "bert"]).tolist()  # all found: no doubt that resampling could show
    [[1.0, 1.0]]
    >>> intervals([[1.0], [1.0], [0.0]], ["anna", "anna", "bert"]).tolist()  # everybody drawn may be bert, or anna
    [[0.0, 1.0]]
    """
    table = np.asarray(values, np.float64)  # (Q, F)
    labels = np.asarray(person)
    if table.ndim != 2 or labels.shape != table.shape[:1] or not len(table):
        raise ValueError(f"values and person must be (Q, F) and (Q,) with Q > 0, got {table.shape} and {labels.shape}")
    people, owner = np.unique(labels, return_inverse=True)
    count = len(people)
    sums = np.stack([np.bincount(owner, column, count) for column in table.T], axis=1)  # (P, F)
    queries = np.bincount(owner, minlength=count).astype(np.float64)  # (P,)
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count)) + count * np.arange(resamples)[:, None]  # (R, P)
    drawn = np.bincount(draws.ravel(), minlength=resamples * count).reshape(resamples, count).astype(np.float64)  # (R, P)
    means = (drawn @ sums) / (drawn @ queries)[:, None]  # (R, F)
    return np.asarray(np.percentile(means, INTERVAL_PERCENT, axis=0).T, np.float64)


# ------------------------------------------------------------------------------------------------ boxes in frames


@dataclass(frozen=True, slots=True, eq=False)
class Touching:
    """Found and true boxes of the same frame that overlap, P pairs. found, truth: int64 (P,), their rows; overlap: float64 (P,), IoU."""

    found: Integers
    truth: Integers
    overlap: Float64


def touching(found: IdentifiedBoxes, truth: IdentifiedBoxes) -> Touching:
    """Every pair of a found and a true box that share pixels of a frame.

    >>> boxes = IdentifiedBoxes(np.array([1, 2]), np.array([7, 7]), np.array([[0.0, 0, 10, 20], [0, 0, 10, 20]]), np.ones(2))
    >>> pairs = touching(boxes, boxes)  # the same place in frame 1 and in frame 2: two pairs, not four
    >>> pairs.found.tolist(), pairs.truth.tolist(), pairs.overlap.tolist()
    ([0, 1], [0, 1], [1.0, 1.0])
    """
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for number in np.intersect1d(found.frame, truth.frame):
        left, right = np.flatnonzero(found.frame == number), np.flatnonzero(truth.frame == number)
        overlap = box_iou(found.xyxy[left], truth.xyxy[right])  # (N, M)
        rows, columns = np.nonzero(overlap)
        parts.append((left[rows], right[columns], overlap[rows, columns]))
    return Touching(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def lies_on(pairs: Touching, marked: ArrayLike, count: int, overlap: float) -> Booleans:
    """Which of ``count`` found boxes lie, with an IoU above ``overlap``, on a true box that is ``marked`` (T,), and on no other one more.

    >>> pairs = Touching(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0.6, 0.8, 0.4]))
    >>> lies_on(pairs, [False, True], count=2, overlap=0.5).tolist()
    [True, False]
    """
    is_marked = np.asarray(marked, bool)[pairs.truth]
    best = np.full((2, count), overlap)  # on any other box, on a marked one
    for row, chosen in enumerate((~is_marked, is_marked)):
        np.maximum.at(best[row], pairs.found[chosen], pairs.overlap[chosen])
    return np.asarray(best[1] > best[0], bool)


def ranked_box_hits(
    similarity: ArrayLike, pairs: Touching, is_wanted: ArrayLike, overlap: float, left_out: ArrayLike | None = None
) -> list[Booleans]:
    """For each query whether each box found in any frame is a hit, best first: R@n IoU>m and CUHK-SYSU's ranking.

    similarity: (N, Q) of the boxes found; is_wanted: (T, Q), which true boxes a query asks for. A box hits the wanted true box it overlaps
    most, above ``overlap``; each true box is hit once, by the best-ranked box, and further boxes on it are no hits. left_out: (N,),
    boxes that are taken out of rankings unless they lie on a wanted box. Equal similarities keep the order of the boxes.

    >>> pairs = Touching(np.array([0, 1, 2]), np.array([0, 0, 1]), np.array([0.9, 0.8, 0.4]))
    >>> hits = ranked_box_hits([[0.7], [0.9], [0.8]], pairs, [[True], [True]], overlap=0.5)  # order: 1 (a hit), 2 (IoU too low), 0 (again)
    >>> hits[0].tolist()
    [True, False, False]
    """
    scores, wanted = np.asarray(similarity, np.float64), np.asarray(is_wanted, bool)
    if scores.ndim != 2 or wanted.ndim != 2 or scores.shape[1] != wanted.shape[1]:
        raise ValueError(f"similarity and is_wanted must be (N, Q) and (T, Q), got {scores.shape} and {wanted.shape}")
    ignored = np.zeros(len(scores), bool) if left_out is None else np.asarray(left_out, bool)
    close = pairs.overlap > overlap
    found, truth, shared = pairs.found[close], pairs.truth[close], pairs.overlap[close]
    ranked = []
    for column, wish in zip(scores.T, wanted.T, strict=True):
        order = np.argsort(-column, kind="stable")  # (N,)
        mine = wish[truth]
        is_kept = ~ignored
        is_kept[found[mine]] = True
        order = order[is_kept[order]]
        rank = np.zeros(len(column), np.int64)
        rank[order] = np.arange(len(order))
        hits = np.zeros(len(order), bool)
        ranks, boxes, by = rank[found[mine]], truth[mine], shared[mine]
        taken: set[int] = set()
        for pair in np.lexsort((-by, ranks)):
            if not hits[ranks[pair]] and int(boxes[pair]) not in taken:
                hits[ranks[pair]] = True
                taken.add(int(boxes[pair]))
        ranked.append(hits)
    return ranked


@dataclass(frozen=True, slots=True, eq=False)
class FrameAnswers:
    """Each (frame, query) pair in which somebody wanted is there. query: int64 (A,); is_right: is the best-ranked box of that frame on
    a wanted one, 1 or 0, float64 (A,); chance: what a blind guess among that frame's boxes would get, float64 (A,)."""

    query: Integers
    is_right: Float64
    chance: Float64


def best_in_frames(
    similarity: ArrayLike,
    frame: ArrayLike,
    pairs: Touching,
    truth_frame: ArrayLike,
    is_wanted: ArrayLike,
    overlap: float,
    left_out: ArrayLike | None = None,
) -> FrameAnswers:
    """Whether the best-ranked box of each frame is the right one; a frame in which nobody was found counts as wrong.

    similarity: (N, Q); frame: (N,), of the boxes found; truth_frame: (T,); is_wanted: (T, Q); the others as in ranked_box_hits.

    >>> pairs = Touching(np.array([0]), np.array([0]), np.array([0.9]))  # frame 1: a box on the wanted one, and another; frame 2: nobody
    >>> answers = best_in_frames([[0.2], [0.1]], [1, 1], pairs, [1, 2], [[True], [True]], overlap=0.5)
    >>> answers.query.tolist(), answers.is_right.tolist(), answers.chance.tolist()
    ([0, 0], [1.0, 0.0], [0.5, 0.0])
    """
    scores, wanted = np.asarray(similarity, np.float64), np.asarray(is_wanted, bool)
    found_in, true_in = np.asarray(frame), np.asarray(truth_frame)
    ignored = np.zeros(len(scores), bool) if left_out is None else np.asarray(left_out, bool)
    is_hit = hit_table(pairs, wanted, len(scores), overlap)  # (N, Q)
    queries, right, chance = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0)]
    for number in np.unique(true_in):
        asked = np.flatnonzero(wanted[true_in == number].any(axis=0))  # (A,)
        rows = np.flatnonzero(found_in == number)
        queries.append(asked)
        if not len(rows):
            right.append(np.zeros(len(asked)))
            chance.append(np.zeros(len(asked)))
            continue
        hits = is_hit[np.ix_(rows, asked)]  # (n, A)
        is_kept = hits | ~ignored[rows, None]  # (n, A)
        best = np.where(is_kept, scores[np.ix_(rows, asked)], -np.inf).argmax(axis=0)  # (A,)
        right.append(hits[best, np.arange(len(asked))].astype(np.float64))
        chance.append(hits.sum(axis=0) / np.maximum(is_kept.sum(axis=0), 1))
    return FrameAnswers(np.concatenate(queries), np.concatenate(right), np.concatenate(chance))


def hit_table(pairs: Touching, is_wanted: ArrayLike, count: int, overlap: float) -> Booleans:
    """Which of ``count`` found boxes lie on a true box that each query wants (T, Q), (count, Q); here one true box may be hit often.

    >>> hit_table(Touching(np.array([1]), np.array([0]), np.array([0.9])), [[True, False]], count=2, overlap=0.5).tolist()
    [[False, False], [True, False]]
    """
    wanted = np.asarray(is_wanted, bool)
    table = np.zeros((count, wanted.shape[1]), bool)
    close = pairs.overlap > overlap
    np.logical_or.at(table, pairs.found[close], wanted[pairs.truth[close]])
    return table
