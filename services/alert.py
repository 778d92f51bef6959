"""The alert worker: tracklets in, alerts out, watches followed as they come and go."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pipeline.alert import AlertStage
from pipeline.errors import BadInputError
from pipeline.ports import Broker, Message
from pipeline.types import Alert, Tracklet, Watch
from services import wire
from services.reading import until_end
from services.topics import ALERTS, TRACKLETS, WATCHES
from services.worker import Output, Received, Worker, where

log = logging.getLogger("sightline.alert")

CATCH_UP_S = 10.0


class AlertHandler:
    """Compares each batch of tracklets with the watches in force at that moment.

    Watches and the alerts already raised are read from the start of their topics by a reader of our own, outside the worker's
    group: every alert worker must know all of them, also after a restart and after taking over another one's cameras.
    clock_ns: UTC; on_alert: told of each alert, for metrics.
    """

    def __init__(
        self,
        broker: Broker,
        stage: AlertStage,
        clock_ns: Callable[[], int] = time.time_ns,
        on_alert: Callable[[Alert], None] | None = None,
    ) -> None:
        self._broker = broker
        self._stage = stage
        self._clock_ns = clock_ns
        self._on_alert = on_alert
        self._warned: set[tuple[str, tuple[str, ...]]] = set()
        self._news = broker.reader([WATCHES, ALERTS])

    def handle(self, batch: Sequence[Received]) -> Iterable[Output]:
        """The alerts of a batch of tracklets; raises NotReadyError when the watches cannot be read to their end."""
        self._catch_up()
        alerts = [
            (alert, received.message)
            for received in batch
            if isinstance(received.value, Tracklet)
            for alert in self._stage.compare(received.value, self._clock_ns())
        ]
        self._warn_of_blind_watches(batch)
        for alert, message in alerts:
            facts = (alert.alert_id, alert.watch_id, alert.tracklet_id, alert.score)
            log.info("alert %s: watch %s, tracklet %s, score %.2f", *facts, extra=where([message]))
            if self._on_alert is not None:
                self._on_alert(alert)
        return [Output(ALERTS, alert.camera_id, alert, message) for alert, message in alerts]

    def close(self) -> None:
        """Stop following watches."""
        self._news.close()

    def _warn_of_blind_watches(self, batch: Sequence[Received]) -> None:
        """Say once for each kind of tracklet which watches cannot see it: after a change of model they would be silent for ever."""
        last = next((received.value for received in reversed(batch) if isinstance(received.value, Tracklet)), None)
        if last is None:
            return
        spaces = tuple(sorted(embedding.space for embedding in last.embeddings))
        for watch_id, reason in self._stage.unseen_by(last).items():
            if (watch_id, spaces) not in self._warned:
                self._warned.add((watch_id, spaces))
                log.warning("watch %s %s", watch_id, reason)

    def _catch_up(self) -> None:
        """Take in every watch and alert that is on the topics now: a watch added before a tracklet is in force for it."""
        for message in until_end(self._broker, self._news, WATCHES, ALERTS, patience_s=CATCH_UP_S):
            self._take(message)

    def _take(self, message: Message) -> None:
        """One watch or alert; one that does not decode or cannot be used is logged, and the others stay in force."""
        key = (message.key or b"").decode(errors="replace")
        try:
            if message.topic == ALERTS:
                if message.value is not None:
                    self._stage.remember(wire.decode(Alert, message.value).alert_id)
            elif message.value is None:
                self._stage.remove(key)
            else:
                for note in self._stage.put(wire.decode(Watch, message.value)):
                    log.warning("watch %s: %s", key, note, extra=where([message]))
        except BadInputError as error:
            log.error("%s %s is not in force: %s", "watch" if message.topic == WATCHES else "alert", key, error, extra=where([message]))


def alert_worker(broker: Broker, handler: AlertHandler, batch: int = 100, **options: Any) -> Worker:
    """The member of the consumer group ``alert`` over tracklets; a new group starts with the first tracklet that is kept.

    options: those of Worker.
    """
    return Worker("alert", broker, [TRACKLETS], handler, batch=batch, **options)
