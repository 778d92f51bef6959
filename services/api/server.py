"""The process of the gateway: a socket, uvicorn on it, stopped by a signal or by what cannot be waited for."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import uvicorn

from pipeline.errors import SettingsError
from pipeline.ports import MediaStore
from services.api.access import is_loopback
from services.api.alerts import AlertLog
from services.api.follow import OpenBroker
from services.api.gateway import Gateway
from services.settings import ApiSettings, Settings
from services.tracing import Tracer, make_tracer
from services.worker import stop_on_signals

log = logging.getLogger("sightline.api")

STOP_WITHIN_S = 5


class ApiServer:
    """Listens from the start, serves while ``run`` runs. Port 0 takes a free one; see ``port``.

    Raises SettingsError for an address that is taken or must not be open, and for TLS files that cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        open_broker: OpenBroker,
        media: MediaStore,
        stop: threading.Event,
        alerts: AlertLog | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._stop = stop
        self._gateway = Gateway(settings, open_broker, media, stop.set, alerts=alerts, tracer=tracer)
        self._config = _config(self._gateway, settings.api)
        self._socket = _listen(settings.api)
        if self._gateway.access.is_open:
            log.warning("no client is configured: this machine alone is answered, without tokens", extra={"port": self.port})
        elif not is_loopback(settings.api.host) and not settings.api.tls_certificate_file:
            log.warning("tokens travel unencrypted: set api.tls_certificate_file, or put a proxy with TLS before it")

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def run(self) -> None:
        """Serve until ``stop``; raises what made it impossible to go on."""
        log.info("api up", extra={"port": self.port})
        try:
            _Server(self._config, self._gateway, self._stop).run([self._socket])
        finally:
            self._socket.close()
        if self._gateway.failure is not None:
            raise self._gateway.failure


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to us and lets go of those who wait when it stops."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, stop: threading.Event) -> None:
        super().__init__(config)
        self._gateway, self._stop = gateway, stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        return self._stop.is_set() or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.release()
        await super().shutdown(sockets)


def _config(gateway: Gateway, settings: ApiSettings) -> uvicorn.Config:
    config = uvicorn.Config(
        gateway.app(),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,  # it would hold paths and queries; the gateway logs each answer itself
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_WITHIN_S,
        ssl_certfile=settings.tls_certificate_file,
        ssl_keyfile=settings.tls_key_file,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"api.tls_certificate_file and tls_key_file must be PEM files that belong together: {error}") from None
    return config


def _listen(settings: ApiSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise SettingsError(
            f"api.host and api.port must be free to listen on, got {settings.host}:{settings.port} ({error}): choose another"
        ) from None
    return listening


def run_api(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    from services.wiring import open_broker, open_media

    stop = threading.Event()
    stop_on_signals(stop)
    with closing(make_tracer(settings.tracing.endpoint, "api", settings.tracing.sample_ratio)) as tracer:
        ApiServer(settings, lambda: open_broker(settings), open_media(settings), stop, tracer=tracer).run()
