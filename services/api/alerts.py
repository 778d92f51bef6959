"""The newest alerts, for lists and for streams that can be resumed: one copy for all who listen."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from pipeline.errors import BadInputError
from pipeline.ports import Message
from pipeline.types import Alert
from services import wire
from services.topics import ALERTS
from services.worker import where

log = logging.getLogger("sightline.api")

KEPT_ALERTS = 10_000
HEARTBEAT_S = 15.0  # proxies cut a connection that says nothing
RECONNECT_MS = 2_000
_EVENT_ID = re.compile(rf"{ALERTS}/(\d{{1,4}}@\d{{1,18}}(,\d{{1,4}}@\d{{1,18}})*)?")


@dataclass(frozen=True, slots=True)
class Heard:
    """An alert from the topic, in wire format. number: in the order of arrival."""

    number: int
    partition: int
    offset: int
    raised_at_ns: int
    tracklet_id: str
    data: bytes


@dataclass(slots=True)
class Place:
    """How far a listener is: the next offset of each partition, and the next number to look at."""

    offsets: dict[int, int] = field(default_factory=dict)
    number: int = 0

    def event_id(self) -> str:
        """``alerts/0@12,1@5``: the id of an event, after which a stream goes on at these offsets."""
        return f"{ALERTS}/" + ",".join(f"{partition}@{offset}" for partition, offset in sorted(self.offsets.items()))


class AlertLog:
    """Used in the event loop alone."""

    def __init__(self, most: int = KEPT_ALERTS, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._most, self._heartbeat_s = most, heartbeat_s
        self._kept: deque[Heard] = deque()
        self._number = 0
        self._first: dict[int, int] = {}  # from this offset of a partition on, every alert is kept
        self._next: dict[int, int] = {}
        self._erased: set[str] = set()
        self._changed = asyncio.Event()
        self._is_released = False
        self.listeners = 0

    # what the topics bring

    def take(self, messages: Sequence[Message]) -> None:
        """Messages of the topic alerts, as they come."""
        for message in messages:
            self._first.setdefault(message.partition, message.offset)
            self._next[message.partition] = message.offset + 1
            if message.value is None:
                continue
            try:
                alert = wire.decode(Alert, message.value)
            except BadInputError as error:
                log.error("alert left out", extra={"reason": str(error), **where([message])})
                continue
            if alert.tracklet_id not in self._erased:
                self._kept.append(
                    Heard(self._number, message.partition, message.offset, alert.raised_at_ns, alert.tracklet_id, message.value)
                )
                self._number += 1
        while len(self._kept) > self._most:
            gone = self._kept.popleft()
            self._first[gone.partition] = max(self._first[gone.partition], gone.offset + 1)
        self._tell()

    def erase(self, tracklet_id: str) -> None:
        """Somebody was erased: out of the list, and not into it any more."""
        self._erased.add(tracklet_id)
        if any(heard.tracklet_id == tracklet_id for heard in self._kept):
            self._kept = deque(heard for heard in self._kept if heard.tracklet_id != tracklet_id)

    def release(self) -> None:
        """The gateway stops: streams end."""
        self._is_released = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # who asks

    def since(self, since_ns: int, limit: int) -> list[bytes]:
        """Alerts raised at ``since_ns`` or later, oldest first, ``limit`` at most: the first ones; the last ones when since_ns is 0."""
        found = sorted((heard for heard in self._kept if heard.raised_at_ns >= since_ns), key=lambda heard: heard.raised_at_ns)
        return [heard.data for heard in (found[:limit] if since_ns else found[-limit:])]

    def place(self, last_event_id: str = "", since_ns: int = 0) -> Place:
        """Where a stream begins: after the event it saw last, else at the first alert raised since then, else now.

        Raises BadInputError for an id that is none of ours.
        """
        if last_event_id:
            return self._after(last_event_id)
        place = Place(dict(self._next), self._number)
        if since_ns:
            for heard in self._kept:
                if heard.raised_at_ns >= since_ns:
                    place.number = min(place.number, heard.number)
                    place.offsets[heard.partition] = min(place.offsets[heard.partition], heard.offset)
        return place

    def _after(self, event_id: str) -> Place:
        if not _EVENT_ID.fullmatch(event_id):
            raise BadInputError("Last-Event-ID must be the id of an event of this stream, such as alerts/0@12,1@5")
        pairs = (pair.split("@") for pair in event_id.partition("/")[2].split(",") if pair)
        offsets = {int(partition): int(offset) for partition, offset in pairs}
        # An offset ahead of the topic is one of a topic that was made anew: it would hide alerts until the topic is as long again.
        known = {partition: min(offset, self._next[partition]) for partition, offset in offsets.items() if partition in self._next}
        return Place(offsets | known)

    async def events(self, place: Place) -> AsyncIterator[bytes]:
        """Server-sent events from ``place`` on, until the gateway stops."""
        self.listeners += 1
        try:
            yield f"retry: {RECONNECT_MS}\nid: {place.event_id()}\n\n".encode()  # without data: sets the id, and is no event
            while not self._is_released:
                changed = self._changed
                for event in self._news(place):
                    yield event
                if self._is_released:
                    return
                try:
                    await asyncio.wait_for(changed.wait(), self._heartbeat_s)
                except TimeoutError:
                    yield b": nothing new\n\n"
        finally:
            self.listeners -= 1

    def _news(self, place: Place) -> list[bytes]:
        events = []
        missed = {p: self._first[p] - offset for p, offset in place.offsets.items() if p in self._first and offset < self._first[p]}
        if missed:
            place.offsets |= {partition: self._first[partition] for partition in missed}
            events.append(_event("missed", place, json.dumps({"messages": sum(missed.values())}).encode()))
        fresh = []
        for heard in reversed(self._kept):
            if heard.number < place.number:
                break
            fresh.append(heard)
        for heard in reversed(fresh):
            if heard.offset >= place.offsets.get(heard.partition, 0):
                place.offsets[heard.partition] = heard.offset + 1
                events.append(_event("alert", place, heard.data))
        place.number = self._number
        return events


def _event(kind: str, place: Place, data: bytes) -> bytes:
    return f"event: {kind}\nid: {place.event_id()}\ndata: ".encode() + data + b"\n\n"
