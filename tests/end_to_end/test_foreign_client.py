"""A program that knows nothing of ours asks over a real Kafka and gets its ranking: the examples of deploy/examples, run as they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.errors import NotReadyError
from pipeline.ports import Message
from pipeline.search.stage import SearchStage
from pipeline.types import TEXT, Probe, Query
from services import topics, wire
from services.adapters.kafka_broker import KafkaBroker
from services.adapters.kafka_client import KafkaConnection
from services.query import QueryHandler, query_worker
from services.reading import until_end
from tests.fakes import InMemoryGallery, WordTextEncoder, a_tracklet, embedding
from tests.kafka_server import forget_topics

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"


@pytest.fixture
def broker(kafka_bootstrap: str) -> Iterator[KafkaBroker]:
    """All topics on a real Kafka; what was not there before is removed again."""
    broker = KafkaBroker(KafkaConnection(kafka_bootstrap))
    before = set(broker.topics())
    topics.create_all(broker)
    _wait_until_led(broker)
    yield broker
    broker.close()
    forget_topics(kafka_bootstrap, before)


def _wait_until_led(broker: KafkaBroker, longest_s: float = 30.0) -> None:
    """A partition has no leader for a moment after it was made."""
    until_s = time.monotonic() + longest_s
    while True:
        try:
            for topic in (topics.AUDIT, topics.QUERIES, topics.RANKINGS):
                broker.end_offsets(topic)
            return
        except NotReadyError:
            assert time.monotonic() < until_s
            time.sleep(0.1)


@pytest.fixture
def answering(broker: KafkaBroker, kafka_bootstrap: str) -> Iterator[None]:
    """A query worker over two people, one in red and one in blue."""
    red, blue = (
        a_tracklet(name, embedding(TEXT, *values)) for name, values in {"t-red": (1, 0, 0, 0, 0), "t-blue": (0, 0, 1, 0, 0)}.items()
    )
    handler = QueryHandler(SearchStage(InMemoryGallery(red, blue), WordTextEncoder()))
    stop, errors = threading.Event(), list[BaseException]()

    def work() -> None:
        own = KafkaBroker(KafkaConnection(kafka_bootstrap))
        try:
            query_worker(own, handler).run(stop)
        except BaseException as error:
            errors.append(error)
        finally:
            own.close()

    thread = threading.Thread(target=work, name="query")
    thread.start()
    yield
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert errors == []


def command(example: str) -> list[str]:
    """How the example is started; skips where what it needs is not here."""
    if example == "ask.py":
        pytest.importorskip("confluent_kafka", reason="the example needs confluent-kafka")
        return [sys.executable, str(EXAMPLES / example)]
    for program in ("kcat", "jq"):
        if shutil.which(program) is None:
            pytest.skip(f"the example needs {program}, which is not installed")
    return ["sh", str(EXAMPLES / example)]


def ask(example: str, bootstrap: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run from an empty folder and without PYTHONPATH: none of our code is in reach."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [*command(example), bootstrap, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def last(broker: KafkaBroker, topic: str) -> Message:
    """The newest message of a topic."""
    with closing(broker.reader([topic])) as reader:
        return max(until_end(broker, reader, topic), key=lambda message: message.timestamp_ms)


@pytest.mark.parametrize("example", ["ask.py", "ask.sh"])
@pytest.mark.usefixtures("answering")
def test_an_example_asks_and_prints_the_matches_of_its_ranking(
    example: str, broker: KafkaBroker, kafka_bootstrap: str, tmp_path: Path
) -> None:
    done = ask(example, kafka_bootstrap, "a", "blue", "coat", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (line.split() for line in done.stdout.splitlines())
    assert (first[0], *first[2:4]) == ("1", "north", "t-blue")
    assert (second[0], *second[2:4]) == ("2", "north", "t-red")
    assert float(first[1]) > float(second[1])

    asked, answered = (last(broker, topic) for topic in (topics.QUERIES, topics.RANKINGS))
    query = wire.decode(Query, asked.value)
    assert query.probes == (Probe("text", "a blue coat"),)
    assert asked.key == answered.key == query.query_id.encode()
    assert asked.partition == answered.partition, "the same key lies in the same partition, whoever sends it"
    assert json.loads(last(broker, topics.AUDIT).value or b"")["subject"] == query.query_id


@pytest.mark.parametrize("example", ["ask.py", "ask.sh"])
@pytest.mark.usefixtures("answering")
def test_an_example_says_why_nobody_was_found(example: str, kafka_bootstrap: str, tmp_path: Path) -> None:
    done = ask(example, kafka_bootstrap, "friendly", folder=tmp_path)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "not answered: nothing in 'friendly'" in done.stderr
