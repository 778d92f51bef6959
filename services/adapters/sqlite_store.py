"""The identity index's truth: tracklets, vectors, coverage and the list of segments, in one SQLite database.

A row is one revision of a tracklet and never changes: a higher revision gets a new, higher row and removes the old one. So a
segment is a stretch of rows, and a reader follows the writer by "rows above the last I saw" and the feed of rows that are gone.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import (
    BadInputError,
    NewerSchemaError,
    NotReadyError,
    ReadOnlyStorageError,
    SettingsError,
    SightlineError,
    StorageFullError,
)
from pipeline.types import Attribute, CameraCoverage, CropReference, Embedding, Filter, Gap, Tracklet

SPACE_BITS = 8  # vectors.row_space = row << 8 | space_id, so that the vectors of a row lie together
KEPT_GONE = 20_000  # entries of the feed; a reader further behind than that reloads
SEALED_TO = "sealed_to"  # rows up to this one are in segments
BUSY_TIMEOUT_S = 20.0

# One script per schema version; a database is brought up step by step. Never edit a released step: add one.
MIGRATIONS = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    INSERT INTO meta VALUES ('sealed_to', 0);
    CREATE TABLE cameras (number INTEGER PRIMARY KEY, camera_id TEXT UNIQUE NOT NULL);
    CREATE TABLE zone_sets (number INTEGER PRIMARY KEY, names BLOB UNIQUE NOT NULL);
    CREATE TABLE spaces (
        number INTEGER PRIMARY KEY, modality TEXT NOT NULL, space TEXT NOT NULL, dimension INTEGER NOT NULL,
        vectors INTEGER NOT NULL DEFAULT 0, UNIQUE (modality, space));
    CREATE TABLE tracklets (
        row INTEGER PRIMARY KEY AUTOINCREMENT, tracklet_id TEXT UNIQUE NOT NULL, revision INTEGER NOT NULL,
        camera INTEGER NOT NULL, started_at_ns INTEGER NOT NULL, ended_at_ns INTEGER NOT NULL, zone_set INTEGER NOT NULL,
        details BLOB NOT NULL, path BLOB NOT NULL);
    CREATE INDEX tracklets_by_start ON tracklets (started_at_ns);
    CREATE INDEX tracklets_by_end ON tracklets (ended_at_ns);
    CREATE TABLE vectors (row_space INTEGER PRIMARY KEY, vector BLOB NOT NULL);
    CREATE TABLE segments (
        segment_id INTEGER PRIMARY KEY AUTOINCREMENT, first_row INTEGER NOT NULL, last_row INTEGER NOT NULL, columns BLOB NOT NULL);
    CREATE TABLE files (
        segment_id INTEGER NOT NULL, space INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
        bytes INTEGER NOT NULL, checksum INTEGER NOT NULL, positions BLOB NOT NULL, PRIMARY KEY (segment_id, space, kind));
    CREATE TABLE superseded (row INTEGER PRIMARY KEY, tracklet_id TEXT NOT NULL);
    CREATE INDEX superseded_by_id ON superseded (tracklet_id);
    CREATE TABLE gone (number INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER NOT NULL);
    """,
    """
    CREATE TABLE coverage (
        camera_id TEXT NOT NULL, from_ns INTEGER NOT NULL, to_ns INTEGER NOT NULL, account BLOB NOT NULL,
        PRIMARY KEY (camera_id, from_ns));
    """,
    """
    ALTER TABLE files ADD COLUMN recall REAL NOT NULL DEFAULT 0;
    """,
)
SCHEMA_VERSION = len(MIGRATIONS)


def _translated(error: Exception, path: Path) -> SightlineError | None:
    """The error tree's word for what SQLite or the system said; None: a bug, to be raised as it is."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageFullError(f"no space left for {path}: free some; nothing of this write was kept")
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return ReadOnlyStorageError(f"{path} must be writable, got {error.strerror}: change its permissions or the data folder")
        return None
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFullError(f"no space left for {path}: free some; nothing of this write was kept")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return ReadOnlyStorageError(f"{path} must be writable, got {error}: change its permissions or the data folder")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return NotReadyError(f"{path} is busy: {error}; try again")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return SettingsError(f"{path} must be an index database, got {error}: restore it from a backup or move it away")
    return None


@contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Turns SQLite's and the system's storage errors into Sightline's."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        known = _translated(error, path)
        if known is None:
            raise
        raise known from error


@dataclass(slots=True)
class Columns:
    """What filters look at, one entry per row: rows, started/ended_at_ns int64 (N,), cameras, zone_sets int32 (N,)."""

    rows: NDArray[np.int64]
    started_at_ns: NDArray[np.int64]
    ended_at_ns: NDArray[np.int64]
    cameras: NDArray[np.int32]
    zone_sets: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, keep: NDArray[Any]) -> Columns:
        """The entries at ``keep``: mask or indices."""
        return Columns(self.rows[keep], self.started_at_ns[keep], self.ended_at_ns[keep], self.cameras[keep], self.zone_sets[keep])

    def followed_by(self, other: Columns) -> Columns:
        """Both, one after the other."""
        pairs = zip(self.arrays(), other.arrays(), strict=True)
        return Columns(*(np.concatenate(pair) for pair in pairs))

    def arrays(self) -> tuple[NDArray[Any], ...]:
        return (self.rows, self.started_at_ns, self.ended_at_ns, self.cameras, self.zone_sets)

    def to_bytes(self) -> bytes:
        return b"".join(array.astype(array.dtype.newbyteorder("<")).tobytes() for array in self.arrays())

    @staticmethod
    def from_bytes(blob: bytes) -> Columns:
        """Raises ValueError when the length fits no whole number of rows."""
        count, rest = divmod(len(blob), 32)
        if rest:
            raise ValueError(f"columns must be 32 bytes a row, got {len(blob)} bytes")
        longs = np.frombuffer(blob, "<i8", 3 * count).reshape(3, count).astype(np.int64)
        ints = np.frombuffer(blob, "<i4", 2 * count, 24 * count).reshape(2, count).astype(np.int32)
        return Columns(longs[0], longs[1], longs[2], ints[0], ints[1])

    @staticmethod
    def none() -> Columns:
        return Columns.from_bytes(b"")


@dataclass(frozen=True, slots=True)
class Space:
    """An embedding space of one modality that the gallery knows, and how many vectors it holds."""

    number: int
    modality: str
    space: str
    dimension: int
    vectors: int


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """A sealed stretch of rows."""

    segment_id: int
    first_row: int
    last_row: int


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A derived file of a segment: the embedding space it serves, "exact" or a kind of coarse index, its name, size in bytes and CRC-32.

    positions: int32 of the segment's columns, one per vector, as bytes; empty where every row has a vector; recall: as measured when it
    was written, 0 where it was not.
    """

    space: int
    kind: str
    name: str
    size: int
    checksum: int
    positions: bytes = b""
    recall: float = 0.0


class _Details(msgspec.Struct, array_like=True):
    attributes: list[tuple[str, str, float]]
    crops: list[tuple[str, int, tuple[float, float, float, float], float]]
    zones: list[str]
    is_closed: bool
    model_versions: list[str]
    embeddings: list[tuple[int, float]]  # space number, quality


class _Account(msgspec.Struct, array_like=True):
    seen: int
    sampled: int
    dropped: int
    corrupt: int
    gaps: list[tuple[int, int, str]]


class SqliteStore:
    """The database. One SqliteStore writes (the caller holds the writer lock), any number of processes read."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Opens ``path``, creating or migrating it unless ``read_only``.

        Raises NewerSchemaError, ReadOnlyStorageError, NotReadyError (read_only and not there, or of an older schema).
        """
        self.path = path
        self.read_only = read_only
        self.lock = threading.RLock()
        if read_only and not path.exists():
            raise NotReadyError(f"{path} is not there yet: index something first")
        with translated_errors(path):
            self.connection = sqlite3.connect(self._uri(), uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
        try:
            with translated_errors(path):
                self._prepare()
        except BaseException:
            self.connection.close()
            raise

    def _uri(self) -> str:
        name = self.path.resolve().as_uri()
        if not self.read_only:
            return f"{name}?mode=rwc"
        journal = self.path.with_name(self.path.name + "-wal")
        # In a folder that cannot be written SQLite cannot make its shared-memory file; with no journal there is none to share.
        is_still = not os.access(self.path.parent, os.W_OK) and not journal.exists()
        return f"{name}?immutable=1" if is_still else f"{name}?mode=ro"

    def _prepare(self) -> None:
        execute = self.connection.execute
        execute("PRAGMA busy_timeout = " + str(int(BUSY_TIMEOUT_S * 1000)))
        if not self.read_only:
            execute("PRAGMA page_size = 8192")  # several 1 kB vectors fit a page
            execute("PRAGMA journal_mode = WAL")
            execute("PRAGMA synchronous = FULL")  # an acknowledged tracklet survives power loss
            execute("PRAGMA secure_delete = ON")
            execute("PRAGMA cache_size = -65536")
        version = int(execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise NewerSchemaError(f"{self.path} must have schema {SCHEMA_VERSION} or older, got {version}: use the newer Sightline")
        if version < SCHEMA_VERSION and self.read_only:
            raise NotReadyError(f"{self.path} has schema {version}, {SCHEMA_VERSION} is needed: open it once for writing")
        for number in range(version, SCHEMA_VERSION):
            execute("BEGIN IMMEDIATE")
            for statement in MIGRATIONS[number].split(";"):
                execute(statement)
            execute(f"PRAGMA user_version = {number + 1}")
            execute("COMMIT")

    def close(self) -> None:
        with self.lock:
            self.connection.close()

    # ------------------------------------------------------------------------------------ transactions

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: all or nothing."""
        if self.read_only:
            raise ReadOnlyStorageError(f"{self.path} was opened for reading only: open it without read_only to write")
        with self.lock, translated_errors(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has rolled back already
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view; keep it short, it holds the journal back."""
        with self.lock, translated_errors(self.path):
            if self.connection.in_transaction:
                yield self.connection
                return
            self.connection.execute("BEGIN")
            try:
                yield self.connection
            finally:
                if self.connection.in_transaction:
                    self.connection.execute("COMMIT")

    def change_mark(self) -> int:
        """A number that changes whenever another process has written."""
        with self.lock, translated_errors(self.path):
            return int(self.connection.execute("PRAGMA data_version").fetchone()[0])

    def empty_journal(self) -> bool:
        """Move the write-ahead log into the database and cut it to nothing; False when a reader held it back."""
        with self.lock, translated_errors(self.path):
            return int(self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]) == 0

    def meta(self, name: str) -> int:
        with self.reading() as connection:
            return int(connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0])

    def set_meta(self, name: str, value: int) -> None:
        """Inside ``writing``."""
        self.connection.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))

    # ------------------------------------------------------------------------------------- small tables

    def spaces(self) -> list[Space]:
        with self.reading() as connection:
            return [Space(*found) for found in connection.execute("SELECT number, modality, space, dimension, vectors FROM spaces")]

    def cameras(self) -> dict[str, int]:
        """camera_id -> number."""
        with self.reading() as connection:
            return dict(connection.execute("SELECT camera_id, number FROM cameras"))

    def zone_sets(self) -> dict[tuple[str, ...], int]:
        """Sorted zone names -> number."""
        with self.reading() as connection:
            found = connection.execute("SELECT names, number FROM zone_sets").fetchall()
        return {tuple(msgspec.msgpack.decode(names, type=list[str])): number for names, number in found}

    def _camera_number(self, camera_id: str) -> int:
        self.connection.execute("INSERT OR IGNORE INTO cameras (camera_id) VALUES (?)", (camera_id,))
        return int(self.connection.execute("SELECT number FROM cameras WHERE camera_id = ?", (camera_id,)).fetchone()[0])

    def _zone_set_number(self, names: tuple[str, ...]) -> int:
        blob = msgspec.msgpack.encode(list(names))
        self.connection.execute("INSERT OR IGNORE INTO zone_sets (names) VALUES (?)", (blob,))
        return int(self.connection.execute("SELECT number FROM zone_sets WHERE names = ?", (blob,)).fetchone()[0])

    def _space_for(self, embedding: Embedding, known: dict[tuple[str, str], Space]) -> Space:
        key, dimension = (embedding.modality, embedding.space), len(embedding.vector)
        space = known.get(key)
        if space is not None and space.dimension == dimension:
            return space
        if space is not None and space.vectors > 0:
            raise BadInputError(
                f"{embedding.modality} vectors of space {embedding.space!r} must have {space.dimension} numbers, got {dimension}: "
                "give a changed model another version"
            )
        self.connection.execute(
            "INSERT INTO spaces (modality, space, dimension) VALUES (?, ?, ?) "
            "ON CONFLICT (modality, space) DO UPDATE SET dimension = excluded.dimension",
            (*key, dimension),
        )
        number = self.connection.execute("SELECT number FROM spaces WHERE modality = ? AND space = ?", key).fetchone()[0]
        if number >= 1 << SPACE_BITS:
            raise BadInputError(f"a gallery holds at most {(1 << SPACE_BITS) - 1} embedding spaces: expire the old ones' tracklets first")
        known[key] = Space(int(number), *key, dimension, 1)
        return known[key]

    # ---------------------------------------------------------------------------------------- tracklets

    def upsert(self, tracklets: Sequence[Tracklet], *, again: bool = False) -> int:
        """Write those that are new or of a higher revision, in one transaction; gives how many. All or nothing.

        again: also those of the stored revision.
        """
        with self.writing() as connection:
            stored = {name: (row, revision) for name, row, revision in self.rows_of([t.tracklet_id for t in tracklets])}
            spaces = {(space.modality, space.space): space for space in self.spaces()}
            cameras, zone_sets = self.cameras(), self.zone_sets()
            newest: dict[str, Tracklet] = {}
            for tracklet in tracklets:
                best = newest.get(tracklet.tracklet_id)
                revision = best.revision if best else stored.get(tracklet.tracklet_id, (0, 0))[1]
                if tracklet.revision > revision or (again and tracklet.revision == revision):
                    newest[tracklet.tracklet_id] = tracklet
            self.remove([(stored[name][0], name) for name in newest if name in stored], keep_superseded=True)
            last = int((connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'tracklets'").fetchone() or (0,))[0])
            records, vectors = [], []
            counts: dict[int, int] = {}
            for row, tracklet in enumerate(newest.values(), last + 1):
                if tracklet.camera_id not in cameras:
                    cameras[tracklet.camera_id] = self._camera_number(tracklet.camera_id)
                zones = tuple(sorted(set(tracklet.zones)))
                if zones not in zone_sets:
                    zone_sets[zones] = self._zone_set_number(zones)
                held = [(self._space_for(e, spaces).number, e) for e in tracklet.embeddings]
                for number, e in held:
                    vectors.append((row << SPACE_BITS | number, e.vector.astype("<f2").tobytes()))
                    counts[number] = counts.get(number, 0) + 1
                records.append(_record(row, tracklet, cameras[tracklet.camera_id], zone_sets[zones], held))
            connection.executemany("INSERT INTO tracklets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", records)
            connection.executemany("INSERT INTO vectors VALUES (?, ?)", vectors)
            connection.executemany("UPDATE spaces SET vectors = vectors + ? WHERE number = ?", [(n, s) for s, n in counts.items()])
        return len(records)

    def rows_of(self, tracklet_ids: Sequence[str]) -> list[tuple[str, int, int]]:
        """(tracklet_id, row, revision) of those that are stored."""
        with self.reading() as connection:
            sql = "SELECT tracklet_id, row, revision FROM tracklets WHERE tracklet_id IN ({})"
            return [found for part in _parts(tracklet_ids) for found in connection.execute(sql.format(_marks(part)), part)]

    def names_of(self, rows: Sequence[int]) -> dict[int, str]:
        """row -> tracklet_id."""
        with self.reading() as connection:
            sql = "SELECT row, tracklet_id FROM tracklets WHERE row IN ({})"
            return {row: name for part in _parts(rows) for row, name in connection.execute(sql.format(_marks(part)), part)}

    def remove(self, rows: Sequence[tuple[int, str]], *, keep_superseded: bool) -> None:
        """Inside ``writing``: take rows (row, tracklet_id) out; ``keep_superseded`` notes those that a segment's files still hold."""
        if not rows:
            return
        connection = self.connection
        sealed_to = self.meta(SEALED_TO)
        taken = [(row,) for row, _ in rows]
        for (row,) in taken:
            span = (row << SPACE_BITS, (row + 1) << SPACE_BITS)
            held = connection.execute("SELECT row_space FROM vectors WHERE row_space >= ? AND row_space < ?", span).fetchall()
            numbers = [(key & ((1 << SPACE_BITS) - 1),) for (key,) in held]
            connection.executemany("UPDATE spaces SET vectors = vectors - 1 WHERE number = ?", numbers)
            connection.execute("DELETE FROM vectors WHERE row_space >= ? AND row_space < ?", span)
        connection.executemany("DELETE FROM tracklets WHERE row = ?", taken)
        connection.executemany("INSERT INTO gone (row) VALUES (?)", taken)
        connection.execute("DELETE FROM gone WHERE number <= (SELECT max(number) FROM gone) - ?", (KEPT_GONE,))
        if keep_superseded:
            kept = [(row, name) for row, name in rows if row <= sealed_to]
            connection.executemany("INSERT INTO superseded VALUES (?, ?)", kept)

    def tracklets(self, tracklet_ids: Sequence[str]) -> list[Tracklet]:
        """Whole tracklets in the order asked."""
        with self.reading() as connection:
            cameras, spaces = self._names()
            sql = f"SELECT {_SUMMARY}, path FROM tracklets WHERE tracklet_id IN ({{}})"
            records = [found for part in _parts(tracklet_ids) for found in connection.execute(sql.format(_marks(part)), part)]
            found = {record[1]: _tracklet(record, cameras, spaces, self._vectors_of(record[0])) for record in records}
        return [found[name] for name in tracklet_ids if name in found]

    def crops_of(self, tracklet_ids: Sequence[str]) -> list[CropReference]:
        """All crop references of these tracklets."""
        with self.reading() as connection:
            sql = "SELECT details FROM tracklets WHERE tracklet_id IN ({})"
            found = [blob for part in _parts(tracklet_ids) for (blob,) in connection.execute(sql.format(_marks(part)), part)]
        return [CropReference(*crop) for blob in found for crop in msgspec.msgpack.decode(blob, type=_Details).crops]

    def scan(self, window: Filter, page: int = 2000) -> Iterator[Tracklet]:
        """Tracklets of the window without boxes and vectors, by start time; read in pages, so that no view is held open."""
        after = (-(2**63), 0)
        while True:
            with self.reading() as connection:
                condition, values = self._condition(window)
                where = f"(started_at_ns, row) > (?, ?) AND {condition}"
                sql = f"SELECT {_SUMMARY} FROM tracklets WHERE {where} ORDER BY started_at_ns, row LIMIT ?"
                records = connection.execute(sql, (*after, *values, page)).fetchall()
                cameras, spaces = self._names()
            for record in records:
                yield _tracklet(record, cameras, spaces, None)
            if len(records) < page:
                return
            after = (records[-1][4], records[-1][0])

    def _condition(self, window: Filter) -> tuple[str, list[int]]:
        parts, values = ["ended_at_ns >= ?", "started_at_ns <= ?"], [window.from_ns, window.to_ns]
        if window.cameras:
            known = self.cameras()
            parts.append("camera IN ({})".format(", ".join(str(known[name]) for name in window.cameras if name in known)))
        if window.zones:
            wanted = set(window.zones)
            parts.append("zone_set IN ({})".format(", ".join(str(n) for names, n in self.zone_sets().items() if wanted & set(names))))
        return " AND ".join(parts), values

    def _names(self) -> tuple[dict[int, str], dict[int, Space]]:
        return {number: name for name, number in self.cameras().items()}, {space.number: space for space in self.spaces()}

    def _vectors_of(self, row: int) -> dict[int, NDArray[np.float32]]:
        sql = "SELECT row_space, vector FROM vectors WHERE row_space >= ? AND row_space < ?"
        found = self.connection.execute(sql, (row << SPACE_BITS, (row + 1) << SPACE_BITS))
        return {key & ((1 << SPACE_BITS) - 1): np.frombuffer(blob, "<f2").astype(np.float32) for key, blob in found}

    def ended_before(self, before_ns: int, cameras: Sequence[str]) -> list[str]:
        """Ids of the tracklets that ended before, of these cameras (empty: all)."""
        with self.reading() as connection:
            known = self.cameras()
            chosen = "camera IN ({})".format(", ".join(str(known[c]) for c in cameras if c in known)) if cameras else "1"
            return [
                name
                for (name,) in connection.execute(f"SELECT tracklet_id FROM tracklets WHERE ended_at_ns < ? AND {chosen}", (before_ns,))
            ]

    def extent(self) -> tuple[int, int, int]:
        """Tracklets, first start, last end (0, 0, 0 when empty)."""
        with self.reading() as connection:
            count = connection.execute("SELECT count(*) FROM tracklets").fetchone()[0]
            first = connection.execute("SELECT min(started_at_ns) FROM tracklets").fetchone()[0]
            last = connection.execute("SELECT max(ended_at_ns) FROM tracklets").fetchone()[0]
        return int(count), int(first or 0), int(last or 0)

    # ------------------------------------------------------------------------------ columns and vectors

    def columns_between(self, first_row: int, last_row: int) -> Columns:
        """The columns of the living rows first_row..last_row, inclusive."""
        with self.reading() as connection:
            sql = "SELECT row, started_at_ns, ended_at_ns, camera, zone_set FROM tracklets WHERE row BETWEEN ? AND ? ORDER BY row"
            table = np.asarray(connection.execute(sql, (first_row, last_row)).fetchall(), np.int64).reshape(-1, 5)
        longs = np.ascontiguousarray(table.T)
        return Columns(longs[0], longs[1], longs[2], longs[3].astype(np.int32), longs[4].astype(np.int32))

    def vectors_between(
        self, first_row: int, last_row: int, spaces: Sequence[Space]
    ) -> dict[int, tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Per space number: rows int64 (M,) and vectors float16 (M, D), of rows first_row..last_row."""
        keys: dict[int, list[int]] = {space.number: [] for space in spaces}
        blobs: dict[int, bytearray] = {space.number: bytearray() for space in spaces}
        with self.reading() as connection:
            sql = "SELECT row_space, vector FROM vectors WHERE row_space >= ? AND row_space < ?"
            for key, blob in connection.execute(sql, (first_row << SPACE_BITS, (last_row + 1) << SPACE_BITS)):
                number = key & ((1 << SPACE_BITS) - 1)
                if number in keys:
                    keys[number].append(key >> SPACE_BITS)
                    blobs[number] += blob
        dimension = {space.number: space.dimension for space in spaces}
        return {
            number: (
                np.asarray(rows, np.int64),
                np.frombuffer(bytes(blobs[number]), "<f2").astype(np.float16).reshape(len(rows), dimension[number]),
            )
            for number, rows in keys.items()
            if rows
        }

    # ----------------------------------------------------------------------------------------- segments

    def segments(self) -> list[SegmentRecord]:
        with self.reading() as connection:
            found = connection.execute("SELECT segment_id, first_row, last_row FROM segments ORDER BY first_row")
            return [SegmentRecord(*record) for record in found]

    def segment_columns(self, segment_id: int) -> Columns:
        with self.reading() as connection:
            return Columns.from_bytes(connection.execute("SELECT columns FROM segments WHERE segment_id = ?", (segment_id,)).fetchone()[0])

    def next_segment_id(self) -> int:
        with self.reading() as connection:
            found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'segments'").fetchone()
            return int(found[0]) + 1 if found else 1

    def add_segment(self, record: SegmentRecord, columns: Columns) -> None:
        """Inside ``writing``."""
        values = (record.segment_id, record.first_row, record.last_row, columns.to_bytes())
        self.connection.execute("INSERT INTO segments VALUES (?, ?, ?, ?)", values)

    def drop_segment(self, record: SegmentRecord) -> None:
        """Inside ``writing``: the segment, its files' records and what it remembered of superseded rows."""
        self.connection.execute("DELETE FROM segments WHERE segment_id = ?", (record.segment_id,))
        self.connection.execute("DELETE FROM files WHERE segment_id = ?", (record.segment_id,))
        self.connection.execute("DELETE FROM superseded WHERE row BETWEEN ? AND ?", (record.first_row, record.last_row))

    def add_files(self, segment_id: int, files: Iterable[FileRecord]) -> None:
        """Inside ``writing``."""
        values = [(segment_id, f.space, f.kind, f.name, f.size, f.checksum, f.positions, f.recall) for f in files]
        self.connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def files(self, segment_id: int | None = None) -> list[FileRecord]:
        """Of one segment, or of all."""
        with self.reading() as connection:
            sql = "SELECT space, kind, name, bytes, checksum, positions, recall FROM files"
            found = connection.execute(sql) if segment_id is None else connection.execute(f"{sql} WHERE segment_id = ?", (segment_id,))
            return [FileRecord(*record) for record in found]

    def superseded(self, first_row: int = 0, last_row: int = 2**62) -> NDArray[np.int64]:
        """Rows that a segment still holds and that a higher revision has replaced."""
        with self.reading() as connection:
            found = connection.execute(
                "SELECT row FROM superseded WHERE row BETWEEN ? AND ? ORDER BY row", (first_row, last_row)
            ).fetchall()
        return np.asarray(found, np.int64).reshape(-1)

    def superseded_of(self, tracklet_ids: Sequence[str]) -> list[int]:
        """Superseded rows of these tracklets."""
        with self.reading() as connection:
            sql = "SELECT row FROM superseded WHERE tracklet_id IN ({})"
            return [row for part in _parts(tracklet_ids) for (row,) in connection.execute(sql.format(_marks(part)), part)]

    def gone_since(self, number: int) -> tuple[int, NDArray[np.int64]] | None:
        """The feed above ``number``: its new end and the rows that went; None when entries in between have been forgotten."""
        with self.reading() as connection:
            first, last = connection.execute("SELECT min(number), max(number) FROM gone").fetchone()
            if last is None or last <= number:
                return number, np.zeros(0, np.int64)
            if first > number + 1:
                return None
            found = connection.execute("SELECT row FROM gone WHERE number > ?", (number,)).fetchall()
        return int(last), np.asarray(found, np.int64).reshape(-1)

    def end_of_gone(self) -> int:
        with self.reading() as connection:
            return int(connection.execute("SELECT coalesce(max(number), 0) FROM gone").fetchone()[0])

    # ----------------------------------------------------------------------------------------- coverage

    def record_coverage(self, coverage: CameraCoverage) -> None:
        """Replace the account of that camera and from_ns."""
        gaps = [(gap.from_ns, gap.to_ns, gap.reason) for gap in coverage.gaps]
        account = msgspec.msgpack.encode(_Account(coverage.seen, coverage.sampled, coverage.dropped, coverage.corrupt, gaps))
        with self.writing() as connection:
            values = (coverage.camera_id, coverage.from_ns, coverage.to_ns, account)
            connection.execute("INSERT OR REPLACE INTO coverage VALUES (?, ?, ?, ?)", values)

    def coverage(self, window: Filter) -> tuple[CameraCoverage, ...]:
        """The accounts that overlap the window, by camera and time."""
        with self.reading() as connection:
            sql = "SELECT camera_id, from_ns, to_ns, account FROM coverage WHERE to_ns >= ? AND from_ns <= ? ORDER BY camera_id, from_ns"
            found = connection.execute(sql, (window.from_ns, window.to_ns)).fetchall()
        accounts = [(camera, start, end, msgspec.msgpack.decode(blob, type=_Account)) for camera, start, end, blob in found]
        return tuple(
            CameraCoverage(camera, start, end, a.seen, a.sampled, a.dropped, a.corrupt, tuple(Gap(*gap) for gap in a.gaps))
            for camera, start, end, a in accounts
            if not window.cameras or camera in window.cameras
        )


# ------------------------------------------------------------------------------------------- encoding

_SUMMARY = "row, tracklet_id, revision, camera, started_at_ns, ended_at_ns, details"


def _record(row: int, tracklet: Tracklet, camera: int, zone_set: int, held: Sequence[tuple[int, Embedding]]) -> tuple[Any, ...]:
    details = _Details(
        [(a.name, a.value, a.score) for a in tracklet.attributes],
        [
            (c.key, int(c.captured_at_ns), (float(c.box[0]), float(c.box[1]), float(c.box[2]), float(c.box[3])), float(c.quality))
            for c in tracklet.crops
        ],
        list(tracklet.zones),
        tracklet.is_closed,
        list(tracklet.model_versions),
        [(number, float(e.quality)) for number, e in held],
    )
    path = tracklet.at_ns.astype("<i8").tobytes() + tracklet.xyxy.astype("<f4").tobytes() + tracklet.confidence.astype("<f4").tobytes()
    times = (int(tracklet.started_at_ns), int(tracklet.ended_at_ns))
    return (row, tracklet.tracklet_id, tracklet.revision, camera, *times, zone_set, msgspec.msgpack.encode(details), path)


def _tracklet(
    record: tuple[Any, ...], cameras: dict[int, str], spaces: dict[int, Space], vectors: dict[int, NDArray[np.float32]] | None
) -> Tracklet:
    details = msgspec.msgpack.decode(record[6], type=_Details)
    path: bytes = record[7] if len(record) > 7 else b""
    count = len(path) // 28  # int64 time, four float32 of the box, one of the confidence
    embeddings = (
        ()
        if vectors is None
        else tuple(
            Embedding(spaces[number].modality, spaces[number].space, vectors[number], quality)
            for number, quality in details.embeddings
            if number in vectors
        )
    )
    return Tracklet(
        record[1], record[2], cameras[record[3]], record[4], record[5],
        at_ns=np.frombuffer(path, "<i8", count),
        xyxy=np.frombuffer(path, "<f4", 4 * count, 8 * count).reshape(count, 4),
        confidence=np.frombuffer(path, "<f4", count, 24 * count),
        embeddings=embeddings,
        attributes=tuple(Attribute(*a) for a in details.attributes),
        crops=tuple(CropReference(*c) for c in details.crops),
        zones=tuple(details.zones),
        is_closed=details.is_closed,
        model_versions=tuple(details.model_versions),
    )  # fmt: skip


def _parts(values: Sequence[Any], size: int = 500) -> Iterator[list[Any]]:
    """Pieces that fit a statement's number of variables."""
    for start in range(0, len(values), size):
        yield [v.item() if isinstance(v, np.generic) else v for v in values[start : start + size]]


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
