"""BlazeFace: where the faces of a picture are, and six key points of each.

Bazarevsky et al., BlazeFace, 2019 (back model, 256 x 256). Its key points are good only when a face fills about a third of what it sees:
on crops that a face fills, their error turned 100 % rank-1 of the vectors into 90 %. So every face is looked at again, in two windows of
its own, one of them mirrored: their mean is taken, and what is a face in one of them alone is doubted (sleeves and watches, mostly).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.preprocess import cut_out, open_session
from pipeline.geometry import areas, intersections, suppress

Float32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]

SIDE = 256
LAYERS = ((16, 2), (32, 6))  # (stride, anchors a cell)
LEAST_CONFIDENCE = 0.5
INSIDE = 0.5  # shared with a surer face, of the smaller one's area: the same face twice
GROUP_SIDE_PX = 512  # in a larger picture faces may be too small for one look: it is looked at in overlapping squares too
WINDOWS = ((3.0, False), (4.0, True))  # of the second look: side in sides of the face, and whether it is mirrored
UNSEEN = 0.45  # the confidence of a window that shows no face: less than any that does
MIRRORED_POINTS = [1, 0, 2, 3, 5, 4]  # eyes and ears change sides
BORDER = 0.5  # of a picture's longer side, repeated around it where no face is seen: a tight crop shows too little of the head
LARGEST_SIDE_PX = 4096  # a larger picture is made smaller first: its faces are still found, and it takes seconds otherwise


@dataclass(frozen=True, slots=True, eq=False)
class FoundFaces:
    """N faces in picture pixels.

    boxes: (N, 4) xyxy; points: (N, 6, 2), the eye at the picture's left, the other, nose tip, mouth, the two ears; confidence: (N,).
    """

    boxes: Float32
    points: Float32
    confidence: Float32

    def at(self, rows: NDArray[np.intp]) -> FoundFaces:
        """The faces at ``rows``, in their order."""
        return FoundFaces(self.boxes[rows], self.points[rows], self.confidence[rows])

    def moved(self, scale: float, shift: tuple[float, float]) -> FoundFaces:
        """The same faces with every coordinate times ``scale`` plus ``shift`` (x, y)."""
        by = np.asarray(shift, np.float32)
        boxes = self.boxes * np.float32(scale) + np.tile(by, 2)
        return FoundFaces(boxes.astype(np.float32), (self.points * np.float32(scale) + by).astype(np.float32), self.confidence)


class BlazeFace:
    """Finds faces. model: BlazeFace-back as models/convert/recipes.py writes it."""

    def __init__(self, model: Path, threads: int = 1) -> None:
        self._session = open_session(model, threads)
        self._input = self._session.get_inputs()[0].name
        self._anchors = anchors()

    def find(self, bgr: Pixels, least_side_px: float = 0.0, may_be_tight: bool = True) -> FoundFaces:
        """The faces of a BGR picture (h, w, 3), surest first; boxes, key points and confidence are those of the second look.

        least_side_px: smaller faces are left as first seen; may_be_tight: where no face is seen, a border is put around the picture.
        """
        longest = max(bgr.shape[:2])
        if longest > LARGEST_SIDE_PX:
            scale = LARGEST_SIDE_PX / longest
            size = (max(1, round(bgr.shape[1] * scale)), max(1, round(bgr.shape[0] * scale)))
            small = np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_AREA), np.uint8)
            return self.find(small, least_side_px * scale, may_be_tight).moved(1 / scale, (0.0, 0.0))
        first = self._all_views(bgr)
        if not len(first.boxes) and may_be_tight:
            first = self._bordered(bgr)
        is_small = (first.boxes[:, 2:] - first.boxes[:, :2]).min(axis=1, initial=np.inf) < least_side_px  # (N,)
        second = [self._again(bgr, box) for box in first.boxes[~is_small]]
        found = _joined([first.at(np.flatnonzero(is_small)), *(each for each in second if each is not None)])
        return found.at(one_each(found.boxes, found.confidence))

    def _all_views(self, bgr: Pixels) -> FoundFaces:
        """The picture as a whole, and a large one in overlapping squares too."""
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
        found = _joined([self._look(bgr[y1:y2, x1:x2]).moved(1.0, (x1, y1)) for x1, y1, x2, y2 in views])
        return found.at(one_each(found.boxes, found.confidence))

    def _bordered(self, bgr: Pixels) -> FoundFaces:
        around = max(1, round(max(bgr.shape[:2]) * BORDER))
        wider = np.asarray(cv2.copyMakeBorder(bgr, around, around, around, around, cv2.BORDER_REPLICATE), np.uint8)
        found = self._look(wider).moved(1.0, (-around, -around))
        return found.at(one_each(found.boxes, found.confidence))

    def _again(self, bgr: Pixels, box: Float32) -> FoundFaces | None:
        """The face of ``box`` in windows of its own, the mean of what is seen in them; None when all of them show none at their middle."""
        seen = [self._in_window(bgr, box, times, is_mirrored) for times, is_mirrored in WINDOWS]
        found = _joined([each for each in seen if each is not None])
        if not len(found.boxes):
            return None
        confidence = (found.confidence.sum() + UNSEEN * (len(WINDOWS) - len(found.boxes))) / len(WINDOWS)
        boxes, points = (values.mean(axis=0, keepdims=True) for values in (found.boxes, found.points))
        return FoundFaces(boxes, points, np.asarray([confidence], np.float32))

    def _in_window(self, bgr: Pixels, box: Float32, times: float, is_mirrored: bool) -> FoundFaces | None:
        """The surest face near the middle of a square ``times`` as wide as ``box``, in picture pixels; None when there is none."""
        side = max(float(max(box[2] - box[0], box[3] - box[1])), 1.0) * times
        left, top = (float(middle) - side / 2 for middle in (box[:2] + box[2:]) / 2)
        scale = SIDE / side
        window = cut_out(bgr, np.asarray([[scale, 0, -left * scale], [0, scale, -top * scale]], np.float64), SIDE)
        found = _mirrored(self._run(np.ascontiguousarray(window[:, ::-1]))) if is_mirrored else self._run(window)
        offset = np.linalg.norm((found.boxes[:, :2] + found.boxes[:, 2:]) / 2 - SIDE / 2, axis=1)
        near = np.flatnonzero(offset < SIDE / times / 2)
        if not len(near):
            return None
        return found.at(near[[int(found.confidence[near].argmax())]]).moved(1 / scale, (left, top))

    def _look(self, bgr: Pixels) -> FoundFaces:
        """The faces of a picture made to fit the network, in its pixels."""
        scale = SIDE / max(bgr.shape[:2])
        inner = (max(1, round(bgr.shape[1] * scale)), max(1, round(bgr.shape[0] * scale)))
        shrunk = cv2.resize(bgr, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        padded = np.zeros((SIDE, SIDE, 3), np.uint8)
        x0, y0 = (SIDE - inner[0]) // 2, (SIDE - inner[1]) // 2
        padded[y0 : y0 + inner[1], x0 : x0 + inner[0]] = shrunk
        return self._run(padded).moved(1 / scale, (-x0 / scale, -y0 / scale))

    def _run(self, bgr: Pixels) -> FoundFaces:
        """The faces of (256, 256, 3), every anchor that is sure enough."""
        outputs = self._session.run(None, {self._input: bgr[None, ..., ::-1].astype(np.float32) / 127.5 - 1})
        by_shape = {output.shape[1:]: output[0] for output in outputs}
        raw = np.concatenate([by_shape[512, 1], by_shape[384, 1]])[:, 0]  # (896,)
        regressed = np.concatenate([by_shape[512, 16], by_shape[384, 16]])  # (896, 16)
        confidence = 1 / (1 + np.exp(-np.clip(raw, -50, 50)))
        sure = np.flatnonzero(confidence > LEAST_CONFIDENCE)
        middle = self._anchors[sure] * SIDE  # (N, 2)
        centre, half = regressed[sure, :2] + middle, regressed[sure, 2:4] / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1)  # (N, 4)
        points = regressed[sure, 4:].reshape(-1, 6, 2) + middle[:, None]  # (N, 6, 2)
        return FoundFaces(boxes.astype(np.float32), points.astype(np.float32), confidence[sure].astype(np.float32))


def _mirrored(found: FoundFaces) -> FoundFaces:
    """Faces of a mirrored (256, 256) picture where they are in the picture itself."""
    boxes, points = found.boxes.copy(), found.points[:, MIRRORED_POINTS].copy()
    boxes[:, [0, 2]] = SIDE - boxes[:, [2, 0]]
    points[..., 0] = SIDE - points[..., 0]
    return FoundFaces(boxes, points, found.confidence)


def _joined(parts: list[FoundFaces]) -> FoundFaces:
    nobody = FoundFaces(np.zeros((0, 4), np.float32), np.zeros((0, 6, 2), np.float32), np.zeros(0, np.float32))
    whole = [nobody, *parts]
    return FoundFaces(*(np.concatenate([getattr(part, name) for part in whole]) for name in ("boxes", "points", "confidence")))


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
        side = SIDE // stride
        rows, columns = np.mgrid[:side, :side]
        centres = (np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5) / side
        made.append(np.repeat(centres, each, axis=0))
    return np.concatenate(made).astype(np.float32)
