"""Who may ask what: bearer tokens, of which only sha256 sums are kept, and their roles."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from dataclasses import dataclass

from pipeline.errors import SettingsError
from services.api.refusals import RefusedError
from services.settings import ApiSettings

SEARCH, WATCH, READ = "search", "watch", "read"
LOCAL = "local"  # who asks where no client is configured


@dataclass(frozen=True, slots=True)
class Client:
    """A program that asks: its name in the audit log, and what it may."""

    name: str
    roles: frozenset[str]


def new_token() -> tuple[str, str]:
    """A fresh token of 256 random bits and its sha256 as hex."""
    token = secrets.token_urlsafe(32)
    return token, sha256_of(token)


def sha256_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Access:
    """Tells who asks. Without clients only this machine is answered, without tokens."""

    def __init__(self, settings: ApiSettings) -> None:
        """Raises SettingsError when nobody is configured and others than this machine could ask."""
        self._clients = [(each.token_sha256, Client(each.name, frozenset(each.roles))) for each in settings.clients]
        if self.is_open and not is_loopback(settings.host):
            raise SettingsError(
                f"api.host must be a loopback address such as 127.0.0.1 while no client is configured, got {settings.host!r}:"
                " add [[api.clients]] (`sightline api token` prints one)"
            )

    @property
    def is_open(self) -> bool:
        """Whether this machine needs no token."""
        return not self._clients

    def known(self, authorization: str, host: str) -> Client | None:
        """The client of a request, from its Authorization and Host headers; None for nobody we know.

        The Host of an open gateway must be this machine's: a web page elsewhere that has its name point here is not answered.
        """
        if self.is_open:
            return Client(LOCAL, frozenset((SEARCH, WATCH, READ))) if is_loopback(_without_port(host)) else None
        scheme, _, token = authorization.partition(" ")
        given = sha256_of(token.strip())
        found = None
        for expected, client in self._clients:  # every one is compared, and each in constant time
            if hmac.compare_digest(expected, given):
                found = client
        return found if scheme.lower() == "bearer" else None

    def allowed(self, authorization: str, host: str, role: str) -> Client:
        """The client of a request, when it has ``role``; raises RefusedError 401 or 403."""
        client = self.known(authorization, host)
        if client is None and self.is_open:
            raise RefusedError(403, "no client is configured, so only this machine is answered, at 127.0.0.1 or localhost")
        if client is None:
            raise RefusedError(401, "the request must carry the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        if role not in client.roles:
            raise RefusedError(403, f"client {client.name} must have the role {role}, it has {', '.join(sorted(client.roles))}")
        return client


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
