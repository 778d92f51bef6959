"""Tracklets made of real faces, bodies and voices, for training and measuring the associative network.

Every sample is a real picture or recording, altered as a camera and a room would alter it (small, blurred, dark, noisy, packed, covered;
short, in babble, over the telephone, in an echoing room) and then put through the product's own encoders, which also give its quality.
Which face goes with which body and which voice is invented: the sets show different people, so pairings across modalities are synthetic.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models import sound_conditions as conditions
from models.sound_conditions import RATE_HZ
from pipeline.embed import BestShots, crowding, occlusions, pool
from pipeline.errors import BadInputError, NotFoundError, UnreadableMediaError
from pipeline.ports import FaceEncoder, LookEncoder, VoiceEncoder
from pipeline.types import BODY, FACE, VOICE, Embedding

Pixels = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Random = np.random.Generator
ReadSound = Callable[[Path], Float32]  # mono at 16 kHz

PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
SOUNDS = (".flac", ".wav", ".mp3", ".ogg")
CLIPS = (".mpg", ".mp4", ".avi", ".mkv")
LOOSE = "stills"  # a folder of single pictures below faces/: whom each shows is the first word of its name
BATCH = 64
TALKING_FRAMES = 6
CLIP_STEP, CLIP_FRAME_NS, CLIP_CONFIDENCE = 3, 40_000_000, 0.85
LEAST_SOUND_S = 0.6
BABBLERS = 4
MOST_BODIES = 200
ROUNDS = {FACE: 60, BODY: 8, VOICE: 60}
DAY_S, VISIT_S = 86_400.0, 7_200.0


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A picture of one person, BGR uint8 (h, w, 3). take: 0..62, the same for what was taken in one moment; of bodies, by one camera."""

    person: str
    take: int
    bgr: Pixels


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """A recording of one person, mono float32 (N,) at 16 kHz. take: as of Shown."""

    person: str
    take: int
    samples: Float32


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """N vectors of one modality and space: vectors float32 (N, D) of length 1, quality (N,) 0..1, person (N,), takes int64 (N,): a bit for
    each take behind it. Two samples of one person that share a take are no fair pair."""

    modality: str
    space: str
    vectors: Float32
    quality: NDArray[np.float64]
    person: NDArray[np.str_]
    takes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.person)

    def where(self, keep: NDArray[np.bool_] | NDArray[np.intp]) -> Samples:
        """The samples at a mask or at indices."""
        return Samples(self.modality, self.space, self.vectors[keep], self.quality[keep], self.person[keep], self.takes[keep])

    def of(self, people: Collection[str]) -> Samples:
        """The samples of some people."""
        return self.where(np.isin(self.person, sorted(people)))

    @property
    def people(self) -> list[str]:
        return sorted(set(self.person.tolist()))


def save_samples(samples: Samples, path: Path) -> None:
    """Write as .npz, to be read by ``load_samples``."""
    fields = {name: getattr(samples, name) for name in ("vectors", "quality", "person", "takes")}
    np.savez_compressed(path, modality=samples.modality, space=samples.space, **fields)


def load_samples(path: Path) -> Samples:
    """What ``save_samples`` wrote. Raises NotFoundError, BadInputError."""
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = (held[name] for name in ("vectors", "quality", "person", "takes"))
            return Samples(str(held["modality"]), str(held["space"]), *arrays)
    except FileNotFoundError as error:
        raise NotFoundError(f"samples {path} must exist: make them first") from error
    except (OSError, KeyError, ValueError) as error:
        raise BadInputError(f"{path.name} must be samples as training writes them: {error}") from error


# ------------------------------------------------------------------------------------------------- reading folders


def people_below(folder: Path, endings: Collection[str]) -> dict[str, list[Path]]:
    """Person -> files: FOLDER/<person>/*, or FOLDER/<set>/<person>/*; a set is a folder that holds folders. {} where there is none."""
    found: dict[str, list[Path]] = {}
    for inner in sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []:
        deeper = sorted(each for each in inner.iterdir() if each.is_dir())
        for person in deeper or ([] if inner.name == LOOSE else [inner]):
            files = sorted(each for each in person.iterdir() if each.suffix.lower() in endings)
            if files:
                found[str(person.relative_to(folder))] = files
    return found


def face_pictures(faces: Path, talking: Path | None = None) -> list[Shown]:
    """Pictures of faces. Those of ``stills`` and of clips in ``talking`` are one take a person: they serve as others."""
    shown = []
    for who, files in people_below(faces, PICTURES).items():
        shown += [Shown(who, take % 63, read_picture(path)) for take, path in enumerate(files)]
    single = sorted((faces / LOOSE).iterdir()) if (faces / LOOSE).is_dir() else []
    for path in (each for each in single if each.suffix.lower() in PICTURES):
        shown.append(Shown(f"{LOOSE}/{re.split(r'[-_0-9.]', path.name)[0]}", 0, read_picture(path)))
    for path in _clips(talking):
        frames = list(clip_frames(path))
        shown += [Shown(f"talking/{path.stem}", 0, frame) for frame in frames[:: max(1, len(frames) // TALKING_FRAMES)][:TALKING_FRAMES]]
    return shown


def body_crops(persons: Path, people: Collection[str] | None = None) -> list[Shown]:
    """Crops persons/<person>/<camera><n>.jpg of all or some people; the take is the camera."""
    found = people_below(persons, PICTURES)
    wanted = {who: files for who, files in found.items() if people is None or who in people}
    return [Shown(who, ord(path.name[0].lower()) % 32, read_picture(path)) for who, files in wanted.items() for path in files]


def voice_clips(voices: Path, read: ReadSound, talking: Path | None = None) -> list[Heard]:
    """Recordings voices/<speaker>/*; a clip in ``talking`` is a speaker of its own, its halves two takes."""
    heard = []
    for who, files in people_below(voices, SOUNDS).items():
        heard += [Heard(who, take % 63, read(path)) for take, path in enumerate(files)]
    for path in _clips(talking):
        samples = read(path)
        heard += [Heard(f"talking/{path.stem}", take, half) for take, half in enumerate(np.array_split(samples, 2))]
    return heard


def read_picture(path: Path) -> Pixels:
    """BGR uint8 (h, w, 3). Raises UnreadableMediaError."""
    picture = cv2.imread(str(path))
    if picture is None:
        raise UnreadableMediaError(f"{path} must be a picture that can be decoded")
    return np.asarray(picture, np.uint8)


def clip_frames(path: Path) -> Iterator[Pixels]:
    """The frames of a clip, BGR uint8 (h, w, 3)."""
    capture = cv2.VideoCapture(str(path))
    while True:
        is_there, frame = capture.read()
        if not is_there:
            break
        yield np.asarray(frame, np.uint8)
    capture.release()


def _clips(folder: Path | None) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.suffix.lower() in CLIPS) if folder is not None and folder.is_dir() else []


# ------------------------------------------------------------------------------------------------- what cameras and rooms do


@dataclass(frozen=True, slots=True)
class View:
    """How a camera saw a whole tracklet: side_px of the face or height_px of the body; the rest as ``altered`` uses it."""

    size_px: float
    blur_px: float
    gain: float
    noise: float
    jpeg: int

    @classmethod
    def drawn(cls, least_px: float, most_px: float, random: Random) -> View:
        """A third of the views are good but for their size; sizes are drawn evenly on a log scale."""
        size = float(np.exp(random.uniform(np.log(least_px), np.log(most_px))))
        if random.random() < 1 / 3:
            return cls(size, 0.0, 1.0, 1.0, 90)
        blur = float(random.choice([0.0, random.uniform(0.3, 2.0)]))
        gain = float(random.choice([1.0, random.uniform(0.2, 0.7), random.uniform(1.2, 1.7)]))
        return cls(size, blur, gain, float(random.uniform(0, 12)), int(random.integers(15, 90)))

    def altered(self, bgr: Pixels, scale: float, random: Random) -> Pixels:
        """The picture scaled, blurred, too dark or too bright, noisy and packed as JPEG."""
        size = (max(4, round(bgr.shape[1] * scale)), max(4, round(bgr.shape[0] * scale)))
        made = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        if self.blur_px > 0:
            made = cv2.GaussianBlur(made, (0, 0), self.blur_px)
        noisy = made.astype(np.float32) * self.gain + random.normal(0, self.noise, made.shape)
        packed = cv2.imencode(".jpg", np.clip(noisy, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, self.jpeg])[1]
        return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)


@dataclass(frozen=True, slots=True)
class Room:
    """How a voice was recorded. babble_db, noise_db: speech over it, inf for none; echo_s: time to fall by 60 dB, 0 for none."""

    length_s: float
    babble_db: float
    noise_db: float
    echo_s: float
    is_telephone: bool

    @classmethod
    def drawn(cls, random: Random) -> Room:
        """A third of the rooms are good but for the length of the clip."""
        length = float(np.exp(random.uniform(np.log(LEAST_SOUND_S), np.log(10.0))))
        if random.random() < 1 / 3:
            return cls(length, np.inf, np.inf, 0.0, False)
        babble = float(random.choice([np.inf, random.uniform(0, 20)]))
        noise = float(random.choice([np.inf, random.uniform(0, 25)]))
        return cls(length, babble, noise, float(random.choice([0.0, random.uniform(0.2, 0.7)])), bool(random.random() < 0.25))

    def altered(self, samples: Float32, others: Sequence[Float32], random: Random) -> Float32:
        """A stretch of the recording, in the room, with babble of ``others`` and noise over it, in the band; float32 (N,)."""
        length = min(len(samples), round(self.length_s * RATE_HZ))
        start = int(random.integers(len(samples) - length + 1))
        made = samples[start : start + length]
        if self.echo_s > 0:
            made = conditions.room(made, self.echo_s, 0.0, random)
        if np.isfinite(self.babble_db) and others:
            crowd = [others[row] for row in random.integers(len(others), size=BABBLERS)]
            made = conditions.with_noise(made, conditions.babble(crowd, length, random), self.babble_db)
        if np.isfinite(self.noise_db):
            made = conditions.with_noise(made, conditions.pink_noise(length, random), self.noise_db)
        if self.is_telephone:
            made = conditions.telephone(made, companded=bool(random.random() < 0.5))
        return np.clip(made, -1, 1).astype(np.float32)


# ------------------------------------------------------------------------------------------------- through the encoders


def face_samples(shown: Sequence[Shown], encoder: FaceEncoder, rounds: int, random: Random) -> Samples:
    """``rounds`` tracklets a person of one to three pictures each; where the encoder's gate closes there is none.

    Pictures with no face or several are left out. Faces are 14 to 120 px wide.
    """
    side = []
    for each in shown:
        found = encoder.faces(each.bgr)
        clear = [face for face in found if face.confidence > 0.8]
        side.append(float(min(clear[0].xyxy[2:] - clear[0].xyxy[:2])) if len(clear) == 1 else 0.0)
    rows = _Rows(FACE, encoder.space)
    for person, own in _by_person(shown, [width > 0 for width in side]).items():
        for _ in range(rounds):
            view = View.drawn(14, 120, random)
            chosen = random.choice(own, min(len(own), int(random.integers(1, 4))), replace=False)
            seen = []
            for row in chosen:
                found = encoder.faces(view.altered(shown[row].bgr, view.size_px / side[row], random))
                if found and found[0].embedding is not None:
                    seen.append((shown[row].take, found[0].embedding))
            rows.add(person, seen)
    return rows.samples()


def body_samples(shown: Sequence[Shown], looks: LookEncoder, rounds: int, random: Random) -> list[Samples]:
    """``rounds`` tracklets of one to four crops for every person and camera, in each of the encoder's spaces (body, text-aligned).

    Bodies are 32 to 240 px high; a third are partly covered by somebody else or cut off, which the tracker is told of half the time.
    """
    drawn: list[tuple[str, int, list[tuple[Pixels, float]]]] = []
    for (person, take), own in _by_person_and_take(shown).items():
        for _ in range(rounds):
            view = View.drawn(32, 240, random)
            chosen = random.choice(own, min(len(own), int(random.integers(1, 5))), replace=False)
            shots = [_shot(shown[row].bgr, view, shown, random) for row in chosen]
            drawn.append((person, take, [shot for shot in shots if shot is not None]))
    return _encoded(drawn, looks)


def _encoded(drawn: Sequence[tuple[str, int, Sequence[tuple[Pixels, float]]]], looks: LookEncoder) -> list[Samples]:
    """Samples of tracklets (person, take, crops with their quality), in each of the encoder's spaces."""
    pictures = [crop for _, _, shots in drawn for crop, _ in shots]
    parts = [looks.encode(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH)]
    made = []
    for modality, space in looks.spaces.items():
        rows, at = _Rows(modality, space), 0
        values = np.concatenate([part[modality].values for part in parts]) if parts else np.zeros((0, 1), np.float32)  # (shots, D)
        for person, take, shots in drawn:
            rows.add(person, [(take, Embedding(modality, space, values[at + n], quality)) for n, (_, quality) in enumerate(shots)])
            at += len(shots)
        made.append(rows.samples())
    return made


def voice_samples(heard: Sequence[Heard], encoder: VoiceEncoder, rounds: int, random: Random) -> Samples:
    """``rounds`` turns of every recording of a person, as many for those with fewer; where the encoder hears no voice there is none."""
    rows = _Rows(VOICE, encoder.space)
    for person, own in _by_person(heard, [len(each.samples) > LEAST_SOUND_S * RATE_HZ for each in heard]).items():
        others = [each.samples for each in heard if each.person != person]
        for _ in range(rounds):
            row = int(random.choice(own))
            try:
                embedding = encoder.encode(Room.drawn(random).altered(heard[row].samples, others, random))
            except BadInputError:
                continue
            rows.add(person, [(heard[row].take, embedding)])
    return rows.samples()


def clip_samples(video: Path, boxes: Path, looks: LookEncoder, pieces: int = 4) -> list[Samples]:
    """What the product would keep of labelled CCTV, every track cut into ``pieces`` in time, each a take, in each of the encoder's spaces.

    boxes: MOT text (frame, id, left, top, width, height, ...). One scene and hour: people who look alike because of place and light.
    Raises BadInputError for a file that is none.
    """
    try:
        rows = np.loadtxt(boxes, delimiter=",", usecols=range(6), ndmin=2)
    except ValueError as error:
        raise BadInputError(f"{boxes.name} must hold frame, id, left, top, width, height a line: {error}") from error
    first = {track: rows[rows[:, 1] == track, 0].min() for track in np.unique(rows[:, 1])}
    length = {track: rows[rows[:, 1] == track, 0].max() - begun + 1 for track, begun in first.items()}
    kept: dict[tuple[str, int], BestShots] = defaultdict(lambda: BestShots(4))
    for number, frame in enumerate(clip_frames(video), 1):
        seen = rows[rows[:, 0] == number] if number % CLIP_STEP == 0 else rows[:0]
        xyxy = np.concatenate([seen[:, 2:4], seen[:, 2:4] + seen[:, 4:6]], axis=1).astype(np.float32)
        hidden = 1 - (1 - occlusions(xyxy)) * (1 - crowding(xyxy))
        for place, track in enumerate(seen[:, 1]):
            piece = int((number - first[track]) * pieces // length[track])
            shots = kept[f"{video.stem}/{int(track)}", piece]
            shots.offer(frame, number * CLIP_FRAME_NS, xyxy[place], CLIP_CONFIDENCE, float(hidden[place]))
    drawn = [(who, piece, [(shot.crop, shot.quality) for shot in shots.shots]) for (who, piece), shots in kept.items()]
    return _encoded(drawn, looks)


class _Rows:
    """Samples while they are made."""

    def __init__(self, modality: str, space: str) -> None:
        self._modality, self._space = modality, space
        self._rows: list[tuple[Float32, float, str, int]] = []

    def add(self, person: str, seen: Sequence[tuple[int, Embedding]]) -> None:
        """One tracklet: takes and vectors, pooled as the embed stage does."""
        pooled = pool([e.vector for _, e in seen], [e.quality for _, e in seen], self._modality, self._space)
        if pooled is not None:
            takes = int(np.bitwise_or.reduce([1 << take for take, _ in seen]))
            self._rows.append((pooled.vector, pooled.quality, person, takes))

    def samples(self) -> Samples:
        if not self._rows:
            raise BadInputError(f"training needs samples of modality {self._modality}, the encoder found none: check the folder")
        vectors, quality, person, takes = zip(*self._rows, strict=True)
        return Samples(
            self._modality, self._space, np.stack(vectors), np.array(quality, np.float64), np.array(person), np.array(takes, np.int64)
        )


def _by_person(items: Sequence[Shown | Heard], keep: Sequence[bool]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for row, (item, kept) in enumerate(zip(items, keep, strict=True)):
        if kept:
            found[item.person].append(row)
    return found


def _by_person_and_take(shown: Sequence[Shown]) -> dict[tuple[str, int], list[int]]:
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row, each in enumerate(shown):
        found[each.person, each.take].append(row)
    return found


def _shot(bgr: Pixels, view: View, others: Sequence[Shown], random: Random) -> tuple[Pixels, float] | None:
    """A crop as the tracker would keep it, and its quality as the embed stage gives it; None where that is 0."""
    made = view.altered(bgr, view.size_px / bgr.shape[0], random)
    height, width = made.shape[:2]
    hidden, whole_px = 0.0, float(height)
    trouble, is_told = random.random(), random.random() < 0.5
    if trouble < 1 / 6:  # covered from one side or from below
        share = float(random.uniform(0.15, 0.6))
        other = cv2.resize(others[int(random.integers(len(others)))].bgr, (width, height))
        if random.random() < 0.5:
            made[:, : round(width * share)] = other[:, : round(width * share)]
        else:
            made[round(height * (1 - share)) :] = other[: height - round(height * (1 - share))]
        hidden = share if is_told else 0.0
    elif trouble < 1 / 3:  # legs outside of the frame, or a box that is too small
        made = made[: max(4, round(height * random.uniform(0.4, 0.85)))]
        whole_px = float(height) if is_told else float(made.shape[0])
    box = np.array([0, 0, width, whole_px], np.float32)
    confidence = float(random.uniform(0.6, 0.95))
    shot = BestShots(1).offer(np.ascontiguousarray(made), 0, box, confidence, hidden)
    return (shot.crop, shot.quality) if shot is not None else None


# ------------------------------------------------------------------------------------------------- synthetic tracklets


@dataclass(frozen=True, slots=True, eq=False)
class Tracklets:
    """N tracklets. person: (N,); face: (N,), whose face the person got, "" for none; row: by modality, int64 (N,), the sample each has, -1
    for none; at_s: (N,) when, in seconds."""

    person: NDArray[np.str_]
    face: NDArray[np.str_]
    row: Mapping[str, NDArray[np.int64]]
    at_s: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.person)


@dataclass(frozen=True, slots=True)
class Plan:
    """How tracklets are composed. each: a person's tracklets; share: by modality, in what part of them it is seen or heard (1 where not
    named); outfits: bodies a person wears, one a day."""

    each: int = 12
    share: Mapping[str, float] = field(default_factory=lambda: {FACE: 0.5, VOICE: 0.5})
    outfits: int = 1


def composed(samples: Mapping[str, Samples], people: int, plan: Plan, random: Random, name: str = "person") -> Tracklets:
    """Tracklets of ``people`` invented people, each of other bodies; as many have a face and a voice as there are of those.

    samples: by modality, of which every modality's people are told apart by name. Samples are drawn without regard to quality, so good
    and bad ones mix. Raises ValueError for too few bodies.
    """
    folk = {modality: random.permutation(own.people).tolist() for modality, own in samples.items()}
    if people * plan.outfits > len(folk[BODY]):
        raise ValueError(f"composed needs {people * plan.outfits} bodies for {people} people, got {len(folk[BODY])}")
    count = people * plan.each
    row = {modality: np.full(count, -1, np.int64) for modality in samples}
    day = np.concatenate([np.arange(plan.each) * plan.outfits // plan.each for _ in range(people)] or [np.zeros(0, np.int64)])
    for modality, own in samples.items():
        dressed = plan.outfits if modality == BODY else 1
        for number in range(min(people * dressed, len(folk[modality]))):
            person, outfit = divmod(number, dressed)
            places = person * plan.each + np.flatnonzero((dressed == 1) | (day[person * plan.each : (person + 1) * plan.each] == outfit))
            places = random.permutation(places)[: round(len(places) * plan.share.get(modality, 1.0))]
            mine = np.flatnonzero(own.person == folk[modality][number])
            row[modality][places] = random.choice(mine, len(places), replace=len(mine) < len(places))
    faces = [*folk.get(FACE, []), *[""] * people][:people]
    return Tracklets(
        np.repeat([f"{name} {number}" for number in range(people)], plan.each),
        np.repeat(np.array(faces, np.str_), plan.each),
        row,
        day * DAY_S + random.uniform(0, VISIT_S, count),
    )


def joined(
    first: Tracklets, first_of: Mapping[str, Samples], second: Tracklets, second_of: Mapping[str, Samples]
) -> tuple[Tracklets, dict[str, Samples]]:
    """Two sets of tracklets as one, and the samples of both as one."""
    samples, row = {}, {}
    for modality, own in first_of.items():
        other = second_of[modality]
        columns = (np.concatenate([getattr(own, name), getattr(other, name)]) for name in ("vectors", "quality", "person", "takes"))
        samples[modality] = Samples(modality, own.space, *columns)
        row[modality] = np.concatenate([first.row[modality], np.where(second.row[modality] < 0, -1, second.row[modality] + len(own))])
    person, face, at_s = (np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("person", "face", "at_s"))
    return Tracklets(person, face, row, at_s), samples


# ------------------------------------------------------------------------------------------------- all of it


@dataclass(frozen=True, slots=True)
class Encoders:
    """The product's encoders. faces: one or more spaces; looks: shipped; crop_looks, people: another training of it and the people that it
    never saw, for persons/ (None: ``looks``, and everybody)."""

    faces: Sequence[FaceEncoder]
    looks: LookEncoder
    voice: VoiceEncoder
    read_sound: ReadSound
    crop_looks: LookEncoder | None = None
    people: Collection[str] | None = None


def gathered(
    data: Path, encoders: Encoders, kept: Path | None = None, with_clips: bool = True, say: Callable[[str], None] = lambda text: None
) -> dict[str, list[Samples]]:
    """Samples of faces/, persons/ (MOST_BODIES people, drawn by chance), voices/, talking/ and labelled clips in video/, by what they
    are of; a labelled clip is NAME.mp4 with NAME.txt.

    kept: a folder where samples are written to, and read from when they are there.
    Raises NotFoundError, BadInputError, UnreadableMediaError.
    """
    talking = data / "talking"
    known = sorted(people_below(data / "persons", PICTURES)) if encoders.people is None else sorted(encoders.people)
    drawn = np.random.default_rng(2).permutation(known)[:MOST_BODIES].tolist()

    def faces(encoder: FaceEncoder) -> list[Samples]:
        return [face_samples(face_pictures(data / "faces", talking), encoder, ROUNDS[FACE], np.random.default_rng(1))]

    def bodies() -> list[Samples]:
        shown = body_crops(data / "persons", drawn)
        return body_samples(shown, encoders.crop_looks or encoders.looks, ROUNDS[BODY], np.random.default_rng(0))

    def voices() -> list[Samples]:
        heard = voice_clips(data / "voices", encoders.read_sound, talking)
        return [voice_samples(heard, encoders.voice, ROUNDS[VOICE], np.random.default_rng(4))]

    spaces = list(encoders.looks.spaces.values())
    makers: dict[str, tuple[list[str], Callable[[], list[Samples]]]] = {
        f"faces {encoder.space}": ([encoder.space], functools.partial(faces, encoder)) for encoder in encoders.faces
    }
    makers |= {"persons": (spaces, bodies), "voices": ([encoders.voice.space], voices)}
    for boxes in sorted((data / "video").glob("*.txt")) if with_clips else []:
        if (video := boxes.with_suffix(".mp4")).is_file():
            makers[f"clip {video.stem}"] = (spaces, functools.partial(clip_samples, video, boxes, encoders.looks))
    made = {}
    for name, (wanted, make) in makers.items():
        paths = [kept / f"{name.split(' ')[0] if name.startswith('faces') else name}.{space}.npz" for space in wanted] if kept else []
        if paths and all(path.exists() for path in paths):
            made[name] = [load_samples(path) for path in paths]
            continue
        say(f"{name}: encoding")
        made[name] = make()
        for path, samples in zip(paths, made[name], strict=False):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_samples(samples, path)
        say(f"{name}: {len(made[name][0])} samples of {len(made[name][0].people)} people")
    return made
