"""The faces of one track: which head crops are worth a look, which face in them is the person's own, and one vector of the best few.

``offer`` is asked at every box and costs microseconds unless the head is worth keeping; faces are looked for when a revision is due, in
new head crops alone. Everything follows from the frames: a replay makes the same vector, number for number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Float32, areas, clip_to_frame
from pipeline.ports import Face, FaceEncoder
from pipeline.shots import Pixels, pool, sharpness, thinned
from pipeline.types import FACE, Embedding

CANDIDATES = 6  # head crops that a track holds or remembers
BEST_FACES = 4  # that go into its vector
BUCKET_NS = 500_000_000  # at most one head crop each half second: neighbours in time show the same face
OFFER_EVERY_NS = 150_000_000  # a head is judged at most so often
LEAST_HEAD_PX = 18.0  # expected height of a face: a smaller one gets no vector
FULL_HEAD_PX = 80.0
LARGEST_CROP_PX = 400  # a longer side is thinned to this: bounds memory, and a face in it is still 100 px high
STANDING, BUST = 7.5, 3.0  # a standing person is so many faces high; a box that ends at the waist, so many faces wide
HEAD_PART = 0.4  # of a standing person's height, in which the face is looked for
MARGIN = 0.15  # of the box's width, beside and above it
LEAST_BELONGING = 0.25


def expected_face_px(width: float, height: float) -> float:
    """How high the face of a person is whose box is so large, standing or cut off at the waist."""
    return max(height / STANDING, width / BUST)


@dataclass(slots=True, eq=False)
class HeadCrop:
    """The upper part of a person in one frame. bgr: None once faces were looked for; box: of the whole person, in its pixels; face: the
    person's own."""

    at_ns: int
    merit: float
    box: tuple[float, float, float, float]
    bgr: Pixels | None
    face: Face | None = None


class TrackFaces:
    """The best head crops of one track, and the faces found in them."""

    def __init__(self) -> None:
        self._heads: list[HeadCrop] = []
        self._judged_at_ns: int | None = None

    @property
    def best_merit(self) -> float:
        """0..1, of the best head crop, looked at or not."""
        return max((head.merit for head in self._heads), default=0.0)

    def offer(self, bgr: Pixels, at_ns: int, box: Float32, confidence: float, hidden: float) -> bool:
        """Keep the head of a person's ``box`` (4,) when it is worth more than one held; gives whether it was kept.

        hidden: 0..1, how much of the box shows somebody else. Its merit is size times sharpness, less what is hidden or outside the frame.
        """
        if self._judged_at_ns is not None and 0 <= at_ns - self._judged_at_ns < OFFER_EVERY_NS:
            return False
        width, height = float(box[2] - box[0]), float(box[3] - box[1])
        expected = expected_face_px(width, height)
        if expected < LEAST_HEAD_PX:
            return False
        head = np.asarray([box[0], box[1], box[2], box[1] + min(height, max(HEAD_PART * height, width))], np.float32)
        seen = clip_to_frame(head[None], bgr.shape[1], bgr.shape[0])
        inside = float(areas(seen)[0]) / max(float(areas(head[None])[0]), 1.0)
        bound = min(1.0, expected / FULL_HEAD_PX) * (1.0 - hidden) * inside * inside * confidence
        rival = self._rival(at_ns)
        if bound <= (rival.merit if rival else 0.0):
            return False
        x1, y1, x2, y2 = (round(float(value)) for value in seen[0])
        if x2 - x1 < 2 or y2 - y1 < 2:
            return False
        self._judged_at_ns = at_ns
        merit = bound * sharpness(bgr[y1:y2, x1:x2])
        if merit <= (rival.merit if rival else 0.0):
            return False
        if rival is not None:
            self._heads.remove(rival)
        self._heads.append(_cut(bgr, at_ns, min(1.0, merit), box, (x1, y1, x2, y2)))
        return True

    def look(self, encoder: FaceEncoder) -> int:
        """Look for faces in the new head crops, and let go of their pixels; gives how many were looked at."""
        new = sorted((head for head in self._heads if head.bgr is not None), key=lambda head: head.at_ns)
        for head in new:
            if head.bgr is not None:
                head.face = own_face(encoder.faces(head.bgr), head.box)
                head.bgr = None
        return len(new)

    def embedding(self, same_face: float) -> Embedding | None:
        """One vector of the best few faces that are of one person, weighted by quality; None when no face was good enough.

        same_face: the cosine from which on two faces are taken for one person's.
        """
        found = [head for head in self._heads if head.face is not None and head.face.embedding is not None]
        found.sort(key=lambda head: (-_quality(head), head.at_ns))
        return pooled([head.face.embedding for head in found if head.face and head.face.embedding], same_face)

    def _rival(self, at_ns: int) -> HeadCrop | None:
        """The head crop that a new one must beat: that of the same half second, else the worst of a full list."""
        for head in self._heads:
            if head.at_ns // BUCKET_NS == at_ns // BUCKET_NS:
                return head
        if len(self._heads) < CANDIDATES:
            return None
        return min(self._heads, key=lambda head: (head.merit, -head.at_ns))


def _quality(head: HeadCrop) -> float:
    return head.face.quality if head.face is not None else 0.0


def _cut(bgr: Pixels, at_ns: int, merit: float, box: Float32, head: tuple[int, int, int, int]) -> HeadCrop:
    """The head with a margin, thinned where it is very large."""
    margin = round(MARGIN * float(box[2] - box[0]))
    left, top = max(0, head[0] - margin), max(0, head[1] - margin)
    view = bgr[top : head[3], left : head[2] + margin]
    step = math.ceil(max(view.shape[:2]) / LARGEST_CROP_PX)
    x1, y1, x2, y2 = ((float(value) - origin) / step for value, origin in zip(box.tolist(), (left, top, left, top), strict=True))
    return HeadCrop(at_ns, merit, (x1, y1, x2, y2), thinned(view, step))


def own_face(faces: Sequence[Face], box: tuple[float, float, float, float]) -> Face | None:
    """The face that belongs to the person of ``box`` (x1, y1, x2, y2 in the same pixels), of those with a vector; None when none may.

    Two heads in one box are told apart by place and size before quality: a sharper stranger behind is still a stranger.
    """
    rated = [(belonging(face.xyxy, box) * (0.5 + 0.5 * face.quality), face) for face in faces if face.embedding is not None]
    likely = [(rate, face) for rate, face in rated if belonging(face.xyxy, box) >= LEAST_BELONGING]
    return max(likely, key=lambda each: each[0])[1] if likely else None


def belonging(face: NDArray[np.float32], box: tuple[float, float, float, float]) -> float:
    """0..1: how well a face (4,) fits the person of ``box``: in the middle, at the top, of a face's size."""
    x1, y1, x2, y2 = box
    width, height = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
    expected = expected_face_px(width, height)
    side = max(float(face[3] - face[1]), 1.0)
    aside = (float(face[0] + face[2]) / 2 - (x1 + x2) / 2) / width  # 0 in the middle, 0.5 at the edge
    below = max(0.0, (float(face[1]) - y1) / expected - 1.0)  # face heights under where a forehead should be
    larger = math.log(side / expected)
    return math.exp(-((aside / 0.3) ** 2) - (below / 1.0) ** 2 - (larger / 0.8) ** 2)


def pooled(faces: Sequence[Embedding], same_face: float) -> Embedding | None:
    """One vector of the best few of ``faces`` (best first) that agree, weighted by quality; None where there is none."""
    best = of_one_person(faces, same_face)[:BEST_FACES]
    if not best:
        return None
    return pool([each.vector for each in best], [each.quality for each in best], FACE, best[0].space)


def of_one_person(faces: Sequence[Embedding], same_face: float) -> list[Embedding]:
    """Those of ``faces`` (best first) that agree with the face most others agree with, in their order; of two that disagree, the better.

    >>> from pipeline.types import Embedding
    >>> near, far = [Embedding("face", "m@1", np.array(v, np.float32)) for v in ((1.0, 0.0), (0.0, 1.0))]
    >>> len(of_one_person([far, near, near], same_face=0.5))
    2
    """
    if len(faces) < 2:
        return list(faces)
    vectors = np.stack([face.vector for face in faces])  # (K, D)
    cosine = vectors @ vectors.T  # (K, K)
    weight = np.asarray([max(face.quality, 1e-3) for face in faces])
    support = (cosine >= same_face) @ weight  # (K,), how much quality agrees with each
    middle = int(support.argmax())
    return [face for face, near in zip(faces, cosine[middle], strict=True) if near >= same_face]
