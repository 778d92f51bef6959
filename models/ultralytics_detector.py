"""YOLO through ultralytics (AGPL-3.0): an extra for those who want it and can fetch its weights. The one file that imports it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import MissingDependencyError, NotFoundError
from pipeline.types import Detections, Frame

PERSON = 0


class UltralyticsDetector:
    """The Detector port over any ultralytics detection model whose class 0 is a person.

    weights: a .pt or exported file. Raises MissingDependencyError without the extra, NotFoundError without the file.
    """

    def __init__(self, weights: Path, minimum_confidence: float = 0.05, device: str | None = None) -> None:
        if not weights.is_file():
            raise NotFoundError(f"detect.weights must be a weights file, got {weights}: fetch one with ultralytics and name it")
        try:
            from ultralytics import YOLO
        except ImportError:
            raise MissingDependencyError("ultralytics", "ultralytics") from None
        self.name = f"ultralytics-{weights.stem}"
        self._model: Any = YOLO(str(weights))
        self._least = minimum_confidence
        self._device = device

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        """People in each frame, one forward pass for all."""
        if not frames:
            return []
        results = self._model.predict(
            [frame.bgr for frame in frames], conf=self._least, classes=[PERSON], verbose=False, device=self._device
        )
        found = []
        for result in results:
            boxes = result.boxes
            found.append(Detections(np.asarray(boxes.xyxy.cpu(), np.float32), np.asarray(boxes.conf.cpu(), np.float32)))
        return found
