"""A real Apache Kafka for tests: one node in KRaft mode on loopback ports, its jars from Maven Central, its log in a temporary folder.

``KAFKA_BOOTSTRAP_SERVERS`` names one that runs already; what needs a broker of its own (killing it, passwords) is skipped then.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

KAFKA_VERSION = "4.1.1"
HEAP = "512m"
STARTS_WITHIN_S = 60.0

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>sightline</groupId><artifactId>kafka-for-tests</artifactId><version>1</version><dependencies><dependency>
<groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version></dependency></dependencies></project>
"""

_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners={listeners}
advertised.listeners={advertised}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,PROXIED:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={logs}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
num.partitions=1
log.cleaner.backoff.ms=200
log.cleaner.dedupe.buffer.size=4194304
log.cleaner.threads=1
num.network.threads=2
num.io.threads=2
background.threads=2
log.segment.delete.delay.ms=100
file.delete.delay.ms=100
{more}
"""


class NoKafkaError(RuntimeError):
    """Why no Kafka can be had here."""


def kafka_jars() -> Path:
    """The folder of Kafka's jars, fetched once; raises NoKafkaError with the reason."""
    folder = Path(os.environ.get("SIGHTLINE_CACHE", Path.home() / ".cache" / "sightline")) / "tests" / f"kafka-{KAFKA_VERSION}"
    if (folder / "complete").exists():
        return folder
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise NoKafkaError(f"{program} is not installed and KAFKA_BOOTSTRAP_SERVERS names no broker")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pom.xml").write_text(_POM.format(version=KAFKA_VERSION))
    command = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise NoKafkaError(f"Kafka's jars cannot be fetched here: {(done.stdout + done.stderr).strip().splitlines()[-1:]}")
    (folder / "complete").touch()
    return folder


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class KafkaServer:
    """One Kafka. ``sasl``: user -> password of a second listener; ``proxied``: a port that a third listener says it is reached at."""

    def __init__(
        self, folder: Path, sasl: dict[str, str] | None = None, tls: Path | None = None, proxied: int = 0, heap: str = HEAP
    ) -> None:
        self.folder, self._heap = folder, heap
        self.port, self._controller, self.sasl_port, self.tls_port, self._behind_proxy = (free_port() for _ in range(5))
        self.bootstrap = f"127.0.0.1:{self.port}"
        listeners = {"PLAINTEXT": (self.port, self.port), "CONTROLLER": (self._controller, 0)}
        more = []
        if sasl:
            listeners["SASL_PLAINTEXT"] = (self.sasl_port, self.sasl_port)
            users = " ".join(f'user_{name}="{password}"' for name, password in sasl.items())
            module = "org.apache.kafka.common.security.plain.PlainLoginModule"
            more += [
                "sasl.enabled.mechanisms=PLAIN",
                f"listener.name.sasl_plaintext.plain.sasl.jaas.config={module} required {users};",
            ]
        if tls:
            listeners["SSL"] = (self.tls_port, self.tls_port)
            more += ["ssl.keystore.type=PEM", f"ssl.keystore.location={tls}"]
        if proxied:
            listeners["PROXIED"] = (self._behind_proxy, proxied)
        self.behind_proxy = self._behind_proxy
        text = _PROPERTIES.format(
            controller=self._controller,
            listeners=",".join(f"{name}://127.0.0.1:{port}" for name, (port, _) in listeners.items()),
            advertised=",".join(f"{name}://127.0.0.1:{said}" for name, (_, said) in listeners.items() if said),
            logs=folder / "logs",
            more="\n".join(more),
        )
        folder.mkdir(parents=True, exist_ok=True)
        self._properties = folder / "server.properties"
        self._properties.write_text(text)
        self._process: subprocess.Popen[bytes] | None = None
        identifier = "s" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]  # a dash first would be an option
        done = subprocess.run(
            [*self._java("128m"), "kafka.tools.StorageTool", "format", "-t", identifier, "-c", str(self._properties)],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
        if done.returncode:
            raise NoKafkaError(f"Kafka's log folder cannot be formatted: {done.stdout}{done.stderr}")

    def _java(self, heap: str) -> list[str]:
        jars = kafka_jars()
        quick = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"-Xmx{heap}", "-Xms64m"]
        return ["java", *quick, f"-Dkafka.logs.dir={self.folder}", "-cp", f"{jars}/*"]

    def start(self) -> KafkaServer:
        with (self.folder / "server.log").open("ab") as log:
            command = [*self._java(self._heap), "kafka.Kafka", str(self._properties)]
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        self.wait_until_it_answers()
        return self

    def wait_until_it_answers(self) -> None:
        from kafka import KafkaAdminClient
        from kafka.errors import KafkaError

        ends_at = time.monotonic() + STARTS_WITHIN_S
        while True:
            if self._process is None or self._process.poll() is not None:
                tail = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                raise NoKafkaError(f"Kafka ended: {tail}")
            if self._answers(self.port):
                try:
                    admin = KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=5_000, request_timeout_ms=5_000)
                    admin.describe_cluster()
                    admin.close()
                    return
                except (KafkaError, OSError):
                    pass
            if time.monotonic() > ends_at:
                raise NoKafkaError(f"Kafka did not answer within {STARTS_WITHIN_S:g} s")
            time.sleep(0.1)

    @staticmethod
    def _answers(port: int) -> bool:
        with contextlib.closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def kill(self) -> None:
        """As if the power of its process were cut."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def _end(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._process = None


def forget_topics(bootstrap: str, before: set[str]) -> None:
    """Remove what the test made, so that the next one meets an empty Kafka."""
    from kafka import KafkaAdminClient

    admin: Any = KafkaAdminClient(bootstrap_servers=bootstrap)
    made = [t["name"] for t in admin.describe_topics() if not t.get("is_internal") and t["name"] not in before]
    if made:
        admin.delete_topics(made)
    groups = [group["group_id"] for group in admin.list_groups()]
    if groups and not os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        admin.delete_groups(groups)
    admin.close()
