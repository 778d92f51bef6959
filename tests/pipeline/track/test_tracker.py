"""The tracker follows people through misses and crossings, forgets ghosts, and says the same on a replay."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pipeline.track import lifecycle
from pipeline.track.lifecycle import Track
from pipeline.track.stage import Tracker, TrackerSettings, TrackUpdates
from pipeline.types import Detections

STEP_NS = 40_000_000
Box = tuple[float, float, float, float]


def person(x: float, y: float = 100.0, height: float = 100.0) -> Box:
    return (x, y, x + 0.4 * height, y + height)


def detections(boxes: list[Box], confidence: float = 0.9) -> Detections:
    return Detections(np.asarray(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), confidence, np.float32))


def run(
    frames: list[list[Box]], confidence: float = 0.9, step_ns: int = STEP_NS, camera: str = "gate"
) -> tuple[list[Track], list[TrackUpdates]]:
    tracker = Tracker(camera)
    updates = [tracker.update(1_000 + n * step_ns, detections(boxes, confidence)) for n, boxes in enumerate(frames)]
    updates.append(tracker.finish())
    return [track for update in updates for track in update.closed], updates


def test_one_walker_is_one_track_from_first_to_last_frame() -> None:
    closed, updates = run([[person(10 + 2 * n)] for n in range(50)])
    assert len(closed) == 1
    assert len(closed[0].at_ns) == 50
    assert closed[0].is_closed
    assert closed[0].is_confirmed
    assert sum(len(update.confirmed) for update in updates) == 1


def test_a_short_ghost_is_forgotten_and_named() -> None:
    closed, updates = run([[person(10)]] * 5 + [[]] * 40)
    assert closed == []
    assert sum(len(update.forgotten) for update in updates) == 1


def test_a_lasting_but_unsure_box_never_becomes_a_person() -> None:
    closed, _ = run([[person(10)]] * 60, confidence=0.35)
    assert closed == []


def test_a_gap_is_bridged_with_confidence_zero() -> None:
    frames = [[person(10 + 2 * n)] if not 30 <= n < 50 else [] for n in range(80)]
    closed, _ = run(frames)
    assert len(closed) == 1
    assert len(closed[0].at_ns) == 80
    assert (closed[0].confidences == 0).sum() == 20
    assert np.diff(closed[0].boxes[:, 0]).min() > 0


def test_two_who_cross_keep_their_identity_by_their_motion() -> None:
    frames = [[person(10 + 4 * n), person(400 - 4 * n, y=112)] for n in range(90)]
    closed, _ = run(frames)
    assert len(closed) == 2
    for track in closed:
        assert abs(track.boxes[-1, 0] - track.boxes[0, 0]) > 250


def test_looks_tell_two_apart_who_turn_round_behind_each_other() -> None:
    red, blue = np.eye(2, dtype=np.float32)
    tracker = Tracker("gate")
    for n in range(90):
        towards = 50 * (1 - abs(n - 45) / 45)  # they meet after 45 frames and go back
        tracker.update(n * STEP_NS, detections([person(100 + towards), person(200 - towards)]), np.stack([red, blue]))
    closed = tracker.finish().closed
    assert len(closed) == 2
    for track in closed:
        assert abs(track.boxes[-1, 0] - track.boxes[0, 0]) < 10


def test_a_replay_gives_the_same_ids_and_another_camera_others() -> None:
    frames = [[person(10 + 2 * n), person(300 - n)] for n in range(40)]
    first, again, elsewhere = run(frames)[0], run(frames)[0], run(frames, camera="yard")[0]
    assert [track.tracklet_id for track in first] == [track.tracklet_id for track in again]
    assert {track.tracklet_id for track in first}.isdisjoint(track.tracklet_id for track in elsewhere)
    assert all(len(track.tracklet_id) == 16 for track in first)


def test_two_trackers_share_nothing() -> None:
    one, other = Tracker("a"), Tracker("b")
    one.update(0, detections([person(10)]))
    assert other.update(0, detections([])).seen == ()


@pytest.mark.parametrize("step_ns", [20_000_000, 200_000_000, 500_000_000])
def test_a_walker_is_followed_at_any_sampling_rate(step_ns: int) -> None:
    frames = [[person(10 + 60 * n * step_ns / 1e9)] for n in range(int(6e9 / step_ns))]
    closed, _ = run(frames, step_ns=step_ns)
    assert len(closed) == 1


def test_frames_of_uneven_distance_are_one_track() -> None:
    chance = np.random.default_rng(3)
    tracker, now_ns = Tracker("gate"), 0
    for _ in range(60):
        now_ns += int(chance.uniform(15e6, 250e6))
        tracker.update(now_ns, detections([person(10 + 50 * now_ns / 1e9)]))
    assert len(tracker.finish().closed) == 1


def test_faint_boxes_carry_a_track_on_but_start_none() -> None:
    tracker = Tracker("gate")
    for n in range(90):
        tracker.update(n * STEP_NS, detections([person(10 + n)], 0.9 if n < 40 else 0.08))
    closed = tracker.finish().closed
    assert len(closed) == 1
    assert (closed[0].confidences > 0).all()


def test_updates_name_the_rows_of_the_detections_given() -> None:
    tracker = Tracker("gate")
    given = Detections(np.asarray([person(500), person(10)], np.float32), np.asarray([0.001, 0.9], np.float32))
    update = tracker.update(0, given)
    assert update.detection.tolist() == [1]
    assert update.xyxy[0, 0] == 10


def test_who_stands_behind_another_is_occluded() -> None:
    update = Tracker("gate").update(0, detections([person(10, y=100), person(20, y=120)]))
    hidden = dict(zip(update.detection.tolist(), update.occlusion.tolist(), strict=True))
    assert hidden[0] > 0.5
    assert hidden[1] == 0


def test_time_that_does_not_rise_is_refused() -> None:
    tracker = Tracker("gate")
    tracker.update(5, detections([]))
    with pytest.raises(ValueError, match="must rise"):
        tracker.update(5, detections([]))


def test_settings_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="unsure <= sure"):
        TrackerSettings(sure=0.1, unsure=0.2)


def test_a_track_of_hours_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "MOST_BOXES", 200)
    tracker = Tracker("gate")
    for n in range(3 * lifecycle.MOST_BOXES):
        tracker.update(n * STEP_NS, detections([person(10)]))
    track = tracker.finish().closed[0]
    assert len(track.at_ns) <= lifecycle.MOST_BOXES
    assert track.at_ns[0] == 0
    assert (np.diff(track.at_ns) > 0).all()


def test_twenty_people_take_a_few_milliseconds() -> None:
    tracker = Tracker("gate")
    frames = [detections([person(50 * (k % 10) + n, y=100 + 150 * (k // 10)) for k in range(20)]) for n in range(60)]
    took = []
    for n, given in enumerate(frames):
        started = time.perf_counter()
        tracker.update(n * STEP_NS, given)
        took.append(time.perf_counter() - started)
    assert np.median(took) < 0.03  # about 2 ms on an idle core; a loaded machine must not fail the test
