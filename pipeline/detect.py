"""Decisions around a detector: which parts of a frame it looks at, and how what it found in them becomes one answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Float32, clip_to_frame, suppress
from pipeline.types import Detections

WIDE_FROM_PX = 1400  # a frame wider than this shows people too small for the usual network size
WIDE_SIDE = 1.54  # times the usual network side for the whole of a wide frame: 640 instead of 416
OVERLAP = 0.15  # of a tile with its neighbour: a person wider than that is found in the whole frame
EDGE_PX = 6.0  # a box this near to a cut edge of its tile is a part of somebody
MOST_BOXES = 400  # per frame, before suppression


@dataclass(frozen=True, slots=True)
class View:
    """A part of a frame that the detector looks at, in pixels, right and bottom exclusive; magnified: network pixels, times the usual."""

    x1: int
    y1: int
    x2: int
    y2: int
    magnified: float = 1.0


def views_of(width: int, height: int, tiles: str = "auto") -> tuple[View, ...]:
    """How a frame is looked at: the whole, larger where the frame is wide and so its people small.

    tiles: auto or off, the whole alone; on, also 2 x 2 overlapping tiles. NanoDet on Town Centre (1080p, AP50, ms on a busy core):
    416 wide .68, 79; 640 wide .76, 126; 416 and tiles .76, 293; 640 and tiles .78, 403; 800 wide .75, 183. So tiles must be asked for.
    """
    is_wide = max(width, height) >= WIDE_FROM_PX
    whole = View(0, 0, width, height, WIDE_SIDE if is_wide else 1.0)
    if tiles != "on" or min(width, height) < 2:
        return (whole,)
    across, down = int(width / 2 * (1 + OVERLAP)), int(height / 2 * (1 + OVERLAP))
    corners = [(x, y) for y in (0, height - down) for x in (0, width - across)]
    return (whole, *(View(x, y, x + across, y + down) for x, y in corners))


def is_cut(xyxy: Float32, view: View, width: int, height: int) -> NDArray[np.bool_]:
    """Which boxes (N, 4), in frame pixels, touch an edge of their view that is not the frame's own, (N,)."""
    return (
        ((view.x1 > 0) & (xyxy[:, 0] < view.x1 + EDGE_PX))
        | ((view.y1 > 0) & (xyxy[:, 1] < view.y1 + EDGE_PX))
        | ((view.x2 < width) & (xyxy[:, 2] > view.x2 - EDGE_PX))
        | ((view.y2 < height) & (xyxy[:, 3] > view.y2 - EDGE_PX))
    )


def merge(
    found: Sequence[tuple[View, Float32, Float32]], width: int, height: int, overlap: float = 0.6, smallest_px: float = 4.0
) -> Detections:
    """One frame's detections from its views' boxes (N, 4) in frame pixels and confidences (N,).

    Parts of people cut by a tile's edge are left out, boxes are clipped to the frame, the same person found twice is kept once
    (greedy suppression above ``overlap`` IoU), slivers below ``smallest_px`` are dropped.
    """
    boxes, confidences = [], []
    for view, xyxy, confidence in found:
        whole = ~is_cut(xyxy, view, width, height)
        boxes.append(clip_to_frame(xyxy[whole], width, height))
        confidences.append(confidence[whole])
    xyxy, confidence = np.concatenate(boxes), np.concatenate(confidences)
    sides = xyxy[:, 2:] - xyxy[:, :2]  # (N, 2)
    large = (sides > (smallest_px / 2, smallest_px)).all(axis=1)
    xyxy, confidence = xyxy[large], confidence[large]
    if len(xyxy) > MOST_BOXES:
        best = np.argsort(-confidence, kind="stable")[:MOST_BOXES]
        xyxy, confidence = xyxy[best], confidence[best]
    kept = suppress(xyxy, confidence, overlap)
    return Detections(xyxy[kept], confidence[kept])
