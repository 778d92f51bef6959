"""Archive footage: jobs in, tracklets out, shared by any number of processes of the consumer group ``archive``.

A job is committed only when all its outputs are durable. A worker that dies hands its partitions on after the session timeout and
another one does the job again from the start; ids are derived, so the index ends up with the same tracklets.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.archive import SHARD_S, Footage, JobProgress, job_key, plan_jobs
from pipeline.errors import BadInputError, SchemaError
from pipeline.ports import Broker, Consumer, Message
from pipeline.types import ArchiveJob, CameraCoverage, Tracklet
from services import wire
from services.reading import until_end
from services.topics import ARCHIVE_JOBS, ARCHIVE_PROGRESS, COVERAGE, TRACKLETS
from services.worker import Output, Received, Worker

GROUP = "archive"

ProcessJob = Callable[[ArchiveJob], Iterator[Tracklet | CameraCoverage]]


def submit_archive(broker: Broker, footage: Iterable[Footage], shard_s: float = SHARD_S, redo: bool = False) -> tuple[ArchiveJob, ...]:
    """Plan jobs for the footage and put them on the topic, durably; gives all jobs of the footage.

    Jobs that are done, at work or waiting already are not put there a second time, unless ``redo``; those that failed are.
    """
    jobs = plan_jobs(footage, shard_s)
    with ArchiveFollower(broker, jobs) as follower:
        follower.catch_up()
        wanted = [job for job in jobs if redo or follower.states.get(job_key(job), "failed") == "failed"]
    for job in wanted:
        broker.produce(ARCHIVE_JOBS, wire.encode(job))  # no key: partitions take turns, so that workers get equal shares
    for job in wanted:  # after the jobs: a job that says it waits must be there
        broker.produce(ARCHIVE_PROGRESS, wire.encode(JobProgress(job.job_id, job.shard, "queued")), job_key(job).encode())
    broker.flush()
    return jobs


class ArchiveHandler:
    """Runs one job through ``process_job`` and sends on what it gives, while it goes."""

    def __init__(self, process_job: ProcessJob, worker: str) -> None:
        self._process_job, self._worker = process_job, worker

    def handle(self, batch: Sequence[Received]) -> Iterator[Output]:
        """Tracklets, coverage and progress. Raises BadInputError when the footage can never be worked."""
        for received in batch:
            if isinstance(received.value, ArchiveJob):
                yield from self._work(received.value)

    def _work(self, job: ArchiveJob) -> Iterator[Output]:
        yield self._progress(job, "started", 0)
        tracklets = 0
        try:
            for result in self._process_job(job):
                topic = TRACKLETS if isinstance(result, Tracklet) else COVERAGE
                tracklets += topic == TRACKLETS
                yield Output(topic, result.camera_id, result)
        except BadInputError as error:
            yield self._progress(job, "failed", tracklets, str(error))
            raise
        yield self._progress(job, "done", tracklets)

    def _progress(self, job: ArchiveJob, state: str, tracklets: int, error: str = "") -> Output:
        return Output(ARCHIVE_PROGRESS, job_key(job), JobProgress(job.job_id, job.shard, state, self._worker, tracklets, error))


def archive_worker(broker: Broker, process_job: ProcessJob, **options: Any) -> Worker:
    """A worker of group ``archive``: one job at a time, however long it takes; call its ``run``. options: those of Worker."""
    handler = ArchiveHandler(process_job, f"{socket.gethostname()}:{os.getpid()}")
    return Worker(GROUP, broker, (ARCHIVE_JOBS,), handler, batch=1, max_handle_s=None, **options)


@dataclass
class ArchiveFollower:
    """Follows where some jobs stand. Reads the progress topic outside of any group."""

    broker: Broker
    jobs: Sequence[ArchiveJob]
    states: dict[str, str] = field(default_factory=dict)  # job_key -> queued, started, done or failed
    tracklets: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._wanted = {job_key(job) for job in self.jobs}
        self._consumer: Consumer = self.broker.reader([ARCHIVE_PROGRESS])

    def __enter__(self) -> ArchiveFollower:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def poll(self, timeout_s: float = 0.5) -> None:
        """Take in what was reported; waits up to ``timeout_s`` for something new."""
        for message in self._consumer.poll(timeout_s):
            self._take(message)

    def catch_up(self) -> None:
        """Take in everything that was reported so far."""
        for message in until_end(self.broker, self._consumer, ARCHIVE_PROGRESS):
            self._take(message)

    def _take(self, message: Message) -> None:
        key = (message.key or b"").decode(errors="replace")
        if key not in self._wanted:
            return
        if message.value is None:
            for known in (self.states, self.tracklets, self.errors):
                known.pop(key, None)
            return
        try:
            progress = wire.decode(JobProgress, message.value)
        except SchemaError:
            return  # a newer worker's report; the job itself is not touched by it
        self.states[key], self.tracklets[key] = progress.state, progress.tracklets
        self.errors.pop(key, None)
        if progress.state == "failed":
            self.errors[key] = progress.error

    @property
    def done(self) -> int:
        return sum(state == "done" for state in self.states.values())

    @property
    def failed(self) -> int:
        return sum(state == "failed" for state in self.states.values())

    @property
    def is_finished(self) -> bool:
        """Whether every job is done or failed."""
        return self.done + self.failed >= len(self._wanted)

    def close(self) -> None:
        self._consumer.close()
