"""Identities beside the gallery: what the index worker links, what operators said, and what is told of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing

from pipeline.errors import BadInputError
from pipeline.index.linking import Linker, joined
from pipeline.ports import Broker, Gallery, IdentityStore, LinkChanges
from pipeline.types import Decision, Tracklet
from pipeline.types.query import EVERYTHING
from services import wire
from services.reading import in_pages, until_end
from services.topics import DECISIONS, IDENTITIES
from services.worker import Output, where

log = logging.getLogger("sightline.linking")


class Linking:
    """The linker and its store, kept equal: a change is durable before anybody hears of it.

    One writer, the index worker; retention may call from its own thread. Without a linker (link.enabled = false) nothing is linked, and
    what was is still removed when its tracklets are.
    """

    def __init__(
        self,
        store: IdentityStore,
        linker: Linker | None,
        clock_ns: Callable[[], int] = time.time_ns,
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        """flush: returns once all outputs are durable."""
        self._store, self._linker = store, linker
        self._clock_ns, self._flush = clock_ns, flush
        self._lock = threading.RLock()
        self._sent = 0
        self._unwritten = LinkChanges()
        self._forgotten: dict[str, None] = {}  # words to be taken off their topic

    def catch_up(self, gallery: Gallery, decisions: Iterable[Decision] = ()) -> int:
        """Restore what was linked, and link what the gallery holds and was not, because the worker was killed or linking was off before.

        decisions: all that their topic holds. Gives how many tracklets were linked now.
        """
        with self._lock:
            held = [(each.tracklet_id, each.revision) for each in gallery.scan(EVERYTHING)]
            members = {member.tracklet_id: member for member in self._store.members()}
            gone = members.keys() - {tracklet_id for tracklet_id, _ in held}
            if gone:
                self._store.remove(sorted(gone))
            if self._linker is None:
                return 0
            for page in in_pages(gallery, [tracklet_id for tracklet_id, _ in held if tracklet_id in members]):
                self._linker.restore(page, members)
            self._write(self._linker.restore_links(self._store.links(), self._store.decisions(), self._clock_ns()))
            spoken = {each.key: each.verdict for each in self._store.decisions()}
            for decision in decisions:
                try:
                    if spoken.get(decision.key, decision.verdict) != decision.verdict:  # withdrawn meanwhile, and decided anew
                        self.forget_decision(decision.key)
                    self.decide(decision)
                except BadInputError as error:
                    log.error("decision not in force", extra={"pair": decision.key, "reason": str(error)})
            missed = [name for name, revision in held if revision > (members[name].revision if name in members else 0)]
            for page in in_pages(gallery, missed):
                self.take(page)
            return len(missed)

    def take(self, tracklets: Sequence[Tracklet]) -> None:
        """Link tracklets that the gallery holds durably; those seen before change nothing."""
        if self._linker is not None:
            with self._lock:
                self._write(self._linker.link(tracklets, self._clock_ns()))

    def refresh(self, tracklets: Sequence[Tracklet]) -> None:
        """Tracklets as the gallery holds them now that another model made vectors of them."""
        if self._linker is not None:
            with self._lock:
                self._linker.refresh(tracklets)

    def decide(self, decision: Decision) -> None:
        """An operator's word; raises BadInputError where it contradicts one in force."""
        with self._lock:
            if self._linker is None:
                self._write(LinkChanges(decisions=(decision,)))
            else:
                self._write(self._linker.decide(decision))

    def forget_decision(self, key: str) -> None:
        """A word whose message was taken away."""
        with self._lock:
            self._write(LinkChanges(forgotten=(key,)) if self._linker is None else self._linker.forget_decision(key))

    def erase(self, tracklet_ids: Sequence[str]) -> tuple[str, ...]:
        """Remove tracklets for good; gives the keys of the operators' words on them: ``outputs`` takes those off their topic."""
        with self._lock:
            gone = set(tracklet_ids)
            keys = {each.key for each in self._store.decisions() if gone & {each.first, each.second}}
            if self._linker is not None:
                changes = self._linker.remove(tracklet_ids, self._clock_ns())
                keys.update(changes.forgotten)
                self._write(changes)
            self._forgotten.update(dict.fromkeys(sorted(keys)))
            self._store.remove(tracklet_ids)  # also what only the store knew
            return tuple(sorted(keys))

    def expire(self, before_ns: int) -> None:
        """Remove the tracklets that ended before a time, as the gallery did."""
        with self._lock:
            names = self._store.ended_before(before_ns)
            if names:
                self.erase(names)

    def outputs(self) -> list[Output]:
        """The events that nobody was told yet, and the words on tracklets that are no more, which must go too."""
        with self._lock:
            waiting = [(number, event) for number, event in self._store.untold() if number > self._sent]
            self._sent = max([self._sent, *(number for number, _ in waiting)])
            forgotten, self._forgotten = self._forgotten, {}
            told = [Output(IDENTITIES, event.identity_id, event) for _, event in waiting]
            return [*(Output(DECISIONS, key, None) for key in forgotten), *told]

    def were_sent(self) -> None:
        """What ``outputs`` gave was produced: once it is durable it need not be kept."""
        with self._lock:
            if self._sent:
                self._flush()
                self._store.told(self._sent)
                self._sent = 0

    def _write(self, changes: LinkChanges) -> None:
        """What a full disk kept from being written before goes first: the linker will not say it again."""
        self._unwritten = joined([self._unwritten, changes])
        self._store.write(self._unwritten)
        self._unwritten = LinkChanges()


def read_decisions(broker: Broker) -> list[Decision]:
    """The last word on every pair of tracklets, in the order in which they were spoken."""
    found: dict[str, Decision] = {}
    with closing(broker.reader([DECISIONS])) as reader:
        for message in until_end(broker, reader, DECISIONS):
            key = (message.key or b"").decode(errors="replace")
            found.pop(key, None)
            if message.value is not None:
                try:
                    found[key] = wire.decode(Decision, message.value)
                except BadInputError as error:  # the worker meets it too, and puts it aside
                    log.error("decision that cannot be read", extra={**where([message]), "reason": str(error)})
    return list(found.values())
