"""Linking: which tracklets probably show one person, decided online, one tracklet after the other.

An identity is a set of tracklets held together by links. Face and voice are long-term keys, the body ties tracklets of the same hours
(Wang et al., Listen, Look, and Find the One, 2020). Three things keep an incremental single-link clustering from running together:

- what cannot be: two people in one picture are two people, nobody is faster than a top speed between two cameras, and what an operator
  cut stays cut, through third parties too;
- the other members speak: the mean of what they say against a newcomer is taken from its best link;
- rivals: whoever is seen beside the newcomer, or beside the one it would be, shares its odds (a softmax over all that exclude one another,
  both ways), so that of two look-alikes neither is linked on likeness alone.

When a link falls away its identity is built anew from those that are left, strongest first (Kruskal's forest, refusing what cannot be).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.calibration import log_odds_of, score
from pipeline.evidence import Associator
from pipeline.index.constraints import Constraints, Position
from pipeline.index.stage import newest
from pipeline.index.units import Group, Held, envoys, held_of, member_of, name_of, overlapping, spokesmen, strength
from pipeline.index.weighing import Pairs, share, weighed
from pipeline.index.words import Words
from pipeline.ports import LinkChanges, Member, Neighbours
from pipeline.types import Decision, Identity, IdentityEvent, Link, Tracklet
from pipeline.types.identity import pair_key

DROWNED = 5.0  # log-odds by which a rival must be weaker to make no difference
RIVALS = 3  # so many of the strongest are asked whether they are somebody else: the weaker add little
STRONGER_BY = 1.0  # log-odds by which a newcomer must be nearer than the one whose place it takes


@dataclass(frozen=True, slots=True)
class LinkRules:
    """accept: probability from which a link is made; body_horizon_s: after so long clothes say nothing; top_speed_m_s: 0 = any;
    candidates: neighbours looked at in each space; links_kept: strongest links a newcomer keeps."""

    accept: float = 0.9
    body_horizon_s: float = 8 * 3600.0
    top_speed_m_s: float = 8.0
    candidates: int = 12
    links_kept: int = 3


@dataclass(slots=True)
class _Step:
    """What one call changed. was: identity before of those that moved; sizes: tracklets an identity had before it was touched."""

    at_ns: int
    was: dict[str, str | None] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    members: dict[str, None] = field(default_factory=dict)
    links: dict[tuple[str, str], Link | None] = field(default_factory=dict)
    waiting: dict[str, None] = field(default_factory=dict)  # lost their place: to be placed again


@dataclass(frozen=True, slots=True, eq=False)
class _Offer:
    """An identity that a tracklet could join: by which member, how strongly, how probably."""

    best: Held
    support: float
    probability: float


class Linker:
    """All tracklets and who is probably who. Not for several threads. The same calls in the same order give the same identities."""

    def __init__(
        self,
        associator: Associator,
        neighbours: Neighbours,
        rules: LinkRules | None = None,
        position_of: Callable[[str], Position | None] = lambda camera_id: None,
    ) -> None:
        """position_of: where a camera hangs, metres; None: not known, and no travel time is asked for."""
        self._associator, self._neighbours = associator, neighbours
        self._rules = rules or LinkRules()
        self._held: dict[str, Held] = {}
        self._groups: dict[str, Group] = {}
        self._cameras: dict[str, list[tuple[int, int, str]]] = {}
        self._longest_ns: dict[str, int] = {}
        self._words = Words()
        self._constraints = Constraints(self._words, position_of, self._rules.top_speed_m_s)

    # ------------------------------------------------------------------------------------------- questions

    def __len__(self) -> int:
        return len(self._held)

    def revision_of(self, tracklet_id: str) -> int:
        """The revision that was linked; 0 for one that was not."""
        held = self._held.get(tracklet_id)
        return held.revision if held else 0

    def identity_of(self, tracklet_id: str) -> str | None:
        held = self._held.get(tracklet_id)
        return held.identity_id if held else None

    def identity(self, tracklet_id: str) -> Identity | None:
        """The identity of a tracklet, with the links in force."""
        held = self._held.get(tracklet_id)
        if held is None:
            return None
        unit = sorted(held.unit, key=lambda each: each.span)
        ids = {each.tracklet_id for each in unit}
        links = {
            (link.first, link.second): link
            for each in unit
            for other, link in each.links.items()
            if other in ids and link.verdict != "different"
        }
        return Identity(held.identity_id, tuple(each.tracklet_id for each in unit), tuple(links[pair] for pair in sorted(links)))

    def decisions(self) -> list[Decision]:
        """The operators' words in force, oldest first."""
        return self._words.in_force()

    # --------------------------------------------------------------------------------------------- restore

    def restore(self, tracklets: Iterable[Tracklet], members: Mapping[str, Member]) -> None:
        """Tracklets as they were linked before, in pages; links and decisions come after the last (``restore_links``)."""
        tracklets = list(tracklets)
        self._neighbours.add(tracklets)
        for tracklet in tracklets:
            member = members[tracklet.tracklet_id]
            held = self._enter(replace(tracklet, revision=member.revision))
            self._neighbours.told_apart(held.tracklet_id, [other.tracklet_id for other in self._beside(held)])
            group = self._groups.get(member.identity_id)
            if group is None:
                group = self._groups[member.identity_id] = Group(member.identity_id, (held.from_ns, held.tracklet_id))
            group.add(held)
            if name_of(held.tracklet_id) == group.identity_id or name_of(group.founder[1]) != group.identity_id:
                group.founder = min(group.founder, held.span[::2]) if name_of(held.tracklet_id) != group.identity_id else held.span[::2]

    def restore_links(self, links: Iterable[Link], decisions: Iterable[Decision], at_ns: int) -> LinkChanges:
        """The links and words as they were; gives what must be mended where tracklets vanished meanwhile and left an identity in pieces."""
        for link in links:
            first, second = self._held.get(link.first), self._held.get(link.second)
            if first and second:
                first.links[link.second] = second.links[link.first] = link
        for decision in decisions:
            self._words.remember(decision)
        step = _Step(at_ns)
        for group in list(self._groups.values()):
            if len(group.members) == 1:
                (held,) = group.members.values()
                if group.identity_id != held.identity_id or group.identity_id != name_of(held.tracklet_id):
                    self._touch(step, held)
                group.take_out(held)
                del self._groups[group.identity_id]
            elif not self._is_whole(group):
                self._rebuild(step, group.members.values())
        return self._finish(step)

    def _is_whole(self, group: Group) -> bool:
        """Whether its links still hold all of it together."""
        first = next(iter(group.members))
        seen, waiting = {first}, [first]
        while waiting:
            for other, link in group.members[waiting.pop()].links.items():
                if other in group.members and other not in seen and link.verdict != "different":
                    seen.add(other)
                    waiting.append(other)
        return len(seen) == len(group.members)

    # ------------------------------------------------------------------------------------------------ link

    def link(self, tracklets: Sequence[Tracklet], at_ns: int) -> LinkChanges:
        """Take in tracklets, new ones and revisions; a revision that is known already changes nothing."""
        wanted = [each for each in newest(tracklets) if each.revision > self.revision_of(each.tracklet_id)]
        if not wanted:
            return LinkChanges()
        self._neighbours.add(wanted)
        near = self._neighbours.near([each.tracklet_id for each in wanted], self._rules.candidates)
        changes = []
        for tracklet, ids in zip(wanted, near, strict=True):
            step = _Step(at_ns)
            if tracklet.tracklet_id in self._held:
                self._revise(step, tracklet, ids)
            else:
                held = self._enter(tracklet)
                self._neighbours.told_apart(held.tracklet_id, [other.tracklet_id for other in self._beside(held)])
                step.was[held.tracklet_id] = None
                step.members[held.tracklet_id] = None
                self._obey(step, held)
                self._place(step, held, ids)
            self._place_those_who_lost(step)
            changes.append(self._finish(step))
        return joined(changes)

    def refresh(self, tracklets: Sequence[Tracklet]) -> None:
        """Known tracklets of which another model made vectors too: later ones are compared by those; links stand as they were made."""
        self._neighbours.add([each for each in tracklets if each.tracklet_id in self._held])

    def _enter(self, tracklet: Tracklet) -> Held:
        held = held_of(tracklet)
        self._held[held.tracklet_id] = held
        insort(self._cameras.setdefault(held.camera_id, []), held.span)
        self._longest_ns[held.camera_id] = max(self._longest_ns.get(held.camera_id, 0), held.to_ns - held.from_ns)
        return held

    def _revise(self, step: _Step, tracklet: Tracklet, near: Sequence[str]) -> None:
        """Another revision of a known one: its evidence is weighed anew, and it may go elsewhere."""
        held = self._held[tracklet.tracklet_id]
        group = held.group
        if group:
            self._touch(step, held)
            group.take_out(held)
        self._leave_camera(held)
        new = held_of(tracklet)
        held.revision, held.from_ns, held.to_ns = new.revision, new.from_ns, new.to_ns
        held.is_heard, held.qualities = new.is_heard, new.qualities
        insort(self._cameras[held.camera_id], held.span)
        self._longest_ns[held.camera_id] = max(self._longest_ns[held.camera_id], held.to_ns - held.from_ns)
        step.members[held.tracklet_id] = None
        if group:
            group.add(held)
            known = list(held.links)
            near = [*near, *(other for other in known if other not in near)]
            is_leaf = all(link.second == held.tracklet_id and link.verdict == "probable" for link in held.links.values())
            if is_leaf and not held.is_bridge:  # nobody is held by it: out, and in again where it fits now
                self._drop_links(step, held, known)
                self._leave(step, held)
            else:
                lost = self._weigh_again(step, held)
                if lost or not self._constraints.can_be(held, group):
                    self._rebuild(step, group.members.values())
        self._place(step, held, near)

    def _weigh_again(self, step: _Step, held: Held) -> bool:
        """The model's links of a tracklet with its vectors of now; gives whether one fell away."""
        own = [other for other, link in held.links.items() if link.verdict == "probable"]
        pairs = self._pairs(held, own)
        lost = []
        for other in own:
            total = pairs.of(other)
            if math.isnan(total):
                continue  # what was compared then is no more (clothes after the horizon): the link stands as it was made
            if score(total) < self._rules.accept:
                lost.append(other)
            else:
                link = held.links[other]
                self._keep(step, pairs.link(link.first, link.second, other, score(total), step.at_ns))
        self._drop_links(step, held, lost)
        return bool(lost)

    # ---------------------------------------------------------------------------------------------- offers

    def _place(self, step: _Step, held: Held, near: Sequence[str]) -> None:
        """Join the identity that the evidence supports best, and bring others together that it shows to be one."""
        offers, pairs = self._offers(held, near)
        for offer in offers:
            if offer.best.group is held.group is not None:
                continue
            if held.group is None:
                if self._takes_place_of(step, held, offer):
                    self._keep_links(step, held, offer, pairs)
                    self._unite(step, held, offer.best)
            elif not self._are_two(offer.best, held, besides=held):
                held.is_bridge = True
                self._keep_links(step, held, offer, pairs)
                self._unite(step, held, offer.best)

    def _takes_place_of(self, step: _Step, held: Held, offer: _Offer) -> bool:
        """Whether a single tracklet can join; where one weaker member alone is in the way, that one goes."""
        group = offer.best.group
        if group is None:
            return self._constraints.are_possible(held, offer.best)
        if self._constraints.can_be(held, group):
            return True
        in_the_way = self._constraints.in_the_way(held, group)
        if len(in_the_way) != 1:
            return False
        (weaker,) = in_the_way
        bonds = [link for other, link in weaker.links.items() if other in group.members and link.verdict != "different"]
        if weaker is offer.best or any(link.verdict == "same" for link in bonds):
            return False
        if max((strength(link) for link in bonds), default=0.0) + STRONGER_BY > offer.support:
            return False
        self._drop_links(step, weaker, [other for other in weaker.links if other in group.members])
        rest = [each for each in group.members.values() if each is not weaker]
        self._leave(step, weaker)
        step.waiting[weaker.tracklet_id] = None
        if len(rest) > 1 and not self._is_whole(group):
            self._rebuild(step, rest)
        return offer.best.group is None or self._constraints.can_be(held, offer.best.group)

    def _place_those_who_lost(self, step: _Step) -> None:
        """Once each: whoever lost its place to a stronger one looks for another."""
        for tracklet_id in list(step.waiting):
            held = self._held[tracklet_id]
            if held.group is None:
                self._place(step, held, self._near(tracklet_id))

    def _near(self, tracklet_id: str) -> list[str]:
        (near,) = self._neighbours.near([tracklet_id], self._rules.candidates)
        return near

    def _offers(self, held: Held, near: Sequence[str]) -> tuple[list[_Offer], Pairs]:
        """The identities near a tracklet that it probably belongs to, most supported first."""
        units: dict[str, Held] = {}
        others: dict[str, None] = {}
        for other_id in near:
            other = self._held.get(other_id)
            if other is None or other is held or (other.group is held.group is not None):
                continue
            others[other_id] = None
            units.setdefault(other.identity_id, other)
        pairs = self._pairs(held, list(others))
        promising = {self._held[other].identity_id for other in others if pairs.of(other) > 0}
        others = {other: None for other in others if self._held[other].identity_id in promising}
        asked = [other for identity_id in promising for other in spokesmen(units[identity_id]) if other not in others]
        if asked:
            others.update(dict.fromkeys(sorted(asked)))
            pairs = pairs.and_those_of(self._pairs(held, sorted(asked)))
        by_unit: dict[str, list[tuple[float, Held]]] = {}
        for other_id in others:
            total, other = pairs.of(other_id), self._held[other_id]
            if not math.isnan(total):
                by_unit.setdefault(other.identity_id, []).append((total, other))
        found: list[tuple[float, Held]] = []
        for said in by_unit.values():
            said.sort(key=lambda each: (-each[0], each[1].tracklet_id))
            best = next((each for each in said if self._constraints.are_possible(held, each[1])), None)
            if best is not None:
                doubts = [each[0] for each in said if each is not best]
                found.append((best[0] + min(0.0, sum(doubts) / max(len(doubts), 1)), best[1]))
        found.sort(key=lambda each: (-each[0], each[1].tracklet_id))
        return self._probable(held, found), pairs

    def _probable(self, held: Held, found: Sequence[tuple[float, Held]]) -> list[_Offer]:
        """Of identities (support, the member that speaks for each; most supported first) those a tracklet belongs to with ``accept``."""
        least = log_odds_of(self._rules.accept)
        are_two: dict[frozenset[str], bool] = {}  # of two offers each may be the other's rival
        offers = []
        for support, member in found:
            if support < least:
                break
            rivals = self._rivals_of(held, member)
            if share(support, rivals) < self._rules.accept:
                continue  # more rivals would only take more of it
            heard = max(0.0, support - DROWNED)
            for each, other in [pair for pair in found if pair[1] is not member and pair[0] > heard][:RIVALS]:
                both = frozenset((member.tracklet_id, other.tracklet_id))
                if both not in are_two:
                    are_two[both] = self._are_two(member, other)
                if are_two[both]:
                    rivals.append(each)
            probability = share(support, rivals)
            if probability >= self._rules.accept:
                offers.append(_Offer(member, support, probability))
        return offers

    def _rivals_of(self, held: Held, best: Held) -> list[float]:
        """What speaks for those seen beside a tracklet, in the same picture at the same time, to be ``best`` in its stead."""
        beside = [other for other in self._beside(held) if other is not best and self._constraints.are_possible(other, best)]
        if not beside:
            return []
        pairs = self._pairs(best, [other.tracklet_id for other in beside])
        return [float(total) for total in pairs.total if total > 0]

    def _beside(self, held: Held) -> list[Held]:
        """Who is in the same picture at the same time."""
        spans, longest = self._cameras[held.camera_id], self._longest_ns[held.camera_id]
        found = []
        for span in overlapping(spans, held.from_ns, held.to_ns, longest):
            other = self._held[span[2]]
            if other is not held and self._constraints.exclude(held, other):
                found.append(other)
        return found

    def _pairs(self, held: Held, others: Sequence[str]) -> Pairs:
        """The evidence of a tracklet beside others."""
        known = [self._held[each] for each in others]
        return weighed(self._neighbours, self._associator, self._rules.body_horizon_s, held, known)

    def _are_two(self, held: Held, other: Held, besides: Held | None = None) -> bool:
        """Whether two identities cannot be one, or deny it where members of both can be compared; ``besides`` is not asked."""
        if self._constraints.conflict(held, other):
            return True
        theirs = [each for each in envoys(other) if besides is None or each != besides.tracklet_id]
        ours, theirs = sorted((envoys(held), theirs), key=len)  # one comparison for each of the fewer
        said = [float(total) for each in ours for total in self._pairs(self._held[each], theirs).total if not math.isnan(total)]
        return bool(said) and sum(said) < 0.0

    # ----------------------------------------------------------------------------------------------- links

    def _keep_links(self, step: _Step, held: Held, offer: _Offer, pairs: Pairs) -> None:
        """The strongest links between a newcomer and an identity."""
        unit = offer.best.group.members if offer.best.group else {offer.best.tracklet_id: offer.best}
        strong = [(pairs.of(other), other) for other in pairs.at if other in unit]
        strong = [
            each for each in strong if score(each[0]) >= self._rules.accept and self._constraints.are_possible(held, self._held[each[1]])
        ]
        strong.sort(key=lambda each: (-each[0], each[1]))
        chosen = [offer.best.tracklet_id, *(other for _, other in strong if other != offer.best.tracklet_id)][: self._rules.links_kept]
        for other in chosen:
            probability = min(offer.probability, score(pairs.of(other)))
            self._keep(step, pairs.link(other, held.tracklet_id, other, probability, step.at_ns))

    def _keep(self, step: _Step, link: Link) -> None:
        known = self._held[link.first].links.get(link.second)
        if known is not None and known.verdict != "probable":
            link = replace(
                link, first=known.first, second=known.second, made_by=known.made_by, made_at_ns=known.made_at_ns, verdict=known.verdict
            )
        if known is not None and (known.first, known.second) != (link.first, link.second):
            step.links[known.first, known.second] = None
        self._held[link.first].links[link.second] = self._held[link.second].links[link.first] = link
        step.links[link.first, link.second] = link

    def _drop_links(self, step: _Step, held: Held, others: Iterable[str]) -> None:
        """The model's links to ``others`` are no more; those of operators stand."""
        for other in list(others):
            link = held.links.get(other)
            if link is not None and link.verdict == "probable":
                del held.links[other], self._held[other].links[held.tracklet_id]
                step.links[link.first, link.second] = None

    # ------------------------------------------------------------------------------------------- membership

    def _touch(self, step: _Step, held: Held) -> None:
        """Note the identity that a tracklet has before it changes."""
        if held.tracklet_id not in step.was:
            step.was[held.tracklet_id] = held.identity_id
        if held.group:
            step.sizes.setdefault(held.identity_id, len(held.group.members))
        step.members[held.tracklet_id] = None

    def _leave(self, step: _Step, held: Held) -> None:
        """Out of its identity; one that is left alone, or without its founder, is named anew only where it must be."""
        group = held.group
        if group is None:
            return
        self._touch(step, held)
        if len(group.members) == 2 or group.founder[1] == held.tracklet_id:
            for each in group.members.values():
                self._touch(step, each)
        group.take_out(held)
        if len(group.members) == 1:
            (last,) = group.members.values()
            group.take_out(last)
            del self._groups[group.identity_id]
        elif group.founder[1] == held.tracklet_id:
            self._rename(group, min(each.span[::2] for each in group.members.values()))

    def _rename(self, group: Group, founder: tuple[int, str]) -> None:
        del self._groups[group.identity_id]
        group.founder, group.identity_id = founder, name_of(founder[1])
        self._groups[group.identity_id] = group

    def _unite(self, step: _Step, held: Held, other: Held) -> None:
        """Two identities become one: the smaller goes into the larger, the name is that of the older."""
        fewer, more = sorted((held, other), key=lambda each: (len(each.group.members) if each.group else 1, each.span[::2]))
        founders = {each.group.founder if each.group else each.span[::2] for each in (held, other)}
        founder = min(founders)
        for each in fewer.unit:
            self._touch(step, each)
        if more.group is None:
            self._touch(step, more)
            group = Group(more.identity_id, more.span[::2])
            group.add(more)
            self._groups[group.identity_id] = group
        group = more.group or group
        step.sizes.setdefault(group.identity_id, len(group.members))
        if group.founder != founder:
            for each in group.members.values():
                self._touch(step, each)
        lesser = fewer.group
        if lesser is not None:
            del self._groups[lesser.identity_id]
        for each in fewer.unit:
            group.add(each)
        if group.founder != founder:
            name = lesser.identity_id if lesser is not None and lesser.founder == founder else name_of(founder[1])
            step.sizes.setdefault(name, 1)
            del self._groups[group.identity_id]
            group.founder, group.identity_id = founder, name
            self._groups[name] = group

    def _rebuild(self, step: _Step, members: Iterable[Held]) -> None:
        """The identities of ``members`` anew from the links among them: operators' first, then the strongest."""
        held = {each.tracklet_id: each for each in members}
        names = {each.group.founder: each.group.identity_id for each in held.values() if each.group}
        for each in held.values():
            self._touch(step, each)
        for each in held.values():
            if each.group:
                self._groups.pop(each.group.identity_id, None)
            each.group = None
        links = {(link.first, link.second): link for each in held.values() for other, link in each.links.items() if other in held}
        for link in sorted(links.values(), key=lambda each: (each.verdict != "same", -strength(each), each.first, each.second)):
            first, second = held[link.first], held[link.second]
            if link.verdict == "different" or (first.group is second.group is not None):
                continue
            if link.verdict == "same" or (self._constraints.are_possible(first, second) and not self._constraints.conflict(first, second)):
                self._unite(step, first, second)
        self._restore_names(held.values(), names)

    def _restore_names(self, members: Iterable[Held], names: Mapping[tuple[int, str], str]) -> None:
        """The part with the founder keeps the name; where the founder is no more, the part with the oldest member."""
        groups = sorted({id(each.group): each.group for each in members if each.group}.values(), key=lambda each: each.founder)
        named: set[int] = set()
        for founder, name in sorted(names.items()):
            heir = next((group for group in groups if founder[1] in group.members), None)
            if heir is None and founder[1] not in self._held and groups:
                heir = groups[0]
            if heir is not None and id(heir) not in named:
                named.add(id(heir))
                self._groups.pop(heir.identity_id, None)
                heir.founder, heir.identity_id = founder, name
                self._groups[name] = heir

    # ------------------------------------------------------------------------------------------- operators

    def decide(self, decision: Decision) -> LinkChanges:
        """An operator's word, now and for ever; raises BadInputError where it contradicts one in force."""
        self._words.check(decision)
        known = self._words.on(decision.key)
        if known is not None and known.verdict == decision.verdict:
            return LinkChanges()
        self._words.remember(decision)
        step = _Step(decision.decided_at_ns)
        first, second = self._held.get(decision.first), self._held.get(decision.second)
        if first and second:
            self._put_word(step, decision, first, second)
            self._rebuild(step, {each.tracklet_id: each for each in (*first.unit, *second.unit)}.values())
            if decision.verdict == "withdrawn":
                for held in (first, second):
                    self._place(step, held, self._near(held.tracklet_id))
            self._place_those_who_lost(step)
        return replace(self._finish(step), decisions=(decision,))

    def forget_decision(self, key: str) -> LinkChanges:
        """A word whose message was taken away: as if withdrawn, and nothing is kept of it."""
        known = self._words.on(key)
        if known is None:
            return LinkChanges()
        changes = self.decide(replace(known, verdict="withdrawn"))
        return replace(changes, decisions=(), forgotten=(key,))

    def _put_word(self, step: _Step, decision: Decision, first: Held, second: Held) -> None:
        """The word onto the link of the pair, with the evidence that there is."""
        pairs = self._pairs(first, [second.tracklet_id])
        total = pairs.of(second.tracklet_id)
        probability = 0.5 if math.isnan(total) else score(total)
        known = first.links.get(second.tracklet_id)
        ends = (known.first, known.second) if known else (first.tracklet_id, second.tracklet_id)
        made = pairs.link(*ends, second.tracklet_id, probability, decision.decided_at_ns)
        if decision.verdict == "withdrawn":
            if known is not None:
                del first.links[second.tracklet_id], second.links[first.tracklet_id]
                step.links[ends] = None
            if probability >= self._rules.accept and self._constraints.are_possible(first, second):
                self._keep(step, made)
            return
        link = replace(made, made_by=decision.decided_by or "operator", verdict=decision.verdict)
        first.links[second.tracklet_id] = second.links[first.tracklet_id] = link
        step.links[ends] = link

    def _obey(self, step: _Step, held: Held) -> None:
        """Words that were spoken before the tracklet came."""
        for other_id in sorted({*self._words.cut_from(held.tracklet_id), *self._words.same_as(held.tracklet_id)}):
            other = self._held.get(other_id)
            if other is None:
                continue
            decision = self._words.on(pair_key(held.tracklet_id, other_id))
            assert decision is not None
            self._put_word(step, decision, held, other)
            if decision.verdict == "same":
                self._rebuild(step, {each.tracklet_id: each for each in (*held.unit, *other.unit)}.values())

    # ---------------------------------------------------------------------------------------------- remove

    def remove(self, tracklet_ids: Sequence[str], at_ns: int) -> LinkChanges:
        """Erased or expired: they, their links and the words on them are no more; whom they alone held together is weighed anew."""
        step = _Step(at_ns)
        gone = [self._held[each] for each in dict.fromkeys(tracklet_ids) if each in self._held]
        ids = {held.tracklet_id for held in gone}
        forgotten = self._words.forget(set(tracklet_ids))
        self._neighbours.remove(list(dict.fromkeys(tracklet_ids)))
        groups = {id(held.group): held.group for held in gone if held.group}
        partners: dict[str, None] = {}
        for held in gone:
            for other, link in held.links.items():
                partners[other] = None
                self._held[other].links.pop(held.tracklet_id, None)
                step.links[link.first, link.second] = None
            held.links = {}
            self._leave_camera(held)
            if held.group:
                self._touch(step, held)
                held.group.take_out(held)
            del self._held[held.tracklet_id]
        for group in groups.values():
            if len(group.members) < 2:
                for last in list(group.members.values()):
                    self._touch(step, last)
                    group.take_out(last)
                del self._groups[group.identity_id]
            elif not self._is_whole(group):
                members = list(group.members.values())
                self._rebuild(step, members)
                for held in members:
                    if held.tracklet_id in partners:
                        self._place(step, held, self._near(held.tracklet_id))
        for each in ids:
            step.was.pop(each, None)
            step.members.pop(each, None)
        return replace(self._finish(step), gone=tuple(sorted(ids)), forgotten=forgotten)

    def _leave_camera(self, held: Held) -> None:
        spans = self._cameras[held.camera_id]
        del spans[bisect_left(spans, held.span)]

    # ---------------------------------------------------------------------------------------------- events

    def _finish(self, step: _Step) -> LinkChanges:
        """What is to be written of a step, and its events."""
        members = tuple(member_of(self._held[each]) for each in step.members if each in self._held)
        links = tuple(link for link in step.links.values() if link is not None)
        unlinked = tuple(pair for pair, link in step.links.items() if link is None)
        return LinkChanges(members, links, unlinked, events=self._events(step))

    def _events(self, step: _Step) -> tuple[IdentityEvent, ...]:
        came: dict[str, dict[str | None, list[str]]] = {}
        for tracklet_id, before in step.was.items():
            held = self._held.get(tracklet_id)
            if held is not None and held.identity_id != before:
                came.setdefault(held.identity_id, {}).setdefault(before, []).append(tracklet_id)
        events = []
        for identity_id, by_old in came.items():
            single: list[str] = []
            for old, ids in by_old.items():
                size = step.sizes.get(old, 1) if old else 1
                if size < 2 or old is None:
                    single += ids
                elif old not in self._groups and len(ids) == size:
                    events.append(IdentityEvent("merged", identity_id, tuple(ids), step.at_ns, old, self._bond(ids)))
                else:
                    events.append(IdentityEvent("split", old, tuple(ids), step.at_ns, identity_id))
                    if step.sizes.get(identity_id, 1) > 1:
                        single += ids
            group = self._groups.get(identity_id)
            if single and group is not None:
                is_old = step.sizes.get(identity_id, 1) > 1
                ids = single if is_old else [span[2] for span in group.spans]
                events.append(IdentityEvent("grown" if is_old else "made", identity_id, tuple(ids), step.at_ns, "", self._bond(single)))
        return tuple(events)

    def _bond(self, tracklet_ids: Sequence[str]) -> Link | None:
        """The strongest link from these into the rest of their identity."""
        own = set(tracklet_ids)
        links = [
            link
            for each in tracklet_ids
            for other, link in self._held[each].links.items()
            if other not in own and link.verdict != "different" and self._held[other].group is self._held[each].group is not None
        ]
        return max(links, key=lambda link: (strength(link), link.first, link.second), default=None)


def joined(changes: Sequence[LinkChanges]) -> LinkChanges:
    """The changes of several steps as one: the last word on a tracklet, a pair or a decision holds."""
    members: dict[str, Member] = {}
    links: dict[tuple[str, str], Link | None] = {}
    gone: dict[str, None] = {}
    words: dict[str, Decision | None] = {}
    for each in changes:
        for member in each.members:
            members[member.tracklet_id] = member
            gone.pop(member.tracklet_id, None)
        links.update(dict.fromkeys(each.unlinked))
        links.update({(link.first, link.second): link for link in each.links})
        for tracklet_id in each.gone:
            members.pop(tracklet_id, None)
            gone[tracklet_id] = None
        words.update({decision.key: decision for decision in each.decisions})
        words.update(dict.fromkeys(each.forgotten))
    return LinkChanges(
        tuple(members.values()),
        tuple(link for link in links.values() if link is not None),
        tuple(pair for pair, link in links.items() if link is None),
        tuple(gone),
        tuple(decision for decision in words.values() if decision is not None),
        tuple(key for key, decision in words.items() if decision is None),
        tuple(event for each in changes for event in each.events),
    )
