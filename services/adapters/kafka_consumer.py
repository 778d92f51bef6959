"""A member of a Kafka consumer group, and the reader outside of any group.

Partitions move cooperatively (KIP-429) by our own assignor: balanced and sticky like the embedded broker's, and a partition whose
messages are being handled stays where it is until they are dealt with, so that no long job is torn from its worker.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import kafka
from kafka import ConsumerRebalanceListener
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor, RebalanceProtocol
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription
from kafka.structs import MemberState, OffsetAndMetadata

from pipeline.errors import NotReadyError
from pipeline.ports import Message, TopicPartition
from services.adapters.kafka_client import REQUEST_TIMEOUT_S, KafkaConnection, plain_errors
from services.adapters.placement import assign

COMMIT_TIMEOUT_MS = int(REQUEST_TIMEOUT_S * 1000)
KEEP_ALIVE_POLL_MS = 50
HEARTBEATS_PER_SESSION = 8
JOIN_AGAIN = b"join again"


class HoldingAssignor(AbstractPartitionAssignor):  # type: ignore[misc]  # kafka-python has no types
    """Gives partitions to members as placement.assign does; what a member holds in hand is not moved.

    A member tells which of its partitions are in hand in its subscription; where those keep the group from balance, the leader asks
    the member to join again once it is done with them.
    """

    name = "sightline-holding"
    version = 1  # with the owned partitions of KIP-429

    def __init__(self, owned: Callable[[], Sequence[Any]], held: Callable[[], Collection[Any]]) -> None:
        self._owned, self._held = owned, held
        self.must_join_again = False

    def supported_protocols(self) -> list[RebalanceProtocol]:
        return [RebalanceProtocol.COOPERATIVE]

    def metadata(self, topics: set[str]) -> ConsumerProtocolSubscription:
        owned = sorted(self._owned())
        held = set(self._held()) & set(owned)
        by_topic: dict[str, list[int]] = {}
        for partition in owned:
            by_topic.setdefault(partition.topic, []).append(partition.partition)
        kind = ConsumerProtocolSubscription.TopicPartition
        return ConsumerProtocolSubscription(
            version=self.version,
            topics=sorted(topics),
            user_data=json.dumps(sorted([p.topic, p.partition] for p in held)).encode(),
            owned_partitions=[kind(topic=topic, partitions=numbers) for topic, numbers in by_topic.items()],
        )

    def assign(self, cluster: Any, members: Sequence[Any]) -> dict[str, ConsumerProtocolAssignment]:
        names = sorted(member.member_id for member in members)
        topics = {names.index(member.member_id): frozenset(member.metadata.topics) for member in members}
        partitions = sorted((t, p) for t in frozenset().union(*topics.values()) for p in cluster.partitions_for_topic(t) or ())
        ids = {partition: number for number, partition in enumerate(partitions)}
        owners: dict[int, set[int]] = {}
        held: dict[int, int] = {}
        for member in members:
            number = names.index(member.member_id)
            for owned in getattr(member.metadata, "owned_partitions", None) or ():
                for partition in owned.partitions:
                    if (owned.topic, partition) in ids:
                        owners.setdefault(ids[owned.topic, partition], set()).add(number)
            for topic, partition in _held_of(member.metadata.user_data):
                if (topic, partition) in ids:
                    held[ids[topic, partition]] = number
        before = {partition: next(iter(claims)) for partition, claims in owners.items() if len(claims) == 1}
        of = {number: topic for (topic, _), number in ids.items()}
        wished = assign(of, topics, before)
        settled = assign(of, topics, before, held={p for p, member in held.items() if before.get(p) == member})
        given: dict[int, dict[str, list[int]]] = {number: {} for number in topics}
        for partition, member_number in settled.items():
            if before.get(partition, member_number) == member_number:  # one that moves is let go first, and given in the next round
                topic, number = partitions[partition]
                given[member_number].setdefault(topic, []).append(number)
        torn = {before[partition] for partition in held if partition in before and wished.get(partition) != before[partition]}
        return {
            name: ConsumerProtocolAssignment(self.version, sorted(given[i].items()), JOIN_AGAIN if i in torn else b"")
            for i, name in enumerate(names)
        }

    def on_assignment(self, assignment: Any, generation: int) -> None:
        self.must_join_again = bytes(assignment.user_data or b"") == JOIN_AGAIN


def _finish_every_join(coordinator: Any) -> None:
    """Make later polls go on with a join that outlasted the one which began it.

    kafka-python forgets one that began because the topics' partitions changed: its snapshots are equal once the leader has shared out, so
    need_rejoin says no, the answer is never taken, and the heartbeat stays off for ever. And an answer that came between two polls it
    throws away and joins anew, so that all others must too: members that look in only now and then never come to rest.
    """
    needs_rejoin, join = coordinator.need_rejoin, coordinator.join_group_async

    async def finish_or_join(timeout_ms: float | None = None) -> bool:
        task = coordinator._join_task
        if task is None or not task.is_done or task.failed() or coordinator.state is not MemberState.REBALANCING:
            return bool(await join(timeout_ms=timeout_ms))
        with coordinator._lock:
            coordinator._join_task = None
            coordinator.rejoining = coordinator.rejoin_needed = False
            coordinator.state = MemberState.STABLE
            coordinator._enable_heartbeat()
        generation = coordinator._generation
        await coordinator._on_join_complete_async(generation.generation_id, generation.member_id, generation.protocol, task.value)
        return True

    coordinator.need_rejoin = lambda: coordinator.rejoining or needs_rejoin()
    coordinator.join_group_async = finish_or_join


def _held_of(user_data: bytes | None) -> list[tuple[str, int]]:
    try:
        return [(str(topic), int(partition)) for topic, partition in json.loads(user_data or b"[]")]
    except (ValueError, TypeError):
        return []


class _Taken(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes the partitions that the group took away."""

    def __init__(self) -> None:
        self.partitions: set[Any] = set()

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.partitions |= set(revoked)

    def on_partitions_assigned(self, assigned: Any) -> None:
        pass

    def on_partitions_lost(self, lost: Any) -> None:
        self.partitions |= set(lost)


class KafkaConsumer:
    """A Consumer. group None: a reader of all partitions that belongs to no group and commits nothing."""

    def __init__(self, connection: KafkaConnection, topics: Sequence[str], group: str | None, start: str) -> None:
        self._servers, self._session_s = connection.bootstrap_servers, connection.session_timeout_s
        self._lock = threading.RLock()
        self._in_hand: frozenset[Any] = frozenset()  # partitions of the messages that the last poll gave
        self._early: deque[Any] = deque()  # what came while we only kept the membership alive
        self._taken = _Taken()
        self._is_closed = False
        self._assignor = HoldingAssignor(lambda: tuple(self._kafka.assignment()), lambda: self._in_hand)
        session_ms = int(connection.session_timeout_s * 1000)
        options = connection.options() | {
            "auto_offset_reset": start,
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,
            "fetch_max_wait_ms": 500,
            "metrics_enabled": False,
            "isolation_level": "read_committed",
        }
        if group is not None:
            options |= {
                "group_id": group,
                "session_timeout_ms": session_ms,
                "max_poll_interval_ms": session_ms,  # who neither polls nor keeps alive for so long is taken for stuck
                "heartbeat_interval_ms": max(100, session_ms // HEARTBEATS_PER_SESSION),
                "partition_assignment_strategy": (self._assignor,),
            }
        with plain_errors(self._servers):
            self._kafka = kafka.KafkaConsumer(**options)
            if group is not None:
                self._kafka.subscribe(topics, listener=self._taken)
                _finish_every_join(self._kafka._coordinator)
            else:
                self._read_all(topics, start)
        self._group = group

    def _read_all(self, topics: Sequence[str], start: str) -> None:
        everything = [kafka.TopicPartition(topic, p) for topic in topics for p in self._kafka.partitions_for_topic(topic)]
        self._kafka.assign(everything)
        if start == "earliest":
            self._kafka.seek_to_beginning()
        else:  # the end as it is now, not as it is when the first poll comes
            for partition, end in self._kafka.end_offsets(everything).items():
                self._kafka.seek(partition, end)

    # polling

    def poll(self, timeout_s: float = 1.0, max_messages: int = 500) -> list[Message]:
        """Messages of the assigned partitions, in offset order per partition; [] when the time is up. Keeps the membership alive.

        To poll again says that the messages of the poll before are dealt with.
        """
        with self._lock, plain_errors(self._servers):
            self._check_open()
            self._in_hand = frozenset()
            self._taken.partitions.clear()
            if self._assignor.must_join_again:
                self._assignor.must_join_again = False
                self._kafka._coordinator.request_rejoin()
            if self._early:
                messages = [self._early.popleft() for _ in range(min(max_messages, len(self._early)))]
            else:
                found = self._kafka.poll(timeout_ms=int(timeout_s * 1000), max_records=max_messages)
                messages = [_message(record) for records in found.values() for record in records]
            self._in_hand = frozenset(kafka.TopicPartition(m.topic, m.partition) for m in messages)
            return messages

    def keep_alive(self) -> None:
        """Stay a member while messages take long to handle; partitions without messages in hand may move to other members.

        Raises NotReadyError when a partition in hand was taken away: the work in hand is another member's by now.
        """
        with self._lock, plain_errors(self._servers):
            self._check_open()
            if self._group is None:
                return
            self._kafka.pause(*self._kafka.assignment())
            try:
                # Newly given partitions are not paused: what they bring waits for the next poll.
                found = self._kafka.poll(timeout_ms=KEEP_ALIVE_POLL_MS)
                self._early.extend(_message(record) for records in found.values() for record in records)
            finally:
                self._kafka.resume(*self._kafka.paused())
            self._drop_taken_early()
            lost = self._in_hand & self._taken.partitions
            if lost:
                names = ", ".join(f"{p.topic}/{p.partition}" for p in sorted(lost))
                raise NotReadyError(f"group {self._group} gave {names} to another member")

    def _drop_taken_early(self) -> None:
        owned = self._kafka.assignment()
        kept = [m for m in self._early if kafka.TopicPartition(m.topic, m.partition) in owned]
        self._early = deque(kept)

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("this consumer is closed")

    # offsets

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(TopicPartition(p.topic, p.partition) for p in self._kafka.assignment())

    def is_stable(self) -> bool:
        """Whether the group has told this member its partitions and nothing is changing."""
        return self._group is None or self._kafka.group_metadata().state == MemberState.STABLE

    def position(self, partition: TopicPartition) -> int:
        with self._lock, plain_errors(self._servers):
            wanted = self._ours(partition)
            waiting = [m.offset for m in self._early if (m.topic, m.partition) == (partition.topic, partition.partition)]
            if waiting:
                return int(min(waiting))
            offset = self._kafka.position(wanted, timeout_ms=COMMIT_TIMEOUT_MS)
        if offset is None:
            raise NotReadyError(f"Kafka at {self._servers} did not say where {partition.topic}/{partition.partition} stands")
        return int(offset)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if offset < 0:
            raise ValueError(f"an offset must be 0 or more, got {offset}")
        with self._lock, plain_errors(self._servers):
            wanted = self._ours(partition)
            self._early = deque(m for m in self._early if (m.topic, m.partition) != (partition.topic, partition.partition))
            if offset == 0:
                self._kafka.seek_to_beginning(wanted)  # offset 0 itself may be gone
            else:
                self._kafka.seek(wanted, offset)

    def _ours(self, partition: TopicPartition) -> Any:
        wanted = kafka.TopicPartition(partition.topic, partition.partition)
        if wanted not in self._kafka.assignment():
            raise NotReadyError(f"partition {partition.topic}/{partition.partition} is not assigned to this member of group {self._group}")
        return wanted

    def committed(self, partition: TopicPartition) -> int | None:
        with self._lock, plain_errors(self._servers):
            return self._kafka.committed(kafka.TopicPartition(partition.topic, partition.partition), timeout_ms=COMMIT_TIMEOUT_MS)  # type: ignore[no-any-return]

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store the NEXT offset to read per partition; raises NotReadyError when a partition was taken away meanwhile."""
        if not offsets:
            return
        if self._group is None:
            raise RuntimeError("a reader outside of a group commits nothing")
        with self._lock, plain_errors(self._servers):
            self._check_open()
            wanted = {kafka.TopicPartition(p.topic, p.partition): OffsetAndMetadata(offset, "", -1) for p, offset in offsets.items()}
            ends_at = time.monotonic() + self._session_s
            while True:
                self._check_owned(wanted)
                try:
                    self._kafka.commit(wanted, timeout_ms=COMMIT_TIMEOUT_MS)
                    return
                except kafka_errors.RebalanceInProgressError:  # the group shares out anew: take part, then say it again
                    if time.monotonic() > ends_at:
                        raise
                    self.keep_alive()

    def _check_owned(self, partitions: Mapping[Any, object]) -> None:
        taken = set(partitions) & self._taken.partitions or set(partitions) - self._kafka.assignment()
        if taken:
            names = ", ".join(f"{p.topic}/{p.partition}" for p in sorted(taken))
            raise NotReadyError(f"group {self._group} gave {names} to another member: nothing was committed, poll again")

    def lag(self) -> int:
        """Messages of the assigned partitions not yet read (offsets: compacted ones count until they are passed)."""
        with self._lock, plain_errors(self._servers):
            partitions = sorted(self._kafka.assignment())
            if not partitions:
                return 0
            ends = self._kafka.end_offsets(partitions)
            behind = 0
            for partition in partitions:
                position = self._kafka.position(partition, timeout_ms=COMMIT_TIMEOUT_MS)
                behind += max(0, ends[partition] - (ends[partition] if position is None else position))
            return int(behind) + len(self._early)

    def close(self) -> None:
        """Leave the group, so that others take over at once."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            with suppress(NotReadyError), plain_errors(self._servers):  # a leave that cannot be told: the session times out instead
                self._kafka.close(autocommit=False, timeout_ms=2_000)


def _message(record: Any) -> Message:
    headers = tuple((name, bytes(value or b"")) for name, value in record.headers)
    return Message(record.topic, record.partition, record.offset, record.key, record.value, headers, record.timestamp)
