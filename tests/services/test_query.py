"""The query worker over the embedded broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.ports import Message
from pipeline.search.stage import SearchStage
from pipeline.types import TEXT, Probe, Query, Ranking
from services import topics, wire
from services.adapters.sqlite_broker import SqliteBroker
from services.query import QueryHandler, query_worker
from services.worker import Received
from tests.fakes import InMemoryGallery, WordTextEncoder, a_tracklet, embedding


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    made = SqliteBroker(tmp_path / "broker.sqlite")
    topics.create_all(made)
    yield made
    made.close()


def handler() -> QueryHandler:
    gallery = InMemoryGallery(a_tracklet("t1", embedding(TEXT, 1, 0, 0, 0, 0)))
    return QueryHandler(SearchStage(gallery, WordTextEncoder()))


def ask(broker: SqliteBroker, query_id: str, words: str) -> None:
    broker.produce(topics.QUERIES, wire.encode(Query(query_id, (Probe("text", words),))), query_id.encode())


def answers(broker: SqliteBroker) -> dict[str, Ranking]:
    broker.flush()
    query_worker(broker, handler()).run(until_drained=True)
    consumer = broker.consumer([topics.RANKINGS], "reader-of-rankings")
    try:
        rankings = [wire.decode(Ranking, message.value) for message in consumer.poll(0.2)]
    finally:
        consumer.close()
    return {ranking.query_id: ranking for ranking in rankings}


def test_every_query_gets_its_ranking(broker: SqliteBroker) -> None:
    ask(broker, "q1", "red")
    ask(broker, "q2", "red coat")
    found = answers(broker)
    assert set(found) == {"q1", "q2"}
    assert found["q1"].matches[0].tracklet_id == "t1"
    assert not found["q1"].is_partial


def test_a_query_that_cannot_be_answered_is_told_why_and_its_words_are_kept_nowhere(broker: SqliteBroker) -> None:
    ask(broker, "q1", "friendly")
    ask(broker, "q2", "red")
    found = answers(broker)
    assert found["q1"].matches == ()
    assert found["q1"].is_partial
    assert "not answered: nothing in 'friendly'" in found["q1"].coverage.notes[0]
    assert found["q2"].matches
    assert sum(broker.end_offsets(topics.dead_letter_topic(topics.QUERIES)).values()) == 0


def test_time_waited_on_the_topic_counts_against_the_deadline() -> None:
    late = QueryHandler(handler()._stage, clock=lambda: 1_700_000_060.0)
    query = Query("q1", (Probe("text", "red"), Probe("text", "blue")), deadline_s=10.0)
    message = Message(topics.QUERIES, 0, 0, b"q1", b"", timestamp_ms=1_700_000_000_000)
    (output,) = late.handle([Received(message, query)])
    assert output.value.is_partial
    assert output.value.elapsed_s >= 60


def test_a_tombstone_asks_nothing() -> None:
    assert list(handler().handle([Received(Message(topics.QUERIES, 0, 0, b"q1", None), None)])) == []


def test_a_query_that_does_not_say_why_is_refused_where_a_purpose_is_asked_for(broker: SqliteBroker) -> None:
    stage = SearchStage(InMemoryGallery(a_tracklet("t1", embedding(TEXT, 1, 0, 0, 0, 0))), WordTextEncoder())
    asked = [Query("silent", (Probe("text", "red"),)), Query("open", (Probe("text", "red"),), purpose="lost child")]
    batch = [Received(Message(topics.QUERIES, 0, number, None, b""), query) for number, query in enumerate(asked)]
    refused, answered = (output.value for output in QueryHandler(stage, needs_purpose=True).handle(batch))
    assert "must say why" in refused.coverage.notes[0]
    assert refused.matches == ()
    assert answered.matches


@pytest.mark.parametrize(
    "spoilt",
    [
        b'{"schema_version":1,"type":"query","query_id":"q","probes":[{"kind":"text","text":"red"}],"window":{"to_ns":1180591620717411303424}}',
        b'{"schema_version":1,"type":"query","query_id":"q","probes":[{"kind":"text","text":"red","weight":1e308}]}',
    ],
    ids=["a time beyond 64 bits", "a weight that overflows"],
)
def test_a_query_that_would_stop_the_worker_is_put_aside(broker: SqliteBroker, spoilt: bytes) -> None:
    broker.produce(topics.QUERIES, spoilt, b"q")
    ask(broker, "q2", "red")
    assert set(answers(broker)) == {"q2"}
    assert sum(broker.end_offsets(topics.dead_letter_topic(topics.QUERIES)).values()) == 1
