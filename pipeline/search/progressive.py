"""From one portrait on to tracklets whose face was never seen: the search walks from tracklet to tracklet along what they share.

Wang et al., Listen, Look, and Find the One, 2020 (online stage of the multimodality index): face and voice lead anywhere, the body only
to what was seen within some hours. PPCC (Huang et al., 2018) spreads labels over the whole graph of a film; we walk best first, so that
a budget can end the walk at any moment with the most probable people found, and every match can show its path.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from pipeline.calibration import log_odds_of, score
from pipeline.errors import SpaceMismatchError
from pipeline.evidence import LONG_TERM, Associator, Evidence, are_two_at_once, compare, gap_between_s
from pipeline.ports import Gallery
from pipeline.types import BODY, FACE, VOICE, Embedding, Filter, Link, Step, Tracklet
from pipeline.types.identity import LARGEST_PROBABILITY

LEADS = (FACE, VOICE, BODY)
CUT = "different"  # the verdict of a link that an operator cut
SAME = "same"  # of one that an operator confirmed
CONFIRMED = "operator"  # what led on where two tracklets share nothing but an operator's word


@dataclass(frozen=True, slots=True)
class WalkRules:
    """searches: index searches of one walk; neighbours: asked of each; least: probability under which a path ends;
    caution: log-odds taken off each step, for the nearest of many strangers is nearer than strangers usually are; body_horizon_s: how far
    in time clothes lead."""

    searches: int = 40
    neighbours: int = 20
    least: float = 0.5
    caution: float = 1.5
    body_horizon_s: float = 4 * 3600.0


@dataclass(frozen=True, slots=True)
class Found:
    """A tracklet at the end of a path. probability: that it shows who was asked for, the product over the steps."""

    tracklet: Tracklet
    probability: float
    path: tuple[Step, ...]


@dataclass(slots=True)
class _Walk:
    """What one walk has found and spent. notes: what the budget left out."""

    objection: Callable[[Tracklet], float]
    best: dict[str, Found] = field(default_factory=dict)
    searches: int = 0
    notes: list[str] = field(default_factory=list)


class Walker:
    """Walks from tracklets that are probably the person to others.

    associator: cosines to log-odds; allowed: whether two tracklets can be one person at all (travel time); links: of a tracklet, as they
    were made before the question was asked, also those that an operator cut.
    """

    def __init__(
        self,
        gallery: Gallery,
        associator: Associator,
        rules: WalkRules | None = None,
        allowed: Callable[[Tracklet, Tracklet], bool] = lambda one, other: True,
        links: Callable[[str], Sequence[Link]] = lambda tracklet_id: (),
    ) -> None:
        self._gallery = gallery
        self._associator = associator
        self._rules = rules or WalkRules()
        self._allowed, self._links = allowed, links

    def walk(
        self,
        starts: Iterable[Found],
        window: Filter,
        steps: int = 3,
        objection: Callable[[Tracklet], float] = lambda tracklet: 0.0,
        is_late: Callable[[], bool] = lambda: False,
    ) -> tuple[list[Found], list[str]]:
        """Everybody found with at least ``least`` probability, best first, the starts among them, and notes on what was left out.

        steps: longest path beyond the starts; objection: log-odds, at most 0, by which the probe itself speaks against a tracklet;
        is_late: asked before each step; when it says so the walk ends with what it has.
        """
        walk = _Walk(objection)
        queue: list[tuple[float, str]] = []
        for start in starts:
            if start.probability >= self._rules.least:
                self._reach(walk, queue, start)
        expanded: set[str] = set()
        while queue:
            _, tracklet_id = heapq.heappop(queue)
            here = walk.best[tracklet_id]
            if tracklet_id in expanded or len(here.path) > steps:
                continue
            if walk.searches >= self._rules.searches or is_late():
                walk.notes.append(f"the walk from match to match ended after {walk.searches} searches: its budget was spent")
                break
            expanded.add(tracklet_id)
            for found in self._onward(walk, here, window):
                self._reach(walk, queue, found)
        by_probability = sorted(walk.best.values(), key=lambda each: (-each.probability, each.tracklet.tracklet_id))
        return one_place_at_a_time(by_probability), walk.notes

    def _reach(self, walk: _Walk, queue: list[tuple[float, str]], found: Found) -> None:
        known = walk.best.get(found.tracklet.tracklet_id)
        if known is None or found.probability > known.probability:
            walk.best[found.tracklet.tracklet_id] = found
            heapq.heappush(queue, (-found.probability, found.tracklet.tracklet_id))

    def _onward(self, walk: _Walk, here: Found, window: Filter) -> list[Found]:
        """The next tracklets, each with the probability of its whole path."""
        leads = [embedding for embedding in here.tracklet.embeddings if embedding.modality in LEADS]
        ids: dict[str, None] = {}
        for embedding in leads:
            for tracklet_id in self._near(embedding, self._window(embedding, here.tracklet, window)):
                ids[tracklet_id] = None
            walk.searches += 1
        own = here.tracklet.tracklet_id
        links = {_other(link, own): link for link in self._links(own)}
        ids |= dict.fromkeys(links)
        before = [walk.best[step.from_tracklet].tracklet for step in here.path if step.from_tracklet]
        for each in {own, *(earlier.tracklet_id for earlier in before)}:
            for parted in self.cut_from(each):
                ids.pop(parted, None)
        ids.pop(own, None)
        reached = []
        for other in self._gallery.tracklets(list(ids)):
            if not is_in_window(other, window):  # a link may lead anywhere, the question does not
                continue
            against = min([walk.objection(other), *(self._objection(earlier, other) for earlier in before)])
            step = self.step(here.tracklet, other, against)
            if other.tracklet_id in links and math.isfinite(against):
                step = linked(step, links[other.tracklet_id], own, against)
            if step is not None and step.probability * here.probability >= self._rules.least:
                reached.append(Found(other, step.probability * here.probability, (*here.path, step)))
        return reached

    def _objection(self, earlier: Tracklet, other: Tracklet) -> float:
        """By how much the face and voice of somebody earlier on the path speak against ``other``: log-odds, at most 0."""
        if is_in_two_places(earlier, other) or not self._allowed(earlier, other):
            return -math.inf
        lasting = [embedding for embedding in earlier.embeddings if embedding.modality in LONG_TERM]
        return min(0.0, compare(self._associator, lasting, other.embeddings).total)

    def step(self, one: Tracklet, other: Tracklet, against: float = 0.0) -> Step | None:
        """The step between two tracklets; None where they cannot be one person, or nothing of them can be compared.

        against: log-odds, at most 0, by which others speak against it.
        """
        span, other_span = (one.started_at_ns, one.ended_at_ns), (other.started_at_ns, other.ended_at_ns)
        if is_in_two_places(one, other) or not self._allowed(one, other):
            return None
        gap_s = gap_between_s(span, other_span)
        known = {embedding.modality for embedding in one.embeddings} & {embedding.modality for embedding in other.embeddings}
        if gap_s > self._rules.body_horizon_s and not known & set(LONG_TERM):
            return None
        evidence = compare(self._associator, one.embeddings, other.embeddings, gap_s)
        if not evidence.log_odds:
            return None
        return step_of(evidence, one.tracklet_id, self._rules.caution - against)

    def cut_from(self, tracklet_id: str) -> list[str]:
        """Whom an operator called somebody else than this tracklet."""
        return [_other(link, tracklet_id) for link in self._links(tracklet_id) if link.verdict == CUT]

    def confirmed_with(self, tracklet_id: str) -> list[str]:
        """Whom an operator called the same person as this tracklet."""
        return [_other(link, tracklet_id) for link in self._links(tracklet_id) if link.verdict == SAME]

    def _near(self, embedding: Embedding, window: Filter) -> list[str]:
        try:
            return [hit.tracklet_id for hit in self._gallery.search(embedding, window, self._rules.neighbours)]
        except SpaceMismatchError:  # a tracklet of an older model: its vectors lead nowhere
            return []

    def _window(self, embedding: Embedding, tracklet: Tracklet, window: Filter) -> Filter:
        """Where this vector may lead: the body only as far as its horizon."""
        if embedding.modality in LONG_TERM:
            return window
        horizon_ns = int(self._rules.body_horizon_s * 1e9)
        from_ns = max(window.from_ns, tracklet.started_at_ns - horizon_ns)
        return replace(window, from_ns=from_ns, to_ns=max(from_ns, min(window.to_ns, tracklet.ended_at_ns + horizon_ns)))


def linked(step: Step | None, link: Link, from_tracklet: str, against: float) -> Step | None:
    """The surer of a step and a link that was made before, which had more to go by; an operator's confirmation among them.

    against: log-odds, at most 0, by which the probe and the path speak against it: the link did not know them. The probability of a link
    that an operator confirmed is the model's, which the operator overruled.
    """
    believed = LARGEST_PROBABILITY if link.verdict == SAME else link.probability
    probability = score(log_odds_of(believed) + against)
    if step is not None and step.probability >= probability:
        return step
    modality = max(link.similarities, key=lambda each: link.log_odds.get(each, 0.0), default="" if step is None else step.modality)
    if not modality:
        modality = CONFIRMED
    return Step(from_tracklet, modality, link.similarities.get(modality, 0.0), link.gap_s, probability)


def step_of(evidence: Evidence, from_tracklet: str, caution: float) -> Step:
    """The step that some evidence allows; its modality is the one that speaks most for it."""
    modality = max(evidence.log_odds, key=lambda each: evidence.log_odds[each])
    probability = score(evidence.total - caution) if math.isfinite(caution) else 0.0
    return Step(from_tracklet, modality, evidence.similarities[modality], evidence.gap_s, probability)


def _other(link: Link, tracklet_id: str) -> str:
    return link.second if link.first == tracklet_id else link.first


def is_in_window(tracklet: Tracklet, window: Filter) -> bool:
    """Whether a search of this window may show it: when, which camera, which zone."""
    if tracklet.started_at_ns > window.to_ns or tracklet.ended_at_ns < window.from_ns:
        return False
    is_camera = not window.cameras or tracklet.camera_id in window.cameras
    return is_camera and (not window.zones or not set(window.zones).isdisjoint(tracklet.zones))


def is_in_two_places(one: Tracklet, other: Tracklet) -> bool:
    """Whether both were seen, or both heard, at the same time in the same camera: two people."""
    if one.camera_id != other.camera_id or one.is_speaker_turn != other.is_speaker_turn:
        return False  # who is heard may be the one who is seen
    return are_two_at_once((one.started_at_ns, one.ended_at_ns), (other.started_at_ns, other.ended_at_ns))


def one_place_at_a_time(found: Sequence[Found]) -> list[Found]:
    """``found`` (best first) without those that were reached by steps and stand in a camera where a better one stands at that moment."""
    kept: list[Found] = []
    for each in found:
        if len(each.path) < 2 or not any(is_in_two_places(each.tracklet, better.tracklet) for better in kept):
            kept.append(each)
    return kept


def path_in_words(path: Sequence[Step]) -> str:
    """ "face 0.71 → voice 0.64 → body within 40 min 0.83", the cosine of each step."""
    return " → ".join(_step_in_words(step) for step in path)


def _step_in_words(step: Step) -> str:
    if step.modality == CONFIRMED:
        return "confirmed by an operator"
    if step.modality in LONG_TERM or not step.from_tracklet:
        return f"{step.modality} {step.similarity:.2f}"
    return f"{step.modality} {within(step.gap_s)} {step.similarity:.2f}"


def within(gap_s: float) -> str:
    """ "within 40 min": a gap as people say it, rounded up."""
    if gap_s < 60:
        return "within a minute"
    return f"within {math.ceil(gap_s / 60)} min" if gap_s < 90 * 60 else f"within {math.ceil(gap_s / 3600)} h"
