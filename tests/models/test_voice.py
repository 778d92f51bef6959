"""Voices: heard where somebody speaks, told apart, refused where nobody can be told, compared over a telephone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models import sound_conditions as conditions
from models.log_mel import log_mel
from models.voice import (
    TELEPHONE,
    WIDE,
    CampPlusEncoder,
    at_16_khz,
    calibration,
    curves,
    read_channels,
    refuse_unusable,
    voice_band,
    voice_quality,
)
from pipeline.errors import BadInputError, SettingsError
from pipeline.types import VOICE
from services.adapters.pyav_capture import read_sound

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def encoder(weights: Callable[[str], Path]) -> CampPlusEncoder:
    return CampPlusEncoder(weights("campplus"), weights("silero-vad"), weights("segmentation"))


@pytest.fixture(scope="module")
def clips(shared_data: Path) -> dict[str, list[np.ndarray]]:
    """Two clips of each speaker."""
    folders = sorted(path for path in (shared_data / "voices").iterdir() if path.is_dir())
    return {folder.name: [read_sound(path)[0] for path in sorted(folder.glob("*.flac"))[:2]] for folder in folders}


def noise(length_s: float, loudness: float = 0.1, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=int(length_s * RATE_HZ)) * loudness).astype(np.float32)


def chords(length_s: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Four chords of an organ."""
    time_s = np.arange(int(length_s * rate_hz)) / rate_hz
    played = np.zeros(len(time_s))
    for start, root in enumerate((220.0, 174.6, 261.6, 196.0)):
        is_now = (time_s % 4 >= start) & (time_s % 4 < start + 1)
        for step in (0, 4, 7):
            for partial in (1, 2, 3, 4):
                played += is_now * np.sin(2 * np.pi * root * 2 ** (step / 12) * partial * time_s) / partial
    return (0.1 * played).astype(np.float32)


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("sound", "reason"),
    [
        (np.zeros(3 * RATE_HZ, np.float32), "silent"),
        (np.full(3 * RATE_HZ, 1e-6, np.float32), "silent"),
        (np.zeros(0, np.float32), "0.5 s or more, got 0.00 s"),
        (noise(0.3), "0.5 s or more, got 0.30 s"),
        (np.full(RATE_HZ, np.nan, np.float32), "nan or infinity"),
        (np.append(noise(2.0), np.float32(1e30)), "far larger"),
        (np.zeros((2, RATE_HZ), np.float32), "mono"),
        (np.sign(noise(2.0)), "clipped"),
        (np.zeros(3601 * RATE_HZ, np.float32), "at most 3600 s"),
    ],
    ids=["silence", "almost silence", "nothing", "too short", "nan", "huge", "stereo", "clipped", "too long"],
)
def test_what_is_no_voice_is_refused_with_the_reason(encoder: CampPlusEncoder, sound: np.ndarray, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        encoder.encode(sound)


@pytest.mark.parametrize("sound", [chords(6.0), noise(4.0)], ids=["music", "noise"])
def test_music_and_noise_are_no_voice(encoder: CampPlusEncoder, sound: np.ndarray) -> None:
    with pytest.raises(BadInputError, match=r"must be heard speaking for 0\.5 s or more"):
        encoder.encode(sound)


def test_a_few_clipped_samples_are_borne() -> None:
    sound = noise(1.0)
    sound[::50] = 1.0
    refuse_unusable(sound)


@pytest.mark.parametrize("rate_hz", [0, 4000, 500_000])
def test_a_rate_no_recorder_has_is_refused(rate_hz: int) -> None:
    with pytest.raises(BadInputError, match=f"got {rate_hz}"):
        at_16_khz(noise(1.0), rate_hz)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 44_100, 48_000])
def test_other_rates_keep_length_and_pitch(rate_hz: int) -> None:
    sound = np.sin(2 * np.pi * 1000 * np.arange(rate_hz) / rate_hz).astype(np.float32)
    made = at_16_khz(sound, rate_hz)
    assert abs(len(made) - RATE_HZ) <= 1
    assert abs(int(np.abs(np.fft.rfft(made[:RATE_HZ])).argmax()) - 1000) <= 1
    assert at_16_khz(sound, RATE_HZ) is sound


def test_half_an_hour_at_any_rate_is_no_more_than_an_hour() -> None:
    assert len(at_16_khz(np.zeros(1800 * 48_000, np.float32), 48_000)) == 1800 * RATE_HZ


# -------------------------------------------------------------------------------------- band and quality


def test_a_telephone_is_told_from_a_microphone() -> None:
    sound = noise(2.0)
    assert voice_band(sound) == WIDE
    assert voice_band(conditions.telephone(sound)) == TELEPHONE
    assert voice_band(conditions.telephone(sound, companded=True)) == TELEPHONE
    assert voice_band(at_16_khz(noise(1.0), 8_000)) == TELEPHONE
    assert voice_band(np.zeros(100, np.float32)) in (WIDE, TELEPHONE)


def test_quality_rises_with_length_and_falls_with_noise_company_and_narrow_band() -> None:
    gate = np.repeat(np.arange(40) % 2, RATE_HZ // 10).astype(np.float32)  # loud and quiet by turns
    clear, noisy = log_mel(noise(4.0) * (gate + 1e-3)), log_mel(noise(4.0) * (gate + 0.3))
    best = voice_quality(clear, clear, 1.0, WIDE)
    assert 0.5 < best <= 1
    assert voice_quality(clear, clear[:100], 1.0, WIDE) < best
    assert voice_quality(noisy, noisy, 1.0, WIDE) < best
    assert voice_quality(clear, clear, 0.5, WIDE) < best
    assert voice_quality(clear, clear, 1.0, TELEPHONE) < best


def test_every_band_has_a_curve_and_the_space_takes_the_more_careful_one() -> None:
    known = curves()
    assert set(known) == {WIDE, TELEPHONE}
    assert calibration()[CampPlusEncoder.space].midpoint == max(curve.midpoint for curve in known.values())
    assert all(0.25 < curve.midpoint < 0.6 for curve in known.values())


def test_weights_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK not really")
    for name in ("broken.npz", "gone.npz"):
        with pytest.raises(SettingsError, match=name):
            read_channels(tmp_path / name)


# --------------------------------------------------------------------------------------------- real voices


@pytest.mark.parametrize("samples", [0, 511, 512, 20_000, 200_001])
def test_there_is_an_answer_for_each_512_samples(encoder: CampPlusEncoder, samples: int) -> None:
    sound = noise(samples / RATE_HZ + 1)[:samples]
    for found in (encoder.activity(sound), encoder.overlap(sound)):
        assert found.shape == (samples // 512,)
        assert found.dtype == np.float32
        assert ((found >= 0) & (found <= 1)).all()


def test_a_long_sound_is_heard_as_its_parts_are(encoder: CampPlusEncoder, clips: dict[str, list[np.ndarray]]) -> None:
    clip = np.tile(next(iter(clips.values()))[0], 3)[: 40 * RATE_HZ]  # more than one call of the network
    heard = encoder.activity(clip)
    np.testing.assert_allclose(heard[:900], encoder.activity(clip[: 900 * 512]), atol=1e-4)
    assert np.abs(heard[1020:1030] - encoder.activity(clip[800 * 512 :])[220:230]).max() < 0.3


def test_speech_is_heard_where_it_is(encoder: CampPlusEncoder, clips: dict[str, list[np.ndarray]]) -> None:
    speech = next(iter(clips.values()))[0][: 4 * RATE_HZ]
    heard = encoder.activity(np.concatenate([np.zeros(2 * RATE_HZ, np.float32), speech]))
    assert heard[:60].max() < 0.5
    assert (heard[63:] >= 0.5).mean() > 0.5


def test_two_at_once_are_heard_where_they_are(encoder: CampPlusEncoder, clips: dict[str, list[np.ndarray]]) -> None:
    (first, _), (second, _), *_ = (pair for pair in clips.values())
    length = 3 * RATE_HZ
    both = conditions.with_noise(first[:length], second[:length], 0.0)
    heard = encoder.overlap(np.concatenate([first[length : 2 * length], both]))
    assert (heard[:90] >= 0.5).mean() < 0.1
    assert (heard[94:] >= 0.5).mean() > 0.4


def test_a_voice_keeps_its_vector_over_rate_and_loudness(encoder: CampPlusEncoder, clips: dict[str, list[np.ndarray]]) -> None:
    clip = next(iter(clips.values()))[0]
    own = encoder.encode(clip)
    assert own.modality == VOICE
    assert own.space == "campplus@1"
    assert own.vector.shape == (192,)
    assert own.similarity(encoder.encode(clip * np.float32(0.3))) > 0.98
    assert own.similarity(encoder.encode(at_16_khz(at_44_khz(clip), 44_100))) > 0.98
    assert own.similarity(encoder.encode(at_16_khz(clip[::2], 8_000))) > 0.4


def at_44_khz(sound: np.ndarray) -> np.ndarray:
    count = len(sound) * 441 // 160
    return np.interp(np.arange(count) * 160 / 441, np.arange(len(sound)), sound).astype(np.float32)


def test_a_long_sound_is_pooled_and_its_pauses_left_out(encoder: CampPlusEncoder, clips: dict[str, list[np.ndarray]]) -> None:
    first, second = next(iter(clips.values()))
    pause = np.zeros(2 * RATE_HZ, np.float32)
    whole = encoder.encode(np.concatenate([first, pause, second, pause]))
    assert len(first) + len(second) > 20 * RATE_HZ
    assert whole.similarity(encoder.encode(first)) > 0.85
    assert whole.similarity(encoder.encode(second)) > 0.85


def test_shorter_and_noisier_is_trusted_less(encoder: CampPlusEncoder, clips: dict[str, list[np.ndarray]]) -> None:
    clip = next(iter(clips.values()))[0]
    hiss = noise(len(clip) / RATE_HZ)[: len(clip)]
    qualities = [
        encoder.encode(sound).quality
        for sound in (clip, conditions.telephone(clip), conditions.with_noise(clip, hiss, 5.0), conditions.piece(clip, 1.5))
    ]
    assert max(qualities) == qualities[0]
    assert qualities[0] > 0.7


@pytest.mark.accuracy
def test_one_threshold_tells_speakers_apart_over_a_telephone_too(encoder: CampPlusEncoder, clips: dict[str, list[np.ndarray]]) -> None:
    names = [name for name, pair in clips.items() for _ in pair]
    recorded = [clip for pair in clips.values() for clip in pair]
    wide = np.stack([encoder.encode(clip).vector for clip in recorded])
    phone = np.stack([encoder.encode(conditions.telephone(clip)).vector for clip in recorded])
    same = np.asarray(names)[:, None] == np.asarray(names)[None]
    threshold = calibration()[encoder.space].midpoint
    others = ~np.eye(len(names), dtype=bool)
    for cosine in (wide @ wide.T, phone @ phone.T, phone @ wide.T):
        assert (cosine[~same] < threshold).all()
        assert (cosine[same & others] > threshold).mean() >= 0.9
