"""Sound as it comes worse than recorded: telephone, rooms, crowds, noise, short pieces. To train and to measure with.

Mono float32 (N,) at 16 kHz in and out, of the same length unless said otherwise; what is random is drawn from the generator given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, resample_poly, sosfilt

Float32 = NDArray[np.float32]

RATE_HZ = 16_000
TELEPHONE_HZ = (300.0, 3400.0)
MU = 255.0  # ITU-T G.711


def at_8_khz(sound: Float32) -> Float32:
    """Sampled at 8 kHz and back: nothing above 4 kHz."""
    return _float32(resample_poly(resample_poly(sound, 1, 2), 2, 1)[: len(sound)])


def telephone(sound: Float32, companded: bool = False) -> Float32:
    """300 to 3400 Hz at 8 kHz; companded: in the 8 bits of G.711 (mu-law)."""
    narrow = resample_poly(sosfilt(butter(6, TELEPHONE_HZ, "bandpass", fs=RATE_HZ, output="sos"), sound), 1, 2)
    if companded:
        pressed = np.sign(narrow) * np.log1p(MU * np.minimum(np.abs(narrow), 1)) / np.log1p(MU)
        steps = np.round(pressed * 127) / 127
        narrow = np.sign(steps) * np.expm1(np.abs(steps) * np.log1p(MU)) / MU
    return _float32(resample_poly(narrow, 2, 1)[: len(sound)])


def room(sound: Float32, decay_s: float, reverberant_db: float, random: np.random.Generator) -> Float32:
    """A voice far from the microphone, as loud as before: after the straight sound comes noise that falls by 60 dB in ``decay_s``."""
    tail = random.normal(size=int(decay_s * RATE_HZ))
    tail *= 10.0 ** (-3 * np.arange(len(tail)) / len(tail))
    tail *= 10 ** (reverberant_db / 20) / np.sqrt((tail**2).sum())
    heard = fftconvolve(sound, np.concatenate([[1.0], np.zeros(80), tail]))[: len(sound)]
    return _float32(heard * (_loudness(sound) / _loudness(heard)))


def with_noise(sound: Float32, noise: NDArray[np.floating], snr_db: float) -> Float32:
    """``noise`` (N,) put under the sound, ``snr_db`` below its mean power."""
    return _float32(sound + noise * (_loudness(sound) / _loudness(noise) / 10 ** (snr_db / 20)))


def white_noise(length: int, random: np.random.Generator) -> Float32:
    return _float32(random.normal(size=length))


def pink_noise(length: int, random: np.random.Generator) -> Float32:
    """Equal power in every octave: traffic, ventilation."""
    spectrum = np.fft.rfft(random.normal(size=length))
    return _float32(np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1), length))


def babble(voices: Sequence[Float32], length: int, random: np.random.Generator) -> Float32:
    """Several voices at once, equally loud, each begun anywhere and repeated to ``length``."""
    mixed = np.zeros(length, np.float32)
    for voice in voices:
        shifted = np.roll(voice, int(random.integers(len(voice))))
        mixed += np.resize(shifted, length) / np.float32(_loudness(shifted))
    return mixed


def piece(sound: Float32, length_s: float) -> Float32:
    """The loudest stretch of so many seconds; the whole sound where it is shorter."""
    length, step = int(length_s * RATE_HZ), RATE_HZ // 20
    if len(sound) <= length:
        return sound
    power = np.concatenate([[0.0], np.cumsum(np.square(sound, dtype=np.float64))])
    starts = np.arange(0, len(sound) - length + 1, step)
    start = int(starts[np.argmax(power[starts + length] - power[starts])])
    return sound[start : start + length]


def _loudness(sound: NDArray[np.floating]) -> float:
    """Root mean square, above 0."""
    return max(float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))), 1e-9)


def _float32(values: NDArray[np.floating]) -> Float32:
    return np.asarray(values, np.float32)
