"""Clothing colours per body region: pixels to soft distributions over plain colour names. numpy alone.

A person's box is cut into an upper and a lower body region. Pixels near the vertical middle line count most, and a part of what the outer
columns show is taken off, because the sides of a box are background. Every pixel is named softly by its distance in CIE Lab to a few
prototypes of each colour as cameras see them (darker and duller than on a screen), so that a wine-red coat is mostly red, a little brown.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Attribute

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]

COLOURS = ("black", "grey", "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "beige")
REGIONS = ("upper", "lower")
REGION_ROWS = {"upper": (0.18, 0.50), "lower": (0.55, 0.85)}  # of the box height, from its top

_PROTOTYPES_RGB: dict[str, tuple[tuple[int, int, int], ...]] = {
    "black": ((12, 12, 14), (30, 29, 32), (44, 43, 46)),
    "grey": ((72, 71, 73), (95, 95, 97), (120, 120, 122), (146, 146, 148)),
    "white": ((178, 180, 183), (195, 196, 199), (215, 216, 218), (245, 245, 245)),
    "red": ((80, 28, 36), (110, 28, 36), (135, 55, 62), (150, 35, 42), (195, 45, 50), (225, 60, 60)),
    "orange": ((190, 90, 45), (225, 115, 50), (240, 150, 90)),
    "yellow": ((190, 170, 60), (225, 205, 70), (235, 225, 130)),
    "green": ((35, 62, 48), (55, 95, 65), (80, 130, 80), (130, 175, 90), (100, 115, 70)),
    "blue": (
        (32, 36, 55),
        (32, 40, 75),
        (62, 72, 98),
        (92, 104, 132),
        (140, 152, 175),
        (48, 65, 120),
        (60, 95, 165),
        (95, 120, 160),
        (130, 165, 210),
        (60, 140, 160),
    ),
    "purple": ((62, 40, 85), (95, 65, 130), (145, 115, 175)),
    "pink": ((190, 80, 120), (220, 120, 150), (225, 170, 185)),
    "brown": ((62, 45, 38), (92, 64, 48), (125, 85, 60)),
    "beige": ((150, 135, 110), (185, 165, 135), (215, 200, 170)),
}
_LEVELS = 32  # of red, green and blue in the table of names
_SOFTNESS = 11.0  # Lab units over which one name turns into the next
_BACKGROUND = 0.3  # how much of the shares of the outer columns is taken off
_OUTER_COLUMNS = (0, 1, 14, 15)
_GRID = (24, 16)  # pixels looked at per region: rows, columns
_CENTRE_WIDTH = 0.17  # standard deviation of the column weight, as a part of the box width


def lab(rgb: Float32) -> Float32:
    """CIE Lab (..., 3) of sRGB 0..255 (..., 3), white D65."""
    linear = np.asarray(rgb, np.float32) / 255
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])  # (..., 3)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lightness = 116 * root[..., 1] - 16
    return np.stack([lightness, 500 * (root[..., 0] - root[..., 1]), 200 * (root[..., 1] - root[..., 2])], -1).astype(np.float32)


def hsv(rgb: Float32) -> Float32:
    """Hue, saturation and value, each 0..1 (..., 3), of RGB 0..255 (..., 3)."""
    colour = np.asarray(rgb, np.float32) / 255
    high, low = colour.max(-1), colour.min(-1)
    spread = high - low
    red, green, blue = colour[..., 0], colour[..., 1], colour[..., 2]
    safe = np.where(spread > 0, spread, 1)
    sixth = np.where(high == red, (green - blue) / safe % 6, np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4))
    hue = np.where(spread > 0, sixth / 6, 0)
    saturation = spread / np.where(high > 0, high, 1)
    return np.stack([hue, saturation, high], -1).astype(np.float32)


@lru_cache(maxsize=1)
def _names() -> Float32:
    """How much each of 32×32×32 colours is called by each name: (32768, 12), rows sum to 1."""
    levels = (np.arange(_LEVELS, dtype=np.float32) + 0.5) * (256 / _LEVELS)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    pixels = lab(rgb)  # (L, 3)
    closeness = np.empty((len(rgb), len(COLOURS)), np.float32)
    for index, colour in enumerate(COLOURS):
        prototypes = lab(np.asarray(_PROTOTYPES_RGB[colour], np.float32))  # (P, 3)
        difference = pixels[:, None] - prototypes[None]  # (L, P, 3)
        difference[..., 0] *= 0.7  # light changes more between cameras than hue does
        closeness[:, index] = (difference**2).sum(-1).min(1)
    closeness = np.exp(-(closeness - closeness.min(1, keepdims=True)) / (2 * _SOFTNESS**2))
    table: Float32 = closeness / closeness.sum(1, keepdims=True)
    table.flags.writeable = False
    return table


def _sample(crop: Uint8, top: float, bottom: float, grid: tuple[int, int]) -> tuple[Uint8, Float32]:
    """Pixels of a grid over rows ``top``..``bottom`` (parts of the height): RGB (rows, columns, 3), and the column weights (columns,)."""
    height, width = crop.shape[:2]
    rows = ((top + (bottom - top) * (np.arange(grid[0]) + 0.5) / grid[0]) * height).astype(int).clip(0, height - 1)
    where = (np.arange(grid[1]) + 0.5) / grid[1]  # parts of the width
    columns = (where * width).astype(int).clip(0, width - 1)
    weight = np.exp(-((where - 0.5) ** 2) / (2 * _CENTRE_WIDTH**2))
    return crop[rows[:, None], columns[None, :], ::-1], (weight / weight.sum()).astype(np.float32)


def _band_shares(crop: Uint8, top: float, bottom: float, bands: int) -> Float32:
    """How much of each of ``bands`` equal bands between two heights (parts of the box) has each colour: (bands, 12), rows sum to 1."""
    pixels, weight = _sample(crop, top, bottom, (_GRID[0] * bands, _GRID[1]))
    levels = (pixels // (256 // _LEVELS)).astype(np.int32)
    names = _names()[(levels[..., 0] * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]]  # (bands * rows, columns, 12)
    names = names.reshape(bands, _GRID[0], _GRID[1], -1).mean(1)  # (bands, columns, 12)
    outer = names[:, _OUTER_COLUMNS].mean(1)  # (bands, 12)
    shares = np.maximum(np.einsum("c,bcx->bx", weight, names) - _BACKGROUND * outer, 0.01)
    normal: Float32 = (shares / shares.sum(1, keepdims=True)).astype(np.float32)
    return normal


def region_colours(crop: Uint8) -> Float32:
    """Colour distributions of the upper and the lower body: (2, 12), rows sum to 1, columns as COLOURS. ``crop``: BGR uint8 (h, w, 3)."""
    return np.concatenate([_band_shares(crop, *REGION_ROWS[region], 1) for region in REGIONS])


def stripe_colours(crop: Uint8, stripes: int) -> Float32:
    """Colour distributions of ``stripes`` equal bands from head to foot: (stripes, 12)."""
    return _band_shares(crop, 0, 1, stripes)


def stripe_histogram(crop: Uint8, stripes: int, bins: tuple[int, int, int] = (8, 3, 3)) -> Float32:
    """HSV histograms of equal bands from head to foot, square-rooted: (stripes, product of bins); the square sums to 1 in each band."""
    pixels, weight = _sample(crop, 0, 1, (_GRID[0] * stripes, _GRID[1]))
    cells = np.minimum((hsv(pixels.astype(np.float32)) * bins).astype(int), np.array(bins) - 1)  # (bands * rows, columns, 3)
    size = int(np.prod(bins))
    flat = (cells[..., 0] * bins[1] + cells[..., 1]) * bins[2] + cells[..., 2]
    flat += np.repeat(np.arange(stripes) * size, _GRID[0])[:, None]
    shares = np.bincount(flat.ravel(), np.broadcast_to(weight, flat.shape).ravel(), stripes * size)
    return np.sqrt(shares.reshape(stripes, size) / _GRID[0]).astype(np.float32)


def pooled_colours(crops: Sequence[Uint8], quality: Sequence[float]) -> Float32:
    """Region colours of one person over several crops, weighted by quality: (2, 12). Raises ValueError without crops."""
    if not crops or len(crops) != len(quality):
        raise ValueError(f"pooled_colours must get at least one crop and as many qualities, got {len(crops)} and {len(quality)}")
    weight = np.maximum(np.asarray(quality, np.float32), 1e-3)
    stacked = np.stack([region_colours(crop) for crop in crops])  # (N, 2, 12)
    pooled: Float32 = np.tensordot(weight / weight.sum(), stacked, 1).astype(np.float32)
    return pooled


def colour_attributes(distribution: Float32, at_least: float = 0.2) -> tuple[Attribute, ...]:
    """Attributes "upper colour" and "lower colour", most certain first, of a (2, 12) distribution; shares below ``at_least``
    are left out."""
    found = [
        Attribute(f"{region} colour", COLOURS[index], float(min(row[index], 1.0)))
        for region, row in zip(REGIONS, distribution, strict=True)
        for index in np.flatnonzero(row >= at_least)
    ]
    return tuple(sorted(found, key=lambda attribute: -attribute.score))
