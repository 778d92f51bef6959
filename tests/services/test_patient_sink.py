"""A sink that outlives a broker that is away and a full disk: nothing is lost, nothing that is another's is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import NotReadyError, StorageFullError
from pipeline.types import CameraCoverage, CropReference, Tracklet
from services import wire
from services.sinks import PatientSink, Publication, TopicSink
from services.topics import COVERAGE, TRACKLETS
from tests.fakes import NOON_NS, InMemoryMedia, S, a_tracklet

SESSION_S = 0.15  # what began more than this after the last word of the broker is another's, where the camera was taken over


class AwayBroker:
    """A Broker that keeps what it is given, and acknowledges it while it is there; ``refuses``: it takes nothing more either."""

    def __init__(self) -> None:
        self.is_there, self.refuses = True, False
        self.queued: list[tuple[str, bytes]] = []
        self.acknowledged: list[tuple[str, bytes]] = []
        self.flushes = 0

    def produce(self, topic: str, value: bytes, key: bytes | None = None, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        if self.refuses:
            raise NotReadyError("more waits than memory may hold")
        self.queued.append((topic, value))

    def flush(self, timeout_s: float = 10.0) -> None:
        self.flushes += 1
        if self.queued and not self.is_there:
            raise NotReadyError("the broker does not answer")
        self.acknowledged += self.queued
        self.queued = []

    def told(self) -> list[str]:
        """The tracklets that were acknowledged, in order."""
        return [wire.decode(Tracklet, value).tracklet_id for topic, value in self.acknowledged if topic == TRACKLETS]

    def covered(self) -> list[int]:
        """Frames seen, of every account that was acknowledged, in order."""
        return [wire.decode(CameraCoverage, value).seen for topic, value in self.acknowledged if topic == COVERAGE]


class FullDisk(InMemoryMedia):
    """A media store without room until somebody makes some."""

    is_full = True

    def put(self, key: str, jpeg: bytes) -> None:
        if self.is_full:
            raise StorageFullError("no space left for crops")
        super().put(key, jpeg)


class Ingest:
    """A patient sink and all that is around it. ``owned``: what the group says of every camera, None while nobody knows."""

    def __init__(self, media: InMemoryMedia | None = None, limit: int = 100) -> None:
        self.broker, self.media = AwayBroker(), media or InMemoryMedia()
        self.owned: bool | None = True
        self.stop = threading.Event()
        topics = TopicSink(self.broker, self.media, lambda bgr: b"jpeg")  # type: ignore[arg-type]
        self.sink = PatientSink(topics, self.media, lambda camera: self.owned, self.stop, SESSION_S, limit, lambda: NOON_NS)

    def publish(self, name: str, began_s: float = 0.0) -> None:
        """Somebody with one crop who came ``began_s`` after noon."""
        began_ns = NOON_NS + int(began_s * S)
        crop = CropReference(f"{name}.jpg", began_ns, (0.0, 0.0, 4.0, 8.0), 0.5)
        picture: NDArray[np.uint8] = np.zeros((8, 4, 3), np.uint8)
        self.sink.publish(Publication(a_tracklet(name, started_at_ns=began_ns, crops=(crop,)), ((crop.key, picture),)))

    def goes_away(self) -> None:
        """The broker does, with one message in its queue, and the line notices."""
        self.broker.is_there = False
        self.publish("first")
        self.sink.flush()

    def flush_until(self, what: str, condition: Callable[[], object], longest_s: float = 5.0) -> None:
        """As the line does, again and again."""
        ends_at = time.monotonic() + longest_s
        while not condition():
            assert time.monotonic() < ends_at, f"not within {longest_s:g} s: {what}"
            self.sink.flush()
            time.sleep(0.01)

    def publish_beside(self, name: str) -> threading.Thread:
        thread = threading.Thread(target=self.publish, args=(name,))
        thread.start()
        return thread


@pytest.fixture
def ingest() -> Ingest:
    return Ingest()


# ------------------------------------------------------------------------------------------ a broker that is away


def test_while_the_broker_is_there_nothing_is_held(ingest: Ingest) -> None:
    ingest.publish("one")
    ingest.sink.cover(CameraCoverage("north", 0, 1, seen=5))
    ingest.sink.flush()
    assert (ingest.broker.told(), ingest.broker.covered(), ingest.sink.held) == (["one"], [5], 0)
    assert list(ingest.media.held) == ["one.jpg"]


def test_what_is_held_while_the_broker_is_away_is_sent_in_order_when_it_is_back(ingest: Ingest) -> None:
    ingest.goes_away()
    for name in ("two", "three"):
        ingest.publish(name)
        ingest.sink.flush()
    assert (ingest.broker.told(), ingest.sink.held) == ([], 2)
    ingest.broker.is_there = True
    ingest.flush_until("everybody is told", lambda: ingest.sink.held == 0)
    ingest.publish("four")
    ingest.sink.flush()
    assert ingest.broker.told() == ["first", "two", "three", "four"]
    assert sorted(ingest.media.held) == ["first.jpg", "four.jpg", "three.jpg", "two.jpg"]


def test_what_comes_while_the_group_settles_queues_behind_what_is_held(ingest: Ingest) -> None:
    ingest.goes_away()
    ingest.publish("two")
    ingest.broker.is_there = True
    ingest.flush_until("the broker answers", ingest.broker.told)
    ingest.publish("three")
    assert ingest.sink.held == 2
    ingest.flush_until("everybody is told", lambda: ingest.sink.held == 0)
    assert ingest.broker.told() == ["first", "two", "three"]


def test_of_the_accounts_only_the_newest_waits(ingest: Ingest) -> None:
    ingest.goes_away()
    for seen in (1, 2, 3):
        ingest.sink.cover(CameraCoverage("north", 0, seen, seen=seen))
    ingest.sink.cover(CameraCoverage("south", 0, 1, seen=9))
    ingest.broker.is_there = True
    ingest.flush_until("both are told", lambda: len(ingest.broker.covered()) == 2)
    assert ingest.broker.covered() == [3, 9]


def test_a_broker_that_is_away_is_not_asked_at_every_frame(ingest: Ingest) -> None:
    ingest.goes_away()
    for _ in range(100):
        ingest.sink.flush()
    assert ingest.broker.flushes == 1


@pytest.mark.parametrize("how", ["does not acknowledge", "takes no more"])
def test_a_broker_that_goes_away_again_while_it_is_told_what_was_held_costs_nothing(ingest: Ingest, how: str) -> None:
    ingest.goes_away()
    for name in ("two", "three"):
        ingest.publish(name)
    ingest.broker.is_there = True
    ingest.flush_until("the broker answers", ingest.broker.told)
    if how == "takes no more":
        ingest.broker.refuses = True
    else:
        ingest.broker.is_there = False
    ends_at = time.monotonic() + 4 * SESSION_S  # long enough for the next try to tell what is held
    while time.monotonic() < ends_at:
        ingest.sink.flush()
        time.sleep(0.01)
    ingest.publish("four")
    ingest.broker.is_there, ingest.broker.refuses = True, False
    ingest.flush_until("everybody is told", lambda: "four" in ingest.broker.told())
    assert ingest.broker.told() == ["first", "two", "three", "four"]


def test_beyond_the_limit_the_line_waits_for_the_broker() -> None:
    ingest = Ingest(limit=2)
    ingest.goes_away()
    for name in ("two", "three"):
        ingest.publish(name)
    waiting = ingest.publish_beside("four")
    waiting.join(0.5)
    assert waiting.is_alive()
    assert ingest.sink.held == 3
    ingest.broker.is_there = True
    waiting.join(5)
    assert not waiting.is_alive()
    assert ingest.broker.told() == ["first", "two", "three", "four"]


def test_a_line_that_waits_for_the_broker_ends_when_it_must() -> None:
    ingest = Ingest(limit=0)
    ingest.goes_away()
    waiting = ingest.publish_beside("two")
    waiting.join(0.3)
    assert waiting.is_alive()
    ingest.stop.set()
    waiting.join(2)
    assert not waiting.is_alive()


def test_a_worker_that_must_end_while_the_broker_is_away_says_what_it_could_not_tell(ingest: Ingest) -> None:
    ingest.goes_away()
    ingest.publish("two")
    ingest.stop.set()
    with pytest.raises(NotReadyError, match="does not answer"):
        ingest.sink.flush()
    assert ingest.sink.held == 1


@pytest.mark.parametrize("owned", [True, None])
def test_a_worker_that_must_end_when_the_broker_is_back_tells_all_at_once(ingest: Ingest, owned: bool | None) -> None:
    ingest.goes_away()
    ingest.publish("two", began_s=60.0)
    ingest.sink.cover(CameraCoverage("north", 0, 1, seen=5))
    ingest.broker.is_there, ingest.owned = True, owned
    ingest.stop.set()
    ingest.sink.flush()
    assert (ingest.broker.told(), ingest.broker.covered(), ingest.sink.held) == (["first", "two"], [5], 0)


# --------------------------------------------------------------------------------------- a camera that was taken over


def test_of_a_camera_taken_over_only_what_began_before_is_told(ingest: Ingest) -> None:
    ingest.goes_away()
    ingest.publish("before", began_s=-30.0)
    ingest.publish("within the lease", began_s=0.9 * SESSION_S)
    ingest.publish("after", began_s=SESSION_S + 0.1)
    ingest.owned, ingest.broker.is_there = False, True
    ingest.flush_until("all is decided", lambda: ingest.sink.held == 0)
    assert ingest.broker.told() == ["first", "before", "within the lease"]
    assert sorted(ingest.media.held) == ["before.jpg", "first.jpg", "within the lease.jpg"]


def test_of_a_camera_that_stayed_ours_everything_is_told(ingest: Ingest) -> None:
    ingest.goes_away()
    ingest.publish("after", began_s=3_600.0)
    ingest.broker.is_there = True
    ingest.flush_until("all is decided", lambda: ingest.sink.held == 0)
    assert ingest.broker.told() == ["first", "after"]
    assert "after.jpg" in ingest.media.held


@pytest.mark.parametrize(("owned", "told"), [(True, ["first", "before", "after"]), (False, ["first", "before"])])
def test_while_nobody_knows_whose_a_camera_is_what_began_after_the_lease_waits(ingest: Ingest, owned: bool, told: list[str]) -> None:
    ingest.goes_away()
    ingest.publish("before", began_s=-30.0)
    ingest.publish("after", began_s=60.0)
    ingest.owned, ingest.broker.is_there = None, True
    ingest.flush_until("what is sure is told", lambda: ingest.broker.told() == ["first", "before"])
    assert ingest.sink.held == 1
    assert "after.jpg" in ingest.media.held
    ingest.owned = owned
    ingest.flush_until("all is decided", lambda: ingest.sink.held == 0)
    assert ingest.broker.told() == told
    assert ("after.jpg" in ingest.media.held) == owned


# ------------------------------------------------------------------------------------------------------ a full disk


def test_a_full_disk_holds_the_line_until_there_is_room() -> None:
    disk = FullDisk()
    ingest = Ingest(disk)
    waiting = ingest.publish_beside("one")
    waiting.join(0.3)
    assert waiting.is_alive()
    assert (ingest.broker.queued, ingest.sink.held) == ([], 0), "nobody is told of a crop that is not there"
    disk.is_full = False
    waiting.join(5)
    assert not waiting.is_alive()
    ingest.sink.flush()
    assert (ingest.broker.told(), list(disk.held)) == (["one"], ["one.jpg"])


def test_a_worker_that_must_end_does_not_wait_for_room() -> None:
    ingest = Ingest(FullDisk())
    ingest.stop.set()
    with pytest.raises(StorageFullError, match="no space left"):
        ingest.publish("one")
    assert ingest.broker.queued == []
