"""The broker contract on every adapter. To add one: write its factory and put it into ADAPTERS; list what it cannot do with the reason."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.ports import Broker
from services.adapters.kafka_broker import KafkaBroker
from services.adapters.kafka_client import KafkaConnection
from services.adapters.sqlite_broker import SqliteBroker
from tests.contracts.broker_contract import BrokerContract
from tests.kafka_server import forget_topics

SESSION_TIMEOUT_S = 1.2
KAFKA_SESSION_TIMEOUT_S = 2.0


def _sqlite(request: pytest.FixtureRequest) -> Callable[[], Broker]:
    folder: Path = request.getfixturevalue("tmp_path")
    return lambda: SqliteBroker(folder / "log.db", session_timeout_s=SESSION_TIMEOUT_S)


def _kafka(request: pytest.FixtureRequest) -> Callable[[], Broker]:
    bootstrap: str = request.getfixturevalue("kafka_bootstrap")
    return lambda: KafkaBroker(KafkaConnection(bootstrap, session_timeout_s=KAFKA_SESSION_TIMEOUT_S))


def _compact_sqlite(broker: Broker, topic: str) -> None:
    assert isinstance(broker, SqliteBroker)
    broker.maintain()


def _compact_kafka(broker: Broker, topic: str) -> None:
    """Kafka compacts closed segments only: make it close them at once, and wait until its cleaner came by."""
    from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
    from kafka.admin import ConfigResource, ConfigResourceType

    assert isinstance(broker, KafkaBroker)
    admin = KafkaAdminClient(bootstrap_servers=broker._servers)
    quick = {"segment.ms": "1", "min.cleanable.dirty.ratio": "0.0", "min.compaction.lag.ms": "0"}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=quick)])
    admin.close()
    for marker in itertools.count():
        time.sleep(0.3)
        broker.produce(topic, b"%d" % marker, b"marker")
        broker.flush()
        reader = KafkaConsumer(bootstrap_servers=broker._servers, auto_offset_reset="earliest")
        reader.assign([TopicPartition(topic, 0)])
        found = [record.offset for records in reader.poll(2_000).values() for record in records]
        reader.close()
        if found and found[0] >= 27:
            return
        assert marker < 60, "the cleaner never came"


@dataclass(frozen=True)
class Adapter:
    """How to connect to a fresh log, how to make it compact a topic now, and which tests it cannot pass, with the reason."""

    connector: Callable[[pytest.FixtureRequest], Callable[[], Broker]]
    compact: Callable[[Broker, str], None]
    session_timeout_s: float
    cannot: dict[str, str] = field(default_factory=dict)


ADAPTERS = {
    "sqlite": Adapter(_sqlite, _compact_sqlite, SESSION_TIMEOUT_S),
    "kafka": Adapter(_kafka, _compact_kafka, KAFKA_SESSION_TIMEOUT_S),
}


@pytest.fixture(params=sorted(ADAPTERS))
def adapter(request: pytest.FixtureRequest) -> Adapter:
    chosen = ADAPTERS[request.param]
    reason = chosen.cannot.get(request.node.originalname)
    if reason:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    return chosen


@pytest.fixture
def connect(adapter: Adapter, request: pytest.FixtureRequest) -> Iterator[Callable[[], Broker]]:
    new_client = adapter.connector(request)
    before = set(new_client().topics()) if adapter is ADAPTERS["kafka"] else set()
    clients: list[Broker] = []

    def remembered() -> Broker:
        clients.append(new_client())
        return clients[-1]

    yield remembered
    for client in clients:
        client.close()
    if adapter is ADAPTERS["kafka"]:
        forget_topics(request.getfixturevalue("kafka_bootstrap"), before)


@pytest.fixture
def broker(connect: Callable[[], Broker]) -> Broker:
    return connect()


@pytest.fixture
def compact(adapter: Adapter) -> Callable[[Broker, str], None]:
    return adapter.compact


@pytest.fixture
def session_timeout_s(adapter: Adapter) -> float:
    return adapter.session_timeout_s * 1.3


class TestBrokers(BrokerContract):
    """Every test of the contract, on every adapter."""
