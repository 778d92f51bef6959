"""Prometheus metrics of all stages. The one home of ``prometheus_client``."""

from __future__ import annotations

import importlib.metadata
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from pipeline.types import Alert, CameraCoverage, Query, Ranking

BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
FORWARD_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0)
QUERY_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Beyond an hour it is no delay but footage of another day: deploy/prometheus/rules.yml leaves it out.
DELAY_SECONDS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 120.0, 600.0, 3600.0)
KEPT_ACCOUNTS = 64  # of a camera; a new one begins whenever it is opened again, and some may wait for the broker


def version() -> str:
    """The version of this Sightline, as its package says."""
    try:
        return importlib.metadata.version("sightline")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


class Metrics:
    """The metrics of one process, on ``registry`` (a fresh one when None). Named sightline_STAGE_WHAT_UNIT; labels are the design's words.

    A counter is raised where the thing happens: ``metrics.alerts.labels(camera="gate").inc()``,
    ``with metrics.query_seconds.labels(modality="text").time(): ...``.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._lock = threading.Lock()
        self._told: dict[str, dict[int, dict[str, float]]] = {}  # camera -> beginnings of its last accounts -> what they counted
        self._assigned: set[str] = set()
        self._opened: set[str] = set()
        self._connected: dict[str, bool] = {}
        on = self.registry
        self.frames = Counter(
            "sightline_capture_frames", "Frames by outcome: seen, sampled, dropped, corrupt.", ["camera", "outcome"], registry=on
        )
        self.gap_seconds = Counter("sightline_capture_gap_seconds", "Seconds in which a camera was not seen.", ["camera"], registry=on)
        self.assigned_cameras = Gauge(
            "sightline_capture_assigned", "Whether a live camera is this worker's, open or not.", ["camera"], registry=on
        )
        self.open_cameras = Gauge("sightline_capture_open", "Whether a camera is at work on this worker.", ["camera"], registry=on)
        self.last_frame = Gauge(
            "sightline_capture_last_frame_timestamp_seconds",
            "UTC when the newest good frame of a camera came, to within the five seconds between two accounts.",
            ["camera"],
            registry=on,
        )
        self.detect_batch = Histogram("sightline_detect_batch_frames", "Frames in one forward pass.", buckets=BATCH_SIZES, registry=on)
        self.detect_seconds = Histogram("sightline_detect_seconds", "One forward pass.", buckets=FORWARD_SECONDS, registry=on)
        self.detections = Counter("sightline_detect_detections", "People found in frames.", ["camera"], registry=on)
        self.track_seconds = Histogram(
            "sightline_track_seconds", "Track and embed of one frame, and what it published.", buckets=FORWARD_SECONDS, registry=on
        )
        self.embed_seconds = Histogram(
            "sightline_embed_seconds",
            "Embed of one frame that had something to publish: the vectors of its best shots.",
            buckets=FORWARD_SECONDS,
            registry=on,
        )
        self.published = Counter("sightline_publish_messages", "Messages that ingest put on a topic.", ["topic"], registry=on)
        self.published_bytes = Counter("sightline_publish_bytes", "Bytes of their values.", ["topic"], registry=on)
        self.flush_seconds = Histogram(
            "sightline_publish_flush_seconds", "Until the broker had all that ingest sent.", buckets=QUERY_SECONDS, registry=on
        )
        self.held = Gauge("sightline_publish_held_tracklets", "Tracklets that wait for the broker to be back.", registry=on)
        self.tracklets = Counter(
            "sightline_track_tracklets", "Tracklet revisions published: confirmed, better, closed.", ["camera", "kind"], registry=on
        )
        self.index_upserts = Counter("sightline_index_upserts", "Tracklet revisions written to the index.", registry=on)
        self.index_batch_seconds = Histogram(
            "sightline_index_batch_seconds", "Writing one batch to the index.", buckets=QUERY_SECONDS, registry=on
        )
        self.index_delay_seconds = Histogram(
            "sightline_index_delay_seconds", "From capture of the last frame to searchable.", buckets=DELAY_SECONDS, registry=on
        )
        self.query_seconds = Histogram(
            "sightline_query_seconds", "One query, by modality of its probe.", ["modality"], buckets=QUERY_SECONDS, registry=on
        )
        self.answers = Counter(
            "sightline_query_answers",
            "Queries answered: whole, partial (deadline, part of the index), expired (its deadline passed on the topic), refused.",
            ["outcome"],
            registry=on,
        )
        self.alert_delay_seconds = Histogram(
            "sightline_alert_delay_seconds",
            "From the frame that made a watch meet a person to the alert.",
            buckets=DELAY_SECONDS,
            registry=on,
        )
        self.alerts = Counter("sightline_alert_alerts", "Alerts raised.", ["camera"], registry=on)
        self.dead_letters = Counter("sightline_worker_dead_letters", "Messages put aside as bad input.", ["worker", "topic"], registry=on)
        self.lag = Gauge("sightline_worker_lag_messages", "Messages a worker has still to read.", ["worker"], registry=on)
        self.committed_at = Gauge(
            "sightline_worker_last_commit_timestamp_seconds",
            "UTC of the last batch that a worker committed; before the first: of its start.",
            ["worker"],
            registry=on,
        )
        self.started_at = Gauge("sightline_worker_start_timestamp_seconds", "UTC when a worker began.", ["worker"], registry=on)
        self.in_hand = Gauge("sightline_worker_in_hand_messages", "Messages read and not committed yet.", ["worker"], registry=on)
        self.broker_up = Gauge(
            "sightline_worker_broker_up", "Whether the broker answered a worker when it was last asked.", ["worker"], registry=on
        )
        self.messages = Counter("sightline_worker_messages", "Messages worked off and committed.", ["worker"], registry=on)
        self.outputs = Counter("sightline_worker_outputs", "Messages made of them.", ["worker"], registry=on)
        self.retries = Counter("sightline_worker_retries", "Times the world was not ready, by error.", ["worker", "error"], registry=on)
        self.batch_seconds = Histogram(
            "sightline_worker_batch_seconds", "One batch, from messages to commit.", ["worker"], buckets=QUERY_SECONDS, registry=on
        )
        self.api_requests = Counter(
            "sightline_api_requests", "Requests that the gateway answered.", ["method", "route", "status"], registry=on
        )
        self.api_seconds = Histogram(
            "sightline_api_request_seconds",
            "Until a request was answered; an endless one: until its answer began.",
            ["method", "route"],
            buckets=QUERY_SECONDS,
            registry=on,
        )
        self.workers_up = Gauge("sightline_up_workers", "Whether a worker process runs.", ["worker"], registry=on)
        self.build = Gauge("sightline_build_info", "1, with the version of this Sightline.", ["version"], registry=on)
        self.build.labels(version()).set(1)
        self.restarts = Counter("sightline_up_restarts", "Worker processes started again.", ["worker"], registry=on)
        self.trace_spans = Counter("sightline_tracing_spans", "Spans of traces: sent, lost.", ["outcome"], registry=on)
        ProcessCollector(registry=on)  # memory, processor time and open files

    # what services/worker.py tells of its loop

    def started(self, worker: str, topics: Sequence[str]) -> None:
        """A worker of these topics begins. What can be counted is there from now on, or nobody would see it rise from 0."""
        for topic in topics:
            self.dead_letters.labels(worker, topic)
        self.messages.labels(worker)
        for gauge in (self.started_at, self.committed_at):
            gauge.labels(worker).set_to_current_time()
        self.in_hand.labels(worker).set(0)

    def connected(self, worker: str, is_up: bool) -> None:
        """The broker answered, or it did not."""
        self._connected[worker] = is_up
        self.broker_up.labels(worker).set(is_up)

    def ready(self) -> bool | str:
        """For /ready: True while the broker answers the worker of this process, else why not."""
        if not self._connected:
            return "has not begun to work yet"
        return all(self._connected.values()) or "the broker does not answer"

    def holds(self, worker: str, messages: int) -> None:
        """So many messages are read and not committed."""
        self.in_hand.labels(worker).set(messages)

    def handled(self, worker: str, messages: int, outputs: int, seconds: float) -> None:
        """A batch was worked off and committed."""
        self.messages.labels(worker).inc(messages)
        self.outputs.labels(worker).inc(outputs)
        self.batch_seconds.labels(worker).observe(seconds)
        self.committed_at.labels(worker).set_to_current_time()

    def dead_lettered(self, worker: str, topic: str, error: BaseException) -> None:
        """A message was put aside as bad input."""
        self.dead_letters.labels(worker, topic).inc()

    def retried(self, worker: str, error: BaseException) -> None:
        """The world was not ready."""
        self.retries.labels(worker, type(error).__name__).inc()

    def lagged(self, worker: str, messages: int) -> None:
        """So many messages are still to be read."""
        self.lag.labels(worker).set(messages)

    # what the stages tell

    def indexed(self, ended_at_ns: Sequence[int], now_ns: int, seconds: float) -> None:
        """Tracklet revisions can be searched now; ``ended_at_ns``: UTC of the last frame of each; seconds: what writing them took."""
        self.index_upserts.inc(len(ended_at_ns))
        self.index_batch_seconds.observe(seconds)
        for at_ns in ended_at_ns:
            self.index_delay_seconds.observe(max(0.0, (now_ns - at_ns) / 1e9))

    def alerted(self, alert: Alert) -> None:
        """An alert was raised."""
        self.alerts.labels(alert.camera_id).inc()
        self.alert_delay_seconds.observe(max(0.0, (alert.raised_at_ns - alert.seen_at_ns) / 1e9))

    def assigned(self, camera_ids: Collection[str]) -> None:
        """The live cameras that are this worker's now, whether they can be opened or not."""
        with self._lock:
            gone, self._assigned = self._assigned - set(camera_ids), set(camera_ids)
        for camera_id in camera_ids:
            self.assigned_cameras.labels(camera_id).set(1)
        for camera_id in gone:
            _remove(self.assigned_cameras, camera_id)

    def opened(self, camera_id: str, is_open: bool) -> None:
        """A camera came to this worker, or left it: then it tells nothing more of it."""
        with self._lock:
            self._opened = self._opened | {camera_id} if is_open else self._opened - {camera_id}
        if is_open:
            self.open_cameras.labels(camera_id).set(1)
            return
        for gauge in (self.open_cameras, self.last_frame):
            _remove(gauge, camera_id)

    def published_on(self, topic: str, size: int) -> None:
        """Ingest put a message of ``size`` bytes on ``topic``."""
        self.published.labels(topic).inc()
        self.published_bytes.labels(topic).inc(size)

    def spans(self, outcome: str, spans: int) -> None:
        """Spans were sent, or lost."""
        self.trace_spans.labels(outcome).inc(spans)

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        """The gateway answered a request; ``route`` is the pattern, never what was asked."""
        self.api_requests.labels(method, route, status).inc()
        self.api_seconds.labels(method, route).observe(seconds)

    def shown(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Show ``value()`` as ``name`` whenever somebody looks."""
        Gauge(name, meaning, registry=self.registry).set_function(value)

    def refused(self) -> None:
        """A query can never be answered; its ranking says why."""
        self.answers.labels("refused").inc()

    def answered(self, query: Query, ranking: Ranking, seconds: float) -> None:
        """A query was answered."""
        waited_s = ranking.elapsed_s - seconds
        outcome = "whole" if not ranking.is_partial else "expired" if waited_s >= query.deadline_s else "partial"
        self.answers.labels(outcome).inc()
        for kind in sorted({probe.kind for probe in query.probes}):
            self.query_seconds.labels(kind).observe(seconds)

    def observe_coverage(self, coverage: CameraCoverage) -> None:
        """Raise the capture counters to what ``coverage`` counts; the same account may be told any number of times."""
        now = {
            "seen": float(coverage.seen),
            "sampled": float(coverage.sampled),
            "dropped": float(coverage.dropped),
            "corrupt": float(coverage.corrupt),
            "gap": coverage.gap_s,
        }
        with self._lock:
            accounts = self._told.setdefault(coverage.camera_id, {})
            before = accounts.pop(coverage.from_ns, {})
            accounts[coverage.from_ns] = {name: max(value, before.get(name, 0.0)) for name, value in now.items()}
            if len(accounts) > KEPT_ACCOUNTS:
                accounts.pop(next(iter(accounts)))
        for name, value in now.items():
            counter = self.gap_seconds.labels(coverage.camera_id) if name == "gap" else self.frames.labels(coverage.camera_id, name)
            counter.inc(max(0.0, value - before.get(name, 0.0)))
        # By our own clock: the account's runs on while a camera is away, and footage is of another day.
        is_news = now["seen"] - now["corrupt"] > before.get("seen", 0.0) - before.get("corrupt", 0.0)
        if is_news and coverage.camera_id in self._opened:  # an account may wait for the broker until its camera is another worker's
            self.last_frame.labels(coverage.camera_id).set(time.time())

    def render(self) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def _remove(gauge: Gauge, camera_id: str) -> None:
    with suppress(KeyError):
        gauge.remove(camera_id)
