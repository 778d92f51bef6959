"""Rates and wake latency of a broker, as JSON:  python -m tests.contracts.broker_rates"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.ports import TopicSpec
from services.adapters.sqlite_broker import SqliteBroker
from services.worker import next_offsets

MESSAGE = bytes(1000)
COUNT = 20_000
WAKES = 100


def produce_per_s(broker: SqliteBroker, batch: int) -> float:
    """1 kB messages a second, durable after each batch."""
    count = min(COUNT, batch * 400)
    started_s = time.monotonic()
    for i in range(count):
        broker.produce("t", MESSAGE, b"camera-%d" % (i % 20))
        if i % batch == batch - 1:
            broker.flush()
    broker.flush()
    return round(count / (time.monotonic() - started_s))


def consume_per_s(broker: SqliteBroker) -> float:
    """1 kB messages a second, polled and committed 500 at a time."""
    consumer = broker.consumer(["t"], "rates")
    count, started_s = 0, time.monotonic()
    while consumer.lag():
        messages = consumer.poll(1.0, 500)
        consumer.commit(next_offsets(messages))
        count += len(messages)
    return round(count / (time.monotonic() - started_s))


def wake_ms(broker: SqliteBroker, log_file: Path) -> dict[str, float]:
    """From the start of produce in another process to the message in hand, at random phases of the waiting."""
    consumer = broker.consumer(["wake"], "rates", start="latest")
    process = subprocess.Popen([sys.executable, "-m", "tests.contracts.broker_rates", str(log_file)])
    delays: list[float] = []
    while len(delays) < WAKES:
        delays += [(time.time() - float(message.value or b"")) * 1000 for message in consumer.poll(5.0)]
    process.wait()
    delays.sort()
    return {"median": round(delays[WAKES // 2], 1), "p95": round(delays[int(WAKES * 0.95)], 1), "most": round(delays[-1], 1)}


def idle_cpu_share(broker: SqliteBroker) -> float:
    """The share of one core that a waiting consumer takes."""
    consumer = broker.consumer(["wake"], "idle", start="latest")
    before_s = time.process_time()
    consumer.poll(5.0)
    return round((time.process_time() - before_s) / 5.0, 4)


def main() -> None:
    if len(sys.argv) > 1:
        with SqliteBroker(Path(sys.argv[1])) as broker:
            for i in range(WAKES):
                time.sleep(0.05 + 0.0017 * (i % 37))
                broker.produce("wake", repr(time.time()).encode())
                broker.flush()
        return
    with tempfile.TemporaryDirectory() as folder:
        log_file = Path(folder) / "log.db"
        with SqliteBroker(log_file) as broker:
            broker.create_topics([TopicSpec("t", partitions=8), TopicSpec("wake")])
            figures: dict[str, Any] = {f"produce_per_s_batch_{batch}": produce_per_s(broker, batch) for batch in (1, 10, 100, 500)}
            figures["consume_per_s"] = consume_per_s(broker)
            figures["wake_ms"] = wake_ms(broker, log_file)
            figures["idle_cpu_share"] = idle_cpu_share(broker)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
