"""`sightline evaluate association`: what the associative network is worth where faces and voices are often missing.

data: faces/<person>/* (or faces/<set>/<person>/*), persons/<person>/<camera><n>.jpg, voices/<speaker>/*. Real samples, altered as cameras
and rooms alter them, become tracklets of invented people (models/training/tracklets.py): whose face goes with which body and voice is
synthetic. Half of a person's tracklets show no face, half are silent. Every tracklet of a person asks for that person's others.

"halves": the network is fitted anew on one half of the people of each modality and people of the other half are asked for, several times.
"shipped": the same questions by the weights as they are; on the folders they were fitted on that is no held-out figure.
Intervals are 95 %, over faces: few people, so they are wide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.association.network import AssociativeNetwork
from models.training.association import Goodness, Pairs, fit_all, halves, without_quality
from models.training.tracklets import Encoders, Plan, Random, Samples, Tracklets, composed, gathered, joined
from pipeline.errors import BadInputError, NotFoundError
from pipeline.evaluate.cast_search import walked
from pipeline.evaluate.retrieval import intervals, outcomes, ranked_hits
from pipeline.evidence import Associator, together
from pipeline.types import BODY, FACE, VOICE

Float = NDArray[np.float64]

MODALITIES = (FACE, BODY, VOICE)
SEEDS = 10
STRANGERS, LOOKS_OF_STRANGERS = 40, 4
JITTER = 1e-6  # nothing to tell two candidates apart: by chance, not by the order of the list
LEARNED = "all, learned"
SHUFFLED, FLAT, CURVES = "all, learned, qualities shuffled", "all, learned without quality and time", "all, plain curves"
PROBABLE = (LEARNED, SHUFFLED, FLAT, CURVES)  # whose scores are log-odds
WALK = "face, then all, learned"
UNFAIR = -50.0


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """N tracklets and what is known of every pair. cosine: by modality, (N, N), nan where one has none; quality: by modality, (N,), 0 where
    there is none; gap_s: (N, N); is_unfair: (N, N), pairs that share a picture, a camera or a recording; asks: (N,)."""

    tracklets: Tracklets
    samples: Mapping[str, Samples]
    cosine: Mapping[str, Float]
    quality: Mapping[str, Float]
    gap_s: Float
    is_unfair: NDArray[np.bool_]
    asks: NDArray[np.bool_]

    @classmethod
    def of(cls, tracklets: Tracklets, samples: Mapping[str, Samples], asks: NDArray[np.bool_]) -> Scene:
        cosine, quality = {}, {}
        is_unfair = np.eye(len(tracklets), dtype=bool)
        for modality, own in samples.items():
            row = tracklets.row[modality]
            is_there = row >= 0
            vectors = own.vectors[row]  # -1 takes the last, undone below
            pairs = (vectors @ vectors.T).astype(np.float64)
            pairs[~(is_there[:, None] & is_there[None])] = np.nan
            cosine[modality], quality[modality] = pairs, np.where(is_there, own.quality[row], 0.0)
            takes = np.where(is_there, own.takes[row], 0)
            same = own.person[row][:, None] == own.person[row][None]
            is_unfair |= same & ((takes[:, None] & takes[None]) != 0)
        return cls(tracklets, samples, cosine, quality, np.abs(tracklets.at_s[:, None] - tracklets.at_s[None]), is_unfair, asks)

    def odds(self, associator: Associator, modality: str, quality: Float | None = None, gap_s: Float | float | None = None) -> Float:
        """Log-odds of every pair by one modality, (N, N), 0 where it is missing; ``quality`` and ``gap_s`` in place of the true ones."""
        own = self.quality[modality] if quality is None else quality
        space = self.samples[modality].space
        return associator.log_odds(modality, space, self.cosine[modality], own[:, None], own[None], self.gap_s if gap_s is None else gap_s)


def scores_of(scene: Scene, learned: AssociativeNetwork, flat: AssociativeNetwork, plain: Associator, random: Random) -> dict[str, Float]:
    """Every way to rank, by name: scores (N, N). flat: curves that know no quality and no time; plain: the stand-in."""
    ones = {modality: np.ones(len(own)) for modality, own in scene.quality.items()}
    even = {modality: scene.odds(flat, modality, ones[modality], 0.0) for modality in scene.cosine}
    has = {modality: ~np.isnan(cosine) for modality, cosine in scene.cosine.items()}
    mixed = {}
    for modality, own in scene.quality.items():  # among those that have one: what is missing stays missing
        rows = np.flatnonzero(own > 0)
        mixed[modality] = own.copy()
        mixed[modality][rows] = own[random.permutation(rows)]
    singles = {f"{modality} only": even[modality] for modality in scene.cosine}
    return singles | {
        "face + body, equal": _mean([even[FACE], even[BODY]], [has[FACE], has[BODY]]),
        "all, equal: mean cosine": np.nan_to_num(_mean(list(scene.cosine.values()), list(has.values())), nan=-1.0),
        "all, equal: mean log-odds": _mean(list(even.values()), list(has.values())),
        FLAT: together(even),
        CURVES: _together(scene, plain),
        "all, one representation": _represented(scene, learned),
        "face + body, learned": together({modality: scene.odds(learned, modality) for modality in (FACE, BODY)}),
        SHUFFLED: together({modality: scene.odds(learned, modality, mixed[modality]) for modality in scene.cosine}),
        "all, learned, time not told": together({modality: scene.odds(learned, modality, gap_s=0.0) for modality in scene.cosine}),
        "all, learned, clothes may outvote a face": sum((scene.odds(learned, m) for m in scene.cosine), np.zeros_like(scene.gap_s)),
        LEARNED: _together(scene, learned),
    }


def _together(scene: Scene, associator: Associator) -> Float:
    return together({modality: scene.odds(associator, modality) for modality in scene.cosine})


def _mean(values: Sequence[Float], has: Sequence[NDArray[np.bool_]]) -> Float:
    """Mean over the modalities that both have; 0 of log-odds, nan of cosines, where there is none."""
    count = np.sum(has, axis=0)
    total = np.sum([np.where(there, value, 0.0) for value, there in zip(values, has, strict=True)], axis=0)
    fill = np.nan if np.isnan(np.stack(values)).any() else 0.0
    made: Float = np.where(count > 0, total / np.maximum(count, 1), fill)
    return made


def _represented(scene: Scene, network: AssociativeNetwork) -> Float:
    """Inner products of the paper's one representation: weighted vectors side by side, length 1."""
    inner, length = np.zeros_like(scene.gap_s), np.zeros(len(scene.gap_s))
    for modality, cosine in scene.cosine.items():
        curve = network.curves[scene.samples[modality].space]
        weight = np.sqrt(curve.slope) * curve.trust_in(scene.quality[modality])
        inner += np.nan_to_num(cosine) * weight[:, None] * weight[None]
        length += weight**2
    made: Float = inner / np.sqrt(np.maximum(length[:, None] * length[None], 1e-12))
    return made


# ------------------------------------------------------------------------------------------------- scenes


def scene_of(askers: Mapping[str, Samples], others: Mapping[str, Samples], plan: Plan, random: Random) -> Scene:
    """People of ``askers`` with a face and a voice each, among strangers of ``others``. Raises BadInputError when nobody can ask."""
    fair = {modality: own.of(_with_two_takes(own)) for modality, own in askers.items()}
    people = min([len(fair[BODY].people) // plan.outfits, *(len(own.people) for modality, own in fair.items() if modality != BODY)])
    if people < 1:
        counts = ", ".join(f"{modality} {len(own.people)}" for modality, own in fair.items())
        raise BadInputError(f"association needs people with two takes in every modality, got {counts}: give more people")
    ours = composed(fair, people, plan, random)
    strangers = min(STRANGERS, len(others[BODY].people))
    theirs = composed(others, strangers, replace(plan, each=LOOKS_OF_STRANGERS, outfits=1), random, "stranger")
    tracklets, samples = joined(ours, fair, theirs, others)
    return Scene.of(tracklets, samples, np.arange(len(tracklets)) < len(ours))


def _with_two_takes(samples: Samples) -> list[str]:
    """People who can be found again: no single take is behind all of their samples."""
    return [who for who in samples.people if np.bitwise_and.reduce(samples.takes[samples.person == who]) == 0]


def _halved(samples: Mapping[str, Samples], random: Random) -> tuple[dict[str, Samples], dict[str, Samples]]:
    """Samples of the people to fit on, and of those to ask for; who can be found again is shared out evenly."""
    fitted, asked = {}, {}
    for modality, own in samples.items():
        able = set(_with_two_takes(own))
        first, second = halves(sorted(able), random)
        third, fourth = halves(sorted(set(own.people) - able), random)
        fitted[modality], asked[modality] = own.of(first | third), own.of(second | fourth)
    return fitted, asked


def _without(samples: Mapping[str, Samples], askers: Mapping[str, Samples]) -> dict[str, Samples]:
    """Everybody who cannot be asked for."""
    return {m: own.of(set(own.people) - set(_with_two_takes(askers[m]))) for m, own in samples.items()}


def _networks(samples: Mapping[str, Samples], plain: Associator, random: Random) -> tuple[AssociativeNetwork, AssociativeNetwork]:
    """The network, and one that knows no quality, fitted on the same people."""
    own, flat = list(samples.values()), [without_quality(each) for each in samples.values()]
    return AssociativeNetwork(fit_all(own, random), plain), AssociativeNetwork(fit_all(flat, random), plain)


# ------------------------------------------------------------------------------------------------- figures


@dataclass(slots=True)
class _Tally:
    """Average precision and rank-1 of every question, by way of ranking; whose face was asked for, and whether the question showed it."""

    precision: dict[str, list[Float]]
    first: dict[str, list[Float]]
    face: list[NDArray[np.str_]]
    shows_face: list[NDArray[np.bool_]]

    def add(self, scene: Scene, scores: Mapping[str, Float], asks: NDArray[np.bool_], random: Random) -> None:
        rows = np.flatnonzero(asks)
        is_match = scene.tracklets.person[rows][:, None] == scene.tracklets.person[None]
        ignored = scene.is_unfair[rows]
        rows, kept = rows[(is_match & ~ignored).any(axis=1)], (is_match & ~ignored).any(axis=1)
        is_match, ignored = is_match[kept], ignored[kept]
        jitter = random.uniform(0, JITTER, (len(rows), len(scene.asks)))
        for name, score in scores.items():
            result = outcomes(ranked_hits(score[rows] + jitter, is_match, ignored))
            self.precision.setdefault(name, []).append(result.precision)
            self.first.setdefault(name, []).append(result.within(1))
        self.face.append(scene.tracklets.face[rows])
        self.shows_face.append(scene.quality[FACE][rows] > 0)

    def figures(self, best: str) -> dict[str, Any]:
        """A row for each way, and how far ``best`` is ahead of it."""
        faces, shows = np.concatenate(self.face), np.concatenate(self.shows_face)
        precision = {name: np.concatenate(parts) for name, parts in self.precision.items()}
        first = {name: np.concatenate(parts) for name, parts in self.first.items()}
        bounds = intervals(np.stack(list(precision.values()), axis=1), faces)
        ahead = intervals(np.stack([precision[best] - own for own in precision.values()], axis=1), faces)
        table = {
            name: {
                "mAP": _rounded(own.mean()),
                "rank_1": _rounded(first[name].mean()),
                "mAP_interval": [_rounded(bound) for bound in bounds[place]],
                "best_ahead_by": [_rounded(bound) for bound in ahead[place]],
                "mAP_face_seen": _rounded(own[shows].mean()) if shows.any() else None,
                "mAP_no_face": _rounded(own[~shows].mean()) if (~shows).any() else None,
            }
            for place, (name, own) in enumerate(precision.items())
        }
        return {**table, "questions": len(faces), "faces": len(set(faces.tolist()))}


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def _measured(scenes: Sequence[tuple[Scene, AssociativeNetwork, AssociativeNetwork]], plain: Associator, random: Random) -> dict[str, Any]:
    tally, walks = _Tally({}, {}, [], []), _Tally({}, {}, [], [])
    goodness: dict[str, list[tuple[float, ...]]] = {name: [] for name in PROBABLE}
    for scene, learned, flat in scenes:
        scores = scores_of(scene, learned, flat, plain, random)
        tally.add(scene, scores, scene.asks, random)
        walks.add(scene, _walks(scene, learned, flat), scene.asks & (scene.quality[FACE] > 0), random)
        for name, found in goodness.items():
            found.append(astuple(_goodness(scene, scores[name])))
    figures = tally.figures(LEARNED)
    for name, found in goodness.items():
        figures[name]["probability"] = Goodness(*np.mean(found, axis=0).tolist()).rounded()
    return {**figures, "portraits": walks.figures(WALK)}


def _walks(scene: Scene, learned: AssociativeNetwork, flat: AssociativeNetwork) -> dict[str, Float]:
    """Ways to go from a face alone to all tracklets: at once, or from tracklet to tracklet (search/progressive.py, without its budget)."""
    made = {"face, one step": scene.odds(learned, FACE)}
    ones = {modality: np.ones(len(own)) for modality, own in scene.quality.items()}
    links = {
        "face, then body": together({modality: scene.odds(learned, modality) for modality in (FACE, BODY)}),
        "face, then voice": together({modality: scene.odds(learned, modality) for modality in (FACE, VOICE)}),
        "face, then all, without quality and time": together(
            {modality: scene.odds(flat, modality, ones[modality], 0.0) for modality in scene.cosine}
        ),
        WALK: _together(scene, learned),
    }
    for name, between in links.items():
        first = scene.odds(flat, FACE, ones[FACE]) if "without" in name else made["face, one step"]
        never = np.where(scene.is_unfair, UNFAIR, 0.0)  # what shares a take is no step
        made[name] = walked(first + never, between + never)
    return made


def _goodness(scene: Scene, odds: Float) -> Goodness:
    """How good the log-odds of all pairs are of which one asks, right and wrong ones worth the same."""
    is_asked = scene.asks[:, None] & ~scene.is_unfair
    is_same = (scene.tracklets.person[:, None] == scene.tracklets.person[None])[is_asked]
    weight = np.where(is_same, 0.5 / max(is_same.sum(), 1), 0.5 / max((~is_same).sum(), 1))
    return Goodness.of(odds[is_asked], Pairs(odds[is_asked], weight, weight, is_same, weight))


def ablation(samples: Mapping[str, Samples], shipped: AssociativeNetwork | None, plain: Associator, seeds: int = SEEDS) -> dict[str, Any]:
    """The tables of all ways to rank, within hours ("same_day") and over two days with other clothes ("two_days").

    samples: by modality. shipped: measured too where it was fitted on these spaces. Raises BadInputError for too few people.
    """
    made: dict[str, dict[str, Any]] = {}
    draws = [_halved(samples, np.random.default_rng(seed)) for seed in range(seeds)]
    networks = [_networks(ours, plain, np.random.default_rng(seed)) for seed, (ours, _) in enumerate(draws)]
    is_shipped = shipped is not None and all(own.space in shipped.curves for own in samples.values())
    for name, plan in {"same_day": Plan(), "two_days": Plan(outfits=2)}.items():
        scenes = [scene_of(asked, _without(samples, asked), plan, np.random.default_rng(seed)) for seed, (_, asked) in enumerate(draws)]
        fitted = [(scene, *both) for scene, both in zip(scenes, networks, strict=True)]
        made[name] = {"halves": _measured(fitted, plain, np.random.default_rng(0))}
        if shipped is not None and is_shipped:
            whole = [(scene, shipped, flat) for scene, (_, flat) in zip(scenes, networks, strict=True)]
            made[name]["shipped"] = _measured(whole, plain, np.random.default_rng(0))
    return made


# ------------------------------------------------------------------------------------------------- the command


def samples_of(
    data: Path, encoders: Encoders, kept: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> dict[str, Samples]:
    """Samples of face, body and voice by modality; kept: as of ``gathered``. Raises NotFoundError, BadInputError, UnreadableMediaError."""
    for name in ("faces", "persons", "voices"):
        if not (data / name).is_dir():
            raise NotFoundError(f"{data} must hold faces/, persons/ and voices/, {name}/ is not there")
    found = [each for own in gathered(data, encoders, kept, with_clips=False, say=say).values() for each in own]
    return {modality: next(each for each in found if each.modality == modality) for modality in MODALITIES}


def evaluate_association(
    samples: Mapping[str, Samples], shipped: AssociativeNetwork | None, plain: Associator, seeds: int = SEEDS, dump: Path | None = None
) -> dict[str, Any]:
    """The figures of the command. dump: one scene's cosines, qualities, log-odds and labels (.npz)."""
    started_s = time.monotonic()
    made = ablation(samples, shipped, plain, seeds)
    if dump is not None:
        _dump(samples, shipped, plain, dump)
    counts = {modality: {"space": own.space, "samples": len(own), "people": len(own.people)} for modality, own in samples.items()}
    return {**made, "samples": counts, "pairing": "synthetic", "seeds": seeds, "elapsed_s": round(time.monotonic() - started_s, 2)}


def _dump(samples: Mapping[str, Samples], shipped: AssociativeNetwork | None, plain: Associator, path: Path) -> None:
    random = np.random.default_rng(0)
    scene = scene_of(samples, _without(samples, samples), Plan(), random)
    learned = shipped or _networks(samples, plain, random)[0]
    arrays: dict[str, Any] = {f"cosine_{modality}": cosine for modality, cosine in scene.cosine.items()}
    arrays |= {f"quality_{modality}": quality for modality, quality in scene.quality.items()}
    arrays |= {"person": scene.tracklets.person, "asks": scene.asks, "is_unfair": scene.is_unfair, "gap_s": scene.gap_s}
    np.savez(path, log_odds=_together(scene, learned), **arrays)
