"""`sightline bench broker`: the worker loop beside the bare Kafka client, same broker, same messages, in turns."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from pipeline.errors import SettingsError
from pipeline.ports import TopicPartition, TopicSpec
from pipeline.types import BODY, TEXT, Attribute, CropReference, Embedding, Tracklet
from services import wire
from services.adapters.kafka_bare import bare_consume, bare_produce
from services.adapters.kafka_broker import KafkaBroker
from services.settings import Settings
from services.wiring import kafka_connection
from services.worker import Output, Received, Worker

PARTITIONS = 4
BATCH = 200


def bench_broker(settings: Settings, count: int = 20_000, rounds: int = 3) -> dict[str, Any]:
    """Messages a second, sending and working, of the bare client and of ours, and the median of the rounds' ratios.

    Raises SettingsError where broker.kind is not kafka.
    """
    if settings.broker.kind != "kafka":
        raise SettingsError('broker.kind must be "kafka" for this bench, got "embedded": name a Kafka in broker.bootstrap_servers')
    message = wire.encode(typical_tracklet())
    figures: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, rate in _round(settings, message, count, is_ours_first=bool(number % 2)):
            figures.setdefault(name, []).append(rate)
    return {
        "messages": count,
        "bytes_each": len(message),
        "rounds": rounds,
        **{f"{name}_per_s": round(median(rates)) for name, rates in figures.items()},
        "produce_ratio": _ratio(figures, "produce", "bare_produce"),
        "worker_ratio": _ratio(figures, "worker", "bare_consume"),
        "worker_decoding_ratio": _ratio(figures, "worker_decoding", "bare_consume_decoding"),
    }


def _ratio(figures: dict[str, list[float]], ours: str, bare: str) -> float:
    return round(median(a / b for a, b in zip(figures[ours], figures[bare], strict=True)), 3)


def typical_tracklet() -> Tracklet:
    """Six seconds of a person at ten frames a second: 60 boxes, two vectors, attributes, four crops."""
    at = np.arange(60, dtype=np.int64) * 100_000_000 + 1_780_000_000_000_000_000
    vector = np.random.default_rng(7).standard_normal((2, 256)).astype(np.float32)
    vectors = tuple(Embedding(modality, f"bench-{modality}@1", v) for modality, v in zip((BODY, TEXT), vector, strict=True))
    crops = tuple(CropReference(f"gate/0123456789abcdef/{n}.jpg", int(at[n]), (1.0, 2.0, 3.0, 4.0), 0.5) for n in range(4))
    attributes = tuple(Attribute(name, "dark", 0.9) for name in ("upper colour", "lower colour", "top", "bag", "hat"))
    boxes = np.linspace(0, 1000, 240, dtype=np.float32).reshape(60, 4)
    return Tracklet("0123456789abcdef", 2, "gate", int(at[0]), int(at[-1]), at, boxes, np.ones(60, np.float32), vectors, attributes, crops)


def _round(settings: Settings, message: bytes, count: int, is_ours_first: bool) -> Sequence[tuple[str, float]]:
    """One round on a topic of its own, which is removed again."""
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    connection = kafka_connection(settings)
    found: list[tuple[str, float]] = []
    with KafkaBroker(connection) as broker:
        broker.create_topics([TopicSpec(topic, PARTITIONS, max_message_bytes=4_194_304)])
        try:
            producers: list[tuple[str, Callable[[], None]]] = [
                ("bare_produce", lambda: bare_produce(connection, topic, message, count, BATCH)),
                ("produce", lambda: _produce(broker, topic, message, count)),
            ]
            consumers: list[tuple[str, Callable[[], None]]] = [
                ("bare_consume", lambda: bare_consume(connection, topic, 2 * count, BATCH, lambda value: None)),
                ("bare_consume_decoding", lambda: bare_consume(connection, topic, 2 * count, BATCH, lambda v: wire.decode(Tracklet, v))),
                ("worker", lambda: _work(broker, topic, is_decoding=False)),
                ("worker_decoding", lambda: _work(broker, topic, is_decoding=True)),
            ]
            for steps, messages in ((producers, count), (consumers, 2 * count)):
                for name, act in reversed(steps) if is_ours_first else steps:
                    started_s = time.perf_counter()
                    act()
                    found.append((name, messages / (time.perf_counter() - started_s)))
        finally:
            broker.delete_topics([topic])
    return found


def _produce(broker: KafkaBroker, topic: str, message: bytes, count: int) -> None:
    for number in range(count):
        broker.produce(topic, message, b"camera-%d" % (number % 16))
        if number % BATCH == BATCH - 1:
            broker.flush()
    broker.flush()


class _Taking:
    """Takes ``count`` messages, sends nothing on, and sets ``stop``."""

    def __init__(self, count: int, is_decoding: bool) -> None:
        self.stop = threading.Event()
        self._left, self._is_decoding = count, is_decoding

    def handle(self, batch: Sequence[Received]) -> list[Output]:
        self._left -= len(batch)
        if self._left <= 0:
            self.stop.set()
        if self._is_decoding:
            for received in batch:
                wire.decode(Tracklet, received.value)
        return []


def _work(broker: KafkaBroker, topic: str, is_decoding: bool) -> None:
    group = f"bench-{uuid.uuid4().hex[:8]}"
    ends = broker.end_offsets(topic)
    handler = _Taking(sum(ends.values()), is_decoding)
    Worker(group, broker, [topic], handler, batch=BATCH).run(handler.stop)
    committed = broker.groups().get(group, {})
    if {partition: committed.get(partition) for partition in ends} != dict(ends):
        left = sum(end - committed.get(TopicPartition(p.topic, p.partition), 0) for p, end in ends.items())
        raise RuntimeError(f"the bench's worker left {left} messages")
