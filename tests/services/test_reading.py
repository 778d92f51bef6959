"""Reading a topic to its end as it is now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import NotReadyError
from pipeline.ports import TopicSpec
from services import reading
from services.adapters.sqlite_broker import SqliteBroker
from services.reading import until_end


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    with SqliteBroker(tmp_path / "log.db") as opened:
        opened.create_topics([TopicSpec("watches"), TopicSpec("alerts", partitions=3)])
        yield opened


def say(broker: SqliteBroker, topic: str, *words: bytes) -> None:
    for word in words:
        broker.produce(topic, word, word)
    broker.flush()


def test_what_is_there_comes_of_every_topic_that_is_named(broker: SqliteBroker) -> None:
    say(broker, "watches", b"w1", b"w2")
    say(broker, "alerts", *(b"a%d" % n for n in range(20)))
    reader = broker.reader(["watches", "alerts"])
    assert len(list(until_end(broker, reader, "watches", "alerts"))) == 22
    assert list(until_end(broker, reader, "watches", "alerts")) == []


def test_what_came_while_it_was_read_is_lost_to_nobody(broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    say(broker, "alerts", b"old")
    reader = broker.reader(["alerts"])
    ends = broker.end_offsets("alerts")
    monkeypatch.setattr(broker, "end_offsets", lambda topic: ends)
    say(broker, "alerts", *(b"new %d" % n for n in range(9)))
    first = [m.value for m in until_end(broker, reader, "alerts")]
    assert sorted([*first, *(m.value for m in reader.poll(0.5))]) == sorted([b"old", *(b"new %d" % n for n in range(9))])


def test_a_topic_that_gives_nothing_is_not_waited_for_for_ever(broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "POLL_S", 0.01)
    say(broker, "watches", b"w")
    reader = broker.reader(["watches"])
    monkeypatch.setattr(reader, "poll", lambda *_: [])
    with pytest.raises(NotReadyError, match="watches could not be read to the end"):
        list(until_end(broker, reader, "watches", patience_s=0.05))
