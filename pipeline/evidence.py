"""How far two samples (tracklets, portraits, voices) speak for one person: the evidence behind every link and every search step.

Wang et al., Listen, Look, and Find the One (associative multimodality index), 2020: face and voice are long-term keys, the body is a
short-term connection, and each modality weighs as much as its own sample's quality allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.calibration import MAX_LOG_ODDS, Calibration, score
from pipeline.types import BODY, FACE, TEXT, VOICE, Embedding

Float = NDArray[np.float64]

LONG_TERM = (FACE, VOICE)
HOUR_S = 3600.0
HANDOVER_S = 0.5  # so long two tracks of one person may overlap where one hands over to the other
VIEW_M = 50.0  # people of cameras no farther apart may be in both pictures
OUTVOTED = 1.5  # log-odds against one person by face and voice, at which clothes have no say any more


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for one person behind two samples.

    similarities: cosine per modality that both have in one space; log_odds: what each says, as if right and wrong were equally likely;
    total: the log-odds of all together; gap_s: time between the samples, 0 where they overlap.
    """

    similarities: Mapping[str, float] = field(default_factory=dict)
    log_odds: Mapping[str, float] = field(default_factory=dict)
    total: float = 0.0
    gap_s: float = 0.0

    @property
    def probability(self) -> float:
        """0..1, if right and wrong were equally likely beforehand."""
        return score(self.total)


class Associator(Protocol):
    """Cosines and qualities to log-odds; the learned network (models/association) and the plain curves answer alike."""

    def log_odds(
        self, modality: str, space: str, cosine: ArrayLike, quality: ArrayLike, other_quality: ArrayLike, gap_s: ArrayLike = 0.0
    ) -> Float:
        """Log-odds of "the same person" from one modality, all arguments broadcast; nan cosine (not compared) gives 0."""
        ...


@dataclass(frozen=True, slots=True)
class PlainAssociator:
    """The calibrated curve of each space, drawn to 0 by low quality, and for the body by time.

    body_half_life_s: after so long clothes tell half as much.
    """

    calibration: Calibration
    body_half_life_s: float = 4 * HOUR_S

    def log_odds(
        self, modality: str, space: str, cosine: ArrayLike, quality: ArrayLike, other_quality: ArrayLike, gap_s: ArrayLike = 0.0
    ) -> Float:
        """See Associator."""
        odds = self.calibration.log_odds(modality, space, cosine, is_picture=True)
        trust = np.minimum(np.asarray(quality, np.float64), np.asarray(other_quality, np.float64))
        if modality not in LONG_TERM:
            trust = trust * np.exp2(-np.asarray(gap_s, np.float64) / self.body_half_life_s)
        return np.where(np.isnan(odds), 0.0, odds * trust)


def compare(associator: Associator, ours: Sequence[Embedding], theirs: Sequence[Embedding], gap_s: float = 0.0) -> Evidence:
    """The evidence of two samples' vectors; a modality in different spaces is not compared. TEXT is left to BODY where both have it."""
    similarities, odds = {}, {}
    for embedding in ours:
        other = next((e for e in theirs if e.modality == embedding.modality and e.space == embedding.space), None)
        if other is None or embedding.vector.shape != other.vector.shape:
            continue
        cosine = float(embedding.vector @ other.vector)
        similarities[embedding.modality] = cosine
        odds[embedding.modality] = float(
            associator.log_odds(embedding.modality, embedding.space, cosine, embedding.quality, other.quality, gap_s)
        )
    if BODY in odds:  # the same pixels said twice are one witness
        similarities.pop(TEXT, None)
        odds.pop(TEXT, None)
    return Evidence(similarities, odds, float(together(odds)), gap_s)


def together(log_odds: Mapping[str, ArrayLike]) -> Float:
    """What the modalities say together, of any one shape: their sum, but clothes never outvote a face or a voice.

    The network takes them as independent, and of two strangers in one uniform they are not: what the body says for one person fades as far
    as face and voice together speak against it, and counts nothing from ``OUTVOTED`` on.
    """
    lasting = sum((np.asarray(log_odds[each], np.float64) for each in LONG_TERM if each in log_odds), np.zeros(()))
    passing = sum((np.asarray(odds, np.float64) for modality, odds in log_odds.items() if modality not in LONG_TERM), np.zeros(()))
    heard = np.clip(1.0 + np.minimum(lasting, 0.0) / OUTVOTED, 0.0, 1.0)
    total: Float = np.clip(lasting + np.where(passing > 0, passing * heard, passing), -2 * MAX_LOG_ODDS, 2 * MAX_LOG_ODDS)
    return total


def gap_between_s(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Seconds between two stretches of time (from_ns, to_ns); 0 where they overlap."""
    return max(first[0] - second[1], second[0] - first[1], 0) / 1e9


def are_two_at_once(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two stretches (from_ns, to_ns) of one camera overlap for longer than a track hands over to the next: two people."""
    overlap_ns = min(first[1], second[1]) - max(first[0], second[0])
    if overlap_ns < 0:
        return False
    is_inside = overlap_ns >= min(first[1] - first[0], second[1] - second[0])
    return is_inside or overlap_ns > HANDOVER_S * 1e9


def is_out_of_reach(here: tuple[float, float] | None, there: tuple[float, float] | None, gap_s: float, top_speed_m_s: float) -> bool:
    """Whether nobody gets from one camera to the other in ``gap_s``: positions in metres, None where nobody said; a speed of 0: any."""
    if not top_speed_m_s or here is None or there is None:
        return False
    return math.dist(here, there) - VIEW_M > top_speed_m_s * gap_s
