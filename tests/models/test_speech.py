"""Speech to words."""

from __future__ import annotations

import builtins
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.speech import WhisperRecogniser, prepared
from pipeline.errors import BadInputError, MissingDependencyError, NotFoundError
from services.sound import read_sound

SECOND = np.sin(np.arange(16_000) * 0.05).astype(np.float32)


@pytest.fixture(scope="module")
def whisper(weights: Callable[[str], Path]) -> Path:
    """The folder of Whisper tiny.en."""
    pytest.importorskip("faster_whisper", reason="the speech extra is not installed")
    return weights("whisper-tiny-en")


def spoken(words: str, folder: Path) -> tuple[np.ndarray, int]:
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed: there is nobody to speak")
    subprocess.run(["espeak-ng", "-s", "150", "-w", str(folder / "said.wav"), words], check=True)
    return read_sound(folder / "said.wav")


def test_sound_is_brought_to_16_khz() -> None:
    assert len(prepared(SECOND, 8_000)) == 32_000
    assert len(prepared(SECOND, 16_000)) == 16_000
    assert len(prepared(SECOND[:11_025], 22_050)) == 8_000


@pytest.mark.parametrize(
    ("samples", "rate_hz", "message"),
    [
        (np.zeros(16_000, np.float32), 16_000, "nothing was said"),
        (SECOND[:100], 16_000, "must last 0.2 to 120 s, got 0.01"),
        (np.tile(SECOND, 130), 16_000, "got 130.00 s"),
        (np.full(16_000, np.nan, np.float32), 16_000, "finite"),
        (np.stack([SECOND, SECOND]), 16_000, "mono"),
        (SECOND, 10, "at 1000 Hz or more"),
    ],
    ids=["silence", "a click", "a speech", "not numbers", "stereo", "no rate"],
)
def test_sound_without_words_is_refused_before_the_model_is_loaded(samples: np.ndarray, rate_hz: int, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        WhisperRecogniser(Path("nowhere")).transcribe(samples, rate_hz)


def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="sightline weights fetch"):
        WhisperRecogniser(tmp_path).transcribe(SECOND, 16_000)


def test_a_missing_library_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    plain_import = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "faster_whisper":
            raise ImportError(name)
        return plain_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=r"sightline\[speech\]"):
        WhisperRecogniser(tmp_path).transcribe(SECOND, 16_000)


def test_a_spoken_description_is_understood(whisper: Path, tmp_path: Path) -> None:
    samples, rate_hz = spoken("a woman wearing a long black coat and blue jeans", tmp_path)
    heard = WhisperRecogniser(whisper).transcribe(samples, rate_hz).lower()
    assert "black coat" in heard
    assert "blue jeans" in heard


def test_noise_and_hum_are_no_words(whisper: Path) -> None:
    recogniser = WhisperRecogniser(whisper)
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    for sound in (noise, 0.3 * np.tile(SECOND, 2)):
        with pytest.raises(BadInputError, match="nothing was said"):
            recogniser.transcribe(sound, 16_000)
