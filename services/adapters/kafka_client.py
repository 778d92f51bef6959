"""What the Kafka adapters share: how to connect, and what Kafka's errors mean."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import errors as kafka_errors

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
            "bootstrap_servers": [server.strip() for server in self.bootstrap_servers.split(",") if server.strip()],
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
    for kind, says in _WRONG_SETTINGS.items():
        if isinstance(error, kind):
            return SettingsError(f"Kafka at {servers} {says} ({_words(error)})")
    if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
        return NotReadyError(f"Kafka at {servers} does not have a topic that was there: `sightline topics check` says which")
    return NotReadyError(f"Kafka at {servers} does not answer as it must: {_words(error)}; check broker.bootstrap_servers and that it runs")


def _words(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"
