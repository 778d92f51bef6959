from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.ports import Sought
from pipeline.types import Detections, Frame
from services import bench_retriever as bench
from services.bench_retriever import Batch, Peer, Stage


class WorkClock:
    """Time that only work moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def seconds(self, work: Callable[[], object]) -> float:
        before = self.now_s
        work()
        return self.now_s - before


class TwoPeopleRetriever:
    """The Retriever port: sees the same two people in every frame; a frame takes 20 ms and 0.1 ms for each description."""

    name = "two-people"

    def __init__(self, clock: WorkClock) -> None:
        self._clock = clock

    def ask(self, descriptions: Sequence[str]) -> int:
        return len(descriptions)

    def look_for(self, frames: Sequence[Frame], asked: int, with_heat: bool = False) -> list[Sought]:
        self._clock.now_s += len(frames) * (0.02 + 0.0001 * asked)
        return [Sought(detections, np.zeros((2, asked), np.float32)) for detections in self.found(frames)]

    def found(self, frames: Sequence[Frame]) -> list[Detections]:
        boxes = np.array([[1, 1, 5, 9], [-3, -3, 0, 0]], np.float32)
        return [Detections(boxes, np.ones(2, np.float32)) for _ in frames]


class QueryFreeRetriever(TwoPeopleRetriever):
    """It can also only detect, in 15 ms a frame."""

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        self._clock.now_s += len(frames) * 0.015
        return self.found(frames)


def batches(count: int, size: int = 4) -> list[Batch]:
    return [Batch(tuple(Frame("a", n, np.full((12, 16, 3), 100, np.uint8), n) for n in range(size))) for _ in range(count)]


def a_peer(clock: WorkClock, seen: list[int] | None = None, is_slow: bool = False) -> Peer:
    """50 ms a frame and 10 ms a crop."""

    def detect(batch: Batch) -> None:
        clock.now_s += 0.05 * len(batch.frames)

    def encode(batch: Batch) -> None:
        crops = batch.crops()
        clock.now_s += 0.01 * len(crops)
        if seen is not None:
            seen.append(len(crops))

    return Peer("heavy", Stage("find", detect, is_slow), Stage("crops", encode, is_slow))


def measured(retriever: type[TwoPeopleRetriever] = TwoPeopleRetriever, rounds: int = 4, **changes: Any) -> dict[str, Any]:
    clock = WorkClock()
    return bench.measure(retriever(clock), [a_peer(clock, **changes)], batches(rounds + 1), timer=clock.seconds)


def test_times_are_of_one_frame() -> None:
    figures = measured()
    assert figures["ours_1_ms_per_frame"] == pytest.approx(20.1)
    assert figures["ours_100_ms_per_frame"] == pytest.approx(30)
    assert figures["people_per_frame"] == 2


def test_one_more_description_costs_its_share_of_the_difference() -> None:
    figures = measured()
    assert figures["one_more_description_ms_per_frame"] == pytest.approx(0.1)
    assert figures["hundredth_description_percent_of_frame"] == pytest.approx(100 * 0.1 / 20.1, abs=1e-3)
    assert figures["is_hundredth_description_below_5_percent"] is True


def test_a_peer_is_its_detector_and_its_crops_together() -> None:
    figures = measured()
    assert figures["heavy_ms_per_frame"] == pytest.approx(70)
    assert figures["heavy_crops_ms_per_frame"] == pytest.approx(20)
    assert figures["heavy_to_ours_1"] == pytest.approx(70 / 20.1, abs=1e-3)


def test_a_slow_peer_is_warmed_with_one_frame_and_runs_in_two_rounds() -> None:
    seen: list[int] = []
    figures = measured(rounds=6, seen=seen, is_slow=True)
    assert seen == [2, 8, 8]
    assert (figures["heavy_rounds"], figures["ours_1_rounds"]) == (2, 6)


def test_detection_alone_is_measured_where_the_retriever_can() -> None:
    assert "ours_query_free_ms_per_frame" not in measured()
    assert measured(QueryFreeRetriever)["ours_query_free_ms_per_frame"] == pytest.approx(15)


def test_rounds_are_interleaved() -> None:
    order: list[str] = []
    stages = [Stage(name, lambda batch, name=name: order.append(name)) for name in "abc"]  # type: ignore[misc]
    known = [Batch(batch.frames, tuple(np.zeros((0, 4), np.float32) for _ in batch.frames)) for batch in batches(3)]
    bench.interleave(stages, known, say=lambda text: None, timer=WorkClock().seconds)
    assert "".join(order) == "abc" + "abcabc"


def test_no_stage_sees_pixels_another_saw() -> None:
    random, batch = np.random.default_rng(0), batches(1)[0]
    first, second = batch.fresh(random), batch.fresh(random)
    assert not np.array_equal(first.frames[0].bgr, second.frames[0].bgr)
    assert np.abs(first.frames[0].bgr.astype(int) - batch.frames[0].bgr).max() <= 1


def test_a_person_outside_the_frame_still_gives_a_crop() -> None:
    batch = Batch(batches(1, size=1)[0].frames, (np.array([[-9, -9, -1, -1], [20, 20, 30, 30], [2, 3, 6, 9]], np.float32),))
    assert [crop.shape[:2] for crop in batch.crops()] == [(1, 1), (1, 1), (6, 4)]


def test_the_hundred_descriptions_differ() -> None:
    assert len(set(bench.descriptions(100))) == 100
    assert bench.descriptions(1) == ["man in a red jacket and red jeans"]


def test_a_machine_without_torch_still_measures_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    from models import two_stage_peer
    from pipeline.errors import MissingDependencyError

    def missing() -> tuple[Any, Any]:
        raise MissingDependencyError("torch with torchvision", "torch")

    monkeypatch.setattr(two_stage_peer, "_torch_and_torchvision", missing)
    figures = bench._on_gpu(TwoPeopleRetriever(WorkClock()), batches(2), 1, lambda text: None)
    assert "sightline[torch]" in figures["cuda"]
