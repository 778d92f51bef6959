"""Measuring links: who is who comes from marked boxes and from the ground, and the figures are what a pencil gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.calibration import Calibration
from pipeline.errors import BadInputError, NotFoundError
from pipeline.evaluate.tracking import IdentifiedBoxes
from pipeline.evidence import PlainAssociator
from pipeline.index.linking import Linker, LinkRules
from pipeline.types import BODY, Tracklet
from services.bench_link import bench_link
from services.evaluate_linking import evaluate_linking, read_homography
from tests.fakes import NOON_NS, InMemoryNeighbours, S, a_tracklet, embedding

TO_SECOND = np.array([[1.0, 0, 1000], [0, 1, 0], [0, 0, 1]])  # the other camera sees the same ground, moved
LOOKS = {1: (1, 0, 0), 2: (0, 1, 0), 3: (0, 0, 1)}
FRAMES = 20


def boxes_of(person: int) -> np.ndarray:
    """A person who walks to the right, each on a line of their own."""
    left = 20.0 * np.arange(FRAMES)
    top = np.full(FRAMES, 100.0 * person)
    return np.stack([left, top, left + 30, top + 90], axis=1)


def seen(name: str, person: int, camera: str, look: tuple[int, ...], shown: int | None = None) -> Tracklet:
    """shown: who is in the boxes, where it is not ``person``; the second camera's boxes lie where its picture shows the ground."""
    boxes = boxes_of(shown or person) + (np.array([1000, 0, 1000, 0]) if camera == "second" else 0)
    at_ns = NOON_NS + np.arange(FRAMES) * S // 10
    return a_tracklet(
        name,
        embedding(BODY, *look),
        camera_id=camera,
        started_at_ns=int(at_ns[0]),
        ended_at_ns=int(at_ns[-1]),
        at_ns=at_ns,
        xyxy=boxes.astype(np.float32),
        confidence=np.ones(FRAMES, np.float32),
    )


def truth() -> IdentifiedBoxes:
    people = np.repeat([1, 2, 3], FRAMES)
    return IdentifiedBoxes(
        np.tile(np.arange(1, FRAMES + 1), 3), people, np.concatenate([boxes_of(each) for each in (1, 2, 3)]), np.ones(3 * FRAMES)
    )


def a_linker(accept: float) -> Linker:
    return Linker(PlainAssociator(Calibration.default()), InMemoryNeighbours(), LinkRules(accept=accept))


def test_people_seen_from_two_sides_are_linked_and_counted() -> None:
    first = [seen(f"a{person}", person, "first", look) for person, look in LOOKS.items()]
    second = [seen(f"b{person}", person, "second", look) for person, look in LOOKS.items()]
    report = evaluate_linking(first, second, truth(), TO_SECOND, a_linker, 0.8)
    assert report["unlabelled"] == {"first": 0, "second": 0}
    assert report["people_in_both"] == 3
    assert report["linked"] == {
        "pairs_right": 3,
        "pairs_wrong": 0,
        "pairs_missed": 0,
        "precision": 1.0,
        "recall": 1.0,
        "idf1": 1.0,
        "identities": 3,
    }
    assert report["not_linked"]["idf1"] == pytest.approx(0.5)
    assert set(report["sweep"]) >= {"0.50", "0.80", "0.95"}


def test_a_wrong_link_costs_precision_and_a_missed_one_recall() -> None:
    first = [seen("a1", 1, "first", LOOKS[1]), seen("a2", 2, "first", LOOKS[2])]
    second = [seen("b1", 1, "second", LOOKS[2]), seen("b2", 2, "second", LOOKS[3])]  # 1 looks like 2 from the other side
    linked = evaluate_linking(first, second, truth(), TO_SECOND, a_linker, 0.8)["linked"]
    assert (linked["pairs_right"], linked["pairs_wrong"], linked["pairs_missed"]) == (0, 1, 2)
    assert (linked["precision"], linked["recall"]) == (0.0, 0.0)


def test_boxes_that_stand_where_nobody_is_marked_are_unlabelled() -> None:
    first = [seen("a1", 1, "first", LOOKS[1])]
    nowhere = [seen("b9", 9, "second", LOOKS[1])]
    report = evaluate_linking(first, nowhere, truth(), TO_SECOND, a_linker, 0.8)
    assert report["unlabelled"] == {"first": 0, "second": 1}
    assert report["linked"]["pairs_right"] == 0


def test_a_calibration_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"number of view_006\.mp4"):
        read_homography(tmp_path, Path("view_006.mp4"))
    (tmp_path / "homography_006.yaml").write_text("Matrix: [1, 2]")
    with pytest.raises(BadInputError, match="nine numbers"):
        read_homography(tmp_path, Path("view_006.mp4"))
    (tmp_path / "homography_006.yaml").write_text("Matrix: [1, 0, 0, 0, 1, 0, 0, 0, 1]\nError: [5.3]\n")
    assert (read_homography(tmp_path, Path("view_006.mp4")) == np.eye(3)).all()


def test_the_bench_tells_speed_memory_and_how_right_the_links_are() -> None:
    measured = bench_link(1000)
    assert len(measured["tracklets_per_processor_s_by_quarter"]) == 4
    assert measured["links"]["precision"] > 0.98
    assert measured["pairs"]["recall"] > 0.8
    with pytest.raises(BadInputError, match="1,000 tracklets or more"):
        bench_link(10)
