"""Metrics and health, asked over real HTTP."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from pipeline.errors import SettingsError, StorageFullError
from pipeline.types import Alert, CameraCoverage, Coverage, Gap, Probe, Query, Ranking
from services.health import HealthServer
from services.metrics import Metrics, version

SECOND = 1_000_000_000


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def server(metrics: Metrics) -> Iterator[HealthServer]:
    with HealthServer(metrics.render) as running:
        yield running


def ask(server: HealthServer, path: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers["Content-Type"]


def test_metrics_of_every_stage_are_served(server: HealthServer, metrics: Metrics) -> None:
    metrics.detect_batch.observe(4)
    metrics.detect_seconds.observe(0.05)
    metrics.detections.labels(camera="gate").inc(3)
    metrics.tracklets.labels(camera="gate", kind="confirmed").inc()
    metrics.index_upserts.inc(2)
    metrics.index_delay_seconds.observe(1.2)
    with metrics.query_seconds.labels(modality="text").time():
        pass
    metrics.alerts.labels(camera="gate").inc()
    metrics.dead_letters.labels(worker="index", topic="tracklets").inc()
    metrics.lag.labels(worker="index").set(17)
    status, text, kind = ask(server, "/metrics")
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    for line in (
        "sightline_detect_batch_frames_sum 4.0",
        'sightline_detect_detections_total{camera="gate"} 3.0',
        'sightline_track_tracklets_total{camera="gate",kind="confirmed"} 1.0',
        "sightline_index_upserts_total 2.0",
        "sightline_index_delay_seconds_count 1.0",
        'sightline_query_seconds_count{modality="text"} 1.0',
        'sightline_alert_alerts_total{camera="gate"} 1.0',
        'sightline_worker_dead_letters_total{topic="tracklets",worker="index"} 1.0',
        'sightline_worker_lag_messages{worker="index"} 17.0',
    ):
        assert line in text.splitlines()


def test_an_account_told_twice_is_counted_once_and_grows(server: HealthServer, metrics: Metrics) -> None:
    metrics.observe_coverage(CameraCoverage("gate", 0, SECOND, seen=10, sampled=5))
    metrics.observe_coverage(CameraCoverage("gate", 0, SECOND, seen=10, sampled=5))
    metrics.observe_coverage(
        CameraCoverage("gate", 0, 9 * SECOND, seen=25, sampled=9, dropped=2, corrupt=1, gaps=(Gap(0, 3 * SECOND, "away"),))
    )
    metrics.observe_coverage(CameraCoverage("gate", 99 * SECOND, 100 * SECOND, seen=1))  # the camera was opened again
    text = ask(server, "/metrics")[1]
    assert 'sightline_capture_frames_total{camera="gate",outcome="seen"} 26.0' in text
    assert 'sightline_capture_frames_total{camera="gate",outcome="dropped"} 2.0' in text
    assert 'sightline_capture_gap_seconds_total{camera="gate"} 3.0' in text


# ------------------------------------------------------------------------------------------- is a camera seen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """UTC seconds, as the metrics see them."""
    now = [1_800_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def seen_at(metrics: Metrics, camera: str = "gate") -> float | None:
    return metrics.registry.get_sample_value("sightline_capture_last_frame_timestamp_seconds", {"camera": camera})


def test_the_newest_frame_is_told_by_when_it_came(metrics: Metrics, clock: list[float]) -> None:
    metrics.opened("gate", True)
    assert seen_at(metrics) is None  # nothing came yet
    metrics.observe_coverage(CameraCoverage("gate", 0, SECOND, seen=10, sampled=10))  # footage of 1970
    assert seen_at(metrics) == clock[0]
    clock[0] += 5
    metrics.observe_coverage(CameraCoverage("gate", 0, 2 * SECOND, seen=20, sampled=20))
    assert seen_at(metrics) == clock[0]


def test_a_camera_that_is_away_or_damaged_is_not_seen_though_its_account_goes_on(metrics: Metrics, clock: list[float]) -> None:
    metrics.opened("gate", True)
    metrics.observe_coverage(CameraCoverage("gate", 0, SECOND, seen=10))
    was_seen = clock[0]
    clock[0] += 60
    metrics.observe_coverage(CameraCoverage("gate", 0, 61 * SECOND, seen=10, gaps=(Gap(SECOND, 61 * SECOND, "refused"),)))
    assert seen_at(metrics) == was_seen
    metrics.observe_coverage(CameraCoverage("gate", 0, 62 * SECOND, seen=14, corrupt=4))
    assert seen_at(metrics) == was_seen
    metrics.observe_coverage(CameraCoverage("gate", 0, 62 * SECOND, seen=15, corrupt=4))
    assert seen_at(metrics) == clock[0]


def test_a_camera_opened_again_is_seen_with_its_first_frame(metrics: Metrics, clock: list[float]) -> None:
    metrics.opened("gate", True)
    metrics.observe_coverage(CameraCoverage("gate", 0, SECOND, seen=1000))
    clock[0] += 30
    metrics.observe_coverage(CameraCoverage("gate", 30 * SECOND, 30 * SECOND, seen=1))
    assert seen_at(metrics) == clock[0]


def test_of_a_camera_that_left_nothing_more_is_told(server: HealthServer, metrics: Metrics) -> None:
    metrics.opened("gate", True)
    metrics.observe_coverage(CameraCoverage("gate", 0, SECOND, seen=10))
    metrics.opened("gate", False)
    metrics.opened("gate", False)
    metrics.observe_coverage(CameraCoverage("gate", 0, 9 * SECOND, seen=90))  # an account that waited for the broker
    text = ask(server, "/metrics")[1]
    assert 'sightline_capture_open{camera="gate"}' not in text
    assert 'sightline_capture_last_frame_timestamp_seconds{camera="gate"}' not in text
    assert 'sightline_capture_frames_total{camera="gate",outcome="seen"} 90.0' in text


def test_cameras_that_are_assigned_come_and_go(metrics: Metrics) -> None:
    def assigned() -> set[str]:
        family = next(each for each in metrics.registry.collect() if each.name == "sightline_capture_assigned")
        return {sample.labels["camera"] for sample in family.samples}

    metrics.assigned(["gate", "yard"])
    assert assigned() == {"gate", "yard"}
    metrics.assigned({"yard", "door"})
    assert assigned() == {"yard", "door"}
    metrics.assigned(())
    assert assigned() == set()


# ---------------------------------------------------------------------------------- do searches and alerts work


@pytest.mark.parametrize(
    ("is_partial", "elapsed_s", "outcome"),
    [(False, 0.2, "whole"), (True, 10.1, "partial"), (True, 60.2, "expired"), (False, 60.2, "whole")],
)
def test_answers_are_counted_by_what_came_of_them(metrics: Metrics, is_partial: bool, elapsed_s: float, outcome: str) -> None:
    query = Query("q", (Probe("text", text="red"),), deadline_s=10.0)
    metrics.answered(query, Ranking("q", (), Coverage(), elapsed_s, is_partial), seconds=0.2)
    family = next(each for each in metrics.registry.collect() if each.name == "sightline_query_answers")
    assert {s.labels["outcome"]: s.value for s in family.samples if s.name.endswith("_total")} == {outcome: 1.0}


def test_refused_queries_are_counted(metrics: Metrics) -> None:
    metrics.refused()
    assert metrics.registry.get_sample_value("sightline_query_answers_total", {"outcome": "refused"}) == 1.0


def test_alerts_are_counted_with_their_delay(metrics: Metrics) -> None:
    metrics.alerted(Alert("a", "w", "t", 1, "gate", seen_at_ns=10 * SECOND, raised_at_ns=14 * SECOND, score=0.9, threshold=0.6))
    metrics.alerted(Alert("b", "w", "u", 1, "gate", seen_at_ns=15 * SECOND, raised_at_ns=14 * SECOND, score=0.9, threshold=0.6))
    value = metrics.registry.get_sample_value
    assert value("sightline_alert_alerts_total", {"camera": "gate"}) == 2.0
    assert value("sightline_alert_delay_seconds_sum") == 4.0  # a camera's clock that runs ahead makes no negative delay


def test_footage_of_another_day_can_be_told_from_a_delay(metrics: Metrics) -> None:
    metrics.indexed([0, 7200 * SECOND - SECOND], now_ns=7200 * SECOND, seconds=0.1)
    value = metrics.registry.get_sample_value
    assert value("sightline_index_delay_seconds_bucket", {"le": "1.0"}) == 1.0
    assert value("sightline_index_delay_seconds_bucket", {"le": "3600.0"}) == 1.0  # what the rules look at
    assert value("sightline_index_delay_seconds_bucket", {"le": "+Inf"}) == 2.0
    assert value("sightline_index_batch_seconds_sum") == 0.1


# ------------------------------------------------------------------------------------------- does a worker get on


def test_a_worker_begins_with_counters_that_can_be_seen_to_rise(metrics: Metrics, clock: list[float]) -> None:
    metrics.started("index", ["tracklets", "coverage"])
    value = metrics.registry.get_sample_value
    for topic in ("tracklets", "coverage"):
        assert value("sightline_worker_dead_letters_total", {"worker": "index", "topic": topic}) == 0.0
    assert value("sightline_worker_messages_total", {"worker": "index"}) == 0.0
    for name in ("start", "last_commit"):
        assert value(f"sightline_worker_{name}_timestamp_seconds", {"worker": "index"}) == clock[0]


def test_what_is_in_hand_and_when_it_was_committed_is_told(metrics: Metrics, clock: list[float]) -> None:
    metrics.started("index", ["tracklets"])
    clock[0] += 60
    metrics.holds("index", 12)
    value = metrics.registry.get_sample_value
    assert value("sightline_worker_in_hand_messages", {"worker": "index"}) == 12.0
    assert value("sightline_worker_last_commit_timestamp_seconds", {"worker": "index"}) == clock[0] - 60
    metrics.holds("index", 0)
    metrics.handled("index", 12, 0, 0.5)
    assert value("sightline_worker_last_commit_timestamp_seconds", {"worker": "index"}) == clock[0]
    assert value("sightline_worker_start_timestamp_seconds", {"worker": "index"}) == clock[0] - 60


def test_whether_the_broker_answers_is_told(metrics: Metrics) -> None:
    for is_up in (True, False):
        metrics.connected("index", is_up)
        assert metrics.registry.get_sample_value("sightline_worker_broker_up", {"worker": "index"}) == is_up


def test_what_ingest_publishes_and_what_tracing_loses_is_counted(metrics: Metrics) -> None:
    metrics.published_on("tracklets", 2_000)
    metrics.published_on("tracklets", 3_000)
    metrics.spans("sent", 5)
    metrics.spans("lost", 2)
    value = metrics.registry.get_sample_value
    assert value("sightline_publish_messages_total", {"topic": "tracklets"}) == 2.0
    assert value("sightline_publish_bytes_total", {"topic": "tracklets"}) == 5000.0
    assert value("sightline_tracing_spans_total", {"outcome": "lost"}) == 2.0


def test_the_version_and_the_process_are_told(server: HealthServer) -> None:
    text = ask(server, "/metrics")[1]
    assert f'sightline_build_info{{version="{version()}"}} 1.0' in text
    assert "process_resident_memory_bytes" in text


def test_every_metric_says_what_it_is(metrics: Metrics) -> None:
    ours = [family for family in metrics.registry.collect() if family.name.startswith("sightline_")]
    assert len(ours) >= 36
    assert [family.name for family in ours if not family.documentation.endswith(".")] == []


def test_accounts_told_again_after_a_newer_one_are_not_counted_twice(metrics: Metrics) -> None:
    """A camera is opened again while the broker is away: both accounts wait, and are told once more when it is back."""
    first, second = CameraCoverage("gate", 0, SECOND, seen=10), CameraCoverage("gate", 5 * SECOND, 6 * SECOND, seen=4)
    for account in (first, second, first, second, first):
        metrics.observe_coverage(account)
    assert metrics.registry.get_sample_value("sightline_capture_frames_total", {"camera": "gate", "outcome": "seen"}) == 14.0


def test_two_processes_worth_of_metrics_do_not_collide() -> None:
    Metrics().alerts.labels(camera="a").inc()
    assert b'camera="a"' not in Metrics().render()[0]


def test_a_live_process_answers_and_is_ready_without_checks(server: HealthServer) -> None:
    assert ask(server, "/live")[0] == 200
    assert ask(server, "/ready")[:2] == (200, '{"ready": true, "reasons": {}}')
    assert ask(server, "/nothing")[0] == 404


def test_what_is_not_ready_is_named(server: HealthServer) -> None:
    def full_disk() -> bool:
        raise StorageFullError("no space left on the data folder")

    state = {"index": False}
    server.register("broker", lambda: True)
    server.register("camera gate", lambda: "no picture for 9 s")
    server.register("index", lambda: state["index"])
    server.register("storage", full_disk)
    status, body, kind = ask(server, "/ready")
    assert (status, kind) == (503, "application/json")
    assert json.loads(body) == {
        "ready": False,
        "reasons": {
            "camera gate": "no picture for 9 s",
            "index": "not ready",
            "storage": "StorageFullError: no space left on the data folder",
        },
    }
    assert ask(server, "/live")[0] == 200  # not ready is not dead
    state["index"] = True
    assert "index" not in json.loads(ask(server, "/ready")[1])["reasons"]


def test_broken_metrics_do_not_look_like_a_dead_process() -> None:
    def broken() -> tuple[bytes, str]:
        raise RuntimeError("collector failed")

    with HealthServer(broken) as server:
        assert ask(server, "/metrics")[0] == 500
        assert ask(server, "/live")[0] == 200


def test_a_taken_port_refuses_to_start_with_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"server\.port.*127\.0\.0\.1:{port}"):
            HealthServer(lambda: (b"", "text/plain"), port=port)


def test_the_server_listens_on_this_machine_only_unless_told(server: HealthServer) -> None:
    assert server._server.server_address[0] == "127.0.0.1"


def test_a_worker_is_ready_while_its_broker_answers() -> None:
    metrics = Metrics()
    assert metrics.ready() == "has not begun to work yet"
    metrics.connected("index", True)
    assert metrics.ready() is True
    metrics.connected("index", False)
    assert metrics.ready() == "the broker does not answer"
