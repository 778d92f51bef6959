"""Whose turn is it: scenes composed of clips of one talking face each, with the sound of one of them or of somebody out of view.

One, two or three faces stand side by side. Those who are not heard go on with their own words ("own"), with their own words moved in time
("shifted"), backwards ("reversed") or hold still ("still"). Person boxes are the cells of the scene: the faces fill them, and what is
measured is turns, lips and attribution, not detection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.blazeface import FoundFaces
from models.lips import FaceFinder
from pipeline.errors import NotFoundError, UnreadableMediaError
from pipeline.ports import Capture, VoiceEncoder
from pipeline.types import Camera, Embedding, Frame, Sound
from pipeline.voice.listening import Listening

Float32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]

RATE_HZ = 16_000
START_NS = 1_700_000_000_000_000_000
MANNERS = ("own", "shifted", "reversed", "still")
SHIFT = 0.4  # of a clip's length
MOST_VISIBLE = 3
STRANGER_S = 3.0
STRANGER_FROM_S = 1.0  # into a recording: the voice is there
LEADS_S = (0.0, 0.25, 0.5, 0.75, 1.0)  # of silence before a stranger speaks, in turns
FOOTAGE = (".mpg", ".mpeg", ".mp4", ".avi", ".mov", ".mkv", ".webm")


@dataclass(frozen=True, slots=True, eq=False)
class Talking:
    """A clip of one talking face: pictures (T, H, W, 3), pictures a second, and its sound (N,) at 16 kHz."""

    name: str
    pictures: Pixels
    pictures_hz: float
    sound: Float32


@dataclass(frozen=True, slots=True)
class Scene:
    """What is put together: clips in view and how each plays; speaker: place of the one heard, None: nobody in view; sound: of whom."""

    cells: tuple[tuple[int, str], ...]
    speaker: int | None
    sound: int  # a clip, or past them a stranger's recording
    manner: str


@dataclass(slots=True)
class Tally:
    """Turns and what became of them."""

    turns: int = 0
    right: int = 0
    wrong: int = 0
    silent_scenes: int = 0  # no turn was found

    def add(self, other: Tally) -> None:
        self.turns += other.turns
        self.right += other.right
        self.wrong += other.wrong
        self.silent_scenes += other.silent_scenes


@dataclass(slots=True)
class RememberedVoices:
    """A VoiceEncoder that is asked each question once: scenes share sounds."""

    voice: VoiceEncoder
    answers: dict[bytes, Any] = field(default_factory=dict)
    space: str = field(init=False)

    def __post_init__(self) -> None:
        self.space = self.voice.space

    def activity(self, samples: Float32) -> Float32:
        """See ports.VoiceEncoder."""
        found: Float32 = self._once("activity", samples, self.voice.activity)
        return found

    def overlap(self, samples: Float32) -> Float32:
        """See ports.VoiceEncoder."""
        found: Float32 = self._once("overlap", samples, self.voice.overlap)
        return found

    def encode(self, samples: Float32) -> Embedding:
        """See ports.VoiceEncoder."""
        made: Embedding = self._once("encode", samples, self.voice.encode)
        return made

    def _once(self, what: str, samples: Float32, ask: Callable[[Float32], Any]) -> Any:
        digest = hashlib.blake2b(what.encode() + samples.tobytes(), digest_size=16).digest()
        if digest not in self.answers:
            self.answers[digest] = ask(samples)
        return self.answers[digest]


@dataclass(slots=True)
class RememberedFaces:
    """Finds faces, in each picture once: scenes share clips."""

    faces: FaceFinder
    answers: dict[bytes, FoundFaces] = field(default_factory=dict)

    def find(self, bgr: Pixels) -> FoundFaces:
        """See models.lips.FaceFinder."""
        digest = hashlib.blake2b(bgr.tobytes(), digest_size=16).digest()
        if digest not in self.answers:
            self.answers[digest] = self.faces.find(bgr)
        return self.answers[digest]


def evaluate_attribution(
    talking: Path,
    voices: Path | None,
    read_clip: Callable[[Path], Talking],
    read_sound: Callable[[Path], Float32],
    listen: Callable[[Camera], Listening],
) -> dict[str, Any]:
    """Precision and recall of attribution by number of faces in view; see ``figures``. Raises NotFoundError for a folder without clips."""
    paths = sorted(path for path in talking.glob("*") if path.suffix.lower() in FOOTAGE)
    if len(paths) < 2:
        raise NotFoundError(f"--talking {talking} must hold clips of two talking faces or more, got {len(paths)}")
    clips = [read_clip(path) for path in paths]
    recordings = [read_sound(path) for path in _one_each(voices)] if voices is not None else []
    strangers = [_stranger(sound, LEADS_S[number % len(LEADS_S)]) for number, sound in enumerate(recordings)]
    results: dict[tuple[int, str, str], Tally] = {}
    for scene in scenes(len(clips), len(strangers)):
        tally = judge(scene, clips, strangers, listen)
        kind = "in_view" if scene.speaker is not None else "out_of_view"
        results.setdefault((len(scene.cells), kind, scene.manner), Tally()).add(tally)
    return {
        "clips": len(clips),
        "strangers": len(strangers),
        "pictures_hz": round(clips[0].pictures_hz, 2),
        **figures(results),
    }


def talking_clip(capture: Capture, path: Path) -> Talking:
    """All pictures and the sound of a clip; raises UnreadableMediaError for one without sound or with fewer than two pictures."""
    frames = list(capture.frames())
    pieces = [sound.samples for sound in capture.sounds()]
    if len(frames) < 2 or not pieces:
        raise UnreadableMediaError(f"{path} must hold pictures and sound, got {len(frames)} pictures and {len(pieces)} s of sound")
    lasted_s = (frames[-1].captured_at_ns - frames[0].captured_at_ns) / 1e9
    return Talking(path.stem, np.stack([frame.bgr for frame in frames]), (len(frames) - 1) / lasted_s, np.concatenate(pieces))


def scenes(clips: int, strangers: int) -> Iterator[Scene]:
    """Every face heard beside every choice of others, in each manner; and every choice of faces with the sound of a clip not in view
    and of a stranger, in turns."""
    for count in range(1, min(MOST_VISIBLE, clips) + 1):
        for speaker in range(clips):
            others = [clip for clip in range(clips) if clip != speaker]
            for manner in MANNERS if count > 1 else ("own",):
                for beside in combinations(others, count - 1):
                    place = (speaker + len(beside)) % count  # not always on the left
                    cells = [(clip, manner) for clip in beside]
                    cells.insert(place, (speaker, "own"))
                    yield Scene(tuple(cells), place, speaker, manner)
        for turn, (manner, shown) in enumerate(product(MANNERS, combinations(range(clips), count))):
            absent = [clip for clip in range(clips) if clip not in shown]
            sounds = [absent[turn % len(absent)]] if absent else []
            sounds += [clips + turn % strangers] if strangers else []
            for sound in sounds:
                yield Scene(tuple((clip, manner) for clip in shown), None, sound, manner)


def judge(scene: Scene, clips: Sequence[Talking], strangers: Sequence[Float32], listen: Callable[[Camera], Listening]) -> Tally:
    """What became of the turns of a scene."""
    camera = Camera("scene", "composed")
    listening = listen(camera)
    sound = clips[scene.sound].sound if scene.sound < len(clips) else strangers[scene.sound - len(clips)]
    films = [played(clips[clip], manner) for clip, manner in scene.cells]
    hz = clips[scene.cells[0][0]].pictures_hz
    length = min(len(film) for film in films)
    ids = [str(place) for place in range(len(films))]
    height, width = films[0].shape[1:3]
    boxes = np.asarray([[place * width, 0, (place + 1) * width, height] for place in range(len(films))], np.float32)
    pieces = [Sound("scene", START_NS + start * 62_500, sound[start : start + RATE_HZ], RATE_HZ) for start in range(0, len(sound), RATE_HZ)]
    spoken = []
    for number in range(length):
        at_ns = START_NS + round(number * 1e9 / hz)
        while pieces and pieces[0].started_at_ns <= at_ns:
            listening.hear(pieces.pop(0))
        picture = np.concatenate([_fitted(film[number], height, width) for film in films], axis=1)
        listening.see(Frame("scene", at_ns, picture, number), ids, boxes, [True] * len(ids))
        spoken += listening.ready(at_ns)
    spoken += listening.finish()
    tally = Tally(turns=len(spoken), silent_scenes=not spoken)
    for each in spoken:
        named = each.verdict.tracklet_id
        if named is not None:
            is_right = scene.speaker is not None and named == str(scene.speaker)
            tally.right += is_right
            tally.wrong += not is_right
    return tally


def played(clip: Talking, manner: str) -> Pixels:
    """The pictures of a clip as they are, moved in time, backwards, or the first alone."""
    if manner == "shifted":
        return np.roll(clip.pictures, round(SHIFT * len(clip.pictures)), axis=0)
    if manner == "reversed":
        return clip.pictures[::-1]
    if manner == "still":
        return np.broadcast_to(clip.pictures[:1], clip.pictures.shape)
    return clip.pictures


def figures(results: dict[tuple[int, str, str], Tally]) -> dict[str, Any]:
    """By number of faces in view and over all.

    precision_in_view: of the turns of somebody in view that were given to a face, those of the right one; recall: of all of them, those
    given to the right one (a scene without a turn is one that was missed); false_out_of_view: of the turns of somebody out of view, those
    given to a face; precision: of all turns given to a face, those of the right one, where as many turns are spoken in view as out of it;
    chance: the same of naming one of the faces by lot for every turn.
    """
    counts = sorted({count for count, _, _ in results})
    report: dict[str, Any] = {}
    for count in counts:
        report[f"visible_{count}"] = _figures({key: tally for key, tally in results.items() if key[0] == count})
    report["all"] = _figures(results)
    manners = sorted({manner for _, kind, manner in results if kind == "in_view"}, key=MANNERS.index)
    for manner in manners:
        chosen = {key: tally for key, tally in results.items() if key[2] == manner and (key[0] > 1 or manner == "own")}
        report[f"others_{manner}"] = _figures(chosen)
    return report


def _figures(results: dict[tuple[int, str, str], Tally]) -> dict[str, Any]:
    inside, outside = Tally(), Tally()
    by_lot = 0.0
    for (count, kind, _), tally in results.items():
        (inside if kind == "in_view" else outside).add(tally)
        by_lot += tally.turns / count if kind == "in_view" else 0.0
    turns = inside.turns + inside.silent_scenes
    right, wrong = inside.right / max(turns, 1), inside.wrong / max(turns, 1)
    stray = outside.wrong / max(outside.turns, 1)
    return {
        "turns_in_view": turns,
        "right": inside.right,
        "wrong": inside.wrong,
        "turns_out_of_view": outside.turns,
        "wrong_out_of_view": outside.wrong,
        "precision": _share(right, right + wrong + stray),
        "precision_in_view": _share(inside.right, inside.right + inside.wrong),
        "recall": _share(inside.right, turns),
        "false_out_of_view": _share(outside.wrong, outside.turns),
        "chance_precision": _share(by_lot, turns + turns if outside.turns else turns),
        "chance_recall": _share(by_lot, turns),
    }


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _fitted(picture: Pixels, height: int, width: int) -> Pixels:
    """The picture cut or padded to a cell."""
    cell = np.zeros((height, width, 3), np.uint8)
    cut = picture[:height, :width]
    cell[: cut.shape[0], : cut.shape[1]] = cut
    return cell


def _one_each(voices: Path) -> list[Path]:
    """One recording of every speaker."""
    folders = sorted(folder for folder in voices.iterdir() if folder.is_dir()) if voices.is_dir() else []
    chosen = [next(iter(sorted(path for path in folder.iterdir() if path.is_file())), None) for folder in folders]
    found = [path for path in chosen if path is not None]
    if not found:
        raise NotFoundError(f"--voices {voices} must hold a folder of recordings for each speaker, got none")
    return found


def _stranger(sound: Float32, lead_s: float) -> Float32:
    """A part of a recording, after ``lead_s`` of silence."""
    first = int(STRANGER_FROM_S * RATE_HZ)
    part = sound[first : first + int((STRANGER_S - lead_s) * RATE_HZ)]
    return np.concatenate([np.zeros(int(lead_s * RATE_HZ), np.float32), part])
