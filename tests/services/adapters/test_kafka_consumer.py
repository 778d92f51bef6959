"""What a real Kafka and its client do to a member of a group, beyond the contract of all brokers."""

from __future__ import annotations

import time
import uuid

from kafka import KafkaAdminClient

from pipeline.ports import TopicSpec
from services.adapters.kafka_broker import KafkaBroker
from services.adapters.kafka_client import KafkaConnection


def test_a_member_that_looks_only_for_moments_takes_part_when_a_topic_grows(kafka_bootstrap: str) -> None:
    """kafka-python forgot such a join when the look was over before the answer came: no partitions and no heartbeat for ever."""
    topic = f"grows-{uuid.uuid4().hex[:8]}"
    with KafkaBroker(KafkaConnection(kafka_bootstrap, session_timeout_s=6.0)) as broker:
        broker.create_topics([TopicSpec(topic, partitions=2)])
        try:
            member = broker.consumer([topic], topic)
            poll_until(member, 2, 0.5)
            admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
            admin.create_partitions({topic: 4})
            admin.close()
            member._kafka._coordinator._cluster.request_update()
            poll_until(member, 4, 0.002)
            assert member.is_stable()
            member.close()
        finally:
            broker.delete_topics([topic])


def poll_until(member: object, partitions: int, look_s: float) -> None:
    ends_at = time.monotonic() + 20
    while len(member.assignment()) < partitions:  # type: ignore[attr-defined]
        assert time.monotonic() < ends_at, f"{len(member.assignment())} of {partitions} partitions"  # type: ignore[attr-defined]
        member.poll(look_s)  # type: ignore[attr-defined]
