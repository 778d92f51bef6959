"""Archive jobs shared by processes that die: the same tracklets as an undisturbed run."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.archive import Footage, job_key
from pipeline.errors import UnreadableMediaError
from pipeline.types import ArchiveJob, Camera, CameraCoverage, Tracklet
from services.adapters.sqlite_broker import SqliteBroker
from services.archive import ArchiveFollower, archive_worker, submit_archive
from services.dead_letters import list_dead_letters
from services.index import IndexHandler, index_worker
from services.topics import ARCHIVE_JOBS, create_all
from tests.fakes import InMemoryGallery

SESSION_S = 1.0
S = 1_000_000_000


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    with SqliteBroker(tmp_path / "log.db", session_timeout_s=SESSION_S) as opened:
        create_all(opened)
        yield opened


def footage(count: int) -> list[Footage]:
    return [Footage(Camera(f"camera-{i}", f"clip-{i}.mp4"), 30.0) for i in range(count)]


def people_of(job: ArchiveJob) -> Iterator[Tracklet | CameraCoverage]:
    """Three people a job, as the ingest line would find them: the same each time."""
    for i in range(3):
        at_ns = int(job.from_s * S) + i
        box = np.array([[0, 0, 10, 20]], np.float32)
        name = f"{job.camera.camera_id}-{job.shard}-{i}"
        yield Tracklet(name, 1, job.camera.camera_id, at_ns, at_ns, np.array([at_ns]), box, np.ones(1, np.float32))
    yield CameraCoverage(job.camera.camera_id, int(job.from_s * S), int(job.from_s * S) + 1, seen=1)


def indexed(broker: SqliteBroker) -> dict[str, int]:
    gallery = InMemoryGallery()
    index_worker(broker, IndexHandler(gallery)).run(until_drained=True)
    return {tracklet_id: tracklet.revision for tracklet_id, tracklet in gallery.held.items()}


def expected(jobs: tuple[ArchiveJob, ...]) -> dict[str, int]:
    return {tracklet.tracklet_id: tracklet.revision for job in jobs for tracklet in people_of(job) if isinstance(tracklet, Tracklet)}


def test_all_jobs_are_worked_and_reported(broker: SqliteBroker) -> None:
    jobs = submit_archive(broker, footage(5))
    with ArchiveFollower(broker, jobs) as follower:
        assert not follower.is_finished
        archive_worker(broker, people_of).run(until_drained=True)
        follower.catch_up()
        assert follower.is_finished
        assert (follower.done, follower.failed) == (5, 0)
        assert follower.tracklets == {job_key(job): 3 for job in jobs}
    assert indexed(broker) == expected(jobs)


def test_a_long_file_is_worked_in_shards(broker: SqliteBroker) -> None:
    jobs = submit_archive(broker, [Footage(Camera("north", "long.mp4"), 2400.0)])
    assert len(jobs) == 4
    archive_worker(broker, people_of).run(until_drained=True)
    assert indexed(broker) == expected(jobs)


def test_footage_that_was_done_is_not_worked_again_unless_asked(broker: SqliteBroker) -> None:
    worked: Counter[str] = Counter()

    def counting(job: ArchiveJob) -> Iterator[Tracklet | CameraCoverage]:
        worked[job.camera.camera_id] += 1
        yield from people_of(job)

    submit_archive(broker, footage(2))
    archive_worker(broker, counting).run(until_drained=True)
    jobs = submit_archive(broker, footage(3))
    archive_worker(broker, counting).run(until_drained=True)
    assert worked == {"camera-0": 1, "camera-1": 1, "camera-2": 1}
    with ArchiveFollower(broker, jobs) as follower:
        follower.catch_up()
        assert follower.is_finished
        submit_archive(broker, footage(3), redo=True)
        follower.catch_up()
        assert not follower.is_finished
        archive_worker(broker, counting).run(until_drained=True)
        follower.catch_up()
        assert follower.is_finished
    assert set(worked.values()) == {2}


def test_footage_that_waits_already_is_not_queued_twice_but_what_failed_is(broker: SqliteBroker) -> None:
    jobs = submit_archive(broker, footage(2))
    assert submit_archive(broker, footage(2)) == jobs
    assert sum(broker.end_offsets(ARCHIVE_JOBS).values()) == 2

    def broken(job: ArchiveJob) -> Iterator[Tracklet | CameraCoverage]:
        raise UnreadableMediaError("not mounted yet")

    archive_worker(broker, broken).run(until_drained=True)
    submit_archive(broker, footage(2))
    with ArchiveFollower(broker, jobs) as follower:
        follower.catch_up()
        assert not follower.is_finished
        archive_worker(broker, people_of).run(until_drained=True)
        follower.catch_up()
        assert (follower.done, follower.errors) == (2, {})


def test_footage_that_cannot_be_read_is_put_aside_and_the_rest_go_on(broker: SqliteBroker) -> None:
    def process(job: ArchiveJob) -> Iterator[Tracklet | CameraCoverage]:
        if job.camera.camera_id == "camera-1":
            raise UnreadableMediaError(f"{job.camera.uri} must be a video, got text")
        yield from people_of(job)

    jobs = submit_archive(broker, footage(4))
    archive_worker(broker, process).run(until_drained=True)
    with ArchiveFollower(broker, jobs) as follower:
        follower.catch_up()
        assert follower.is_finished
        assert (follower.done, follower.failed) == (3, 1)
        assert follower.errors == {job_key(jobs[1]): "clip-1.mp4 must be a video, got text"}
    (letter,) = list_dead_letters(broker)
    assert letter.topic == ARCHIVE_JOBS
    assert len(indexed(broker)) == 9


def test_two_workers_share_the_jobs_even_when_the_second_comes_late(broker: SqliteBroker, tmp_path: Path) -> None:
    worked: dict[str, list[str]] = {"first": [], "second": []}

    def work(name: str) -> None:
        def process(job: ArchiveJob) -> Iterator[Tracklet | CameraCoverage]:
            time.sleep(0.15)
            worked[name].append(job.camera.camera_id)
            yield from people_of(job)

        with SqliteBroker(tmp_path / "log.db", session_timeout_s=SESSION_S) as own:
            archive_worker(own, process, keep_alive_s=0.05).run(stop)

    stop = threading.Event()
    jobs = submit_archive(broker, footage(8))
    threads = [threading.Thread(target=work, args=(name,)) for name in worked]
    with ArchiveFollower(broker, jobs) as follower:
        threads[0].start()
        time.sleep(0.3)  # the first has all partitions and a job in hand
        threads[1].start()
        until = time.monotonic() + 20
        while not follower.is_finished and time.monotonic() < until:
            follower.poll(0.1)
        stop.set()
        for thread in threads:
            thread.join()
        assert follower.done == 8
    assert sorted(worked["first"] + worked["second"]) == sorted(f"camera-{i}" for i in range(8))
    assert min(len(names) for names in worked.values()) >= 2


def test_the_job_of_a_killed_worker_is_done_again_by_the_other(broker: SqliteBroker, tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, threading, time
        from pathlib import Path
        from services.adapters.sqlite_broker import SqliteBroker
        from services.archive import archive_worker
        from services.worker import stop_on_signals
        from tests.services.test_archive import people_of

        def slowly(job):
            print("at work", flush=True)
            for result in people_of(job):
                time.sleep(0.08)
                yield result

        stop = threading.Event()
        stop_on_signals(stop)
        with SqliteBroker(Path(sys.argv[1]), session_timeout_s=1.0) as broker:
            archive_worker(broker, slowly, keep_alive_s=0.2).run(stop)
        """
    )
    jobs = submit_archive(broker, footage(10))
    command = [sys.executable, "-c", script, str(tmp_path / "log.db")]
    root = Path(__file__).parents[2]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    victim, survivor = processes
    assert victim.stdout is not None
    assert victim.stdout.readline() == "at work\n"
    time.sleep(0.15)  # in the midst of a job
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    with ArchiveFollower(broker, jobs) as follower:
        until = time.monotonic() + 25
        while not follower.is_finished and time.monotonic() < until:
            follower.poll(0.1)
        survivor.terminate()
        survivor.communicate(timeout=10)
        assert (follower.done, follower.failed) == (10, 0)
    assert survivor.returncode == 0
    assert indexed(broker) == expected(jobs)
