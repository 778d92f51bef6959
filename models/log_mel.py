"""Sound to log-mel energies, as Kaldi makes them: what speaker networks take.

Povey et al., The Kaldi Speech Recognition Toolkit, 2011 (compute-fbank-feats): no dither, whole frames alone, pre-emphasis 0.97, Povey's
window, power spectrum, triangles equal on the mel scale from 20 Hz to 8 kHz. Samples lie in -1..1, so energies are floored there.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError

Float32 = NDArray[np.float32]

RATE_HZ = 16_000
WINDOW, STEP = 400, 160  # samples: 25 ms every 10 ms
POINTS = 512
BINS = 80
BLOCK = 1024  # frames at a time: an hour needs no more memory than ten seconds
LOWEST_HZ, HIGHEST_HZ = 20.0, RATE_HZ / 2
PRE_EMPHASIS = 0.97
FLOOR = float(np.finfo(np.float32).eps)


def log_mel(samples: Float32) -> Float32:
    """Mono float32 (N,) at 16 kHz -> (T, 80), T = 1 + (N - 400) // 160. Raises BadInputError for less than a frame."""
    if len(samples) < WINDOW:
        raise BadInputError(f"sound must last {WINDOW} samples or more, got {len(samples)}")
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::STEP]  # (T, 400)
    return np.concatenate([_energies(frames[start : start + BLOCK]) for start in range(0, len(frames), BLOCK)])


def _energies(frames: Float32) -> Float32:
    centred = frames - frames.mean(axis=1, keepdims=True, dtype=np.float32)
    before = np.concatenate([centred[:, :1], centred[:, :-1]], axis=1)
    spectrum = np.fft.rfft((centred - np.float32(PRE_EMPHASIS) * before) * _window(), POINTS, axis=1)  # (T, 257)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    return np.asarray(np.log(np.maximum(power @ _triangles(), FLOOR)), np.float32)


@functools.cache
def _window() -> Float32:
    """Hann's window to the power 0.85, (400,)."""
    angle = 2 * np.pi * np.arange(WINDOW) / (WINDOW - 1)
    made: Float32 = ((0.5 - 0.5 * np.cos(angle)) ** 0.85).astype(np.float32)
    return made


@functools.cache
def _triangles() -> Float32:
    """How much each point of the spectrum counts in each bin, (257, 80); the last point counts nowhere."""
    edges = np.linspace(_mel(LOWEST_HZ), _mel(HIGHEST_HZ), BINS + 2)  # (82,)
    points = np.asarray([_mel(index * RATE_HZ / POINTS) for index in range(POINTS // 2 + 1)])[:, None]  # (257, 1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0.0, np.minimum((points - left) / (centre - left), (right - points) / (right - centre)))  # (257, 80)
    triangles[-1] = 0
    return np.asarray(triangles, np.float32)


def _mel(frequency_hz: float) -> float:
    return 1127.0 * float(np.log1p(frequency_hz / 700.0))
