"""Shared by all tests: where the research data lies, when it is there at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The research data folder (SIGHTLINE_SHARED_DATA, else ../shared/data beside the checkout); skips where absent."""
    folder = Path(os.environ.get("SIGHTLINE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"research data not present at {folder}")
    return folder
