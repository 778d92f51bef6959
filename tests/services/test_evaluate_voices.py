"""Figures of voices on a folder of hummed speakers, and a file as a voice to search for."""

from __future__ import annotations

import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import BadInputError, NotFoundError, UnreadableMediaError
from pipeline.types import VOICE, Embedding
from services import wiring
from services.adapters.pyav_capture import read_sound
from services.evaluate_voices import clips_of, evaluate_voices
from services.settings import Settings
from services.voices import voice_probe

RATE_HZ = 16_000
PITCHES_HZ = {"anna": 220.0, "bert": 110.0, "cleo": 330.0}
THRESHOLD = 0.5


class Pitches:
    """A voice encoder: the spectrum below 1 kHz. Refuses what is shorter than ``least_s``."""

    space = "pitches@1"

    def __init__(self, least_s: float = 0.0) -> None:
        self._least_s = least_s

    def activity(self, samples: np.ndarray) -> np.ndarray:
        return np.ones(len(samples) // 512, np.float32)

    def overlap(self, samples: np.ndarray) -> np.ndarray:
        return np.zeros(len(samples) // 512, np.float32)

    def encode(self, samples: np.ndarray) -> Embedding:
        if len(samples) < self._least_s * RATE_HZ:
            raise BadInputError(f"a voice must last {self._least_s} s or more")
        return Embedding(VOICE, self.space, np.abs(np.fft.rfft(samples, RATE_HZ))[50:1000].astype(np.float32))


def hummed(pitch_hz: float, length_s: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    time_s = np.arange(int(length_s * RATE_HZ)) / RATE_HZ
    tones = sum(np.sin(2 * np.pi * pitch_hz * k * time_s + random.uniform(0, 6)) / k for k in (1, 2, 3, 4, 5))
    return (0.1 * tones + 0.001 * random.normal(size=len(time_s))).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate_hz: int = RATE_HZ) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    for number, (name, pitch_hz) in enumerate(PITCHES_HZ.items()):
        for clip in range(3):
            write_wav(tmp_path / "voices" / name / f"{clip}.wav", hummed(pitch_hz, 2.5, 10 * number + clip))
    return tmp_path / "voices"


def test_voices_that_are_easy_to_tell_apart_are_told_apart(voices: Path, tmp_path: Path) -> None:
    figures = evaluate_voices(voices, Pitches(), wiring.read_voice, THRESHOLD, tmp_path / "figures" / "dump.npz")
    assert (figures["EER"], figures["rank_1"], figures["mAP"], figures["FNIR_at_FPIR_1_percent"]) == (0.0, 1.0, 1.0, 0.0)
    assert (figures["false_match_rate"], figures["false_non_match_rate"]) == (0.0, 0.0)
    assert (figures["speakers"], figures["clips"], figures["queries"], figures["gallery"]) == (3, 9, 9, 9)
    assert figures["sound_s"] == pytest.approx(22.5)
    assert figures["space"] == "pitches@1"
    assert figures["intervals"]["rank_1"] == [1.0, 1.0]
    assert set(figures["conditions"]) == {"clean", "short_1.5_s", "babble_5_dB", "telephone"}
    assert figures["conditions"]["babble_5_dB"]["against_clean"]["rank_1"] == 1.0
    with np.load(tmp_path / "figures" / "dump.npz") as dump:
        assert dump["similarity"].shape == dump["similarity_telephone_against_clean"].shape == (9, 9)
        assert dump["query_person"].tolist() == dump["gallery_person"].tolist() == sorted(3 * list(PITCHES_HZ))
        assert dump["query"][0].endswith("0.wav")


def test_the_same_folder_gives_the_same_figures(voices: Path) -> None:
    first, second = (evaluate_voices(voices, Pitches(), wiring.read_voice, THRESHOLD)["conditions"] for _ in range(2))
    assert first == second


def test_clips_in_which_nobody_is_heard_are_counted_and_never_found(voices: Path) -> None:
    figures = evaluate_voices(voices, Pitches(least_s=2.0), wiring.read_voice, THRESHOLD)["conditions"]
    assert figures["short_1.5_s"]["not_heard"] == 9
    assert figures["short_1.5_s"]["false_non_match_rate"] == 1.0
    assert figures["short_1.5_s"]["false_match_rate"] == 0.0
    assert (figures["short_1.5_s"]["rank_1"], figures["short_1.5_s"]["against_clean"]["rank_1"]) == (0.0, 0.0)
    assert figures["babble_5_dB"]["not_heard"] == 0


def test_where_no_clip_holds_a_voice_the_first_is_named(voices: Path) -> None:
    with pytest.raises(BadInputError, match=r"anna.0\.wav: a voice must last 9"):
        evaluate_voices(voices, Pitches(least_s=9.0), wiring.read_voice, THRESHOLD)


def test_clips_that_do_not_decode_are_named_and_left_out(voices: Path) -> None:
    (voices / "bert" / "1.wav").write_bytes(b"RIFF and then nothing of a wave")
    (voices / "anna" / "._0.wav").write_bytes(b"a fork of another system")
    figures = evaluate_voices(voices, Pitches(), wiring.read_voice, THRESHOLD)
    assert len(figures["unreadable"]) == 1
    assert str(voices / "bert" / "1.wav") in figures["unreadable"][0]
    assert (figures["clips"], figures["rank_1"]) == (8, 1.0)


def test_one_clip_in_which_nobody_is_heard_stops_nothing(voices: Path) -> None:
    (voices / "anna" / "deeper").mkdir()
    write_wav(voices / "anna" / "deeper" / "SHORT.WAV", hummed(220, 0.3, 9))
    figures = evaluate_voices(voices, Pitches(least_s=0.5), wiring.read_voice, THRESHOLD)
    assert (figures["clips"], figures["not_heard"], figures["rank_1"]) == (10, 1, 0.9)


def test_too_few_speakers_and_a_folder_without_sound_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="a folder of sound files per speaker"):
        clips_of(tmp_path)
    for clip in range(2):
        write_wav(tmp_path / "anna" / f"{clip}.wav", hummed(220, 1.0, clip))
    with pytest.raises(BadInputError, match="two speakers or more"):
        evaluate_voices(tmp_path, Pitches(), wiring.read_voice, THRESHOLD)


@pytest.mark.usefixtures("settings")  # skips where the networks cannot be had
def test_the_command_names_what_is_missing(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "services", "evaluate", "voices", "--voices", str(tmp_path / "gone"), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "gone must hold a folder of sound files per speaker" in run.stderr + run.stdout


# ------------------------------------------------------------------------------------------ voice as a probe


@pytest.fixture
def settings(weights: Callable[[str], Path], tmp_path: Path) -> Settings:
    cache = weights("campplus").parents[2]
    weights("silero-vad")
    weights("segmentation")
    return Settings.model_validate({"storage": {"data_folder": tmp_path / "data", "cache_folder": cache}})


@pytest.fixture
def clip(shared_data: Path) -> np.ndarray:
    samples, _ = read_sound(next(iter(sorted((shared_data / "voices").glob("*/*.flac")))))
    return samples[: 5 * RATE_HZ]


@pytest.mark.parametrize("rate_hz", [8_000, 44_100])
def test_a_voice_is_known_at_any_rate(settings: Settings, clip: np.ndarray, tmp_path: Path, rate_hz: int) -> None:
    count = len(clip) * rate_hz // RATE_HZ
    other = np.interp(np.arange(count) * RATE_HZ / rate_hz, np.arange(len(clip)), clip)
    own, same = (
        voice_probe(settings, path).embeddings[0]
        for path in (write_wav(tmp_path / "own.wav", clip), write_wav(tmp_path / "other.wav", other, rate_hz))
    )
    assert own.similarity(same) > wiring.calibration().by_space[own.space].midpoint


def test_a_voice_is_taken_from_a_video(settings: Settings, shared_data: Path) -> None:
    video = next(iter(sorted((shared_data / "talking").glob("*.mpg"))))
    probe = voice_probe(settings, video)
    assert (probe.kind, probe.embeddings[0].modality) == ("voice", VOICE)


def test_two_people_in_one_sample_are_noticed(settings: Settings, shared_data: Path, tmp_path: Path) -> None:
    folders = sorted(path for path in (shared_data / "voices").iterdir() if path.is_dir())[:2]
    first, second = (read_sound(sorted(folder.glob("*.flac"))[0])[0] for folder in folders)
    voice_probe(settings, write_wav(tmp_path / "one.wav", first))
    with pytest.raises(BadInputError, match="voice of one person, got several"):
        voice_probe(settings, write_wav(tmp_path / "two.wav", np.concatenate([first[: 6 * RATE_HZ], second])))


def test_files_without_a_voice_are_refused_with_the_reason(settings: Settings, tmp_path: Path) -> None:
    chord = sum(hummed(hz, 4.0, int(hz)) for hz in (220.0, 277.2, 329.6))
    refused = {
        write_wav(tmp_path / "silence.wav", np.zeros(3 * RATE_HZ)): "silent",
        write_wav(tmp_path / "music.wav", np.asarray(chord)): "must be heard speaking",
        write_wav(tmp_path / "short.wav", hummed(220, 0.2, 0)): "0.20 s",
        write_wav(tmp_path / "slow.wav", hummed(220, 3.0, 0), 2_000): "got 2000",
    }
    for path, reason in refused.items():
        with pytest.raises(BadInputError, match=reason):
            voice_probe(settings, path)


def test_files_without_sound_are_refused(settings: Settings, shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.mp3").write_bytes(np.random.default_rng(0).bytes(5000))
    for path in (tmp_path / "noise.mp3", shared_data / "video" / "pets_view001_a.mp4"):
        with pytest.raises(UnreadableMediaError):
            voice_probe(settings, path)
    with pytest.raises(NotFoundError, match="must exist"):
        voice_probe(settings, tmp_path / "gone.wav")
