"""The query worker: queries in, rankings out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.errors import BadInputError
from pipeline.ports import Broker
from pipeline.search.stage import SearchStage
from pipeline.types import Coverage, Query, Ranking
from services.topics import QUERIES, RANKINGS
from services.worker import Output, Received, Worker

log = logging.getLogger("sightline.query")


class QueryHandler:
    """Answers queries; every query gets one ranking, an empty one that says why where it could not be worked.

    clock: UTC seconds, to know how long a query has waited on the topic: its deadline ran meanwhile.
    on_answer: told the query, its ranking and the seconds spent, on_refusal: that one was refused; for metrics.
    """

    def __init__(
        self,
        stage: SearchStage,
        clock: Callable[[], float] = time.time,
        on_answer: Callable[[Query, Ranking, float], None] | None = None,
        on_refusal: Callable[[], None] = lambda: None,
    ) -> None:
        self._stage = stage
        self._clock = clock
        self._on_answer, self._on_refusal = on_answer, on_refusal

    def handle(self, batch: Sequence[Received]) -> Iterator[Output]:
        """The rankings of a batch. Raises BadInputError, after answering, for a query that can never work."""
        for received in batch:
            query = received.value
            if not isinstance(query, Query):  # a tombstone
                continue
            waited_s = max(0.0, self._clock() - received.message.timestamp_ms / 1000) if received.message.timestamp_ms else 0.0
            started_s = time.monotonic()
            try:
                ranking = self._stage.search(query, started_s - waited_s)
            except BadInputError as error:
                self._on_refusal()
                yield Output(RANKINGS, query.query_id, refusal(query, error, time.monotonic() - started_s + waited_s))
                raise
            if self._on_answer is not None:
                self._on_answer(query, ranking, time.monotonic() - started_s)
            yield Output(RANKINGS, query.query_id, ranking)


def refusal(query: Query, error: Exception, elapsed_s: float) -> Ranking:
    """The ranking of a query that cannot be answered: nobody, and why. Whoever waits for it is not left waiting."""
    return Ranking(query.query_id, (), Coverage(notes=(f"not answered: {error}",)), elapsed_s, is_partial=True)


def query_worker(broker: Broker, handler: QueryHandler, **options: Any) -> Worker:
    """The member of the consumer group ``query``; one query a batch, so that each answer leaves as soon as it is made.

    options: those of Worker.
    """
    return Worker("query", broker, [QUERIES], handler, batch=1, **options)
