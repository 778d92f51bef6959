"""A cheap look of every detection: colour histograms of body stripes, for telling neighbours apart inside one camera.

Not an embedding: it never leaves the tracker and says nothing across cameras.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import intersections

Float32 = NDArray[np.float32]

STRIPES = ((0.12, 0.34), (0.34, 0.56), (0.56, 0.92))  # parts of the height: chest, waist, legs
INSIDE = 0.2  # cut from the left and right: background
ROWS, COLUMNS = 24, 8  # points sampled of a person
BRIGHT_BINS, COLOUR_BINS = 8, 6
STRIPE_SIZE = BRIGHT_BINS + 2 * COLOUR_BINS
LOOK_SIZE = len(STRIPES) * STRIPE_SIZE
LEAST_SEEN = 0.35  # of the points; below, the look is not trusted


def looks(bgr: NDArray[np.uint8], xyxy: Float32) -> Float32:
    """Unit vectors (N, LOOK_SIZE) of the people at ``xyxy`` (N, 4) in a BGR uint8 frame; zeros where too little can be seen.

    Each stripe's brightness and two opponent colours are counted over a coarse grid of points; points that lie in the box of a nearer
    person (lower feet) are left out. The square roots of the shares make their cosine the Bhattacharyya coefficient.
    """
    made = np.zeros((len(xyxy), LOOK_SIZE), np.float32)
    if not len(xyxy):
        return made
    height, width = bgr.shape[:2]
    shared = intersections(xyxy, xyxy)
    for index, (left, top, right, bottom) in enumerate(xyxy):
        across = np.linspace(left + INSIDE * (right - left), right - INSIDE * (right - left), COLUMNS)
        down = np.linspace(top + STRIPES[0][0] * (bottom - top), top + STRIPES[-1][1] * (bottom - top), ROWS)
        x, y = across.astype(np.intp), down.astype(np.intp)
        seen = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None, :]  # (R, C)
        for other in np.flatnonzero((shared[index] > 0) & (xyxy[:, 3] > bottom)):
            cover = xyxy[other]
            seen &= ~(((down >= cover[1]) & (down < cover[3]))[:, None] & ((across >= cover[0]) & (across < cover[2]))[None, :])
        if seen.mean() >= LEAST_SEEN:
            points = bgr[y.clip(0, height - 1)[:, None], x.clip(0, width - 1)[None, :]]  # (R, C, 3)
            made[index] = _look(points, seen)
    return made


def _stripe_of_rows() -> NDArray[np.intp]:
    """The stripe of each sampled row, (ROWS,)."""
    parts = np.linspace(STRIPES[0][0], STRIPES[-1][1], ROWS)
    return np.clip(np.searchsorted([upper for _, upper in STRIPES], parts), 0, len(STRIPES) - 1)


_STRIPE_OFFSET = (_stripe_of_rows() * STRIPE_SIZE)[:, None]  # (R, 1)


def _look(points: NDArray[np.uint8], seen: NDArray[np.bool_]) -> Float32:
    colours = points.astype(np.int32)  # (R, C, 3)
    blue, green, red = colours[..., 0], colours[..., 1], colours[..., 2]
    bright = (blue + green + red) * BRIGHT_BINS // 766
    # Colour differences of clothes are small: the bins cover -96..96, what lies outside joins the last one.
    red_green = np.clip((red - green + 96) * COLOUR_BINS // 193, 0, COLOUR_BINS - 1)
    yellow_blue = np.clip(((red + green) // 2 - blue + 96) * COLOUR_BINS // 193, 0, COLOUR_BINS - 1)
    bins = np.stack([bright, BRIGHT_BINS + red_green, BRIGHT_BINS + COLOUR_BINS + yellow_blue]) + _STRIPE_OFFSET  # (3, R, C)
    counts = np.bincount(bins[:, seen].ravel(), minlength=LOOK_SIZE).astype(np.float32)  # (LOOK_SIZE,)
    root = np.sqrt(counts)
    return (root / max(float(np.linalg.norm(root)), 1e-6)).astype(np.float32)
