"""`sightline evaluate voices`: how well a few seconds of a voice find the same speaker, as recorded and as sound comes worse.

voices: SPEAKER/*.{flac,wav,mp3,...}, one folder per speaker, which may hold more folders; every clip is searched among all others (leave
one out). Conditions: clean; short (the loudest 1.5 s); babble (up to six of the other speakers at once, 5 dB below); telephone (300 to
3400 Hz at 8 kHz). Each is measured with both sides in it, and ("against_clean") as a probe among clips as recorded. What is random is
drawn from a fixed seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import sound_conditions as conditions
from pipeline.errors import BadInputError, NotFoundError
from pipeline.ports import VoiceEncoder
from services.key_figures import key_figures, samples_of

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Booleans = NDArray[np.bool_]
Reader = Callable[[Path], Float32]
Change = Callable[[int], Float32]

SOUNDS = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma")
RATE_HZ = 16_000
SHORT_S = 1.5
BABBLE_DB = 5.0
BABBLE_VOICES = 6
CLEAN = "clean"
NOTHING = -1.0  # the similarity of a clip in which no voice was found to those of others
NEVER = -2.0  # and to those of its own speaker: behind everybody else's, so that it is never found by the order of a tie


def clips_of(folder: Path) -> list[tuple[Path, str]]:
    """Every sound file of DIR/<speaker>/ with its speaker; raises NotFoundError when there is none."""
    found = samples_of(folder, SOUNDS)
    if not found:
        raise NotFoundError(f"{folder} must hold a folder of sound files per speaker ({', '.join(SOUNDS)}), found none")
    return found


def evaluate_voices(voices: Path, encoder: VoiceEncoder, read: Reader, threshold: float, dump: Path | None = None) -> dict[str, Any]:
    """The figures of ``voices``: those of clean clips, and of every condition.

    read: the samples of a file, mono at 16 kHz; threshold: the cosine at which the same and another speaker are equally likely by the
    calibration. dump: similarities of every condition, and labels (.npz). "not_heard": clips of a condition in which no voice was found;
    they stay in as never found. "unreadable": files that do not decode; they are left out. "real_time_factor": CPU seconds a second of
    sound. Raises NotFoundError or BadInputError when too little is left.
    """
    started_s = time.monotonic()
    clips, sounds, unreadable = _read_all(clips_of(voices), read)
    if dump is not None:
        dump.parent.mkdir(parents=True, exist_ok=True)
    speaker = np.array([name for _, name in clips])
    names, counts = np.unique(speaker, return_counts=True)
    if len(names) < 2 or counts.max() < 2:
        broken = f"; {len(unreadable)} files do not decode: {unreadable[0]}" if unreadable else ""
        most = counts.max(initial=0)
        raise BadInputError(f"{voices} must hold two speakers or more, one with two clips or more, got {len(names)} and {most}{broken}")
    encoding_s = time.process_time()
    clean = _encoded(encoder, lambda index: sounds[index], len(clips))  # (N, D)
    encoding_s = time.process_time() - encoding_s
    if np.isnan(clean[:, 0]).all():
        _name_what_is_wrong(encoder, clips[0][0], sounds[0])
    vectors = {CLEAN: clean} | {name: _encoded(encoder, change, len(clips)) for name, change in _changes(sounds, speaker).items()}

    is_match, is_own = speaker[:, None] == speaker[None], np.eye(len(clips), dtype=bool)
    kept: dict[str, Float32] = {}
    measured: dict[str, Any] = {}
    for name, made in vectors.items():
        both, against = _similarity(made, made, is_match), _similarity(made, clean, is_match)
        kept |= {f"similarity_{name}": both.astype(np.float32), f"similarity_{name}_against_clean": against.astype(np.float32)}
        measured[name] = {**key_figures(both, is_match, is_own, speaker, threshold), "not_heard": int(np.isnan(made[:, 0]).sum())}
        if name != CLEAN:
            measured[name]["against_clean"] = key_figures(against, is_match, is_own, speaker, threshold)
    if dump is not None:
        paths = np.array([str(path) for path, _ in clips])
        labels: dict[str, Any] = {"query_person": speaker, "gallery_person": speaker, "query": paths, "gallery": paths}
        np.savez(dump, similarity=kept["similarity_clean"], **(labels | kept))
    length_s = sum(len(sound) for sound in sounds) / RATE_HZ
    return {
        **measured[CLEAN],
        "conditions": measured,
        "threshold": round(threshold, 4),
        "speakers": len(names),
        "clips": len(clips),
        "unreadable": unreadable,
        "sound_s": round(length_s, 1),
        "real_time_factor": round(encoding_s / length_s, 4),
        "space": encoder.space,
        "elapsed_s": round(time.monotonic() - started_s, 2),
    }


def _changes(sounds: Sequence[Float32], speaker: NDArray[np.str_]) -> dict[str, Change]:
    """What makes clip number i worse, by condition."""

    def crowd(index: int) -> Float32:
        random = np.random.default_rng([index, 5])
        others = np.unique(speaker[speaker != speaker[index]])
        chosen = random.permutation(others)[:BABBLE_VOICES]
        voices = [sounds[random.choice(np.flatnonzero(speaker == name))] for name in chosen]
        return conditions.with_noise(sounds[index], conditions.babble(voices, len(sounds[index]), random), BABBLE_DB)

    return {
        "short_1.5_s": lambda index: conditions.piece(sounds[index], SHORT_S),
        "babble_5_dB": crowd,
        "telephone": lambda index: conditions.telephone(sounds[index]),
    }


def _encoded(encoder: VoiceEncoder, change: Change, count: int) -> Float32:
    """Vectors (N, D) of the changed clips; nan where no voice was found."""
    found: list[Float32 | None] = []
    for index in range(count):
        try:
            found.append(encoder.encode(change(index)).vector)
        except BadInputError:
            found.append(None)
    heard = next((vector for vector in found if vector is not None), None)
    nothing = np.full(1 if heard is None else len(heard), np.nan, np.float32)
    return np.stack([nothing if vector is None else vector for vector in found])


def _similarity(probes: Float32, gallery: Float32, is_match: Booleans) -> Float64:
    """(Q, G); NOTHING and NEVER where one of the two was not heard."""
    unheard = np.where(is_match, NEVER, NOTHING)
    if probes.shape[1] != gallery.shape[1]:  # none was heard
        return unheard
    similarity = (probes @ gallery.T).astype(np.float64)
    return np.where(np.isnan(similarity), unheard, similarity)


def _read_all(clips: Sequence[tuple[Path, str]], read: Reader) -> tuple[list[tuple[Path, str]], list[Float32], list[str]]:
    """The clips that decode, their samples, and what is wrong with each of the others."""
    known: list[tuple[Path, str]] = []
    sounds: list[Float32] = []
    unreadable: list[str] = []
    for path, speaker in clips:
        try:
            sound = read(path)
        except BadInputError as error:
            unreadable.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        if not len(sound):
            unreadable.append(f"{path}: holds no sound")
            continue
        known.append((path, speaker))
        sounds.append(sound)
    return known, sounds, unreadable


def _name_what_is_wrong(encoder: VoiceEncoder, path: Path, sound: Float32) -> None:
    """Raise what the encoder refuses a clip for, with its file."""
    try:
        encoder.encode(sound)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from error
