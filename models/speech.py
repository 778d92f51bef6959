"""Speech to words with Whisper, through faster-whisper (CTranslate2). The one home of ``faster_whisper``."""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from pipeline.errors import BadInputError, MissingDependencyError, NotFoundError

RATE_HZ = 16_000
SHORTEST_S = 0.2
LONGEST_S = 120.0
QUIETEST = 1e-4  # root mean square below which there is nothing: the 16-bit noise floor is a third of it
NO_SPEECH = 0.6  # Whisper's own estimate above which a piece it is unsure of is no speech
UNSURE = -1.0  # mean log-probability below which it is unsure
GARBLED = 2.4  # a text that compresses better than this repeats itself: an invention


class WhisperRecogniser:
    """The SpeechRecogniser port over a folder of CTranslate2 Whisper weights (config.json, model.bin, tokenizer.json, ...).

    The model is loaded at the first use. No prompt is ever given: attribute words in a prompt leak into the result.
    threads: of the CPU, for one utterance. Raises MissingDependencyError when faster-whisper is not installed.
    """

    def __init__(self, folder: Path, threads: int = 1, device: str = "cpu", compute_type: str = "int8") -> None:
        self._folder = folder
        self._threads = threads
        self._device = device
        self._compute_type = compute_type
        self._model: Any = None

    def transcribe(self, samples: NDArray[np.float32], rate_hz: int) -> str:
        """Mono float32 (N,) -1..1 -> words.

        Raises BadInputError when nothing was said, or when the sound is too short, too long or no number.
        """
        sound = prepared(samples, rate_hz)
        segments, _ = self._loaded().transcribe(
            sound,
            language="en",
            beam_size=5,
            temperature=0.0,  # one pass, the same words every time
            condition_on_previous_text=False,
            without_timestamps=True,
            vad_filter=True,
            vad_parameters={"min_silence_duration_ms": 500},
        )
        said = " ".join(segment.text.strip() for segment in segments if _is_speech(segment)).strip()
        if not any(letter.isalnum() for letter in said):
            raise BadInputError("nothing was said in this recording: speak closer to the microphone and try again")
        return said

    def _loaded(self) -> Any:
        if self._model is None:
            if not (self._folder / "model.bin").is_file():
                raise NotFoundError(f"speech weights must lie in {self._folder}: run  sightline weights fetch")
            try:
                from faster_whisper import WhisperModel
            except ImportError as error:
                raise MissingDependencyError("faster-whisper", "speech") from error
            self._model = WhisperModel(
                str(self._folder), device=self._device, compute_type=self._compute_type, cpu_threads=self._threads, local_files_only=True
            )
        return self._model


def prepared(samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """The sound at 16 kHz as float32 (M,); raises BadInputError where no words can be in it."""
    sound = np.asarray(samples, np.float32)
    if sound.ndim != 1 or rate_hz < 1000:
        raise BadInputError(f"sound must be mono float32 (N,) at 1000 Hz or more, got {sound.shape} at {rate_hz} Hz")
    if not np.isfinite(sound).all():
        raise BadInputError("sound must be finite numbers, got nan or infinity: the recording is damaged")
    length_s = len(sound) / rate_hz
    if not SHORTEST_S <= length_s <= LONGEST_S:
        raise BadInputError(f"a spoken description must last {SHORTEST_S} to {LONGEST_S:g} s, got {length_s:.2f} s")
    if float(np.sqrt(np.mean(sound * sound))) < QUIETEST:
        raise BadInputError("nothing was said in this recording: it is silent")
    if rate_hz != RATE_HZ:
        divisor = gcd(rate_hz, RATE_HZ)
        sound = np.asarray(resample_poly(sound, RATE_HZ // divisor, rate_hz // divisor), np.float32)
    return sound


def _is_speech(segment: Any) -> bool:
    """Whether a piece of the result was heard, not invented."""
    is_doubtful = segment.no_speech_prob > NO_SPEECH and segment.avg_logprob < UNSURE
    return not is_doubtful and segment.compression_ratio <= GARBLED
