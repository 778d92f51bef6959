"""All workers of one machine: started, watched, started again when they die, stopped together.

The workers are processes of their own, so that one that dies takes nothing with it; they meet only in the broker and the index.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.backoff import Backoff
from pipeline.errors import SettingsError
from services.metrics import Metrics
from services.settings import Settings
from services.worker import stop_on_signals

log = logging.getLogger("sightline.up")

WORKERS = ("index", "query", "alert", "ingest")
RESTART_FIRST_S, STEADY_S = 0.5, 60.0
STOP_WITHIN_S = 10.0


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    pause: Backoff = field(default_factory=lambda: Backoff(RESTART_FIRST_S))
    start_at: float = 0.0
    fatal: bool = False

    def state(self) -> bool | str:
        """True when it works; else why not."""
        if self.process is not None and self.process.poll() is None:
            return True
        return f"not running, starts again in {max(0.0, self.start_at - time.monotonic()):.1f} s"


class Supervisor:
    """Runs the workers until SIGTERM, SIGINT or the time is up."""

    def __init__(self, settings: Settings, settings_file: Path | None) -> None:
        self._settings = settings
        self._file = settings_file
        self._children = [_Child(name) for name in WORKERS]
        self._stop = threading.Event()
        self._metrics = Metrics()

    def run(self, for_s: float = 0.0) -> None:
        """Work until stopped; raises SettingsError when a worker refuses its settings (starting it again would not help)."""
        from services.wiring import health_server

        ends_at = time.monotonic() + for_s if for_s else float("inf")
        stop_on_signals(self._stop)
        cameras = self._declare_cameras()
        server = health_server(self._settings, {child.name: child.state for child in self._children}, self._metrics)
        with server:
            log.info("up", extra={"port": server.port, "cameras": cameras})
            try:
                while not self._stop.wait(0.2) and time.monotonic() < ends_at:
                    for child in self._children:
                        self._tend(child)
                        self._metrics.workers_up.labels(child.name).set(child.process is not None)
                    if any(child.fatal for child in self._children):
                        break
            finally:
                self._stop_all()
        refused = [child.name for child in self._children if child.fatal]
        if refused:
            raise SettingsError(f"worker {', '.join(refused)} refused to start: see its message above")

    def _declare_cameras(self) -> int:
        """The cameras of the settings file onto their topic; gives how many there are now, those added by hand among them."""
        from services.cameras import declare, read_cameras
        from services.wiring import open_broker

        with open_broker(self._settings) as broker:
            declare(broker, self._settings.camera_list())
            cameras = len(read_cameras(broker))
        if not cameras:
            raise SettingsError(
                "`sightline up` must have at least one camera: add [[cameras]] with camera_id and uri to sightline.toml,"
                " or `sightline camera add`"
            )
        return cameras

    def _tend(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.start_at:
                command = worker_command(child.name, self._settings, self._file)
                child.process = subprocess.Popen([*command, "--port", str(worker_port(child.name, self._settings))])
                child.started_at = now
            return
        code = child.process.poll()
        if code is None:
            return
        child.process = None
        child.fatal = code == 2
        if now - child.started_at > STEADY_S:
            child.pause.reset()
        child.start_at = now + child.pause.next_s()
        self._metrics.restarts.labels(child.name).inc()
        log.warning("worker ended", extra={"worker": child.name, "code": code, "again_in_s": round(child.start_at - now, 1)})

    def _stop_all(self) -> None:
        running = [child.process for child in self._children if child.process is not None and child.process.poll() is None]
        for process in running:
            process.terminate()
        ends_at = time.monotonic() + STOP_WITHIN_S
        for process in running:
            try:
                process.wait(max(0.1, ends_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("worker did not stop in time, killed", extra={"pid": process.pid})
                process.kill()
                process.wait()


def worker_command(name: str, settings: Settings, file: Path | None) -> list[str]:
    """How to start one worker as a process of its own."""
    command = [sys.executable, "-m", "services"]
    if file:
        command += ["--settings", str(file)]
    return [*command, "--data", str(settings.storage.data_folder), "worker", name]


def worker_port(name: str, settings: Settings) -> int:
    """Where a worker of `sightline up` serves its own /metrics: server.port + 1 and on, in the order of WORKERS; 0 (any) stays 0."""
    return settings.server.port and settings.server.port + 1 + WORKERS.index(name)


def run_worker(name: str, settings: Settings, port: int | None = None) -> None:
    """One worker in this process until SIGTERM or SIGINT; the last batch is kept. With ``port`` it serves /metrics, /live and /ready."""
    from services.wiring import health_server, make_worker

    stop = threading.Event()
    stop_on_signals(stop)
    metrics = Metrics()
    work = make_worker(name, settings, stop, metrics, expires=True)  # live cameras: footage of old days is never taken in here
    if port is None:
        work()
        return
    served = settings.model_copy(update={"server": settings.server.model_copy(update={"port": port})})
    with health_server(served, {}, metrics) as server:
        log.info("worker up", extra={"worker": name, "port": server.port})
        work()
