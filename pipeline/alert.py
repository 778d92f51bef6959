"""A tracklet revision against all standing watches at once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.calibration import Calibration, fuse_by_owner, score
from pipeline.ports import TextEncoder
from pipeline.probes import Part, reasons, resolve
from pipeline.types import Alert, Tracklet, Watch

REMEMBERED = 1_000_000  # hits remembered so that none is raised twice; older ones have left the alerts topic long ago


def alert_id_of(watch_id: str, tracklet_id: str) -> str:
    """The id of the one alert that a watch may raise for a tracklet: 16 hex digits."""
    return hashlib.blake2b(f"{watch_id}\0{tracklet_id}".encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """All parts of all watches: for each (modality, space, is_picture) its vectors (P', D) and the columns (P',) they stand for.

    weights, is_negative, owner: (P,); owner is the row of the watch in ``watches``; least_log_odds: (W,), just below each threshold.
    """

    watches: tuple[Watch, ...]
    parts: tuple[Part, ...]
    by_space: dict[tuple[str, str, bool], tuple[NDArray[np.float32], NDArray[np.intp]]]
    weights: NDArray[np.float64]
    is_negative: NDArray[np.bool_]
    owner: NDArray[np.intp]
    least_log_odds: NDArray[np.float64]


class AlertStage:
    """The standing watches, and what they have raised.

    A watch is in force while the wall clock AND the tracklet's own time lie before its expiry: footage of earlier days raises
    alerts too (an archive may be searched by a watch made today), an expired watch raises none whatever it is shown.
    text: encoder of descriptions; lookup: stored tracklets by id, for watches made from one.
    """

    def __init__(
        self,
        text: TextEncoder | None,
        calibration: Calibration | None = None,
        lookup: Callable[[Sequence[str]], list[Tracklet]] = lambda _: [],
    ) -> None:
        self._text = text
        self._calibration = calibration or Calibration.default()
        self._lookup = lookup
        self._watches: dict[str, tuple[Watch, tuple[Part, ...]]] = {}
        self._raised: dict[str, None] = {}
        self._table: _Table | None = None

    def put(self, watch: Watch) -> tuple[str, ...]:
        """Add or replace a watch, or take it away when it is_removed; gives notes on probes that cannot be used.

        Raises BadInputError when no probe can be used; an older watch of that id is out of force then.
        """
        self.remove(watch.watch_id)
        if watch.is_removed:
            return ()
        resolved = resolve(watch.probes, self._text, self._lookup)
        self._watches[watch.watch_id] = (watch, resolved.parts)
        return resolved.notes

    def remove(self, watch_id: str) -> None:
        """Take a watch out of force; one that is not there is no error."""
        self._table = None
        self._watches.pop(watch_id, None)

    def remember(self, alert_id: str) -> None:
        """Never raise this alert again: called with every alert of the topic after a restart."""
        self._raised[alert_id] = None
        if len(self._raised) > REMEMBERED:
            self._raised.pop(next(iter(self._raised)))

    @property
    def watches(self) -> tuple[Watch, ...]:
        return tuple(watch for watch, _ in self._watches.values())

    def compare(self, tracklet: Tracklet, now_ns: int) -> list[Alert]:
        """The alerts that this revision raises; now_ns: wall clock, UTC. The same watch and tracklet never raise a second one."""
        if not self._watches:
            return []
        table = self._table or self._build()
        similarities = self._similarities(table, tracklet)  # (P,)
        has_evidence = np.bincount(table.owner, ~np.isnan(similarities) & ~table.is_negative, len(table.watches)) > 0  # (W,)
        if not has_evidence.any():
            return []
        log_odds = self._log_odds(table, similarities)  # (W,)
        alerts = []
        for row in np.flatnonzero(has_evidence & (log_odds >= table.least_log_odds)):  # few: the loop is over hits, not watches
            watch, reached = table.watches[row], score(float(log_odds[row]))
            if reached < watch.threshold or not _in_force(watch, tracklet, now_ns):
                continue
            alert_id = alert_id_of(watch.watch_id, tracklet.tracklet_id)
            if alert_id in self._raised:
                continue
            self.remember(alert_id)
            alerts.append(self._alert(table, int(row), alert_id, reached, similarities, tracklet, now_ns))
        return alerts

    def unseen_by(self, tracklet: Tracklet) -> dict[str, str]:
        """Watches that ask in another model's space than the tracklet's vectors of that modality: watch_id -> why.

        They can never raise an alert on what this camera's models give; their owner must be told.
        """
        spaces = {embedding.modality: embedding.space for embedding in tracklet.embeddings}
        blind: dict[str, str] = {}
        for watch, parts in self._watches.values():
            asked = [(part.embedding.modality, part.embedding.space) for part in parts if not part.is_negative]
            differing = [(modality, space) for modality, space in asked if spaces.get(modality, space) != space]
            if asked and len(differing) == len(asked):
                modality, space = differing[0]
                blind[watch.watch_id] = f"asks in {space}, tracklets carry {spaces[modality]}: add the watch again"
        return blind

    def _build(self) -> _Table:
        parts = [(row, part) for row, (_, own) in enumerate(self._watches.values()) for part in own]
        columns: dict[tuple[str, str, bool], list[int]] = {}
        for column, (_, part) in enumerate(parts):
            columns.setdefault((part.embedding.modality, part.embedding.space, part.is_picture), []).append(column)
        by_space = {
            key: (np.stack([parts[column][1].embedding.vector for column in own]), np.asarray(own, np.intp)) for key, own in columns.items()
        }
        self._table = _Table(
            self.watches,
            tuple(part for _, part in parts),
            by_space,
            np.asarray([part.weight for _, part in parts], np.float64),
            np.asarray([part.is_negative for _, part in parts], bool),
            np.asarray([row for row, _ in parts], np.intp),
            np.asarray([_log_odds_of(watch.threshold) - 1e-6 for watch in self.watches]),
        )
        return self._table

    def _similarities(self, table: _Table, tracklet: Tracklet) -> NDArray[np.float64]:
        """The cosine of every part with the tracklet, (P,), nan where it has no such vector."""
        found = np.full(len(table.parts), np.nan)
        for (modality, space, _), (vectors, columns) in table.by_space.items():
            own = next((e.vector for e in tracklet.embeddings if (e.modality, e.space) == (modality, space)), None)
            if own is not None and vectors.shape[1] == len(own):
                # einsum, not @: BLAS would wake its threads for half a million products, and on a busy machine they wait for each other.
                found[columns] = np.einsum("pd,d->p", vectors, own)
        return found

    def _log_odds(self, table: _Table, similarities: NDArray[np.float64]) -> NDArray[np.float64]:
        """The fused log-odds of every watch, (W,)."""
        odds = np.full(len(table.parts), np.nan)
        for (modality, space, is_picture), (_, columns) in table.by_space.items():
            odds[columns] = self._calibration.log_odds(modality, space, similarities[columns], is_picture)
        return fuse_by_owner(odds, table.weights, table.is_negative, table.owner, len(table.watches))

    def _alert(
        self, table: _Table, row: int, alert_id: str, reached: float, similarities: NDArray[np.float64], tracklet: Tracklet, now_ns: int
    ) -> Alert:
        own = np.flatnonzero(table.owner == row)
        parts, cosines = [table.parts[column] for column in own], similarities[own].tolist()
        best: dict[str, float] = {}
        for part, cosine in zip(parts, cosines, strict=True):
            if cosine == cosine and not part.is_negative:
                best[part.embedding.modality] = max(best.get(part.embedding.modality, -1.0), cosine)
        watch = table.watches[row]
        return Alert(
            alert_id=alert_id,
            watch_id=watch.watch_id,
            tracklet_id=tracklet.tracklet_id,
            revision=tracklet.revision,
            camera_id=tracklet.camera_id,
            seen_at_ns=tracklet.ended_at_ns,
            raised_at_ns=now_ns,
            score=reached,
            threshold=watch.threshold,
            similarities=best,
            why=reasons(parts, cosines, tracklet.attributes, self._text),
            crops=tracklet.crops,
        )


def _log_odds_of(threshold: float) -> float:
    if threshold <= 0.0 or threshold >= 1.0:
        return -math.inf if threshold <= 0.0 else math.inf
    return math.log(threshold / (1.0 - threshold))


def _in_force(watch: Watch, tracklet: Tracklet, now_ns: int) -> bool:
    """Whether the watch looks at this camera, zone and time."""
    if watch.cameras and tracklet.camera_id not in watch.cameras:
        return False
    if watch.zones and not set(watch.zones) & set(tracklet.zones):
        return False
    return now_ns < watch.expires_at_ns and tracklet.started_at_ns < watch.expires_at_ns
