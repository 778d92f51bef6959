"""Tracking figures equal those of TrackEval, py-motmetrics and roboflow's trackers to the last printed digit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import BadInputError, NotFoundError
from pipeline.evaluate import tracking
from pipeline.evaluate.tracking import IdentifiedBoxes, average_precision, read_mot, tracking_figures


def boxes(rows: list[tuple[int, int, float, float, float, float]], confidence: float = 1.0) -> IdentifiedBoxes:
    table = np.asarray(rows, np.float64).reshape(-1, 6)
    return IdentifiedBoxes(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2:], np.full(len(table), confidence))


def random_walk(seed: int, people: int = 6, frames: int = 60) -> tuple[IdentifiedBoxes, IdentifiedBoxes]:
    """People who walk at random, and tracks of them with misses, jitter, ghosts and swapped identities."""
    chance = np.random.default_rng(seed)
    start, step = chance.uniform(0, 300, (people, 2)), chance.normal(0, 3, (people, 2))
    true, found = [], []
    swap = np.arange(people)
    for frame in range(1, frames + 1):
        if chance.random() < 0.08:
            swap = chance.permutation(people)
        for person in range(people):
            x, y = start[person] + frame * step[person]
            if chance.random() < 0.9:
                true.append((frame, person + 3, x, y, x + 30, y + 80))
            if chance.random() < 0.85:
                dx, dy = chance.normal(0, 5, 2)
                found.append((frame, 10 * int(swap[person]), x + dx, y + dy, x + dx + 31, y + dy + 78))
        if chance.random() < 0.2:
            found.append((frame, 999, 5.0, 5.0, 30.0, 70.0))
    return boxes(true), boxes(found)


def clip_or_walk(name: str, shared_data: Path) -> tuple[IdentifiedBoxes, IdentifiedBoxes]:
    """Real ground truth against a shaken, thinned and re-identified copy of itself; or a walk."""
    truth = read_mot(shared_data / "video" / name)
    truth = truth.where(truth.confidence > 0)
    chance = np.random.default_rng(5)
    keep = chance.random(len(truth)) < 0.8
    found = truth.where(keep)
    shaken = found.xyxy + chance.normal(0, 6, found.xyxy.shape)
    identity = found.identity + 100 * (found.frame // 70)
    return truth, IdentifiedBoxes(found.frame, identity, shaken, found.confidence)


def as_trackeval(truth: IdentifiedBoxes, tracked: IdentifiedBoxes) -> dict[str, Any]:
    clip = tracking._compare(truth, tracked)
    return {
        "num_timesteps": len(clip.frames),
        "num_gt_ids": clip.people,
        "num_tracker_ids": clip.tracks,
        "num_gt_dets": clip.boxes_true,
        "num_tracker_dets": clip.boxes_tracked,
        "gt_ids": [frame.truth for frame in clip.frames],
        "tracker_ids": [frame.tracked for frame in clip.frames],
        "similarity_scores": [frame.overlap for frame in clip.frames],
    }


def assert_equals_trackeval(truth: IdentifiedBoxes, tracked: IdentifiedBoxes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = pytest.importorskip("trackeval", reason="trackeval is not installed: pip install --no-deps trackeval").metrics
        data = as_trackeval(truth, tracked)
        hota = metrics.HOTA().eval_sequence(data)
        identity = metrics.Identity({"PRINT_CONFIG": False}).eval_sequence(data)
        clear = metrics.CLEAR({"PRINT_CONFIG": False}).eval_sequence(data)
    ours = tracking_figures(truth, tracked)
    theirs = [hota[key].mean() for key in ("HOTA", "DetA", "AssA", "LocA")] + [identity[key] for key in ("IDF1", "IDP", "IDR")]
    assert [ours.hota, ours.det_a, ours.ass_a, ours.loc_a, ours.idf1, ours.idp, ours.idr] == pytest.approx(theirs, abs=1e-12)
    assert ours.mota == pytest.approx(clear["MOTA"], abs=1e-12)
    assert (ours.id_switches, ours.false_positives, ours.false_negatives) == (clear["IDSW"], clear["CLR_FP"], clear["CLR_FN"])


@pytest.mark.parametrize("seed", range(6))
def test_figures_of_random_walks_equal_trackeval(seed: int) -> None:
    assert_equals_trackeval(*random_walk(seed))


@pytest.mark.parametrize("clip", ["pets_view001_a.txt", "towncentre_a.txt"])
def test_figures_of_real_clips_equal_trackeval(clip: str, shared_data: Path) -> None:
    assert_equals_trackeval(*clip_or_walk(clip, shared_data))


@pytest.mark.parametrize("seed", range(3))
def test_identity_and_clear_figures_equal_motmetrics(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        motmetrics = pytest.importorskip("motmetrics")
        truth, tracked = random_walk(seed)
        accumulator = motmetrics.MOTAccumulator(auto_id=True)
        for frame in np.unique(truth.frame):
            left, right = truth.frame == frame, tracked.frame == frame
            distance = 1 - tracking.box_iou(truth.xyxy[left], tracked.xyxy[right])
            accumulator.update(truth.identity[left], tracked.identity[right], np.where(distance <= 0.5, distance, np.nan))
        names = ["idf1", "idp", "idr", "mota", "num_switches", "num_false_positives", "num_misses"]
        theirs = motmetrics.metrics.create().compute(accumulator, metrics=names, name="walk").loc["walk"].tolist()
    ours = tracking_figures(truth, tracked)
    found = [ours.idf1, ours.idp, ours.idr, ours.mota, ours.id_switches, ours.false_positives, ours.false_negatives]
    assert found == pytest.approx(theirs, abs=1e-9)


def test_a_perfect_answer_scores_one() -> None:
    truth, _ = random_walk(1)
    figures = tracking_figures(truth, truth)
    assert (figures.hota, figures.idf1, figures.mota, figures.id_switches) == (pytest.approx(1.0), 1.0, 1.0, 0)


def test_no_answer_scores_nothing() -> None:
    truth, _ = random_walk(1)
    figures = tracking_figures(truth, boxes([]))
    assert (figures.hota, figures.idf1, figures.mota, figures.false_negatives) == (0.0, 0.0, 0.0, len(truth))


def test_average_precision_is_the_area_under_the_falling_precision() -> None:
    truth = boxes([(1, 0, 0, 0, 10, 20), (1, 1, 50, 0, 60, 20)])
    hit, ghost = (1, 0, 0.0, 0.0, 10.0, 20.0), (1, 1, 200.0, 0.0, 210.0, 20.0)
    late_hit = (1, 2, 50.0, 0.0, 60.0, 20.0)
    found = boxes([hit, ghost, late_hit])
    graded = IdentifiedBoxes(found.frame, found.identity, found.xyxy, np.array([0.9, 0.8, 0.7]))
    assert average_precision(truth, graded) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_a_person_found_twice_counts_once() -> None:
    truth = boxes([(1, 0, 0, 0, 10, 20)])
    assert average_precision(truth, boxes([(1, 0, 0, 0, 10, 20), (1, 1, 0, 0, 10, 20)])) == 1.0
    assert tracking_figures(truth, boxes([(1, 0, 0, 0, 10, 20), (1, 1, 0, 0, 10, 20)])).false_positives == 1


def test_an_identity_twice_in_a_frame_is_refused() -> None:
    twice = boxes([(1, 4, 0, 0, 10, 20), (1, 4, 50, 0, 60, 20)])
    with pytest.raises(BadInputError, match="once a frame"):
        tracking_figures(twice, boxes([]))


def test_a_mot_file_is_read_with_commas_or_blanks(tmp_path: Path) -> None:
    path = tmp_path / "truth.txt"
    path.write_text("1,7,10,20,30,40,1,-1,-1,-1\n\n2 7 11 20 30 40\n")
    read = read_mot(path)
    assert read.xyxy.tolist() == [[10, 20, 40, 60], [11, 20, 41, 60]]
    assert read.frame.tolist() == [1, 2]
    assert read.confidence.tolist() == [1, 1]


def test_a_file_that_is_no_mot_text_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "truth.txt"
    path.write_text("1,7,10,20,30,40,1\nhello\n")
    with pytest.raises(BadInputError, match="line 2"):
        read_mot(path)
    with pytest.raises(NotFoundError, match="is not there"):
        read_mot(tmp_path / "missing.txt")
