"""Who probably is who, in one SQLite file beside the index: members, links with their evidence, operators' words, events to be told.

Written by the index worker alone, after the gallery is durable; read by anybody. What the gallery holds and this file does not, because
the worker was killed between the two, is linked at the next start.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pipeline.errors import NewerSchemaError, NotReadyError
from pipeline.ports import LinkChanges, Member
from pipeline.types import Decision, Identity, IdentityEvent, Link
from services.adapters.sqlite_store import translated_errors

DATABASE = "identities.sqlite"
BUSY_TIMEOUT_S = 20.0
PAGE = 500  # values bound in one statement

# One script per schema version. Never edit a released step: add one.
MIGRATIONS = (
    """
    CREATE TABLE members (
        tracklet_id TEXT PRIMARY KEY, identity_id TEXT NOT NULL, revision INTEGER NOT NULL, camera_id TEXT NOT NULL,
        started_at_ns INTEGER NOT NULL, ended_at_ns INTEGER NOT NULL, is_heard INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX members_of_identity ON members (identity_id);
    CREATE TABLE links (first TEXT NOT NULL, second TEXT NOT NULL, link BLOB NOT NULL, PRIMARY KEY (first, second)) WITHOUT ROWID;
    CREATE INDEX links_by_second ON links (second);
    CREATE TABLE decisions (pair TEXT PRIMARY KEY, decided_at_ns INTEGER NOT NULL, decision BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE events (number INTEGER PRIMARY KEY AUTOINCREMENT, event BLOB NOT NULL);
    """,
)
SCHEMA_VERSION = len(MIGRATIONS)


class SqliteIdentities:
    """The IdentityStore port over one file. The caller sees to it that one process writes (the gallery's writer lock)."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Opens ``path``, creating it unless ``read_only``.

        Raises NewerSchemaError, ReadOnlyStorageError, NotReadyError (read_only and not there yet).
        """
        self.path = path
        self._lock = threading.RLock()
        if read_only and not path.exists():
            raise NotReadyError(f"{path} is not there yet: it is made when the index worker links its first tracklets")
        with translated_errors(path):
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                _address(path, read_only), uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S
            )
        try:
            with translated_errors(path):
                self._prepare(read_only)
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, read_only: bool) -> None:
        execute = self._connection.execute
        if not read_only:
            execute("PRAGMA journal_mode = WAL")
            execute("PRAGMA synchronous = FULL")
            execute("PRAGMA secure_delete = ON")
        version = int(execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise NewerSchemaError(f"{self.path} must have schema {SCHEMA_VERSION} or older, got {version}: use the newer Sightline")
        if version < SCHEMA_VERSION and read_only:
            raise NotReadyError(f"{self.path} has schema {version}, {SCHEMA_VERSION} is needed: start the index worker once")
        for number in range(version, SCHEMA_VERSION):
            with self._writing():
                for statement in MIGRATIONS[number].split(";"):
                    execute(statement)
                execute(f"PRAGMA user_version = {number + 1}")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: all or nothing."""
        with self._lock, translated_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _rows(self, statement: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        with self._lock, translated_errors(self.path):
            return self._connection.execute(statement, tuple(values)).fetchall()

    def _rows_of(self, statement: str, names: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """``statement`` with {} in the place of many names, in pages."""
        for start in range(0, len(names), PAGE):
            page = names[start : start + PAGE]
            yield from self._rows(statement.format(",".join("?" * len(page))), page)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> SqliteIdentities:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --------------------------------------------------------------------------------------------- read

    def identity_of(self, tracklet_ids: Sequence[str]) -> dict[str, str]:
        """See IdentityStore.identity_of."""
        rows = self._rows_of("SELECT tracklet_id, identity_id FROM members WHERE tracklet_id IN ({})", list(dict.fromkeys(tracklet_ids)))
        return {str(tracklet_id): str(identity_id) for tracklet_id, identity_id in rows}

    def identity(self, identity_id: str) -> Identity | None:
        """See IdentityStore.identity."""
        rows = self._rows("SELECT tracklet_id FROM members WHERE identity_id = ? ORDER BY started_at_ns, tracklet_id", [identity_id])
        ids = [str(row[0]) for row in rows]
        if not ids:
            return None
        known = set(ids)
        found = [_link(row[0]) for row in self._rows_of("SELECT link FROM links WHERE first IN ({}) ORDER BY first, second", ids)]
        links = [link for link in found if link.second in known and link.verdict != "different"]
        return Identity(identity_id, tuple(ids), tuple(sorted(links, key=lambda link: (link.first, link.second))))

    def identities(self, least: int = 2, most: int = 1000) -> list[tuple[str, int]]:
        """See IdentityStore.identities."""
        counted = "SELECT identity_id, COUNT(*) AS held FROM members GROUP BY identity_id"
        statement = f"{counted} HAVING held >= ? ORDER BY held DESC, identity_id LIMIT ?"
        return [(str(identity_id), int(str(held))) for identity_id, held in self._rows(statement, [least, most])]

    def links_of(self, tracklet_id: str) -> list[Link]:
        """See IdentityStore.links_of."""
        statement = "SELECT link FROM links WHERE first = ? UNION ALL SELECT link FROM links WHERE second = ?"
        return [_link(row[0]) for row in self._rows(statement, [tracklet_id, tracklet_id])]

    def decisions(self) -> list[Decision]:
        """See IdentityStore.decisions."""
        rows = self._rows("SELECT decision FROM decisions ORDER BY decided_at_ns, pair")
        return [msgspec.msgpack.decode(_blob(row[0]), type=Decision) for row in rows]

    def members(self) -> Iterator[Member]:
        """See IdentityStore.members; in pages, so that a writer is not held up."""
        last = ""
        while rows := self._rows("SELECT * FROM members WHERE tracklet_id > ? ORDER BY tracklet_id LIMIT 10000", [last]):
            for tracklet_id, identity_id, revision, camera_id, started, ended, is_heard in rows:
                last = str(tracklet_id)
                yield Member(last, str(identity_id), int(str(revision)), str(camera_id), int(str(started)), int(str(ended)), bool(is_heard))

    def links(self) -> Iterator[Link]:
        """See IdentityStore.links; in pages."""
        last = ("", "")
        statement = "SELECT first, second, link FROM links WHERE (first, second) > (?, ?) ORDER BY first, second LIMIT 10000"
        while rows := self._rows(statement, last):
            for first, second, blob in rows:
                last = str(first), str(second)
                yield _link(blob)

    def ended_before(self, before_ns: int) -> list[str]:
        """See IdentityStore.ended_before."""
        return [str(row[0]) for row in self._rows("SELECT tracklet_id FROM members WHERE ended_at_ns < ?", [before_ns])]

    def untold(self) -> list[tuple[int, IdentityEvent]]:
        """See IdentityStore.untold."""
        rows = self._rows("SELECT number, event FROM events ORDER BY number")
        return [(int(str(number)), msgspec.msgpack.decode(_blob(event), type=IdentityEvent)) for number, event in rows]

    # -------------------------------------------------------------------------------------------- write

    def write(self, changes: LinkChanges) -> None:
        """See IdentityStore.write."""
        if changes == LinkChanges():
            return
        pack = msgspec.msgpack.encode
        with self._writing() as connection:
            many = connection.executemany
            many(
                "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (m.tracklet_id, m.identity_id, m.revision, m.camera_id, m.started_at_ns, m.ended_at_ns, m.is_heard)
                    for m in changes.members
                ],
            )
            many("DELETE FROM links WHERE first = ? AND second = ?", changes.unlinked)
            many("INSERT OR REPLACE INTO links VALUES (?, ?, ?)", [(link.first, link.second, pack(link)) for link in changes.links])
            for decision in changes.decisions:
                if decision.verdict == "withdrawn":
                    connection.execute("DELETE FROM decisions WHERE pair = ?", (decision.key,))
                else:
                    row = (decision.key, decision.decided_at_ns, pack(decision))
                    connection.execute("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?)", row)
            many("DELETE FROM decisions WHERE pair = ?", [(key,) for key in changes.forgotten])
            many("INSERT INTO events (event) VALUES (?)", [(pack(event),) for event in changes.events])
            if changes.gone:
                _take_out(connection, changes.gone)
        if changes.gone:
            self._empty_journal()

    def remove(self, tracklet_ids: Sequence[str]) -> None:
        """See IdentityStore.remove."""
        with self._writing() as connection:
            _take_out(connection, tracklet_ids)
        self._empty_journal()

    def _empty_journal(self) -> None:
        """What was removed is not left in the journal either."""
        with self._lock, translated_errors(self.path):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def told(self, up_to: int) -> None:
        """See IdentityStore.told."""
        with self._writing() as connection:
            connection.execute("DELETE FROM events WHERE number <= ?", (up_to,))


def _take_out(connection: sqlite3.Connection, tracklet_ids: Sequence[str]) -> None:
    gone = set(tracklet_ids)
    connection.executemany("DELETE FROM members WHERE tracklet_id = ?", [(each,) for each in gone])
    connection.executemany("DELETE FROM links WHERE first = ?", [(each,) for each in gone])
    connection.executemany("DELETE FROM links WHERE second = ?", [(each,) for each in gone])
    for pair, blob in connection.execute("SELECT pair, decision FROM decisions").fetchall():
        decision = msgspec.msgpack.decode(blob, type=Decision)
        if gone & {decision.first, decision.second}:
            connection.execute("DELETE FROM decisions WHERE pair = ?", (pair,))
    for number, blob in connection.execute("SELECT number, event FROM events").fetchall():
        if gone & _named(msgspec.msgpack.decode(blob, type=IdentityEvent)):
            connection.execute("DELETE FROM events WHERE number = ?", (number,))


def _named(event: IdentityEvent) -> set[str]:
    """The tracklets that an event names."""
    return {*event.tracklet_ids, *((event.link.first, event.link.second) if event.link else ())}


def _blob(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def _link(value: object) -> Link:
    return msgspec.msgpack.decode(_blob(value), type=Link)


def _address(path: Path, read_only: bool) -> str:
    name = path.resolve().as_uri()
    if not read_only:
        return f"{name}?mode=rwc"
    is_still = not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists()
    return f"{name}?immutable=1" if is_still else f"{name}?mode=ro"
