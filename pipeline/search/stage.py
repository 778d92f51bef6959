"""A query to a ranking."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from pipeline.calibration import Calibration, score
from pipeline.errors import DeadlineExceededError, SpaceMismatchError
from pipeline.ports import Gallery, TextEncoder
from pipeline.probes import Part, reasons, resolve
from pipeline.search.fusion import Fused, in_order, similarities_to
from pipeline.types import FACE, Coverage, Filter, Match, Query, Ranking, Tracklet

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
    clock: seconds, rising, for the deadline.
    """

    def __init__(
        self,
        gallery: Gallery,
        text: TextEncoder | None,
        calibration: Calibration | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gallery = gallery
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
        resolved = resolve(query.probes, self._text, self._gallery.tracklets)
        run.notes.extend(resolved.notes)
        parts, hits = self._ask(run, resolved.parts, len(resolved.own_tracklets))
        candidates = self._candidates(run, parts, hits, resolved.own_tracklets)
        fused = in_order(parts, similarities_to(parts, hits, candidates), self._calibration) if candidates else None
        matches = self._matches(run, parts, fused, candidates) if fused else ()
        coverage = self._coverage(run, parts)
        return Ranking(query.query_id, matches, coverage, self._clock() - run.started_s, run.is_partial)

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

    def _matches(self, run: _Run, parts: Sequence[Part], fused: Fused, candidates: Mapping[str, Tracklet]) -> tuple[Match, ...]:
        matches = []
        for row, tracklet_id in enumerate(fused.tracklet_ids[: run.query.top_k]):
            tracklet = candidates[tracklet_id]
            similarities = fused.similarities[row]  # (P,)
            text = None if self._is_late(run, "the reasons of some matches") else self._text
            matches.append(
                Match(
                    rank=row + 1,
                    tracklet_id=tracklet_id,
                    camera_id=tracklet.camera_id,
                    started_at_ns=tracklet.started_at_ns,
                    ended_at_ns=tracklet.ended_at_ns,
                    score=score(float(fused.log_odds[row])),
                    similarities=best_by_modality(parts, similarities),
                    why=reasons(parts, similarities.tolist(), tracklet.attributes, text) + _seen(tracklet),
                    crops=tracklet.crops,
                )
            )
        return tuple(matches)

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
    face = tracklet.embedding(FACE)
    return (f"seen for {tracklet.duration_s:.1f} s" + (", with face" if face is not None else ""),)
