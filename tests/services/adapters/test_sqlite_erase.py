"""What is erased from the log is gone from the file, and readers get past it."""

from __future__ import annotations

from pathlib import Path

from pipeline.ports import TopicSpec
from services.adapters.sqlite_broker import SqliteBroker


def test_messages_that_hold_a_word_are_emptied_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with SqliteBroker(path) as broker:
        broker.create_topics([TopicSpec("a"), TopicSpec("b")])
        for number in range(20):
            broker.produce("a", f"person-{number % 2} secret-{number}".encode() * 50, headers=(("stage", b"x"),))
            broker.produce("b", b"person-1 elsewhere")
        broker.flush()
        assert broker.erase(("a", "not there"), [b"person-1"]) == 10
        assert broker.erase(("a",), [b"person-1"]) == 0
        values = [message.value for message in broker.consumer(["a"], "reader").poll(1.0)]
        assert [value is None for value in values] == [False, True] * 10
        assert all(message.value for message in broker.consumer(["b"], "other").poll(1.0))
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"secret-2" in content
    assert b"secret-3" not in content
