"""Looks at one person: how sharp a crop is, what it is thinned to, and one vector of the vectors of several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Embedding

Pixels = NDArray[np.uint8]

HALF_SHARP = 60.0  # Laplacian variance at which half the sharpness is granted; CCTV crops lie between 20 and 2,000
SHARPNESS_SIDE_PX = 96  # sharpness is taken on a crop thinned to about this height


def sharpness(crop: Pixels) -> float:
    """0..1: how much fine detail a BGR crop (h, w, 3) shows, from the variance of its Laplacian on the green channel."""
    step = max(1, round(crop.shape[0] / SHARPNESS_SIDE_PX))
    green = crop[::step, ::step, 1].astype(np.float32)  # (h', w')
    if min(green.shape) < 3:
        return 0.0
    inner = green[1:-1, 1:-1]
    edges = green[:-2, 1:-1] + green[2:, 1:-1] + green[1:-1, :-2] + green[1:-1, 2:] - 4 * inner
    variance = float(edges.var())
    return variance / (variance + HALF_SHARP)


def thinned(bgr: Pixels, step: int) -> Pixels:
    """A copy of a BGR picture (h, w, 3) whose every pixel is the mean of ``step`` x ``step``; what is left over at the edges falls away."""
    if step <= 1:
        return bgr.copy()
    height, width = bgr.shape[0] // step, bgr.shape[1] // step
    rows = np.zeros((height, width * step, 3), np.uint16 if step <= 16 else np.uint32)
    for row in range(step):  # whole rows first: they lie together in memory
        rows += bgr[row : height * step : step, : width * step]
    total = rows[:, ::step].copy()  # (h', w', 3)
    for column in range(1, step):
        total += rows[:, column::step]
    small: Pixels = (total // (step * step)).astype(np.uint8)
    return small


def pool(vectors: Sequence[NDArray[np.float32]], qualities: Sequence[float], modality: str, space: str) -> Embedding | None:
    """The quality-weighted mean direction of some shots' vectors; None when there is none or they cancel out.

    Its quality is the quality-weighted mean quality.
    """
    if not vectors:
        return None
    weights = np.maximum(np.asarray(qualities, np.float64), 1e-3)  # (K,)
    mean = np.asarray(weights @ np.stack(vectors), np.float32)  # (D,)
    if not np.isfinite(mean).all() or float(np.linalg.norm(mean)) < 1e-6:
        return None
    quality = float((weights * weights).sum() / weights.sum())
    return Embedding(modality, space, mean, min(1.0, quality))
