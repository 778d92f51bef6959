"""Sound files of every width, and what is none."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import NotFoundError, UnreadableMediaError
from services.adapters.pyav_capture import read_sound as read_film
from services.sound import read_sound

TONE = 0.5 * np.sin(np.arange(8000) * 2 * np.pi * 440 / 8000)


def write(path: Path, width: int, channels: int = 1) -> Path:
    scaled = TONE * (2.0 ** (8 * width - 1) - 1)
    if width == 1:
        data = (scaled + 128).astype(np.uint8).tobytes()
    elif width == 3:
        data = b"".join(int(value).to_bytes(3, "little", signed=True) for value in scaled)
    else:
        data = np.repeat(scaled.astype(f"<i{width}"), channels).tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(8000)
        file.writeframes(data)
    return path


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (2, 1), (2, 2), (3, 1), (4, 1)])
def test_a_wav_of_any_width_is_read(tmp_path: Path, width: int, channels: int) -> None:
    samples, rate_hz = read_sound(write(tmp_path / "a.wav", width, channels))
    assert (samples.dtype, samples.shape, rate_hz) == (np.float32, (8000,), 8000)
    assert np.abs(samples - TONE).max() < 0.02


def test_a_wav_that_was_cut_short_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 2)
    path.write_bytes(path.read_bytes()[:-1001])
    samples, _ = read_sound(path)
    assert len(samples) == 7499


def test_a_missing_file_an_empty_one_and_a_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.wav"):
        read_sound(tmp_path / "nowhere.wav")
    text = tmp_path / "text.wav"
    for content in (b"", b"this is no sound at all" * 20):
        text.write_bytes(content)
        for otherwise in (None, read_film):
            with pytest.raises(UnreadableMediaError, match=r"text\.wav"):
                read_sound(text, otherwise)


def test_a_film_is_read_for_its_sound(shared_data: Path) -> None:
    samples, rate_hz = read_sound(next((shared_data / "talking").glob("*.mpg")), otherwise=read_film)
    assert rate_hz == 16_000
    assert 0.5 < len(samples) / rate_hz < 10
    assert np.abs(samples).max() > 0.01
