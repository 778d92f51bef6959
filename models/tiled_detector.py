"""What the grid detectors share: frames to views, views to batches of one size, boxes back to frame pixels, calibrated confidence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.preprocess import Letterbox, letterbox, network_size, open_session
from pipeline.detect import View, merge, views_of
from pipeline.types import Detections, Frame

Float32 = NDArray[np.float32]
STRIDE = 32  # network sizes are whole multiples of the coarsest cell


@dataclass(frozen=True, slots=True)
class Calibration:
    """Raw score s to confidence: sigmoid(slope * logit(s) + offset); 0.5 then means that half of such boxes are people."""

    slope: float
    offset: float

    def confidence(self, raw: Float32) -> Float32:
        """Raw scores (N,) to confidences (N,)."""
        clipped = np.clip(raw.astype(np.float64), 1e-6, 1 - 1e-6)
        log_odds = self.slope * np.log(clipped / (1 - clipped)) + self.offset
        return (1 / (1 + np.exp(-log_odds))).astype(np.float32)

    def raw(self, confidence: float) -> float:
        """The raw score behind a confidence."""
        clipped = min(max(confidence, 1e-9), 1 - 1e-9)
        log_odds = (np.log(clipped / (1 - clipped)) - self.offset) / self.slope
        return float(1 / (1 + np.exp(-log_odds)))


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Network input of views of one size, (B, ...), and which (frame index, view, scale) each row is."""

    tensor: Float32
    rows: tuple[tuple[int, View, float], ...]
    size: tuple[int, int]


class TiledDetector(ABC):
    """A detector port over one onnxruntime session.

    tiles: auto, on or off (pipeline/detect.py); minimum_confidence: calibrated, boxes below it are not given;
    side: network pixels of the longer side of a view, 0 = the network's usual; threads: of one forward pass.
    """

    name: str
    calibration: Calibration
    usual_side = 416

    def __init__(self, path: Path, *, tiles: str = "auto", minimum_confidence: float = 0.001, side: int = 0, threads: int = 1) -> None:
        self._session: Any = open_session(path, threads)
        self._tiles, self._side = tiles, side or self.usual_side
        self._raw_floor = self.calibration.raw(minimum_confidence)

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        """People in each frame; frames of any cameras and sizes, those of one network size in one forward pass."""
        return self.detect_prepared(frames, self.prepare(frames))

    def detect_prepared(self, frames: Sequence[Frame], batches: Sequence[Prepared]) -> list[Detections]:
        """``detect`` from what ``prepare`` made of the same frames, which another thread may have done."""
        found: list[list[tuple[View, Float32, Float32]]] = [[] for _ in frames]
        for prepared in batches:
            outputs = self.forward_one(prepared)
            for row, (index, view, scale) in enumerate(prepared.rows):
                xyxy, raw = self.decode(outputs, row, prepared.size)
                xyxy = xyxy / scale + np.asarray([view.x1, view.y1, view.x1, view.y1], np.float32)
                found[index].append((view, xyxy.astype(np.float32), self.calibration.confidence(raw)))
        return [merge(views, frame.width, frame.height) for views, frame in zip(found, frames, strict=True)]

    def prepare(self, frames: Sequence[Frame]) -> list[Prepared]:
        """The network's input, one entry per network size."""
        by_size: dict[tuple[int, int], list[tuple[int, View, Letterbox]]] = {}
        for index, frame in enumerate(frames):
            for view in views_of(frame.width, frame.height, self._tiles):
                side = max(1, round(self._side * view.magnified / STRIDE)) * STRIDE
                size = network_size(view.x2 - view.x1, view.y2 - view.y1, side)
                boxed = letterbox(frame.bgr[view.y1 : view.y2, view.x1 : view.x2], *size)
                by_size.setdefault(size, []).append((index, view, boxed))
        return [
            Prepared(
                self.tensor([boxed.bgr for _, _, boxed in rows]),
                tuple((index, view, boxed.scale) for index, view, boxed in rows),
                size,
            )
            for size, rows in by_size.items()
        ]

    def forward(self, prepared: Sequence[Prepared]) -> None:
        """The network alone, for benches."""
        for each in prepared:
            self.forward_one(each)

    def forward_one(self, prepared: Prepared) -> list[Float32]:
        """The network's raw outputs."""
        outputs: list[Float32] = self._session.run(None, {self._session.get_inputs()[0].name: prepared.tensor})
        return outputs

    @abstractmethod
    def tensor(self, pictures: Sequence[NDArray[np.uint8]]) -> Float32:
        """BGR pictures of one size to the network's input."""

    @abstractmethod
    def decode(self, outputs: Sequence[Float32], row: int, size: tuple[int, int]) -> tuple[Float32, Float32]:
        """Boxes (N, 4) in network pixels and raw scores (N,) of one row of the batch."""
