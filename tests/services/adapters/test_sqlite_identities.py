"""Who probably is who, on disk: whole or not at all, read beside the writer, and really gone when erased."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from pipeline.errors import NewerSchemaError, NotReadyError
from pipeline.ports import LinkChanges, Member
from pipeline.types import Decision, IdentityEvent, Link
from services.adapters.sqlite_identities import SqliteIdentities

LINK = Link("aaaa", "bbbb", 0.94, {"face": 0.71}, {"face": 2.9}, 40.0, "model", 7)
CUT = Link("aaaa", "cccc", 0.5, made_by="anna", verdict="different")
WORD = Decision("aaaa", "cccc", "different", "anna", 9, "case 7")
EVENT = IdentityEvent("made", "i1", ("aaaa", "bbbb"), 7, "", LINK)


def member(tracklet_id: str, identity_id: str = "i1", started_at_ns: int = 5) -> Member:
    return Member(tracklet_id, identity_id, 2, "north", started_at_ns, started_at_ns + 4, tracklet_id == "cccc")


CHANGES = LinkChanges(
    (member("aaaa", started_at_ns=6), member("bbbb"), member("cccc", "i2")), (LINK, CUT), decisions=(WORD,), events=(EVENT,)
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index" / "identities.sqlite"


def test_what_was_written_is_read_beside_the_writer(path: Path) -> None:
    with SqliteIdentities(path) as store, SqliteIdentities(path, read_only=True) as reader:
        store.write(CHANGES)
        assert reader.identity_of(["bbbb", "nobody", "cccc"]) == {"bbbb": "i1", "cccc": "i2"}
        found = reader.identity("i1")
        assert found is not None
        assert (found.tracklet_ids, found.links) == (("bbbb", "aaaa"), (LINK,))
        assert reader.identity("nobody") is None
        assert reader.links_of("aaaa") == [LINK, CUT]
        assert reader.links_of("cccc") == [CUT]
        assert reader.decisions() == [WORD]
        assert reader.identities() == [("i1", 2)]
        assert reader.identities(1) == [("i1", 2), ("i2", 1)]
        assert list(reader.members()) == list(CHANGES.members)
        assert list(reader.links()) == [LINK, CUT]


def test_a_later_word_replaces_and_a_withdrawn_one_is_gone(path: Path) -> None:
    with SqliteIdentities(path) as store:
        store.write(CHANGES)
        store.write(LinkChanges((member("bbbb", "i9"),), unlinked=(("aaaa", "bbbb"),)))
        assert store.identity_of(["bbbb"]) == {"bbbb": "i9"}
        assert list(store.links()) == [CUT]
        store.write(LinkChanges(decisions=(Decision("cccc", "aaaa", "withdrawn", "bert", 11),)))
        assert store.decisions() == []


def test_events_are_kept_until_they_are_told(path: Path) -> None:
    with SqliteIdentities(path) as store:
        store.write(CHANGES)
        store.write(LinkChanges(events=(EVENT,)))
    with SqliteIdentities(path) as store:
        (first, event), (second, _) = store.untold()
        assert event == EVENT
        store.told(first)
        assert [number for number, _ in store.untold()] == [second]


def test_the_erased_are_in_no_file_any_more(path: Path) -> None:
    with SqliteIdentities(path) as store:
        store.write(CHANGES)
        store.remove(["aaaa"])
        assert store.identity_of(["aaaa", "bbbb"]) == {"bbbb": "i1"}
        assert (list(store.links()), store.decisions(), store.untold()) == ([], [], [])
        assert not any(b"aaaa" in file.read_bytes() for file in path.parent.iterdir())


def _write_for_ever(path: str) -> None:
    with SqliteIdentities(Path(path)) as store:
        number = 0
        while True:
            names = [f"t{number}-{part}" for part in range(20)]
            links = tuple(Link(first, second, 0.9) for first, second in itertools.pairwise(names))
            store.write(LinkChanges(tuple(member(name, f"i{number}") for name in names), links))
            number += 1


def test_a_writer_that_is_killed_leaves_whole_batches(path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(str(path),))
    process.start()
    journal, ends_at = path.with_name(path.name + "-wal"), time.monotonic() + 20
    while time.monotonic() < ends_at and not (journal.exists() and journal.stat().st_size > 100_000):  # some batches are whole
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with SqliteIdentities(path) as store:
        sizes = store.identities()
        assert sizes
        assert {size for _, size in sizes} == {20}
        assert len(list(store.links())) == 19 * len(list(store.members())) // 20


def test_a_reader_waits_for_the_first_writer_and_nobody_opens_a_newer_file(path: Path) -> None:
    with pytest.raises(NotReadyError, match="not there yet"):
        SqliteIdentities(path, read_only=True)
    SqliteIdentities(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(NewerSchemaError, match="got 99"):
        SqliteIdentities(path)
