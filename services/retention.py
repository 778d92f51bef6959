"""Really removing people: by id, or by age; rows, vectors and crops."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.errors import NotReadyError
from pipeline.ports import Gallery
from pipeline.types import CropReference
from services import audit
from services.settings import Settings
from services.topics import ALERTS, RANKINGS, TRACKLETS, dead_letter_topic

CARRIERS = (TRACKLETS, ALERTS, RANKINGS, dead_letter_topic(TRACKLETS), dead_letter_topic(ALERTS))
ID_CHARACTERS = 16  # of every tracklet id, pipeline/track/lifecycle.py
DAY_NS = 86_400_000_000_000
EVERY_S = 3_600.0

log = logging.getLogger("sightline.retention")


def erase_tracklets(settings: Settings, tracklet_ids: Sequence[str], issued_by: str, purpose: str) -> int:
    """Remove tracklets for good: index, crops, and what travelled over the log; gives how many were in the index.

    The audit record of the erasure stays, with the id and nothing else. An id too short to be one is left out: it would meet others.
    """
    from services.wiring import erase_from_log, open_broker, open_gallery

    with open_gallery(settings) as gallery:
        known = [tracklet.tracklet_id for tracklet in gallery.tracklets(tracklet_ids)]
        with open_broker(settings) as broker:
            for tracklet_id in known:
                audit.record(broker, "erase", tracklet_id, issued_by, purpose)
        _remove_crops(settings, gallery.delete(known))
    whole = [tracklet_id for tracklet_id in tracklet_ids if len(tracklet_id) >= ID_CHARACTERS]
    erase_from_log(settings, CARRIERS, whole)  # also of those that a first try left half way
    return len(known)


def expire_tracklets(settings: Settings, before_ns: int, issued_by: str) -> int:
    """Remove everything that ended before ``before_ns`` (0: index.retention_days ago); gives how many tracklets went."""
    from services.wiring import open_gallery

    if not before_ns:
        if not settings.index.retention_days:
            return 0
        before_ns = time.time_ns() - int(settings.index.retention_days * DAY_NS)
    with open_gallery(settings) as gallery:
        return _expire(settings, gallery, before_ns, issued_by)


@contextmanager
def keep_retention(settings: Settings, gallery: Gallery, is_wanted: bool = True, every_s: float = EVERY_S) -> Iterator[None]:
    """While the block runs, remove what is older than index.retention_days: at once, then every ``every_s`` seconds."""
    done = threading.Event()

    def keep() -> None:
        while True:
            try:
                _expire(settings, gallery, time.time_ns() - int(settings.index.retention_days * DAY_NS), "index worker")
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


def _expire(settings: Settings, gallery: Gallery, before_ns: int, issued_by: str) -> int:
    from services.wiring import open_broker

    held = gallery.statistics()
    if not held.tracklets or held.from_ns >= before_ns:
        return 0
    with open_broker(settings) as broker:
        audit.record(broker, "expire", str(before_ns), issued_by, "retention")
    _remove_crops(settings, gallery.expire(before_ns))
    return held.tracklets - gallery.statistics().tracklets


def _remove_crops(settings: Settings, crops: Sequence[CropReference]) -> None:
    from services.wiring import open_media

    open_media(settings).delete([crop.key for crop in crops])
