"""Sources worked off whole on one machine: ``sightline ingest`` and ``sightline archive``."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.archive import job_key
from pipeline.errors import NotReadyError, SettingsError
from pipeline.ports import Broker, Capture, Detector
from pipeline.types import Camera
from services.archive import ArchiveFollower, submit_archive
from services.ingest import CameraStages
from services.ingest import Progress as LineProgress
from services.settings import Settings
from services.topics import COVERAGE, TRACKLETS

log = logging.getLogger("sightline.footage")

MOST_FAULTS = 5  # so often archive workers may end of themselves before it is no use to go on
INDEX_WAIT_S = 120.0  # longest wait for the index to catch up after the last frame


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What came of some sources."""

    cameras: int
    frames: int
    detections: int
    tracklets: int
    revisions: int
    seconds: float
    stream_s: float
    failures: dict[str, str] = field(default_factory=dict)
    may_pass: bool = False  # every failure is a camera that did not answer: trying again may help

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "frames_per_second": round(self.frames / max(self.seconds, 1e-9), 2)}

    def text(self) -> str:
        rate = self.frames / max(self.seconds, 1e-9)
        cameras = "1 camera" if self.cameras == 1 else f"{self.cameras} cameras"
        lines = [
            f"{self.frames} frames of {cameras} in {self.seconds:.1f} s ({rate:.1f} a second), "
            f"{self.detections} boxes, {self.tracklets} tracklets indexed"
        ]
        lines += [f"camera {camera} ended early: {reason}" for camera, reason in self.failures.items()]
        return "\n".join(lines)


def ingest_sources(
    settings: Settings,
    sources: Sequence[str],
    *,
    sampling_hz: float | None = None,
    start: str | None = None,
    camera_id: str | None = None,
    show: bool = False,
) -> IngestReport:
    """Run sources to their end. Raises NotFoundError, UnreadableMediaError before anything is written, when a file is no footage."""
    from services import wiring
    from services.cli.state import parse_time

    cameras = wiring.cameras_of(sources, settings.capture.sampling_hz if sampling_hz is None else sampling_hz)
    if camera_id is not None and len(cameras) != 1:
        raise SettingsError(f"--camera names one source, got {len(cameras)}: leave it out or give one source")
    starts_at_ns = parse_time(start, 0)
    changes: dict[str, Any] = {"starts_at_ns": starts_at_ns} if starts_at_ns else {}
    if camera_id is not None:
        changes["camera_id"] = camera_id
    zones = {each.camera_id: each for each in settings.camera_list()}
    cameras = [dataclasses.replace(camera, **changes) for camera in cameras]
    cameras = [_with_zones(camera, zones.get(camera.camera_id)) for camera in cameras]
    captures = [wiring.open_camera(settings, camera) for camera in cameras]
    expected = sum(wiring.expected_frames(camera) for camera in cameras)
    with progress_bar(expected, show) as advance:
        return run_captures(settings, captures, on_frame=advance)


def _with_zones(camera: Camera, known: Camera | None) -> Camera:
    """Zones, microphone, site and position of the settings file hold for a source of the same name."""
    if known is None:
        return camera
    return dataclasses.replace(camera, zones=known.zones, options=known.options, site=known.site, position=known.position)


def run_captures(
    settings: Settings,
    captures: Sequence[Capture],
    *,
    detector: Detector | None = None,
    make_stages: Callable[[Camera], CameraStages] | None = None,
    on_frame: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> IngestReport:
    """Captures through the whole line into the index of this machine; returns when every tracklet can be searched.

    The index and alert workers run beside the line in this process, as members of their groups; where another process already
    writes the index, that one does.
    """
    from services import wiring

    started = time.monotonic()
    first_ns: list[int] = []

    def note(progress: LineProgress) -> None:
        if not first_ns:
            first_ns.append(progress.last_at_ns)
        if on_frame is not None:
            on_frame(progress.frames)

    with wiring.open_broker(settings) as broker, beside(settings) as workers:
        line = wiring.make_line(
            settings, captures, wiring.topic_sink(settings, broker), detector=detector, make_stages=make_stages, on_progress=note
        )
        stopper = _stop_with(line.stop, stop)
        try:
            progress = line.run()
        finally:
            stopper.set()
        wait_for_index(broker, workers, settings.index.group)
    return IngestReport(
        cameras=len(captures),
        frames=progress.frames,
        detections=progress.detections,
        tracklets=len(progress.tracklets),
        revisions=progress.publications,
        seconds=time.monotonic() - started,
        stream_s=(progress.last_at_ns - first_ns[0]) / 1e9 if first_ns else 0.0,
        failures=dict(progress.failures),
        may_pass=bool(line.errors_of_cameras) and all(isinstance(error, NotReadyError) for error in line.errors_of_cameras),
    )


def _stop_with(act: Callable[[], None], stop: threading.Event | None) -> threading.Event:
    """Call ``act`` when ``stop`` is set; the returned event ends the waiting."""
    done = threading.Event()
    if stop is not None:

        def wait() -> None:
            while not done.wait(0.1):
                if stop.is_set():
                    act()
                    return

        threading.Thread(target=wait, name="stop", daemon=True).start()
    return done


@dataclass
class Beside:
    """Workers that run as threads of this process, and what they failed of."""

    threads: list[threading.Thread] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


@contextmanager
def beside(settings: Settings) -> Iterator[Beside]:
    """Index and alert workers in threads, until the block ends; on Kafka they run elsewhere, and none is started here."""
    from services import wiring

    stop = threading.Event()
    workers = Beside()

    def guarded(name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            workers.errors.append(error)
            log.error("worker failed", extra={"worker": name, "error": str(error)})

    for name in ("index", "alert") if settings.broker.kind == "embedded" else ():
        try:
            work = wiring.make_worker(name, settings, stop)
        except NotReadyError as reason:  # another process writes the index: its worker will
            log.debug("left to another process", extra={"worker": name, "reason": str(reason)})
            continue
        thread = threading.Thread(target=guarded, args=(name, work), name=name)
        thread.start()
        workers.threads.append(thread)
    try:
        yield workers
    finally:
        stop.set()
        for thread in workers.threads:
            thread.join()


def wait_for_index(broker: Broker, workers: Beside, group: str = "index", longest_s: float = INDEX_WAIT_S) -> None:
    """Return once the index ``group`` has committed all that is on its topics. Raises what a worker failed of, or NotReadyError."""
    ends = {p: offset for topic in (TRACKLETS, COVERAGE) for p, offset in broker.end_offsets(topic).items() if offset}
    ends_at = time.monotonic() + longest_s
    while True:
        if workers.errors:
            raise workers.errors[0]
        committed = broker.groups().get(group, {})
        if all(committed.get(partition, 0) >= offset for partition, offset in ends.items()):
            return
        if time.monotonic() > ends_at:
            raise NotReadyError(f"the index did not catch up within {longest_s:.0f} s: does its worker run? nothing is lost")
        time.sleep(0.05 if workers.threads else 0.5)  # workers elsewhere: a question to Kafka


@contextmanager
def progress_bar(expected: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; a bar without end where the number of frames is not known."""
    if not show:
        yield lambda done: None
        return
    from rich.console import Console

    columns = (TextColumn("frames"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=expected or None)
        yield lambda done: bar.update(task, completed=done)


# ------------------------------------------------------------------------------------------------ archive


def archive_folder(
    settings: Settings,
    settings_file: Path | None,
    folder: Path,
    *,
    workers: int,
    sampling_hz: float | None = None,
    redo: bool = False,
    show: bool = False,
) -> dict[str, Any]:
    """Cut footage into jobs and have ``workers`` processes work them off; a process that dies is started again.

    What was worked off before is left out unless ``redo``. Files that are no footage are named in the report and the rest goes on.
    Raises NotFoundError when there is nothing to do, RuntimeError when workers keep failing of themselves.
    """
    from services import wiring
    from services.supervisor import worker_command

    started = time.monotonic()
    cameras = wiring.cameras_of([str(folder)], settings.capture.sampling_hz if sampling_hz is None else sampling_hz)
    with ExitStack() as stack:
        broker = stack.enter_context(wiring.open_broker(settings))
        threads = stack.enter_context(beside(settings))
        jobs = submit_archive(broker, [wiring.footage_of(camera) for camera in cameras], settings.archive.shard_s, redo)
        follower = stack.enter_context(ArchiveFollower(broker, jobs))
        follower.catch_up()
        command = worker_command("archive", settings, settings_file)
        processes = [] if follower.is_finished else [subprocess.Popen(command) for _ in range(max(1, workers))]
        stack.callback(_end_all, processes)
        advance = stack.enter_context(job_bar(len(jobs), show))
        faults: list[int] = []
        while not follower.is_finished:
            follower.poll(0.3)
            advance(follower.done + follower.failed)
            if threads.errors:
                raise threads.errors[0]
            _replace_dead(processes, command, faults)
        wait_for_index(broker, threads, settings.index.group)
        uris = {job_key(job): f"{job.camera.uri} part {job.shard}" for job in jobs}
        failures = {uris[key]: error for key, error in follower.errors.items()}
    with wiring.open_gallery(settings, read_only=True) as gallery:
        tracklets = gallery.statistics().tracklets
    for name, error in failures.items():
        log.error("job failed", extra={"job": name, "error": error})
    return {
        "jobs": len(jobs),
        "failed": len(failures),
        "failures": failures,
        "tracklets": tracklets,
        "seconds": round(time.monotonic() - started, 2),
    }


def _replace_dead(processes: list[subprocess.Popen[bytes]], command: Sequence[str], faults: list[int]) -> None:
    """Start ended workers again; ``faults`` gathers the exit codes of those that nobody killed."""
    for place, process in enumerate(processes):
        code = process.poll()
        if code is None:
            continue
        if code == 2:
            raise SettingsError("an archive worker refused to start: see its message above")
        if code > 0:
            faults.append(code)
        if len(faults) > MOST_FAULTS:
            raise RuntimeError(f"archive workers ended by themselves {len(faults)} times (exit codes {faults}): see their messages above")
        log.warning("archive worker ended, started again", extra={"pid": process.pid, "code": code})
        processes[place] = subprocess.Popen(command)


def _end_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def job_bar(total: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar of jobs on standard error."""
    if not show:
        yield lambda done: None
        return
    from rich.console import Console

    columns = (TextColumn("jobs"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
