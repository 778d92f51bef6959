"""The embedded broker: Kafka's log, groups and offsets in one SQLite file, for all processes of one machine.

What is acknowledged is on disk: ``flush`` is one transaction with synchronous=FULL. Partitions move between members of a group
cooperatively: the old owner gives a partition up at its next poll (when it has handled what it was given), or loses it when it has not
been heard of for the session timeout. Commits are fenced: only the owner of a partition can commit it.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from pipeline.errors import BadInputError, NewerSchemaError, NotReadyError, ReadOnlyStorageError, SettingsError, StorageFullError
from pipeline.ports import Message, TopicPartition, TopicSpec

SCHEMA_VERSION = 1
SESSION_TIMEOUT_S = 10.0
QUEUE_LIMIT_BYTES = 16 * 2**20  # beyond this produce flushes by itself, so that memory stays bounded
MAINTENANCE_EVERY_S = 30.0
TOMBSTONE_RETENTION_MS = 24 * 3_600_000  # Kafka's delete.retention.ms: readers have a day to see that a key is gone
RETENTION_BATCH = 5_000  # messages removed per partition and round, so that no writer waits long
BEATS_PER_SESSION = 8  # a dead member is noticed within a session timeout and an eighth
WAKE_FIRST_S, WAKE_LAST_S = 0.002, 0.02

_APPLICATION_ID = 0x53474C54  # "SGLT"
_OFFSET_BITS = 40  # a message's rowid is partition id and offset in one integer: a range of it is a range of offsets

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


# ------------------------------------------------------------------------------------------------ placement


def murmur2(data: bytes) -> int:
    """Kafka's murmur2 hash, 0..2^32-1, so that a later move to Kafka keeps every key in its partition."""
    length, mixer, mask = len(data), 0x5BD1E995, 0xFFFFFFFF
    value = 0x9747B28C ^ length
    whole = length & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * mixer & mask
        word = (word ^ (word >> 24)) * mixer & mask
        value = (value * mixer & mask) ^ word
    if length > whole:
        value = (value ^ int.from_bytes(data[whole:], "little")) * mixer & mask
    value = (value ^ (value >> 13)) * mixer & mask
    return value ^ (value >> 15)


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """The partition of ``key``, as Kafka's default partitioner gives it."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def assign(partitions: Mapping[int, str], members: Mapping[int, frozenset[str]], before: Mapping[int, int]) -> dict[int, int]:
    """Partition id -> member id: balanced to within one where subscriptions allow, moving as little as that needs, deterministic.

    partitions: id -> topic; members: id -> subscribed topics; before: the assignment so far.
    """
    load = dict.fromkeys(sorted(members), 0)
    assigned: dict[int, int] = {}

    def idlest(topic: str) -> int | None:
        return min((m for m in load if topic in members[m]), key=lambda m: (load[m], m), default=None)

    for partition, topic in sorted(partitions.items()):
        owner = before.get(partition)
        if owner is not None and topic in members.get(owner, ()):
            assigned[partition] = owner
            load[owner] += 1
    for partition, topic in sorted(partitions.items()):
        if partition not in assigned and (member := idlest(topic)) is not None:
            assigned[partition] = member
            load[member] += 1
    # Neighbouring partitions go to different members, as a few new messages without keys lie in neighbouring partitions.
    ranked, ordinal = sorted(members), {partition: i for i, partition in enumerate(sorted(partitions))}
    for is_wished in (lambda p, m: ranked[ordinal[p] % len(ranked)] == m, lambda p, m: True):
        is_settled = False
        while not is_settled:
            is_settled = True
            for partition in sorted(assigned, reverse=True):
                giver, taker = assigned[partition], idlest(partitions[partition])
                if taker is not None and load[giver] - load[taker] >= 2 and is_wished(partition, taker):
                    assigned[partition] = taker
                    load[giver] -= 1
                    load[taker] += 1
                    is_settled = False
    return assigned


# --------------------------------------------------------------------------------------------------- storage


def _pack_headers(headers: Sequence[tuple[str, bytes]]) -> bytes:
    packed = bytearray()
    for name, value in headers:
        for part in (name.encode(), value):
            packed += len(part).to_bytes(4, "little") + part
    return bytes(packed)


def _unpack_headers(packed: bytes) -> tuple[tuple[str, bytes], ...]:
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
def _plain_errors(path: Path) -> Iterator[None]:
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


def _connect(path: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False, cached_statements=64)
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("PRAGMA journal_size_limit=67108864")
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One write transaction: all of it or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _open_log(path: Path) -> sqlite3.Connection:
    """A connection to the log, created when missing. Any number of processes may do this at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadOnlyStorageError(f"the folder {path.parent} must exist and be writable: check its owner and mount ({error})") from error
    with _plain_errors(path):
        connection = _connect(path, "FULL")
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
    with _transaction(connection):
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


# ---------------------------------------------------------------------------------------------------- broker


class SqliteBroker:
    """A Broker in one SQLite file. Several processes and threads may hold one each on the same path; do not carry one over a fork.

    session_timeout_s: a member of a group that has not polled for so long loses its partitions. clock: UTC seconds, for timestamps.
    """

    def __init__(self, path: Path, session_timeout_s: float = SESSION_TIMEOUT_S, clock: Callable[[], float] = time.time) -> None:
        if not session_timeout_s > 0:
            raise SettingsError(f"session_timeout_s must be above 0, got {session_timeout_s}")
        self.path = Path(path)
        self.session_timeout_s = session_timeout_s
        self._clock = clock
        self._lock = threading.RLock()
        self._connection = _open_log(self.path)
        self._queue: list[tuple[str, int, int, bytes | None, bytes, bytes | None]] = []  # topic, partition, time, key, headers, value
        self._queued_bytes = 0
        self._specs: dict[str, TopicSpec] = {}
        self._partition_ids: dict[tuple[str, int], int] = {}
        self._next_unkeyed: dict[str, int] = {}
        self._maintain_after = time.monotonic() + MAINTENANCE_EVERY_S
        self._consumers: weakref.WeakSet[SqliteConsumer] = weakref.WeakSet()

    # topics

    def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create those that are missing; an existing one with other partitions or settings raises SettingsError."""
        for spec in specs:
            _check_spec(spec)
        present = self.topics()
        if all(present.get(spec.name) == spec for spec in specs):
            return  # the usual case: nothing to write, so no waiting for a writer
        with self._lock, _plain_errors(self.path), _transaction(self._connection):
            present = self._read_topics()
            for spec in specs:
                if (there := present.get(spec.name)) is None:
                    self._insert_topic(spec)
                    present[spec.name] = spec
                elif there != spec:
                    raise SettingsError(f"topic {spec.name} must have the settings it was created with: {there}, got {spec}")
        self._specs = {}

    def _insert_topic(self, spec: TopicSpec) -> None:
        row = (spec.name, spec.partitions, spec.cleanup, spec.retention_ms, spec.retention_bytes, spec.max_message_bytes)
        self._connection.execute("INSERT INTO topics VALUES (?, ?, ?, ?, ?, ?)", row)
        rows = [(spec.name, partition) for partition in range(spec.partitions)]
        self._connection.executemany("INSERT INTO partitions (topic, partition) VALUES (?, ?)", rows)

    def _read_topics(self) -> dict[str, TopicSpec]:
        return {row[0]: TopicSpec(*row) for row in self._connection.execute("SELECT * FROM topics ORDER BY name")}

    def topics(self) -> Mapping[str, TopicSpec]:
        with self._lock, _plain_errors(self.path):
            return self._read_topics()

    def _spec(self, topic: str) -> TopicSpec:
        if topic not in self._specs:
            with self._lock, _plain_errors(self.path):
                self._specs = self._read_topics()
                rows = self._connection.execute("SELECT topic, partition, id FROM partitions")
                self._partition_ids = {(name, partition): identifier for name, partition, identifier in rows}
        if topic not in self._specs:
            raise SettingsError(f"topic must exist before it is used, got {topic!r}: create it with create_topics")
        return self._specs[topic]

    # producing

    def produce(self, topic: str, value: bytes | None, key: bytes | None = None, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Queue one message for the next flush; without a key the partitions take turns.

        Raises BadInputError when it is larger than the topic allows, SettingsError when there is no such topic.
        """
        spec = self._spec(topic)
        packed = _pack_headers(headers)
        size = len(value or b"") + len(key or b"") + len(packed)
        if size > spec.max_message_bytes:
            raise BadInputError(f"a message of topic {topic} must be at most {spec.max_message_bytes} bytes, got {size}")
        if spec.cleanup == "compact" and key is None:
            raise BadInputError(f"a message of the compacted topic {topic} must have a key, got none")
        with self._lock:
            if key is None:
                partition = self._next_unkeyed.get(topic, 0)
                self._next_unkeyed[topic] = (partition + 1) % spec.partitions
            else:
                partition = partition_of(bytes(key), spec.partitions)
            self._queue.append((topic, partition, int(self._clock() * 1000), key, packed, value))
            self._queued_bytes += size
            if self._queued_bytes > QUEUE_LIMIT_BYTES:
                self.flush()

    def flush(self, timeout_s: float = 10.0) -> None:
        """Return once every produced message is durable; raises NotReadyError or StorageFullError otherwise and keeps them queued."""
        with self._lock, _plain_errors(self.path):
            if self._queue:
                self._connection.execute(f"PRAGMA busy_timeout={max(1, int(timeout_s * 1000))}")
                with _transaction(self._connection):
                    self._append()
                self._queue, self._queued_bytes = [], 0
            if time.monotonic() >= self._maintain_after:
                with suppress(NotReadyError):  # the messages are safe already; the next round cleans up
                    self.maintain()

    def _append(self) -> None:
        by_partition: dict[int, list[tuple[int, bytes | None, bytes, bytes | None]]] = {}
        for topic, partition, timestamp_ms, key, headers, value in self._queue:
            by_partition.setdefault(self._partition_ids[topic, partition], []).append((timestamp_ms, key, headers, value))
        for partition_id, messages in by_partition.items():
            (offset,) = self._connection.execute("SELECT next_offset FROM partitions WHERE id = ?", (partition_id,)).fetchone()
            first = (partition_id << _OFFSET_BITS) + offset
            rows = ((first + i, *message) for i, message in enumerate(messages))
            self._connection.executemany("INSERT INTO messages (id, timestamp_ms, key, headers, value) VALUES (?, ?, ?, ?, ?)", rows)
            size = sum(len(key or b"") + len(headers) + len(value or b"") for _, key, headers, value in messages)
            counts = (len(messages), size, partition_id)
            self._connection.execute("UPDATE partitions SET next_offset = next_offset + ?, bytes = bytes + ? WHERE id = ?", counts)

    # cleaning up

    def maintain(self) -> int:
        """Apply retention and compaction now; gives how many messages were removed. ``flush`` does it every 30 s."""
        self._maintain_after = time.monotonic() + MAINTENANCE_EVERY_S
        removed = 0
        with self._lock, _plain_errors(self.path):
            specs = self._read_topics()
            rows = self._connection.execute("SELECT id, topic FROM partitions ORDER BY id").fetchall()
            for partition_id, topic in rows:
                removed += self._clean(partition_id, specs[topic])
            with _transaction(self._connection):
                self._forget_dead_groups()
            if removed:
                self._connection.executescript("PRAGMA incremental_vacuum(2000)")  # execute would step it once: one page
        return removed

    def _forget_dead_groups(self) -> None:
        """Groups whose members are gone and that never committed: readers that only looked and were killed."""
        now_s = time.monotonic()
        self._connection.execute(
            "DELETE FROM members WHERE group_name NOT IN (SELECT group_name FROM offsets) AND NOT seen_at_s BETWEEN ? - session_s AND ?",
            (now_s, now_s + 1.0),
        )
        kept = "(SELECT group_name FROM offsets UNION SELECT group_name FROM members)"
        self._connection.execute(f"DELETE FROM assignments WHERE group_name NOT IN {kept}")
        self._connection.execute(f"DELETE FROM groups WHERE name NOT IN {kept}")

    def _clean(self, partition_id: int, spec: TopicSpec) -> int:
        doomed = self._superseded(partition_id) if spec.cleanup == "compact" else self._expired(partition_id, spec)
        if not doomed:
            return 0
        with _transaction(self._connection):
            size = 0
            for identifier in doomed:
                row = self._connection.execute(f"SELECT {_SIZE} FROM messages WHERE id = ?", (identifier,)).fetchone()
                size += row[0] if row else 0  # another process may have been first
            self._connection.executemany("DELETE FROM messages WHERE id = ?", [(identifier,) for identifier in doomed])
            self._connection.execute("UPDATE partitions SET bytes = bytes - ? WHERE id = ?", (size, partition_id))
        return len(doomed)

    def _superseded(self, partition_id: int) -> list[int]:
        """Compaction: every message of a key but its last, and tombstones that all readers have had time to see."""
        span = _span(partition_id)
        old = int(self._clock() * 1000) - TOMBSTONE_RETENTION_MS
        rows = self._connection.execute(
            "SELECT id FROM (SELECT id, value IS NULL AND timestamp_ms < ? AS is_gone, max(id) OVER (PARTITION BY key) AS last"
            " FROM messages WHERE id BETWEEN ? AND ?) WHERE id < last OR is_gone",
            (old, *span),
        )
        return [identifier for (identifier,) in rows]

    def _expired(self, partition_id: int, spec: TopicSpec) -> list[int]:
        """Retention: the oldest messages up to the first that is young enough, and as many as the size asks for."""
        first_young_ms = int(self._clock() * 1000) - spec.retention_ms if spec.retention_ms >= 0 else -1
        (surplus,) = self._connection.execute("SELECT bytes FROM partitions WHERE id = ?", (partition_id,)).fetchone()
        surplus = surplus - spec.retention_bytes if spec.retention_bytes >= 0 else 0
        if first_young_ms < 0 and surplus <= 0:
            return []
        doomed: list[int] = []
        rows = self._connection.execute(
            f"SELECT id, timestamp_ms, {_SIZE} FROM messages WHERE id BETWEEN ? AND ? ORDER BY id", _span(partition_id)
        )
        for identifier, timestamp_ms, size in rows:
            if (timestamp_ms >= first_young_ms and surplus <= 0) or len(doomed) >= RETENTION_BATCH:
                break
            doomed.append(identifier)
            surplus -= size
        rows.close()
        return doomed

    # reading

    def consumer(self, topics: Sequence[str], group: str, start: str = "earliest") -> SqliteConsumer:
        """Join ``group``; where it has no committed offset, start at "earliest" or "latest"."""
        if start not in ("earliest", "latest"):
            raise SettingsError(f'start must be "earliest" or "latest", got {start!r}')
        if not topics:
            raise SettingsError("a consumer must subscribe to at least one topic, got none")
        for topic in topics:
            self._spec(topic)
        consumer = SqliteConsumer(self.path, frozenset(topics), group, start, self.session_timeout_s)
        self._consumers.add(consumer)
        return consumer

    def end_offsets(self, topic: str) -> Mapping[TopicPartition, int]:
        self._spec(topic)
        with self._lock, _plain_errors(self.path):
            rows = self._connection.execute("SELECT partition, next_offset FROM partitions WHERE topic = ? ORDER BY partition", (topic,))
            return {TopicPartition(topic, partition): offset for partition, offset in rows}

    def groups(self) -> Mapping[str, Mapping[TopicPartition, int]]:
        """Committed next offsets of every group."""
        committed: dict[str, dict[TopicPartition, int]] = {}
        with self._lock, _plain_errors(self.path):
            rows = self._connection.execute(
                "SELECT g.name, p.topic, p.partition, o.next_offset FROM groups g LEFT JOIN offsets o ON o.group_name = g.name"
                " LEFT JOIN partitions p ON p.id = o.partition_id ORDER BY 1, 2, 3"
            )
            for group, topic, partition, offset in rows:
                of_group = committed.setdefault(group, {})
                if topic is not None:
                    of_group[TopicPartition(topic, partition)] = offset
        return committed

    def __enter__(self) -> SqliteBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush, leave all groups, close the file."""
        for consumer in list(self._consumers):
            consumer.close()
        with self._lock:
            try:
                self.flush()
            finally:
                self._connection.close()


_SIZE = "length(headers) + coalesce(length(key), 0) + coalesce(length(value), 0)"


def _span(partition_id: int) -> tuple[int, int]:
    """First and last rowid of a partition's messages."""
    return partition_id << _OFFSET_BITS, ((partition_id + 1) << _OFFSET_BITS) - 1


def _check_spec(spec: TopicSpec) -> None:
    if not spec.name or spec.partitions < 1:
        raise SettingsError(f"a topic must have a name and at least one partition, got {spec}")
    if spec.cleanup not in ("delete", "compact"):
        raise SettingsError(f'TopicSpec.cleanup must be "delete" or "compact", got {spec.cleanup!r}')


# -------------------------------------------------------------------------------------------------- consumer


class SqliteConsumer:
    """A member of a consumer group. ``keep_alive`` may be called from another thread while messages are handled."""

    def __init__(self, path: Path, topics: frozenset[str], group: str, start: str, session_timeout_s: float) -> None:
        self._path, self._topics, self._group, self._start = path, topics, group, start
        self._session_s = session_timeout_s
        self._lock = threading.RLock()
        with _plain_errors(path):
            # Its commits may be lost in a power cut, never torn: then messages come again, as at-least-once says. Spares a disk sync each.
            self._connection = _connect(path, "NORMAL")
        self._member: int | None = None
        self._owned: dict[int, TopicPartition] = {}
        self._positions: dict[int, int] = {}
        self._in_flight: set[int] = set()  # partitions with messages handed out by the last poll
        self._turn = 0
        self._beat_at_s = 0.0
        self._data_version = -1
        self._is_closed = False
        with _plain_errors(path):
            self._attend(may_acquire=True, is_beat=True)

    # polling

    def poll(self, timeout_s: float = 1.0, max_messages: int = 500) -> list[Message]:
        """Messages of the assigned partitions, in offset order per partition; [] when the time is up. Keeps the membership alive.

        To poll again says that the messages of the poll before are dealt with: a partition that the group gives to another member
        leaves at that moment, not in the midst of the work.
        """
        until = time.monotonic() + timeout_s
        pause_s = WAKE_FIRST_S
        while True:
            with self._lock, _plain_errors(self._path):
                self._check_open()
                self._in_flight.clear()
                is_news = self._has_news()
                is_due = time.monotonic() - self._beat_at_s > self._session_s / BEATS_PER_SESSION
                if is_news or is_due:
                    self._attend(may_acquire=True, is_beat=is_due)
                is_news = is_news or self._data_version < 0
                messages = self._fetch(max_messages) if is_news else []
                if messages:
                    return messages
            left_s = until - time.monotonic()
            if left_s <= 0:
                return []
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, WAKE_LAST_S)

    def _has_news(self) -> bool:
        """Whether anything was written since the last look that found nothing; costs microseconds."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        is_news: bool = version != self._data_version
        self._data_version = version
        return is_news

    def _fetch(self, max_messages: int) -> list[Message]:
        messages: list[Message] = []
        partition_ids = sorted(self._owned)
        marks = ", ".join("?" * len(partition_ids))
        ends = dict(self._connection.execute(f"SELECT id, next_offset FROM partitions WHERE id IN ({marks})", partition_ids).fetchall())
        for i in range(len(partition_ids)):
            partition_id = partition_ids[(self._turn + i) % len(partition_ids)]
            wanted = max_messages - len(messages)
            if wanted <= 0:
                break
            found = self._read(partition_id, wanted)
            messages += found
            if len(found) < wanted:  # nothing is left below the end: retention or compaction may have taken the last ones
                self._positions[partition_id] = max(self._positions[partition_id], ends[partition_id])
        self._turn += 1  # so that a busy partition cannot starve the others
        if messages:
            self._data_version = -1  # there may be more: look again next time
        return messages

    def _read(self, partition_id: int, wanted: int) -> list[Message]:
        base, last = _span(partition_id)
        partition = self._owned[partition_id]
        rows = self._connection.execute(
            "SELECT id, timestamp_ms, key, headers, value FROM messages WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
            (base + self._positions[partition_id], last, wanted),
        )
        messages = [
            Message(partition.topic, partition.partition, row[0] - base, row[2], row[4], _unpack_headers(row[3]), row[1])
            for row in rows.fetchall()
        ]
        if messages:
            self._positions[partition_id] = messages[-1].offset + 1
            self._in_flight.add(partition_id)
        return messages

    # membership

    def keep_alive(self) -> None:
        """Stay a member while messages take long to handle; partitions without messages in hand may move to other members.

        Raises NotReadyError when the membership is lost: the work in hand is another member's by now.
        """
        with self._lock, _plain_errors(self._path):
            self._check_open()
            if self._member is None:
                raise NotReadyError(f"not a member of group {self._group}: poll first")
            self._attend(may_acquire=False, is_beat=True)
            if self._member is None:
                raise NotReadyError(f"the membership of group {self._group} timed out after {self._session_s} s: poll again to rejoin")

    def _attend(self, may_acquire: bool, is_beat: bool) -> None:
        """Take part in the group: one look, and one short transaction where there is something to say."""
        now_s = time.monotonic()  # system-wide since boot, so that members compare and no clock change can expire them
        if not is_beat and self._member is not None and not self._needs_change(now_s):
            return
        before = self._member, dict(self._owned), dict(self._positions), set(self._in_flight)
        try:
            with _transaction(self._connection):
                self._take_part(now_s, may_acquire)
        except BaseException:
            self._member, self._owned, self._positions, self._in_flight = before  # what was rolled back did not happen
            raise
        self._beat_at_s = now_s

    def _take_part(self, now_s: float, may_acquire: bool) -> None:
        members = self._live_members(now_s)
        if self._member is not None and self._member not in members:
            self._forget()
        if self._member is None and may_acquire:
            self._member = self._join(now_s)
            members[self._member] = self._topics
        elif self._member is not None:
            self._connection.execute("UPDATE members SET seen_at_s = ? WHERE id = ?", (now_s, self._member))
        self._rebalance(members)
        if self._member is not None:
            self._hand_over(may_acquire)

    def _needs_change(self, now_s: float) -> bool:
        rows = self._connection.execute(
            "SELECT partition_id, target, owner FROM assignments WHERE group_name = ? AND (target = ? OR owner = ?)",
            (self._group, self._member, self._member),
        ).fetchall()
        wanted = {partition_id for partition_id, target, _ in rows if target == self._member}
        held = {partition_id for partition_id, _, owner in rows if owner == self._member}
        acquirable = {partition_id for partition_id, target, owner in rows if target == self._member and owner is None}
        return bool(held != set(self._owned) or held - wanted or acquirable)

    def _live_members(self, now_s: float) -> dict[int, frozenset[str]]:
        """Members by id; those not heard of for their session timeout are removed (and those of before a reboot, from the future)."""
        live = {}
        for identifier, topics, seen_at_s, session_s in self._connection.execute(
            "SELECT id, topics, seen_at_s, session_s FROM members WHERE group_name = ?", (self._group,)
        ).fetchall():
            if now_s - session_s <= seen_at_s <= now_s + 1.0:
                live[identifier] = frozenset(topics.split("\n"))
            else:
                self._remove_member(identifier)
        return live

    def _remove_member(self, identifier: int) -> None:
        self._connection.execute("DELETE FROM members WHERE id = ?", (identifier,))
        self._connection.execute("UPDATE assignments SET owner = NULL WHERE group_name = ? AND owner = ?", (self._group, identifier))

    def _join(self, now_s: float) -> int:
        self._connection.execute("INSERT OR IGNORE INTO groups VALUES (?, 0)", (self._group,))
        row = (self._group, "\n".join(sorted(self._topics)), now_s, self._session_s)
        cursor = self._connection.execute("INSERT INTO members (group_name, topics, seen_at_s, session_s) VALUES (?, ?, ?, ?)", row)
        return int(cursor.lastrowid or 0)

    def _rebalance(self, members: Mapping[int, frozenset[str]]) -> None:
        """Bring the targets in line with the members; a change is a new generation."""
        topics = sorted(frozenset().union(*members.values())) if members else []
        marks = ", ".join("?" * len(topics))
        partitions = dict(self._connection.execute(f"SELECT id, topic FROM partitions WHERE topic IN ({marks})", topics).fetchall())
        rows = self._connection.execute("SELECT partition_id, target FROM assignments WHERE group_name = ?", (self._group,)).fetchall()
        before = {partition_id: target for partition_id, target in rows if target is not None}
        after = assign(partitions, members, before)
        if after == before:
            return
        present = {partition_id for partition_id, _ in rows}
        for partition_id in present | set(after):
            self._connection.execute(
                "INSERT INTO assignments VALUES (?, ?, ?, NULL) ON CONFLICT DO UPDATE SET target = excluded.target",
                (self._group, partition_id, after.get(partition_id)),
            )
        self._connection.execute("UPDATE groups SET generation = generation + 1 WHERE name = ?", (self._group,))

    def _hand_over(self, may_acquire: bool) -> None:
        """Give up what belongs to others now, take what is ours and free."""
        rows = self._connection.execute(
            "SELECT a.partition_id, a.target, a.owner, p.topic, p.partition FROM assignments a JOIN partitions p ON p.id = a.partition_id"
            " WHERE a.group_name = ? AND (a.target = ? OR a.owner = ?)",
            (self._group, self._member, self._member),
        ).fetchall()
        set_owner = "UPDATE assignments SET owner = ? WHERE group_name = ? AND partition_id = ?"
        for partition_id, target, owner, topic, partition in rows:
            if owner == self._member and target != self._member and partition_id not in self._in_flight:
                self._connection.execute(set_owner, (None, self._group, partition_id))
                self._drop(partition_id)
            elif target == self._member and owner is None and may_acquire:
                self._connection.execute(set_owner, (self._member, self._group, partition_id))
                self._owned[partition_id] = TopicPartition(topic, partition)
                self._positions[partition_id] = self._first_position(partition_id)
                self._data_version = -1  # read it at once

    def _first_position(self, partition_id: int) -> int:
        committed = self._committed(partition_id)
        if committed is not None:
            return committed
        if self._start == "earliest":
            return 0
        (end,) = self._connection.execute("SELECT next_offset FROM partitions WHERE id = ?", (partition_id,)).fetchone()
        return int(end)

    def _drop(self, partition_id: int) -> None:
        self._owned.pop(partition_id, None)
        self._positions.pop(partition_id, None)

    def _forget(self) -> None:
        self._member = None
        self._owned, self._positions = {}, {}
        self._in_flight.clear()

    # offsets

    def assignment(self) -> frozenset[TopicPartition]:
        with self._lock:
            return frozenset(self._owned.values())

    def _identifier(self, partition: TopicPartition) -> int:
        for partition_id, owned in self._owned.items():
            if owned == partition:
                return partition_id
        raise NotReadyError(f"partition {partition.topic}/{partition.partition} is not assigned to this member of group {self._group}")

    def position(self, partition: TopicPartition) -> int:
        with self._lock:
            return self._positions[self._identifier(partition)]

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if offset < 0:
            raise ValueError(f"an offset must be 0 or more, got {offset}")
        with self._lock:
            self._positions[self._identifier(partition)] = offset
            self._data_version = -1

    def committed(self, partition: TopicPartition) -> int | None:
        with self._lock, _plain_errors(self._path):
            row = self._connection.execute(
                "SELECT o.next_offset FROM offsets o JOIN partitions p ON p.id = o.partition_id"
                " WHERE o.group_name = ? AND p.topic = ? AND p.partition = ?",
                (self._group, partition.topic, partition.partition),
            ).fetchone()
        return int(row[0]) if row else None

    def _committed(self, partition_id: int) -> int | None:
        row = self._connection.execute(
            "SELECT next_offset FROM offsets WHERE group_name = ? AND partition_id = ?", (self._group, partition_id)
        ).fetchone()
        return int(row[0]) if row else None

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store the NEXT offset to read per partition, all or none; raises NotReadyError when a partition was taken away meanwhile."""
        if not offsets:
            return
        with self._lock, _plain_errors(self._path):
            self._check_open()
            wanted = {self._identifier(partition): offset for partition, offset in offsets.items()}
            with _transaction(self._connection):
                owned = self._connection.execute(
                    "SELECT partition_id FROM assignments WHERE group_name = ? AND owner = ?", (self._group, self._member)
                ).fetchall()
                taken = set(wanted) - {partition_id for (partition_id,) in owned}
                if taken:
                    names = ", ".join(f"{self._owned[p].topic}/{self._owned[p].partition}" for p in sorted(taken))
                    raise NotReadyError(f"group {self._group} gave {names} to another member: nothing was committed, poll again")
                self._connection.executemany(
                    "INSERT INTO offsets VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset",
                    [(self._group, partition_id, offset) for partition_id, offset in wanted.items()],
                )
                self._beat_at_s = time.monotonic()
                self._connection.execute("UPDATE members SET seen_at_s = ? WHERE id = ?", (self._beat_at_s, self._member))

    def lag(self) -> int:
        """Messages of the assigned partitions not yet read (offsets, as in Kafka: removed ones count until they are passed)."""
        with self._lock, _plain_errors(self._path):
            marks = ", ".join("?" * len(self._owned))
            ends = self._connection.execute(f"SELECT id, next_offset FROM partitions WHERE id IN ({marks})", list(self._owned)).fetchall()
            return sum(max(0, end - self._positions[partition_id]) for partition_id, end in ends)

    def close(self) -> None:
        """Leave the group, so that others take over at once."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            try:
                with suppress(NotReadyError), _plain_errors(self._path):  # a leave that cannot be written: the session times out instead
                    self._leave()
            finally:
                self._connection.close()

    def _leave(self) -> None:
        if self._member is None:
            return
        with _transaction(self._connection):
            self._remove_member(self._member)
            members = self._live_members(time.monotonic())
            self._rebalance(members)
            has_offsets = self._connection.execute("SELECT 1 FROM offsets WHERE group_name = ?", (self._group,)).fetchone()
            if not members and not has_offsets:  # a group that only looked leaves nothing behind
                self._connection.execute("DELETE FROM assignments WHERE group_name = ?", (self._group,))
                self._connection.execute("DELETE FROM groups WHERE name = ?", (self._group,))
        self._forget()

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("this consumer is closed")
