"""The ingest line: capture → detect → track → embed for some cameras in one process.

One thread per camera decodes, one detects batches over cameras, one tracks and embeds, so that the detector never waits for the
rest as long as the rest is cheaper. Footage is worked off whole and in batches of consecutive frames of one camera, which makes a
second run equal the first to the bit; live cameras share batches, and one that is frozen holds nobody up. Cameras may come and go.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pipeline.embed import EmbedStage
from pipeline.errors import SightlineError
from pipeline.ports import Capture, Detector, MediaStore, PreparingDetector
from pipeline.track.appearance import looks
from pipeline.track.stage import Tracker, TrackUpdates
from pipeline.types import ArchiveJob, Camera, CameraCoverage, Detections, Frame, Sound, Tracklet
from pipeline.voice.listening import Spoken
from services.listening import Ears
from services.sinks import EncodePicture, Publication, Sink, store_pictures

if TYPE_CHECKING:
    from services.metrics import Metrics

log = logging.getLogger("sightline.ingest")

COVERAGE_EVERY_S = 5.0
FLUSH_EVERY_S = 0.25


class CameraStages(Protocol):
    """Track and embed of one camera; state never shared."""

    def process(self, frame: Frame, detections: Detections) -> list[Publication]: ...

    def finish(self) -> list[Publication]: ...


@runtime_checkable
class HearingStages(CameraStages, Protocol):
    """Stages that take the sound of their camera too."""

    def hear(self, sounds: Callable[[], Iterator[Sound]]) -> None:
        """Where the sound is; called once, before the first frame."""
        ...


class TrackAndEmbed:
    """The two stages of a camera, one after the other, and its ears beside them."""

    def __init__(
        self,
        tracker: Tracker,
        embed: EmbedStage,
        on_embed: Callable[[float], None] = lambda seconds: None,
        ears: Ears | None = None,
    ) -> None:
        """on_embed: told what embedding took, in seconds, whenever there was something to publish; ears: None where nobody listens."""
        self._tracker, self._embed, self._on_embed, self._ears = tracker, embed, on_embed, ears
        self._last_ns = -1

    def hear(self, sounds: Callable[[], Iterator[Sound]]) -> None:
        """See HearingStages."""
        if self._ears is not None:
            self._ears.hear(sounds())

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
        return self._publish(updates, self._ears.listen(frame, updates) if self._ears is not None else [])

    def finish(self) -> list[Publication]:
        """The stream ended: every confirmed track closes."""
        return self._publish(self._tracker.finish(), self._ears.finish() if self._ears is not None else [])

    def _publish(self, updates: TrackUpdates, spoken: Sequence[Spoken]) -> list[Publication]:
        started_s = time.perf_counter()
        revisions = self._embed.revisions((*updates.open, *updates.closed), self._last_ns)
        if revisions:
            self._on_embed(time.perf_counter() - started_s)
        self._embed.forget(updates.forgotten)
        if self._ears is None:
            return [Publication(revision.tracklet, revision.pictures) for revision in revisions]
        self._ears.forget(updates.forgotten)
        tracklets, heard = self._ears.join([revision.tracklet for revision in revisions], spoken)
        seen = [Publication(tracklet, revision.pictures) for tracklet, revision in zip(tracklets, revisions, strict=True)]
        return [*seen, *(Publication(tracklet) for tracklet in heard)]


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


@dataclass(slots=True, eq=False)
class _Open:
    """A camera on the line: its capture, what it gave and nobody took yet, and its own stages."""

    capture: Capture
    stages: CameraStages
    items: queue.Queue[Frame | _End]
    thread: threading.Thread | None = None
    has_ended: bool = False  # its last item is in the queue
    is_given_up: bool = False  # somebody else plays it from the start: what it would still say is not said

    @property
    def camera(self) -> Camera:
        return self.capture.camera


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing a camera sends down the line."""

    error: Exception | None = None


_Item = tuple[_Open, Frame | _End]


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A batch ready for the detector: its frames and their cameras, what ``prepare`` made of them, and the cameras that ended with it."""

    frames: list[Frame]
    cameras: list[_Open]
    ends: list[tuple[_Open, _End]]
    made: Any


class IngestLine:
    """Runs captures through one detector and each camera's own stages into a sink.

    ``run`` returns when every camera ended or ``stop`` was called; ``is_endless``: only then, and cameras come and go by ``add`` and
    ``remove``. A camera that fails ends alone and is named in ``progress.failures``; an error of the detector or of a stage is a bug
    and is raised after everything was stopped.
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
        is_endless: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        on_end: Callable[[Capture, Exception | None], None] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """on_end: told of every capture that has left the line, its tracklets published; called from the line's own thread."""
        if len({capture.camera.camera_id for capture in captures}) != len(captures):
            raise ValueError("camera ids must be unique, got " + ", ".join(sorted(c.camera.camera_id for c in captures)))
        self.progress = Progress()
        self.errors_of_cameras: list[Exception] = []
        self._detector, self._make_stages, self._sink = detector, make_stages, sink
        self._batch_size, self._batch_wait_s = batch_size, batch_wait_s
        self._queue_frames = max(queue_frames, batch_size)
        self._is_endless = is_endless
        self._lock = threading.Lock()
        self._feeding: list[_Open] = []  # cameras whose end nobody took yet
        self._finishing: list[_Open] = []  # cameras whose tracklets are not all published
        self._arrived = threading.Event()  # something is in a camera's queue
        # What waits here grows old as well: a worker keeps it short, footage that is read to its end may run ahead.
        room = batch_size if is_endless else 2 * self._queue_frames
        self._found: queue.Queue[tuple[_Open, Frame, Detections] | tuple[_Open, _End] | None] = queue.Queue(room)
        self._prepared: queue.Queue[_Prepared | None] = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._on_progress, self._on_end = on_progress, on_end
        self._metrics = metrics
        self._waiting = [self._opened(capture) for capture in captures]

    # cameras that come and go

    def add(self, capture: Capture) -> None:
        """Take a camera onto the running line."""
        self._start(self._opened(capture))

    def remove(self, camera_id: str) -> None:
        """Let a camera leave: its frames on their way are finished, its open tracks close and are published.

        Footage leaves without a word: whoever takes it plays it from the start, and a track cut short would stand in the way of the whole
        one, which has the same id and revision.
        """
        with self._lock:
            leaving = [each for each in self._feeding if each.camera.camera_id == camera_id]
        self._let_go(leaving)

    def _let_go(self, cameras: Sequence[_Open]) -> None:
        for each in cameras:
            each.is_given_up = self._is_endless and not each.camera.is_live and not each.has_ended
            each.capture.close()

    def _opened(self, capture: Capture) -> _Open:
        # A live capture holds its own newest frames and drops what is late: what waits here would only grow old.
        room = 1 if capture.camera.is_live else self._queue_frames
        return _Open(capture, self._make_stages(capture.camera), queue.Queue(room))

    def _start(self, opened: _Open) -> None:
        opened.thread = threading.Thread(target=self._read, args=(opened,), name=f"capture-{opened.camera.camera_id}")
        with self._lock:
            self._feeding.append(opened)
            self._finishing.append(opened)
        if self._stop.is_set():
            opened.capture.close()
        if isinstance(opened.stages, HearingStages):
            opened.stages.hear(opened.capture.sounds)
        if self._metrics is not None:
            self._metrics.opened(opened.camera.camera_id, True)
        opened.thread.start()

    def stop(self) -> None:
        """End soon: captures are closed, frames on their way are finished, open tracks are closed and published."""
        self._stop.set()
        with self._lock:
            feeding = list(self._feeding)
        self._let_go([*feeding, *self._waiting])
        self._arrived.set()

    def run(self) -> Progress:
        """Work until the end. Raises what a stage raised."""
        for opened in self._waiting:
            self._start(opened)
        self._waiting = []
        threads = [threading.Thread(target=self._prepare, name="prepare"), threading.Thread(target=self._finish, name="track")]
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

    def _read(self, opened: _Open) -> None:
        error: Exception | None = None
        try:
            for frame in opened.capture.frames():
                opened.items.put(frame)
                self._arrived.set()
                if self._stop.is_set():
                    break
        except SightlineError as problem:
            error = problem
        except Exception as problem:  # a bug in an adapter must not be mistaken for the end of a film
            self._fail(problem)
            error = problem
        opened.items.put(_End(error))
        opened.has_ended = True
        self._arrived.set()

    # ------------------------------------------------------------------------------------------- detect

    def _prepare(self) -> None:
        """Make the network's input of the next batch while the detector works on the one before."""
        try:
            for batch in self._batches():
                frames = [(opened, item) for opened, item in batch if isinstance(item, Frame)]
                ends = [(opened, item) for opened, item in batch if isinstance(item, _End)]
                pictures = [frame for _, frame in frames]
                is_wanted = pictures and not self._errors and isinstance(self._detector, PreparingDetector)
                made = self._detector.prepare(pictures) if is_wanted else None  # type: ignore[attr-defined]
                self._prepared.put(_Prepared(pictures, [opened for opened, _ in frames], ends, made))
        except BaseException as error:
            self._fail(error)
        self._prepared.put(None)

    def _batches(self) -> Iterator[list[_Item]]:
        """Live cameras share batches of whatever has arrived; footage gives batches of consecutive frames of one camera."""
        while True:
            with self._lock:
                cameras = sorted(self._feeding, key=lambda opened: opened.camera.camera_id)
            if not cameras and (not self._is_endless or self._stop.is_set()):
                return
            self._arrived.wait(timeout=0.5)
            self._arrived.clear()
            live = [opened for opened in cameras if opened.camera.is_live]
            if live and self._batch_wait_s:
                time.sleep(self._batch_wait_s)
            is_news = True
            while is_news:
                is_news = False
                for batch in (*self._live_batches(live), *self._footage_batches(cameras)):
                    is_news = True
                    yield batch

    def _live_batches(self, cameras: Sequence[_Open]) -> list[list[_Item]]:
        """One item of each live camera that has one."""
        items = [item for opened in cameras if (item := self._take(opened)) is not None]
        return [items[start : start + self._batch_size] for start in range(0, len(items), self._batch_size)]

    def _footage_batches(self, cameras: Sequence[_Open]) -> Iterator[list[_Item]]:
        """A whole batch of each camera that has one, or its last."""
        for opened in cameras:
            if opened.camera.is_live or not (opened.has_ended or opened.items.qsize() >= self._batch_size):
                continue
            batch: list[_Item] = []
            while len(batch) < self._batch_size and (item := self._take(opened)) is not None:
                batch.append(item)
            if batch:
                yield batch

    def _take(self, opened: _Open) -> _Item | None:
        """The next item of a camera, if there is one; with its end it leaves those that feed the line."""
        try:
            item = opened.items.get_nowait()
        except queue.Empty:
            return None
        if isinstance(item, _End):
            with self._lock:
                self._feeding.remove(opened)
        return opened, item

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
            for opened, frame, detections in zip(work.cameras, work.frames, found, strict=True):
                self._found.put((opened, frame, detections))
        for end in work.ends:
            self._found.put(end)
        return False

    def _note_batch(self, frames: int, seconds: float) -> None:
        self.progress.detect_s += seconds
        if self._metrics is not None:
            self._metrics.detect_batch.observe(frames)
            self._metrics.detect_seconds.observe(seconds)

    # ------------------------------------------------------------------------------------ track and embed

    def _finish(self) -> None:
        covered_at = flushed_at = time.monotonic()
        is_over = False
        while not is_over:
            try:
                item, has_item = None, True
                try:
                    item = self._found.get(timeout=FLUSH_EVERY_S)
                except queue.Empty:
                    has_item = False
                if has_item and item is None:
                    is_over = True
                    self._sink.flush()
                elif item is not None and not self._errors:  # after an error: keep emptying, so that nobody waits for room
                    self._work(item)
                now = time.monotonic()
                if now - covered_at > COVERAGE_EVERY_S:
                    covered_at = now
                    self._cover()
                if now - flushed_at > FLUSH_EVERY_S and not self._stop.is_set():  # to the end of a line that stops there is one more
                    flushed_at = now
                    self._sink.flush()
            except BaseException as error:
                self._fail(error)

    def _work(self, item: tuple[_Open, Frame, Detections] | tuple[_Open, _End]) -> None:
        started = time.perf_counter()
        if len(item) == 3:
            if not item[0].is_given_up:
                self._advance(*item)
        else:
            self._end(*item)
        seconds = time.perf_counter() - started
        self.progress.stages_s += seconds
        if self._metrics is not None:
            self._metrics.track_seconds.observe(seconds)

    def _cover(self) -> None:
        with self._lock:
            cameras = list(self._finishing)
        for opened in cameras:
            self._account(opened)

    def _account(self, opened: _Open) -> None:
        """What a camera has seen so far, to the sink and the metrics."""
        coverage = opened.capture.coverage()
        self._sink.cover(coverage)
        if self._metrics is not None:
            self._metrics.observe_coverage(coverage)

    def _advance(self, opened: _Open, frame: Frame, detections: Detections) -> None:
        self._publish(opened.stages.process(frame, detections))
        self.progress.frames += 1
        self.progress.detections += len(detections)
        if self._metrics is not None:
            self._metrics.detections.labels(camera=frame.camera_id).inc(len(detections))
        self.progress.last_at_ns = frame.captured_at_ns
        if self._on_progress:
            self._on_progress(self.progress)

    def _end(self, opened: _Open, end: _End) -> None:
        if not opened.is_given_up:
            self._publish(opened.stages.finish())
        self._account(opened)
        if not self._stop.is_set():
            self._sink.flush()
        with self._lock:
            self._finishing.remove(opened)
        if opened.thread is not None:
            opened.thread.join()
        if self._metrics is not None:
            self._metrics.opened(opened.camera.camera_id, False)
        if end.error is not None:
            if not self._is_endless:  # a worker tries such a camera again, for months
                self.progress.failures[opened.camera.camera_id] = str(end.error)
                self.errors_of_cameras.append(end.error)
            log.warning("camera ended early", extra={"camera": opened.camera.camera_id, "reason": str(end.error)})
        if self._on_end is not None:
            self._on_end(opened.capture, end.error)

    def _publish(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            self._sink.publish(publication)
            if not self._is_endless:  # a worker that runs for months keeps no list of everybody
                self.progress.tracklets.add(publication.tracklet.tracklet_id)
            self.progress.publications += 1


class _ResultQueue:
    """A sink that hands on what the line gives, crops stored first, to a reader in another thread."""

    def __init__(self, media: MediaStore, encode_picture: EncodePicture) -> None:
        self.results: queue.Queue[Tracklet | CameraCoverage | None] = queue.Queue(maxsize=256)
        self.is_given_up = threading.Event()
        self._media, self._encode_picture = media, encode_picture

    def publish(self, publication: Publication) -> None:
        store_pictures(publication, self._media, self._encode_picture)
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
        encode_picture: EncodePicture,
        batch_size: int = 4,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics
        self._open_job, self._detector, self._make_stages = open_job, detector, make_stages
        self._media, self._encode_picture, self._batch_size = media, encode_picture, batch_size

    def __call__(self, job: ArchiveJob) -> Iterator[Tracklet | CameraCoverage]:
        """The tracklets and coverage of a job, as they come. Raises what the footage raises, BadInputError among it."""
        capture = self._open_job(job)
        sink = _ResultQueue(self._media, self._encode_picture)
        line = IngestLine([capture], self._detector, self._make_stages, sink, batch_size=self._batch_size, metrics=self._metrics)
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
