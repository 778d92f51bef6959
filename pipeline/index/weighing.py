"""The evidence of one tracklet beside many, and what is left of it for one of several rivals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evidence import Associator, gap_between_s, together
from pipeline.index.units import Held
from pipeline.ports import Neighbours
from pipeline.types import BODY, TEXT, Link
from pipeline.types.identity import LARGEST_PROBABILITY, MODEL

Float = NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Pairs:
    """One tracklet beside N others: cosines and log-odds per modality, nan and 0 where not compared; total (N,), nan: nothing compared."""

    at: dict[str, int]
    cosines: dict[str, Float]
    odds: dict[str, Float]
    total: Float
    gap_s: Float

    def of(self, tracklet_id: str) -> float:
        return float(self.total[self.at[tracklet_id]])

    def and_those_of(self, more: Pairs) -> Pairs:
        """Both, one after the other."""
        count, added = len(self.at), len(more.at)
        modalities = dict.fromkeys([*self.cosines, *more.cosines])
        nothing, none = np.full(max(count, added), np.nan), np.zeros(max(count, added))
        return Pairs(
            {**self.at, **{other: count + number for other, number in more.at.items()}},
            {m: np.concatenate([self.cosines.get(m, nothing[:count]), more.cosines.get(m, nothing[:added])]) for m in modalities},
            {m: np.concatenate([self.odds.get(m, none[:count]), more.odds.get(m, none[:added])]) for m in modalities},
            np.concatenate([self.total, more.total]),
            np.concatenate([self.gap_s, more.gap_s]),
        )

    def link(self, first: str, second: str, other: str, probability: float, at_ns: int) -> Link:
        """The link of a pair; ``other``: the one of it that is held here."""
        at = self.at[other]
        said = {modality: float(cosine[at]) for modality, cosine in self.cosines.items() if not math.isnan(cosine[at])}
        odds = {modality: float(self.odds[modality][at]) for modality in said}
        return Link(first, second, min(probability, LARGEST_PROBABILITY), said, odds, float(self.gap_s[at]), MODEL, at_ns)


def weighed(neighbours: Neighbours, associator: Associator, body_horizon_s: float, held: Held, others: Sequence[Held]) -> Pairs:
    """The evidence of a tracklet beside N others; TEXT is left to BODY, and clothes say nothing beyond the horizon."""
    ids = [other.tracklet_id for other in others]
    count = len(others)
    gap_s = np.zeros(count)
    for number, other in enumerate(others):
        gap_s[number] = gap_between_s((held.from_ns, held.to_ns), (other.from_ns, other.to_ns))
    cosines: dict[str, Float] = {}
    odds: dict[str, Float] = {}
    if count:
        for each in neighbours.compare(held.tracklet_id, ids):
            if each.modality == TEXT:
                continue
            cosine = np.where(gap_s > body_horizon_s, np.nan, each.cosine) if each.modality == BODY else each.cosine
            said = associator.log_odds(each.modality, each.space, cosine, each.quality, each.other_quality, gap_s)
            known = cosines.get(each.modality)
            if known is not None:  # two spaces of one modality, while vectors are made anew: one witness
                cosine, said = np.where(np.isnan(known), cosine, known), np.where(np.isnan(known), said, odds[each.modality])
            cosines[each.modality], odds[each.modality] = cosine, said
    is_heard = np.any([~np.isnan(cosine) for cosine in cosines.values()], axis=0) if cosines else np.zeros(count, bool)
    total = np.where(is_heard, together({modality: np.nan_to_num(said) for modality, said in odds.items()}), np.nan)
    return Pairs({other: number for number, other in enumerate(ids)}, cosines, odds, total, gap_s)


def share(support: float, rivals: Sequence[float]) -> float:
    """The probability that it is this one and none of the rivals, nor somebody new."""
    highest = max(0.0, support, *rivals) if rivals else max(0.0, support)
    whole = math.exp(-highest) + math.exp(support - highest) + sum(math.exp(each - highest) for each in rivals)
    return math.exp(support - highest) / whole
