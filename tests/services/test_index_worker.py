"""The index worker: what was on the topics is in the gallery before it is committed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline.errors import BadInputError, StorageFullError
from pipeline.types import CameraCoverage, Filter, Tracklet
from services import wire
from services.adapters.sqlite_broker import SqliteBroker
from services.dead_letters import list_dead_letters, replay
from services.index import IndexHandler, index_worker
from services.topics import COVERAGE, TRACKLETS, create_all
from tests.fakes import InMemoryGallery, a_tracklet, embedding


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    with SqliteBroker(tmp_path / "log.db", session_timeout_s=1.0) as opened:
        create_all(opened)
        yield opened


def publish(broker: SqliteBroker, *values: Tracklet | CameraCoverage) -> None:
    for value in values:
        topic = TRACKLETS if isinstance(value, Tracklet) else COVERAGE
        broker.produce(topic, wire.encode(value), value.camera_id.encode())
    broker.flush()


def committed(broker: SqliteBroker) -> int:
    return sum(broker.groups().get("index", {}).values())


def test_tracklets_and_coverage_come_into_the_index(broker: SqliteBroker) -> None:
    gallery = InMemoryGallery()
    publish(broker, a_tracklet("t1"), a_tracklet("t2"), a_tracklet("t1", revision=2), CameraCoverage("north", 0, 10, seen=5))
    index_worker(broker, IndexHandler(gallery)).run(until_drained=True)
    assert {t.tracklet_id: t.revision for t in gallery.held.values()} == {"t1": 2, "t2": 1}
    assert [account.seen for account in gallery.coverage(Filter())] == [5]
    assert committed(broker) == 4


def test_a_replay_from_the_start_changes_nothing(broker: SqliteBroker) -> None:
    gallery = InMemoryGallery()
    publish(broker, *(a_tracklet("t1", revision=revision) for revision in (1, 2, 3)), *(a_tracklet(f"u{i}") for i in range(20)))
    index_worker(broker, IndexHandler(gallery)).run(until_drained=True)
    before = dict(gallery.held)
    broker.consumer([TRACKLETS], "index").commit(dict.fromkeys(broker.end_offsets(TRACKLETS), 0))
    index_worker(broker, IndexHandler(gallery)).run(until_drained=True)
    assert gallery.held == before


class FullDisk(InMemoryGallery):
    """A gallery that has no room the first two times."""

    refusals = 2

    def upsert(self, tracklets: Sequence[Tracklet]) -> int:
        if tracklets and self.refusals:
            self.refusals -= 1
            raise StorageFullError("no space is left for the index")
        return super().upsert(tracklets)


def test_a_full_disk_delays_the_commit_and_loses_nothing(broker: SqliteBroker) -> None:
    gallery = FullDisk()
    publish(broker, *(a_tracklet(f"t{i}") for i in range(5)))
    index_worker(broker, IndexHandler(gallery)).run(until_drained=True)
    assert len(gallery.held) == 5
    assert committed(broker) == 5


class OneDimension(InMemoryGallery):
    """A gallery whose body vectors must have three values."""

    def upsert(self, tracklets: Sequence[Tracklet]) -> int:
        for tracklet in tracklets:
            for each in tracklet.embeddings:
                if len(each.vector) != 3:
                    raise BadInputError(f"a vector of {each.space} must have 3 values, got {len(each.vector)}")
        return super().upsert(tracklets)


def test_one_bad_vector_is_put_aside_and_can_be_put_back(broker: SqliteBroker) -> None:
    gallery = OneDimension()
    bad = a_tracklet("bad", embedding("body", 1, 0))
    publish(broker, a_tracklet("t1", embedding("body", 1, 0, 0)), bad, a_tracklet("t2", embedding("body", 0, 1, 0)))
    index_worker(broker, IndexHandler(gallery)).run(until_drained=True)
    assert set(gallery.held) == {"t1", "t2"}
    (letter,) = list_dead_letters(broker)
    assert (letter.topic, letter.stage, letter.key) == (TRACKLETS, "index", "north")
    assert "3 values, got 2" in letter.error
    assert list_dead_letters(broker, COVERAGE) == []

    mended = InMemoryGallery()
    assert replay(broker, TRACKLETS) == 1
    assert replay(broker, TRACKLETS) == 0
    assert list_dead_letters(broker) == []
    index_worker(broker, IndexHandler(mended)).run(until_drained=True)
    assert set(mended.held) == {"bad"}


def test_dead_letters_of_an_unknown_topic_are_not_found(broker: SqliteBroker) -> None:
    with pytest.raises(BadInputError, match="must be one of alerts"):
        list_dead_letters(broker, "nowhere")


def test_a_replay_stops_at_its_limit(broker: SqliteBroker) -> None:
    for i in range(5):
        broker.produce(TRACKLETS, b"damaged %d" % i, b"north")
    broker.flush()
    index_worker(broker, IndexHandler(InMemoryGallery())).run(until_drained=True)
    assert [letter.offset for letter in list_dead_letters(broker, TRACKLETS)] == [0, 1, 2, 3, 4]
    assert replay(broker, TRACKLETS, limit=2) == 2
    assert [letter.offset for letter in list_dead_letters(broker, TRACKLETS)] == [2, 3, 4]
    assert list_dead_letters(broker, TRACKLETS)[0].as_dict()["bytes"] == 9
