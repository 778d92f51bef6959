"""A sound file as samples: WAV by the standard library, everything else by a reader that the wiring gives."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import NotFoundError, UnreadableMediaError

Reader = Callable[[Path], tuple[NDArray[np.float32], int]]


def read_sound(path: Path, otherwise: Reader | None = None) -> tuple[NDArray[np.float32], int]:
    """The samples, mono float32 (N,) -1..1, and their rate in Hz; ``otherwise`` reads what is no plain WAV.

    Raises NotFoundError, or UnreadableMediaError for a file without sound.
    """
    if not path.is_file():
        raise NotFoundError(f"sound file {path} must exist: check the path")
    try:
        return _read_wav(path)
    except (wave.Error, EOFError) as error:
        if otherwise is None:
            raise UnreadableMediaError(f"sound file {path} must be a WAV with plain samples: {error or 'it ends too early'}") from error
        return otherwise(path)


def _read_wav(path: Path) -> tuple[NDArray[np.float32], int]:
    with wave.open(str(path), "rb") as file:
        channels, width, rate_hz = file.getnchannels(), file.getsampwidth(), file.getframerate()
        data = file.readframes(file.getnframes())
    if not data or rate_hz <= 0:
        raise UnreadableMediaError(f"sound file {path} must hold samples, got {len(data)} bytes at {rate_hz} Hz")
    data = data[: len(data) // (width * channels) * (width * channels)]  # a file cut short ends within a sample
    samples = _as_float(data, width).reshape(-1, channels).mean(axis=1, dtype=np.float32)  # (N,)
    return samples, rate_hz


def _as_float(data: bytes, width: int) -> NDArray[np.float32]:
    """Little-endian PCM of ``width`` bytes a sample as float32 -1..1, channels interleaved."""
    if width == 1:  # the one unsigned width
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128.0) / np.float32(128.0)
    if width == 3:
        bytes_ = np.frombuffer(data, np.uint8).reshape(-1, 3)
        shifted = np.zeros((len(bytes_), 4), np.uint8)
        shifted[:, 1:] = bytes_
        return (shifted.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    whole = np.frombuffer(data, f"<i{width}")
    return (whole / 2.0 ** (8 * width - 1)).astype(np.float32)
