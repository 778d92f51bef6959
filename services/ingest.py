"""The ingest line: capture → detect → track → embed for some cameras in one process.

One thread per camera decodes, one detects batches over cameras, one tracks and embeds, so that the detector never waits for the
rest as long as the rest is cheaper. Footage is worked off whole and in batches of consecutive frames of one camera, which makes a
second run equal the first to the bit; live cameras share batches, and one that is frozen holds nobody up.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.embed import EmbedStage
from pipeline.errors import SightlineError
from pipeline.ports import Broker, Capture, Detector, MediaStore, PreparingDetector
from pipeline.track.appearance import looks
from pipeline.track.stage import Tracker, TrackUpdates
from pipeline.types import ArchiveJob, Camera, CameraCoverage, Detections, Frame, Tracklet
from services import wire
from services.topics import COVERAGE, TRACKLETS

if TYPE_CHECKING:
    from services.metrics import Metrics

log = logging.getLogger("sightline.ingest")

COVERAGE_EVERY_S = 5.0
FLUSH_EVERY_S = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Publication:
    """A tracklet revision and the pictures that go with it: (key, BGR crop)."""

    tracklet: Tracklet
    pictures: tuple[tuple[str, NDArray[np.uint8]], ...] = ()


class CameraStages(Protocol):
    """Track and embed of one camera; state never shared."""

    def process(self, frame: Frame, detections: Detections) -> list[Publication]: ...

    def finish(self) -> list[Publication]: ...


class TrackAndEmbed:
    """The two stages of a camera, one after the other."""

    def __init__(self, tracker: Tracker, embed: EmbedStage) -> None:
        self._tracker, self._embed = tracker, embed
        self._last_ns = -1

    def process(self, frame: Frame, detections: Detections) -> list[Publication]:
        """Publications due after this frame; a frame whose time does not rise is left out."""
        if frame.captured_at_ns <= self._last_ns:
            return []
        self._last_ns = frame.captured_at_ns
        # Boxes too faint to carry a track on would only seem to hide people, and cost their looks.
        kept = detections.where(detections.confidence >= self._tracker.settings.unsure)
        updates = self._tracker.update(frame.captured_at_ns, kept, looks(frame.bgr, kept.xyxy))
        seen = [track.tracklet_id for track in updates.seen]
        vectors = kept.where(updates.detection).vectors  # of the same boxes, where the detector gives any
        self._embed.observe(frame, seen, updates.xyxy, updates.confidence, updates.occlusion, vectors)
        return self._publish(updates)

    def finish(self) -> list[Publication]:
        """The stream ended: every confirmed track closes."""
        return self._publish(self._tracker.finish())

    def _publish(self, updates: TrackUpdates) -> list[Publication]:
        revisions = self._embed.revisions((*updates.open, *updates.closed), self._last_ns)
        self._embed.forget(updates.forgotten)
        return [Publication(revision.tracklet, revision.pictures) for revision in revisions]


class Sink(Protocol):
    """Where publications and coverage accounts go."""

    def publish(self, publication: Publication) -> None: ...

    def cover(self, coverage: CameraCoverage) -> None: ...

    def flush(self) -> None: ...


@dataclass
class Progress:
    """How far the line is; read by progress bars and benches."""

    frames: int = 0
    detections: int = 0
    tracklets: set[str] = field(default_factory=set)
    publications: int = 0
    failures: dict[str, str] = field(default_factory=dict)  # camera_id -> why it ended early
    detect_s: float = 0.0
    stages_s: float = 0.0
    last_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing a camera sends down the line."""

    camera_id: str
    error: Exception | None = None


_Item = Frame | _End


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A batch ready for the detector: its frames, what ``prepare`` made of them, and the cameras that ended with it."""

    frames: list[Frame]
    ends: list[_End]
    made: Any


class IngestLine:
    """Runs captures through one detector and each camera's own stages into a sink.

    ``run`` returns when every camera ended or ``stop`` was called; a camera that fails ends alone and is named in
    ``progress.failures``; an error of the detector or of a stage is a bug and is raised after everything was stopped.
    """

    def __init__(
        self,
        captures: Sequence[Capture],
        detector: Detector,
        make_stages: Callable[[Camera], CameraStages],
        sink: Sink,
        *,
        batch_size: int = 4,
        batch_wait_s: float = 0.02,
        queue_frames: int = 8,
        on_progress: Callable[[Progress], None] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        if len({capture.camera.camera_id for capture in captures}) != len(captures):
            raise ValueError("camera ids must be unique, got " + ", ".join(sorted(c.camera.camera_id for c in captures)))
        self.progress = Progress()
        self._captures = list(captures)
        self._detector = detector
        self._stages = {capture.camera.camera_id: make_stages(capture.camera) for capture in captures}
        self._sink = sink
        self._batch_size = batch_size
        self._batch_wait_s = batch_wait_s
        self._queues = {c.camera.camera_id: queue.Queue[_Item](maxsize=max(queue_frames, batch_size)) for c in captures}
        self._arrived = threading.Event()  # something is in a camera's queue
        self._found: queue.Queue[tuple[Frame, Detections] | _End | None] = queue.Queue(maxsize=2 * max(batch_size, queue_frames))
        self._prepared: queue.Queue[_Prepared | None] = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self.errors_of_cameras: list[Exception] = []
        self._on_progress = on_progress
        self._metrics = metrics
        self._is_live = any(capture.camera.is_live for capture in captures)

    def stop(self) -> None:
        """End soon: captures are closed, frames on their way are finished, open tracks are closed and published."""
        self._stop.set()
        for capture in self._captures:
            capture.close()

    def run(self) -> Progress:
        """Work until the end. Raises what a stage raised."""
        threads = [threading.Thread(target=self._read, args=(c,), name=f"capture-{c.camera.camera_id}") for c in self._captures]
        threads.append(threading.Thread(target=self._prepare, name="prepare"))
        threads.append(threading.Thread(target=self._finish, name="track"))
        for thread in threads:
            thread.start()
        is_over = False
        while not is_over:
            try:
                is_over = self._detect_next()
            except BaseException as error:  # a bug, or an interrupt: what is on its way is emptied, so that every thread ends
                self._fail(error)
        self._found.put(None)
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        return self.progress

    def _fail(self, error: BaseException) -> None:
        self._errors.append(error)
        self.stop()

    # ------------------------------------------------------------------------------------------ capture

    def _read(self, capture: Capture) -> None:
        camera_id = capture.camera.camera_id
        error: Exception | None = None
        try:
            for frame in capture.frames():
                self._queues[camera_id].put(frame)
                self._arrived.set()
                if self._stop.is_set():
                    break
        except SightlineError as problem:
            error = problem
        except Exception as problem:  # a bug in an adapter must not be mistaken for the end of a film
            self._fail(problem)
            error = problem
        self._queues[camera_id].put(_End(camera_id, error))
        self._arrived.set()

    # ------------------------------------------------------------------------------------------- detect

    def _prepare(self) -> None:
        """Make the network's input of the next batch while the detector works on the one before."""
        try:
            for batch in self._live_batches() if self._is_live else self._footage_batches():
                frames = [item for item in batch if isinstance(item, Frame)]
                ends = [item for item in batch if isinstance(item, _End)]
                is_wanted = frames and not self._errors and isinstance(self._detector, PreparingDetector)
                made = self._detector.prepare(frames) if is_wanted else None  # type: ignore[attr-defined]
                self._prepared.put(_Prepared(frames, ends, made))
        except BaseException as error:
            self._fail(error)
        self._prepared.put(None)

    def _detect_next(self) -> bool:
        """Work on the next batch; whether it was the last."""
        work = self._prepared.get()
        if work is None:
            return True
        if work.frames and not self._errors:
            started = time.perf_counter()
            if isinstance(self._detector, PreparingDetector):
                found = self._detector.detect_prepared(work.frames, work.made)
            else:
                found = self._detector.detect(work.frames)
            self._note_batch(len(work.frames), time.perf_counter() - started)
            for frame, detections in zip(work.frames, found, strict=True):
                self._found.put((frame, detections))
        for end in work.ends:
            self._found.put(end)
        return False

    def _note_batch(self, frames: int, seconds: float) -> None:
        self.progress.detect_s += seconds
        if self._metrics is not None:
            self._metrics.detect_batch.observe(frames)
            self._metrics.detect_seconds.observe(seconds)

    def _footage_batches(self) -> Iterator[list[_Item]]:
        """Batches of consecutive frames of one camera, cameras in turn."""
        open_ids = list(self._queues)
        while open_ids:
            for camera_id in list(open_ids):
                batch: list[_Item] = []
                while len(batch) < self._batch_size:
                    item = self._queues[camera_id].get()
                    batch.append(item)
                    if isinstance(item, _End):
                        open_ids.remove(camera_id)
                        break
                yield batch

    def _live_batches(self) -> Iterator[list[_Item]]:
        """Whatever has arrived, cameras in turn, after a short wait for company."""
        open_ids = set(self._queues)
        while open_ids:
            self._arrived.wait(timeout=0.5)
            self._arrived.clear()
            if self._batch_wait_s:
                time.sleep(self._batch_wait_s)
            while True:
                batch: list[_Item] = []
                for camera_id in sorted(open_ids):
                    try:
                        batch.append(self._queues[camera_id].get_nowait())
                    except queue.Empty:
                        continue
                if not batch:
                    break
                open_ids -= {item.camera_id for item in batch if isinstance(item, _End)}
                for start in range(0, len(batch), self._batch_size):
                    yield batch[start : start + self._batch_size]

    # ------------------------------------------------------------------------------------ track and embed

    def _finish(self) -> None:
        captures = {capture.camera.camera_id: capture for capture in self._captures}
        covered_at = flushed_at = time.monotonic()
        item: tuple[Frame, Detections] | _End | None = None
        while True:
            try:
                item = self._found.get()
                if item is None:
                    self._sink.flush()
                    return
                if self._errors:
                    continue  # keep emptying, so that nobody waits for room
                started = time.perf_counter()
                if isinstance(item, _End):
                    self._end(item, captures[item.camera_id])
                else:
                    self._advance(*item)
                self.progress.stages_s += time.perf_counter() - started
                now = time.monotonic()
                if now - covered_at > COVERAGE_EVERY_S:
                    covered_at = now
                    for capture in self._captures:
                        self._sink.cover(capture.coverage())
                if now - flushed_at > FLUSH_EVERY_S:
                    flushed_at = now
                    self._sink.flush()
            except BaseException as error:
                self._fail(error)
                if item is None:
                    return

    def _advance(self, frame: Frame, detections: Detections) -> None:
        self._publish(self._stages[frame.camera_id].process(frame, detections))
        self.progress.frames += 1
        self.progress.detections += len(detections)
        if self._metrics is not None:
            self._metrics.detections.labels(camera=frame.camera_id).inc(len(detections))
        self.progress.last_at_ns = frame.captured_at_ns
        if self._on_progress:
            self._on_progress(self.progress)

    def _end(self, end: _End, capture: Capture) -> None:
        self._publish(self._stages[end.camera_id].finish())
        self._sink.cover(capture.coverage())
        self._sink.flush()
        if end.error is not None:
            self.progress.failures[end.camera_id] = str(end.error)
            self.errors_of_cameras.append(end.error)
            log.warning("camera ended early", extra={"camera": end.camera_id, "reason": str(end.error)})

    def _publish(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            self._sink.publish(publication)
            self.progress.tracklets.add(publication.tracklet.tracklet_id)
            self.progress.publications += 1


class TopicSink:
    """Crops into the media store first, then the tracklet onto its topic: a reader never meets a crop that is not there."""

    def __init__(
        self,
        broker: Broker,
        media: MediaStore,
        encode_picture: Callable[[NDArray[np.uint8]], bytes],
        metrics: Metrics | None = None,
    ) -> None:
        self._broker = broker
        self._media = media
        self._encode_picture = encode_picture
        self._metrics = metrics

    def publish(self, publication: Publication) -> None:
        for key, picture in publication.pictures:
            self._media.put(key, self._encode_picture(picture))
        tracklet = publication.tracklet
        self._broker.produce(TRACKLETS, wire.encode(tracklet), key=tracklet.camera_id.encode())
        if self._metrics is not None:
            kind = "closed" if tracklet.is_closed else "confirmed" if tracklet.revision == 1 else "better"
            self._metrics.tracklets.labels(camera=tracklet.camera_id, kind=kind).inc()

    def cover(self, coverage: CameraCoverage) -> None:
        self._broker.produce(COVERAGE, wire.encode(coverage), key=coverage.camera_id.encode())
        if self._metrics is not None:
            self._metrics.observe_coverage(coverage)

    def flush(self) -> None:
        self._broker.flush()


class _ResultQueue:
    """A sink that hands on what the line gives, crops stored first, to a reader in another thread."""

    def __init__(self, media: MediaStore, encode_picture: Callable[[NDArray[np.uint8]], bytes]) -> None:
        self.results: queue.Queue[Tracklet | CameraCoverage | None] = queue.Queue(maxsize=256)
        self.is_given_up = threading.Event()
        self._media, self._encode_picture = media, encode_picture

    def publish(self, publication: Publication) -> None:
        for key, picture in publication.pictures:
            self._media.put(key, self._encode_picture(picture))
        self._put(publication.tracklet)

    def cover(self, coverage: CameraCoverage) -> None:
        self._put(coverage)

    def flush(self) -> None:
        """The archive worker flushes what it has produced."""

    def end(self) -> None:
        """Tell the reader that nothing follows."""
        self._put(None)

    def _put(self, result: Tracklet | CameraCoverage | None) -> None:
        while not self.is_given_up.is_set():
            try:
                self.results.put(result, timeout=0.2)
            except queue.Full:
                continue
            return


class JobRunner:
    """Runs archive jobs through the ingest line, one after another; callable as the archive worker wants it."""

    def __init__(
        self,
        open_job: Callable[[ArchiveJob], Capture],
        detector: Detector,
        make_stages: Callable[[Camera], CameraStages],
        media: MediaStore,
        encode_picture: Callable[[NDArray[np.uint8]], bytes],
        batch_size: int = 4,
    ) -> None:
        self._open_job, self._detector, self._make_stages = open_job, detector, make_stages
        self._media, self._encode_picture, self._batch_size = media, encode_picture, batch_size

    def __call__(self, job: ArchiveJob) -> Iterator[Tracklet | CameraCoverage]:
        """The tracklets and coverage of a job, as they come. Raises what the footage raises, BadInputError among it."""
        capture = self._open_job(job)
        sink = _ResultQueue(self._media, self._encode_picture)
        line = IngestLine([capture], self._detector, self._make_stages, sink, batch_size=self._batch_size)
        errors: list[BaseException] = []

        def work() -> None:
            try:
                line.run()
            except BaseException as error:
                errors.append(error)
            sink.end()

        thread = threading.Thread(target=work, name=f"job-{job.job_id}-{job.shard}")
        thread.start()
        try:
            while (result := sink.results.get()) is not None:
                yield result
        finally:  # the worker may leave us half way
            sink.is_given_up.set()
            line.stop()
            thread.join()
        if errors:
            raise errors[0]
        if line.errors_of_cameras:
            raise line.errors_of_cameras[0]
