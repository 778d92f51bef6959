"""What every command gets, and how results are printed."""

from __future__ import annotations

import getpass
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from pipeline.errors import SettingsError
from services.settings import Settings


@dataclass(frozen=True, slots=True)
class State:
    """Settings in force and the file they came from."""

    settings: Settings
    settings_file: Path | None

    def purpose(self, given: str) -> str:
        """The stated purpose; raises SettingsError when one is required and none was given."""
        if not given.strip() and self.settings.access.require_purpose:
            raise SettingsError(
                'every search and watch must say why: add --purpose "lost child, incident 12" (it goes into the audit log; '
                "access.require_purpose = false turns this off)"
            )
        return given.strip()


def who() -> str:
    """The operating system's user, for the audit log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2, default=str))


def clock(at_ns: int) -> str:
    """UTC nanoseconds as ``2026-11-21 04:05:06.7``."""
    if not 0 < at_ns < 2**61:
        return "-"
    return datetime.fromtimestamp(at_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-5]


def parse_time(text: str | None, default_ns: int) -> int:
    """``2026-11-21T04:05``, ``2026-11-21 04:05:06`` (UTC unless it carries an offset) to nanoseconds; raises SettingsError."""
    if not text:
        return default_ns
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"a time must read like 2026-11-21T04:05:06 (UTC), got {text!r}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1e9)
