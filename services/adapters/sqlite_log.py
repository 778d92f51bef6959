"""The file of the embedded broker: its schema, connections, transactions, and what its errors mean."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import NewerSchemaError, NotReadyError, ReadOnlyStorageError, SettingsError, StorageFullError

SCHEMA_VERSION = 1

_APPLICATION_ID = 0x53474C54  # "SGLT"
OFFSET_BITS = 40  # a message's rowid is partition id and offset in one integer: a range of it is a range of offsets

_SCHEMA = """
CREATE TABLE topics (
  name TEXT PRIMARY KEY, partitions INTEGER NOT NULL, cleanup TEXT NOT NULL, retention_ms INTEGER NOT NULL,
  retention_bytes INTEGER NOT NULL, max_message_bytes INTEGER NOT NULL);
CREATE TABLE partitions (
  id INTEGER PRIMARY KEY, topic TEXT NOT NULL REFERENCES topics(name), partition INTEGER NOT NULL,
  next_offset INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, partition));
CREATE TABLE messages (
  id INTEGER PRIMARY KEY, timestamp_ms INTEGER NOT NULL, key BLOB, headers BLOB NOT NULL, value BLOB);
CREATE TABLE members (
  id INTEGER PRIMARY KEY AUTOINCREMENT, group_name TEXT NOT NULL, topics TEXT NOT NULL, seen_at_s REAL NOT NULL, session_s REAL NOT NULL);
CREATE TABLE groups (name TEXT PRIMARY KEY, generation INTEGER NOT NULL);
CREATE TABLE assignments (
  group_name TEXT NOT NULL, partition_id INTEGER NOT NULL, target INTEGER, owner INTEGER,
  PRIMARY KEY (group_name, partition_id)) WITHOUT ROWID;
CREATE TABLE offsets (
  group_name TEXT NOT NULL, partition_id INTEGER NOT NULL, next_offset INTEGER NOT NULL,
  PRIMARY KEY (group_name, partition_id)) WITHOUT ROWID;
CREATE INDEX members_of_group ON members (group_name);
"""


SIZE = "length(headers) + coalesce(length(key), 0) + coalesce(length(value), 0)"


def span(partition_id: int) -> tuple[int, int]:
    """First and last rowid of a partition's messages."""
    return partition_id << OFFSET_BITS, ((partition_id + 1) << OFFSET_BITS) - 1


def pack_headers(headers: Sequence[tuple[str, bytes]]) -> bytes:
    packed = bytearray()
    for name, value in headers:
        for part in (name.encode(), value):
            packed += len(part).to_bytes(4, "little") + part
    return bytes(packed)


def unpack_headers(packed: bytes) -> tuple[tuple[str, bytes], ...]:
    parts, at = [], 0
    while at < len(packed):
        end = at + 4 + int.from_bytes(packed[at : at + 4], "little")
        parts.append(packed[at + 4 : end])
        at = end
    return tuple((parts[i].decode(), parts[i + 1]) for i in range(0, len(parts), 2))


_FULL = {sqlite3.SQLITE_FULL}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_READ_ONLY = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
_FOREIGN = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as ours; what is not known here stays a bug and stops the process."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
        if code in _FULL:
            raise StorageFullError(f"no space is left for the log {path}: free some and it goes on ({error})") from error
        if code in _BUSY:
            raise NotReadyError(f"the log {path} is locked by another process: it is tried again ({error})") from error
        if code in _READ_ONLY:
            raise ReadOnlyStorageError(f"the log {path} must be writable: check the folder's owner and mount ({error})") from error
        if code in _FOREIGN:
            raise SettingsError(f"{path} must be a Sightline log and is damaged or another kind of file: move it away ({error})") from error
        raise


def connect(path: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False, cached_statements=64)
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("PRAGMA journal_size_limit=67108864")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One write transaction: all of it or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def open_log(path: Path) -> sqlite3.Connection:
    """A connection to the log, created when missing. Any number of processes may do this at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadOnlyStorageError(f"the folder {path.parent} must exist and be writable: check its owner and mount ({error})") from error
    with plain_errors(path):
        connection = connect(path, "FULL")
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    _check_version(connection, path)
    if connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        return
    connection.execute("PRAGMA page_size=8192")  # tracklets are tens of kB: fewer overflow pages
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # retention gives the space back
    _turn_wal_on(connection)
    with transaction(connection):
        _check_version(connection, path)
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:  # else another process was first
            for statement in _SCHEMA.split(";\n"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _turn_wal_on(connection: sqlite3.Connection) -> None:
    until = time.monotonic() + 10.0
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            return
        except sqlite3.OperationalError as error:  # the busy timeout does not cover this change of mode
            if (getattr(error, "sqlite_errorcode", 0) & 0xFF) not in _BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if not is_empty and application != _APPLICATION_ID:
        raise SettingsError(f"{path} must be a Sightline log and is another SQLite database: choose another path")
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"the log {path} has schema {version}, this Sightline knows up to {SCHEMA_VERSION}:"
            " use the newer Sightline or another data folder"
        )
