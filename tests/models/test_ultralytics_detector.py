"""YOLO is an extra: what happens without it, and that a model of it answers the port."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from models.ultralytics_detector import UltralyticsDetector
from pipeline.errors import MissingDependencyError, NotFoundError
from pipeline.types import Frame


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"yolo11n\.pt"):
        UltralyticsDetector(tmp_path / "yolo11n.pt")


def test_without_the_extra_the_error_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yolo11n.pt").write_bytes(b"weights")
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(MissingDependencyError, match=r"sightline\[ultralytics\]"):
        UltralyticsDetector(tmp_path / "yolo11n.pt")


@pytest.mark.filterwarnings("ignore")
def test_an_untrained_yolo_answers_frames_of_several_sizes(tmp_path: Path) -> None:
    ultralytics = pytest.importorskip("ultralytics", reason="the ultralytics extra is not installed")
    path = tmp_path / "tiny.pt"
    ultralytics.YOLO("yolov8n.yaml").save(path)
    detector = UltralyticsDetector(path, minimum_confidence=0.001, device="cpu")
    frames = [Frame("north", 1, np.full((height, 160, 3), 90, np.uint8)) for height in (120, 200)]
    found = detector.detect(frames)
    assert len(found) == 2
    assert all(((each.confidence >= 0) & (each.confidence <= 1)).all() for each in found)
    assert detector.detect([]) == []
