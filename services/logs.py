"""Structured logs: text for people, one JSON object a line for machines. Never names, pictures, query texts or secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import TextIO

_CREDENTIALS = re.compile(r"(\w+://)[^/\s]+@")  # greedy: a password may hold an @
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up_logs(level: str = "info", form: str = "text", stream: TextIO | None = None) -> None:
    """Send the logs of this process to ``stream`` (standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger("sightline")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
    # kafka-python tells every failed connection several times over; what matters comes as an error, which we log in our words.
    kafka = logging.getLogger("kafka")
    kafka.handlers[:] = [handler]
    kafka.setLevel(logging.WARNING if level.upper() == "DEBUG" else logging.CRITICAL)
    kafka.propagate = False


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The extra fields of a record: ``log.info("opened", extra={"camera": "gate"})``."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message and the extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return mask(json.dumps(line, default=str))


class TextFormatter(logging.Formatter):
    """``04:05:06 info sightline.capture: reconnected camera=gate``."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        extra = "".join(f" {key}={value}" for key, value in fields_of(record).items())
        text = f"{moment} {record.levelname.lower()} {record.name}: {record.getMessage()}{extra}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return mask(text)


def mask(text: str) -> str:
    """``text`` without the credentials of any URI in it."""
    return _CREDENTIALS.sub(r"\1***@", text)
