"""The Broker on Apache Kafka, through kafka-python. Groups and readers: kafka_consumer.py; connecting and errors: kafka_client.py."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import kafka
from kafka import OffsetSpec
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType

from pipeline.errors import BadInputError, NotReadyError, SettingsError
from pipeline.ports import TopicPartition, TopicSpec
from services.adapters.kafka_client import KafkaConnection, as_ours, plain_errors
from services.adapters.kafka_consumer import KafkaConsumer
from services.adapters.placement import partition_of

log = logging.getLogger("sightline.kafka")

QUEUE_LIMIT_BYTES = 64 * 2**20  # beyond this produce waits for the broker, so that memory stays bounded
REQUEST_LIMIT_BYTES = 16 * 2**20
BATCH_BYTES = 256 * 1024  # below every topic's limit, which Kafka applies to whole batches
BATCH_OVERHEAD_BYTES = 128  # what Kafka adds to one message alone in its batch
FOR_EVER_MS = 2**31 - 1
SENDS_WITHIN_S = 2.0  # produce waits no longer for a Kafka that is away: the message stays queued
CLOSES_WITHIN_S = 1.5  # who must be sure has flushed before; a worker has 10 s from SIGTERM to its end


@dataclass(slots=True)
class _Queued:
    """A message until Kafka has acknowledged it."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp_ms: int
    size: int
    future: Any = None


class KafkaBroker:
    """A Broker on Kafka. Nothing connects before the first call; every message stays here until Kafka has acknowledged it."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._servers = connection.bootstrap_servers
        self._lock = threading.RLock()
        self._admin: Any = None
        self._producer: Any = None
        self._queue: list[_Queued] = []
        self._queued_bytes = 0
        self._specs: dict[str, TopicSpec] = {}
        self._next_unkeyed: dict[str, int] = {}
        self._consumers: weakref.WeakSet[KafkaConsumer] = weakref.WeakSet()

    # topics

    def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create those that are missing; an existing one with other partitions or settings raises SettingsError."""
        present = self.topics()
        missing = [spec for spec in specs if spec.name not in present]
        if missing:
            wanted = {
                spec.name: {
                    "num_partitions": spec.partitions,
                    "replication_factor": self._connection.replication_factor,
                    "configs": _configs(spec, self._connection.replication_factor),
                }
                for spec in missing
            }
            with self._lock, plain_errors(self._servers):
                try:
                    self._administrator().create_topics(wanted, wait_for_metadata=True)
                except kafka_errors.TopicAlreadyExistsError:  # somebody else was as quick; what is there is checked below
                    log.debug("topics were created by somebody else meanwhile")
            present = self.topics()
        for spec in specs:
            there = present.get(spec.name)
            if there is None:
                raise NotReadyError(f"Kafka at {self._servers} has not made topic {spec.name} yet")
            if there != spec:
                raise SettingsError(f"topic {spec.name} must have {spec.differences(there)}")

    def topics(self) -> Mapping[str, TopicSpec]:
        with self._lock, plain_errors(self._servers):
            admin = self._administrator()
            described = [topic for topic in admin.describe_topics() if not topic.get("is_internal")]
            names = [topic["name"] for topic in described]
            configs = _described(admin, names)
        found = {}
        for topic in described:
            values = configs.get(topic["name"], {})
            found[topic["name"]] = TopicSpec(
                topic["name"],
                len(topic["partitions"]),
                values.get("cleanup.policy", "delete"),
                int(values.get("retention.ms", -1)),
                int(values.get("retention.bytes", -1)),
                int(values.get("max.message.bytes", 1_048_588)),
            )
        self._specs = found
        return dict(found)

    def _spec(self, topic: str) -> TopicSpec:
        if topic not in self._specs:
            self.topics()
        if topic not in self._specs:
            raise SettingsError(f"topic must exist before it is used, got {topic!r}: create it with `sightline topics create`")
        return self._specs[topic]

    def _administrator(self) -> Any:
        if self._admin is None:
            self._admin = kafka.KafkaAdminClient(**self._connection.options())
        return self._admin

    # producing

    def produce(self, topic: str, value: bytes | None, key: bytes | None = None, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Queue one message and begin to send it; without a key the partitions take turns.

        Raises BadInputError when it is larger than the topic allows, SettingsError when there is no such topic, NotReadyError when
        more waits for Kafka than memory may hold: then this message is not queued.
        """
        spec = self._spec(topic)
        kept = [(name, bytes(data)) for name, data in headers]
        size = len(value or b"") + len(key or b"") + sum(len(name) + len(data) for name, data in kept) + BATCH_OVERHEAD_BYTES
        if size > spec.max_message_bytes:
            raise BadInputError(f"a message of topic {topic} must be at most {spec.max_message_bytes} bytes, got {size}")
        if spec.cleanup == "compact" and key is None:
            raise BadInputError(f"a message of the compacted topic {topic} must have a key, got none")
        with self._lock:
            if self._queued_bytes + size > QUEUE_LIMIT_BYTES:
                self.flush()
            if key is None:
                partition = self._next_unkeyed.get(topic, 0)
                self._next_unkeyed[topic] = (partition + 1) % spec.partitions
            else:
                partition = partition_of(bytes(key), spec.partitions)
            queued = _Queued(topic, partition, key, value, kept, int(time.time() * 1000), size)
            self._queue.append(queued)
            self._queued_bytes += size
            if all(earlier.future is not None for earlier in self._queue[-2:-1]):  # else the flush sends them in order
                with suppress(NotReadyError):
                    self._send(queued, SENDS_WITHIN_S)

    def _send(self, queued: _Queued, within_s: float) -> None:
        with plain_errors(self._servers):
            if self._producer is None:
                self._producer = kafka.KafkaProducer(
                    **self._connection.options() | {"bootstrap_timeout_ms": int(max(0.2, within_s) * 1000)},
                    acks="all",
                    enable_idempotence=True,
                    retries=FOR_EVER_MS,
                    delivery_timeout_ms=FOR_EVER_MS,  # Kafka's own order and no duplicates, however long it is away
                    max_request_size=REQUEST_LIMIT_BYTES,
                    batch_size=BATCH_BYTES,
                    linger_ms=5,
                    max_block_ms=2_000,
                    allow_auto_create_topics=False,
                    metrics_enabled=False,
                )
            queued.future = self._producer.send(
                queued.topic, queued.value, queued.key, queued.headers, partition=queued.partition, timestamp_ms=queued.timestamp_ms
            )

    def flush(self, timeout_s: float = 10.0) -> None:
        """Return once every produced message is durable; raises NotReadyError otherwise and keeps what is not acknowledged."""
        ends_at = time.monotonic() + timeout_s
        with self._lock:
            while self._queue:
                self._send_waiting(ends_at)
                left_s = ends_at - time.monotonic()
                with plain_errors(self._servers):
                    try:
                        self._producer.flush(timeout=max(0.05, left_s))
                    except kafka_errors.KafkaTimeoutError:
                        self._keep_unacknowledged()
                        waiting = f"{len(self._queue)} messages within {timeout_s:g} s"
                        raise NotReadyError(f"Kafka at {self._servers} did not acknowledge {waiting}: they stay queued") from None
                self._keep_unacknowledged()
                if self._queue and time.monotonic() > ends_at:
                    raise NotReadyError(f"Kafka at {self._servers} refused {len(self._queue)} messages: they stay queued")

    def _send_waiting(self, ends_at: float) -> None:
        for queued in self._queue:
            if queued.future is None:
                self._send(queued, ends_at - time.monotonic())

    def _keep_unacknowledged(self) -> None:
        """Drop what Kafka has; what it refused for good is sent again by a new producer, in order."""
        refused = next((q.future.exception for q in self._queue if q.future is not None and q.future.failed()), None)
        self._queue = [q for q in self._queue if q.future is None or not q.future.succeeded()]
        self._queued_bytes = sum(q.size for q in self._queue)
        if refused is None:
            return
        ours = as_ours(refused, self._servers)
        log.warning("Kafka refused messages, sent again", extra={"reason": str(ours)})
        producer, self._producer = self._producer, None
        for queued in self._queue:
            queued.future = None
        _drop(producer)
        if isinstance(ours, SettingsError):
            raise ours

    # reading

    def consumer(self, topics: Sequence[str], group: str, start: str = "earliest") -> KafkaConsumer:
        """Join ``group``; where it has no committed offset, start at "earliest" or "latest"."""
        return self._open(topics, group, start)

    def reader(self, topics: Sequence[str], start: str = "earliest") -> KafkaConsumer:
        """A consumer of all partitions that belongs to no group and commits nothing."""
        return self._open(topics, None, start)

    def _open(self, topics: Sequence[str], group: str | None, start: str) -> KafkaConsumer:
        if start not in ("earliest", "latest"):
            raise SettingsError(f'start must be "earliest" or "latest", got {start!r}')
        if not topics:
            raise SettingsError("a consumer must subscribe to at least one topic, got none")
        for topic in topics:
            self._spec(topic)
        consumer = KafkaConsumer(self._connection, sorted(topics), group, start)
        self._consumers.add(consumer)
        return consumer

    def end_offsets(self, topic: str) -> Mapping[TopicPartition, int]:
        spec = self._spec(topic)
        with self._lock, plain_errors(self._servers):
            wanted = {kafka.TopicPartition(topic, partition): OffsetSpec.LATEST for partition in range(spec.partitions)}
            found = self._administrator().list_partition_offsets(wanted)
        return {TopicPartition(p.topic, p.partition): found[p].offset for p in sorted(found)}

    def groups(self) -> Mapping[str, Mapping[TopicPartition, int]]:
        """Committed next offsets of every group."""
        with self._lock, plain_errors(self._servers):
            admin = self._administrator()
            names = [group["group_id"] for group in admin.list_groups()]
            found = admin.list_group_offsets(dict.fromkeys(names)) if names else {}
        return {
            group: {TopicPartition(p.topic, p.partition): stored.offset for p, stored in offsets.items() if stored.offset >= 0}
            for group, offsets in found.items()
        }

    def delete_topics(self, topics: Sequence[str]) -> None:
        """Remove topics for good."""
        with self._lock, plain_errors(self._servers):
            self._administrator().delete_topics(list(topics))
            self._specs = {}

    def __enter__(self) -> KafkaBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush, leave all groups, close the connections."""
        for consumer in list(self._consumers):
            consumer.close()
        with self._lock:
            try:
                self.flush(CLOSES_WITHIN_S)
            finally:
                if self._producer is not None:
                    _drop(self._producer)
                if self._admin is not None:
                    with suppress(Exception):  # what matters is flushed; a connection that does not close is gone anyway
                        self._admin.close()
                self._producer = self._admin = None


def _drop(producer: Any) -> None:
    """End a producer with all that it has not sent: by itself it would wait for Kafka first, and for ever."""
    with suppress(Exception):  # what is needed of it waits in our own queue
        producer._sender.force_close()
        producer._sender.join(1.0)
        producer.close(timeout=0)


def _configs(spec: TopicSpec, replication_factor: int) -> dict[str, str]:
    configs = {
        "cleanup.policy": spec.cleanup,
        "retention.ms": str(spec.retention_ms),
        "retention.bytes": str(spec.retention_bytes),
        "max.message.bytes": str(spec.max_message_bytes),
        "message.timestamp.type": "LogAppendTime",  # else Kafka refuses what a machine with a wrong clock sends
    }
    if replication_factor >= 3:  # one broker may be away, and what is acknowledged still lies on two
        configs["min.insync.replicas"] = "2"
    return configs


def _described(admin: Any, names: Sequence[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    kinds = ("cleanup.policy", "retention.ms", "retention.bytes", "max.message.bytes")
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, configs=dict.fromkeys(kinds)) for name in names]
    found = admin.describe_configs(resources, config_filter="all")
    return {name: {key: entry["value"] for key, entry in values.items()} for name, values in found.get("topic", {}).items()}
