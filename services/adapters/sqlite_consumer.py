"""A member of a consumer group of the embedded broker.

Partitions move between members cooperatively: the old owner gives a partition up at its next poll (when it has handled what it was
given), or loses it when it has not been heard of for the session timeout. Commits are fenced: only the owner can commit a partition.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.errors import NotReadyError
from pipeline.ports import Message, TopicPartition
from services.adapters.placement import assign
from services.adapters.sqlite_log import connect, plain_errors, span, transaction, unpack_headers

BEATS_PER_SESSION = 8  # a dead member is noticed within a session timeout and an eighth
WAKE_FIRST_S, WAKE_LAST_S = 0.002, 0.02


class SqliteConsumer:
    """A member of a consumer group. ``keep_alive`` may be called from another thread while messages are handled.

    group None: a reader of all partitions that belongs to no group and commits nothing.
    """

    def __init__(self, path: Path, topics: frozenset[str], group: str | None, start: str, session_timeout_s: float) -> None:
        self._path, self._topics, self._group, self._start = path, topics, group, start
        self._session_s = session_timeout_s
        self._lock = threading.RLock()
        with plain_errors(path):
            # Its commits may be lost in a power cut, never torn: then messages come again, as at-least-once says. Spares a disk sync each.
            self._connection = connect(path, "NORMAL")
        self._member: int | None = None
        self._owned: dict[int, TopicPartition] = {}
        self._positions: dict[int, int] = {}
        self._in_flight: set[int] = set()  # partitions with messages handed out by the last poll
        self._turn = 0
        self._beat_at_s = 0.0
        self._data_version = -1
        self._is_closed = False
        with plain_errors(path):
            if group is None:
                self._own_all()
            else:
                self._attend(may_acquire=True, is_beat=True)

    def _own_all(self) -> None:
        marks = ", ".join("?" * len(self._topics))
        rows = self._connection.execute(
            f"SELECT id, topic, partition, next_offset FROM partitions WHERE topic IN ({marks})", sorted(self._topics)
        )
        for partition_id, topic, partition, end in rows.fetchall():
            self._owned[partition_id] = TopicPartition(topic, partition)
            self._positions[partition_id] = 0 if self._start == "earliest" else end

    # polling

    def poll(self, timeout_s: float = 1.0, max_messages: int = 500) -> list[Message]:
        """Messages of the assigned partitions, in offset order per partition; [] when the time is up. Keeps the membership alive.

        To poll again says that the messages of the poll before are dealt with: a partition that the group gives to another member
        leaves at that moment, not in the midst of the work.
        """
        until = time.monotonic() + timeout_s
        pause_s = WAKE_FIRST_S
        while True:
            with self._lock, plain_errors(self._path):
                self._check_open()
                self._in_flight.clear()
                is_news = self._has_news()
                is_due = time.monotonic() - self._beat_at_s > self._session_s / BEATS_PER_SESSION
                if self._group is not None and (is_news or is_due):
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
        base, last = span(partition_id)
        partition = self._owned[partition_id]
        rows = self._connection.execute(
            "SELECT id, timestamp_ms, key, headers, value FROM messages WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
            (base + self._positions[partition_id], last, wanted),
        )
        messages = [
            Message(partition.topic, partition.partition, row[0] - base, row[2], row[4], unpack_headers(row[3]), row[1])
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
        with self._lock, plain_errors(self._path):
            self._check_open()
            if self._group is None:
                return
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
            with transaction(self._connection):
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

    def is_stable(self) -> bool:
        """Whether this member has been told its partitions; here that is so from the first poll on."""
        with self._lock:
            return self._group is None or self._member is not None

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
        with self._lock, plain_errors(self._path):
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
        if self._group is None:
            raise RuntimeError("a reader outside of a group commits nothing")
        with self._lock, plain_errors(self._path):
            self._check_open()
            wanted = {self._identifier(partition): offset for partition, offset in offsets.items()}
            with transaction(self._connection):
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
        with self._lock, plain_errors(self._path):
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
                with suppress(NotReadyError), plain_errors(self._path):  # a leave that cannot be written: the session times out instead
                    self._leave()
            finally:
                self._connection.close()

    def _leave(self) -> None:
        if self._member is None:
            return
        with transaction(self._connection):
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
