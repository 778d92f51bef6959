"""The extra's detector: without the package it says what to install, with it it runs a model of one's own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from models.ultralytics_detector import UltralyticsDetector
from pipeline.errors import MissingDependencyError, NotFoundError
from pipeline.types import Frame


def test_without_the_package_the_error_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    (tmp_path / "mine.pt").touch()
    with pytest.raises(MissingDependencyError, match=r"pip install 'sightline\[ultralytics\]'"):
        UltralyticsDetector(tmp_path / "mine.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gone\.pt"):
        UltralyticsDetector(tmp_path / "gone.pt")


@pytest.fixture(scope="module")
def own_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny YOLO of random weights, saved to disk."""
    ultralytics = pytest.importorskip("ultralytics", reason="the extra ultralytics is not installed", exc_type=ImportError)
    path = tmp_path_factory.mktemp("yolo") / "random.pt"
    ultralytics.YOLO("yolo11n.yaml").save(str(path))
    return path


def noise(height: int, width: int) -> Frame:
    return Frame("gate", 0, np.random.default_rng(height).integers(0, 255, (height, width, 3)).astype(np.uint8))


@pytest.mark.filterwarnings("ignore")  # ultralytics' and torch's own
def test_a_model_of_ones_own_answers_each_frame_in_its_own_pixels(own_weights: Path) -> None:
    detector = UltralyticsDetector(own_weights, minimum_confidence=0.0, device="cpu")
    assert detector.name == "ultralytics-random"
    frames = [noise(64, 96), noise(48, 32), noise(1, 1)]
    found = detector.detect(frames)
    assert len(found) == 3
    for frame, each in zip(frames, found, strict=True):
        assert (each.xyxy >= 0).all()
        assert (each.xyxy <= [frame.width, frame.height, frame.width, frame.height]).all()
        assert ((each.confidence >= 0) & (each.confidence <= 1)).all()
    assert detector.detect([]) == []


@pytest.mark.filterwarnings("ignore")
def test_the_least_confidence_is_kept(own_weights: Path) -> None:
    assert len(UltralyticsDetector(own_weights, minimum_confidence=0.99, device="cpu").detect([noise(64, 96)])[0]) == 0
