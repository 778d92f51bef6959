"""The embedded broker: Kafka's log, groups and offsets in one SQLite file, for all processes of one machine.

What is acknowledged is on disk: ``flush`` is one transaction with synchronous=FULL. Groups: sqlite_consumer.py; the file: sqlite_log.py.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pipeline.errors import BadInputError, NotReadyError, SettingsError
from pipeline.ports import TopicPartition, TopicSpec
from services.adapters.placement import partition_of
from services.adapters.sqlite_consumer import SqliteConsumer
from services.adapters.sqlite_log import OFFSET_BITS, SIZE, open_log, pack_headers, plain_errors, span, transaction

SESSION_TIMEOUT_S = 10.0
QUEUE_LIMIT_BYTES = 16 * 2**20  # beyond this produce flushes by itself, so that memory stays bounded
MAINTENANCE_EVERY_S = 30.0
TOMBSTONE_RETENTION_MS = 24 * 3_600_000  # Kafka's delete.retention.ms: readers have a day to see that a key is gone
RETENTION_BATCH = 5_000  # messages removed per partition and round, so that no writer waits long


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
        self._connection = open_log(self.path)
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
        with self._lock, plain_errors(self.path), transaction(self._connection):
            present = self._read_topics()
            for spec in specs:
                if (there := present.get(spec.name)) is None:
                    self._insert_topic(spec)
                    present[spec.name] = spec
                elif there != spec and self._is_unused(spec.name):  # a newer Sightline cuts it otherwise, and there is nothing to lose
                    self._connection.execute("DELETE FROM partitions WHERE topic = ?", (spec.name,))
                    self._connection.execute("DELETE FROM topics WHERE name = ?", (spec.name,))
                    self._insert_topic(spec)
                elif replace(there, max_message_bytes=spec.max_message_bytes) == spec and spec.max_message_bytes > there.max_message_bytes:
                    self._connection.execute("UPDATE topics SET max_message_bytes = ? WHERE name = ?", (spec.max_message_bytes, spec.name))
                elif there != spec:
                    raise SettingsError(f"topic {spec.name} must have {spec.differences(there)}: choose a new data folder")
        self._specs = {}

    def _is_unused(self, topic: str) -> bool:
        """Whether nothing was ever written to a topic and no group reads it."""
        used = "SELECT 1 FROM partitions p WHERE p.topic = ? AND (p.next_offset > 0 OR p.id IN (SELECT partition_id FROM assignments))"
        return self._connection.execute(used, (topic,)).fetchone() is None

    def _insert_topic(self, spec: TopicSpec) -> None:
        row = (spec.name, spec.partitions, spec.cleanup, spec.retention_ms, spec.retention_bytes, spec.max_message_bytes)
        self._connection.execute("INSERT INTO topics VALUES (?, ?, ?, ?, ?, ?)", row)
        rows = [(spec.name, partition) for partition in range(spec.partitions)]
        self._connection.executemany("INSERT INTO partitions (topic, partition) VALUES (?, ?)", rows)

    def _read_topics(self) -> dict[str, TopicSpec]:
        return {row[0]: TopicSpec(*row) for row in self._connection.execute("SELECT * FROM topics ORDER BY name")}

    def topics(self) -> Mapping[str, TopicSpec]:
        with self._lock, plain_errors(self.path):
            return self._read_topics()

    def _spec(self, topic: str) -> TopicSpec:
        if topic not in self._specs:
            with self._lock, plain_errors(self.path):
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
        packed = pack_headers(headers)
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
        with self._lock, plain_errors(self.path):
            if self._queue:
                self._connection.execute(f"PRAGMA busy_timeout={max(1, int(timeout_s * 1000))}")
                with transaction(self._connection):
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
            first = (partition_id << OFFSET_BITS) + offset
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
        with self._lock, plain_errors(self.path):
            specs = self._read_topics()
            rows = self._connection.execute("SELECT id, topic FROM partitions ORDER BY id").fetchall()
            for partition_id, topic in rows:
                removed += self._clean(partition_id, specs[topic])
            with transaction(self._connection):
                self._forget_dead_groups()
            if removed:
                self._connection.executescript("PRAGMA incremental_vacuum(2000)")  # execute would step it once: one page
        return removed

    def erase(self, topics: Sequence[str], words: Sequence[bytes]) -> int:
        """Empty for good every message of ``topics`` whose value holds one of ``words``; gives how many.

        Offsets stay, readers meet a tombstone, and the bytes are overwritten on disk. Raises NotReadyError when a reader holds the
        journal for long: the messages are empty then, but their old bytes lie in the journal until the next checkpoint.
        """
        erased = 0
        with self._lock, plain_errors(self.path):
            self._connection.execute("PRAGMA secure_delete = ON")
            present = self._read_topics()
            names = [topic for topic in topics if topic in present]
            marks = ",".join("?" * len(names))
            for (partition_id,) in self._connection.execute(f"SELECT id FROM partitions WHERE topic IN ({marks})", names).fetchall():
                erased += self._erase_in(partition_id, words)
            self._connection.execute("PRAGMA secure_delete = OFF")
            if erased and self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise NotReadyError(f"the journal of {self.path} is held by a reader: run the erasure again to clear it")
        return erased

    def _erase_in(self, partition_id: int, words: Sequence[bytes]) -> int:
        erased = 0
        with transaction(self._connection):
            rows = self._connection.execute(f"SELECT id, value, {SIZE} FROM messages WHERE id BETWEEN ? AND ?", span(partition_id))
            doomed = [(identifier, size) for identifier, value, size in rows if value and any(word in value for word in words)]
            for identifier, size in doomed:
                self._connection.execute("UPDATE messages SET value = NULL, headers = x'' WHERE id = ?", (identifier,))
                (left,) = self._connection.execute(f"SELECT {SIZE} FROM messages WHERE id = ?", (identifier,)).fetchone()
                self._connection.execute("UPDATE partitions SET bytes = bytes - ? WHERE id = ?", (size - left, partition_id))
                erased += 1
        return erased

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
        with transaction(self._connection):
            size = 0
            for identifier in doomed:
                row = self._connection.execute(f"SELECT {SIZE} FROM messages WHERE id = ?", (identifier,)).fetchone()
                size += row[0] if row else 0  # another process may have been first
            self._connection.executemany("DELETE FROM messages WHERE id = ?", [(identifier,) for identifier in doomed])
            self._connection.execute("UPDATE partitions SET bytes = bytes - ? WHERE id = ?", (size, partition_id))
        return len(doomed)

    def _superseded(self, partition_id: int) -> list[int]:
        """Compaction: every message of a key but its last, and tombstones that all readers have had time to see."""
        old = int(self._clock() * 1000) - TOMBSTONE_RETENTION_MS
        rows = self._connection.execute(
            "SELECT id FROM (SELECT id, value IS NULL AND timestamp_ms < ? AS is_gone, max(id) OVER (PARTITION BY key) AS last"
            " FROM messages WHERE id BETWEEN ? AND ?) WHERE id < last OR is_gone",
            (old, *span(partition_id)),
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
            f"SELECT id, timestamp_ms, {SIZE} FROM messages WHERE id BETWEEN ? AND ? ORDER BY id", span(partition_id)
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

    def reader(self, topics: Sequence[str], start: str = "earliest") -> SqliteConsumer:
        """A consumer of all partitions that belongs to no group and commits nothing."""
        for topic in topics:
            self._spec(topic)
        reader = SqliteConsumer(self.path, frozenset(topics), None, start, self.session_timeout_s)
        self._consumers.add(reader)
        return reader

    def end_offsets(self, topic: str) -> Mapping[TopicPartition, int]:
        self._spec(topic)
        with self._lock, plain_errors(self.path):
            rows = self._connection.execute("SELECT partition, next_offset FROM partitions WHERE topic = ? ORDER BY partition", (topic,))
            return {TopicPartition(topic, partition): offset for partition, offset in rows}

    def groups(self) -> Mapping[str, Mapping[TopicPartition, int]]:
        """Committed next offsets of every group."""
        committed: dict[str, dict[TopicPartition, int]] = {}
        with self._lock, plain_errors(self.path):
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


def _check_spec(spec: TopicSpec) -> None:
    if not spec.name or spec.partitions < 1:
        raise SettingsError(f"a topic must have a name and at least one partition, got {spec}")
    if spec.cleanup not in ("delete", "compact"):
        raise SettingsError(f'TopicSpec.cleanup must be "delete" or "compact", got {spec.cleanup!r}')
