"""How a mouth moves: the part of the picture around it, held still by the eyes, and how much it changes from picture to picture.

Key points are looked for in some pictures and lie between them in the others; what is left of their tremble and of the pictures' noise is
small beside the motion of a speaking mouth. No shape of the lips is made: at the sizes of CCTV its change is all that can be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from models.blazeface import FoundFaces
from pipeline.ports import Head

Float32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]

LEAST_FACE_PX = 40.0  # frame pixels from brow to chin, below which a mouth is a few pixels wide
KEY_EVERY_S = 0.2  # one picture in five of 25 a second: one in three tells nothing more
LONGEST_BETWEEN_S = 0.5  # key points further apart than this say nothing of the pictures between
PATCH = 24
PATCH_WIDTH = 1.5  # of the distance between the eyes
LEFT_EYE, RIGHT_EYE, MOUTH = 0, 1, 3


class FaceFinder(Protocol):
    """What is asked of BlazeFace."""

    def find(self, bgr: Pixels) -> FoundFaces:
        """The faces of a picture (h, w, 3) and their key points."""
        ...


class MouthReader:
    """The LipReader port over BlazeFace's key points."""

    def __init__(self, faces: FaceFinder) -> None:
        self._faces = faces

    def read(self, heads: Sequence[Head]) -> Float32:
        """See ports.LipReader."""
        motion = np.full(len(heads), np.nan, np.float32)
        if len(heads) < 2:
            return motion
        points = self._points(heads)  # (K, 3, 2)
        known = np.asarray(np.isfinite(points[:, 0, 0]), bool)
        if known.sum() < 2:
            return motion
        between_px = float(np.median(np.linalg.norm(points[known, 1] - points[known, 0], axis=1)))
        before: Float32 | None = None
        for row, head in enumerate(heads):
            patch = mouth_patch(head, points[row], between_px) if known[row] else None
            if patch is not None and before is not None:
                motion[row] = np.abs(patch - before).mean()
            before = patch
        return motion

    def _points(self, heads: Sequence[Head]) -> NDArray[np.float64]:
        """Eyes and mouth in frame pixels, (K, 3, 2), nan where they are not known."""
        at_s = np.asarray([head.at_ns - heads[0].at_ns for head in heads], np.float64) / 1e9
        rows = _spaced(at_s, KEY_EVERY_S)
        found = [(row, six) for row in rows if (six := self._face(heads[row])) is not None]
        points = np.full((len(heads), 3, 2), np.nan)
        if not found:
            return points
        keys = np.asarray([row for row, _ in found])
        steady = _steadied(np.stack([six for _, six in found]), at_s[keys])  # (F, 3, 2)
        flat = steady.reshape(len(keys), 6)
        joined = np.stack([np.interp(at_s, at_s[keys], flat[:, column]) for column in range(6)], axis=1).reshape(-1, 3, 2)  # (K, 3, 2)
        later = np.minimum(np.searchsorted(keys, np.arange(len(heads))), len(keys) - 1)
        earlier = np.maximum(later - (keys[later] > np.arange(len(heads))), 0)
        near = np.minimum(np.abs(at_s - at_s[keys[earlier]]), np.abs(at_s - at_s[keys[later]])) <= LONGEST_BETWEEN_S / 2
        points[near] = joined[near]
        return points

    def _face(self, head: Head) -> NDArray[np.float64] | None:
        """Eyes and mouth, (3, 2) frame pixels, of the largest face of a head; None where it is too small or there is none."""
        found = self._faces.find(np.ascontiguousarray(np.repeat(head.grey[..., None], 3, axis=2)))
        if not len(found.boxes):
            return None
        heights = (found.boxes[:, 3] - found.boxes[:, 1]) * head.scale
        row = int(np.argmax(heights * found.confidence))
        if heights[row] < LEAST_FACE_PX:
            return None
        three = found.points[row][[LEFT_EYE, RIGHT_EYE, MOUTH]].astype(np.float64)
        return np.asarray(three * head.scale + [head.left, head.top])


def mouth_patch(head: Head, points: NDArray[np.float64], between_px: float) -> Float32:
    """The part around the mouth, float32 (24, 24) grey, upright by the eyes; points (3, 2): eyes and mouth in frame pixels."""
    across = points[1] - points[0]
    size = PATCH_WIDTH * between_px / PATCH / head.scale  # picture pixels a patch pixel
    turn = np.asarray([[across[0], -across[1]], [across[1], across[0]]]) / max(float(np.linalg.norm(across)), 1e-6) * size
    middle = (points[2] - [head.left, head.top]) / head.scale
    matrix = np.concatenate([turn, (middle - turn @ np.full(2, (PATCH - 1) / 2))[:, None]], axis=1)
    reach = int(np.ceil(PATCH_WIDTH * between_px / head.scale))
    x, y = (max(0, int(value) - reach) for value in middle)
    part = head.grey[y : y + 2 * reach + 2, x : x + 2 * reach + 2]
    if min(part.shape) < 2:
        return np.zeros((PATCH, PATCH), np.float32)
    blurred = cv2.GaussianBlur(part, (0, 0), max(size * 0.5, 0.3))
    matrix[:, 2] -= [x, y]
    cut = cv2.warpAffine(blurred, matrix, (PATCH, PATCH), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cut, np.float32)


def _spaced(at_s: NDArray[np.float64], every_s: float) -> list[int]:
    """Rows at least ``every_s`` apart, the first and the last among them."""
    rows = [0]
    for row in range(1, len(at_s)):
        if at_s[row] - at_s[rows[-1]] >= every_s - 1e-6:
            rows.append(row)
    return rows if rows[-1] == len(at_s) - 1 else [*rows, len(at_s) - 1]


def _steadied(points: NDArray[np.float64], at_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Key points (F, 3, 2) each mixed with its neighbours in time, one by one less the further they are."""
    apart = np.abs(at_s[:, None] - at_s[None]) / KEY_EVERY_S  # (F, F)
    weights = np.exp(-(apart**2) / 2)
    steady: NDArray[np.float64] = np.einsum("fg,gpc->fpc", weights / weights.sum(axis=1, keepdims=True), points)
    return steady
