"""A worker tells its metrics what it does."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from pipeline.types import Probe, Query, Ranking
from pipeline.types.coverage import Coverage
from services.adapters.sqlite_broker import SqliteBroker
from services.index import IndexHandler, index_worker
from services.metrics import Metrics
from services.topics import TRACKLETS, create_all
from services.wire import encode
from tests.fakes import InMemoryGallery, a_tracklet, embedding


def test_the_index_worker_counts_messages_dead_letters_and_delay(tmp_path: Path) -> None:
    metrics = Metrics()
    with closing(SqliteBroker(tmp_path / "log.sqlite")) as broker:
        create_all(broker)
        broker.produce(TRACKLETS, encode(a_tracklet("t1", embedding("body", 1.0, 0.0))), key=b"north")
        broker.produce(TRACKLETS, b"no tracklet", key=b"north")
        broker.flush()
        index_worker(broker, IndexHandler(InMemoryGallery(), metrics.indexed), observer=metrics).run(until_drained=True)
    told = metrics.render()[0].decode().splitlines()
    assert 'sightline_worker_messages_total{worker="index"} 2.0' in told
    assert 'sightline_worker_dead_letters_total{topic="tracklets",worker="index"} 1.0' in told
    assert 'sightline_worker_lag_messages{worker="index"} 0.0' in told
    assert "sightline_index_upserts_total 1.0" in told
    assert "sightline_index_delay_seconds_count 1.0" in told


def test_retries_and_answers_are_counted() -> None:
    metrics = Metrics()
    metrics.retried("query", TimeoutError())
    query = Query("q", (Probe("text", text="red"), Probe("text", text="hat"), Probe("tracklet", tracklet_id="t")))
    metrics.answered(query, Ranking("q", (), Coverage(), 0.1), 0.1)
    told = metrics.render()[0].decode()
    assert 'sightline_worker_retries_total{error="TimeoutError",worker="query"} 1.0' in told
    assert 'sightline_query_seconds_count{modality="text"} 1.0' in told
    assert 'sightline_query_seconds_count{modality="tracklet"} 1.0' in told
