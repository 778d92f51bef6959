"""Workers as processes over a real Kafka, each started again when it dies, and the work that is put to them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInputError, NotReadyError
from pipeline.types import BODY, TEXT, Alert, Embedding, Probe, Ranking, Tracklet, Watch
from services import wire
from services.adapters.faiss_gallery import FaissGallery
from services.adapters.kafka_broker import KafkaBroker
from services.adapters.kafka_client import KafkaConnection
from services.settings import load_settings
from services.topics import ALERTS, RANKINGS, TRACKLETS, WATCHES, create_all
from services.wiring import look_encoder
from tests.faults.proxy import Proxy
from tests.kafka_server import KafkaServer

ROOT = Path(__file__).parents[2]
SESSION_S = 6.0
RESTART_AFTER_S = 0.5
START_NS = 1_780_000_000_000_000_000
S = 1_000_000_000


class Process:
    """One worker; ``keeps``: it is started again when it dies, as a supervisor does."""

    def __init__(self, cluster: Cluster, name: str, number: int, environment: dict[str, str]) -> None:
        self.name, self.keeps = name, True
        self._cluster, self._environment = cluster, environment
        self.log_file = cluster.folder / f"{name}-{number}.log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "services", "--log-level", "info", "worker", self.name]
        with self.log_file.open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **self._environment}, stdout=log, stderr=log)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def tend(self) -> None:
        if self.keeps and self.process.poll() is not None:
            time.sleep(RESTART_AFTER_S)
            if self.keeps:
                self.process = self._start()

    def end(self) -> None:
        self.keeps = False
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Cluster:
    """Kafka, workers, a publisher that cannot lose anything, and ears for alerts and rankings."""

    def __init__(self, folder: Path, *, is_proxied: bool = False, data: Path | None = None, extra: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.proxy = Proxy() if is_proxied else None
        self.kafka = KafkaServer(folder / "kafka", proxied=self.proxy.port if self.proxy else 0).start()
        if self.proxy:
            self.proxy.target = self.kafka.behind_proxy
        self.data = data or folder / "data"
        self.environment = {
            "SIGHTLINE_BROKER__KIND": "kafka",
            "SIGHTLINE_BROKER__BOOTSTRAP_SERVERS": f"127.0.0.1:{self.proxy.port}" if self.proxy else self.kafka.bootstrap,
            "SIGHTLINE_BROKER__SESSION_TIMEOUT_S": str(SESSION_S),
            "SIGHTLINE_STORAGE__DATA_FOLDER": str(self.data),
            "SIGHTLINE_INDEX__RETENTION_DAYS": "0",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **(extra or {}),
        }
        self.broker = KafkaBroker(KafkaConnection(self.kafka.bootstrap, session_timeout_s=SESSION_S))
        create_all(self.broker)
        self.spaces = look_encoder(load_settings(environment={})).spaces
        self.alerts: Counter[str] = Counter()
        self.rankings: Counter[str] = Counter()
        self.published = 0
        self._processes: list[Process] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._tend, self._listen)]
        for thread in self._threads:
            thread.start()

    def start(self, *names: str, **environment: str) -> list[Process]:
        made = [Process(self, name, len(self._processes) + i, {**self.environment, **environment}) for i, name in enumerate(names)]
        self._processes += made
        return made

    def of(self, name: str) -> list[Process]:
        return [process for process in self._processes if process.name == name and process.keeps]

    def _tend(self) -> None:
        while not self._stop.wait(0.05):
            for process in list(self._processes):
                process.tend()

    def _listen(self) -> None:
        reader = None
        with closing(KafkaBroker(KafkaConnection(self.kafka.bootstrap))) as broker:
            while not self._stop.is_set():
                try:
                    reader = reader or broker.reader([ALERTS, RANKINGS])
                    for message in reader.poll(0.2):
                        if message.topic == ALERTS:
                            self.alerts[wire.decode(Alert, message.value).tracklet_id] += 1
                        else:
                            self.rankings[wire.decode(Ranking, message.value).query_id] += 1
                except NotReadyError:
                    self._stop.wait(0.2)

    # work

    def watch(self) -> None:
        """A watch that meets the tracklets that ``tracklet`` makes as hits, and no other."""
        embeddings = tuple(Embedding(modality, self.spaces[modality], unit("the one", modality)) for modality in (BODY, TEXT))
        made = Watch("watch", (Probe("look-alike", embeddings=embeddings),), 0.8, purpose="test")
        self.broker.produce(WATCHES, wire.encode(made), b"watch")
        self.broker.flush()

    def tracklet(self, name: str, number: int, is_hit: bool) -> Tracklet:
        """As an ingest worker makes them: fifty boxes, a body and a text-aligned vector."""
        start = START_NS + number * S
        at = np.arange(50) * S // 10 + start
        who = "the one" if is_hit else f"{name} {number}"
        vectors = [unit(who, modality) + (0.02 * unit(f"{name} {number}", modality)) for modality in (BODY, TEXT)]
        return Tracklet(
            tracklet_id_of(name, number),
            1,
            f"camera-{number % 16}",
            int(at[0]),
            int(at[-1]),
            at,
            np.tile(np.float32([10, 20, 60, 160]), (50, 1)),
            np.ones(50, np.float32),
            tuple(Embedding(m, self.spaces[m], v) for m, v in zip((BODY, TEXT), vectors, strict=True)),
            is_closed=True,
        )

    def publish(self, name: str, count: int, over_s: float, ids: set[str], hits: set[str], hit_every: int = 10) -> None:
        """Tracklets onto their topic, durable when this returns, however long that takes.

        ids, hits: are given the ids as they go out, and those that must alert.
        """
        for number in range(count):
            tracklet = self.tracklet(name, number, number % hit_every == 0)
            ids.add(tracklet.tracklet_id)
            if number % hit_every == 0:
                hits.add(tracklet.tracklet_id)
            self.produce(TRACKLETS, wire.encode(tracklet), tracklet.camera_id.encode())
            if over_s:
                self.flush()
                time.sleep(over_s / count)
        self.flush()
        self.published += count

    def produce(self, topic: str, value: bytes | None, key: bytes | None) -> None:
        patiently(lambda: self.broker.produce(topic, value, key))

    def flush(self) -> None:
        patiently(lambda: self.broker.flush(2.0))

    # looking

    def found(self, ids: Iterable[str]) -> int:
        """How many of the tracklets are in the index."""
        try:
            with closing(FaissGallery(self.data / "index", read_only=True)) as gallery:
                return len(gallery.tracklets(sorted(ids)))
        except NotReadyError:
            return 0

    def in_index(self) -> tuple[int, dict[str, int]]:
        with closing(FaissGallery(self.data / "index", read_only=True)) as gallery:
            held = gallery.statistics()
            return held.tracklets, dict(held.vectors)

    def close(self) -> None:
        self._stop.set()
        for process in self._processes:
            process.keeps = False
            process.process.terminate()
        for process in self._processes:
            process.end()
        for thread in self._threads:
            thread.join(5)
        with suppress(NotReadyError):
            self.broker.close()
        self.kafka.stop()
        if self.proxy:
            self.proxy.close()


def unit(*seed: Any) -> np.ndarray:
    """A unit vector that belongs to ``seed``; those of two seeds are all but at right angles."""
    number = int.from_bytes(hashlib.blake2b(repr(seed).encode(), digest_size=8).digest(), "little")
    vector = np.random.default_rng(number).standard_normal(256).astype(np.float32)
    return vector / np.linalg.norm(vector)


def tracklet_id_of(name: str, number: int) -> str:
    return hashlib.blake2b(f"{name}/{number}".encode(), digest_size=8).hexdigest()


def patiently(act: Callable[[], None]) -> None:
    """Until it works: what a producer that must not lose anything does."""
    while True:
        try:
            act()
            return
        except BadInputError:
            raise
        except NotReadyError:
            time.sleep(0.2)


def within(longest_s: float, is_done: Callable[[], bool]) -> float | None:
    """Seconds until it was done, None when it never was."""
    started_s = time.monotonic()
    while time.monotonic() - started_s < longest_s:
        if is_done():
            return time.monotonic() - started_s
        time.sleep(0.15)
    return None


def spread(values: Sequence[float]) -> str:
    """Median and most, in seconds."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.1f} / {ordered[-1]:.1f}" if ordered else "-"
