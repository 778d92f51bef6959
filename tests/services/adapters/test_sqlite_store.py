"""The database's schema, and what it says when the world is not as it must be."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import NewerSchemaError, NotReadyError, ReadOnlyStorageError, SettingsError
from pipeline.types import CameraCoverage, Embedding, Filter, Tracklet
from services.adapters.sqlite_store import MIGRATIONS, SCHEMA_VERSION, Columns, SqliteStore, _translated


def test_a_database_of_a_newer_schema_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    SqliteStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    for read_only in (False, True):
        with pytest.raises(NewerSchemaError, match="got 99"):
            SqliteStore(path, read_only=read_only)


def test_a_database_of_an_older_schema_is_brought_up_and_keeps_its_tracklets(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(MIGRATIONS[0] + "PRAGMA user_version = 1; INSERT INTO cameras VALUES (1, 'gate');")
    connection.close()
    with pytest.raises(NotReadyError, match="open it once for writing"):
        SqliteStore(path, read_only=True)
    store = SqliteStore(path)
    store.record_coverage(CameraCoverage("gate", 0, 1))
    assert store.cameras() == {"gate": 1}
    assert store.connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    store.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    path.write_text("not a database, " * 1000)
    with pytest.raises(SettingsError, match="must be an index database"):
        SqliteStore(path)


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "index.sqlite")

    good = Tracklet("a", 1, "c", 0, 1, [], [], [], (Embedding("body", "b@1", np.ones(4)),))
    broken = Tracklet("b", 1, "c", 0, 1, [], [], [], ())
    object.__setattr__(broken, "started_at_ns", "never")
    with pytest.raises(ValueError, match="never"):
        store.upsert([good, broken])
    assert store.extent() == (0, 0, 0)
    assert store.spaces() == []
    store.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes read-only folders; the words are tested below")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ReadOnlyStorageError, match="must be writable"):
        SqliteStore(tmp_path / "index.sqlite")


def test_a_read_only_file_system_is_named() -> None:
    known = _translated(OSError(30, "Read-only file system"), Path("data"))
    assert isinstance(known, ReadOnlyStorageError)
    assert "data must be writable" in str(known)
    assert _translated(OSError(5, "I/O error"), Path("data")) is None


def test_a_scan_goes_on_over_pages_while_the_writer_writes(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "index.sqlite")
    store.upsert([Tracklet(f"t{n:02d}", 1, "c", n // 3, n // 3, [], [], []) for n in range(20)])
    pages = store.scan(Filter(), page=7)
    first = next(pages)
    store.upsert([Tracklet("later", 1, "c", 100, 100, [], [], [])])
    assert [first.tracklet_id, *(t.tracklet_id for t in pages)] == [*(f"t{n:02d}" for n in range(20)), "later"]
    store.close()


def test_columns_survive_the_way_to_bytes_and_back() -> None:
    ints = np.arange(3, dtype=np.int32)
    columns = Columns(np.arange(3), np.arange(3) * 2**40, np.arange(3) * 2**41, ints, ints + 5)
    back = Columns.from_bytes(columns.to_bytes())
    for before, after in zip(columns.arrays(), back.arrays(), strict=True):
        np.testing.assert_array_equal(before, after)
    with pytest.raises(ValueError, match="32 bytes a row"):
        Columns.from_bytes(b"short")
