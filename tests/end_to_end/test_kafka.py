"""The line over a real Kafka, in processes of its own: from footage to an answer, and what is said when something is wrong."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.errors import BadInputError, NotReadyError
from pipeline.ports import Message
from services import wire
from services.adapters.kafka_broker import KafkaBroker
from services.adapters.kafka_client import KafkaConnection
from services.dead_letters import FACTS
from services.reading import until_end
from services.topics import COVERAGE, TOPICS, TRACKLETS, dead_letter_topic
from tests.fakes import a_tracklet, embedding
from tests.kafka_server import KafkaServer, forget_topics, free_port

SETTINGS, NOT_READY = 2, 4
STOPS_WITHIN_S = 10.0


@pytest.fixture
def over_kafka(line: Any, kafka_bootstrap: str) -> Any:
    """A line whose broker is Kafka."""
    line.environment |= {"SIGHTLINE_BROKER__KIND": "kafka", "SIGHTLINE_BROKER__BOOTSTRAP_SERVERS": kafka_bootstrap}
    return line


@pytest.fixture
def broker(kafka_bootstrap: str) -> Iterator[KafkaBroker]:
    """Kafka as a program sees it; the topics made meanwhile are gone afterwards."""
    with closing(KafkaBroker(KafkaConnection(kafka_bootstrap))) as opened:
        before = set(opened.topics())
        yield opened
    forget_topics(kafka_bootstrap, before)


def said(line: Any, code: int, *arguments: str | Path, **environment: str) -> str:
    """The one line that the command says before it ends with ``code``; it says nothing else, and neither does a library."""
    done: subprocess.CompletedProcess[str] = line.run(*arguments, **environment)
    assert done.returncode == code, (done.returncode, done.stderr)
    (only,) = done.stderr.splitlines()
    assert only.startswith("sightline: ")
    assert done.stdout == ""
    return only


def stopped(process: subprocess.Popen[str]) -> str:
    """What a worker said on the way, once SIGTERM has ended it in time and in order."""
    assert process.poll() is None, process.communicate()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, complained = process.communicate(timeout=60)
    assert process.returncode == 0, complained
    assert time.monotonic() - began < STOPS_WITHIN_S
    assert "Traceback" not in complained
    return complained


def messages(broker: KafkaBroker, topic: str) -> list[Message]:
    with closing(broker.reader([topic])) as reader:
        return list(until_end(broker, reader, topic))


def lag(broker: KafkaBroker, group: str) -> int:
    """Messages of the index's topics that the group has not committed."""
    committed = broker.groups().get(group, {})
    ends = {partition: end for topic in (TRACKLETS, COVERAGE) for partition, end in broker.end_offsets(topic).items()}
    return sum(end - committed.get(partition, 0) for partition, end in ends.items())


# ------------------------------------------------------------------------------------------------------ the walk


@pytest.mark.accuracy
@pytest.mark.usefixtures("base_weights")
def test_footage_goes_through_workers_into_an_index_that_its_topics_can_build_again(
    over_kafka: Any, broker: KafkaBroker, people: Path, people_data: Path, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    line = over_kafka
    assert line.run("topics", "create").stdout == f"{len(TOPICS)} topics created, 0 were there\n"
    assert line.run("topics", "check").returncode == 0
    assert line.run("camera", "add", "people", people, "--footage").returncode == 0
    assert [each["camera_id"] for each in line.json("camera", "list")] == ["people"]
    port = free_port()
    ingest, index = line.start("worker", "ingest", "--port", str(port)), line.start("worker", "index")

    wait_until("the clip came to its end", lambda: has_ended(ingest, port, "people", 20), 120)
    stopped(ingest)
    wait_until("the index has it all", lambda: lag(broker, "index") == 0, 60)
    digest = line.json("index", "digest")
    stopped(index)
    assert line.json("index", "digest") == digest
    line.environment["SIGHTLINE_BROKER__KIND"] = "embedded"
    assert digest == line.json("--data", people_data, "index", "digest"), "without Kafka it would be another index"
    line.environment["SIGHTLINE_BROKER__KIND"] = "kafka"

    found = line.json("search", "man in a dark jacket")["matches"]
    assert len(found) == digest["tracklets"] >= 3
    assert line.json("index", "replay", "--into", tmp_path / "anew") == digest | {"erased": 0, "bad": 0, "gone": 0}
    assert line.json("dead-letters", "list") == []


def has_ended(worker: subprocess.Popen[str], port: int, camera: str, frames: int) -> bool:
    """Whether a worker has seen so many frames of a camera, told what it found, and let it go."""
    assert worker.poll() is None, worker.communicate()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
    except OSError:
        return False
    is_seen = f'sightline_capture_frames_total{{camera="{camera}",outcome="seen"}} {frames:.1f}' in text
    return is_seen and f'sightline_capture_open{{camera="{camera}"}}' not in text


# --------------------------------------------------------------------------------------------------- bad messages


def test_a_message_that_is_not_ours_is_put_aside_with_its_reason_and_the_worker_goes_on(
    over_kafka: Any, broker: KafkaBroker, wait_until: Callable[..., None]
) -> None:
    line = over_kafka
    assert line.run("topics", "create").returncode == 0
    index = line.start("worker", "index")
    first, second = (a_tracklet(name, embedding("body", 1, 2, 3)) for name in ("t-first", "t-second"))
    newer = msgspec.msgpack.encode(msgspec.msgpack.decode(wire.encode(first)) | {"schema_version": 99})
    for value in (wire.encode(first), newer, b"\x00\xff not ours", wire.encode(second)):
        broker.produce(TRACKLETS, value, b"north", [("from", b"elsewhere")])
    broker.flush()

    wait_until("all is worked", lambda: broker.groups().get("index") and lag(broker, "index") == 0, 60)
    assert line.json("status")["tracklets"] == 2
    aside = messages(broker, dead_letter_topic(TRACKLETS))
    assert [message.value for message in aside] == [newer, b"\x00\xff not ours"]
    for message, offset, version in zip(aside, ("1", "2"), ("99", ""), strict=True):
        headers = {name: value.decode() for name, value in message.headers}
        assert list(headers) == ["from", *FACTS]
        assert (headers["from"], headers["stage"], headers["topic"]) == ("elsewhere", "index", TRACKLETS)
        assert (headers["offset"], headers["schema_version"]) == (offset, version)
    letters = line.json("dead-letters", "list")
    assert [(each["topic"], each["offset"], each["key"]) for each in letters] == [(TRACKLETS, 1, "north"), (TRACKLETS, 2, "north")]
    assert "schema_version 1 or lower, got 99" in letters[0]["error"]
    assert "these 11 bytes must decode as a tracklet" in letters[1]["error"]

    broker.produce(TRACKLETS, wire.encode(a_tracklet("t-third", embedding("body", 3, 2, 1))), b"north")
    broker.flush()
    wait_until("the worker goes on", lambda: line.json("status")["tracklets"] == 3, 60)
    stopped(index)


def test_a_message_larger_than_its_topic_allows_is_refused_where_it_is_made(over_kafka: Any, broker: KafkaBroker) -> None:
    assert over_kafka.run("topics", "create").returncode == 0
    most = next(spec.max_message_bytes for spec in TOPICS if spec.name == TRACKLETS)
    with pytest.raises(BadInputError, match=f"topic tracklets must be at most {most} bytes, got"):
        broker.produce(TRACKLETS, bytes(most), b"north")
    broker.produce(TRACKLETS, bytes(most - 1_000), b"north")
    broker.flush()
    assert sum(broker.end_offsets(TRACKLETS).values()) == 1


def test_a_client_of_a_kafka_that_is_away_ends_in_time_and_says_what_is_lost(kafka_server: KafkaServer, broker: KafkaBroker) -> None:
    broker.create_topics([spec for spec in TOPICS if spec.name == TRACKLETS])
    client = KafkaBroker(KafkaConnection(kafka_server.bootstrap))
    client.produce(TRACKLETS, b"told", b"north")
    client.flush()
    kafka_server.freeze()
    try:
        client.produce(TRACKLETS, b"never told", b"north")
        began = time.monotonic()
        with pytest.raises(NotReadyError, match="did not acknowledge 1 messages"):
            client.close()
        assert time.monotonic() - began < 5
    finally:
        kafka_server.thaw()
    assert b"told" in [message.value for message in messages(broker, TRACKLETS)]


# --------------------------------------------------------------------------------------------------- bad settings


def test_an_address_where_no_kafka_is_can_be_tried_again(over_kafka: Any) -> None:
    address = f"127.0.0.1:{free_port()}"
    told = said(over_kafka, NOT_READY, "topics", "list", SIGHTLINE_BROKER__BOOTSTRAP_SERVERS=address)
    assert f"Kafka at {address}" in told
    assert "connection refused" in told
    assert "check broker.bootstrap_servers" in told


@pytest.mark.parametrize("address", ["127.0.0.1:kafka", "127.0.0.1:99999", " , "])
def test_an_address_that_is_none_is_named(over_kafka: Any, address: str) -> None:
    told = said(over_kafka, SETTINGS, "topics", "list", SIGHTLINE_BROKER__BOOTSTRAP_SERVERS=address)
    assert f"broker.bootstrap_servers must be host:port, with a comma between several, got {address!r}" in told


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("BOOTSTRAP", "127.0.0.1:9092", "unknown setting broker.bootstrap; allowed here: bootstrap_servers, "),
        ("KIND", "rabbit", "setting broker.kind = 'rabbit': input should be 'embedded' or 'kafka'"),
        ("SECURITY_PROTOCOL", "TLS", "setting broker.security_protocol = 'TLS': input should be 'PLAINTEXT', 'SSL'"),
        ("SSL_CA_FILE", "nowhere.pem", "broker.ssl_ca_file, ssl_certificate_file and ssl_key_file must be PEM files that can be read"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(over_kafka: Any, key: str, value: str, told: str) -> None:
    environment = {f"SIGHTLINE_BROKER__{key}": value} | ({"SIGHTLINE_BROKER__SECURITY_PROTOCOL": "SSL"} if key == "SSL_CA_FILE" else {})
    assert told in said(over_kafka, SETTINGS, "topics", "list", **environment)


@pytest.fixture
def with_password(over_kafka: Any, kafka_server: KafkaServer) -> Any:
    """A line that comes in by the listener that wants a password."""
    over_kafka.environment |= {
        "SIGHTLINE_BROKER__BOOTSTRAP_SERVERS": f"127.0.0.1:{kafka_server.sasl_port}",
        "SIGHTLINE_BROKER__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "SIGHTLINE_BROKER__SASL_MECHANISM": "PLAIN",
        "SIGHTLINE_BROKER__SASL_USERNAME": "sightline",
        "SIGHTLINE_BROKER__SASL_PASSWORD": "right",
    }
    return over_kafka


def test_with_the_right_password_kafka_lets_us_in(with_password: Any) -> None:
    done = with_password.run("topics", "list")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_wrong_password_is_refused_at_once_and_never_shown(with_password: Any) -> None:
    told = said(with_password, SETTINGS, "topics", "list", SIGHTLINE_BROKER__SASL_PASSWORD="geheim")
    assert "refused broker.sasl_username and its password" in told
    assert "Invalid username or password" in told
    assert "geheim" not in told


def test_a_mechanism_that_the_listener_does_not_offer_is_refused_at_once(with_password: Any) -> None:
    told = said(with_password, SETTINGS, "topics", "list", SIGHTLINE_BROKER__SASL_MECHANISM="SCRAM-SHA-256")
    assert "does not know broker.sasl_mechanism" in told


def test_a_password_where_none_is_wanted_is_refused_at_once(with_password: Any, kafka_server: KafkaServer) -> None:
    told = said(with_password, SETTINGS, "topics", "list", SIGHTLINE_BROKER__BOOTSTRAP_SERVERS=kafka_server.bootstrap)
    assert "wants another broker.security_protocol" in told


# ------------------------------------------------------------------------------------------------------- topics


@pytest.mark.usefixtures("kafka_server")
def test_missing_topics_are_named_with_the_command_that_makes_them(over_kafka: Any) -> None:
    for command in (("camera", "list"), ("dead-letters", "list"), ("worker", "alert")):
        told = said(over_kafka, SETTINGS, *command)
        assert f"{len(TOPICS)} of {len(TOPICS)} topics must exist and do not: cameras, tracklets, " in told
        assert "`sightline topics create` makes what is missing" in told


@pytest.mark.usefixtures("kafka_server")
def test_a_topic_with_other_partitions_is_named_and_left_as_it_is(over_kafka: Any, broker: KafkaBroker) -> None:
    broker.create_topics([replace(spec, partitions=3) for spec in TOPICS if spec.name == TRACKLETS])
    made = over_kafka.run("topics", "create")
    assert (made.returncode, made.stdout) == (SETTINGS, f"{len(TOPICS) - 1} topics created, 1 were there\n")
    assert made.stderr == "sightline: topic tracklets must have partitions 8, got 3\n"
    for command in (("topics", "check"), ("camera", "list"), ("worker", "alert")):
        assert "topic tracklets must have partitions 8, got 3" in said(over_kafka, SETTINGS, *command)
    assert len(broker.end_offsets(TRACKLETS)) == 3
