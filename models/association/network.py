"""How far face, body and voice speak for one person, each by the quality of its own samples; numpy runs it.

Wang et al., Listen, Look, and Find the One: Robust Person Search with Multimodality Index, 2020. There a network weighs the vectors of a
sample and joins them to one (``represent``). Here the same weights also give the log-odds of a pair, and a missing modality costs nothing:

    trust   t = t(quality), rising from t(0) = 0 to t(1) = 1, one value per sample
    pair    l = slope * t1 * t2 * (cosine - midpoint), the midpoint drawn between those of two good, an uneven and two poor samples
    doubt   L = log((1 - e) exp(l) + e) - log((1 - d) + d exp(l)): e right pairs and d wrong pairs in one tell nothing
    time    body and text: log(s exp(L) + 1 - s), s = 2 ** (-gap / half-life), the probability that the clothes are still the same

so that log-odds rise with the cosine, are 0 where a sample cannot be trusted, and stay between log e and -log d.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.calibration import MAX_LOG_ODDS
from pipeline.errors import SettingsError
from pipeline.evidence import HOUR_S, LONG_TERM, Associator
from pipeline.types import Embedding

Float = NDArray[np.float64]

WEIGHTS = Path(__file__).parents[1] / "weights" / "association.npz"
KNOTS = np.array([0.0, 0.08, 0.18, 0.3, 0.45, 0.65, 1.0])  # of quality; trust is linear between them
STEEPEST = 50.0  # beyond this the doubts alone decide
BODY_HALF_LIFE_S = 4 * HOUR_S  # set, not learnt: no data here shows people before and after a change of clothes


class Midpoints(NamedTuple):
    """Cosines that speak neither for nor against: of two fully trusted samples, of one trusted and one not, of two that are not (small and
    blurred pictures look alike whoever is on them)."""

    good: float
    uneven: float
    poor: float


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """What was learnt of one space. trust: (K,) at KNOTS, 0 to 1, rising; doubt_right, doubt_wrong: e and d above; width: its vectors'."""

    modality: str
    slope: float
    midpoints: Midpoints
    doubt_right: float
    doubt_wrong: float
    trust: Float
    width: int

    def __post_init__(self) -> None:
        numbers = (self.slope, *self.midpoints, self.doubt_right, self.doubt_wrong)
        if not np.isfinite(numbers).all() or self.slope <= 0 or not 0 < self.doubt_right < 0.5 or not 0 < self.doubt_wrong < 0.5:
            raise ValueError(f"Curve must have finite numbers, a slope above 0 and doubts between 0 and 0.5, got {numbers}")
        trust = np.asarray(self.trust, np.float64)
        if trust.shape != KNOTS.shape or trust[0] != 0 or (np.diff(trust) < 0).any() or not np.isclose(trust[-1], 1):
            raise ValueError(f"Curve.trust must rise from 0 to 1 at {len(KNOTS)} knots, got {trust}")

    def moved(self, by: float) -> Curve:
        """The same curve, its midpoints higher by so much."""
        return replace(self, midpoints=Midpoints(*(each + by for each in self.midpoints)))

    def trust_in(self, quality: ArrayLike) -> Float:
        """0..1 of samples of these qualities, any shape."""
        return np.asarray(np.interp(np.asarray(quality, np.float64), KNOTS, self.trust), np.float64)

    def log_odds(self, cosine: ArrayLike, quality: ArrayLike, other_quality: ArrayLike) -> Float:
        """Log-odds of the same person without regard to time, all arguments broadcast."""
        one, two = self.trust_in(quality), self.trust_in(other_quality)
        both = one * two
        good, uneven, poor = self.midpoints
        midpoint = good * both + uneven * (one + two - 2 * both) + poor * (1 - one) * (1 - two)
        plain = self.slope * both * (np.asarray(cosine, np.float64) - midpoint)
        return doubted(plain, self.doubt_right, self.doubt_wrong)


def doubted(log_odds: Float, right: float, wrong: float) -> Float:
    """Log-odds when ``right`` of the right pairs and ``wrong`` of the wrong tell nothing: between log right and -log wrong; 0 stays 0."""
    raised = np.exp(np.clip(log_odds, -STEEPEST, STEEPEST))
    made: Float = np.log(((1 - right) * raised + right) / ((1 - wrong) + wrong * raised))
    return made


def faded(log_odds: Float, gap_s: ArrayLike, half_life_s: float) -> Float:
    """Log-odds of a look that may have changed in ``gap_s``: with probability 2 ** (-gap / half-life) it is still the same."""
    kept = np.exp2(-np.maximum(np.asarray(gap_s, np.float64), 0.0) / half_life_s)
    made: Float = np.log1p(kept * np.expm1(log_odds))
    return made


@dataclass(frozen=True, slots=True)
class AssociativeNetwork:
    """The learnt Associator. curves: by space; fallback: answers for spaces it was not fitted on; body_half_life_s: see ``faded``."""

    curves: Mapping[str, Curve]
    fallback: Associator
    body_half_life_s: float = BODY_HALF_LIFE_S
    rows: Mapping[str, int] = field(init=False)  # where each space starts in the one representation

    def __post_init__(self) -> None:
        starts = np.cumsum([0, *(curve.width for curve in self.curves.values())])
        object.__setattr__(self, "rows", dict(zip(self.curves, starts.tolist(), strict=False)))

    def log_odds(
        self, modality: str, space: str, cosine: ArrayLike, quality: ArrayLike, other_quality: ArrayLike, gap_s: ArrayLike = 0.0
    ) -> Float:
        """See Associator; between -MAX_LOG_ODDS and MAX_LOG_ODDS."""
        curve = self.curves.get(space)
        if curve is None or curve.modality != modality:
            return self.fallback.log_odds(modality, space, cosine, quality, other_quality, gap_s)
        given = np.asarray(cosine, np.float64)
        is_there = ~np.isnan(given)
        odds = curve.log_odds(np.where(is_there, given, 0.0), quality, other_quality)
        if modality not in LONG_TERM:
            odds = faded(odds, gap_s, self.body_half_life_s)
        return np.where(is_there, np.clip(odds, -MAX_LOG_ODDS, MAX_LOG_ODDS), 0.0)

    def weights(self, embeddings: Sequence[Embedding]) -> dict[str, float]:
        """How much each modality of one sample counts, by its own quality: shares that sum to 1, or all 0 where nothing can be trusted.

        Modalities of spaces that the network was not fitted on are left out.
        """
        known = [(e, self.curves[e.space]) for e in self._known(embeddings)]
        shares = {e.modality: curve.slope * float(curve.trust_in(e.quality)) ** 2 for e, curve in known}
        total = sum(shares.values())
        return {modality: share / total if total > 0 else 0.0 for modality, share in shares.items()}

    def represent(self, embeddings: Sequence[Embedding]) -> NDArray[np.float32]:
        """One vector for a sample: its weighted vectors side by side, float32 (sum of widths,), length 1; zeros where nothing is known."""
        made = np.zeros(sum(curve.width for curve in self.curves.values()), np.float32)
        for embedding in self._known(embeddings):
            curve, start = self.curves[embedding.space], self.rows[embedding.space]
            made[start : start + curve.width] = np.sqrt(curve.slope) * curve.trust_in(embedding.quality) * embedding.vector
        length = float(np.linalg.norm(made))
        return made / np.float32(length) if length > 0 else made

    def _known(self, embeddings: Sequence[Embedding]) -> list[Embedding]:
        fitted = {(curve.modality, space, curve.width) for space, curve in self.curves.items()}
        return [e for e in embeddings if (e.modality, e.space, len(e.vector)) in fitted]


def save(curves: Mapping[str, Curve], path: Path) -> None:
    """Write curves as .npz: ``spaces``, ``modalities`` (S,), ``numbers`` (S, 7), ``trust`` (S, K), ``knots`` (K,)."""
    rows = list(curves.values())
    numbers = [[c.slope, *c.midpoints, c.doubt_right, c.doubt_wrong, float(c.width)] for c in rows]
    np.savez(
        path,
        spaces=np.array(list(curves)),
        modalities=np.array([c.modality for c in rows]),
        numbers=np.array(numbers, np.float64).reshape(-1, 7),
        trust=np.array([c.trust for c in rows], np.float64).reshape(-1, len(KNOTS)),
        knots=KNOTS,
    )


def load(path: Path = WEIGHTS) -> dict[str, Curve]:
    """The curves by space. Raises SettingsError when the file is missing or is not one of ``save``."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            if not np.array_equal(held["knots"], KNOTS):
                raise ValueError("its knots are others")
            table = zip(held["spaces"].tolist(), held["modalities"].tolist(), held["numbers"], held["trust"], strict=True)
            curves = {}
            for space, modality, row, trust in table:
                slope, good, uneven, poor, right, wrong, width = row.tolist()
                curves[space] = Curve(modality, slope, Midpoints(good, uneven, poor), right, wrong, trust, int(width))
            return curves
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise SettingsError(f"the weights {path.name} must be the associative network's: {error}; train them or reinstall") from error


def associative_network(fallback: Associator, body_half_life_s: float = BODY_HALF_LIFE_S, path: Path = WEIGHTS) -> AssociativeNetwork:
    """The network with the weights of ``path``. Raises SettingsError when they cannot be read."""
    return AssociativeNetwork(load(path), fallback, body_half_life_s)
