"""The loop that every worker runs: poll, decode, handle, produce, flush, commit.

What an error does is written on its branch of the tree (pipeline/errors.py): bad input goes to the dead-letter topic, not ready is tried
again, anything else stops the process with nothing committed. Delivery is at least once and ids are derived, so results are exactly once.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pipeline.backoff import Backoff
from pipeline.errors import BadInputError, NotReadyError, StorageFullError
from pipeline.ports import Broker, Consumer, Message, TopicPartition
from services import wire
from services.topics import dead_letter_topic, value_type
from services.tracing import NoTracer, Trace, Tracer

log = logging.getLogger("sightline.worker")

RECENT_MESSAGES = 1_000
BAD_SHARE_LIMIT = 0.01
ERROR_HEADER_CHARACTERS = 2_000
STREAM_FLUSH_EVERY_S = 0.5
LAG_EVERY_S = 1.0


class Output(NamedTuple):
    """A message to produce. key: text or bytes; value: one of the travelling types, bytes, or None for a tombstone.

    cause: the message that it answers, whose trace it carries on; in a batch of one that is clear without it.
    """

    topic: str
    key: str | bytes | None
    value: Any
    cause: Message | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A message and its decoded value: of the topic's type (services/topics.py); the raw bytes elsewhere; None for a tombstone."""

    message: Message
    value: Any


class Handler(Protocol):
    """What one worker does with its messages. It must be able to see a message twice."""

    def handle(self, batch: Sequence[Received]) -> Iterable[Output]:
        """The outputs of a batch.

        Raises BadInputError for input that can never work (a batch is then tried one by one, to find which), NotReadyError to be asked
        again with the same batch. A handler of batches of one may be a generator: its outputs are sent while it goes on.
        """
        ...


class Observer(Protocol):
    """Sees what a worker does, for metrics."""

    def started(self, worker: str, topics: Sequence[str]) -> None: ...

    def connected(self, worker: str, is_up: bool) -> None: ...

    def holds(self, worker: str, messages: int) -> None: ...

    def handled(self, worker: str, messages: int, outputs: int, seconds: float) -> None: ...

    def dead_lettered(self, worker: str, topic: str, error: BaseException) -> None: ...

    def retried(self, worker: str, error: BaseException) -> None: ...

    def lagged(self, worker: str, messages: int) -> None: ...


class TooManyBadMessages(RuntimeError):  # noqa: N818  it is a finding about us, not about one input
    """More than 1 % of the recent messages could not be worked: then it is our fault, and going on would lose work."""


class _MembershipLostError(Exception):
    """The group gave our partitions away while we worked; what we hold is another member's."""


class _StoppedError(Exception):
    """We were asked to stop while waiting for the world; the batch stays uncommitted."""


class Worker:
    """A member of the consumer group ``name`` that puts the messages of ``topics`` through ``handler``.

    batch: most messages handled at once; start: where a new group begins; max_handle_s: a handler that takes longer is taken for stuck
    and loses its partitions (None: never); keep_alive_s: how often a busy worker shows that it lives; observer: for metrics;
    stage: what its spans are called, where that is not the worker's name.
    """

    def __init__(
        self,
        name: str,
        broker: Broker,
        topics: Sequence[str],
        handler: Handler,
        *,
        batch: int = 100,
        start: str = "earliest",
        poll_s: float = 0.5,
        max_handle_s: float | None = 300.0,
        keep_alive_s: float = 1.0,
        observer: Observer | None = None,
        backoff: Backoff | None = None,
        tracer: Tracer | None = None,
        stage: str = "",
    ) -> None:
        self.name = name
        self._broker, self._topics, self._handler = broker, tuple(topics), handler
        self._batch, self._start, self._poll_s = batch, start, poll_s
        self._max_handle_s, self._keep_alive_s = max_handle_s, keep_alive_s
        self._observer = observer
        self._backoff = backoff or Backoff()
        self._recent: deque[bool] = deque(maxlen=RECENT_MESSAGES)
        self._stop = threading.Event()
        self._tracer: Tracer = tracer or NoTracer()
        self._stage = stage or name
        self._trace: Trace | None = None  # of the batch in hand
        self._in_hand: Sequence[Message] = ()
        self._lag_due_s = 0.0

    def run(self, stop: threading.Event | None = None, until_drained: bool = False) -> None:
        """Work until ``stop`` is set, or until its own partitions are read to the end; the batch in hand is finished and committed.

        Raises what is neither bad input nor a matter of waiting: then nothing of the batch in hand is committed.
        """
        self._stop = stop or threading.Event()
        if self._observer:
            self._observer.started(self.name, self._topics)
        consumer = self._join()
        if consumer is None:
            return
        try:
            while not self._stop.is_set():
                if until_drained and consumer.assignment() and self._lag(consumer) == 0:
                    return
                messages = self._poll(consumer)
                if messages:
                    self._work(consumer, messages)
        finally:
            consumer.close()

    def _join(self) -> Consumer | None:
        """A new member of the group; None when stopped before the broker was ready."""
        while not self._stop.is_set():
            try:
                return self._broker.consumer(self._topics, self.name, self._start)
            except NotReadyError as error:
                self._tell_connected(False)
                self._wait(error)
        return None

    def _poll(self, consumer: Consumer) -> list[Message]:
        try:
            messages = consumer.poll(self._poll_s, self._batch)
        except NotReadyError as error:
            self._tell_connected(False)
            self._wait(error)
            return []
        if self._observer and time.monotonic() >= self._lag_due_s:  # also when nothing came, so that it falls to 0
            self._lag(consumer)
            self._lag_due_s = time.monotonic() + LAG_EVERY_S  # it may be a question to the broker, and take its time
        return messages

    def _lag(self, consumer: Consumer) -> int | None:
        """Messages still to be read, which the observer is told too; None when the broker does not say."""
        try:
            behind = consumer.lag()
        except NotReadyError as error:
            self._tell_connected(False)
            log.debug("%s: lag not known: %s", self.name, error)
            return None
        if self._observer:
            self._observer.connected(self.name, True)
            self._observer.lagged(self.name, behind)
        return behind

    def _tell_connected(self, is_up: bool) -> None:
        if self._observer:
            self._observer.connected(self.name, is_up)

    def _work(self, consumer: Consumer, messages: Sequence[Message]) -> None:
        """One batch, from messages to commit; every step only after the one before."""
        started_s = time.monotonic()
        self._hold(messages)
        begins = self._batch == 1  # a batch only follows the traces that its messages bring
        try:
            with self._kept_alive(consumer) as is_ours, self._tracer.messages(self._stage, messages, begins) as self._trace:
                # 1. Decode and handle. Bad messages become dead letters in the same flush as the outputs.
                outputs = self._handle_all(messages, is_ours)
                # 2. Make every output durable. A full disk keeps us here: nothing is acknowledged until it is written.
                self._flush(is_ours)
        except (_MembershipLostError, _StoppedError) as error:
            log.warning("%s: batch given up uncommitted, it will be worked again: %s", self.name, error, extra=where(messages))
            self._hold(())
            return
        # 3. Commit the next offsets. A crash before this line repeats the batch; derived ids make that harmless.
        is_committed = self._commit(consumer, messages)
        self._hold(())
        self._backoff.reset()
        if self._observer and is_committed:
            self._observer.handled(self.name, len(messages), outputs, time.monotonic() - started_s)

    def _hold(self, messages: Sequence[Message]) -> None:
        """These are in hand now, read and not committed; none when the batch is over."""
        self._in_hand = messages
        if self._observer:
            self._observer.holds(self.name, len(messages))
        if messages and log.isEnabledFor(logging.DEBUG):
            for facts in _spans_of_offsets(messages):
                log.debug("%s: batch", self.name, extra=facts)

    def _commit(self, consumer: Consumer, messages: Sequence[Message]) -> bool:
        """Whether the batch is committed; not, when another member works it again."""
        offsets = next_offsets(messages)
        while True:
            try:
                consumer.commit(offsets)
                return True
            except NotReadyError as error:
                if not set(offsets) <= consumer.assignment() or not self._is_alive(consumer):
                    log.warning("%s: not committed, another member works these messages again: %s", self.name, error, extra=where(messages))
                    return False
                self._wait(error)
                if self._stop.is_set():
                    return False

    @staticmethod
    def _is_alive(consumer: Consumer) -> bool:
        try:
            consumer.keep_alive()
        except StorageFullError:
            return True  # nobody can write just now, so nobody took over either
        except NotReadyError:
            return False
        return True

    # handling

    def _handle_all(self, messages: Sequence[Message], is_ours: Callable[[], bool]) -> int:
        good, bad = [], list[tuple[Message, BadInputError]]()
        for message in messages:
            try:
                good.append(Received(message, _decoded(message)))
            except BadInputError as error:
                bad.append((message, error))
        if self._trace is not None and self._tracer.is_on:
            for received in good:
                self._trace.about(received.message, received.value)
        produced, failed = self._handle(good, is_ours) if good else (0, [])
        bad += failed
        failures = {id(message) for message, _ in bad}
        self._recent.extend(id(message) in failures for message in messages)
        self._check_share(bad)
        for message, reason in bad:
            self._dead_letter(message, reason)
        return produced

    def _handle(self, batch: Sequence[Received], is_ours: Callable[[], bool]) -> tuple[int, list[tuple[Message, BadInputError]]]:
        """Handle a batch; gives the number of outputs and the messages that can never work."""
        try:
            return self._handle_patiently(batch, is_ours), []
        except BadInputError as error:
            if len(batch) == 1:
                return 0, [(batch[0].message, error)]
        produced, bad = 0, []
        for received in batch:  # one of them is bad: find which
            more, failed = self._handle([received], is_ours)
            produced += more
            bad += failed
        return produced, bad

    def _handle_patiently(self, batch: Sequence[Received], is_ours: Callable[[], bool]) -> int:
        while True:
            try:
                only = batch[0].message if len(batch) == 1 else None
                return self._produce(self._handler.handle(batch), only, is_ours)
            except NotReadyError as error:
                self._wait(error, is_ours)

    def _produce(self, outputs: Iterable[Output], only: Message | None, is_ours: Callable[[], bool]) -> int:
        """Queue the outputs; those of a batch of one message, ``only``, are sent while they come."""
        flushed_at_s = time.monotonic()
        produced = 0
        is_streamed = only is not None
        for output in outputs if is_streamed else list(outputs):  # a batch that fails half way has produced nothing yet
            key = output.key.encode() if isinstance(output.key, str) else output.key
            value = output.value if isinstance(output.value, bytes | None) else wire.encode(output.value)
            headers = self._trace.headers(output.cause or only) if self._trace is not None else []
            self._broker.produce(output.topic, value, key, headers)
            produced += 1
            if not is_ours():
                raise _MembershipLostError("the group gave the partition to another member")
            if is_streamed and time.monotonic() - flushed_at_s > STREAM_FLUSH_EVERY_S:
                self._flush(is_ours)
                flushed_at_s = time.monotonic()
        return produced

    def _flush(self, is_ours: Callable[[], bool]) -> None:
        while True:
            try:
                self._broker.flush()
                return
            except NotReadyError as error:  # the messages stay queued: only the flush is tried again
                self._wait(error, is_ours)

    # bad messages

    def _check_share(self, bad: Sequence[tuple[Message, BadInputError]]) -> None:
        share = sum(self._recent) / max(1, len(self._recent))
        if bad and len(self._recent) == RECENT_MESSAGES and share > BAD_SHARE_LIMIT:
            raise TooManyBadMessages(
                f"{self.name}: at most {BAD_SHARE_LIMIT:.0%} of the last {RECENT_MESSAGES} messages may be bad, got {share:.1%};"
                f" stopped, nothing of this batch is committed; the last error: {bad[-1][1]}"
            )

    def _dead_letter(self, message: Message, error: BadInputError) -> None:
        log.error("%s: bad input put aside: %s", self.name, error, extra=where([message]))
        if self._trace is not None:
            self._trace.failed(message, error)
        version = wire.schema_version(message.value)
        facts = {
            "stage": self.name,
            "topic": message.topic,
            "partition": str(message.partition),
            "offset": str(message.offset),
            "error": f"{type(error).__name__}: {error}"[:ERROR_HEADER_CHARACTERS],
            "schema_version": "" if version is None else str(version),
        }
        headers = [(name, value) for name, value in message.headers if name not in facts]
        headers += [(name, value.encode(errors="replace")) for name, value in facts.items()]
        self._broker.produce(dead_letter_topic(message.topic), message.value, message.key, headers)
        if self._observer:
            self._observer.dead_lettered(self.name, message.topic, error)

    # waiting and staying alive

    def _wait(self, error: NotReadyError, is_ours: Callable[[], bool] | None = None) -> None:
        """Pause before the next try; leaves the batch when we were stopped or lost our partitions meanwhile."""
        pause_s = self._backoff.next_s()
        log.warning("%s: not ready, next try in %.1f s: %s", self.name, pause_s, error, extra=where(self._in_hand))
        if self._observer:
            self._observer.retried(self.name, error)
        self._stop.wait(pause_s)
        if is_ours is None:
            return
        if self._stop.is_set():
            raise _StoppedError(f"stopped while waiting: {error}")
        if not is_ours():
            raise _MembershipLostError("the group gave the partition to another member")

    @contextmanager
    def _kept_alive(self, consumer: Consumer) -> Iterator[Callable[[], bool]]:
        """Keeps the group membership while a batch is handled, from a thread; gives whether the batch is still ours."""
        is_done, is_lost = threading.Event(), threading.Event()
        until_s = time.monotonic() + (self._max_handle_s if self._max_handle_s is not None else 1e12)

        def beat() -> None:
            failures = 0
            while not is_done.wait(self._keep_alive_s) and time.monotonic() < until_s:
                try:
                    consumer.keep_alive()
                    failures = 0
                except StorageFullError:
                    continue  # nobody can write just now, so nobody can take over either
                except NotReadyError:
                    failures += 1  # once may be a lock that was held long; a lost membership stays lost
                    if failures > 1:
                        is_lost.set()
                        return

        thread = threading.Thread(target=beat, name=f"{self.name}-keep-alive", daemon=True)
        thread.start()
        try:
            yield lambda: not is_lost.is_set()
        finally:
            is_done.set()
            thread.join()


def _decoded(message: Message) -> Any:
    kind = value_type(message.topic)
    return message.value if kind is None or message.value is None else wire.decode(kind, message.value)


def where(messages: Sequence[Message]) -> dict[str, object]:
    """Where messages stand, for a line of the log: topic, partition and offset of the first, and how many there are."""
    if not messages:
        return {}
    first = messages[0]
    where: dict[str, object] = {"topic": first.topic, "partition": first.partition, "offset": first.offset}
    return where if len(messages) == 1 else {**where, "messages": len(messages)}


def _spans_of_offsets(messages: Sequence[Message]) -> list[dict[str, object]]:
    """The first and the last offset of each partition."""
    offsets: dict[tuple[str, int], list[int]] = {}
    for message in messages:
        offsets.setdefault((message.topic, message.partition), []).append(message.offset)
    return [
        {"topic": topic, "partition": partition, "first_offset": min(each), "last_offset": max(each), "messages": len(each)}
        for (topic, partition), each in offsets.items()
    ]


def next_offsets(messages: Sequence[Message]) -> Mapping[TopicPartition, int]:
    """What to commit once ``messages`` are dealt with: the NEXT offset per partition."""
    offsets: dict[TopicPartition, int] = {}
    for message in messages:
        partition = TopicPartition(message.topic, message.partition)
        offsets[partition] = max(offsets.get(partition, 0), message.offset + 1)
    return offsets


def stop_on_signals(stop: threading.Event) -> None:
    """SIGTERM and SIGINT set ``stop``: workers finish and commit the batch in hand. Call from the main thread."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
