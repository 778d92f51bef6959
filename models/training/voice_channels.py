"""Learns along which directions a channel moves voice vectors, and from which cosine on two are probably one voice.

Solomonoff, Campbell and Boardman, Advances in Channel Compensation for SVM Speaker Recognition, ICASSP 2005 (nuisance attribute
projection): every clip is encoded as recorded and as ten channels make it worse; the mean shift of each channel is a direction that
tells nothing of the speaker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from models import sound_conditions as conditions
from models.voice import TELEPHONE, WIDE, CampPlusEncoder
from pipeline.errors import BadInputError
from pipeline.evaluate.open_set import equal_error_rate

Float32 = NDArray[np.float32]
Strings = NDArray[np.str_]
Channel = Callable[[int, Sequence[Float32], Sequence[str], np.random.Generator], Float32]

CLEAN = "clean"
NARROW = ("telephone", "companded", "8 kHz", "telephone in a room")
# Five speakers make ten pairs of people: nothing is known of the most alike voices of a city.
MIDPOINT_MARGIN = 0.05
STEEPEST = 15.0


def _crowd(snr_db: float) -> Channel:
    def make(index: int, clips: Sequence[Float32], speakers: Sequence[str], random: np.random.Generator) -> Float32:
        others = sorted(set(speakers) - {speakers[index]})
        voices = [clips[random.choice([row for row, name in enumerate(speakers) if name == other])] for other in others]
        return conditions.with_noise(clips[index], conditions.babble(voices, len(clips[index]), random), snr_db)

    return make


def _alone(change: Callable[[Float32, np.random.Generator], Float32]) -> Channel:
    return lambda index, clips, speakers, random: change(clips[index], random)


CHANNELS: Mapping[str, Channel] = {
    "telephone": _alone(lambda sound, random: conditions.telephone(sound)),
    "companded": _alone(lambda sound, random: conditions.telephone(sound, companded=True)),
    "8 kHz": _alone(lambda sound, random: conditions.at_8_khz(sound)),
    "room": _alone(lambda sound, random: conditions.room(sound, 0.5, 0.0, random)),
    "hall": _alone(lambda sound, random: conditions.room(sound, 0.8, 3.0, random)),
    "telephone in a room": _alone(lambda sound, random: conditions.telephone(conditions.room(sound, 0.5, 0.0, random))),
    "white noise": _alone(lambda sound, random: conditions.with_noise(sound, conditions.white_noise(len(sound), random), 15.0)),
    "traffic": _alone(lambda sound, random: conditions.with_noise(sound, conditions.pink_noise(len(sound), random), 10.0)),
    "crowd": _crowd(5.0),
    "short": _alone(lambda sound, random: conditions.piece(sound, 1.5)),
}


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """directions: float32 (10, 192), orthonormal; curves: band -> (midpoint, slope); figures: equal error rates, with the
    directions and without, of speakers whose clips the directions did not see."""

    directions: Float32
    curves: Mapping[str, tuple[float, float]]
    figures: Mapping[str, object]


def learn_channels(
    encoder: CampPlusEncoder, clips: Sequence[Float32], speakers: Sequence[str], say: Callable[[str], None], seed: int = 0
) -> Learned:
    """From clips at 16 kHz of three speakers or more. Raises BadInputError for fewer."""
    who = np.asarray(speakers)
    if len(np.unique(who)) < 3:
        raise BadInputError(f"channels must be learned from three speakers or more, got {len(np.unique(who))}")
    vectors = encode_channels(encoder, clips, speakers, say, seed)
    held_out = {name: np.zeros_like(values) for name, values in vectors.items()}
    for speaker in np.unique(who):
        seen = directions_of({name: values[who != speaker] for name, values in vectors.items()})
        for name, values in vectors.items():
            held_out[name][who == speaker] = without(values[who == speaker], seen)
    untouched = {name: without(values, values[:0]) for name, values in vectors.items()}
    figures = {
        "speakers": len(np.unique(who)),
        "clips": len(who),
        "EER_of_all_pairs": _error(held_out, who),
        "EER_of_all_pairs_without": _error(untouched, who),
        "missed_at_0.1_percent_false": _missed(held_out, who),
        "missed_at_0.1_percent_false_without": _missed(untouched, who),
        "EER": {name: _error({name: values}, who) for name, values in held_out.items()},
        "EER_without": {name: _error({name: values}, who) for name, values in untouched.items()},
    }
    return Learned(directions_of(vectors), {band: _curve(*_pairs(held_out, who, band)) for band in (WIDE, TELEPHONE)}, figures)


def save(learned: Learned, path: Path) -> None:
    """The weights that models/voice.py reads."""
    parts = {f"curve_{band}": np.asarray(curve, np.float32) for band, curve in learned.curves.items()}
    arrays: dict[str, Any] = {"directions": learned.directions, **parts}
    np.savez(path, **arrays)


def encode_channels(
    encoder: CampPlusEncoder, clips: Sequence[Float32], speakers: Sequence[str], say: Callable[[str], None], seed: int
) -> dict[str, Float32]:
    """The raw vectors (N, 192) of the clips as recorded and through every channel."""
    made = {CLEAN: np.stack([encoder.raw_vector(encoder.speech(clip).features) for clip in clips])}
    for name, channel in CHANNELS.items():
        random = np.random.default_rng(seed)
        heard = [channel(index, clips, speakers, random) for index in range(len(clips))]
        made[name] = np.stack([encoder.raw_vector(encoder.speech(sound).features) for sound in heard])
        say(f"{name}: {len(clips)} clips")
    return made


def directions_of(vectors: Mapping[str, Float32]) -> Float32:
    """Orthonormal directions (K, D) of the mean shifts of K channels."""
    shifts = [values.mean(axis=0) - vectors[CLEAN].mean(axis=0) for name, values in vectors.items() if name != CLEAN]
    return np.asarray(np.linalg.svd(np.stack(shifts), full_matrices=False)[2], np.float32)


def without(vectors: Float32, directions: NDArray[np.floating]) -> Float32:
    """``vectors`` (N, D) without what lies along ``directions`` (K, D), length 1."""
    pure = vectors - vectors @ directions.T @ directions
    return np.asarray(pure / np.linalg.norm(pure, axis=1, keepdims=True), np.float32)


def _pairs(vectors: Mapping[str, Float32], who: Strings, band: str | None = None) -> tuple[Float32, Float32]:
    """Cosines of two clips of one speaker, and of two, over all pairs of channels (None), of both WIDE, or of one or two TELEPHONE."""
    same, itself = who[:, None] == who[None], np.eye(len(who), dtype=bool)
    genuine, impostor = [], []
    for one, other in combinations_with_replacement(vectors, 2):
        if band in (None, TELEPHONE if {one, other} & set(NARROW) else WIDE):
            cosines = vectors[one] @ vectors[other].T
            genuine.append(cosines[same & ~itself])
            impostor.append(cosines[~same])
    return np.concatenate(genuine), np.concatenate(impostor)


def _error(vectors: Mapping[str, Float32], who: Strings) -> float:
    return round(equal_error_rate(*_pairs(vectors, who)), 5)


def _missed(vectors: Mapping[str, Float32], who: Strings) -> float:
    """The part of pairs of one speaker below the cosine that 0.1 % of the pairs of two reach."""
    genuine, impostor = _pairs(vectors, who)
    return round(float((genuine < np.quantile(impostor, 0.999)).mean()), 4)


def _curve(genuine: Float32, impostor: Float32) -> tuple[float, float]:
    """Midpoint and slope of the log-odds, both sides counting alike, made careful: a little higher and no steeper than STEEPEST."""

    def loss(parameters: NDArray[np.float64]) -> float:
        midpoint, slope = parameters
        own, other = slope * (genuine - midpoint), slope * (impostor - midpoint)
        return float(np.logaddexp(0, -own).mean() + np.logaddexp(0, other).mean())

    midpoint, slope = minimize(loss, np.asarray([0.4, 12.0]), method="Nelder-Mead").x
    return float(midpoint) + MIDPOINT_MARGIN, min(float(slope), STEEPEST)
