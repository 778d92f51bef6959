"""The table of topics and its copy for people who set up Kafka."""

from __future__ import annotations

import tomllib
from pathlib import Path

from services import topics
from services.adapters.sqlite_broker import SqliteBroker

FILE = Path(__file__).parents[2] / "deploy" / "topics.toml"


def test_the_file_says_what_the_code_says() -> None:
    assert FILE.read_text() == topics.as_toml()
    assert [topic["name"] for topic in tomllib.loads(FILE.read_text())["topics"]] == [spec.name for spec in topics.TOPICS]


def test_every_topic_has_a_dead_letter_topic_that_can_hold_its_largest_message() -> None:
    by_name = {spec.name: spec for spec in topics.TOPICS}
    for name, spec in by_name.items():
        if not name.endswith(".dlt"):
            assert by_name[topics.dead_letter_topic(name)].max_message_bytes > spec.max_message_bytes


def test_all_topics_can_be_created_twice(tmp_path: Path) -> None:
    with SqliteBroker(tmp_path / "log.db") as broker:
        topics.create_all(broker)
        topics.create_all(broker)
        assert set(broker.topics()) == {spec.name for spec in topics.TOPICS}
