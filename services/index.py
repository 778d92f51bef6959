"""The index worker: tracklets and coverage from their topics into the identity index."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pipeline.ports import Broker, Gallery
from pipeline.types import CameraCoverage, Tracklet
from services.topics import COVERAGE, TRACKLETS
from services.worker import Observer, Output, Received, Worker

GROUP = "index"
BATCH = 200

OnIndexed = Callable[[Sequence[int], int], None]


class IndexHandler:
    """Writes each batch durably before its offsets are committed; a revision seen twice is ignored by the gallery."""

    def __init__(self, gallery: Gallery, on_indexed: OnIndexed | None = None) -> None:
        """on_indexed: told when the last frames of the tracklets that can be searched now were taken, and the time; for metrics."""
        self._gallery = gallery
        self._on_indexed = on_indexed

    def handle(self, batch: Sequence[Received]) -> list[Output]:
        """Nothing to send on. Raises what the gallery raises: BadInputError for one bad vector, StorageFullError."""
        tracklets = [received.value for received in batch if isinstance(received.value, Tracklet)]
        if tracklets:
            self._gallery.upsert(tracklets)
            if self._on_indexed is not None:
                self._on_indexed([tracklet.ended_at_ns for tracklet in tracklets], time.time_ns())
        accounts: dict[tuple[str, int], CameraCoverage] = {}
        for received in batch:
            if isinstance(received.value, CameraCoverage):
                accounts[received.value.camera_id, received.value.from_ns] = received.value  # the last account of a stretch holds
        for account in accounts.values():
            self._gallery.record_coverage(account)
        return []


def index_worker(
    broker: Broker, gallery: Gallery, batch: int = BATCH, observer: Observer | None = None, on_indexed: OnIndexed | None = None
) -> Worker:
    """The worker of group ``index`` over tracklets and coverage; call its ``run``."""
    return Worker(GROUP, broker, (TRACKLETS, COVERAGE), IndexHandler(gallery, on_indexed), batch=batch, observer=observer)
