"""Pictures to what a network takes; the one place where pixels are scaled, padded and reordered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Letterbox:
    """A picture scaled to fit into (width, height) and padded on the right and below. scale: network pixels per picture pixel."""

    bgr: Pixels
    scale: float


def letterbox(bgr: Pixels, width: int, height: int, fill: int = 114) -> Letterbox:
    """``bgr`` (h, w, 3) scaled to fit, its aspect kept, padded with grey."""
    scale = min(width / bgr.shape[1], height / bgr.shape[0])
    inner = (max(1, round(bgr.shape[1] * scale)), max(1, round(bgr.shape[0] * scale)))
    shrunk = cv2.resize(bgr, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    padded = np.full((height, width, 3), fill, np.uint8)
    padded[: inner[1], : inner[0]] = shrunk
    return Letterbox(padded, scale)


def network_size(frame_width: int, frame_height: int, side: int, stride: int = 32) -> tuple[int, int]:
    """(width, height) in network pixels: the longer side is ``side``, the shorter no longer than the aspect needs, both whole strides."""
    scale = side / max(frame_width, frame_height)
    whole = [max(stride, -(-round(length * scale) // stride) * stride) for length in (frame_width, frame_height)]
    return min(whole[0], side), min(whole[1], side)


def cut_out(bgr: Pixels, matrix: NDArray[np.float64], side: int) -> Pixels:
    """(side, side, 3) of a picture under ``matrix`` (2, 3), picture pixels to those of the cut; outside of the picture its edge goes on.

    Pixels are areas: (0, 0) is a corner of the picture, not the middle of its first pixel. What shrinks is averaged.
    """
    corners = np.asarray([[0, 0], [side, 0], [0, side], [side, side]], np.float64)
    back = np.linalg.inv(matrix[:, :2])
    there = (corners - matrix[:, 2]) @ back.T  # (4, 2), in the picture
    height, width = bgr.shape[:2]
    first = np.clip(np.floor(there.min(axis=0)) - 2, 0, [width - 1, height - 1]).astype(int)
    last = np.clip(np.ceil(there.max(axis=0)) + 2, first + 1, [width, height]).astype(int)
    part = bgr[first[1] : last[1], first[0] : last[0]]
    turn, shift = matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ first
    scale = float(np.sqrt(abs(np.linalg.det(turn))))
    if scale < 0.5:
        inner = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
        turn = turn @ np.diag([part.shape[1] / inner[0], part.shape[0] / inner[1]])
        part = cv2.resize(part, inner, interpolation=cv2.INTER_AREA)
    by_centre = np.concatenate([turn, (shift + turn @ [0.5, 0.5] - 0.5)[:, None]], axis=1)
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.warpAffine(part, by_centre, (side, side), flags=how, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def open_session(model: Path | bytes, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU whose threads do not spin when idle: a machine is shared with decoders and other cameras."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"])
