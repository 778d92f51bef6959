"""Sound made worse: as long as before, as bad as said."""

from __future__ import annotations

import numpy as np
import pytest

from models import sound_conditions as conditions

RATE_HZ = 16_000


def noise(length_s: float = 2.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=int(length_s * RATE_HZ)) * 0.1).astype(np.float32)


def power_between(sound: np.ndarray, low_hz: float, high_hz: float) -> float:
    power = np.abs(np.fft.rfft(sound)) ** 2
    hz = np.fft.rfftfreq(len(sound), 1 / RATE_HZ)
    return float(power[(hz >= low_hz) & (hz < high_hz)].mean())


@pytest.mark.parametrize("length", [RATE_HZ, RATE_HZ + 1])
def test_every_condition_keeps_length_and_type(length: int) -> None:
    sound, random = noise()[:length], np.random.default_rng(1)
    made = [
        conditions.at_8_khz(sound),
        conditions.telephone(sound),
        conditions.telephone(sound, companded=True),
        conditions.room(sound, 0.5, 0.0, random),
        conditions.with_noise(sound, conditions.pink_noise(length, random), 10.0),
        conditions.babble([noise(0.7, 2), noise(3.0, 3)], length, random),
    ]
    assert all(each.shape == sound.shape and each.dtype == np.float32 and np.isfinite(each).all() for each in made)


def test_a_telephone_lets_its_band_pass() -> None:
    made = conditions.telephone(noise())
    inside = power_between(made, 500, 3000)
    assert power_between(made, 20, 150) < 1e-3 * inside
    assert power_between(made, 4500, 8000) < 1e-4 * inside


def test_noise_lies_so_far_below_the_sound() -> None:
    sound, hiss = noise(), noise(seed=7) * 30
    added = conditions.with_noise(sound, hiss, 5.0) - sound
    assert 10 * np.log10(np.mean(sound**2) / np.mean(added**2)) == pytest.approx(5.0, abs=0.01)


def test_the_piece_kept_is_the_loudest() -> None:
    sound = noise() * 0.01
    sound[RATE_HZ : RATE_HZ + 8000] = 0.5
    kept = conditions.piece(sound, 0.5)
    assert len(kept) == 8000
    assert (kept == 0.5).mean() > 0.95
    assert conditions.piece(sound, 10.0) is sound
    assert np.shares_memory(kept, sound)


def test_pink_noise_has_equal_power_in_every_octave() -> None:
    made = conditions.pink_noise(8 * RATE_HZ, np.random.default_rng(0))
    octaves = [power_between(made, hz, 2 * hz) * hz for hz in (100, 400, 1600)]
    assert max(octaves) < 1.2 * min(octaves)
