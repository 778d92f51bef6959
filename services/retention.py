"""Really removing people: by id, or by age; rows, vectors and crops."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.errors import NotReadyError
from pipeline.ports import Gallery, IdentityStore
from pipeline.types import CropReference, Erasure
from services import audit, wire
from services.settings import Settings
from services.topics import ALERTS, DECISIONS, ERASURES, IDENTITIES, RANKINGS, REEMBEDDINGS, TRACKLETS, dead_letter_topic

CARRIERS = (
    *(TRACKLETS, REEMBEDDINGS, ALERTS, RANKINGS, DECISIONS, IDENTITIES),
    *map(dead_letter_topic, (TRACKLETS, ALERTS, DECISIONS)),
)
ID_CHARACTERS = 16  # of every tracklet id, pipeline/track/lifecycle.py
DAY_NS = 86_400_000_000_000
EVERY_S = 3_600.0

ERASED_WITHIN_S = 30.0

log = logging.getLogger("sightline.retention")


@dataclass(frozen=True, slots=True)
class Erased:
    """tracklets: how many were in the index of this machine; is_in_log: Kafka keeps their messages until their time is over."""

    tracklets: int
    is_in_log: bool


def erase_tracklets(settings: Settings, tracklet_ids: Sequence[str], issued_by: str, purpose: str) -> Erased:
    """Remove tracklets for good: from every copy of the index, their crops, and what travelled over the embedded log.

    The audit records stay, with the ids and nothing else; so do the erasures, which keep a replay from bringing anybody back. An id too
    short to be one is left out: it would meet others. Raises NotReadyError when the index worker that writes this machine's index does
    not remove them in time; it will when it is there again.
    """
    from services.wiring import erase_from_log, open_broker, open_gallery, open_identities

    whole = [tracklet_id for tracklet_id in tracklet_ids if len(tracklet_id) >= ID_CHARACTERS]
    held = _held(settings, whole)  # counted before anybody is told: a worker may be quick
    with open_broker(settings) as broker:
        for tracklet_id in whole:
            audit.record(broker, "erase", tracklet_id, issued_by, purpose)
            broker.produce(ERASURES, wire.encode(Erasure(tracklet_id, time.time_ns())), tracklet_id.encode())
        broker.flush()
    try:
        with open_gallery(settings) as gallery:
            held = [tracklet.tracklet_id for tracklet in gallery.tracklets(whole)] or held
            remove_crops(settings, gallery.delete(whole))
            with open_identities(settings) as identities:
                identities.remove(whole)
    except NotReadyError:  # another process writes the index: its worker has been told
        _wait_until_gone(settings, whole)
    is_in_log = erase_from_log(settings, CARRIERS, whole) is None  # also of those that a first try left half way
    return Erased(len(held), is_in_log)


def _held(settings: Settings, tracklet_ids: Sequence[str]) -> list[str]:
    """Those of them that the index of this machine holds; none where there is no index."""
    from services.wiring import open_gallery

    try:
        with open_gallery(settings, read_only=True) as gallery:
            return [tracklet.tracklet_id for tracklet in gallery.tracklets(tracklet_ids)]
    except NotReadyError:
        return []


def _wait_until_gone(settings: Settings, tracklet_ids: Sequence[str]) -> None:
    from services.wiring import open_gallery

    ends_at = time.monotonic() + ERASED_WITHIN_S
    while True:
        with open_gallery(settings, read_only=True) as gallery:
            left = gallery.tracklets(tracklet_ids)
        if not left:
            return
        if time.monotonic() > ends_at:
            raise NotReadyError(
                f"{len(left)} tracklets are not out of the index yet: its worker is told and removes them when it runs again"
            )
        time.sleep(0.2)


def expire_tracklets(settings: Settings, before_ns: int, issued_by: str) -> int:
    """Remove everything that ended before ``before_ns`` (0: index.retention_days ago); gives how many tracklets went."""
    from services.wiring import open_gallery, open_identities

    if not before_ns:
        if not settings.index.retention_days:
            return 0
        before_ns = time.time_ns() - int(settings.index.retention_days * DAY_NS)
    with open_gallery(settings) as gallery, open_identities(settings) as identities:
        return _expire(settings, gallery, before_ns, issued_by, functools.partial(_forget, settings, identities))


def _forget(settings: Settings, identities: IdentityStore, before_ns: int) -> None:
    """Out of the identities, and what operators said of them off its topic, which keeps it for ever otherwise."""
    from services.wiring import open_broker

    gone = set(identities.ended_before(before_ns))
    keys = [each.key for each in identities.decisions() if gone & {each.first, each.second}]
    if keys:
        with open_broker(settings) as broker:
            for key in keys:
                broker.produce(DECISIONS, None, key.encode())
            broker.flush()
    identities.remove(sorted(gone))


@contextmanager
def keep_retention(
    settings: Settings,
    gallery: Gallery,
    is_wanted: bool = True,
    every_s: float = EVERY_S,
    on_expired: Callable[[int], None] = lambda before_ns: None,
) -> Iterator[None]:
    """While the block runs, remove what is older than index.retention_days: at once, then every ``every_s`` seconds.

    on_expired: told before which time, when the index holds nothing that ended before it any more.
    """
    done = threading.Event()

    def keep() -> None:
        while True:
            try:
                _expire(settings, gallery, time.time_ns() - int(settings.index.retention_days * DAY_NS), "index worker", on_expired)
            except NotReadyError as error:  # a full disk, say: the next hour tries again
                log.warning("retention put off", extra={"reason": str(error)})
            if done.wait(every_s):
                return

    thread = threading.Thread(target=keep, name="retention", daemon=True)
    if is_wanted and settings.index.retention_days:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.ident is not None:
            thread.join()


def _expire(settings: Settings, gallery: Gallery, before_ns: int, issued_by: str, on_expired: Callable[[int], None]) -> int:
    from services.wiring import open_broker

    held = gallery.statistics()
    if not held.tracklets or held.from_ns >= before_ns:
        on_expired(before_ns)  # what an end between the two removals left
        return 0
    with open_broker(settings) as broker:
        audit.record(broker, "expire", str(before_ns), issued_by, "retention")
    remove_crops(settings, gallery.expire(before_ns))
    on_expired(before_ns)
    return held.tracklets - gallery.statistics().tracklets


def remove_crops(settings: Settings, crops: Sequence[CropReference]) -> None:
    """Remove crops from the media store."""
    from services.wiring import open_media

    open_media(settings).delete([crop.key for crop in crops])
