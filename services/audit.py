"""Who looked for whom, and why: one record on the audit topic for each search, watch and removal.

The record holds the kinds of the probes, never their words, pictures or vectors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

from pipeline.ports import Broker
from services.topics import AUDIT


def record(broker: Broker, action: str, subject: str, issued_by: str, purpose: str, details: Mapping[str, object] | None = None) -> None:
    """Append one audit record and wait until it is durable; the action must not happen when this raises."""
    entry = {
        "schema_version": 1,
        "at_ns": time.time_ns(),
        "action": action,
        "subject": subject,
        "issued_by": issued_by,
        "purpose": purpose,
        **(details or {}),
    }
    broker.produce(AUDIT, json.dumps(entry).encode(), key=subject.encode())
    broker.flush()


def kinds(probes: Sequence[object]) -> list[str]:
    """The kinds of the probes, for the record."""
    return [str(getattr(probe, "kind", "?")) for probe in probes]
