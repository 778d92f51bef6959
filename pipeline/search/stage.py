"""A query to a ranking."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np

from pipeline.calibration import Calibration, log_odds_of, score
from pipeline.errors import DeadlineExceededError, SpaceMismatchError
from pipeline.evidence import LONG_TERM
from pipeline.ports import Gallery, TextEncoder
from pipeline.probes import Part, reasons, resolve
from pipeline.search.fusion import Fused, in_order, similarities_to, stored_similarity
from pipeline.search.progressive import CONFIRMED, Found, Walker, is_in_window, path_in_words
from pipeline.search.trajectory import trajectory
from pipeline.types import FACE, Coverage, Embedding, Filter, Identity, Match, Query, Ranking, Sighting, Step, Tracklet
from pipeline.types.identity import LARGEST_PROBABILITY

CANDIDATES_PER_MATCH = 5  # so many times top_k are taken from every part: one that is 40th by body may be 1st by face and body
MIN_CANDIDATES = 100
SCAN_STEP = 500  # tracklets counted between two looks at the clock
COUNT_S = 0.3  # the count is for the record: no answer waits longer for it


@runtime_checkable
class Counts(Protocol):
    """A gallery that counts without reading; one that cannot is scanned."""

    def count(self, window: Filter) -> int:
        """How many tracklets the window holds."""
        ...


class Identities(Protocol):
    """What was linked before the question was asked."""

    def identity_of(self, tracklet_ids: Sequence[str]) -> Mapping[str, str]:
        """Tracklet id -> identity id, of those that belong to one."""
        ...

    def identity(self, identity_id: str) -> Identity | None:
        """Its tracklets, None where there is none of that id."""
        ...


@dataclass(slots=True)
class _Run:
    """One search on its way: what was asked, what the index answered so far, and whether time ran out."""

    query: Query
    started_s: float
    notes: list[str] = field(default_factory=list)
    is_partial: bool = False


class SearchStage:
    """Answers queries from the identity index.

    gallery: the index; text: encoder of descriptions, None when there is none; calibration: cosine to odds per space;
    walker: leads from matches of a face, a voice or a tracklet on to others, None: the probe alone; identities: what was linked before;
    clock: seconds, rising, for the deadline.
    """

    def __init__(
        self,
        gallery: Gallery,
        text: TextEncoder | None,
        calibration: Calibration | None = None,
        clock: Callable[[], float] = time.monotonic,
        walker: Walker | None = None,
        identities: Identities | None = None,
    ) -> None:
        self._gallery = gallery
        self._walker = walker
        self._identities = identities
        self._text = text
        self._calibration = calibration or Calibration.default()
        self._clock = clock

    def search(self, query: Query, started_s: float | None = None) -> Ranking:
        """The matches of ``query``, best first, with what they rest on.

        started_s: on the clock, when the deadline began to run (None: now). A part that the time did not allow leaves
        the ranking partial. Raises BadInputError when no probe can be used, SpaceMismatchError when the index holds
        only vectors of other models.
        """
        run = _Run(query, self._clock() if started_s is None else started_s)
        resolved = resolve(query.probes, self._text, self._stored)
        run.notes.extend(resolved.notes)
        parted = self._parted(run)
        parts, hits = self._ask(run, resolved.parts, len(resolved.own_tracklets | parted))
        candidates = self._candidates(run, parts, hits, resolved.own_tracklets | parted)
        fused = in_order(parts, similarities_to(parts, hits, candidates), self._calibration) if candidates else None
        paths: dict[str, Found] = {}
        if fused and self._walker and query.steps > 0 and (resolved.own_tracklets or _asks_for_somebody(parts)):
            paths = self._walk(run, self._walker, parts, fused, candidates, resolved.own_tracklets, parted)
            candidates |= {tracklet_id: found.tracklet for tracklet_id, found in paths.items()}
            fused = with_paths(in_order(parts, similarities_to(parts, hits, candidates), self._calibration), paths)
        matches = self._matches(run, parts, fused, candidates, paths) if fused else ()
        sightings = self._sightings(matches, candidates)
        coverage = self._coverage(run, parts)
        return Ranking(query.query_id, matches, coverage, self._clock() - run.started_s, run.is_partial, sightings)

    def _parted(self, run: _Run) -> frozenset[str]:
        """Whom an operator called somebody else than a tracklet that is asked for: no answer to it, however alike they look."""
        asked = _asked_for(run.query)
        parted = frozenset(each for own in asked for each in self._walker.cut_from(own)) if self._walker is not None else frozenset()
        if parted:
            run.notes.append(f"left out, an operator said that it is somebody else: tracklet {_some(sorted(parted))}")
        return parted

    def _stored(self, tracklet_ids: Sequence[str]) -> list[Tracklet]:
        """Stored tracklets to ask with: of each modality the vector in the space that the index holds most of."""
        held = self._gallery.statistics().by_modality
        return [in_one_space_each(tracklet, held) for tracklet in self._gallery.tracklets(tracklet_ids)]

    def _ask(self, run: _Run, parts: Sequence[Part], left_out: int) -> tuple[list[Part], list[Mapping[str, float]]]:
        """The parts that could be asked and what the index answered to each, id -> cosine; nothing for negative parts."""
        wanted = max(CANDIDATES_PER_MATCH * run.query.top_k, MIN_CANDIDATES) + left_out
        asked: list[Part] = []
        answers: list[Mapping[str, float]] = []
        refusals: list[SpaceMismatchError] = []
        for part in sorted(parts, key=lambda part: -part.weight):  # the weightiest first, in case time runs out
            if asked and self._is_late(run, f"{part.embedding.modality} of the probe"):
                continue
            try:
                hits = [] if part.is_negative else self._gallery.search(part.embedding, run.query.window, wanted)
            except SpaceMismatchError as error:
                refusals.append(error)
                run.notes.append(f"{part.embedding.modality} not used: {error}")
                continue
            except DeadlineExceededError as error:
                run.is_partial = True
                run.notes.append(f"{part.embedding.modality} not searched: {error}")
                continue
            asked.append(part)
            answers.append({hit.tracklet_id: hit.similarity for hit in hits})
        if refusals and not any(not part.is_negative for part in asked):
            raise refusals[0]
        return asked, answers

    def _candidates(
        self, run: _Run, parts: Sequence[Part], hits: Sequence[Mapping[str, float]], own_tracklets: frozenset[str]
    ) -> dict[str, Tracklet]:
        """The stored tracklets that any part brought up; the first top_k alone where there is one part and no order to decide."""
        ids = dict.fromkeys(tracklet_id for answered in hits for tracklet_id in answered if tracklet_id not in own_tracklets)
        chosen = list(ids)
        if len(parts) == 1 or self._is_late(run, "the comparison of all parts"):
            chosen = chosen[: run.query.top_k]
        return {tracklet.tracklet_id: tracklet for tracklet in self._gallery.tracklets(chosen)}

    def _walk(
        self,
        run: _Run,
        walker: Walker,
        parts: Sequence[Part],
        fused: Fused,
        candidates: Mapping[str, Tracklet],
        own_tracklets: frozenset[str],
        parted: frozenset[str],
    ) -> dict[str, Found]:
        """Who is found by steps from those that the probe found itself, by id: paths of more than one step, and an operator's word."""
        starts = []
        for row, tracklet_id in enumerate(fused.tracklet_ids):
            similarities = best_by_modality(parts, fused.similarities[row])
            if similarities:
                modality = next((each for each in LONG_TERM if each in similarities), next(iter(similarities)))
                probability = score(float(fused.log_odds[row]))
                step = Step("", modality, similarities[modality], 0.0, probability)
                starts.append(Found(candidates[tracklet_id], probability, (step,)))
        confirmed = {each for own in _asked_for(run.query) for each in walker.confirmed_with(own)}
        for tracklet in self._gallery.tracklets(sorted(confirmed)):
            if is_in_window(tracklet, run.query.window):
                step = Step("", CONFIRMED, 0.0, 0.0, LARGEST_PROBABILITY)
                starts.append(Found(tracklet, step.probability, (step,)))
        lasting = [part for part in parts if part.embedding.modality in LONG_TERM and not part.is_negative]

        def objection(tracklet: Tracklet) -> float:
            if tracklet.tracklet_id in parted:
                return -math.inf
            said = [self._curve(part, stored_similarity(part, tracklet)) for part in lasting]
            return min([0.0, *(odds for odds in said if odds == odds)])

        found, notes = walker.walk(
            starts, run.query.window, run.query.steps, objection, lambda: self._is_late(run, "the walk from match to match was over")
        )
        run.notes.extend(notes)
        led = {each.tracklet.tracklet_id: each for each in found if len(each.path) > 1 or each.tracklet.tracklet_id in confirmed}
        return {tracklet_id: each for tracklet_id, each in led.items() if tracklet_id not in own_tracklets}

    def _curve(self, part: Part, cosine: float) -> float:
        return float(self._calibration.log_odds(part.embedding.modality, part.embedding.space, cosine, part.is_picture))

    def _matches(
        self, run: _Run, parts: Sequence[Part], fused: Fused, candidates: Mapping[str, Tracklet], paths: Mapping[str, Found]
    ) -> tuple[Match, ...]:
        chosen = fused.tracklet_ids[: run.query.top_k]
        identity_of = self._identities.identity_of(chosen) if self._identities is not None else {}
        matches = []
        for row, tracklet_id in enumerate(chosen):
            tracklet = candidates[tracklet_id]
            similarities = fused.similarities[row]  # (P,)
            text = None if self._is_late(run, "the reasons of some matches") else self._text
            path = paths[tracklet_id].path if tracklet_id in paths else ()
            told = (path_in_words(path),) if path else ()
            matches.append(
                Match(
                    rank=row + 1,
                    tracklet_id=tracklet_id,
                    camera_id=tracklet.camera_id,
                    started_at_ns=tracklet.started_at_ns,
                    ended_at_ns=tracklet.ended_at_ns,
                    score=score(float(fused.log_odds[row])),
                    similarities=best_by_modality(parts, similarities),
                    why=told + reasons(parts, similarities.tolist(), tracklet.attributes, text) + _seen(tracklet),
                    crops=tracklet.crops,
                    path=path,
                    identity_id=identity_of.get(tracklet_id, ""),
                )
            )
        return tuple(matches)

    def _sightings(self, matches: Sequence[Match], candidates: Mapping[str, Tracklet]) -> tuple[Sighting, ...]:
        """The matches by person: those of one identity, and those that a path joins."""
        groups = by_person(matches)
        linked = sorted({match.identity_id for match in matches if match.identity_id})
        known_identities = [self._identities.identity(each) for each in linked] if self._identities is not None else []
        members = {each.identity_id: each.tracklet_ids for each in known_identities if each is not None}
        missing = [each for ids in members.values() for each in ids if each not in candidates]
        known = dict(candidates) | {each.tracklet_id: each for each in self._gallery.tracklets(missing)}
        made = []
        for group in groups:
            identity_id = next((match.identity_id for match in group if match.identity_id), "")
            ids = dict.fromkeys([match.tracklet_id for match in group])
            for each in {match.identity_id for match in group if match.identity_id}:
                ids |= dict.fromkeys(members.get(each, ()))
            made.append(Sighting(identity_id, group[0].score, trajectory(known[each] for each in ids if each in known)))
        return tuple(made)

    def _coverage(self, run: _Run, parts: Sequence[Part]) -> Coverage:
        """What was searched, and what was asked for but is not there."""
        window = run.query.window
        statistics = self._gallery.statistics()
        unknown = sorted(set(window.cameras) - set(statistics.cameras))
        if unknown:
            run.notes.append(f"never seen by the index: camera {_some(unknown)}")
        accounts = self._gallery.coverage(window)
        silent = sorted(set(window.cameras) - set(unknown) - {account.camera_id for account in accounts})
        if silent:
            run.notes.append(f"nothing recorded in this window: camera {_some(silent)}")
        spaces = tuple(dict.fromkeys(part.embedding.space for part in parts))
        run.notes.extend(left_behind(parts, statistics.by_modality))
        tracklets = self._count(run, statistics.tracklets)
        return Coverage(accounts, spaces, tracklets, tuple(dict.fromkeys(run.notes)))

    def _count(self, run: _Run, stored: int) -> int:
        """How many tracklets the window holds; how many could be counted in a moment."""
        window = run.query.window
        if window == Filter():
            return stored
        if isinstance(self._gallery, Counts):
            return self._gallery.count(window)
        number, until_s = 0, self._clock() + COUNT_S
        for number, _ in enumerate(self._gallery.scan(window), start=1):
            if number % SCAN_STEP == 0 and self._clock() > until_s:
                run.notes.append(f"this window holds more than the {number} tracklets that were counted; all of them were searched")
                break
        return number

    def _is_late(self, run: _Run, what: str) -> bool:
        """Whether the deadline has passed; says once per ``what`` that it was left out."""
        if self._clock() - run.started_s < run.query.deadline_s:
            return False
        run.is_partial = True
        run.notes.append(f"the deadline of {run.query.deadline_s:g} s passed before {what}")
        return True


def _asked_for(query: Query) -> list[str]:
    """The tracklets that a query asks for."""
    return [probe.tracklet_id for probe in query.probes if probe.kind == "tracklet" and not probe.is_negative]


def _asks_for_somebody(parts: Sequence[Part]) -> bool:
    """Whether a face or a voice was given: words and clothes describe many people, and would lead from one to the next."""
    return any(part.embedding.modality in LONG_TERM and not part.is_negative for part in parts)


def in_one_space_each(tracklet: Tracklet, held: Mapping[str, Mapping[str, int]]) -> Tracklet:
    """The tracklet with one vector of each modality, in the space of which ``held`` has most; held: modality -> space -> vectors."""
    chosen: dict[str, Embedding] = {}
    for embedding in tracklet.embeddings:
        known = chosen.get(embedding.modality)
        counts = held.get(embedding.modality, {})
        if known is None or counts.get(embedding.space, 0) >= counts.get(known.space, 0):
            chosen[embedding.modality] = embedding
    return replace(tracklet, embeddings=tuple(chosen.values()))


def left_behind(parts: Sequence[Part], held: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Notes on vectors of other models that were not compared, because no tracklet has them in the space asked in."""
    notes = []
    for modality, space in dict.fromkeys((part.embedding.modality, part.embedding.space) for part in parts):
        counts = held.get(modality, {})
        for other, count in counts.items():
            if other != space and counts.get(space, 0) and count > counts[space]:
                notes.append(
                    f"at least {count - counts[space]} tracklets have a {modality} vector of {other} alone, which was not compared: "
                    "run sightline index reembed"
                )
    return notes


def with_paths(fused: Fused, paths: Mapping[str, Found]) -> Fused:
    """The candidates in the order of what the probe or a path says of them, whichever says more: a path has heard the probe's objection."""
    odds = fused.log_odds.copy()
    for row, tracklet_id in enumerate(fused.tracklet_ids):
        if tracklet_id in paths:
            led = log_odds_of(paths[tracklet_id].probability)
            is_compared = bool(np.isfinite(fused.similarities[row]).any())
            odds[row] = max(led, odds[row]) if is_compared else led
    order = np.argsort(-np.round(odds, 9), kind="stable")
    return Fused(tuple(fused.tracklet_ids[row] for row in order), odds[order], fused.similarities[order])


def by_person(matches: Sequence[Match]) -> list[list[Match]]:
    """Matches grouped by identity and by the paths that join them, best first."""
    group_of: dict[str, int] = {}
    groups: list[list[Match]] = []
    for match in matches:  # best first: what a path began with stands before it, unless it was cut off
        keys = [f"tracklet {match.tracklet_id}", *(f"tracklet {step.from_tracklet}" for step in match.path if step.from_tracklet)]
        keys += [f"identity {match.identity_id}"] if match.identity_id else []
        known = sorted({group_of[key] for key in keys if key in group_of})
        if not known:
            known = [len(groups)]
            groups.append([])
        first = known[0]
        groups[first].append(match)
        for other in known[1:]:
            groups[first] += groups[other]
            groups[other] = []
            group_of.update({key: first for key, group in group_of.items() if group == other})
        group_of.update(dict.fromkeys(keys, first))
    return [sorted(group, key=lambda match: match.rank) for group in groups if group]


def best_by_modality(
    parts: Sequence[Part], similarities: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]
) -> dict[str, float]:
    """The best cosine of each modality over the positive parts."""
    best: dict[str, float] = {}
    for part, similarity in zip(parts, similarities, strict=True):
        if not part.is_negative and similarity == similarity:
            modality = part.embedding.modality
            best[modality] = max(best.get(modality, -1.0), float(similarity))
    return best


def _some(names: Sequence[str], most: int = 20) -> str:
    """Names for a note; of very many the first."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _seen(tracklet: Tracklet) -> tuple[str, ...]:
    if tracklet.is_speaker_turn:
        return (f"heard for {tracklet.duration_s:.1f} s, not seen",)
    face = tracklet.embedding(FACE)
    return (f"seen for {tracklet.duration_s:.1f} s" + (", with face" if face is not None else ""),)
