"""How good a ranking is: CMC and rank-k, mean average precision, and R@n IoU>m for boxes in frames. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.geometry import as_boxes, iou

Booleans = NDArray[np.bool_]


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


def average_precision(hits: ArrayLike) -> float:
    """Mean of the precision at each hit of one ranking (non-interpolated); 0 without hits.

    Hits at ranks 1 and 3: (1/1 + 2/3) / 2 = 0.8333.
    """
    ranks = np.flatnonzero(np.asarray(hits, bool)) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else 0.0


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


def is_found(ranked: Sequence[tuple[str, Sequence[float]]], wanted: Sequence[tuple[str, Sequence[float]]], n: int, overlap: float) -> bool:
    """Whether one of the first ``n`` ranked (frame, xyxy box) lies in a wanted frame with an IoU above ``overlap``."""
    for frame, box in ranked[:n]:
        truth = [b for wanted_frame, b in wanted if wanted_frame == frame]
        if truth and float(iou(as_boxes([box]), as_boxes(truth)).max()) > overlap:
            return True
    return False


def recall_at(
    rankings: Sequence[Sequence[tuple[str, Sequence[float]]]],
    wanted: Sequence[Sequence[tuple[str, Sequence[float]]]],
    n: int,
    overlap: float,
) -> float:
    """R@n IoU>m, 0..1: the part of queries that is_found, over those that want anything.

    Raises ValueError when there are not as many rankings as wanted lists.
    """
    if len(rankings) != len(wanted):
        raise ValueError(f"recall_at must get one wanted list per ranking, got {len(rankings)} rankings and {len(wanted)} lists")
    found = [is_found(ranked, truth, n, overlap) for ranked, truth in zip(rankings, wanted, strict=True) if truth]
    return float(np.mean(found)) if found else 0.0
