"""A TCP proxy on loopback that can cut the network between workers and Kafka, as a pulled cable or as a firewall does."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Literal

Mode = Literal["pass", "refuse", "swallow"]


class Proxy:
    """Hands every connection on to ``target`` while the mode is pass. refuse: connections end at once; swallow: bytes vanish."""

    def __init__(self, target: int = 0) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._mode: Mode = "pass"
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._is_closed = False
        threading.Thread(target=self._accept, daemon=True, name="proxy").start()

    def set(self, mode: Mode) -> None:
        """From now on; back to pass ends what was swallowed, as the ends have lost count of it."""
        with self._lock:
            was, self._mode = self._mode, mode
            if mode == "refuse" or (mode == "pass" and was == "swallow"):
                for pair in list(self._pairs):
                    self._end(pair)

    def close(self) -> None:
        self._is_closed = True
        self._listener.close()
        self.set("refuse")

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._mode == "refuse":
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._carry, args=(pair,), daemon=True, name="proxied").start()

    def _carry(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with contextlib.suppress(OSError, ValueError), selectors.DefaultSelector() as selector:
            for source, sink in (pair, pair[::-1]):
                selector.register(source, selectors.EVENT_READ, sink)
            while True:
                for key, _ in selector.select(1.0):
                    data = key.fileobj.recv(262_144)  # type: ignore[union-attr]
                    if not data:
                        raise OSError
                    if self._mode == "pass":
                        key.data.sendall(data)
        with self._lock:
            self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
