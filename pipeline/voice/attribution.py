"""To whom of the people in view a speaker turn belongs, where that can be justified.

Whoever speaks moves the lips with the sound: while it is loud, and most where it changes. The fit of a mouth's motion with the loudness is
compared with that of the other mouths in view, and with that of the same mouth when the sound is moved in time, which shows what fit chance
would give. (Hershey and Movellan, Audio vision, 1999; the time-shifted null is that of Chung and Zisserman, Out of time, 2016.) A turn that
fits nobody clearly stays without an owner: an attribution that is wrong costs more than one that is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from pipeline.voice.turns import Loudness, Turn

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AttributionRules:
    """Shares and correlations 0..1, times in seconds.

    covered: share of a turn through which its speaker must be in view; visible: in view for more than this, a person may be the speaker;
    least_hz: pictures a second below which lips cannot be read; least_lips: share of a turn through which they must be; fit: least fit with
    the sound; margin: by which it beats the other mouths', more where it rests on fewer pictures; chance: most of the moved sounds that may
    fit as well; single_visible: whoever is alone in view, and whose lips could not be read, is taken for the speaker.
    """

    covered: float = 0.9
    visible: float = 0.1
    least_hz: float = 8.0
    least_lips: float = 0.6
    fit: float = 0.4
    margin: float = 0.12
    chance: float = 0.05
    single_visible: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class LipMotion:
    """How much a mouth changed since the picture before: at_ns int64 (K,), motion float32 (K,), nan where it could not be seen."""

    at_ns: NDArray[np.int64]
    motion: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Presence:
    """A person in view during a turn. share: of its pictures that show the person; in_zone: of them, feet in the microphone's zone;
    lips: None where they were not looked at."""

    tracklet_id: str
    is_confirmed: bool
    share: float
    in_zone: float = 0.0
    lips: LipMotion | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a mouth moves with the sound: value -1..1, chance 0..1: share of the moved sounds that fit as well; pictures it rests on."""

    value: float
    chance: float
    pictures: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whose turn it is (None: nobody's that can be justified), how sure 0..1, and why in plain words."""

    tracklet_id: str | None
    confidence: float
    why: str


LAGS_S = (-0.08, 0.16)  # mouth after sound: the two are seldom in perfect time, and a motion shows in the picture after it
LEAST_SHIFT_S = 0.5
SMOOTH_S = 0.04
SLOW_S = 0.4
RANGE_DB = 35.0  # below the loudest: what is quieter is silence
LEAST_SPREAD = 0.15  # of the root of motion in grey levels: a still mouth has only the noise of its pictures
LEAST_SPAN_S = 1.0
FULL_PICTURES = 60  # a fit from fewer is less sure by the root


def attribute(
    turn: Turn, people: Sequence[Presence], zone: str = "", pictures_hz: float = 0.0, rules: AttributionRules | None = None
) -> Verdict:
    """The verdict on a turn from the people in view.

    zone: name of the microphone's zone, "" where it has none; pictures_hz: pictures a second during the turn, 0 where not known.
    """
    rules = rules or AttributionRules()
    seen = [person for person in people if person.share > rules.visible]
    if not seen:
        return Verdict(None, 0.0, "nobody in view")
    fits = {person.tracklet_id: lip_fit(turn.loudness, person.lips, rules) for person in seen}
    if zone:
        verdict = _by_zone(seen, fits, zone, rules)
        if verdict is not None:
            return verdict
    unread = "lips could not be read"
    if 0 < pictures_hz < rules.least_hz:
        unread += f" at {pictures_hz:.1f} pictures a second, {rules.least_hz:g} are needed"
    if len(seen) == 1:
        return _alone(seen[0], fits[seen[0].tracklet_id], unread, rules)
    return _among(seen, fits, unread, rules)


def _by_zone(seen: Sequence[Presence], fits: dict[str, Fit | None], zone: str, rules: AttributionRules) -> Verdict | None:
    """Whoever stands alone in the microphone's zone; None where that does not decide."""
    inside = [person for person in seen if person.in_zone > rules.visible]
    if len(inside) != 1:
        return None
    person = inside[0]
    fit = fits[person.tracklet_id]
    if not person.is_confirmed or person.in_zone < rules.covered or (fit is not None and not _is_good(fit, rules)):
        return None
    return Verdict(person.tracklet_id, 0.8 if fit is None else max(0.8, _sureness(fit, rules)), f"alone in the microphone's zone {zone}")


def _alone(person: Presence, fit: Fit | None, unread: str, rules: AttributionRules) -> Verdict:
    if not person.is_confirmed or person.share < rules.covered:
        return Verdict(None, 0.0, "the one person in view was not there for the whole turn")
    if fit is None:
        why = f"alone in view, {unread}"
        return Verdict(person.tracklet_id, 0.5, why) if rules.single_visible else Verdict(None, 0.0, why)
    if not _is_good(fit, rules):
        return Verdict(None, 0.0, f"alone in view, lips do not move with the sound (fit {fit.value:.2f})")
    return Verdict(person.tracklet_id, _sureness(fit, rules), f"alone in view, lips move with the sound (fit {fit.value:.2f})")


def _among(seen: Sequence[Presence], fits: dict[str, Fit | None], unread: str, rules: AttributionRules) -> Verdict:
    read = [(fit.value, person) for person in seen if (fit := fits[person.tracklet_id]) is not None]
    if not read:
        return Verdict(None, 0.0, f"{len(seen)} people in view, {unread}")
    read.sort(key=lambda pair: (-pair[0], pair[1].tracklet_id))
    value, person = read[0]
    rival = read[1][0] if len(read) > 1 else 0.0
    fit = fits[person.tracklet_id]
    assert fit is not None
    if not _is_good(fit, rules) or not person.is_confirmed or person.share < rules.covered:
        return Verdict(None, 0.0, f"{len(seen)} people in view, nobody's lips move with the sound (best fit {value:.2f})")
    if value - rival < rules.margin * max(1.0, (FULL_PICTURES / max(fit.pictures, 1)) ** 0.5):
        return Verdict(None, 0.0, f"{len(seen)} people in view, two whose lips fit the sound ({value:.2f} and {rival:.2f})")
    sure = _sureness(fit, rules) * min(1.0, 0.5 + (value - rival)) * 0.8 ** (len(seen) - len(read))
    return Verdict(person.tracklet_id, sure, f"lips move with the sound (fit {value:.2f}, next {rival:.2f}) among {len(seen)} in view")


def _is_good(fit: Fit, rules: AttributionRules) -> bool:
    return fit.value >= rules.fit and fit.chance <= rules.chance


def _sureness(fit: Fit, rules: AttributionRules) -> float:
    """0.6 at the least fit, 1 for the best there is."""
    return float(np.clip(0.6 + 0.4 * (fit.value - rules.fit) / max(0.7 - rules.fit, 1e-6), 0.0, 1.0))


def lip_fit(loudness: Loudness, lips: LipMotion | None, rules: AttributionRules | None = None) -> Fit | None:
    """How well a mouth's motion follows the sound; None where it was seen too seldom or not for long enough."""
    rules = rules or AttributionRules()
    if lips is None:
        return None
    end_ns = loudness.from_ns + loudness.step_ns * len(loudness.db)
    inside = (lips.at_ns >= loudness.from_ns) & (lips.at_ns < end_ns)
    at_ns, motion = lips.at_ns[inside], lips.motion[inside]
    span_s = (end_ns - loudness.from_ns) / 1e9
    known = np.isfinite(motion)
    if known.sum() < 4 or span_s < LEAST_SPAN_S:
        return None
    usual_s = float(np.median(np.diff(at_ns))) / 1e9
    if usual_s > 1 / rules.least_hz or known.sum() * usual_s < rules.least_lips * span_s:
        return None
    grid = np.arange(int(at_ns[known][0]), int(at_ns[known][-1]) + 1, round(usual_s * 1e9), dtype=np.int64)  # (G,)
    base = int(grid[0])
    moved = np.interp((grid - base).astype(np.float64), (at_ns[known] - base).astype(np.float64), motion[known])  # (G,)
    width = max(0.5, SMOOTH_S / usual_s)
    mouth = gaussian_filter1d(np.sqrt(_capped(moved)), width)
    if len(grid) < 8 or float(mouth.std()) < LEAST_SPREAD:
        return Fit(0.0, 1.0)
    level = loudness.at(grid).astype(np.float64)
    level = np.maximum(level, float(np.percentile(level, 95)) - RANGE_DB)
    sounds = [gaussian_filter1d(level, width), gaussian_filter1d(_capped(np.abs(np.gradient(level))), width)]
    slow = SLOW_S / usual_s
    pairs = [(mouth, sound) for sound in sounds] + [(_quick(mouth, slow), _quick(sound, slow)) for sound in sounds]
    return _fit(np.mean([_correlations(one, other) for one, other in pairs], axis=0), usual_s)


def _capped(values: Float64) -> Float64:
    """Values (G,) with the tenth that is highest cut off: one jerk of the head, or the first sound after silence, must not decide alone."""
    return np.minimum(values, np.percentile(values, 90))


def _quick(values: Float64, width: float) -> Float64:
    """What is left of values (G,) without their slow part: that somebody speaks at all says less than the syllables do."""
    quick: Float64 = values - gaussian_filter1d(values, width, mode="nearest")
    return quick


def _fit(by_move: Float64, step_s: float) -> Fit:
    """The best correlation within the lags, and the share of whole moves of the sound that reach it; by_move (G,), for every move."""
    count = len(by_move)
    lags = np.arange(int(np.floor(LAGS_S[0] / step_s)), int(np.ceil(LAGS_S[1] / step_s)) + 1)
    best = np.max([by_move[(np.arange(count) + lag) % count] for lag in lags], axis=0)  # (G,)
    value = float(best[0])
    far = int(np.ceil(LEAST_SHIFT_S / step_s)) + len(lags)
    null = best[far : count - far] if count > 2 * far else best[:0]
    return Fit(value, float((null >= value).mean()) if len(null) else 1.0, count)


def _correlations(mouth: Float64, sound: Float64) -> Float64:
    """The correlation of a mouth (G,) with a sound (G,), the mouth read so many steps later, for every circular move, (G,)."""
    mouth, sound = mouth - mouth.mean(), sound - sound.mean()
    scale = float(np.linalg.norm(mouth) * np.linalg.norm(sound)) + 1e-9
    crossed: Float64 = np.fft.irfft(np.fft.rfft(mouth) * np.conj(np.fft.rfft(sound)), n=len(mouth)) / scale
    return crossed
