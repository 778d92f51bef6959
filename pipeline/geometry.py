"""Boxes and polygons. Boxes are ``xyxy`` pixels of the original frame, right and bottom exclusive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def areas(xyxy: Float32) -> Float32:
    """Area in square pixels of each box, (N,); an inverted box has none."""
    sides = np.clip(xyxy[:, 2:] - xyxy[:, :2], 0, None)  # (N, 2)
    area: Float32 = (sides[:, 0] * sides[:, 1]).astype(np.float32)
    return area


def intersections(a: Float32, b: Float32) -> Float32:
    """Shared area in square pixels of every pair, (N, M)."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])  # (N, M, 2)
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])  # (N, M, 2)
    sides = np.clip(bottom_right - top_left, 0, None)  # (N, M, 2)
    shared: Float32 = (sides[..., 0] * sides[..., 1]).astype(np.float32)
    return shared


def iou(a: Float32, b: Float32) -> Float32:
    """Intersection over union of every pair, (N, M), 0..1."""
    shared = intersections(a, b)  # (N, M)
    union = areas(a)[:, None] + areas(b)[None, :] - shared  # (N, M)
    overlap: Float32 = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlap


def suppress(xyxy: Float32, confidence: Float32, overlap: float) -> NDArray[np.intp]:
    """Greedy non-maximum suppression: indices kept, best first; boxes above ``overlap`` IoU with a kept one go."""
    order = np.argsort(-confidence, kind="stable")  # (N,)
    overlaps = iou(xyxy, xyxy)  # (N, N)
    kept: list[int] = []
    alive = np.ones(len(order), bool)
    for index in order:
        if alive[index]:
            kept.append(int(index))
            alive &= overlaps[index] <= overlap
    return np.asarray(kept, np.intp)


def clip_to_frame(xyxy: Float32, width: int, height: int) -> Float32:
    """Boxes cut at the frame's border, (N, 4)."""
    return np.clip(xyxy, 0, np.asarray([width, height, width, height], np.float32)).astype(np.float32)


def feet(xyxy: Float32) -> Float32:
    """The point a person stands on: the middle of the lower edge, (N, 2) pixels."""
    return np.stack([(xyxy[:, 0] + xyxy[:, 2]) / 2, xyxy[:, 3]], axis=1).astype(np.float32)


def inside_polygon(points: Float32, polygon: Sequence[Sequence[float]]) -> NDArray[np.bool_]:
    """Which of the points (N, 2) lie inside the polygon (K corners), even-odd rule, (N,)."""
    corners = np.asarray(polygon, np.float64)  # (K, 2)
    following = np.roll(corners, -1, axis=0)  # (K, 2)
    x, y = points[:, None, 0].astype(np.float64), points[:, None, 1].astype(np.float64)  # (N, 1)
    straddles = (corners[None, :, 1] > y) != (following[None, :, 1] > y)  # (N, K)
    rise = following[:, 1] - corners[:, 1]  # (K,)
    slope = np.divide(following[:, 0] - corners[:, 0], rise, out=np.zeros_like(rise), where=rise != 0)  # (K,)
    crossing = corners[None, :, 0] + (y - corners[None, :, 1]) * slope[None, :]  # (N, K)
    inside: NDArray[np.bool_] = (straddles & (x < crossing)).sum(axis=1) % 2 == 1
    return inside
