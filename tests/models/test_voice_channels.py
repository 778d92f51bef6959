"""What a channel does to voices is learned from shifts, and taken out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.training.voice_channels import CHANNELS, CLEAN, directions_of, learn_channels, save, without
from models.voice import TELEPHONE, WIDE, Speech, calibration, curves
from pipeline.errors import BadInputError

RATE_HZ = 16_000


class Spectrum:
    """Stands for the speaker network: the loudness of 48 bands."""

    def speech(self, samples: np.ndarray) -> Speech:
        power = np.abs(np.fft.rfft(samples, 2 * RATE_HZ))[1 : 48 * 300 + 1].reshape(48, 300).sum(axis=1)
        return Speech(np.log(power + 1e-3).astype(np.float32), 1.0)

    def raw_vector(self, features: np.ndarray) -> np.ndarray:
        centred = features - features.mean()
        return centred / np.linalg.norm(centred)


def hummed(pitch_hz: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    time_s = np.arange(2 * RATE_HZ) / RATE_HZ
    tones = sum(np.sin(2 * np.pi * pitch_hz * k * time_s + random.uniform(0, 6)) / k for k in range(1, 12))
    return np.asarray(0.1 * tones + 0.002 * random.normal(size=len(time_s)), np.float32)


def test_a_shift_that_a_channel_gives_everybody_is_taken_out() -> None:
    random = np.random.default_rng(0)
    people = random.normal(size=(20, 12)).astype(np.float32)
    shift = np.eye(12, dtype=np.float32)[3] * 5
    learned = directions_of({CLEAN: people, "telephone": people + shift})
    np.testing.assert_allclose(np.abs(learned), np.eye(12)[[3]], atol=1e-5)
    np.testing.assert_allclose(without(people, learned), without(people + shift, learned), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(without(people, learned), axis=1), 1, rtol=1e-5)


def test_directions_curves_and_figures_come_of_clips_alone(tmp_path: Path) -> None:
    pitches = {"anna": 220.0, "bert": 110.0, "cleo": 330.0}
    clips = [hummed(pitch_hz, 10 * number + clip) for number, pitch_hz in enumerate(pitches.values()) for clip in range(2)]
    speakers = [name for name in pitches for _ in range(2)]
    said: list[str] = []
    learned = learn_channels(Spectrum(), clips, speakers, said.append)  # type: ignore[arg-type]
    assert learned.directions.shape == (len(CHANNELS), 48)
    np.testing.assert_allclose(learned.directions @ learned.directions.T, np.eye(len(CHANNELS)), atol=1e-4)
    assert (learned.figures["speakers"], learned.figures["clips"]) == (3, 6)
    assert set(learned.figures["EER"]) == {CLEAN, *CHANNELS}  # type: ignore[call-overload]
    assert len(said) == len(CHANNELS)
    save(learned, tmp_path / "channels.npz")
    kept = curves(tmp_path / "channels.npz")
    assert set(kept) == {WIDE, TELEPHONE}
    assert calibration(tmp_path / "channels.npz")["campplus@1"] in kept.values()


def test_two_speakers_are_too_few() -> None:
    with pytest.raises(BadInputError, match="three speakers or more, got 2"):
        learn_channels(Spectrum(), [hummed(220, 0), hummed(110, 1)], ["anna", "bert"], print)  # type: ignore[arg-type]
