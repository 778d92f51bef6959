"""The index worker: tracklets and coverage from their topics into the identity index."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

from pipeline.errors import BadInputError
from pipeline.ports import Broker, Gallery
from pipeline.types import CameraCoverage, CropReference, Decision, Erasure, Reembedding, Tracklet
from services import wire
from services.linking import Linking
from services.reading import until_end
from services.topics import COVERAGE, DECISIONS, ERASURES, REEMBEDDINGS, TRACKLETS
from services.worker import Output, Received, Worker, where

log = logging.getLogger("sightline.index")

GROUP = "index"
BATCH = 200

OnIndexed = Callable[[Sequence[int], int, float], None]


class IndexHandler:
    """Writes each batch durably before its offsets are committed; a revision seen twice is ignored by the gallery."""

    def __init__(
        self,
        gallery: Gallery,
        on_indexed: OnIndexed | None = None,
        erased: Iterable[str] = (),
        remove_crops: Callable[[Sequence[CropReference]], None] = lambda crops: None,
        linking: Linking | None = None,
    ) -> None:
        """on_indexed: told when the last frames of the tracklets that can be searched now were taken, the time, and the
        seconds that writing them took; for metrics.

        erased: ids that never come in again, whatever is replayed; remove_crops: of those erased while we run, or brought again;
        linking: links what is in the gallery durably, and obeys operators.
        """
        self._gallery = gallery
        self._on_indexed = on_indexed
        self._erased = set(erased)
        self._remove_crops = remove_crops
        self._linking = linking

    def handle(self, batch: Sequence[Received]) -> list[Output]:
        """How identities changed. Raises what the gallery raises: BadInputError for one bad vector, StorageFullError.

        Raises BadInputError for an operator's word that contradicts one in force.
        """
        if self._linking is not None:
            self._linking.were_sent()
        outputs = self._index(batch)
        if self._linking is not None:
            self._obey(self._linking, batch)
            outputs += self._linking.outputs()
        return outputs

    def _obey(self, linking: Linking, batch: Sequence[Received]) -> None:
        """Operators' words; one that was taken away is as if never spoken."""
        for received in batch:
            if isinstance(received.value, Decision):
                if not {received.value.first, received.value.second} & self._erased:
                    linking.decide(received.value)
            elif received.value is None and received.message.topic == DECISIONS:
                linking.forget_decision((received.message.key or b"").decode(errors="replace"))

    def _index(self, batch: Sequence[Received]) -> list[Output]:
        """Into the gallery, and what is durable there into the identities."""
        outputs: list[Output] = []
        gone = {received.value.tracklet_id for received in batch if isinstance(received.value, Erasure)}
        if gone:
            self._erased |= gone
            self._remove_crops(self._gallery.delete(sorted(gone)))
            if self._linking is not None:
                self._linking.erase(sorted(gone))
        brought = [r.value for r in batch if isinstance(r.value, Tracklet)]
        tracklets = [each for each in brought if each.tracklet_id not in self._erased]
        refused = [crop for each in brought if each.tracklet_id in self._erased for crop in each.crops]
        if refused:  # footage read again stored their pictures anew
            self._remove_crops(refused)
        if tracklets:
            started_s = time.monotonic()
            self._gallery.upsert(tracklets)
            if self._on_indexed is not None:
                self._on_indexed([tracklet.ended_at_ns for tracklet in tracklets], time.time_ns(), time.monotonic() - started_s)
            if self._linking is not None:
                self._linking.take(tracklets)
        added = [r.value for r in batch if isinstance(r.value, Reembedding) and r.value.tracklet_id not in self._erased]
        if added:
            self._gallery.add_embeddings(added)
            if self._linking is not None:
                self._linking.refresh(self._gallery.tracklets([each.tracklet_id for each in added]))
        accounts: dict[tuple[str, int], CameraCoverage] = {}
        for received in batch:
            if isinstance(received.value, CameraCoverage):
                accounts[received.value.camera_id, received.value.from_ns] = received.value  # the last account of a stretch holds
        for account in accounts.values():
            self._gallery.record_coverage(account)
        return outputs


def erased_ids(broker: Broker) -> set[str]:
    """The ids of every tracklet that was erased while its topic remembers."""
    found = set()
    with closing(broker.reader([ERASURES])) as reader:
        for message in until_end(broker, reader, ERASURES):
            try:
                found.add(wire.decode(Erasure, message.value).tracklet_id)
            except BadInputError as error:  # the worker meets it too, and puts it aside
                log.error("erasure that cannot be read", extra={**where([message]), "reason": str(error)})
    return found


def index_worker(broker: Broker, handler: IndexHandler, group: str = GROUP, batch: int = BATCH, **options: Any) -> Worker:
    """The worker of ``group``; call its ``run``. options: those of Worker."""
    return Worker(group, broker, (TRACKLETS, COVERAGE, ERASURES, REEMBEDDINGS, DECISIONS), handler, batch=batch, stage="index", **options)
