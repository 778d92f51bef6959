"""Metrics and health, asked over real HTTP."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from pipeline.errors import SettingsError, StorageFullError
from pipeline.types import CameraCoverage, Gap
from services.health import HealthServer
from services.metrics import Metrics

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
