"""What linking keeps of tracklets, and of those that are one identity."""

from __future__ import annotations

import hashlib
import sys
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.ports import Member
from pipeline.types import FACE, VOICE, Link, Tracklet

SPOKESMEN = {FACE: 4, VOICE: 3}  # members that speak for a large identity: the best of each long-term key
LATEST = 4  # and those seen last, for the body

Span = tuple[int, int, str]  # from, to, tracklet


@dataclass(slots=True, eq=False)
class Group:
    """An identity of two tracklets or more. founder: (start, id) of the tracklet it is named after; spans: (from, to, id) by start;
    keys: per long-term modality (-quality, id), the best first."""

    identity_id: str
    founder: tuple[int, str]
    members: dict[str, Held] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    keys: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    longest_ns: int = 0

    def add(self, held: Held) -> None:
        self.members[held.tracklet_id] = held
        insort(self.spans, held.span)
        for modality, quality in held.qualities.items():
            insort(self.keys.setdefault(modality, []), (-quality, held.tracklet_id))
        self.longest_ns = max(self.longest_ns, held.to_ns - held.from_ns)
        held.group = self

    def take_out(self, held: Held) -> None:
        del self.members[held.tracklet_id]
        del self.spans[bisect_left(self.spans, held.span)]
        for modality, quality in held.qualities.items():
            del self.keys[modality][bisect_left(self.keys[modality], (-quality, held.tracklet_id))]
        held.group = None


@dataclass(slots=True, eq=False)
class Held:
    """What linking knows of a tracklet. qualities: of face and voice; links: by the other's id, in force or not; is_bridge: it brought
    identities together."""

    tracklet_id: str
    revision: int
    camera_id: str
    from_ns: int
    to_ns: int
    is_heard: bool
    qualities: Mapping[str, float]
    links: dict[str, Link] = field(default_factory=dict)
    group: Group | None = None
    is_bridge: bool = False

    @property
    def span(self) -> Span:
        return self.from_ns, self.to_ns, self.tracklet_id

    @property
    def identity_id(self) -> str:
        return self.group.identity_id if self.group else name_of(self.tracklet_id)

    @property
    def unit(self) -> tuple[Held, ...]:
        """All tracklets of its identity."""
        return tuple(self.group.members.values()) if self.group else (self,)


def name_of(tracklet_id: str) -> str:
    """The id of the identity that a tracklet founds; nobody reads the tracklet's id back from it."""
    return "i" + hashlib.blake2b(tracklet_id.encode(), digest_size=8).hexdigest()


def held_of(tracklet: Tracklet) -> Held:
    qualities = {e.modality: e.quality for e in tracklet.embeddings if e.modality in SPOKESMEN}
    is_heard = tracklet.is_speaker_turn
    camera_id = sys.intern(tracklet.camera_id)  # one text for all tracklets of a camera: there may be millions
    return Held(tracklet.tracklet_id, tracklet.revision, camera_id, tracklet.started_at_ns, tracklet.ended_at_ns, is_heard, qualities)


def member_of(held: Held) -> Member:
    return Member(held.tracklet_id, held.identity_id, held.revision, held.camera_id, held.from_ns, held.to_ns, held.is_heard)


def spokesmen(held: Held) -> list[str]:
    """The ids of the members that speak for an identity: all of a small one, the best and the latest of a large one."""
    group = held.group
    if group is None:
        return [held.tracklet_id]
    if len(group.members) <= LATEST + sum(SPOKESMEN.values()):
        return list(group.members)
    chosen = dict.fromkeys(span[2] for span in group.spans[-LATEST:])
    for modality, count in SPOKESMEN.items():
        chosen.update(dict.fromkeys(tracklet_id for _, tracklet_id in group.keys.get(modality, [])[:count]))
    return list(chosen)


def envoys(held: Held) -> list[str]:
    """The ids of the few members that an identity sends to another: the latest two, and the best of each long-term key."""
    group = held.group
    if group is None:
        return [held.tracklet_id]
    chosen = dict.fromkeys(span[2] for span in group.spans[-2:])
    for modality in SPOKESMEN:
        chosen.update(dict.fromkeys(tracklet_id for _, tracklet_id in group.keys.get(modality, [])[:1]))
    return list(chosen)


def strength(link: Link) -> float:
    return sum(link.log_odds.values())


def overlapping(spans: Sequence[Span], from_ns: int, to_ns: int, longest_ns: int) -> list[Span]:
    """The spans, sorted by start and none longer than ``longest_ns``, that touch from_ns..to_ns."""
    at = bisect_left(spans, (from_ns - longest_ns, -1, ""))
    found = []
    while at < len(spans) and spans[at][0] <= to_ns:
        if spans[at][1] >= from_ns:
            found.append(spans[at])
        at += 1
    return found
