"""Identities beside the gallery: linked by the index worker, made up for after a crash, obeying operators, forgetting the erased."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline.calibration import Calibration
from pipeline.errors import StorageFullError
from pipeline.evidence import PlainAssociator
from pipeline.index.linking import Linker, LinkRules
from pipeline.types import FACE, Decision, Erasure, IdentityEvent, Link, Tracklet
from pipeline.types.identity import pair_key
from services import wire, wiring
from services.adapters.faiss_neighbours import FaissNeighbours
from services.adapters.sqlite_broker import SqliteBroker
from services.adapters.sqlite_identities import SqliteIdentities
from services.cli.app import app
from services.dead_letters import list_dead_letters
from services.identities import in_words
from services.index import IndexHandler, index_worker
from services.linking import Linking, read_decisions
from services.reading import until_end
from services.retention import erase_tracklets, expire_tracklets
from services.settings import IndexSettings, Settings, StorageSettings
from services.topics import AUDIT, DECISIONS, ERASURES, IDENTITIES, TRACKLETS, create_all
from tests.fakes import NOON_NS, InMemoryGallery, S, a_tracklet, embedding

ANNA, BERT = (1, 0, 0), (0, 1, 0)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SqliteBroker]:
    with SqliteBroker(tmp_path / "log.db", session_timeout_s=1.0) as opened:
        create_all(opened)
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteIdentities]:
    with SqliteIdentities(tmp_path / "identities.sqlite") as opened:
        yield opened


def seen(name: str, *values: float, at_s: float = 0, **changes: Any) -> Tracklet:
    return a_tracklet(name, embedding(FACE, *values), started_at_ns=NOON_NS + int(at_s * S), **changes)


THREE = (seen("a", *ANNA), seen("b", *ANNA, at_s=60), seen("c", *BERT, at_s=120))


def a_linking(store: SqliteIdentities, broker: SqliteBroker | None = None) -> Linking:
    linker = Linker(PlainAssociator(Calibration.default()), FaissNeighbours(3600.0), LinkRules())
    return Linking(store, linker, lambda: NOON_NS, broker.flush if broker else lambda: None)


def publish(broker: SqliteBroker, *values: Tracklet | Decision | Erasure) -> None:
    for value in values:
        if isinstance(value, Tracklet):
            broker.produce(TRACKLETS, wire.encode(value), value.camera_id.encode())
        elif isinstance(value, Decision):
            broker.produce(DECISIONS, wire.encode(value), value.key.encode())
        else:
            broker.produce(ERASURES, wire.encode(value), value.tracklet_id.encode())
    broker.flush()


def work(broker: SqliteBroker, gallery: InMemoryGallery, store: SqliteIdentities) -> None:
    """An index worker from its start until it has read everything."""
    linking = a_linking(store, broker)
    linking.catch_up(gallery, read_decisions(broker))
    index_worker(broker, IndexHandler(gallery, linking=linking)).run(until_drained=True)
    linking.were_sent()


def told(broker: SqliteBroker) -> list[IdentityEvent]:
    reader = broker.reader([IDENTITIES])
    try:
        return [wire.decode(IdentityEvent, message.value) for message in until_end(broker, reader, IDENTITIES)]
    finally:
        reader.close()


def partition(store: SqliteIdentities, names: str = "abc") -> list[list[str]]:
    by_identity: dict[str, list[str]] = {}
    for name, identity_id in sorted(store.identity_of(list(names)).items()):
        by_identity.setdefault(identity_id, []).append(name)
    return sorted(by_identity.values())


def test_what_is_indexed_is_linked_and_the_events_are_told(broker: SqliteBroker, store: SqliteIdentities) -> None:
    publish(broker, *THREE)
    work(broker, InMemoryGallery(), store)
    assert partition(store) == [["a", "b"], ["c"]]
    assert [(event.kind, event.tracklet_ids) for event in told(broker)] == [("made", ("a", "b"))]


def test_a_second_start_changes_nothing_and_tells_nothing_new(broker: SqliteBroker, store: SqliteIdentities) -> None:
    gallery = InMemoryGallery()
    publish(broker, *THREE)
    work(broker, gallery, store)
    before = (list(store.members()), list(store.links()))
    publish(broker, seen("d", *BERT, at_s=180))
    work(broker, gallery, store)
    assert partition(store, "abcd") == [["a", "b"], ["c", "d"]]
    assert set(before[0]) <= set(store.members()) | {member for member in before[0] if member.tracklet_id == "c"}
    assert [event.kind for event in told(broker)] == ["made", "made"]


def test_what_a_killed_worker_indexed_and_did_not_link_is_linked_at_the_next_start(broker: SqliteBroker, store: SqliteIdentities) -> None:
    gallery = InMemoryGallery()
    publish(broker, *THREE)
    index_worker(broker, IndexHandler(gallery)).run(until_drained=True)  # committed, and nothing linked
    assert partition(store) == []
    work(broker, gallery, store)
    assert partition(store) == [["a", "b"], ["c"]]
    newer = seen("b", *BERT, at_s=60, revision=2)
    gallery.upsert([newer])
    work(broker, gallery, store)
    assert partition(store) == [["a"], ["b", "c"]]


def test_events_that_were_written_and_not_told_are_told_later(broker: SqliteBroker, store: SqliteIdentities) -> None:
    gallery = InMemoryGallery(*THREE)
    a_linking(store).catch_up(gallery)  # killed here: nothing was sent
    assert len(store.untold()) == 1
    publish(broker, seen("d", *BERT, at_s=300))
    work(broker, gallery, store)
    assert [event.kind for event in told(broker)] == ["made", "made"]


class Killed(BaseException):
    """The process ends here."""


class KilledBetween(SqliteIdentities):
    """A store whose process is killed before it writes the first links."""

    def write(self, changes: Any) -> None:
        if changes.links:
            raise Killed
        super().write(changes)


def test_a_worker_killed_between_index_and_links_repeats_the_batch(broker: SqliteBroker, tmp_path: Path) -> None:
    gallery = InMemoryGallery()
    publish(broker, *THREE)
    with KilledBetween(tmp_path / "identities.sqlite") as store, pytest.raises(Killed):
        work(broker, gallery, store)
    assert set(gallery.held) == {"a", "b", "c"}
    with SqliteIdentities(tmp_path / "identities.sqlite") as store:
        work(broker, gallery, store)
        assert partition(store) == [["a", "b"], ["c"]]


class FullOnce(SqliteIdentities):
    """A store that has no room for the first links."""

    is_full = True

    def write(self, changes: Any) -> None:
        if changes.links and self.is_full:
            self.is_full = False
            raise StorageFullError("no space is left for identities")
        super().write(changes)


def test_a_full_disk_delays_and_loses_no_link(broker: SqliteBroker, tmp_path: Path) -> None:
    publish(broker, *THREE)
    with FullOnce(tmp_path / "identities.sqlite") as store:
        work(broker, InMemoryGallery(), store)
        assert partition(store) == [["a", "b"], ["c"]]
        assert len(list(store.links())) == 1
    assert [event.kind for event in told(broker)] == ["made"]


def test_a_cut_holds_after_a_restart_and_in_an_index_built_anew(broker: SqliteBroker, store: SqliteIdentities, tmp_path: Path) -> None:
    gallery = InMemoryGallery()
    publish(broker, *THREE, Decision("a", "b", "different", "anna", NOON_NS, "case 7"))
    work(broker, gallery, store)
    assert partition(store) == [["a"], ["b"], ["c"]]
    publish(broker, seen("d", *ANNA, at_s=300), seen("b", *ANNA, at_s=60, revision=2))
    work(broker, gallery, store)
    identities = store.identity_of(["a", "b", "d"])
    assert identities["a"] != identities["b"]
    with SqliteIdentities(tmp_path / "anew.sqlite") as anew:
        a_linking(anew).catch_up(gallery, read_decisions(broker))
        again = anew.identity_of(["a", "b"])
        assert again["a"] != again["b"]


def test_a_word_withdrawn_or_taken_off_its_topic_no_longer_holds(broker: SqliteBroker, store: SqliteIdentities) -> None:
    gallery = InMemoryGallery()
    publish(broker, *THREE, Decision("a", "b", "different", "anna", NOON_NS))
    work(broker, gallery, store)
    publish(broker, Decision("b", "a", "withdrawn", "bert", NOON_NS + 1))
    work(broker, gallery, store)
    assert partition(store) == [["a", "b"], ["c"]]
    publish(broker, Decision("a", "b", "different", "anna", NOON_NS + 2))
    work(broker, gallery, store)
    broker.produce(DECISIONS, None, pair_key("a", "b").encode())
    broker.flush()
    work(broker, gallery, store)
    assert partition(store) == [["a", "b"], ["c"]]
    assert store.decisions() == []


def test_a_word_that_contradicts_another_is_put_aside_with_the_reason(broker: SqliteBroker, store: SqliteIdentities) -> None:
    gallery = InMemoryGallery()
    publish(broker, *THREE, Decision("a", "b", "different", "anna", NOON_NS))
    work(broker, gallery, store)
    publish(broker, Decision("a", "c", "same", "anna", NOON_NS + 1), Decision("c", "b", "same", "bert", NOON_NS + 2))
    work(broker, gallery, store)
    (letter,) = list_dead_letters(broker)
    assert letter.topic == DECISIONS
    assert "cannot be one person" in letter.error
    assert partition(store) == [["a", "c"], ["b"]]


def test_the_erased_are_out_of_the_identities_and_so_is_what_was_said_of_them(broker: SqliteBroker, store: SqliteIdentities) -> None:
    gallery = InMemoryGallery()
    publish(broker, *THREE, Decision("a", "c", "different", "anna", NOON_NS))
    work(broker, gallery, store)
    publish(broker, Erasure("a", NOON_NS))
    work(broker, gallery, store)
    assert partition(store) == [["b"], ["c"]]
    assert store.decisions() == []
    assert read_decisions(broker) == []
    publish(broker, THREE[0])
    handler = IndexHandler(gallery, erased=["a"], linking=a_linking(store, broker))
    index_worker(broker, handler).run(until_drained=True)
    assert store.identity_of(["a"]) == {}


def test_what_was_said_of_the_erased_goes_though_another_word_of_that_batch_is_put_aside(
    broker: SqliteBroker, store: SqliteIdentities
) -> None:
    gallery = InMemoryGallery()
    publish(broker, *THREE, Decision("a", "c", "different", "anna", NOON_NS), Decision("b", "c", "different", "anna", NOON_NS))
    work(broker, gallery, store)
    words = [Decision(first, second, "same", "bert", NOON_NS + 1) for first, second in (("b", "later"), ("later", "c"))]
    publish(broker, Erasure("a", NOON_NS), *words)
    work(broker, gallery, store)
    assert len(list_dead_letters(broker)) == 1
    reader = broker.reader([DECISIONS])
    (taken_off,) = [message.key for message in until_end(broker, reader, DECISIONS) if message.value is None]
    reader.close()
    assert taken_off == pair_key("a", "c").encode()


def test_what_was_said_of_the_expired_does_not_come_back(broker: SqliteBroker, store: SqliteIdentities) -> None:
    gallery = InMemoryGallery()
    publish(broker, *THREE, Decision("a", "c", "different", "anna", NOON_NS))
    work(broker, gallery, store)
    linking = a_linking(store, broker)
    linking.catch_up(gallery, read_decisions(broker))
    gallery.expire(NOON_NS + 30 * S)
    linking.expire(NOON_NS + 30 * S)
    assert [(each.topic, each.key, each.value) for each in linking.outputs() if each.topic == DECISIONS] == [
        (DECISIONS, pair_key("a", "c"), None)
    ]
    assert not [each for each in linking.outputs() if each.topic == DECISIONS]


def test_what_was_deleted_while_no_worker_ran_is_forgotten_at_the_next_start(broker: SqliteBroker, store: SqliteIdentities) -> None:
    gallery = InMemoryGallery()
    publish(broker, *THREE)
    work(broker, gallery, store)
    del gallery.held["a"]
    work(broker, gallery, store)
    assert partition(store) == [["b"], ["c"]]
    assert list(store.links()) == []


def test_retention_forgets_the_old(store: SqliteIdentities) -> None:
    linking = a_linking(store)
    linking.catch_up(InMemoryGallery(*THREE))
    linking.expire(NOON_NS + 30 * S)
    assert partition(store) == [["b"], ["c"]]


def test_with_linking_off_nothing_is_linked_and_the_erased_still_go(store: SqliteIdentities) -> None:
    gallery = InMemoryGallery(*THREE)
    a_linking(store).catch_up(gallery)
    off = Linking(store, None)
    off.catch_up(gallery)
    off.take([seen("d", *BERT, at_s=180)])
    off.decide(Decision("a", "b", "different", "anna", NOON_NS))
    assert off.erase(["a"]) == (pair_key("a", "b"),)
    assert partition(store, "abcd") == [["b"], ["c"]]


# ------------------------------------------------------------------------------------------ the command line

NAMES = {name: f"{name * 16}" for name in "abc"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder whose index holds two tracklets of one face and one of another, linked as the index worker does it."""
    settings = settings_of(tmp_path / "data")
    with wiring.open_broker(settings) as broker:
        for each in THREE:
            broker.produce(TRACKLETS, wire.encode(replace(each, tracklet_id=NAMES[each.tracklet_id])), b"north")
        broker.flush()
    run_index_worker(settings)
    return settings.storage.data_folder


def settings_of(folder: Path) -> Settings:
    return Settings(storage=StorageSettings(data_folder=folder), index=IndexSettings(retention_days=0))


def run_index_worker(settings: Settings) -> None:
    """The index worker as wiring makes it, until its topics are read."""
    stop = threading.Event()
    worker = threading.Thread(target=wiring.make_worker("index", settings, stop))
    worker.start()
    try:
        with wiring.open_broker(settings) as broker:
            ends_at = time.monotonic() + 20
            while time.monotonic() < ends_at:
                committed = broker.groups().get("index", {})
                ends = {p: end for topic in (TRACKLETS, DECISIONS, ERASURES) for p, end in broker.end_offsets(topic).items() if end}
                if all(committed.get(partition, 0) >= end for partition, end in ends.items()):
                    return
                time.sleep(0.05)
            raise AssertionError("the index worker did not read its topics")
    finally:
        stop.set()
        worker.join()


def sightline(data: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["--data", str(data), "identity", *arguments])


def test_an_identity_is_shown_with_the_evidence_in_words(data: Path) -> None:
    (row,) = json.loads(sightline(data, "list", "--json").output)
    assert (row["tracklets"], row["cameras"]) == (2, ["north"])
    shown = sightline(data, "show", NAMES["b"], "--purpose", "case 7")
    assert shown.exit_code == 0
    assert row["identity_id"] in shown.output
    assert f"with {NAMES['a']}: face 1.00: probably the same person, 0.99" in shown.output
    found = json.loads(sightline(data, "show", row["identity_id"], "--purpose", "case 7", "--json").output)
    assert [each["tracklet"] for each in found["trajectory"]] == [NAMES["a"], NAMES["b"]]
    assert found["trajectory"][1]["evidence"][0]["similarities"] == {"face": 1.0}


def test_an_identity_is_shown_while_one_of_its_tracklets_is_being_removed(data: Path) -> None:
    with wiring.open_gallery(settings_of(data)) as gallery:
        gallery.delete([NAMES["a"]])
    shown = sightline(data, "show", NAMES["b"], "--purpose", "case 7")
    assert shown.exit_code == 0, shown.output
    assert f"tracklet {NAMES['b']}" in shown.output
    assert NAMES["a"] not in shown.output


def test_a_cut_on_the_command_line_parts_two_and_is_audited(data: Path) -> None:
    made = sightline(data, "cut", NAMES["a"], NAMES["b"], "--purpose", "not him", "--json")
    assert json.loads(made.output)["verdict"] == "different"
    settings = settings_of(data)
    run_index_worker(settings)
    assert json.loads(sightline(data, "list", "--json").output) == []
    assert "says: not the same person" in sightline(data, "show", NAMES["a"], "--purpose", "case 7").output
    with wiring.open_broker(settings) as broker, closing(broker.reader([AUDIT])) as reader:
        actions = [json.loads(message.value or b"{}")["action"] for message in until_end(broker, reader, AUDIT)]
    assert "identity cut" in actions
    contradiction = sightline(data, "confirm", NAMES["a"], NAMES["b"], "--purpose", "him after all")
    assert "withdraw that first" in str(contradiction.exception)
    assert sightline(data, "withdraw", NAMES["a"], NAMES["b"], "--purpose", "him after all").exit_code == 0
    run_index_worker(settings)
    assert len(json.loads(sightline(data, "list", "--json").output)) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "nobody", "--purpose", "x"), "nobody must be an identity or a tracklet"),
        (("cut", NAMES["a"], "nobody", "--purpose", "x"), "nobody must be a tracklet that was linked"),
        (("cut", NAMES["a"], NAMES["a"], "--purpose", "x"), "two different tracklets"),
        (("withdraw", NAMES["a"], NAMES["b"], "--purpose", "x"), "nothing to withdraw"),
        (("cut", NAMES["a"], NAMES["b"]), "must say why"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(data: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in str(sightline(data, *arguments).exception)


def test_erase_and_expire_without_a_worker_leave_nothing_in_the_identities(data: Path) -> None:
    assert sightline(data, "cut", NAMES["a"], NAMES["c"], "--purpose", "case 7").exit_code == 0
    settings = settings_of(data)
    run_index_worker(settings)
    erase_tracklets(settings, [NAMES["a"]], "operator", "case 7")
    with wiring.open_identities(settings, read_only=True) as store:
        assert set(store.identity_of(list(NAMES.values()))) == {NAMES["b"], NAMES["c"]}
        assert store.decisions() == []
    left = [path for path in data.rglob("*") if path.is_file() and NAMES["a"].encode() in path.read_bytes()]
    assert [path.name for path in left if "identities" in path.name] == []
    with wiring.open_broker(settings) as broker:
        assert read_decisions(broker) == []
    assert sightline(data, "cut", NAMES["b"], NAMES["c"], "--purpose", "case 7").exit_code == 0
    run_index_worker(settings)
    expire_tracklets(settings, NOON_NS + 100 * S, "operator")
    with wiring.open_identities(settings, read_only=True) as store:
        assert set(store.identity_of(list(NAMES.values()))) == {NAMES["c"]}
    run_index_worker(settings)
    with wiring.open_broker(settings) as broker, wiring.open_identities(settings, read_only=True) as store:
        assert read_decisions(broker) == store.decisions() == []


def test_the_erased_are_counted_though_the_worker_is_quicker(data: Path) -> None:
    settings, stop = settings_of(data), threading.Event()
    worker = threading.Thread(target=wiring.make_worker("index", settings, stop))
    worker.start()
    try:
        assert erase_tracklets(settings, [NAMES["a"]], "operator", "case 7").tracklets == 1
        assert erase_tracklets(settings, [NAMES["a"]], "operator", "case 7").tracklets == 0
    finally:
        stop.set()
        worker.join()


def test_evidence_reads_as_a_sentence() -> None:
    evidence = {"body": 0.83, "face": 0.71}
    link = Link("a", "b", 0.94, evidence, {"face": 2.9, "body": 1.1}, 2400.0)
    assert in_words(link) == "face 0.71, body 0.83 within 40 min: probably the same person, 0.94"
    assert in_words(replace(link, verdict="same", made_by="anna")).endswith("anna says: the same person")
