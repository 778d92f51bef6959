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
from services.worker import Output, Received, Worker, where

log = logging.getLogger("sightline.query")

REFUSED = "not answered: "  # begins the note of a query that can never be worked


class QueryHandler:
    """Answers queries; every query gets one ranking, an empty one that says why where it could not be worked.

    clock: UTC seconds, to know how long a query has waited on the topic: its deadline ran meanwhile.
    on_answer: told the query, its ranking and the seconds spent, on_refusal: that one was refused; for metrics.
    needs_purpose: a query without one is refused.
    """

    def __init__(
        self,
        stage: SearchStage,
        clock: Callable[[], float] = time.time,
        on_answer: Callable[[Query, Ranking, float], None] | None = None,
        on_refusal: Callable[[], None] = lambda: None,
        needs_purpose: bool = False,
    ) -> None:
        self._stage = stage
        self._needs_purpose = needs_purpose
        self._clock = clock
        self._on_answer, self._on_refusal = on_answer, on_refusal

    def handle(self, batch: Sequence[Received]) -> Iterator[Output]:
        """The rankings of a batch, refusals among them.

        A query that can never work is answered with the reason and done with: as a dead letter its words would lie about for weeks, and
        a program that asks nonsense would stop the worker.
        """
        for received in batch:
            query = received.value
            if not isinstance(query, Query):  # a tombstone
                continue
            waited_s = max(0.0, self._clock() - received.message.timestamp_ms / 1000) if received.message.timestamp_ms else 0.0
            started_s = time.monotonic()
            try:
                self._check_purpose(query)
                ranking = self._stage.search(query, started_s - waited_s)
            except BadInputError as error:
                log.warning("query refused", extra={"query": query.query_id, **where([received.message])})
                self._on_refusal()
                yield Output(RANKINGS, query.query_id, refusal(query, error, time.monotonic() - started_s + waited_s))
                continue
            if self._on_answer is not None:
                self._on_answer(query, ranking, time.monotonic() - started_s)
            yield Output(RANKINGS, query.query_id, ranking)

    def _check_purpose(self, query: Query) -> None:
        """Whoever may write to the topic could leave it out."""
        if self._needs_purpose and not query.purpose.strip():
            raise BadInputError("a query must say why it is asked, in `purpose`; access.require_purpose asks for it")


def refusal(query: Query, error: Exception, elapsed_s: float) -> Ranking:
    """The ranking of a query that cannot be answered: nobody, and why. Whoever waits for it is not left waiting."""
    return Ranking(query.query_id, (), Coverage(notes=(f"{REFUSED}{error}",)), elapsed_s, is_partial=True)


def query_worker(broker: Broker, handler: QueryHandler, **options: Any) -> Worker:
    """The member of the consumer group ``query``; one query a batch, so that each answer leaves as soon as it is made.

    options: those of Worker.
    """
    return Worker("query", broker, [QUERIES], handler, batch=1, stage="search", **options)
