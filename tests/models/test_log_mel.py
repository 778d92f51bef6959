"""Log-mel energies as Kaldi makes them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.log_mel import BINS, log_mel
from pipeline.errors import BadInputError


def tone(frequency_hz: float, length_s: float = 0.5) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(int(length_s * 16_000)) / 16_000)).astype(np.float32)


def one_frame_by_the_book(samples: np.ndarray) -> list[float]:
    """Kaldi's steps for the first 400 samples, sample by sample."""
    mean = sum(map(float, samples[:400])) / 400
    centred = [float(value) - mean for value in samples[:400]]
    raised = [centred[0] - 0.97 * centred[0]] + [centred[i] - 0.97 * centred[i - 1] for i in range(1, 400)]
    shaped = [value * (0.5 - 0.5 * math.cos(2 * math.pi * i / 399)) ** 0.85 for i, value in enumerate(raised)]
    power = np.abs(np.fft.fft(shaped, 512)) ** 2

    def mel(hz: float) -> float:
        return 1127 * math.log(1 + hz / 700)

    step = (mel(8000) - mel(20)) / 81
    energies = []
    for number in range(80):
        left = mel(20) + number * step
        energy = 0.0
        for point in range(256):
            at = mel(point * 16_000 / 512)
            energy += max(0.0, min((at - left) / step, (left + 2 * step - at) / step)) * float(power[point])
        energies.append(math.log(max(energy, 1.1920929e-07)))
    return energies


def test_a_frame_is_what_the_book_says() -> None:
    sound = (np.random.default_rng(0).normal(size=400) * 0.1).astype(np.float32)
    np.testing.assert_allclose(log_mel(sound)[0], one_frame_by_the_book(sound), atol=1e-3)


def test_there_is_a_frame_every_ten_milliseconds_and_whole_frames_alone() -> None:
    assert log_mel(np.zeros(400, np.float32)).shape == (1, BINS)
    assert log_mel(np.zeros(559, np.float32)).shape == (1, BINS)
    assert log_mel(np.zeros(560, np.float32)).shape == (2, BINS)
    assert log_mel(tone(440, 1.0)).shape == (98, BINS)
    with pytest.raises(BadInputError, match="400 samples or more, got 399"):
        log_mel(np.zeros(399, np.float32))


def test_higher_tones_lie_in_higher_bins_and_silence_lies_on_the_floor() -> None:
    peaks = [int(log_mel(tone(hz)).mean(axis=0).argmax()) for hz in (200, 1000, 3000, 7000)]
    assert peaks == sorted(peaks)
    assert len(set(peaks)) == 4
    np.testing.assert_allclose(log_mel(np.zeros(1600, np.float32)), np.log(np.finfo(np.float32).eps), atol=1e-4)


def test_twice_as_loud_is_the_same_but_for_a_constant() -> None:
    sound = (np.random.default_rng(1).normal(size=8000) * 0.1).astype(np.float32)
    np.testing.assert_allclose(log_mel(2 * sound) - log_mel(sound), 2 * np.log(2), atol=1e-3)
