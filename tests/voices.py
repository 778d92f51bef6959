"""Speakers that are tones: a VoiceEncoder for which the pitch is the voice, mouths that open with it, and sound to feed them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError
from pipeline.ports import Head
from pipeline.types import VOICE, Embedding, Sound

RATE_HZ = 16_000
STEP = 512
ANNA_HZ, BERT_HZ = 300.0, 900.0
Samples = NDArray[np.float32]


def tone(seconds: float, hz: float, loud: float = 0.3) -> Samples:
    return (loud * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def babbled(seconds: float, hz: float, seed: int = 0) -> Samples:
    """A tone whose loudness rises and falls a few times a second, as syllables do."""
    at_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (tone(seconds, hz) * np.interp(at_s, *syllables(seconds, seed))).astype(np.float32)


def syllables(seconds: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times and levels 0.05..1 between which the loudness goes."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.uniform(0.08, 0.25, int(seconds * 8) + 2))
    return times, random.uniform(0.05, 1.0, len(times))


def pieces(samples: Samples, started_at_ns: int, camera_id: str = "north", piece_s: float = 1.0) -> list[Sound]:
    length = round(piece_s * RATE_HZ)
    starts = range(0, len(samples), length)
    return [Sound(camera_id, started_at_ns + start * 62_500, samples[start : start + length], RATE_HZ) for start in starts]


class ToneVoices:
    """The VoiceEncoder port: what is loud is speech, what is very loud is two at once, and the pitch says who."""

    space = "fake-voice@1"

    def __init__(self) -> None:
        self.encoded_s: list[float] = []
        self.longest = 0

    def activity(self, samples: Samples) -> Samples:
        self.longest = max(self.longest, len(samples))
        return (self._peaks(samples) > 0.01).astype(np.float32)

    def overlap(self, samples: Samples) -> Samples:
        self.longest = max(self.longest, len(samples))
        return (self._peaks(samples) > 0.7).astype(np.float32)

    def encode(self, samples: Samples) -> Embedding:
        self.encoded_s.append(len(samples) / RATE_HZ)
        if not (np.abs(samples) > 0.01).any():
            raise BadInputError("a voice must be heard, got silence")
        power = np.abs(np.fft.rfft(samples)) ** 2
        hz = np.fft.rfftfreq(len(samples), 1 / RATE_HZ)
        centres = np.asarray([ANNA_HZ, BERT_HZ])
        vector = np.asarray([power[np.abs(hz - centre) < 100].sum() for centre in centres], np.float32)
        return Embedding(VOICE, self.space, vector + 1e-9, 0.7)

    @staticmethod
    def _peaks(samples: Samples) -> Samples:
        whole = len(samples) // STEP
        return np.abs(samples[: whole * STEP]).reshape(whole, STEP).max(axis=1)


class BrightMouths:
    """The LipReader port: a mouth moves as much as the head is bright."""

    def __init__(self) -> None:
        self.read_heads = 0

    def read(self, heads: Sequence[Head]) -> Samples:
        self.read_heads += len(heads)
        motion = np.asarray([head.grey.mean() / 10 for head in heads], np.float32)
        motion[:1] = np.nan
        return motion
