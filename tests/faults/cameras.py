"""Sixteen cameras over real RTSP for half an hour, on a real Kafka: what was seen, how late it was searchable, memory, lag.

    python -m tests.faults.cameras --minutes 30 --rtsp rtsp://127.0.0.1:8554/cam --rtsp ... --out cameras.json

The addresses are those of RTSP servers that loop a clip; each serves an equal share of the cameras. A third of the way the index worker
is stopped for a minute, at two thirds Kafka is, as a machine that hangs; the lag must come back to nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import NotReadyError
from pipeline.types import Camera, Filter, Tracklet
from services import wire
from services.adapters.faiss_gallery import FaissGallery
from services.adapters.kafka_broker import KafkaBroker
from services.adapters.kafka_client import KafkaConnection
from services.cameras import put_camera
from services.topics import COVERAGE, TRACKLETS
from tests.faults.cluster import Cluster, within


class Delays:
    """From the capture of a revision's last frame to its being searchable; closed ones apart, as closing waits for three seconds."""

    def __init__(self, cluster: Cluster) -> None:
        self.open, self.closed = list[tuple[float, float]](), list[tuple[float, float]]()  # (when, seconds)
        self._cluster = cluster
        self._waiting: dict[tuple[str, int], Tracklet] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._hear, self._look)]
        for thread in self._threads:
            thread.start()

    def _hear(self) -> None:
        with closing(KafkaBroker(KafkaConnection(self._cluster.kafka.bootstrap))) as broker:
            reader = broker.reader([TRACKLETS], start="latest")
            while not self._stop.is_set():
                try:
                    for message in reader.poll(0.2):
                        tracklet = wire.decode(Tracklet, message.value)
                        with self._lock:
                            self._waiting[tracklet.tracklet_id, tracklet.revision] = tracklet
                except NotReadyError:
                    self._stop.wait(0.2)

    def _look(self) -> None:
        within(60, (self._cluster.data / "index").is_dir)
        with closing(FaissGallery(self._cluster.data / "index", read_only=True)) as gallery:
            while not self._stop.wait(0.2):
                with self._lock:
                    waiting = dict(self._waiting)
                if not waiting:
                    continue
                revisions = {t.tracklet_id: t.revision for t in gallery.tracklets(sorted({name for name, _ in waiting}))}
                now_ns = time.time_ns()
                for (name, revision), tracklet in waiting.items():
                    if revisions.get(name, 0) >= revision:
                        delays = self.closed if tracklet.is_closed else self.open
                        delays.append((time.monotonic(), (now_ns - tracklet.ended_at_ns) / 1e9))
                        with self._lock:
                            del self._waiting[name, revision]

    def close(self) -> int:
        """Ends; gives how many revisions were never seen in the index."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return len(self._waiting)


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def lag_of_index(broker: KafkaBroker) -> int:
    committed = broker.groups().get("index", {})
    ends = {**broker.end_offsets(TRACKLETS), **broker.end_offsets(COVERAGE)}
    return sum(max(0, end - committed.get(partition, 0)) for partition, end in ends.items())


def quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"p50": round(float(np.percentile(values, 50)), 2), "p99": round(float(np.percentile(values, 99)), 2), "count": len(values)}


def run(rtsp: list[str], cameras: int, minutes: float, sampling_hz: float, side: int, pause_s: float, folder: Path) -> dict[str, Any]:
    """The whole of it."""
    cluster = Cluster(folder, extra={"SIGHTLINE_DETECT__SIDE": str(side), "SIGHTLINE_BROKER__SESSION_TIMEOUT_S": "10"})
    try:
        workers = cluster.start("index", "ingest", "ingest", "alert", "query")
        cluster.watch()
        time.sleep(8)
        for number in range(cameras):
            put_camera(cluster.broker, Camera(f"camera-{number:02d}", rtsp[number % len(rtsp)], sampling_hz, is_live=True))
        delays = Delays(cluster)
        began_s, began_ns = time.monotonic(), time.time_ns()
        pauses = {"index worker": minutes * 20, "Kafka": minutes * 40}  # seconds after the start
        memory: dict[str, list[tuple[float, float]]] = {}
        paused: list[tuple[float, float]] = []
        back_to_zero: dict[str, float | None] = {}
        while (at_s := time.monotonic() - began_s) < minutes * 60:
            for number, worker in enumerate(workers):
                memory.setdefault(f"{worker.name}-{number}", []).append((at_s, memory_mb(worker.process.pid)))
            for what, due_s in list(pauses.items()):
                if at_s >= due_s:
                    del pauses[what]
                    from_s = time.monotonic()
                    back_to_zero[what] = pause(cluster, workers[0].process.pid if what == "index worker" else None, pause_s)
                    paused.append((from_s - 2, time.monotonic() + 10))
                    print(f"{at_s:.0f} s: {what} stopped for {pause_s:.0f} s, lag 0 again {back_to_zero[what]} s after", flush=True)
            time.sleep(5)
        time.sleep(6)
        never = delays.close()
        with closing(FaissGallery(cluster.data / "index", read_only=True)) as gallery:
            accounts = gallery.coverage(Filter(from_ns=began_ns))
            tracklets = gallery.statistics().tracklets
        calm = lambda values: [s for at, s in values if not any(a <= at <= b for a, b in paused)]  # noqa: E731
        return {
            "minutes": minutes,
            "cameras": cameras,
            "sampling_hz": sampling_hz,
            "tracklets": tracklets,
            "coverage": coverage_of(accounts, cameras, minutes * 60),
            "capture_to_index_s": quantiles(calm(delays.open)),
            "capture_to_index_with_pauses_s": quantiles([s for _, s in delays.open]),
            "closed_to_index_s": quantiles(calm(delays.closed)),
            "revisions_never_indexed": never,
            "lag_zero_after_pause_s": back_to_zero,
            "memory_mb": {name: trend(samples) for name, samples in memory.items()},
            "restarts": {w.name: w.process.pid for w in workers if w.process.poll() is not None},
        }
    finally:
        cluster.close()


def pause(cluster: Cluster, pid: int | None, pause_s: float) -> float | None:
    """Stop a process (None: Kafka) for a while; gives how long after that the lag was nothing again."""
    if pid is None:
        cluster.kafka.freeze()
        time.sleep(pause_s)
        cluster.kafka.thaw()
    else:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(pause_s)
        os.kill(pid, signal.SIGCONT)

    def is_zero() -> bool:
        try:
            return lag_of_index(cluster.broker) <= 2  # a message may just have come
        except NotReadyError:
            return False

    waited_s = within(120, is_zero)
    return None if waited_s is None else round(waited_s, 1)


def coverage_of(accounts: Any, cameras: int, wanted_s: float) -> dict[str, Any]:
    """Of all cameras together: the share of the time seen, frames by what became of them."""
    gaps_s = sum(account.gap_s for account in accounts)
    seen_s = sum((account.to_ns - account.from_ns) / 1e9 for account in accounts) - gaps_s
    counts = {name: sum(getattr(account, name) for account in accounts) for name in ("seen", "sampled", "dropped", "corrupt")}
    return {
        "cameras": len({account.camera_id for account in accounts}),
        "share_seen": round(seen_s / (cameras * wanted_s), 4),
        "gap_s": round(gaps_s, 1),
        "dropped_of_sampled": round(counts["dropped"] / max(1, counts["dropped"] + counts["sampled"]), 4),
        **counts,
    }


def trend(samples: list[tuple[float, float]]) -> dict[str, float]:
    """Memory after a sixth of the time, most, and last; and megabytes an hour from there on."""
    late = [(at, size) for at, size in samples if at >= samples[-1][0] / 6 and size]
    if len(late) < 3:
        return {}
    slope = float(np.polyfit([at for at, _ in late], [size for _, size in late], 1)[0]) * 3600
    sizes = [size for _, size in late]
    return {"early": round(sizes[0]), "most": round(max(sizes)), "last": round(sizes[-1]), "mb_an_hour": round(slope, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtsp", action="append", required=True)
    parser.add_argument("--cameras", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--sampling-hz", type=float, default=1.0)
    parser.add_argument("--side", type=int, default=0, help="network pixels of the longer side, 0 = the network's usual")
    parser.add_argument("--pause-s", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("cameras.json"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sightline-cameras-") as folder:
        figures = run(chosen.rtsp, chosen.cameras, chosen.minutes, chosen.sampling_hz, chosen.side, chosen.pause_s, Path(folder))
    chosen.out.write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
