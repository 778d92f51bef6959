"""The ingest line with simple stages: order, failures, live and footage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from pipeline.embed import EmbedStage
from pipeline.errors import SourceUnavailableError
from pipeline.track.stage import Tracker
from pipeline.types import BODY, TEXT, Camera, CameraCoverage, Detections, Frame, Sound, Tracklet, Vectors
from services.ingest import IngestLine, TrackAndEmbed
from services.sinks import Publication
from tests.fakes import COLOURS, ColourLooks, noise

SECOND = 1_000_000_000


class FilmCapture:
    """Gives ``count`` small frames; may fail after ``fails_after`` of them, or hang for ever."""

    def __init__(self, camera_id: str, count: int, *, fails_after: int | None = None, hangs: bool = False, live: bool = False) -> None:
        self.camera = Camera(camera_id, "film", is_live=live)
        self._count, self._fails_after = count, fails_after
        self._closed = threading.Event()
        self._hangs = hangs
        self.seen = 0

    def frames(self) -> Iterator[Frame]:
        if self._hangs:
            self._closed.wait(20)
            return
        for number in range(self._count):
            if self._closed.is_set():
                return
            if number == self._fails_after:
                raise SourceUnavailableError(f"{self.camera.camera_id} vanished")
            self.seen += 1
            yield Frame(self.camera.camera_id, number * SECOND // 10, np.zeros((8, 8, 3), np.uint8), number)

    def sounds(self) -> Iterator[Sound]:
        return iter(())

    def coverage(self) -> CameraCoverage:
        return CameraCoverage(self.camera.camera_id, 0, self.seen * SECOND // 10, self.seen, self.seen)

    def close(self) -> None:
        self._closed.set()


class CountingDetector:
    name = "counting"

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, int]]] = []

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        self.batches.append([(frame.camera_id, frame.number) for frame in frames])
        return [Detections.none() for _ in frames]


class BrokenDetector(CountingDetector):
    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        raise RuntimeError("a bug")


class NotingStages:
    """Notes the frames; publishes one tracklet at the end."""

    noted: dict[str, list[int]]

    def __init__(self, camera: Camera, noted: dict[str, list[int]], breaks_at: int | None = None) -> None:
        self._camera, self._noted, self._breaks_at = camera, noted, breaks_at
        noted[camera.camera_id] = []

    def process(self, frame: Frame, detections: Detections) -> list[Publication]:
        if frame.number == self._breaks_at:
            raise RuntimeError("a bug in a stage")
        self._noted[self._camera.camera_id].append(frame.number)
        return []

    def finish(self) -> list[Publication]:
        at = np.zeros(1, np.int64)
        return [Publication(Tracklet(f"t-{self._camera.camera_id}", 1, self._camera.camera_id, 0, 0, at, np.zeros((1, 4)), np.ones(1)))]


class ListSink:
    def __init__(self) -> None:
        self.published: list[str] = []
        self.covered: dict[str, int] = {}
        self.flushes = 0

    def publish(self, publication: Publication) -> None:
        self.published.append(publication.tracklet.tracklet_id)

    def cover(self, coverage: CameraCoverage) -> None:
        self.covered[coverage.camera_id] = coverage.seen

    def flush(self) -> None:
        self.flushes += 1


def run(captures: Sequence[FilmCapture], detector: CountingDetector, breaks_at: int | None = None, **options: object):
    noted: dict[str, list[int]] = {}
    sink = ListSink()
    line = IngestLine(captures, detector, lambda camera: NotingStages(camera, noted, breaks_at), sink, **options)  # type: ignore[arg-type]
    return line, noted, sink


def test_every_frame_of_every_camera_goes_through_in_order() -> None:
    line, noted, sink = run([FilmCapture("a", 25), FilmCapture("b", 7)], CountingDetector(), batch_size=4)
    line.run()
    assert noted == {"a": list(range(25)), "b": list(range(7))}
    assert sorted(sink.published) == ["t-a", "t-b"]
    assert sink.covered == {"a": 25, "b": 7}
    assert sink.flushes > 0


def test_footage_is_batched_the_same_way_every_time() -> None:
    runs = []
    for _ in range(2):
        detector = CountingDetector()
        run([FilmCapture("a", 10), FilmCapture("b", 10)], detector, batch_size=4)[0].run()
        runs.append(detector.batches)
    assert runs[0] == runs[1]
    assert runs[0][0] == [("a", 0), ("a", 1), ("a", 2), ("a", 3)]


def test_a_camera_that_vanishes_ends_alone_and_is_named() -> None:
    line, noted, sink = run([FilmCapture("a", 20, fails_after=5), FilmCapture("b", 20)], CountingDetector())
    progress = line.run()
    assert progress.failures == {"a": "a vanished"}
    assert noted["a"] == list(range(5))
    assert noted["b"] == list(range(20))
    assert sorted(sink.published) == ["t-a", "t-b"]


def test_one_frozen_live_camera_does_not_hold_the_others() -> None:
    frozen = FilmCapture("frozen", 0, hangs=True, live=True)
    line, noted, _ = run([frozen, FilmCapture("b", 30, live=True)], CountingDetector(), batch_wait_s=0.0)
    worker = threading.Thread(target=line.run)
    worker.start()
    ends_at = time.monotonic() + 5
    while len(noted["b"]) < 30 and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert noted["b"] == list(range(30))
    line.stop()
    worker.join(5)
    assert not worker.is_alive()


def test_live_cameras_share_a_batch() -> None:
    detector = CountingDetector()
    run([FilmCapture("a", 30, live=True), FilmCapture("b", 30, live=True)], detector, batch_wait_s=0.01)[0].run()
    assert any(len({camera for camera, _ in batch}) == 2 for batch in detector.batches)


def test_a_bug_in_the_detector_stops_the_line_loudly() -> None:
    line, _, sink = run([FilmCapture("a", 500)], BrokenDetector())
    with pytest.raises(RuntimeError, match="a bug"):
        line.run()
    assert sink.published == []


def test_a_bug_in_a_stage_stops_the_line_loudly() -> None:
    line, _, sink = run([FilmCapture("a", 500)], CountingDetector(), breaks_at=40)
    with pytest.raises(RuntimeError, match="a bug in a stage"):
        line.run()
    assert sink.published == []


def test_two_cameras_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="camera ids must be unique, got a, a"):
        run([FilmCapture("a", 1), FilmCapture("a", 1)], CountingDetector())


# ------------------------------------------------------------------------------------------- track and embed


def walked(looks: ColourLooks, vectors: dict[str, Vectors]) -> dict[int, str]:
    """Two people and between them a ghost too faint to be tracked, for two seconds: left edge -> colour of each tracklet."""
    stages = TrackAndEmbed(Tracker("north"), EmbedStage(Camera("north", "film"), looks))
    boxes = np.array([[20, 20, 60, 120], [120, 20, 160, 120], [220, 20, 260, 120]], np.float32)
    picture = noise(240, 320)
    for number in range(20):
        stages.process(Frame("north", number * SECOND // 10, picture), Detections(boxes, np.array([0.9, 0.02, 0.9], np.float32), vectors))
    return {round(float(each.tracklet.xyxy[0, 0])): each.tracklet.attributes[0].value for each in stages.finish()}


def test_what_the_detector_saw_reaches_the_tracklet_of_its_own_box() -> None:
    looks = ColourLooks()
    colours = np.eye(len(COLOURS), dtype=np.float32)[[COLOURS.index(name) for name in ("green", "red", "blue")]]
    vectors = {TEXT: Vectors("fake-text@1", colours), BODY: Vectors("fake-body@1", np.eye(3, dtype=np.float32))}
    assert walked(looks, vectors) == {20: "green", 220: "blue"}
    assert looks.crops == 0


def test_a_detector_of_boxes_alone_leaves_the_looks_to_the_crops() -> None:
    looks = ColourLooks()
    assert set(walked(looks, {})) == {20, 220}
    assert looks.crops > 0


def test_footage_that_leaves_an_endless_line_says_nothing_more_and_a_live_camera_closes_its_tracks() -> None:
    noted: dict[str, list[int]] = {}
    ended: list[str] = []
    sink = ListSink()
    line = IngestLine(
        [],
        CountingDetector(),
        lambda camera: NotingStages(camera, noted),
        sink,
        is_endless=True,
        on_end=lambda capture, error: ended.append(capture.camera.camera_id),
    )
    thread = threading.Thread(target=line.run)
    thread.start()
    footage, live, whole = FilmCapture("footage", 10**9), FilmCapture("live", 10**9, live=True), FilmCapture("whole", 9)
    for capture in (footage, live, whole):
        line.add(capture)
    until(lambda: len(noted["footage"]) > 20 and len(noted["live"]) > 20 and "whole" in ended)
    line.remove("footage")
    line.remove("live")
    until(lambda: len(ended) == 3)
    assert sorted(sink.published) == ["t-live", "t-whole"]
    line.add(FilmCapture("footage", 5))  # played again from the start
    until(lambda: len(ended) == 4)
    assert sorted(sink.published) == ["t-footage", "t-live", "t-whole"]
    line.stop()
    thread.join(10)
    assert not thread.is_alive()


def until(is_done: Callable[[], bool], longest_s: float = 10.0) -> None:
    ends_at = time.monotonic() + longest_s
    while not is_done():
        assert time.monotonic() < ends_at
        time.sleep(0.01)
