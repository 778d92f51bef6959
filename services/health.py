"""/metrics, /live and /ready over HTTP, for Prometheus and for whatever restarts processes."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from pipeline.errors import SettingsError

log = logging.getLogger("sightline.health")

Check = Callable[[], bool | str]
Render = Callable[[], tuple[bytes, str]]


class HealthServer:
    """Serves until ``close``. /live: the process answers. /ready: every registered check is True, else 503 with the reasons as JSON.

    ``render`` gives the body and content type of /metrics (``Metrics.render``). Port 0 takes a free one; see ``port``.
    Raises SettingsError when the address is taken or not allowed.
    """

    def __init__(self, render: Render, host: str = "127.0.0.1", port: int = 0) -> None:
        self._checks: dict[str, Check] = {}
        self._lock = threading.Lock()
        self._render = render
        try:
            self._server = ThreadingHTTPServer((host, port), self._handler())
        except (OSError, OverflowError) as error:
            raise SettingsError(
                f"server.host and server.port must be free to listen on, got {host}:{port} ({error}): choose another"
            ) from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def register(self, name: str, check: Check) -> None:
        """``check`` is asked at each /ready: True is ready; False or a text is the reason why not; an exception counts as one."""
        with self._lock:
            self._checks[name] = check

    def reasons(self) -> dict[str, str]:
        """What is not ready, and why."""
        with self._lock:
            checks = dict(self._checks)
        found = {name: _ask(check) for name, check in checks.items()}
        return {name: reason for name, reason in found.items() if reason}

    def answer(self, path: str) -> tuple[int, bytes, str]:
        """Status, body and content type for a path."""
        match path.partition("?")[0]:
            case "/metrics":
                body, kind = self._render()
                return 200, body, kind
            case "/live":
                return _json(200, {"live": True})
            case "/ready":
                reasons = self.reasons()
                return _json(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})
            case _:
                return _json(404, {"error": "ask /metrics, /live or /ready"})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # a client that connects and says nothing does not hold a thread

            def do_GET(self) -> None:
                try:
                    status, body, kind = server.answer(self.path)
                except Exception:  # a metric that fails must not look like a dead process
                    log.exception("cannot answer %s", self.path.partition("?")[0])
                    status, body, kind = _json(500, {"error": "see the log"})
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # scrapes would fill the log
                pass

        return Handler


def _ask(check: Check) -> str:
    try:
        said = check()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if said is True else (said or "not ready")


def _json(status: int, value: dict[str, Any]) -> tuple[int, bytes, str]:
    return status, json.dumps(value).encode(), "application/json"
