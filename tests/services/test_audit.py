from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from pipeline.types import Probe
from services import audit
from services.adapters.sqlite_broker import SqliteBroker
from services.topics import create_all


def test_an_audit_record_says_who_and_why_but_not_the_words(tmp_path: Path) -> None:
    probes = (Probe("text", text="woman in a red coat"),)
    with closing(SqliteBroker(tmp_path / "log.sqlite")) as broker:
        create_all(broker)
        audit.record(broker, "search", "q1", "operator", "lost child", {"probes": audit.kinds(probes)})
        with closing(broker.consumer(["audit"], "reader")) as consumer:
            message = consumer.poll(2.0)[0]
    entry = json.loads(message.value or b"")
    assert (entry["action"], entry["issued_by"], entry["purpose"], entry["probes"]) == ("search", "operator", "lost child", ["text"])
    assert b"red coat" not in (message.value or b"")
