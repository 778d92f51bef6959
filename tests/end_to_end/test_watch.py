"""Watches over a camera that runs: `sightline up` raises the alert in time, once, and looks after its workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.types import Alert, Tracklet
from services import wire
from services.adapters.sqlite_broker import SqliteBroker
from services.supervisor import WORKERS
from services.topics import TRACKLETS

pytestmark = [pytest.mark.usefixtures("base_weights"), pytest.mark.accuracy]

S = 1_000_000_000
CAMERA = """
[server]
port = {port}
[[cameras]]
camera_id = "crossing"
uri = "{uri}"
sampling_hz = 6.0
live = true
"""


def free_ports(count: int) -> int:
    """The first of ``count`` free ports in a row."""
    for first in range(20_000 + os.getpid() % 5_000, 60_000, count):
        with closing(socket.socket()) as probe:
            if all(probe.connect_ex(("127.0.0.1", first + each)) for each in range(count)):
                return first
    raise AssertionError("no free ports")


def ask(port: int, path: str) -> tuple[int, str]:
    """Status and text; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def is_answered_without(port: int, line: str) -> bool:
    """Whether a worker answers and its metrics have no such line."""
    status, text = ask(port, "/metrics")
    return status == 200 and line not in text


def workers_of(up: subprocess.Popen[str]) -> dict[str, int]:
    """Name -> process id of the running workers."""
    found = {}
    for child in Path(f"/proc/{up.pid}/task/{up.pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if "worker" in words:
            found[words[words.index("worker") + 1]] = int(child)
    return found


def first_revisions(data: Path) -> dict[str, tuple[int, int]]:
    """tracklet id -> (stream time of its last frame at confirmation, wall time at which it was on the topic), ns."""
    found: dict[str, tuple[int, int]] = {}
    with closing(SqliteBroker(data / "log.sqlite")) as broker:
        ends = {partition: end for partition, end in broker.end_offsets(TRACKLETS).items() if end}
        with closing(broker.consumer([TRACKLETS], group=uuid.uuid4().hex)) as consumer:
            while any(p not in consumer.assignment() or consumer.position(p) < end for p, end in ends.items()):
                for message in consumer.poll(0.5):
                    tracklet = wire.decode(Tracklet, message.value)
                    found.setdefault(tracklet.tracklet_id, (tracklet.ended_at_ns, message.timestamp_ms * 1_000_000))
    return found


def alerts(line: Any) -> list[Alert]:
    done = line.run("alerts", "--json")
    assert done.returncode == 0, done.stderr
    return [wire.decode(Alert, text.encode()) for text in done.stdout.splitlines()]


def test_a_described_person_of_a_running_camera_raises_one_alert_in_time(
    line: Any, shared_data: Path, wait_until: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    port, clip = free_ports(5), shared_data / "video" / "crossing.mp4"
    (line.folder / "sightline.toml").write_text(CAMERA.format(port=port, uri=clip))
    watch = line.json("watch", "add", "man in a dark jacket", "--threshold", "0.3")["watch_id"]
    assert [each["watch_id"] for each in line.json("watch", "list")] == [watch]
    up = line.start("up")

    wait_until("all workers run", lambda: ask(port, "/ready")[0] == 200, 60)
    ingest_port, alert_port = (port + 1 + WORKERS.index(name) for name in ("ingest", "alert"))
    wait_until("the ingest worker counts tracklets", lambda: "sightline_track_tracklets_total{" in ask(ingest_port, "/metrics")[1], 60)
    text = ask(ingest_port, "/metrics")[1]
    assert 'sightline_detect_detections_total{camera="crossing"}' in text
    assert float(text.split("sightline_detect_seconds_sum ")[1].split()[0]) > 0
    wait_until("an alert", lambda: "sightline_alert_alerts_total{" in ask(alert_port, "/metrics")[1], 30)

    wait_until("the camera came to its end", lambda: is_answered_without(ingest_port, 'sightline_capture_open{camera="crossing"}'), 60)
    wait_until("all tracklets were compared", lambda: lag_of(line.data, "alert") == 0, 30)
    assert set(workers_of(up)) == set(WORKERS), "the ingest worker waits for other cameras"

    os.kill(workers_of(up)["alert"], signal.SIGKILL)  # it must come back
    wait_until("/ready tells of the dead worker", lambda: "alert" in json.loads(ask(port, "/ready")[1])["reasons"], 10)
    wait_until("the worker is back", lambda: ask(port, "/ready")[0] == 200 and ask(alert_port, "/live")[0] == 200, 60)
    assert 'sightline_up_restarts_total{worker="alert"} 1.0' in ask(port, "/metrics")[1]

    began = time.monotonic()
    up.send_signal(signal.SIGTERM)
    _, complained = up.communicate(timeout=20)
    stopped_s = time.monotonic() - began
    assert up.returncode == 0, complained
    assert stopped_s < 10
    assert "Traceback" not in complained

    raised, confirmed = alerts(line), first_revisions(line.data)
    assert raised
    assert len({alert.tracklet_id for alert in raised}) == len(raised), "somebody was alerted twice"
    prompt = [alert for alert in raised if alert.revision == 1]
    waits = sorted((alert.raised_at_ns - confirmed[alert.tracklet_id][1]) / S for alert in prompt)
    with capsys.disabled():
        print(
            f" alerts {len(raised)}, of first revisions {len(prompt)}, seconds from confirmation to alert {waits}; stop {stopped_s:.1f} s"
        )
    first = prompt[0]
    assert first.score >= first.threshold == 0.3
    assert first.seen_at_ns - confirmed[first.tracklet_id][0] <= 2 * S
    assert waits[0] <= 2.0
    assert first.why

    again = line.json("ingest", clip, "--sampling-hz", "6", "--camera", "crossing")  # the same people once more
    assert again["tracklets"]
    assert {alert.alert_id for alert in raised} <= {alert.alert_id for alert in alerts(line)}
    assert len({(a.watch_id, a.tracklet_id) for a in alerts(line)}) == len(alerts(line))


def lag_of(data: Path, group: str) -> int:
    with closing(SqliteBroker(data / "log.sqlite")) as broker:
        committed = broker.groups().get(group, {})
        return sum(max(0, end - committed.get(partition, 0)) for partition, end in broker.end_offsets(TRACKLETS).items())


def test_a_removed_watch_is_silent_and_another_one_is_not(line: Any, people: Path) -> None:
    removed, kept = (line.json("watch", "add", words, "--threshold", "0")["watch_id"] for words in ("man in a dark jacket", "woman"))
    assert line.run("watch", "remove", removed).returncode == 0
    assert [each["watch_id"] for each in line.json("watch", "list")] == [kept]
    told = line.json("ingest", people)
    raised = alerts(line)
    assert {alert.watch_id for alert in raised} == {kept}
    assert len(raised) == told["tracklets"]
    assert "must be in force" in line.refused(3, "watch", "remove", removed)


def test_a_watch_that_can_never_work_is_refused(line: Any) -> None:
    assert "future" in line.refused(2, "watch", "add", "red jacket", "--expires", "2001-01-01")
    assert line.refused(3, "watch", "add", "the meaning of life")
    assert line.json("watch", "list") == []


def test_a_camera_file_that_is_missing_does_not_stop_the_others(line: Any, grey: Path, wait_until: Callable[..., None]) -> None:
    shutil.copy2(grey, line.folder / "here.mp4")
    cameras = "".join(f'[[cameras]]\ncamera_id = "{name}"\nuri = "{name}.mp4"\n' for name in ("here", "gone"))
    (line.folder / "sightline.toml").write_text(f"[server]\nport = {free_ports(5)}\n{cameras}")
    up = line.start("up")
    wait_until("the other is in the index", lambda: seen_by(line) == {"here": 16}, 90)
    up.send_signal(signal.SIGTERM)
    _, complained = up.communicate(timeout=60)
    assert up.returncode == 0, complained
    assert "camera left out camera=gone" in complained
    assert "gone.mp4 must exist" in complained
    assert "Traceback" not in complained
    assert [(each["camera_id"], each["origin"]) for each in line.json("camera", "list")] == [("gone", "settings"), ("here", "settings")]
    assert seen_by(line) == {"here": 16}


def seen_by(line: Any) -> dict[str, int]:
    """Frames seen, by camera, as the index knows; none before there is one."""
    done = line.run("status", "--json")
    return {account["camera"]: account["seen"] for account in json.loads(done.stdout)["coverage"]} if done.returncode == 0 else {}


def test_a_camera_that_leaves_the_settings_file_leaves_the_topic_and_one_added_by_hand_stays(line: Any, grey: Path) -> None:
    settings = line.folder / "sightline.toml"
    cameras = [f'[[cameras]]\ncamera_id = "{name}"\nuri = "{grey}"\nlive = false\n' for name in ("gate", "yard")]
    settings.write_text(f"[server]\nport = {free_ports(5)}\n" + "".join(cameras))
    assert line.run("camera", "add", "by-hand", grey, "--footage").returncode == 0
    assert line.run("up", "--for", "0.1").returncode == 0
    assert [each["camera_id"] for each in line.json("camera", "list")] == ["by-hand", "gate", "yard"]
    settings.write_text(f"[server]\nport = {free_ports(5)}\n" + cameras[1])
    assert line.run("up", "--for", "0.1").returncode == 0
    assert [each["camera_id"] for each in line.json("camera", "list")] == ["by-hand", "yard"]
    settings.unlink()
    for name in ("by-hand", "yard"):
        assert line.run("camera", "remove", name).returncode == 0
    assert "must have at least one camera" in line.refused(2, "up")
