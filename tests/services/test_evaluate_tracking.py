"""Tracking is measured as the user asks for it: a clip, its ground truth, a detector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import BadInputError, NotFoundError
from pipeline.types import Camera, CameraCoverage, Detections, Frame, Sound
from services.evaluate_tracking import evaluate_tracking

FRAMES = 60


class PaintedClip:
    """Grey frames, 25 a second."""

    def __init__(self, frames: int = FRAMES) -> None:
        self.camera = Camera("clip", "painted.mp4")
        self._frames = frames
        self.is_closed = False

    def frames(self) -> Iterator[Frame]:
        for number in range(self._frames):
            yield Frame("clip", 10**18 + number * 40_000_000, np.full((240, 320, 3), 90, np.uint8), number)

    def sounds(self) -> Iterator[Sound]:
        return iter(())

    def coverage(self) -> CameraCoverage:
        return CameraCoverage("clip", 0, 0)

    def close(self) -> None:
        self.is_closed = True


class PerfectDetector:
    """Says where the walker of ``truth_file`` is."""

    name = "perfect"

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        return [
            Detections(np.asarray([[20 + 2 * f.number, 50, 60 + 2 * f.number, 150]], np.float32), np.ones(1, np.float32)) for f in frames
        ]


@pytest.fixture
def truth_file(tmp_path: Path) -> Path:
    path = tmp_path / "truth.txt"
    path.write_text("".join(f"{n + 1},1,{20 + 2 * n},50,40,100,{n % 2},-1,-1,-1\n" for n in range(FRAMES)))
    return path


def test_a_perfect_detector_gives_perfect_figures_and_closes_the_clip(truth_file: Path) -> None:
    clip = PaintedClip()
    report = evaluate_tracking(clip, truth_file, PerfectDetector())
    assert report["ap50"] == 1.0
    assert report["hota"] > 0.95
    assert (report["idf1"], report["mota"], report["id_switches"], report["frames"]) == (1.0, 1.0, 0, FRAMES)
    assert 0 < report["online"]["idf1"] < 1  # a person is not given before it is confirmed
    assert report["frames_per_second"] > 0
    assert clip.is_closed


@pytest.mark.filterwarnings("ignore")
def test_peers_are_measured_on_the_same_boxes(truth_file: Path) -> None:
    pytest.importorskip("trackers")
    pytest.importorskip("supervision")
    report = evaluate_tracking(PaintedClip(), truth_file, PerfectDetector(), with_peers=True)
    assert {name.split()[0] for name in report["peers"]} == {"C-BIoU", "ByteTrack"}
    assert all(figures["idf1"] > 0.8 for figures in report["peers"].values())


def test_a_clip_without_frames_is_refused(truth_file: Path) -> None:
    with pytest.raises(BadInputError, match="must hold frames"):
        evaluate_tracking(PaintedClip(0), truth_file, PerfectDetector())


def test_a_missing_ground_truth_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"missing\.txt"):
        evaluate_tracking(PaintedClip(), tmp_path / "missing.txt", PerfectDetector())
