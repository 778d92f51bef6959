"""Queries under way and the rankings that came for them, of this gateway and of every other beside it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import BadInputError, NotFoundError
from pipeline.ports import Message, TopicPartition
from pipeline.types import Query, Ranking
from services import wire
from services.query import REFUSED
from services.topics import QUERIES
from services.worker import where

log = logging.getLogger("sightline.api")

KEPT_ANSWERS, KEPT_BYTES, KEPT_S = 1_000, 64 * 2**20, 900.0
LAG_S = 600.0  # the longest deadline: a query older than that keeps nobody waiting any more
LAG_QUERIES = 10_000  # remembered per partition


@dataclass(slots=True)
class Answer:
    """A query that somebody asked, and its ranking in wire format once it has come."""

    client: str  # "" while only the ranking was read, and not the query yet
    since_s: float
    ranking: bytes = b""
    refusal: str = ""  # why the query cannot be answered at all

    @property
    def is_there(self) -> bool:
        return bool(self.ranking)


class Answers:
    """Used in the event loop alone. Bounded in number, bytes and age; the oldest go first, one that is waited for does not go.

    clock: seconds, rising; wall_s: UTC seconds, to tell how old a query on the topic is.
    """

    def __init__(
        self,
        most: int = KEPT_ANSWERS,
        most_bytes: int = KEPT_BYTES,
        keep_s: float = KEPT_S,
        clock: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._most, self._most_bytes, self._keep_s = most, most_bytes, keep_s
        self._clock, self._wall_s = clock, wall_s
        self._kept: dict[str, Answer] = {}
        self._bytes = 0
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._asked: dict[TopicPartition, deque[tuple[int, float]]] = {}  # offset and time of the queries on the topic
        self._erased: set[str] = set()

    # who waits

    def expect(self, query_id: str, client: str) -> asyncio.Future[None]:
        """Remember whose query it is; what is given is done when its ranking has come, or when waiting is over for all."""
        self._keep(query_id, client)
        return self._waiting.setdefault(query_id, asyncio.get_running_loop().create_future())

    def wait_no_more(self, query_id: str) -> None:
        self._waiting.pop(query_id, None)
        self._tidy()

    def release(self) -> None:
        """The gateway stops: nobody waits any longer."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(None)

    def found(self, query_id: str, client: str) -> Answer:
        """The answer as far as it has come; raises NotFoundError for a query that is not this client's, or is forgotten."""
        self._tidy()
        answer = self._kept.get(query_id)
        if answer is None or answer.client != client:
            raise NotFoundError(f"search {query_id!r} must be one of yours, answered within the last {self._keep_s / 60:g} minutes")
        return answer

    # what the topics bring

    def take(self, messages: Sequence[Message]) -> None:
        """Queries and rankings as they come, in any order."""
        for message in messages:
            if message.value is None:
                continue
            try:
                if message.topic == QUERIES:
                    self._take_query(message, wire.decode(Query, message.value))
                else:
                    self._take_ranking(wire.decode(Ranking, message.value))
            except BadInputError:  # its text may hold what somebody looked for
                log.error("message left out: it does not decode", extra=where([message]))
        self._tidy()

    def _take_query(self, message: Message, query: Query) -> None:
        partition = TopicPartition(message.topic, message.partition)
        asked = self._asked.setdefault(partition, deque(maxlen=LAG_QUERIES))
        asked.append((message.offset, message.timestamp_ms / 1000))
        self._keep(query.query_id, query.issued_by)

    def _take_ranking(self, ranking: Ranking) -> None:
        answer = self._keep(ranking.query_id, "")
        self._put(answer, ranking)
        note = next(iter(ranking.coverage.notes), "")
        if not ranking.matches and ranking.is_partial and note.startswith(REFUSED):
            answer.refusal = note.removeprefix(REFUSED)
        waiting = self._waiting.get(ranking.query_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def erase(self, tracklet_id: str) -> None:
        """Somebody was erased: out of every ranking that is kept, and of those to come."""
        self._erased.add(tracklet_id)
        for answer in self._kept.values():
            if tracklet_id.encode() in answer.ranking:
                self._put(answer, wire.decode(Ranking, answer.ranking))

    def _put(self, answer: Answer, ranking: Ranking) -> None:
        matches = tuple(match for match in ranking.matches if match.tracklet_id not in self._erased)
        encoded = wire.encode(replace(ranking, matches=matches))
        self._bytes += len(encoded) - len(answer.ranking)
        answer.ranking = encoded

    # load

    def lag(self, committed: Mapping[TopicPartition, int]) -> int:
        """How many queries on the topic the workers have still to answer, from the next offsets that their group committed.

        Counted are the queries that were read, not offsets: those that retention took away would count for ever.
        """
        young_s = self._wall_s() - LAG_S
        for asked in self._asked.values():
            while asked and asked[0][1] < young_s:
                asked.popleft()
        return sum(offset >= committed.get(partition, 0) for partition, asked in self._asked.items() for offset, _ in asked)

    # bounds

    def _keep(self, query_id: str, client: str) -> Answer:
        answer = self._kept.setdefault(query_id, Answer(client, self._clock()))
        answer.client = answer.client or client
        return answer

    def _drop(self, query_id: str) -> None:
        answer = self._kept.pop(query_id, None)
        self._bytes -= len(answer.ranking) if answer else 0

    def _tidy(self) -> None:
        old_s = self._clock() - self._keep_s
        for query_id, answer in list(self._kept.items()):
            if answer.since_s >= old_s and len(self._kept) <= self._most and self._bytes <= self._most_bytes:
                return
            if query_id not in self._waiting:
                self._drop(query_id)
