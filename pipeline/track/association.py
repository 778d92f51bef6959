"""Which detection is which track: buffered overlap, looks, and how sure the detector is.

Buffered IoU follows Yang et al., "Hard to Track Objects with Irregular Motions and Similar Appearances?", WACV 2023; taking unsure boxes
in a second round follows Zhang et al., "ByteTrack", ECCV 2022.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.geometry import areas, intersections, iou

Float32 = NDArray[np.float32]


def buffered(xyxy: Float32, share: NDArray[np.float64] | float) -> Float32:
    """Boxes grown on every side by ``share`` (N,) or a number of their own width and height, (N, 4)."""
    grow = (xyxy[:, 2:] - xyxy[:, :2]) * np.asarray(share, np.float32).reshape(-1, 1)  # (N, 2)
    return np.concatenate([xyxy[:, :2] - grow, xyxy[:, 2:] + grow], axis=1).astype(np.float32)


def overlap_of(expected: Float32, seen: Float32, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Buffered IoU of expected (T, 4) and seen boxes (N, 4), 0..1, (T, N); ``share`` (T,): buffer per track.

    Both boxes of a pair grow by the track's buffer. Heights that differ weigh in once more: depth tells neighbours apart.
    """
    if not len(expected) or not len(seen):
        return np.zeros((len(expected), len(seen)))
    grown = buffered(expected, share)  # (T, 4)
    overlap = np.empty((len(expected), len(seen)))
    for value in np.unique(share):
        rows = share == value
        overlap[rows] = iou(grown[rows], buffered(seen, float(value)))
    heights, seen_heights = expected[:, 3] - expected[:, 1], seen[:, 3] - seen[:, 1]
    ratio = np.minimum(heights[:, None], seen_heights[None, :]) / np.maximum(np.maximum(heights[:, None], seen_heights[None, :]), 1e-6)
    similarity: NDArray[np.float64] = overlap * np.sqrt(ratio)
    return similarity


def likeness(tracks: Float32, seen: Float32) -> NDArray[np.float64]:
    """Cosine of looks (T, D) and (N, D), (T, N); NaN where either has none (a row of zeros)."""
    similarity = tracks.astype(np.float64) @ seen.astype(np.float64).T  # (T, N)
    similarity[~tracks.any(axis=1), :] = np.nan
    similarity[:, ~seen.any(axis=1)] = np.nan
    return similarity


def assign(similarity: NDArray[np.float64], least: float) -> list[tuple[int, int]]:
    """Pairs (row, column) of the best one-to-one assignment, leaving out those below ``least``."""
    if not similarity.size:
        return []
    allowed = np.where(similarity >= least, similarity, -10.0)
    rows, columns = linear_sum_assignment(-allowed)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if similarity[r, c] >= least]


def hidden_shares(xyxy: Float32) -> Float32:
    """How much of each box is covered by the nearer ones, 0..1, (N,): nearer is who stands lower in the picture.

    The largest single cover counts, not the sum: two that cover the same part hide it once.
    """
    if len(xyxy) < 2:
        return np.zeros(len(xyxy), np.float32)
    shared = intersections(xyxy, xyxy) / np.maximum(areas(xyxy)[:, None], 1e-6)  # (N, N)
    shared[xyxy[None, :, 3] <= xyxy[:, None, 3]] = 0  # only those with lower feet hide
    hidden: Float32 = np.clip(shared.max(axis=1), 0, 1).astype(np.float32)
    return hidden


def is_doubled(seen: Float32, held: Float32, overlap: float, inside: float) -> NDArray[np.bool_]:
    """Which seen boxes (N, 4) show again what a held box (T, 4) shows: high IoU, or mostly inside it, (N,)."""
    if not len(seen) or not len(held):
        return np.zeros(len(seen), bool)
    contained = intersections(seen, held) / np.maximum(areas(seen)[:, None], 1e-6)  # (N, T)
    doubled = (iou(seen, held) > overlap) | (contained > inside)  # (N, T)
    return np.asarray(doubled.any(axis=1), np.bool_)
