"""Faces: BlazeFace finds them, FaceRes describes them, a gate leaves out those too small or blurred to tell anything.

Bazarevsky et al., BlazeFace, 2019 (back model, 256 x 256, six key points). FaceRes is used for its pooled vector alone: its guesses at
age and gender are never computed.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.preprocess import open_session
from pipeline.calibration import Logistic
from pipeline.geometry import areas, intersections, suppress
from pipeline.ports import Face
from pipeline.types import FACE, Embedding

# Fitted on 780 pairs of 40 crops of 8 actors: midpoint 0.51, slope 48. That set is easy (good light, near), so the slope is taken lower.
CURVE = Logistic(0.52, 30.0)

Float32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]

DETECT_SIDE = 256
LAYERS = ((16, 2), (32, 6))  # (stride, anchors a cell)
VECTOR_SIDE = 224
MEAN_BGR = np.asarray([103.9, 116.8, 123.7], np.float32)
LEAST_CONFIDENCE = 0.5
DOUBT = 0.3  # up to so much above the least confidence quality is lowered: hands and badges are found at .5 to .7, faces above .8
MARGIN = 0.6  # the vectors tell people apart best when the crop shows the hair and chin too: AUC .95 at 0, .98 at .3, .994 at .6
INSIDE = 0.5  # shared with a surer face, of the smaller one's area: the same face twice
LEAST_SIDE_PX = 24.0  # below this the vector is confident nonsense
LEAST_SHARPNESS = 25.0  # variance of the Laplacian at 64 x 64
LEAST_QUALITY = 0.2
GROUP_SIDE_PX = 512  # in a larger picture faces may be too small for one look: it is looked at in overlapping squares too


class BlazeFaceEncoder:
    """The FaceEncoder port. detector, vectors: BlazeFace-back and FaceRes as models/convert/recipes.py writes them."""

    space = "faceres@1"

    def __init__(self, detector: Path, vectors: Path, threads: int = 1) -> None:
        self._detector = open_session(detector, threads)
        self._vectors = open_session(vectors, threads)
        self._anchors = anchors()

    def faces(self, bgr: Pixels) -> list[Face]:
        """The faces of a BGR picture (h, w, 3), best quality first; the embedding is None where the gate closed."""
        boxes, points, confidence = self._find_all(bgr)
        found = []
        for box, six, sure in zip(boxes, points, confidence, strict=True):
            crop = square_crop(bgr, box, VECTOR_SIDE, MARGIN)
            quality = face_quality(box, six, crop) * min(1.0, (float(sure) - LEAST_CONFIDENCE) / DOUBT)
            embedding = None
            if quality >= LEAST_QUALITY:
                embedding = Embedding(FACE, self.space, self._vector(crop), quality)
            found.append(Face(box, float(sure), quality, embedding))
        return sorted(found, key=lambda face: -face.quality)

    def _vector(self, crop: Pixels) -> Float32:
        prepared = crop.astype(np.float32)[None] - MEAN_BGR  # (1, 224, 224, 3)
        vector: Float32 = self._vectors.run(None, {self._vectors.get_inputs()[0].name: prepared})[0][0]
        return vector / max(float(np.linalg.norm(vector)), 1e-9)

    def _find_all(self, bgr: Pixels) -> tuple[Float32, Float32, Float32]:
        """Boxes (N, 4), six key points (N, 6, 2) and confidences (N,) in picture pixels."""
        height, width = bgr.shape[:2]
        views = [(0, 0, width, height)]
        if max(height, width) > GROUP_SIDE_PX:
            side = max(GROUP_SIDE_PX, min(height, width) // 2)
            step = side * 3 // 4
            views += [
                (x, y, min(x + side, width), min(y + side, height))
                for y in range(0, max(1, height - side // 4), step)
                for x in range(0, max(1, width - side // 4), step)
            ]
        parts = [self._find(bgr[y1:y2, x1:x2], x1, y1) for x1, y1, x2, y2 in views]
        boxes, points, confidence = (np.concatenate(column) for column in zip(*parts, strict=True))
        kept = one_each(boxes, confidence)
        return boxes[kept], points[kept], confidence[kept]

    def _find(self, bgr: Pixels, left: int, top: int) -> tuple[Float32, Float32, Float32]:
        scale = DETECT_SIDE / max(bgr.shape[:2])
        inner = (max(1, round(bgr.shape[1] * scale)), max(1, round(bgr.shape[0] * scale)))
        shrunk = cv2.resize(bgr, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        padded = np.zeros((DETECT_SIDE, DETECT_SIDE, 3), np.uint8)
        x0, y0 = (DETECT_SIDE - inner[0]) // 2, (DETECT_SIDE - inner[1]) // 2
        padded[y0 : y0 + inner[1], x0 : x0 + inner[0]] = shrunk
        outputs = self._detector.run(None, {self._detector.get_inputs()[0].name: padded[None, ..., ::-1].astype(np.float32) / 127.5 - 1})
        by_shape = {output.shape[1:]: output[0] for output in outputs}
        raw = np.concatenate([by_shape[512, 1], by_shape[384, 1]])[:, 0]  # (896,)
        regressed = np.concatenate([by_shape[512, 16], by_shape[384, 16]])  # (896, 16)
        confidence = 1 / (1 + np.exp(-np.clip(raw, -50, 50)))
        sure = np.flatnonzero(confidence > LEAST_CONFIDENCE)
        centre = regressed[sure, :2] / DETECT_SIDE + self._anchors[sure]  # (N, 2), 0..1
        half = regressed[sure, 2:4] / DETECT_SIDE / 2
        points = regressed[sure, 4:].reshape(-1, 6, 2) / DETECT_SIDE + self._anchors[sure, None]  # (N, 6, 2)
        shift = np.asarray([x0, y0], np.float32)
        origin = np.asarray([left, top], np.float32)
        corners = [(edge * DETECT_SIDE - shift) / scale + origin for edge in (centre - half, centre + half)]
        return (
            np.concatenate(corners, axis=1).astype(np.float32),
            ((points * DETECT_SIDE - shift) / scale + origin).astype(np.float32),
            confidence[sure].astype(np.float32),
        )


def one_each(boxes: Float32, confidence: Float32) -> NDArray[np.intp]:
    """Indices of the faces kept, best first: the detector also answers with half a face inside the whole one, which IoU lets pass."""
    kept = suppress(boxes, confidence, 0.3)
    shared = intersections(boxes[kept], boxes[kept])  # (K, K)
    smaller = np.minimum.outer(areas(boxes[kept]), areas(boxes[kept]))  # (K, K)
    inside = np.tril(shared > INSIDE * smaller, -1)  # with a more confident one
    return kept[~inside.any(axis=1)]


def anchors() -> Float32:
    """Cell centres of BlazeFace-back, (896, 2), 0..1."""
    made = []
    for stride, each in LAYERS:
        side = DETECT_SIDE // stride
        rows, columns = np.mgrid[:side, :side]
        centres = (np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5) / side
        made.append(np.repeat(centres, each, axis=0))
    return np.concatenate(made).astype(np.float32)


def square_crop(bgr: Pixels, box: Float32, side: int, margin: float = 0.0) -> Pixels:
    """The square around a face box, grown by ``margin`` and scaled to ``side``; what lies outside the picture repeats its edge."""
    centre = (box[:2] + box[2:]) / 2
    half = float(max(box[2] - box[0], box[3] - box[1])) / 2 * (1 + margin)
    scale = side / (2 * half)
    matrix = np.asarray([[scale, 0, -(centre[0] - half) * scale], [0, scale, -(centre[1] - half) * scale]], np.float32)
    return np.asarray(cv2.warpAffine(bgr, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def face_quality(box: Float32, points: Float32, crop: Pixels) -> float:
    """0..1 from size, sharpness and how frontal the key points stand; 0 below the least size or sharpness."""
    side = float(min(box[2] - box[0], box[3] - box[1]))
    grey = cv2.cvtColor(cv2.resize(crop, (64, 64), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
    sharpness = float(cv2.Laplacian(grey, cv2.CV_32F).var())
    if side < LEAST_SIDE_PX or sharpness < LEAST_SHARPNESS:
        return 0.0
    eyes, nose = points[:2], points[2]
    across = abs(float(eyes[1, 0] - eyes[0, 0])) or 1e-6
    lean = abs(float(nose[0]) - float(eyes[:, 0].mean())) / across  # 0 frontal, 0.5 when the nose stands under one eye
    frontal = max(0.0, 1.0 - lean)
    size = min(1.0, side / 80.0)
    return float(np.clip(frontal * (0.4 + 0.6 * size) * min(1.0, 0.5 + sharpness / 400.0), 0.0, 1.0))
