"""Cameras as work: the compacted ``cameras`` topic says which there are, and the ingest workers, one consumer group, share them.

A worker that dies hands its cameras on after the session timeout; one that is added takes its share. Nobody needs a restart: a camera
that is put on the topic runs within a second, one that is taken off closes its open tracks and stops. What a worker must do follows
from the topic as it is, not from offsets, so each reads the whole of a partition that it is given, and commits nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from pipeline.backoff import Backoff
from pipeline.errors import BadInputError, NotFoundError, NotReadyError
from pipeline.ports import Broker, Capture, Consumer, Message, TopicPartition
from pipeline.types import Camera
from services import wire
from services.ingest import IngestLine
from services.reading import until_end
from services.topics import CAMERAS
from services.worker import where

log = logging.getLogger("sightline.cameras")

GROUP = "ingest"
POLL_S = 0.2
FROM_SETTINGS = "settings"  # Camera.origin of those that a settings file declares


# -------------------------------------------------------------------------------------------- the topic


def read_cameras(broker: Broker) -> dict[str, Camera]:
    """Every camera on the topic, by id."""
    cameras: dict[str, Camera] = {}
    with closing(broker.reader([CAMERAS])) as reader:
        for message in until_end(broker, reader, CAMERAS):
            take(cameras, message)
    return dict(sorted(cameras.items()))


def take(cameras: dict[str, Camera], message: Message) -> None:
    """Bring what is known up to one message; one that does not decode is logged and takes its camera out."""
    key = (message.key or b"").decode(errors="replace")
    cameras.pop(key, None)
    if message.value is None:
        return
    try:
        camera = wire.decode(Camera, message.value)
    except BadInputError as error:
        log.error("camera left out", extra={"camera": key, "reason": str(error), **where([message])})
        return
    cameras[key] = camera


def put_camera(broker: Broker, camera: Camera) -> None:
    """Put a camera on the topic, or change one that is there; durable when this returns."""
    broker.produce(CAMERAS, wire.encode(camera), camera.camera_id.encode())
    broker.flush()


def remove_camera(broker: Broker, camera_id: str) -> None:
    """Take a camera off the topic; raises NotFoundError when it is not there."""
    if camera_id not in (known := read_cameras(broker)):
        raise NotFoundError(f"the camera must be one of {', '.join(known) or '(none yet)'}, got {camera_id!r}")
    broker.produce(CAMERAS, None, camera_id.encode())
    broker.flush()


def declare(broker: Broker, cameras: Iterable[Camera]) -> None:
    """Make the topic say what a settings file says: its cameras are put there, those that it said before and no longer does are removed.

    Cameras that were added by hand stay.
    """
    known = read_cameras(broker)
    wanted = {camera.camera_id: camera for camera in cameras}
    for camera_id, camera in wanted.items():
        if known.get(camera_id) != camera:
            broker.produce(CAMERAS, wire.encode(camera), camera_id.encode())
    for camera_id, camera in known.items():
        if camera.origin == FROM_SETTINGS and camera_id not in wanted:
            broker.produce(CAMERAS, None, camera_id.encode())
    broker.flush()


# ----------------------------------------------------------------------------------------------- the work


@dataclass(slots=True)
class _Running:
    """A camera that is ours: what the topic says of it, its capture, and when it is tried again after a failure."""

    camera: Camera
    partition: TopicPartition
    capture: Capture | None = None  # while it is on the line
    has_ended: bool = False  # done, and nothing is missing
    is_done: bool = False  # footage that came to its end, or a camera that can never work: until the topic says otherwise
    tries_at_s: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(0.5))


class CameraWork:
    """Keeps an endless IngestLine at the cameras of this member of the group ``ingest``."""

    def __init__(
        self,
        broker: Broker,
        open_camera: Callable[[Camera], Capture],
        group: str = GROUP,
        on_cameras: Callable[[Collection[str]], None] | None = None,
    ) -> None:
        """on_cameras: told which live cameras are ours, for metrics."""
        self._broker, self._open_camera, self._group = broker, open_camera, group
        self._on_cameras = on_cameras
        self._lock = threading.RLock()
        self._cameras: dict[str, _Running] = {}
        self._unread: dict[TopicPartition, int] = {}  # partitions we were given -> the end up to which their past is not read yet
        self._owned: frozenset[TopicPartition] = frozenset()
        self._is_sure = False
        self._line: IngestLine | None = None

    def run(self, line: IngestLine, stop: threading.Event) -> None:
        """Follow the group and the topic until ``stop`` is set."""
        self._line = line
        consumer = self._join(stop)
        if consumer is None:
            return
        with closing(consumer):
            messages: list[Message] = []
            while not stop.is_set():
                try:
                    messages += consumer.poll(POLL_S)  # what was read stays in hand until the group could be followed
                    self._follow_group(consumer)
                except NotReadyError as error:
                    self._is_sure = False  # cameras go on: nobody can take them from us while the group is away
                    log.warning("cannot follow the cameras, those at work go on", extra={"reason": str(error)})
                    stop.wait(1.0)
                    continue
                for message in messages:
                    self._take(message)
                messages = []
                self._keep_on_line()
            line.stop()  # the cameras end while we leave the group: where the broker is away that takes a while

    def _join(self, stop: threading.Event) -> Consumer | None:
        pause = Backoff()
        while not stop.is_set():
            try:
                return self._broker.consumer([CAMERAS], self._group)
            except NotReadyError as error:
                log.warning("cannot join the ingest workers yet", extra={"reason": str(error)})
                stop.wait(pause.next_s())
        return None

    def owns(self, camera_id: str) -> bool | None:
        """Whether a camera is ours; None while nobody knows, as the group is away or is sharing out anew."""
        with self._lock:
            return camera_id in self._cameras if self._is_sure else None

    def cameras(self) -> Mapping[str, Camera]:
        """The cameras of this worker."""
        with self._lock:
            return {camera_id: running.camera for camera_id, running in self._cameras.items()}

    # the group

    def _follow_group(self, consumer: Consumer) -> None:
        if not consumer.is_stable():
            self._is_sure = False
            return
        owned = consumer.assignment()
        gained, lost = owned - self._owned, self._owned - owned
        with self._lock:
            for camera_id in [c for c, running in self._cameras.items() if running.partition in lost]:
                self._let_go(camera_id)
        for partition in lost:
            self._unread.pop(partition, None)
        if gained:
            ends = self._broker.end_offsets(CAMERAS)
            for partition in gained:
                consumer.seek(partition, 0)
                self._unread[partition] = ends.get(partition, 0)
        if gained or lost:
            log.info("cameras shared out", extra={"partitions": len(owned), "gained": len(gained), "lost": len(lost)})
        self._owned = owned
        for partition in [p for p in self._unread if consumer.position(p) >= self._unread[p]]:
            del self._unread[partition]
        self._is_sure = not self._unread

    def _take(self, message: Message) -> None:
        partition = TopicPartition(message.topic, message.partition)
        if partition not in self._owned:
            return  # given away, or given a moment ago: then its past is read from the start
        said: dict[str, Camera] = {}
        take(said, message)
        key = (message.key or b"").decode(errors="replace")
        with self._lock:
            running = self._cameras.get(key)
            camera = said.get(key)
            if running is not None and camera == running.camera:
                return
            if running is not None:
                self._let_go(key)
            if camera is not None:
                self._cameras[key] = _Running(camera, partition)

    def _let_go(self, camera_id: str) -> None:
        self._cameras.pop(camera_id)
        assert self._line is not None
        self._line.remove(camera_id)

    # the line

    def _keep_on_line(self) -> None:
        """Put on the line what is ours, known to the end of the topic, and not running yet."""
        with self._lock:
            waiting = [
                running
                for running in self._cameras.values()
                if running.capture is None
                and not running.is_done
                and running.partition not in self._unread
                and time.monotonic() >= running.tries_at_s
            ]
            live = [name for name, running in self._cameras.items() if running.camera.is_live and not running.has_ended]
        for running in waiting:
            self._open(running)
        if self._on_cameras is not None:
            self._on_cameras(live)

    def _open(self, running: _Running) -> None:
        assert self._line is not None
        name = running.camera.camera_id
        try:
            capture = self._open_camera(running.camera)
        except BadInputError as error:
            running.is_done = True
            log.error("camera left out", extra={"camera": name, "reason": str(error)})
            return
        except NotReadyError as error:
            running.tries_at_s = time.monotonic() + running.backoff.next_s()
            log.warning("camera not ready", extra={"camera": name, "reason": str(error)})
            return
        running.capture = capture
        self._line.add(capture)
        log.info("camera taken", extra={"camera": name})

    def ended(self, capture: Capture, error: Exception | None) -> None:
        """The line's word that a capture left it; a camera that is still ours and may come back is tried again."""
        with self._lock:
            running = self._cameras.get(capture.camera.camera_id)
            if running is None or running.capture is not capture:
                return  # let go, or an older one of a camera that was put back meanwhile
            running.capture = None
            if capture.coverage().seen:  # it had worked
                running.backoff.reset()
            if isinstance(error, NotReadyError):
                running.tries_at_s = time.monotonic() + running.backoff.next_s()
            else:
                running.is_done, running.has_ended = True, error is None
                log.info("camera came to its end", extra={"camera": capture.camera.camera_id})
