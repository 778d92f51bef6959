"""Standing queries as a user handles them, on the compacted topic; and the alerts they raised."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import closing

from pipeline.errors import NotFoundError, NotReadyError, SettingsError
from pipeline.ports import Broker, Message
from pipeline.types import Alert, Watch
from services import audit, wire
from services.lookup import SearchRequest, probes_of
from services.reading import until_end
from services.settings import Settings
from services.topics import ALERTS, WATCHES

DAY_NS = 86_400_000_000_000

log = logging.getLogger("sightline.watches")


def add_watch(settings: Settings, request: SearchRequest, threshold: float, expires_at_ns: int = 0) -> Watch:
    """Put a watch in force (for a day unless it says otherwise). Raises SettingsError for one that has expired already."""
    from services import wiring

    now_ns = time.time_ns()
    if expires_at_ns and expires_at_ns <= now_ns:
        raise SettingsError("a watch must expire in the future; give a later --expires (UTC)")
    probes, _ = probes_of(settings, request)
    for probe in probes:
        if probe.text:
            wiring.text_encoder(settings).encode(probe.text)  # words that no picture can show are refused now, not at three in the morning
    watch = Watch(
        watch_id=uuid.uuid4().hex[:12],
        probes=probes,
        threshold=threshold,
        cameras=request.window.cameras,
        zones=request.window.zones,
        created_at_ns=now_ns,
        expires_at_ns=expires_at_ns or now_ns + DAY_NS,
        issued_by=request.issued_by,
        purpose=request.purpose,
    )
    with wiring.open_broker(settings) as broker:
        audit.record(broker, "watch add", watch.watch_id, request.issued_by, request.purpose, {"probes": audit.kinds(probes)})
        broker.produce(WATCHES, wire.encode(watch), key=watch.watch_id.encode())
        broker.flush()
    return watch


def watches_in_force(settings: Settings) -> list[Watch]:
    """The watches not removed and not expired, oldest first."""
    from services import wiring

    with wiring.open_broker(settings) as broker:
        watches = read_watches(broker)
    now_ns = time.time_ns()
    return sorted((w for w in watches.values() if w.expires_at_ns > now_ns), key=lambda watch: watch.created_at_ns)


def read_watches(broker: Broker) -> dict[str, Watch]:
    """Every watch on the topic that is not removed, by id."""
    watches: dict[str, Watch] = {}
    consumer = broker.reader([WATCHES])
    try:
        for message in until_end(broker, consumer, WATCHES):
            watch = None if message.value is None else wire.decode(Watch, message.value)
            watch_id = (message.key or b"").decode()
            if watch is None or watch.is_removed:
                watches.pop(watch_id, None)
            else:
                watches[watch_id] = watch
    finally:
        consumer.close()
    return watches


def remove_watch(settings: Settings, watch_id: str, issued_by: str, purpose: str) -> None:
    """Take a watch out of force for good; raises NotFoundError for one that is not there."""
    from services import wiring

    with wiring.open_broker(settings) as broker:
        if watch_id not in read_watches(broker):
            raise NotFoundError(f"watch {watch_id} must be in force; `sightline watch list` shows those that are")
        audit.record(broker, "watch remove", watch_id, issued_by, purpose)
        broker.produce(WATCHES, None, key=watch_id.encode())
        broker.flush()


def follow_alerts(settings: Settings, follow: bool, for_s: float = 0.0) -> Iterator[Alert]:
    """The alerts raised so far; with ``follow`` also those to come, until ``for_s`` seconds are over (0: never).

    Each once: a worker that was cut off may have put the same alert, with the same id, onto the topic as its heir did.
    """
    from services import wiring

    ends_at = time.monotonic() + for_s if for_s else float("inf")
    told: set[str] = set()
    with wiring.open_broker(settings) as broker, closing(broker.reader([ALERTS])) as reader:
        for message in until_end(broker, reader, ALERTS):
            yield from _new_alert(message, told)
        while follow and time.monotonic() < ends_at:
            try:
                messages = reader.poll(timeout_s=min(0.5, max(0.0, ends_at - time.monotonic())))
            except NotReadyError as error:
                log.warning("alerts cannot be followed just now, tried again", extra={"reason": str(error)})
                time.sleep(1.0)
                continue
            for message in messages:
                yield from _new_alert(message, told)


def _new_alert(message: Message, told: set[str]) -> Iterator[Alert]:
    if message.value is None:  # erased
        return
    alert = wire.decode(Alert, message.value)
    if alert.alert_id not in told:
        told.add(alert.alert_id)
        yield alert
