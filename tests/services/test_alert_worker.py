"""The alert worker over the embedded broker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.alert import AlertStage
from pipeline.types import TEXT, Alert, Probe, Watch
from services import topics, wire
from services.adapters.sqlite_broker import SqliteBroker
from services.alert import AlertHandler, alert_worker
from tests.fakes import NOON_NS, S, WordTextEncoder, a_tracklet, embedding

RED = embedding(TEXT, 1, 0, 0, 0, 0)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    made = SqliteBroker(tmp_path / "broker.sqlite")
    topics.create_all(made)
    yield made
    made.close()


def watch(watch_id: str = "w1", text: str = "red") -> Watch:
    return Watch(watch_id, (Probe("text", text),), 0.6, expires_at_ns=NOON_NS + 3600 * S)


def put(broker: SqliteBroker, topic: str, key: str, value: object) -> None:
    broker.produce(topic, value if isinstance(value, bytes | None) else wire.encode(value), key.encode())
    broker.flush()


def work(broker: SqliteBroker) -> None:
    """One life of an alert worker: until nothing is left to read."""
    handler = AlertHandler(broker, AlertStage(WordTextEncoder()), clock_ns=lambda: NOON_NS + 5 * S)
    try:
        alert_worker(broker, handler).run(until_drained=True)
    finally:
        handler.close()


def raised(broker: SqliteBroker) -> list[Alert]:
    consumer = broker.consumer([topics.ALERTS], "reader-of-alerts")
    try:
        return [wire.decode(Alert, message.value) for message in consumer.poll(0.2)]
    finally:
        consumer.close()


def test_a_watched_person_raises_one_alert_over_revisions_and_restarts(broker: SqliteBroker) -> None:
    put(broker, topics.WATCHES, "w1", watch())
    put(broker, topics.TRACKLETS, "north", a_tracklet("t1", RED))
    put(broker, topics.TRACKLETS, "north", a_tracklet("t1", RED, revision=2))
    work(broker)
    put(broker, topics.TRACKLETS, "north", a_tracklet("t1", RED, revision=3))
    work(broker)
    assert [(alert.watch_id, alert.tracklet_id, alert.revision) for alert in raised(broker)] == [("w1", "t1", 1)]


def test_watches_added_before_the_restart_are_still_in_force(broker: SqliteBroker) -> None:
    put(broker, topics.WATCHES, "w1", watch())
    work(broker)
    put(broker, topics.TRACKLETS, "north", a_tracklet("t1", RED))
    work(broker)
    assert len(raised(broker)) == 1


def test_a_watch_added_or_removed_while_running_counts_from_the_next_tracklet(broker: SqliteBroker) -> None:
    handler = AlertHandler(broker, AlertStage(WordTextEncoder()), clock_ns=lambda: NOON_NS + 5 * S)
    worker = alert_worker(broker, handler)

    def see(tracklet_id: str) -> list[str]:
        before = {alert.alert_id for alert in everything(broker)}
        put(broker, topics.TRACKLETS, "north", a_tracklet(tracklet_id, RED))
        worker.run(until_drained=True)
        return [alert.watch_id for alert in everything(broker) if alert.alert_id not in before]

    assert see("t1") == []
    put(broker, topics.WATCHES, "w1", watch())
    assert see("t2") == ["w1"]
    put(broker, topics.WATCHES, "w1", None)
    put(broker, topics.WATCHES, "w2", replace(watch("w2"), is_removed=True))
    assert see("t3") == []
    handler.close()


def test_a_watch_that_cannot_be_used_does_not_silence_the_others(broker: SqliteBroker, caplog: pytest.LogCaptureFixture) -> None:
    put(broker, topics.WATCHES, "damaged", b"\x00no watch")
    put(broker, topics.WATCHES, "invisible", watch("invisible", "friendly"))
    put(broker, topics.WATCHES, "w1", watch())
    put(broker, topics.TRACKLETS, "north", a_tracklet("t1", RED))
    work(broker)
    assert [alert.watch_id for alert in raised(broker)] == ["w1"]
    assert "watch invisible is not in force" in caplog.text
    assert "watch damaged is not in force" in caplog.text


def test_a_damaged_tracklet_is_put_aside_and_the_next_one_compared(broker: SqliteBroker) -> None:
    put(broker, topics.WATCHES, "w1", watch())
    put(broker, topics.TRACKLETS, "north", b"\x00no tracklet")
    put(broker, topics.TRACKLETS, "north", a_tracklet("t1", RED))
    work(broker)
    assert len(raised(broker)) == 1
    assert sum(broker.end_offsets(topics.dead_letter_topic(topics.TRACKLETS)).values()) == 1


def everything(broker: SqliteBroker) -> list[Alert]:
    """All alerts on the topic, read by a group of its own each time."""
    consumer = broker.consumer([topics.ALERTS], f"all-{sum(broker.end_offsets(topics.ALERTS).values())}-{id(object())}")
    try:
        found = []
        while sum(broker.end_offsets(topics.ALERTS).values()) > len(found):
            found += [wire.decode(Alert, message.value) for message in consumer.poll(0.2)]
        return found
    finally:
        consumer.close()
