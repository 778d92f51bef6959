"""The rights that the runbook grants, on a real Kafka that grants nothing else: enough for every worker, and no more."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import kafka
import numpy as np
import pytest
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ACLResourcePatternType, ResourcePattern, ResourceType

from pipeline.errors import SettingsError
from pipeline.types import BODY, TEXT, ArchiveJob, Camera, Embedding, Probe, Tracklet, Watch
from services import wire
from services.adapters.kafka_broker import KafkaBroker
from services.adapters.kafka_client import KafkaConnection
from services.cameras import read_cameras
from services.dead_letters import list_dead_letters, replay
from services.replay import replay_index
from services.retention import erase_tracklets
from services.settings import Settings, load_settings
from services.topics import (
    ALERTS,
    ARCHIVE_JOBS,
    ARCHIVE_PROGRESS,
    AUDIT,
    CAMERAS,
    COVERAGE,
    ERASURES,
    QUERIES,
    RANKINGS,
    TRACKLETS,
    WATCHES,
)
from services.watches import watches_in_force
from services.wiring import BASE_WEIGHTS, look_encoder, open_broker
from tests.deploy.known import DEPLOY, ROOT
from tests.kafka_server import KafkaServer, NoKafkaError, free_port

USERS = ("ingest", "index", "query", "alert", "archive", "api", "operator", "keda")
PATIENCE_S = 180.0  # of a machine with other work
OLD_NS = 1_700_000_000_000_000_000  # long over: the index worker removes it when it starts again
OPERATIONS = {"Read", "Write", "Create", "Describe", "DescribeConfigs"}


@dataclass(frozen=True)
class Grant:
    """One line of the runbook that grants something to a user."""

    user: str
    operations: tuple[str, ...]
    topics: tuple[str, ...]
    groups: tuple[str, ...]
    on_cluster: bool
    by_prefix: bool

    def acls(self) -> Iterator[Any]:
        """As kafka-acls.sh makes them."""
        pattern = ACLResourcePatternType.PREFIXED if self.by_prefix else ACLResourcePatternType.LITERAL
        resources = [ResourcePattern(ResourceType.TOPIC, name, pattern) for name in self.topics]
        resources += [ResourcePattern(ResourceType.GROUP, name, pattern) for name in self.groups]
        resources += [ResourcePattern(ResourceType.CLUSTER, "kafka-cluster", pattern)] if self.on_cluster else []
        for resource in resources:
            for operation in self.operations:
                kind = ACLOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).upper()]
                yield ACL(f"User:sightline-{self.user}", "*", kind, ACLPermissionType.ALLOW, resource)


def grants() -> list[Grant]:
    """Every ``allow`` line of the runbook."""
    text = (DEPLOY / "RUNBOOK.md").read_text("utf-8")
    found = []
    for users, words in re.findall(r"^(?:for user in ([a-z ]+); do )?allow (.*?)(?:; done)?$", text, flags=re.M):
        user, *options = shlex.split(words)

        def of(name: str, options: Sequence[str] = options) -> tuple[str, ...]:
            return tuple(value for option, value in pairwise(options) if option == name)

        found += [
            Grant(each, of("--operation"), of("--topic"), of("--group"), "--cluster" in options, "--resource-pattern-type" in options)
            for each in users.split() or [user]
        ]
    return found


def test_the_runbook_grants_something_to_every_user_and_names_operations_that_kafka_knows() -> None:
    assert {grant.user for grant in grants()} == set(USERS)
    assert {operation for grant in grants() for operation in grant.operations} <= OPERATIONS
    for grant in grants():
        assert not grant.groups or set(grant.operations) <= {"Read", "Describe"}, "kafka-acls.sh refuses any other operation of a group"


@dataclass
class Guarded:
    """A Kafka where only the runbook's rights hold, and processes as its users. ``broker``: may do everything."""

    server: KafkaServer
    folder: Path
    broker: KafkaBroker
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def environment(self, user: str) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "SIGHTLINE_BROKER__KIND": "kafka",
            "SIGHTLINE_BROKER__BOOTSTRAP_SERVERS": f"127.0.0.1:{self.server.sasl_port}",
            "SIGHTLINE_BROKER__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "SIGHTLINE_BROKER__SASL_MECHANISM": "PLAIN",
            "SIGHTLINE_BROKER__SASL_USERNAME": f"sightline-{user}",
            "SIGHTLINE_BROKER__SASL_PASSWORD": user,
            "SIGHTLINE_STORAGE__DATA_FOLDER": str(self.folder / "data"),
            "SIGHTLINE_INDEX__GROUP": "index-0",
        }

    def connection(self, user: str) -> KafkaConnection:
        return KafkaConnection(f"127.0.0.1:{self.server.sasl_port}", "SASL_PLAINTEXT", "PLAIN", f"sightline-{user}", user)

    def settings(self, user: str) -> Settings:
        return load_settings(environment={name: value for name, value in self.environment(user).items() if name.startswith("SIGHTLINE_")})

    def command(self, user: str, *words: str) -> None:
        """``sightline WORDS`` as a user; it must end well."""
        at: dict[str, Any] = {"env": self.environment(user), "cwd": self.folder}
        run = subprocess.run(self._sightline(*words), **at, capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{user}: sightline {' '.join(words)}: {run.stderr}"

    def start(self, user: str, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{user}.log").open("ab") as log:
            process = subprocess.Popen(
                self._sightline(*words), env={**self.environment(user), **environment}, cwd=self.folder, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def _sightline(self, *words: str) -> list[str]:
        return [sys.executable, "-W", "ignore", "-m", "services", *words]

    def messages(self, topic: str) -> int:
        return sum(self.broker.end_offsets(topic).values())

    def wait(self, what: str, is_done: Callable[[], bool]) -> None:
        ends_at = time.monotonic() + PATIENCE_S
        while not is_done():
            ended = [(process.args, process.returncode) for process in self.processes if process.poll() not in (None, -signal.SIGTERM, 0)]
            logs = {path.name: path.read_text()[-600:] for path in self.folder.glob("*.log")}
            assert not ended, f"{ended}: {logs}"
            assert time.monotonic() < ends_at, f"{what}: {logs}"
            time.sleep(0.2)

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
        self.broker.close()
        self.server.stop()


class GuardedServer(KafkaServer):
    """Nobody may do anything but what an ACL says; those without a name, on the plain listener, may do everything."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, sasl={f"sightline-{user}": user for user in USERS})
        rules = [
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users=User:ANONYMOUS",
            "allow.everyone.if.no.acl.found=false",
        ]
        file = folder / "server.properties"
        file.write_text("\n".join([file.read_text(), *rules, ""]))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, weights: Callable[[str], Path]) -> Iterator[Guarded]:
    for name in BASE_WEIGHTS:
        weights(name)
    folder = tmp_path_factory.mktemp("rights")
    try:
        server = GuardedServer(folder / "kafka")
        server.start()
    except NoKafkaError as reason:
        pytest.skip(f"no Apache Kafka: {reason}")
    admin = kafka.KafkaAdminClient(bootstrap_servers=server.bootstrap)
    admin.create_acls([acl for grant in grants() for acl in grant.acls()])
    admin.close()
    made = Guarded(server, folder, KafkaBroker(KafkaConnection(server.bootstrap)))
    made.command("operator", "topics", "create")
    yield made
    made.close()


@pytest.fixture(scope="module")
def clip(guarded: Guarded) -> Path:
    """Three seconds in which nobody is seen."""
    path = guarded.folder / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (160, 120))
    for _ in range(30):
        writer.write(np.full((120, 160, 3), 90, np.uint8))
    writer.release()
    return path


def seen(name: str, started_at_ns: int, vector: np.ndarray) -> Tracklet:
    at_ns = np.arange(5) * 100_000_000 + started_at_ns
    spaces = look_encoder(load_settings(environment={})).spaces
    embeddings = tuple(Embedding(modality, spaces[modality], vector) for modality in (BODY, TEXT))
    boxes = np.tile(np.array([1, 2, 30, 90], np.float32), (5, 1))
    return Tracklet(name, 1, "gate", int(at_ns[0]), int(at_ns[-1]), at_ns, boxes, np.ones(5, np.float32), embeddings, is_closed=True)


def unit() -> np.ndarray:
    vector = np.arange(1, 257, dtype=np.float32)
    made: np.ndarray = vector / np.linalg.norm(vector)
    return made


def test_every_worker_can_do_all_of_its_work(guarded: Guarded, clip: Path) -> None:
    names = ("1" * 16, "2" * 16)
    embeddings = seen("", OLD_NS, unit()).embeddings
    watch = Watch("watch", (Probe("look-alike", embeddings=embeddings),), 0.1, purpose="test")
    guarded.broker.produce(WATCHES, wire.encode(watch), b"watch")
    for name in names:
        guarded.broker.produce(TRACKLETS, wire.encode(seen(name, OLD_NS, unit())), b"gate")
    for topic in (TRACKLETS, COVERAGE, ERASURES, QUERIES, ARCHIVE_JOBS):
        guarded.broker.produce(topic, b"no message of ours", b"x")
    camera = Camera("archive", str(clip), sampling_hz=5.0, is_live=False)
    guarded.broker.produce(ARCHIVE_JOBS, wire.encode(ArchiveJob("job", 0, camera)))
    guarded.broker.flush()
    guarded.command("operator", "camera", "add", "gate", str(clip), "--footage", "--sampling-hz", "5")

    workers = {name: guarded.start(name, "worker", name) for name in ("ingest", "index", "query", "alert", "archive")}
    port = free_port()
    guarded.start("api", "api", SIGHTLINE_API__PORT=str(port))

    guarded.wait("ingest and archive tell what they saw", lambda: guarded.messages(COVERAGE) >= 3)
    guarded.wait("the archive job is done", lambda: guarded.messages(ARCHIVE_PROGRESS) >= 2)
    guarded.wait("alerts", lambda: guarded.messages(ALERTS) >= 1)
    letters = {"tracklets.dlt": 2, "coverage.dlt": 1, "erasures.dlt": 1, "queries.dlt": 1, "archive-jobs.dlt": 1}
    for topic, wanted in letters.items():
        guarded.wait(topic, lambda topic=topic, wanted=wanted: guarded.messages(topic) >= wanted)  # type: ignore[misc]

    guarded.wait("the gateway is ready", lambda: asked(port, "/ready")[0] == 200)
    body = json.dumps({"text": "red jacket", "purpose": "test"}).encode()
    status, said = asked(port, "/v1/searches", body)
    assert status == 200, said
    assert guarded.messages(RANKINGS) >= 1

    # retention: what is over goes when the index worker starts, and says so in the audit
    workers["index"].terminate()
    workers["index"].wait(20)
    before = guarded.messages(AUDIT)
    guarded.start("index", "worker", "index")
    guarded.wait("retention tells the audit", lambda: guarded.messages(AUDIT) > before)


def asked(port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return 0, str(error).encode()


def test_the_operator_can_keep_house(guarded: Guarded) -> None:
    settings = guarded.settings("operator")
    with open_broker(settings) as broker:
        assert set(read_cameras(broker)) == {"gate"}
        assert {letter.topic for letter in list_dead_letters(broker)} >= {TRACKLETS, QUERIES}
        assert replay(broker, QUERIES) >= 1
    assert [watch.watch_id for watch in watches_in_force(settings)] == ["watch"]
    erase_tracklets(settings, ["2" * 16], "somebody", "test")


def test_a_copy_of_the_index_can_be_made_with_the_index_worker_s_rights(guarded: Guarded) -> None:
    made = replay_index(guarded.settings("index"), guarded.folder / "copy")
    assert (made.digest.tracklets, made.bad) == (1, 2), "one of two was erased"


def test_the_autoscaler_can_see_how_far_groups_are_behind(guarded: Guarded) -> None:
    options = guarded.connection("keda").options()
    with closing(kafka.KafkaAdminClient(**options)) as admin:
        for group, topic in (("query", QUERIES), ("alert", TRACKLETS), ("archive", ARCHIVE_JOBS)):
            assert admin.describe_topics([topic])[0]["partitions"]
            admin.list_group_offsets({group: None})
            admin.list_partition_offsets({kafka.TopicPartition(topic, 0): kafka.OffsetSpec.LATEST})


FORBIDDEN = "does not let this user use a topic"


@pytest.mark.parametrize(
    ("user", "topic"), [("ingest", TRACKLETS), ("query", TRACKLETS), ("alert", CAMERAS), ("archive", CAMERAS), ("index", CAMERAS)]
)
def test_nobody_reads_what_is_not_theirs(guarded: Guarded, user: str, topic: str) -> None:
    def read() -> None:
        with closing(KafkaBroker(guarded.connection(user))) as broker, closing(broker.reader([topic])) as reader:
            for _ in range(20):
                reader.poll(0.5)

    with pytest.raises(SettingsError, match=FORBIDDEN):
        read()


@pytest.mark.parametrize(
    ("user", "topic"), [("ingest", CAMERAS), ("query", TRACKLETS), ("alert", WATCHES), ("archive", ALERTS), ("api", ERASURES)]
)
def test_nobody_writes_what_is_not_theirs(guarded: Guarded, user: str, topic: str) -> None:
    broker = KafkaBroker(guarded.connection(user))
    broker.produce(topic, b"{}", b"x")
    with pytest.raises(SettingsError, match=FORBIDDEN):
        broker.flush(5.0)
    with suppress(SettingsError):  # it still waits, and is refused once more
        broker.close()
