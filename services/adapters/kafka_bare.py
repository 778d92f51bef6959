"""The Kafka client without anything of ours: the bare limit that `sightline bench broker` measures beside."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import kafka

from services.adapters.kafka_broker import BATCH_BYTES
from services.adapters.kafka_client import KafkaConnection, plain_errors


def bare_produce(connection: KafkaConnection, topic: str, value: bytes, count: int, batch: int) -> None:
    """``count`` messages by the client alone, acknowledged after each ``batch``."""
    with plain_errors(connection.bootstrap_servers):
        producer = kafka.KafkaProducer(**connection.options(), acks="all", linger_ms=5, batch_size=BATCH_BYTES, metrics_enabled=False)
        for number in range(count):
            producer.send(topic, value, b"camera-%d" % (number % 16))
            if number % batch == batch - 1:
                producer.flush()
        producer.flush()
        producer.close()


def bare_consume(connection: KafkaConnection, topic: str, count: int, batch: int, use: Callable[[bytes], object]) -> None:
    """``count`` messages by a group member of the client alone, committed after each ``batch``."""
    with plain_errors(connection.bootstrap_servers):
        options = connection.options() | {"auto_offset_reset": "earliest", "enable_auto_commit": False, "metrics_enabled": False}
        consumer = kafka.KafkaConsumer(topic, **options, group_id=f"bare-{uuid.uuid4().hex[:8]}")
        taken = 0
        while taken < count:
            for records in consumer.poll(1_000, max_records=batch).values():
                for record in records:
                    use(record.value)
                taken += len(records)
            consumer.commit()
        consumer.close()
