"""The two-stage way behind the Retriever port: a detector finds boxes, each is cut out and encoded alone, words are compared by cosine.

It is what a one-stage retriever is measured against, so that both run through the same code. It is made of ports alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SpaceMismatchError
from pipeline.geometry import clip_to_frame
from pipeline.ports import Detector, LookEncoder, Sought, TextEncoder
from pipeline.types import TEXT, Detections, Frame

Float32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]


class TwoStage:
    """Retriever: detect, cut out, encode, compare. It draws no heat. Raises SpaceMismatchError when the encoders do not belong together."""

    def __init__(self, detector: Detector, looks: LookEncoder, text: TextEncoder) -> None:
        space = looks.spaces.get(TEXT, "none")
        if space != text.space:
            raise SpaceMismatchError(space, text.space)
        self.name = f"{detector.name} + {space} of crops"
        self.detector, self.looks, self.text = detector, looks, text

    def ask(self, descriptions: Sequence[str]) -> Float32:
        """Vectors of the descriptions, (Q, D)."""
        return np.stack([self.text.encode(description).vector for description in descriptions])

    def look_for(self, frames: Sequence[Frame], asked: Any, with_heat: bool = False) -> list[Sought]:
        """One Sought per frame; heat is None."""
        found = self.detector.detect(frames)
        return [Sought(each, self._similarity(frame, each, asked)) for frame, each in zip(frames, found, strict=True)]

    def _similarity(self, frame: Frame, found: Detections, asked: Float32) -> Float32:
        if not len(found):
            return np.zeros((0, len(asked)), np.float32)
        looks = self.looks.encode([cut_out(frame, box) for box in found.xyxy])[TEXT].values  # (N, D)
        return np.asarray(looks @ asked.T, np.float32)  # (N, Q)


def cut_out(frame: Frame, box: Float32) -> Pixels:
    """The pixels of a box, BGR (h, w, 3), at least one by one where the box lies outside the frame."""
    x1, y1, x2, y2 = (round(float(value)) for value in clip_to_frame(box[None], frame.width, frame.height)[0])
    x1, y1 = min(x1, frame.width - 1), min(y1, frame.height - 1)
    return np.ascontiguousarray(frame.bgr[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)])
