"""The broker contract on every adapter. To add one: write its factory and put it into ADAPTERS; list what it cannot do with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.ports import Broker
from services.adapters.sqlite_broker import SqliteBroker
from tests.contracts.broker_contract import BrokerContract

SESSION_TIMEOUT_S = 1.2


def _compact_now(broker: Broker) -> None:
    assert isinstance(broker, SqliteBroker)
    broker.maintain()


@dataclass(frozen=True)
class Adapter:
    """How to connect to a fresh log in a folder, how to make it compact now, and which tests it cannot pass, with the reason."""

    connect: Callable[[Path], Broker]
    compact: Callable[[Broker], None]
    session_timeout_s: float = SESSION_TIMEOUT_S
    cannot: dict[str, str] = field(default_factory=dict)


ADAPTERS = {
    "sqlite": Adapter(lambda folder: SqliteBroker(folder / "log.db", session_timeout_s=SESSION_TIMEOUT_S), _compact_now),
}


@pytest.fixture(params=sorted(ADAPTERS))
def adapter(request: pytest.FixtureRequest) -> Adapter:
    chosen = ADAPTERS[request.param]
    reason = chosen.cannot.get(request.node.originalname)
    if reason:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    return chosen


@pytest.fixture
def connect(adapter: Adapter, tmp_path: Path) -> Iterator[Callable[[], Broker]]:
    clients: list[Broker] = []

    def new_client() -> Broker:
        clients.append(adapter.connect(tmp_path))
        return clients[-1]

    yield new_client
    for client in clients:
        client.close()


@pytest.fixture
def broker(connect: Callable[[], Broker]) -> Broker:
    return connect()


@pytest.fixture
def compact(adapter: Adapter) -> Callable[[Broker], None]:
    return adapter.compact


@pytest.fixture
def session_timeout_s(adapter: Adapter) -> float:
    return adapter.session_timeout_s * 1.3


class TestBrokers(BrokerContract):
    """Every test of the contract, on every adapter."""
