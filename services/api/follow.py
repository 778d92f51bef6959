"""The gateway's end of the broker: one connection, and one reader of each feed that serves everybody who waits."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pipeline.backoff import Backoff
from pipeline.errors import NotReadyError
from pipeline.ports import Broker, Consumer, Message, TopicPartition

log = logging.getLogger("sightline.api")

ALL = 0
POLL_S = 0.2
PROBE_S = 3.0  # a reader that hears nothing for so long asks whether the broker is there: a poll of Kafka does not tell
LONGEST_PAUSE_S = 5.0

OpenBroker = Callable[[], AbstractContextManager[Broker]]


@dataclass(frozen=True, slots=True)
class Feed:
    """Topics that one reader follows, each with how many of the newest messages of every partition matter (ALL: all of them).

    take: given the messages in the order of each partition, in the event loop.
    """

    name: str
    topics: Mapping[str, int]
    take: Callable[[Sequence[Message]], None]


class Link:
    """Opens the broker as soon as it is there and follows the feeds until closed. A broker that is away is waited for.

    on_failure: told once when something other than waiting is needed (wrong settings, a bug); ``failure`` is what happened.
    """

    def __init__(self, open_broker: OpenBroker, feeds: Sequence[Feed], on_failure: Callable[[], None]) -> None:
        self._open_broker, self._feeds, self._on_failure = open_broker, tuple(feeds), on_failure
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="api-broker", daemon=True)
        self._broker: Broker | None = None
        self._reasons = {feed.name: "not read yet" for feed in feeds}
        self._read: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin, from within the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Stop reading and close the broker. The event loop must run on meanwhile: call it from another thread."""
        self._stop.set()
        self._thread.join()

    @property
    def broker(self) -> Broker:
        """Raises NotReadyError with the reason while it is away: then nothing should be sent, for it would wait for its time-out."""
        broker, reasons = self._broker, self.reasons()
        if broker is None or reasons:
            raise NotReadyError("; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "the broker is not there yet")
        return broker

    def reasons(self) -> dict[str, str]:
        """What is not ready, and why."""
        return dict(self._reasons)

    def must_be_read(self, feed: str) -> None:
        """Raises NotReadyError until ``feed`` was read to its end once; later it serves what it knows, whatever the broker does."""
        if feed not in self._read:
            raise NotReadyError(f"{feed} not known yet: {self._reasons.get(feed, 'still being read')}")

    # threads

    def _run(self) -> None:
        pause = Backoff(most_s=LONGEST_PAUSE_S)
        while not self._stop.is_set():
            try:
                with self._open_broker() as broker:
                    self._reasons.pop("broker", None)
                    self._broker = broker
                    pause.reset()
                    self._follow_all(broker)
            except NotReadyError as error:
                self._say_away("broker", error)
                self._stop.wait(pause.next_s())
            except BaseException as error:
                self._fail(error)
            finally:
                self._broker = None

    def _follow_all(self, broker: Broker) -> None:
        threads = [threading.Thread(target=self._follow, args=(broker, feed), name=f"api-{feed.name}", daemon=True) for feed in self._feeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _follow(self, broker: Broker, feed: Feed) -> None:
        reader: Consumer | None = None
        try:
            reader = self._opened(broker, feed)
            if reader is not None:
                self._read_on(broker, feed, reader)
        except BaseException as error:
            self._fail(error)
        finally:
            if reader is not None:
                reader.close()

    def _opened(self, broker: Broker, feed: Feed) -> Consumer | None:
        """The reader of a feed at the first message that matters; None when stopped before."""
        pause = Backoff(most_s=LONGEST_PAUSE_S)
        while not self._stop.is_set():
            reader: Consumer | None = None
            try:
                reader = broker.reader(sorted(feed.topics))
                for topic, newest in feed.topics.items():
                    for partition, end in broker.end_offsets(topic).items():
                        if newest != ALL and end > newest:
                            reader.seek(partition, end - newest)
                return reader
            except NotReadyError as error:
                if reader is not None:
                    reader.close()
                self._say_away(feed.name, error)
                self._stop.wait(pause.next_s())
        return None

    def _read_on(self, broker: Broker, feed: Feed, reader: Consumer) -> None:
        pause = Backoff(most_s=LONGEST_PAUSE_S)
        ahead: dict[TopicPartition, int] | None = None  # the ends to be reached before the feed is known; None: not looked up yet
        heard_s = time.monotonic()
        while not self._stop.is_set():
            try:
                if ahead is None:
                    ahead = {p: end for topic in feed.topics for p, end in broker.end_offsets(topic).items() if end > 0}
                ahead = {partition: end for partition, end in ahead.items() if reader.position(partition) < end}
                if time.monotonic() - heard_s > PROBE_S or (feed.name in self._reasons and feed.name in self._read):
                    reader.lag()
                    heard_s = time.monotonic()
                messages = reader.poll(POLL_S)
            except NotReadyError as error:
                self._say_away(feed.name, error)
                self._stop.wait(pause.next_s())
                continue
            pause.reset()
            if messages:
                heard_s = time.monotonic()
                self._hand_over(feed, messages)
            if not ahead:
                self._is_read(feed.name)

    def _hand_over(self, feed: Feed, messages: Sequence[Message]) -> None:
        """To the event loop, and wait until it has taken them: a reader that is ahead would fill the memory."""
        assert self._loop is not None

        async def take() -> None:
            feed.take(messages)

        asyncio.run_coroutine_threadsafe(take(), self._loop).result()

    def _is_read(self, name: str) -> None:
        self._read.add(name)
        if self._reasons.pop(name, None) and not self._reasons:
            log.info("the topics are followed")

    def _say_away(self, name: str, error: NotReadyError) -> None:
        if self._reasons.get(name) != str(error):
            log.warning("the broker is away, those who wait go on waiting", extra={"feed": name, "reason": str(error)})
        self._reasons[name] = str(error)

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self._stop.set()
        self._on_failure()
