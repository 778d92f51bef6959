"""Where an ingest line's publications and coverage go: crops into the media store, tracklets and accounts onto their topics."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.backoff import Backoff
from pipeline.errors import NotReadyError
from pipeline.ports import Broker, MediaStore
from pipeline.types import CameraCoverage, Tracklet
from services import wire
from services.topics import COVERAGE, TRACKLETS
from services.tracing import NoTracer, Tracer

if TYPE_CHECKING:
    from services.metrics import Metrics

log = logging.getLogger("sightline.ingest")

FLUSH_WITHIN_S = 2.0  # a broker that does not acknowledge for so long is away
LAST_FLUSH_S = 4.5  # of a worker that must end: SIGTERM to exit within 10 s, leaving the group and closing the broker among them

EncodePicture = Callable[[NDArray[np.uint8]], bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Publication:
    """A tracklet revision and the pictures that go with it: (key, BGR crop)."""

    tracklet: Tracklet
    pictures: tuple[tuple[str, NDArray[np.uint8]], ...] = ()


class Sink(Protocol):
    """Where publications and coverage accounts go."""

    def publish(self, publication: Publication) -> None: ...

    def cover(self, coverage: CameraCoverage) -> None: ...

    def flush(self) -> None: ...


def store_pictures(publication: Publication, media: MediaStore, encode: EncodePicture) -> None:
    """The pictures of a publication into the media store; what is there already is written anew. Raises StorageFullError."""
    for key, picture in publication.pictures:
        media.put(key, encode(picture))


class TopicSink:
    """Crops into the media store first, then the tracklet onto its topic: a reader never meets a crop that is not there."""

    def __init__(
        self,
        broker: Broker,
        media: MediaStore,
        encode_picture: EncodePicture,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._broker = broker
        self._media = media
        self._encode_picture = encode_picture
        self._metrics = metrics
        self._tracer: Tracer = tracer or NoTracer()

    def publish(self, publication: Publication) -> None:
        self.store(publication)
        self.send(publication.tracklet)

    def store(self, publication: Publication) -> None:
        """The pictures of a publication into the media store."""
        store_pictures(publication, self._media, self._encode_picture)

    def send(self, tracklet: Tracklet) -> None:
        """A tracklet onto its topic, its crops being there."""
        message = wire.encode(tracklet)
        with self._tracer.tracklet(tracklet) as headers:
            self._broker.produce(TRACKLETS, message, tracklet.camera_id.encode(), headers)
        if self._metrics is not None:
            self._metrics.published_on(TRACKLETS, len(message))
            kind = "closed" if tracklet.is_closed else "confirmed" if tracklet.revision == 1 else "better"
            self._metrics.tracklets.labels(camera=tracklet.camera_id, kind=kind).inc()

    def cover(self, coverage: CameraCoverage) -> None:
        message = wire.encode(coverage)
        self._broker.produce(COVERAGE, message, key=coverage.camera_id.encode())
        if self._metrics is not None:
            self._metrics.published_on(COVERAGE, len(message))

    def flush(self, timeout_s: float = 10.0) -> None:
        started_s = time.monotonic()
        self._broker.flush(timeout_s)
        if self._metrics is not None:
            self._metrics.flush_seconds.observe(time.monotonic() - started_s)


class RevisionSink:
    """Keeps the tracklet revisions of a line in memory, for measuring; pictures and accounts are dropped."""

    def __init__(self) -> None:
        self.revisions: list[Tracklet] = []

    def publish(self, publication: Publication) -> None:
        self.revisions.append(publication.tracklet)

    def cover(self, coverage: CameraCoverage) -> None:
        pass

    def flush(self) -> None:
        pass


class PatientSink:
    """A sink of a worker that outlives a full disk and a broker that is away; nothing is lost.

    A full disk holds the line up until there is room: live frames are dropped and counted meanwhile, footage waits. While the broker is
    away the line goes on and tracklets are held, most ``limit`` of them, then the line waits too. When it is back, what was held is sent
    for the cameras that are still ours. Where another worker took a camera over meanwhile (its session timed out, as in a cut network),
    what began after that moment is the other's to tell, and dropped here; the moment is known to within the seconds between two messages,
    and what began in those may be told by both.
    """

    def __init__(
        self,
        sink: TopicSink,
        media: MediaStore,
        owns: Callable[[str], bool | None],
        stop: threading.Event,
        session_timeout_s: float,
        limit: int = 5_000,
        clock_ns: Callable[[], int] = time.time_ns,
        metrics: Metrics | None = None,
    ) -> None:
        """owns: whether a camera is ours, None while nobody knows; stop: set when the worker must end."""
        self._sink, self._media, self._owns, self._stop = sink, media, owns, stop
        self._session_s, self._limit, self._clock_ns, self._metrics = session_timeout_s, limit, clock_ns, metrics
        self._held: deque[Tracklet] = deque()
        self._accounts: dict[tuple[str, int], CameraCoverage] = {}
        self._durable_at_ns = clock_ns()
        self._away_at_ns = 0  # since when the broker is away; 0: it is there
        self._back_since_s: float | None = None
        self._next_try_s = 0.0
        self._pause = Backoff(0.2, 5.0)

    @property
    def held(self) -> int:
        """Tracklets that wait for the broker."""
        return len(self._held)

    def publish(self, publication: Publication) -> None:
        self._patiently(lambda: self._sink.store(publication))
        self._send(publication.tracklet)

    def _send(self, tracklet: Tracklet) -> None:
        if not self._away_at_ns and not self._held:
            try:
                self._sink.send(tracklet)
                return
            except NotReadyError as error:
                self._is_away(error)
        self._held.append(tracklet)
        while len(self._held) > self._limit and not self._stop.wait(0.2):
            self.flush()

    def cover(self, coverage: CameraCoverage) -> None:
        """Only the newest account of each camera needs to wait."""
        self._accounts[coverage.camera_id, coverage.from_ns] = coverage

    def flush(self) -> None:
        """As ``_flush``, and tell whether the broker is there and how many tracklets wait."""
        try:
            self._flush()
        finally:
            if self._metrics is not None:
                self._metrics.held.set(self.held)
                self._metrics.connected("ingest", not self._away_at_ns)

    def _flush(self) -> None:
        """Make durable what can be; what cannot stays held. When the worker stops: the last try, and an error when it fails."""
        is_last = self._stop.is_set()
        if not is_last and time.monotonic() < self._next_try_s:
            return
        try:
            if not self._away_at_ns or is_last:
                self._send_accounts()
            self._sink.flush(LAST_FLUSH_S if is_last and not self._away_at_ns else FLUSH_WITHIN_S)
        except NotReadyError as error:
            self._is_away(error)
            if is_last:
                raise
            return
        self._is_back(is_last)

    def _send_accounts(self) -> None:
        for key, account in list(self._accounts.items()):
            self._sink.cover(account)
            del self._accounts[key]

    def _is_away(self, error: NotReadyError) -> None:
        if not self._away_at_ns:
            self._away_at_ns = self._durable_at_ns
            log.warning("broker away, the cameras go on and tracklets are held", extra={"reason": str(error)})
        self._back_since_s = None
        self._next_try_s = time.monotonic() + self._pause.next_s()

    def _is_back(self, is_last: bool) -> None:
        self._pause.reset()
        self._next_try_s = 0.0
        if not self._away_at_ns:
            self._durable_at_ns = self._clock_ns()
            return
        # The group notices within a heartbeat or two who was taken for dead; before that nobody can say whose a camera is.
        self._back_since_s = self._back_since_s or time.monotonic()
        if time.monotonic() - self._back_since_s < self._session_s / 3 and not is_last:
            return
        if self._release(is_last) and not self._held:
            log.info("broker back, nothing is held any more")
            self._away_at_ns, self._durable_at_ns, self._back_since_s = 0, self._clock_ns(), None

    def _release(self, is_last: bool) -> bool:
        """Send what is held for cameras that are still ours; whether the broker took it. One that went away again leaves the rest held."""
        lease_ends_ns = self._away_at_ns + int(self._session_s * 1e9)
        kept = deque[Tracklet]()
        try:
            while self._held:
                tracklet = self._held[0]
                is_ours = self._owns(tracklet.camera_id)
                if is_ours is None and tracklet.started_at_ns > lease_ends_ns and not is_last:
                    kept.append(tracklet)
                elif is_ours is not False or tracklet.started_at_ns <= lease_ends_ns:
                    self._sink.send(tracklet)
                else:
                    log.info("tracklet left to the worker that took the camera over", extra={"camera": tracklet.camera_id})
                    self._media.delete([crop.key for crop in tracklet.crops])
                self._held.popleft()
            self._sink.flush(LAST_FLUSH_S)
        except NotReadyError as error:
            if is_last:
                raise
            self._is_away(error)
            return False
        finally:
            self._held.extendleft(reversed(kept))
        return True

    def _patiently(self, act: Callable[[], None]) -> None:
        pause = Backoff(0.2, 5.0)
        while True:
            try:
                act()
                return
            except NotReadyError as error:
                if self._stop.is_set():
                    raise
                log.warning("the line waits", extra={"reason": str(error)})
                self._stop.wait(pause.next_s())
