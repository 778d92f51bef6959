"""Voices: where somebody speaks, where several do at once, and a vector of whose voice it is.

Silero VAD v6 finds speech; a segmentation network (Bredin 2023) finds where several speak; CAM++ (Wang et al., Interspeech 2023) gives
the vector, from which the directions that channels move it along are taken out (nuisance attribute projection, Solomonoff et al.,
ICASSP 2005): so a telephone is compared with a microphone in one space, by one threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from models.log_mel import RATE_HZ, STEP, WINDOW, log_mel
from models.preprocess import open_session
from pipeline.calibration import Logistic
from pipeline.errors import BadInputError, SettingsError
from pipeline.types import VOICE, Embedding

Float32 = NDArray[np.float32]
Booleans = NDArray[np.bool_]

WIDE, TELEPHONE = "wide", "telephone"
CHANNELS = Path(__file__).with_name("weights") / "voice_channels.npz"
FRAME = 512  # samples of one answer of activity and overlap
CONTEXT = 64  # samples that the activity network is shown again
STATE = 128
CALL = 1024  # frames of activity at a time, half a minute
IS_SPEECH = 0.5
WORD_ENDS = 4  # frames kept on both sides of speech: soft ends of words tell too, above all through a telephone
IS_SEVERAL = 0.5
LEAST_ALONE = 0.7  # of the speech: a crowd is taken for several everywhere, and what is left of it is not the nearest voice
LOOK = 10 * RATE_HZ  # samples that the segmentation network was trained on
LOOK_STEP = 8 * RATE_HZ
FIRST_CENTRE, CENTRE_STEP = 495, 270  # samples: where its frames lie
SHORTEST_S = 0.5  # of speech
LONGEST_S = 3600.0
PIECE = 1000  # frames of 10 ms in one pass of the speaker network
TURN = 300  # frames of 10 ms
UNLIKE = 0.25  # pieces of one voice: 0.39 and above in 69 clips, noisy and narrow ones too; 32 of 37 clips of two lie below
QUIETEST = 1e-4  # root mean square below which there is nothing: the 16-bit noise floor is a third of it
FULL_SCALE = 0.999
LARGEST = 1000.0  # decoders go a little beyond 1; squares of far larger numbers overflow
MOST_CLIPPED = 0.1  # of all samples
SLOWEST_HZ, FASTEST_HZ = 8_000, 192_000
EDGE_HZ = 4_600.0
NARROW_DB = -40.0  # above EDGE_HZ, against below: speech through a telephone has less
NARROW_QUALITY = 0.8
CLEAR_DB = 35.0  # between loud and quiet moments of one voice alone; a crowd fills the quiet ones


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """The speech of one voice: log-mel float32 (K, 80), and how far it can be trusted, 0..1."""

    features: Float32
    quality: float


class CampPlusEncoder:
    """The VoiceEncoder port. vectors, overlap: as models/convert/recipes.py writes them; activity: Silero VAD v6; channels: the
    directions that channels move vectors along, (K, 192), as `sightline train voice-channels` writes them; None: none are taken out."""

    space = "campplus@1"

    def __init__(self, vectors: Path, activity: Path, overlap: Path, channels: Path | None = CHANNELS, threads: int = 1) -> None:
        self._vectors = open_session(vectors, threads)
        self._activity = open_session(activity, threads)
        self._overlap = open_session(overlap, threads)
        self._channels = np.zeros((0, 192), np.float32)
        if channels is not None:
            self._channels = read_channels(channels)["directions"]

    def activity(self, samples: Float32) -> Float32:
        """See ports.VoiceEncoder. Raises BadInputError for what is no mono float32 sound."""
        sound = checked(samples)
        frames = sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME)  # (F, 512)
        hidden = cell = np.zeros((1, 1, STATE), np.float32)
        last = np.zeros((1, CONTEXT), np.float32)
        found = [np.zeros(0, np.float32)]
        for start in range(0, len(frames), CALL):
            some = frames[start : start + CALL]
            shown = np.concatenate([np.concatenate([last, some[:-1, -CONTEXT:]]), some], axis=1)  # (F, 576)
            answers, hidden, cell = self._activity.run(None, {"input": shown, "h": hidden, "c": cell})
            found.append(answers.reshape(-1))
            last = some[-1:, -CONTEXT:]
        return np.concatenate(found)

    def overlap(self, samples: Float32) -> Float32:
        """See ports.VoiceEncoder. Raises BadInputError for what is no mono float32 sound."""
        sound = checked(samples)
        count = len(sound) // FRAME
        sums, seen = np.zeros(count), np.zeros(count)
        centres = FRAME * np.arange(count) + FRAME // 2
        for start in range(0, max(len(sound) - (LOOK - LOOK_STEP), 1), LOOK_STEP):
            look = sound[start : start + LOOK]
            if len(look) < RATE_HZ:
                look = np.pad(look, (0, RATE_HZ - len(look)))
            classes = self._overlap.run(None, {"sound": look[None, None]})[0][0]  # (F, 7), log-probabilities
            several = np.exp(classes[:, 4:]).sum(axis=1)  # (F,): two of three
            first, last = np.searchsorted(centres, [start, start + LOOK])
            sums[first:last] += np.interp(centres[first:last] - start, FIRST_CENTRE + CENTRE_STEP * np.arange(len(several)), several)
            seen[first:last] += 1
        return np.asarray(sums / np.maximum(seen, 1), np.float32)

    def encode(self, samples: Float32) -> Embedding:
        """See ports.VoiceEncoder. Raises BadInputError as ``speech`` does."""
        heard = self.speech(samples)
        return Embedding(VOICE, self.space, self.vector(heard.features), heard.quality)

    def speech(self, samples: Float32) -> Speech:
        """What of a sound tells whose voice it is: pauses are left out, and moments at which several speak, unless little else is there.

        Raises BadInputError for what is no sound, is silent, is clipped throughout, or holds less than 0.5 s of speech.
        """
        sound = checked(samples)
        refuse_unusable(sound)
        speaks = self.activity(sound) >= IS_SPEECH  # (F,)
        spoken_s = float(speaks.sum()) * FRAME / RATE_HZ
        if spoken_s < SHORTEST_S:
            what = f"{spoken_s:.1f} s" if speaks.any() else "none (silence, noise or music)"
            raise BadInputError(f"a voice must be heard speaking for {SHORTEST_S} s or more, got {what}: take a longer, clearer recording")
        is_several = self.overlap(sound) >= IS_SEVERAL
        alone = speaks & ~is_several
        share = float(alone.sum() / speaks.sum())
        is_enough = share >= LEAST_ALONE and alone.sum() * FRAME >= SHORTEST_S * RATE_HZ
        features = log_mel(sound)  # (T, 80)
        words = _grown(speaks, WORD_ENDS)
        kept = features[_widened(words & ~is_several if is_enough else words, len(features))]
        return Speech(kept, voice_quality(features, kept, 1.0 if is_enough else share, voice_band(sound)))

    def holds_several(self, features: Float32) -> bool:
        """Whether log-mel (T, 80) of speech is of several people in turns: some two of its pieces of 3 s are unlike. Under 6 s: unknown."""
        count = len(features) // TURN
        if count < 2:
            return False
        vectors = np.stack([self.vector(part) for part in np.array_split(features, count)])  # (P, 192)
        return float((vectors @ vectors.T).min()) < UNLIKE

    def vector(self, features: Float32) -> Float32:
        """Log-mel (T, 80) of one voice -> (192,), length 1; more than 10 s go through the network in equal pieces."""
        raw = self.raw_vector(features)
        pure = raw - self._channels.T @ (self._channels @ raw)
        return pure / np.float32(max(float(np.linalg.norm(pure)), 1e-9))

    def raw_vector(self, features: Float32) -> Float32:
        """As ``vector``, with the channel in it."""
        pieces = np.array_split(features, max(1, -(-len(features) // PIECE)))
        pooled = np.zeros(192, np.float32)
        for part in pieces:
            vector = self._vectors.run(None, {"features": (part - part.mean(axis=0))[None]})[0][0]
            pooled += vector / np.linalg.norm(vector)
        return pooled / np.float32(max(float(np.linalg.norm(pooled)), 1e-9))


def read_channels(path: Path) -> dict[str, Float32]:
    """directions (K, 192), curve_wide and curve_telephone (2,); raises SettingsError, naming the file, when it is missing or broken."""
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in ("directions", f"curve_{WIDE}", f"curve_{TELEPHONE}")}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise SettingsError(f"the weights {path.name} must be a readable .npz file: {error}; learn them again or reinstall") from error


def curves(channels: Path = CHANNELS) -> dict[str, Logistic]:
    """Cosine to log-odds: WIDE where both sounds have the whole band, TELEPHONE where one or both have not."""
    stored = read_channels(channels)
    return {band: Logistic(*(float(value) for value in stored[f"curve_{band}"])) for band in (WIDE, TELEPHONE)}


def calibration(channels: Path = CHANNELS) -> dict[str, Logistic]:
    """The curve of the space for those who know nothing of the bands: the more careful of both."""
    return {CampPlusEncoder.space: max(curves(channels).values(), key=lambda curve: curve.midpoint)}


# -------------------------------------------------------------------------------------------------- sound


def at_16_khz(samples: Float32, rate_hz: int) -> Float32:
    """Mono float32 (N,) at any common rate -> at 16 kHz; raises BadInputError for a rate that no recorder has."""
    if not SLOWEST_HZ <= rate_hz <= FASTEST_HZ:
        raise BadInputError(f"sound must have {SLOWEST_HZ} to {FASTEST_HZ} samples a second, got {rate_hz}: record it again")
    if rate_hz == RATE_HZ:
        return samples
    divisor = gcd(rate_hz, RATE_HZ)
    return np.asarray(resample_poly(checked(samples, rate_hz), RATE_HZ // divisor, rate_hz // divisor), np.float32)


def checked(samples: Float32, rate_hz: int = RATE_HZ) -> Float32:
    """The sound as contiguous float32 (N,); raises BadInputError for another shape, for nan and huge numbers, and for more than an
    hour."""
    sound = np.ascontiguousarray(samples, np.float32)
    if sound.ndim != 1:
        raise BadInputError(f"sound must be mono float32 (N,), got {sound.shape}: mix its channels first")
    if not np.isfinite(sound).all() or np.abs(sound).max(initial=0.0) > LARGEST:
        raise BadInputError("sound must be numbers of -1..1, got nan or infinity, or far larger ones: the recording is damaged")
    if len(sound) > LONGEST_S * rate_hz:
        raise BadInputError(f"sound must last at most {LONGEST_S:g} s, got {len(sound) / rate_hz:.0f} s: cut it")
    return sound


def refuse_unusable(sound: Float32) -> None:
    """Raises BadInputError for what is too short, silent or clipped throughout."""
    if len(sound) < SHORTEST_S * RATE_HZ:
        raise BadInputError(f"a voice must last {SHORTEST_S} s or more, got {len(sound) / RATE_HZ:.2f} s: take a longer recording")
    loudness = float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
    if loudness < QUIETEST:
        raise BadInputError("a voice must be heard, but this recording is silent: speak closer to the microphone")
    clipped = float((np.abs(sound) >= FULL_SCALE).mean())
    if clipped > MOST_CLIPPED:
        raise BadInputError(f"at most {MOST_CLIPPED:.0%} of a recording may be clipped, got {clipped:.0%}: record it less loud")


def voice_band(samples: Float32) -> str:
    """WIDE, or TELEPHONE for sound at 16 kHz that has next to nothing above 3.8 kHz."""
    return TELEPHONE if height_db(samples) < NARROW_DB else WIDE


def height_db(samples: Float32) -> float:
    """The power above 3.8 kHz against that below, in its brightest tenth (s and f tell, vowels do not)."""
    length = 1024
    if len(samples) < length:
        samples = np.pad(samples, (0, length - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, length)[:: length // 2] * np.hanning(length).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2  # (T, 513)
    edge = int(EDGE_HZ * length / RATE_HZ)
    low, high = power[:, 4:edge].sum(axis=1), power[:, edge:].sum(axis=1)
    is_loud = low + high >= 1e-3 * (low + high).max()
    ratio = 10 * np.log10((high[is_loud] + 1e-12) / (low[is_loud] + 1e-12))
    return float(np.quantile(ratio, 0.9))


def voice_quality(features: Float32, kept: Float32, alone: float, band: str) -> float:
    """0..1 of a voice: how long it speaks, how far it stands out, how much of it is one person's, and whether the band is whole.

    features: log-mel (T, 80) of the whole sound, kept: (K, 80) of the speech; alone: the part 0..1 of the speech with one speaker.
    """
    spoken_s = len(kept) * STEP / RATE_HZ
    length = spoken_s / (spoken_s + 1.0)
    clear = min(1.0, range_db(features) / CLEAR_DB)
    return float(np.clip(length * clear * alone * (NARROW_QUALITY if band == TELEPHONE else 1.0), 0.0, 1.0))


def range_db(features: Float32) -> float:
    """Between the loud and the quiet moments of log-mel (T, 80): pauses and closures of a voice alone are 40 dB below it."""
    power = np.log(np.exp(features[:, :50]).sum(axis=1)) * (10 / np.log(10))  # (T,) below 3.4 kHz
    low, high = np.quantile(power, [0.05, 0.9])
    return float(high - low)


def _grown(chosen: Booleans, by: int) -> Booleans:
    """``chosen`` (F,) and as many as ``by`` on both sides of each."""
    padded = np.pad(chosen, by)
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, 2 * by + 1).any(axis=1), bool)


def _widened(chosen: Booleans, frames: int) -> Booleans:
    """Which of ``frames`` log-mel frames lie in chosen moments of 512 samples."""
    moment = np.minimum((np.arange(frames) * STEP + WINDOW // 2) // FRAME, len(chosen) - 1)
    return chosen[moment]
