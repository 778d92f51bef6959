"""Cameras as work: what the topic says is what runs, somewhere, once; whatever happens to workers, cameras and the broker."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import NotFoundError, NotReadyError, SettingsError, SourceUnavailableError, UnreadableMediaError
from pipeline.ports import Broker, Consumer, Message, TopicPartition
from pipeline.types import Camera, CameraCoverage, Detections, Frame, Sound
from services import wire
from services.adapters.kafka_broker import KafkaBroker
from services.adapters.kafka_client import KafkaConnection
from services.adapters.sqlite_broker import SqliteBroker
from services.cameras import FROM_SETTINGS, CameraWork, declare, put_camera, read_cameras, remove_camera
from services.ingest import IngestLine
from services.sinks import Publication
from services.topics import CAMERAS, TOPICS
from services.wiring import _run_beside

SESSION_TIMEOUT_S = {"sqlite": 1.0, "kafka": 4.0}
SPEC = next(spec for spec in TOPICS if spec.name == CAMERAS)

Connect = Callable[[], Broker]


def a_camera(name: str, uri: str = "rtsp://camera", **changes: Any) -> Camera:
    return Camera(name, uri, **{"is_live": True, **changes})


def wait_until(what: str, condition: Callable[[], object], longest_s: float = 40.0) -> None:
    ends_at = time.monotonic() + longest_s
    while not condition():
        assert time.monotonic() < ends_at, f"not within {longest_s:g} s: {what}"
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------- stand-ins


class GreyCapture:
    """A frame each 10 ms until it is closed or fails; footage has 20. A frozen one gives none. Let it end: only then it may."""

    def __init__(self, camera: Camera, is_frozen: bool = False) -> None:
        self.camera = camera
        self.seen, self.has_ended = 0, False
        self.fails, self.may_end, self._closed = threading.Event(), threading.Event(), threading.Event()
        self.may_end.set()
        self._is_frozen = is_frozen

    def frames(self) -> Iterator[Frame]:
        try:
            while not self._closed.wait(0.01) and not self.fails.is_set() and (self.camera.is_live or self.seen < 20):
                if not self._is_frozen:
                    self.seen += 1
                    yield Frame(self.camera.camera_id, time.time_ns(), np.zeros((8, 8, 3), np.uint8), self.seen)
            self.may_end.wait(10)
            if self.fails.is_set():
                raise SourceUnavailableError("the cable is out")
        finally:
            self.has_ended = True

    def sounds(self) -> Iterator[Sound]:
        return iter(())

    def coverage(self) -> CameraCoverage:
        return CameraCoverage(self.camera.camera_id, 0, 1, self.seen, self.seen)

    def close(self) -> None:
        self._closed.set()


class NobodyDetector:
    name = "nobody"

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        return [Detections.none() for _ in frames]


class NobodyStages:
    def process(self, frame: Frame, detections: Detections) -> list[Publication]:
        return []

    def finish(self) -> list[Publication]:
        return []


class NowhereSink:
    def publish(self, publication: Publication) -> None: ...

    def cover(self, coverage: CameraCoverage) -> None: ...

    def flush(self) -> None: ...


class CuttableBroker:
    """A Broker and its consumers behind a network that can be cut."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self.is_cut = broker, False

    def __getattr__(self, name: str) -> Any:
        self.check()
        return getattr(self._broker, name)

    def check(self) -> None:
        if self.is_cut:
            raise NotReadyError("the network is cut")

    def consumer(self, topics: Sequence[str], group: str, start: str = "earliest") -> CuttableConsumer:
        self.check()
        return CuttableConsumer(self, self._broker.consumer(topics, group, start))

    def close(self) -> None:
        self._broker.close()


class CuttableConsumer:
    def __init__(self, network: CuttableBroker, consumer: Consumer) -> None:
        self._network, self._consumer = network, consumer

    def __getattr__(self, name: str) -> Any:
        self._network.check()
        return getattr(self._consumer, name)

    def close(self) -> None:
        if not self._network.is_cut:
            self._consumer.close()


class IngestWorker:
    """An ingest worker as services/wiring.py makes it, but for the network that finds people."""

    def __init__(self, broker: Any, open_camera: Callable[[Camera], GreyCapture] = GreyCapture) -> None:
        self.captures: list[GreyCapture] = []
        self.error: BaseException | None = None
        self._open_camera, self._stop = open_camera, threading.Event()
        self.work = CameraWork(broker, self._open)
        options: dict[str, Any] = {"batch_wait_s": 0.0, "is_endless": True, "on_end": self.work.ended}
        self._line = IngestLine([], NobodyDetector(), lambda camera: NobodyStages(), NowhereSink(), **options)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _open(self, camera: Camera) -> GreyCapture:
        made = self._open_camera(camera)
        self.captures.append(made)
        return made

    def _run(self) -> None:
        try:
            _run_beside(lambda: self.work.run(self._line, self._stop), self._line, self._stop)
        except BaseException as error:
            self.error = error

    def running(self) -> list[str]:
        """The cameras that give frames, one entry a capture."""
        return sorted(each.camera.camera_id for each in self.captures if each.seen and not each.has_ended)

    def captures_of(self, name: str) -> list[GreyCapture]:
        return [each for each in self.captures if each.camera.camera_id == name]

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def leave(self) -> None:
        """As SIGTERM would."""
        self._stop.set()
        self._thread.join(15)
        assert not self.is_running, "the worker does not end"


@pytest.fixture
def start() -> Iterator[Callable[..., IngestWorker]]:
    """Start a worker; all end with the test."""
    started: list[IngestWorker] = []

    def another(broker: Any, open_camera: Callable[[Camera], GreyCapture] = GreyCapture) -> IngestWorker:
        started.append(IngestWorker(broker, open_camera))
        return started[-1]

    yield another
    for worker in started:
        worker.leave()


@pytest.fixture
def kind() -> str:
    """Which broker; parametrized where both are asked."""
    return "sqlite"


@pytest.fixture
def connect(kind: str, request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Another client of one log that has the topic; all are closed, and the topic is gone from a Kafka, when the test is over."""
    clients: list[Broker] = []
    folder: Path = request.getfixturevalue("tmp_path")
    bootstrap: str = request.getfixturevalue("kafka_bootstrap") if kind == "kafka" else ""

    def client() -> Broker:
        session_s = SESSION_TIMEOUT_S[kind]
        if bootstrap:
            clients.append(KafkaBroker(KafkaConnection(bootstrap, session_timeout_s=session_s)))
        else:
            clients.append(SqliteBroker(folder / "log.db", session_s))
        return clients[-1]

    was_there = CAMERAS in client().topics()
    clients[0].create_topics([SPEC])
    yield client
    for each in clients:
        with suppress(NotReadyError):
            each.close()
    if bootstrap:
        _forget(bootstrap, [] if was_there else [CAMERAS])


def _forget(bootstrap: str, topics: Sequence[str]) -> None:
    from kafka import KafkaAdminClient

    admin: Any = KafkaAdminClient(bootstrap_servers=bootstrap)
    if topics:
        admin.delete_topics(topics)
    if not os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        admin.delete_groups([group["group_id"] for group in admin.list_groups()])
    admin.close()


@pytest.fixture
def broker(connect: Connect) -> Broker:
    return connect()


class KeptRecords(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def said(self, message: str, **fields: str) -> list[logging.LogRecord]:
        return [r for r in self.records if r.getMessage() == message and fields.items() <= vars(r).items()]


@pytest.fixture
def logged() -> Iterator[KeptRecords]:
    """What the module logs."""
    handler, log = KeptRecords(), logging.getLogger("sightline.cameras")
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)


# ---------------------------------------------------------------------------------------------- the topic


def test_a_camera_is_put_changed_and_removed(broker: Broker) -> None:
    gate, yard = a_camera("gate"), a_camera("yard", zones={"door": ((0.0, 0.0), (9.0, 0.0), (9.0, 9.0))}, site="north")
    put_camera(broker, yard)
    put_camera(broker, gate)
    assert read_cameras(broker) == {"gate": gate, "yard": yard}
    put_camera(broker, replace(gate, sampling_hz=5.0))
    assert read_cameras(broker)["gate"].sampling_hz == 5.0
    remove_camera(broker, "yard")
    assert list(read_cameras(broker)) == ["gate"]
    with pytest.raises(NotFoundError, match="the camera must be one of gate, got 'yard'"):
        remove_camera(broker, "yard")


def test_a_settings_file_takes_away_only_what_it_declared(broker: Broker) -> None:
    gate, yard, roof = (a_camera(name, origin=FROM_SETTINGS) for name in ("gate", "yard", "roof"))
    put_camera(broker, a_camera("by-hand"))
    declare(broker, [gate, yard])
    assert list(read_cameras(broker)) == ["by-hand", "gate", "yard"]
    moved = replace(gate, uri="rtsp://elsewhere")
    declare(broker, [moved, roof])
    assert read_cameras(broker) == {"by-hand": a_camera("by-hand"), "gate": moved, "roof": roof}


def test_a_settings_file_that_says_nothing_new_writes_nothing(broker: Broker) -> None:
    cameras = [a_camera(name, origin=FROM_SETTINGS) for name in ("gate", "yard")]
    declare(broker, cameras)
    before = broker.end_offsets(CAMERAS)
    declare(broker, cameras)
    assert broker.end_offsets(CAMERAS) == before


def test_a_camera_that_cannot_be_read_is_named_and_the_others_are_there(broker: Broker, logged: KeptRecords) -> None:
    put_camera(broker, a_camera("gate"))
    put_camera(broker, a_camera("yard"))
    broker.produce(CAMERAS, b"a camera", b"yard")
    broker.flush()
    assert list(read_cameras(broker)) == ["gate"]
    assert len(logged.said("camera left out", camera="yard", topic=CAMERAS)) == 1


# ------------------------------------------------------------------------------------------------ one worker


def test_cameras_come_change_and_go_without_a_restart(connect: Connect, broker: Broker, start: Callable[..., IngestWorker]) -> None:
    put_camera(broker, a_camera("gate"))
    worker = start(connect())
    wait_until("gate runs", lambda: worker.running() == ["gate"])
    put_camera(broker, a_camera("yard"))
    wait_until("yard runs too", lambda: worker.running() == ["gate", "yard"])
    moved = a_camera("yard", "rtsp://elsewhere")
    put_camera(broker, moved)
    wait_until("yard is opened anew", lambda: worker.captures[-1].camera == moved and worker.running() == ["gate", "yard"])
    remove_camera(broker, "gate")
    wait_until("gate is gone", lambda: worker.running() == ["yard"])
    assert worker.work.cameras() == {"yard": moved}
    assert (worker.work.owns("yard"), worker.work.owns("gate")) == (True, False)
    assert len(worker.captures_of("gate")) == 1


def test_a_camera_that_is_said_again_goes_on_as_it_is(connect: Connect, broker: Broker, start: Callable[..., IngestWorker]) -> None:
    put_camera(broker, a_camera("gate"))
    worker = start(connect())
    wait_until("gate runs", lambda: worker.running() == ["gate"])
    put_camera(broker, a_camera("gate"))
    put_camera(broker, a_camera("yard"))
    wait_until("yard runs too", lambda: worker.running() == ["gate", "yard"])
    assert len(worker.captures_of("gate")) == 1


def test_a_frozen_camera_holds_nobody(connect: Connect, broker: Broker, start: Callable[..., IngestWorker]) -> None:
    put_camera(broker, a_camera("ice"))
    worker = start(connect(), lambda camera: GreyCapture(camera, is_frozen=camera.camera_id == "ice"))
    wait_until("ice is opened", lambda: worker.captures_of("ice"))
    put_camera(broker, a_camera("gate"))
    wait_until("gate gives frames", lambda: worker.captures_of("gate") and worker.captures_of("gate")[0].seen > 20)
    remove_camera(broker, "ice")
    wait_until("ice is let go", lambda: worker.captures_of("ice")[0].has_ended)
    assert worker.running() == ["gate"]
    worker.leave()
    assert worker.error is None


def test_a_camera_that_can_never_work_is_left_out_until_the_topic_says_otherwise(
    connect: Connect, broker: Broker, start: Callable[..., IngestWorker], logged: KeptRecords
) -> None:
    def open_camera(camera: Camera) -> GreyCapture:
        if camera.uri == "letter.mp4":
            raise UnreadableMediaError("letter.mp4 must be a video")
        return GreyCapture(camera)

    put_camera(broker, a_camera("odd", "letter.mp4"))
    put_camera(broker, a_camera("gate"))
    worker = start(connect(), open_camera)
    wait_until("gate runs", lambda: worker.running() == ["gate"])
    wait_until("odd is named", lambda: logged.said("camera left out", camera="odd", reason="letter.mp4 must be a video"))
    time.sleep(0.7)  # longer than the first pause of one that is tried again
    assert len(logged.said("camera left out", camera="odd")) == 1
    put_camera(broker, a_camera("odd", "film.mp4"))
    wait_until("odd runs", lambda: worker.running() == ["gate", "odd"])


def test_a_camera_that_does_not_answer_is_tried_again(connect: Connect, broker: Broker, start: Callable[..., IngestWorker]) -> None:
    refusals = ["first", "second"]

    def open_camera(camera: Camera) -> GreyCapture:
        if refusals and camera.camera_id == "gate":
            raise SourceUnavailableError(f"refused, {refusals.pop()}")
        return GreyCapture(camera)

    put_camera(broker, a_camera("gate"))
    worker = start(connect(), open_camera)
    wait_until("gate runs", lambda: worker.running() == ["gate"])
    assert refusals == []


def test_a_camera_that_vanishes_is_tried_again_and_the_others_go_on(
    connect: Connect, broker: Broker, start: Callable[..., IngestWorker]
) -> None:
    put_camera(broker, a_camera("gate"))
    put_camera(broker, a_camera("yard"))
    worker = start(connect())
    wait_until("both run", lambda: worker.running() == ["gate", "yard"])
    for times in (1, 2):
        worker.captures_of("gate")[-1].fails.set()
        wait_until("gate is opened again", lambda times=times: len(worker.captures_of("gate")) == times + 1)
        wait_until("both run", lambda: worker.running() == ["gate", "yard"])
    assert len(worker.captures_of("yard")) == 1


def test_footage_that_came_to_its_end_is_not_run_again(
    connect: Connect, broker: Broker, start: Callable[..., IngestWorker], logged: KeptRecords
) -> None:
    put_camera(broker, a_camera("film", "film.mp4", is_live=False))
    worker = start(connect())
    wait_until("the film is over", lambda: logged.said("camera came to its end", camera="film"))
    put_camera(broker, a_camera("gate"))
    wait_until("gate runs", lambda: worker.running() == ["gate"])
    time.sleep(0.7)
    assert [each.seen for each in worker.captures_of("film")] == [20]
    assert worker.work.owns("film")


def test_a_message_that_is_no_camera_is_logged_and_the_others_run(
    connect: Connect, broker: Broker, start: Callable[..., IngestWorker], logged: KeptRecords
) -> None:
    put_camera(broker, a_camera("gate"))
    worker = start(connect())
    wait_until("gate runs", lambda: worker.running() == ["gate"])
    for key, value in ((b"yard", b"\x00 no camera"), (b"gate", b"{}"), (b"\xff", wire.encode(a_camera("roof"))[:-3])):
        broker.produce(CAMERAS, value, key)
    broker.flush()
    put_camera(broker, a_camera("roof"))
    wait_until("only roof runs", lambda: worker.running() == ["roof"])
    assert len(logged.said("camera left out")) == 3
    put_camera(broker, a_camera("gate"))
    wait_until("gate is back", lambda: worker.running() == ["gate", "roof"])


def test_cameras_go_on_while_the_broker_is_away(connect: Connect, broker: Broker, start: Callable[..., IngestWorker]) -> None:
    put_camera(broker, a_camera("gate"))
    network = CuttableBroker(connect())
    worker = start(network)
    wait_until("gate runs", lambda: worker.running() == ["gate"])
    network.is_cut = True
    put_camera(broker, a_camera("yard"))
    wait_until("nobody knows whose a camera is", lambda: worker.work.owns("gate") is None)
    (gate,) = worker.captures_of("gate")
    seen = gate.seen
    wait_until("gate goes on", lambda: gate.seen > seen + 50)
    assert worker.running() == ["gate"]
    network.is_cut = False
    wait_until("yard runs too", lambda: worker.running() == ["gate", "yard"])
    assert worker.work.owns("gate")


def test_a_worker_waits_for_a_broker_that_is_not_there_yet(connect: Connect, broker: Broker, start: Callable[..., IngestWorker]) -> None:
    put_camera(broker, a_camera("gate"))
    network = CuttableBroker(connect())
    network.is_cut = True
    worker = start(network)
    time.sleep(0.3)
    assert worker.captures == []
    network.is_cut = False
    wait_until("gate runs", lambda: worker.running() == ["gate"])


class RefusedBroker:
    def consumer(self, topics: Sequence[str], group: str, start: str = "earliest") -> Consumer:
        raise SettingsError("this user may not join the group")


def test_a_worker_that_may_not_join_ends_and_says_why(start: Callable[..., IngestWorker]) -> None:
    worker = start(RefusedBroker())
    wait_until("it ends", lambda: not worker.is_running)
    assert isinstance(worker.error, SettingsError)


@pytest.mark.parametrize("old_one_fails", [False, True])
def test_a_camera_put_back_before_its_old_capture_has_ended_is_watched_over_as_any_other(
    connect: Connect, broker: Broker, start: Callable[..., IngestWorker], old_one_fails: bool
) -> None:
    put_camera(broker, a_camera("gate"))
    worker = start(connect())
    wait_until("gate runs", lambda: worker.running() == ["gate"])
    (old,) = worker.captures
    old.may_end.clear()
    remove_camera(broker, "gate")
    put_camera(broker, a_camera("gate"))
    wait_until("gate is opened again", lambda: len(worker.captures) == 2)
    if old_one_fails:
        old.fails.set()
    old.may_end.set()
    wait_until("the old one is gone", lambda: worker.running() == ["gate"])
    time.sleep(0.7)
    assert len(worker.captures) == 2, "nobody runs twice"
    worker.captures[1].fails.set()
    wait_until("gate is tried again", lambda: len(worker.captures) == 3 and worker.running() == ["gate"], 5)


class ScriptedConsumer:
    """Gives what ``rounds`` say: the partitions from that poll on, and its messages; then nothing new."""

    def __init__(self, rounds: Sequence[tuple[Sequence[int], Sequence[Message]]]) -> None:
        self._rounds, self._partitions = list(rounds), [0]

    def poll(self, timeout_s: float = 1.0, max_messages: int = 500) -> list[Message]:
        if not self._rounds:
            time.sleep(0.05)
            return []
        self._partitions, messages = list(self._rounds[0][0]), list(self._rounds[0][1])
        del self._rounds[0]
        return messages

    def is_stable(self) -> bool:
        return True

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(TopicPartition(CAMERAS, number) for number in self._partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None: ...

    def position(self, partition: TopicPartition) -> int:
        return 0

    def close(self) -> None: ...


class StutteringBroker:
    """A Broker of one consumer whose ends cannot be asked for the second time."""

    def __init__(self, consumer: ScriptedConsumer) -> None:
        self._consumer, self._asked = consumer, 0

    def consumer(self, topics: Sequence[str], group: str, start: str = "earliest") -> ScriptedConsumer:
        return self._consumer

    def end_offsets(self, topic: str) -> Mapping[TopicPartition, int]:
        self._asked += 1
        if self._asked == 2:
            raise NotReadyError("the broker went away")
        return {}


def test_what_was_said_while_the_broker_stuttered_is_not_forgotten(start: Callable[..., IngestWorker]) -> None:
    said = Message(CAMERAS, 0, 0, b"gate", wire.encode(a_camera("gate")))
    worker = start(StutteringBroker(ScriptedConsumer([([0], []), ([0, 1], [said])])))
    wait_until("gate runs", lambda: worker.running() == ["gate"], 5)


# ------------------------------------------------------------------------------------------------ two workers

NAMES = [f"camera-{number:02}" for number in range(12)]


@pytest.mark.parametrize("kind", ["sqlite", "kafka"])
def test_two_workers_share_the_cameras_and_one_takes_all_when_the_other_leaves(
    connect: Connect, broker: Broker, start: Callable[..., IngestWorker]
) -> None:
    for name in NAMES:
        put_camera(broker, a_camera(name))
    first = start(connect())
    wait_until("one runs all", lambda: first.running() == NAMES)
    second = start(connect())
    wait_until("both have some", lambda: first.running() and second.running())
    wait_until("each runs once", lambda: sorted(first.running() + second.running()) == NAMES)
    kept = set(second.running())
    first.leave()
    assert first.error is None
    wait_until("the other runs all", lambda: second.running() == NAMES)
    assert all(len(second.captures_of(name)) == 1 for name in kept), "what it had went on"


@pytest.mark.parametrize("kind", ["sqlite", "kafka"])
def test_the_cameras_of_a_worker_that_is_cut_off_move_and_it_gives_them_up_when_it_is_back(
    connect: Connect, broker: Broker, start: Callable[..., IngestWorker]
) -> None:
    for name in NAMES:
        put_camera(broker, a_camera(name))
    network = CuttableBroker(connect())
    first, second = start(network), start(connect())
    wait_until("both have some", lambda: first.running() and second.running())
    wait_until("each runs once", lambda: sorted(first.running() + second.running()) == NAMES)
    alone = first.running()
    network.is_cut = True
    wait_until("the other runs all", lambda: second.running() == NAMES)
    assert first.running() == alone, "who is cut off cannot know"
    assert first.work.owns(alone[0]) is None
    network.is_cut = False
    wait_until("each runs once again", lambda: first.running() and sorted(first.running() + second.running()) == NAMES)
    put_camera(broker, a_camera("one-more"))
    wait_until("a new one runs once", lambda: sorted(first.running() + second.running()) == [*NAMES, "one-more"])
