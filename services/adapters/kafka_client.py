"""What the Kafka adapters share: how to connect, and what Kafka's errors mean."""

from __future__ import annotations

import errno
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from pipeline.errors import NotReadyError, SettingsError

REQUEST_TIMEOUT_S = 10.0
BOOTSTRAP_TIMEOUT_S = 8.0


@dataclass(frozen=True, slots=True)
class KafkaConnection:
    """Where the brokers are and how to get in. Never printed: it may hold a password."""

    bootstrap_servers: str
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password: str = ""
    ssl_ca_file: Path | None = None
    ssl_certificate_file: Path | None = None
    ssl_key_file: Path | None = None
    ssl_check_hostname: bool = True
    client_id: str = "sightline"
    session_timeout_s: float = 10.0
    replication_factor: int = 1

    def __repr__(self) -> str:
        return f"KafkaConnection({self.bootstrap_servers}, {self.security_protocol})"

    def options(self) -> dict[str, Any]:
        """What every kafka-python client takes."""
        options: dict[str, Any] = {
            "bootstrap_servers": _addresses(self.bootstrap_servers),
            "kafka_client": _OpenClient,
            "client_id": self.client_id,
            "security_protocol": self.security_protocol,
            "request_timeout_ms": int(REQUEST_TIMEOUT_S * 1000),
            "bootstrap_timeout_ms": int(BOOTSTRAP_TIMEOUT_S * 1000),
            "reconnect_backoff_max_ms": 2_000,  # a broker that is back is found within two seconds
        }
        if self.security_protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        if self.security_protocol.endswith("SSL"):
            options["ssl_context"] = self._tls()
        return options

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=str(self.ssl_ca_file) if self.ssl_ca_file else None)
            context.check_hostname = self.ssl_check_hostname
            if self.ssl_certificate_file:
                context.load_cert_chain(self.ssl_certificate_file, self.ssl_key_file)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"broker.ssl_ca_file, ssl_certificate_file and ssl_key_file must be PEM files that can be read: {error}"
            ) from None
        return context


def _addresses(servers: str) -> list[str]:
    """host:port of each, or host alone; raises SettingsError for a port that is none."""
    found = [server.strip() for server in servers.split(",") if server.strip()]
    ports = [server.rpartition(":")[2] for server in found if ":" in server and not server.endswith("]")]
    if not found or not all(port.isdigit() and 0 < int(port) < 65_536 for port in ports):
        raise SettingsError(f"broker.bootstrap_servers must be host:port, with a comma between several, got {servers!r}")
    return found


# ---------------------------------------------------------------------------------------- the first connection


class _OpenManager(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python has no types
    """kafka-python's connections, but what keeps the first broker from being reached is told instead of "Unable to bootstrap".

    What only settings can mend is raised at once, until a connection has worked; afterwards a broker may refuse for a while.
    """

    def __init__(self, net: Any, **configs: Any) -> None:
        super().__init__(net, **configs)
        self._failure: BaseException | None = None
        self._has_worked = False

    async def _do_bootstrap(self, deadline: float | None) -> Any:
        try:
            result = await super()._do_bootstrap(deadline)
        except kafka_errors.KafkaTimeoutError:
            if self._failure is None:
                raise
            raise kafka_errors.KafkaTimeoutError(_words(self._failure)) from None
        self._has_worked, self._failure = True, None
        return result

    def get_connection(self, node_id: Any, *rest: Any, **options: Any) -> Any:
        if not self._has_worked and self._failure is not None and _must_be_set(self._failure):
            raise self._failure
        connection = super().get_connection(node_id, *rest, **options)
        if self.cluster.is_bootstrap(node_id):
            for future in (connection.init_future, connection.close_future):
                future.add_errback(self._note)
        return connection

    def _note(self, failure: BaseException) -> None:
        if self._failure is None or not isinstance(failure, kafka_errors.RequestTimedOutError):  # a last try, cut short, says less
            self._failure = failure

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        transport = await super()._build_transport(node, timeout_at=timeout_at)
        transport._sock_recv = _answer_first(transport._sock_recv)
        return transport


def _answer_first(receive: Callable[[], tuple[bytes, Any]]) -> Callable[[], tuple[bytes, Any]]:
    """A broker that refuses a password says so and hangs up: kafka-python threw the answer away where both came at once."""

    def received() -> tuple[bytes, Any]:
        data, error = receive()
        return (data, None) if data else (data, error)  # the end of the connection comes again with the next look

    return received


class _OpenClient(KafkaNetClient):  # type: ignore[misc]  # kafka-python has no types
    """kafka-python's client on the connections above."""

    def __init__(self, **configs: Any) -> None:
        net = NetworkSelector(**configs)
        super().__init__(net=net, manager=_OpenManager(net, **configs), **configs)


# -------------------------------------------------------------------------------------------------- errors

_WRONG_SETTINGS: Mapping[type[Exception], str] = {
    kafka_errors.SaslAuthenticationFailedError: "refused broker.sasl_username and its password: check them",
    kafka_errors.UnsupportedSaslMechanismError: "does not know broker.sasl_mechanism: use one that it offers",
    kafka_errors.IllegalSaslStateError: "wants another broker.security_protocol: use the one of that listener",
    kafka_errors.TopicAuthorizationFailedError: "does not let this user use a topic: grant it, as deploy/RUNBOOK.md says",
    kafka_errors.GroupAuthorizationFailedError: "does not let this user join the group: grant it",
    kafka_errors.ClusterAuthorizationFailedError: "does not let this user do that: grant it",
    kafka_errors.UnsupportedVersionError: "is too old for what was asked: Kafka 3.7 or newer is needed",
    kafka_errors.KafkaConfigurationError: "cannot be used with these settings",
    kafka_errors.RecordListTooLargeError: "takes only smaller messages: `sightline topics check` shows the drift",
    kafka_errors.MessageSizeTooLargeError: "takes only smaller messages: `sightline topics check` shows the drift",
    kafka_errors.InvalidReplicationFactorError: "cannot keep that many copies: lower broker.replication_factor",
    kafka_errors.InvalidSessionTimeoutError: "does not allow this broker.session_timeout_s: it wants 6 s or more, unless set up otherwise",
    kafka_errors.InconsistentGroupProtocolError: "has members of another program in this group: choose another group",
}


@contextmanager
def plain_errors(servers: str) -> Iterator[None]:
    """Kafka's errors as ours: what settings can mend is a SettingsError, everything else is the world not being ready."""
    try:
        yield
    except kafka_errors.KafkaError as error:
        raise as_ours(error, servers) from error
    except (OSError, TimeoutError) as error:
        raise NotReadyError(f"Kafka at {servers} does not answer ({error}): check broker.bootstrap_servers and that it runs") from error


def as_ours(error: BaseException, servers: str) -> Exception:
    """The error of ours for one of Kafka's."""
    says = _must_be_set(error)
    if says:
        return SettingsError(f"Kafka at {servers} {says} ({_words(error)})")
    if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
        return NotReadyError(f"Kafka at {servers} does not have a topic that was there: `sightline topics check` says which")
    return NotReadyError(
        f"Kafka at {servers} does not answer as it must: {_words(error)};"
        " check broker.bootstrap_servers and security_protocol, and that it runs"
    )


def _must_be_set(error: BaseException) -> str:
    """What Kafka wants where only other settings can help; "" where waiting may."""
    if isinstance(error, kafka_errors.KafkaConnectionError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "shows a certificate that is not trusted: check broker.ssl_ca_file"
    return next((says for kind, says in _WRONG_SETTINGS.items() if isinstance(error, kind)), "")


def _words(error: BaseException) -> str:
    text = str(error.args[0] if error.args else error).strip() or type(error).__name__
    code = re.fullmatch(r"\d+ (E[A-Z]+)", text)  # 111 ECONNREFUSED
    if code and hasattr(errno, code[1]):
        text = os.strerror(getattr(errno, code[1])).lower()
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:300] + "…"
