"""Measures detection and tracking on a labelled clip, with the peers on the same boxes where they are installed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError, MissingDependencyError
from pipeline.evaluate.tracking import IdentifiedBoxes, average_precision, read_mot, tracking_figures
from pipeline.ports import Capture, Detector
from pipeline.track.appearance import looks
from pipeline.track.lifecycle import Track
from pipeline.track.stage import Tracker, TrackerSettings
from pipeline.types import Detections, Frame

PEER_LEAST = 0.06  # calibrated confidence given to the peers: raw 0.35 of NanoDet, near which they did best
Row = tuple[int, int, Any, float]


@dataclass
class _Watched:
    """What a pass over the clip gave: MOT frame numbers by time, detections, rows as the camera saw them, closed tracks, seconds."""

    number_of: dict[int, int] = field(default_factory=dict)
    detections: list[tuple[int, Detections]] = field(default_factory=list)
    online: list[Row] = field(default_factory=list)
    closed: list[Track] = field(default_factory=list)
    detect_s: float = 0.0
    track_s: float = 0.0
    whole_s: float = 0.0


def evaluate_tracking(
    capture: Capture,
    ground_truth: Path,
    detector: Detector,
    tracker_settings: TrackerSettings | None = None,
    *,
    with_peers: bool = False,
) -> dict[str, Any]:
    """AP50, HOTA, DetA, AssA, LocA, IDF1, MOTA, id switches and frames per second of a clip; closes the capture.

    The main figures are of the tracks as closed, which is what the index holds in the end; ``online`` holds those of the boxes as they
    were given frame by frame. Every row of the MOT file counts, whatever its confidence column says. Fractions are 0..1.
    Raises NotFoundError or BadInputError for the ground truth; MissingDependencyError when peers are wanted and not installed.
    """
    truth = read_mot(ground_truth)
    truth = replace(truth, confidence=np.ones(len(truth)))
    try:
        watched = _watch(capture.frames(), detector, Tracker(capture.camera.camera_id, tracker_settings))
    finally:
        capture.close()
    if not watched.detections:
        raise BadInputError(f"the clip must hold frames, {capture.camera.uri} gave none")
    truth = truth.where(np.isin(truth.frame, list(watched.number_of.values())))
    found = _boxes((n, i, box, c) for n, d in watched.detections for i, (box, c) in enumerate(zip(d.xyxy, d.confidence, strict=True)))
    report: dict[str, Any] = {
        "frames": len(watched.detections),
        "ap50": average_precision(truth, found),
        **_figures(truth, _closed_boxes(watched)),
        "frames_per_second": len(watched.detections) / max(watched.whole_s, 1e-9),
        "detect_ms": 1e3 * watched.detect_s / len(watched.detections),
        "track_ms": 1e3 * watched.track_s / len(watched.detections),
        "detector": detector.name,
        "online": _figures(truth, _boxes(watched.online)),
    }
    if with_peers:
        report["peers"] = {name: _figures(truth, _boxes(_follow(peer, watched))) for name, peer in _peers().items()}
    return report


def _watch(frames: Iterable[Frame], detector: Detector, tracker: Tracker) -> _Watched:
    """One pass over the clip."""
    watched = _Watched()
    began = time.perf_counter()
    for frame in frames:
        if frame.captured_at_ns in watched.number_of:
            continue
        started = time.perf_counter()
        detections = detector.detect([frame])[0]
        watched.detect_s += time.perf_counter() - started
        number = frame.number + 1  # MOT files count from 1
        watched.number_of[frame.captured_at_ns] = number
        watched.detections.append((number, detections))
        started = time.perf_counter()
        kept = detections.where(detections.confidence >= tracker.settings.unsure)
        updates = tracker.update(frame.captured_at_ns, kept, looks(frame.bgr, kept.xyxy))
        watched.track_s += time.perf_counter() - started
        for track, box, confidence in zip(updates.seen, updates.xyxy, updates.confidence, strict=True):
            if track.is_confirmed:
                watched.online.append((number, int(track.tracklet_id, 16) >> 2, box, float(confidence)))
        watched.closed.extend(updates.closed)
    watched.closed.extend(tracker.finish().closed)
    watched.whole_s = time.perf_counter() - began
    return watched


def _closed_boxes(watched: _Watched) -> IdentifiedBoxes:
    """The boxes of closed tracks, bridged ones among them."""
    return _boxes(
        (watched.number_of[int(at_ns)], identity, box, float(confidence))
        for identity, track in enumerate(watched.closed)
        for at_ns, box, confidence in zip(track.at_ns, track.boxes, track.confidences, strict=True)
    )


def _boxes(rows: Iterable[Row]) -> IdentifiedBoxes:
    """Rows (frame, identity, box, confidence) as arrays."""
    held = list(rows)
    return IdentifiedBoxes(
        np.asarray([row[0] for row in held], np.int64),
        np.asarray([row[1] for row in held], np.int64),
        np.asarray([row[2] for row in held], np.float64).reshape(-1, 4),
        np.asarray([row[3] for row in held], np.float64),
    )


def _figures(truth: IdentifiedBoxes, tracked: IdentifiedBoxes) -> dict[str, float | int]:
    return tracking_figures(truth, tracked).as_dict()


def _peers() -> dict[str, Callable[[], Any]]:
    """Trackers of roboflow's `trackers` at their defaults, by name."""
    if importlib.util.find_spec("trackers") is None or importlib.util.find_spec("supervision") is None:
        raise MissingDependencyError("trackers and supervision, the peers of --peers,", "test")
    import trackers

    return {"C-BIoU (trackers)": trackers.CBIoUTracker, "ByteTrack (trackers)": trackers.ByteTrackTracker}


def _follow(make: Callable[[], Any], watched: _Watched) -> list[Row]:
    """What a peer makes of the same boxes."""
    import supervision

    tracker = make()
    rows: list[Row] = []
    for number, detections in watched.detections:
        kept: NDArray[np.bool_] = detections.confidence >= PEER_LEAST
        boxes = supervision.Detections(
            xyxy=detections.xyxy[kept].copy(), confidence=detections.confidence[kept].copy(), class_id=np.zeros(int(kept.sum()), int)
        )
        followed = tracker.update(boxes)
        identities = followed.tracker_id if followed.tracker_id is not None else np.zeros(0, int)
        rows += [(number, int(i), box, 1.0) for box, i in zip(followed.xyxy, identities, strict=True) if i >= 0]
    return rows
