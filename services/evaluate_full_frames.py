"""`sightline evaluate full-frames`: how well descriptions find their people in whole frames, one-stage beside two-stage.

A clip: a MOT file says who is where, JSON lines describe the people of clips: {"clip", "track", "twins": [...], "captions": [...]}.
A folder: JPEGs, ``truth.jsonl``: {"file", "people": [{"person", "xyxy", "visible"}]}, ``described.jsonl``: {"person", "captions"}.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.two_stage import TwoStage, cut_out
from pipeline.embed import with_box
from pipeline.errors import BadInputError, NotFoundError, UnreadableMediaError
from pipeline.evaluate.retrieval import best_in_frames, hit_table, intervals, lies_on, outcomes, ranked_box_hits, touching
from pipeline.evaluate.tracking import IdentifiedBoxes, average_precision, read_mot
from pipeline.ports import Capture, Detector, Retriever
from pipeline.types import Detections, Frame
from services.contact_sheet import BRIGHT, DIM, GREEN, PAGE, Colour, Place, draw_picture
from services.crops import to_jpeg
from services.typography import Ink, Pen

Pixels = NDArray[np.uint8]
Booleans = NDArray[np.bool_]
Float64 = NDArray[np.float64]

WELL_VISIBLE = 0.3  # people seen less than this are neither wanted nor wrong
OVERLAP, OTHER_OVERLAPS = 0.5, (0.4, 0.6)  # FastPR reports R@1 at all three
RANKS = (1, 5, 10)
SUB_SENTENCE = re.compile(r"[,;:.]\s*")

# ------------------------------------------------------------------------------------------------ what is looked at


@dataclass(frozen=True, slots=True)
class Described:
    """A person, what was said of them, and other ids of what looks like the same person."""

    person: str
    captions: tuple[str, ...]
    twins: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class LabelledFrames:
    """Frames to look at and what is true of them.

    truth: boxes of all frames, ``identity`` an index into ``people``, ``confidence`` how much of the person is seen, 0..1;
    frames: gives (number, frame) in order, anew at every call, of these numbers or of all.
    """

    name: str
    people: tuple[str, ...]
    truth: IdentifiedBoxes
    described: tuple[Described, ...]
    frames: Callable[[Collection[int] | None], Iterator[tuple[int, Frame]]]


def labelled_clip(open_capture: Callable[[], Capture], clip: str, ground_truth: Path, described: Path, every: int = 5) -> LabelledFrames:
    """Every ``every``-th frame of a clip (neighbours show the same thing), from the first; frame numbers are those of the MOT file, from 1.

    Of ``described`` the lines of ``clip`` count. Every row of the MOT file counts, whatever its confidence column says.
    Raises NotFoundError, BadInputError.
    """
    rows = read_mot(ground_truth)
    numbers, identity = np.unique(rows.identity, return_inverse=True)

    def frames(only: Collection[int] | None = None) -> Iterator[tuple[int, Frame]]:
        capture = open_capture()
        try:
            for frame in capture.frames():
                number = frame.number + 1  # MOT files count from 1
                if frame.number % every == 0 and (only is None or number in only):
                    yield number, frame
                if only is not None and number >= max(only, default=0):
                    return
        finally:
            capture.close()

    truth = IdentifiedBoxes(rows.frame, identity.astype(np.int64), rows.xyxy, np.ones(len(rows)))
    lines = [line for line in _lines(described, ("clip", "track", "captions")) if line["clip"] == clip]
    if not lines:
        raise BadInputError(f"{described.name} must describe people of clip {clip!r} (the video's name), it describes none")
    return LabelledFrames(clip, tuple(map(str, numbers)), truth, _described(lines, "track"), frames)


def labelled_folder(folder: Path, described: Path | None = None, every: int = 1) -> LabelledFrames:
    """Every ``every``-th frame of a folder with truth.jsonl, and described.jsonl unless ``described`` names another file.

    Raises NotFoundError, BadInputError.
    """
    lines = _lines(folder / "truth.jsonl", ("file", "people"))[::every]
    shown = [(number, each) for number, line in enumerate(lines, 1) for each in line["people"]]
    people = sorted({str(each["person"]) for _, each in shown})
    index = {person: position for position, person in enumerate(people)}
    try:
        truth = IdentifiedBoxes(
            np.array([number for number, _ in shown], np.int64),
            np.array([index[str(each["person"])] for _, each in shown], np.int64),
            np.array([each["xyxy"] for _, each in shown], np.float64).reshape(-1, 4),
            np.array([each.get("visible", 1.0) for _, each in shown], np.float64),
        )
    except (KeyError, ValueError) as error:
        raise BadInputError(f"people of {folder / 'truth.jsonl'} must have person, xyxy of 4 numbers and visible 0..1: {error}") from error

    def frames(only: Collection[int] | None = None) -> Iterator[tuple[int, Frame]]:
        for number, line in enumerate(lines, 1):
            if only is not None and number not in only:
                continue
            picture = cv2.imread(str(folder / line["file"]))
            if picture is None:
                raise UnreadableMediaError(f"{folder / line['file']} must be a picture that can be decoded")
            yield number, Frame(folder.name, number, np.asarray(picture, np.uint8), number - 1)

    said = _lines(described or folder / "described.jsonl", ("person", "captions"))
    return LabelledFrames(folder.name, tuple(people), truth, _described(said, "person"), frames)


def _lines(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """JSON lines with these keys."""
    if not path.is_file():
        raise NotFoundError(f"{path} must be a file of JSON lines with {', '.join(keys)}, it is not there")
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInputError(f"line {number} of {path.name} must be JSON: {error}") from error
        if not isinstance(entry, dict) or any(key not in entry for key in keys):
            raise BadInputError(f"line {number} of {path.name} must be JSON with {', '.join(keys)}, got {line[:60]!r}")
        found.append(entry)
    return found


def _described(lines: Sequence[dict[str, Any]], key: str) -> tuple[Described, ...]:
    return tuple(Described(str(line[key]), tuple(map(str, line["captions"])), frozenset(map(str, line.get("twins", [])))) for line in lines)


# ------------------------------------------------------------------------------------------------ looking


@dataclass(slots=True)
class _Way:
    """One way of searching, and what it saw so far. columns: which captions it understood."""

    retriever: Retriever
    asked: Any
    columns: list[int]
    captions: int
    numbers: list[int] = field(default_factory=list)
    boxes: list[Detections] = field(default_factory=list)
    similarity: list[NDArray[np.float32]] = field(default_factory=list)
    elapsed_ms: list[float] = field(default_factory=list)

    def look(self, number: int, frame: Frame) -> Detections:
        started_s = time.perf_counter()
        sought = self.retriever.look_for([frame], self.asked)[0]
        self.elapsed_ms.append(1e3 * (time.perf_counter() - started_s))
        whole = np.zeros((len(sought.detections), self.captions), np.float32)  # (N, Q); a caption not understood ranks in file order
        whole[:, self.columns] = sought.similarity
        self.numbers.append(number)
        self.boxes.append(sought.detections)
        self.similarity.append(whole)
        return sought.detections

    def found(self) -> IdentifiedBoxes:
        """All boxes of all frames; their identities mean nothing."""
        frame = np.repeat(np.array(self.numbers, np.int64), [len(each) for each in self.boxes])
        xyxy = np.concatenate([each.xyxy for each in self.boxes]).astype(np.float64)
        confidence = np.concatenate([each.confidence for each in self.boxes]).astype(np.float64)
        return IdentifiedBoxes(frame, np.zeros(len(frame), np.int64), xyxy, confidence)


def _way(retriever: Retriever, captions: Sequence[str]) -> _Way:
    """A retriever that was asked; captions in which nothing can be seen are left out. Raises BadInputError when none is understood."""
    try:
        return _Way(retriever, retriever.ask(captions), list(range(len(captions))), len(captions))
    except BadInputError:
        pass  # it names one: find the others
    columns = []
    for column, caption in enumerate(captions):
        try:
            retriever.ask([caption])
        except BadInputError:
            continue
        columns.append(column)
    if not columns:
        raise BadInputError(f"captions must say something that {retriever.name} can see, it understood none of {len(captions)}")
    return _Way(retriever, retriever.ask([captions[column] for column in columns]), columns, len(captions))


class SameBoxes:
    """A detector that takes its time and then gives the boxes it was told: two ways on the same boxes, each at its own price."""

    def __init__(self, detector: Detector) -> None:
        self.name = detector.name
        self.boxes = Detections.none()
        self._detector = detector

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        self._detector.detect(frames)
        return [self.boxes] * len(frames)


# ------------------------------------------------------------------------------------------------ figures


@dataclass(frozen=True, slots=True, eq=False)
class _Questions:
    """The captions asked, whom each asks for, the true boxes of the frames looked at, and which of them each caption wants (T, Q)."""

    captions: tuple[str, ...]
    person: tuple[str, ...]
    truth: IdentifiedBoxes
    is_wanted: Booleans

    @property
    def hidden(self) -> Booleans:
        return np.asarray(self.truth.confidence < WELL_VISIBLE, bool)


def _questions(source: LabelledFrames, looked_at: Sequence[int]) -> _Questions:
    """Every caption of the described people; those of whom nobody is well visible want nothing, and are left out of the figures."""
    truth = source.truth.where(np.isin(source.truth.frame, looked_at))
    index = {person: position for position, person in enumerate(source.people)}
    captions, people, wanted = [], [], []
    for each in source.described:
        ids = [index[person] for person in {each.person, *each.twins} if person in index]
        mine = np.isin(truth.identity, ids) & (truth.confidence >= WELL_VISIBLE)
        for caption in each.captions:
            captions.append(caption)
            people.append(each.person)
            wanted.append(mine)
    return _Questions(tuple(captions), tuple(people), truth, np.array(wanted, bool).reshape(len(captions), len(truth)).T)


def _one_of_twins(described: Sequence[Described]) -> dict[str, str]:
    """Each person -> one name for everybody who looks like the same person, so that they are drawn together."""
    name = {each.person: each.person for each in described}
    while True:  # a chain of twins needs a few turns
        before = dict(name)
        for each in described:
            group = {each.person, *(twin for twin in each.twins if twin in name)}
            name.update(dict.fromkeys(group, min(name[person] for person in group)))
        if name == before:
            return name


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """One way's figures, and what they are means of: R@1 per counted query (Q, 1) and per (frame, query) (A, 1), and who was asked for."""

    report: dict[str, Any]
    per_query: Float64
    person: NDArray[np.str_]
    per_frame: Float64
    person_in_frame: NDArray[np.str_]


def _measure(way: _Way, questions: _Questions, person: NDArray[np.str_]) -> _Measured:
    """Figures over the queries that want anything; ``person`` (Q,): who is drawn together in intervals."""
    found = way.found()
    pairs = touching(found, questions.truth)
    is_asked = questions.is_wanted.any(axis=0)  # (Q,)
    similarity, wanted, person = np.concatenate(way.similarity)[:, is_asked], questions.is_wanted[:, is_asked], person[is_asked]
    figures: dict[str, Float64] = {}  # name -> (Q,)
    for overlap in (OVERLAP, *OTHER_OVERLAPS):
        left_out = lies_on(pairs, questions.hidden, len(found), overlap)
        result = outcomes(ranked_box_hits(similarity, pairs, wanted, overlap, left_out), wanted.sum(axis=0))
        if overlap == OVERLAP:
            figures |= {f"rank_{k}": result.within(k) for k in RANKS} | {"mAP": result.precision}
        else:
            figures[f"rank_1_iou_{round(100 * overlap)}"] = result.within(1)
    left_out = lies_on(pairs, questions.hidden, len(found), OVERLAP)
    hits = hit_table(pairs, wanted, len(found), OVERLAP)  # (N, Q)
    chance = hits.sum(axis=0) / np.maximum((hits | ~left_out[:, None]).sum(axis=0), 1)  # (Q,)
    frames = best_in_frames(similarity, found.frame, pairs, questions.truth.frame, wanted, OVERLAP, left_out)
    person_in_frame, right = person[frames.query], frames.is_right[:, None]
    report = {
        "name": way.retriever.name,
        **{name: round(float(values.mean()), 4) for name, values in figures.items()},
        "rank_1_by_chance": round(float(chance.mean()), 4),
        "intervals": dict(zip(figures, _rounded(intervals(np.stack(list(figures.values()), axis=1), person)), strict=True)),
        "per_frame": {
            "rank_1": round(float(right.mean()), 4),
            "rank_1_by_chance": round(float(frames.chance.mean()), 4),
            "interval": _rounded(intervals(right, person_in_frame))[0],
            "pairs": len(right),
        },
        "ap50": round(average_precision(questions.truth.where(~questions.hidden), found.where(~left_out)), 4),
        "detections": len(found),
        "captions_not_understood": way.captions - len(way.columns),
        "ms_per_frame": round(float(np.median(way.elapsed_ms)), 2),
    }
    return _Measured(report, figures["rank_1"][:, None], person, right, person_in_frame)


def _difference(one: _Measured, other: _Measured) -> dict[str, Any]:
    """By how much the first way is better in R@1, over all frames and within each, with paired intervals over people.

    Both ranked the same boxes against the same truth, so their rows are of the same queries.
    """
    apart, apart_in_frames = one.per_query - other.per_query, one.per_frame - other.per_frame
    return {
        "rank_1": round(float(apart.mean()), 4),
        "interval": _rounded(intervals(apart, one.person))[0],
        "per_frame_rank_1": round(float(apart_in_frames.mean()), 4),
        "per_frame_interval": _rounded(intervals(apart_in_frames, one.person_in_frame))[0],
        "times_as_fast": round(other.report["ms_per_frame"] / max(one.report["ms_per_frame"], 1e-6), 2),
    }


def _rounded(values: Float64) -> list[list[float]]:
    return [[round(float(value), 4) for value in row] for row in values]


def evaluate_full_frames(
    source: LabelledFrames,
    retriever: Retriever,
    peer: TwoStage | None = None,
    *,
    sheet: Path | None = None,
    heat: Path | None = None,
    dump: Path | None = None,
) -> dict[str, Any]:
    """R@k, mAP and AP50 of ``retriever`` over all frames and within each, fractions 0..1, and those of ``peer`` on the same boxes.

    Every caption of a described person who is there is a query. Over all frames, one ranking holds every box of every frame, and a
    box hits a true box of the person, or of a twin, in its frame (IoU above 0.5); mAP lets each true box be hit once and counts those
    never found (CUHK-SYSU). ``per_frame``: for each frame and each caption of somebody in it, is the best-ranked box of that frame right?
    Intervals are 95 %, over people (twins together). ms_per_frame is the median of a frame with all captions asked; the peer's
    detector runs for its time, but its boxes are replaced. sheet, heat (JPEG), dump (.npz): files to write.
    Raises NotFoundError, BadInputError, UnreadableMediaError.
    """
    started_s = time.monotonic()
    captions = [caption for each in source.described for caption in each.captions]
    if not captions:
        raise BadInputError(f"{source.name} must have described people, nobody is described")
    way, other, frames = _look(source, captions, retriever, peer)
    questions = _questions(source, frames)
    is_asked = questions.is_wanted.any(axis=0)
    if not is_asked.any():
        raise BadInputError(f"{source.name} must show somebody who is described, none of {len(frames)} frames does")
    twin = _one_of_twins(source.described)
    person = np.array([twin[each] for each in questions.person])
    measured = _measure(way, questions, person)
    report = {
        **measured.report,
        "queries": int(is_asked.sum()),
        "people": len({each for each, asked in zip(questions.person, np.atleast_1d(is_asked).tolist(), strict=True) if asked}),
        "frames": len(frames),
    }
    if other is not None:
        second = _measure(other, questions, person)
        report |= {"peer": second.report, "difference": _difference(measured, second)}
    if dump is not None:
        _dump(dump, questions, way, other)
    if sheet is not None:
        sheet.write_bytes(to_jpeg(_sheet(source, questions, way)))
    if heat is not None:
        report["heat"] = _write_heat(heat, source, questions, way)
    return {**report, "elapsed_s": round(time.monotonic() - started_s, 2)}


def _look(
    source: LabelledFrames, captions: Sequence[str], retriever: Retriever, peer: TwoStage | None
) -> tuple[_Way, _Way | None, list[int]]:
    """One pass over the frames, both ways in turn, so that what else the machine does slows both."""
    way, other, same = _way(retriever, captions), None, None
    if peer is not None:
        same = SameBoxes(peer.detector)
        other = _way(TwoStage(same, peer.looks, peer.text), captions)
    for number, frame in source.frames(None):
        boxes = way.look(number, frame)
        if other is not None and same is not None:
            same.boxes = boxes
            other.look(number, frame)
    if not way.numbers:
        raise BadInputError(f"{source.name} must hold frames, it gave none")
    return way, other, way.numbers


def _dump(path: Path, questions: _Questions, way: _Way, other: _Way | None) -> None:
    found, truth = way.found(), questions.truth
    arrays: dict[str, Any] = {
        "similarity": np.concatenate(way.similarity),  # (N, Q)
        "frame": found.frame,
        "xyxy": found.xyxy,
        "confidence": found.confidence,
        "query": np.array(questions.captions),
        "query_person": np.array(questions.person),
        "truth_frame": truth.frame,
        "truth_identity": truth.identity,
        "truth_xyxy": truth.xyxy,
        "truth_visible": truth.confidence,
        "is_wanted": questions.is_wanted,  # (T, Q)
    }
    if other is not None:
        arrays["peer_similarity"] = np.concatenate(other.similarity)
    np.savez(path, **arrays)


# ------------------------------------------------------------------------------------------------ for the eye

RED: Colour = (84, 84, 235)  # BGR
SHOWN, SHEET_QUERIES, SHEET_COLUMNS = 5, 60, 3
CROP_WIDTH, CROP_HEIGHT, BORDER, GAP = 104, 230, 4, 8
SECTION_WIDTH = SHOWN * (CROP_WIDTH + GAP) + 3 * GAP
SECTION_HEIGHT = 44 + CROP_HEIGHT + 34
PANEL_WIDTH, PANEL_COLUMNS, HEAT_SHARE = 640, 2, 0.6
CAPTION, SMALL = Ink(15, 600, BRIGHT), Ink(13, 400, DIM)


def _sheet(source: LabelledFrames, questions: _Questions, way: _Way) -> Pixels:
    """A contact sheet, BGR (H, W, 3): the five best boxes for the first caption of each person, green where right and red where wrong."""
    found, similarity = way.found(), np.concatenate(way.similarity)
    pairs = touching(found, questions.truth)
    hits = hit_table(pairs, questions.is_wanted, len(found), OVERLAP)  # (N, Q)
    left_out = lies_on(pairs, questions.hidden, len(found), OVERLAP)
    queries = [q for q, person in enumerate(questions.person) if questions.person.index(person) == q and questions.is_wanted[:, q].any()]
    best = {}
    for query in queries[:SHEET_QUERIES]:
        order = np.argsort(-similarity[:, query], kind="stable")
        best[query] = [int(row) for row in order if hits[row, query] or not left_out[row]][:SHOWN]
    crops = _crops(source, found, {row for rows in best.values() for row in rows})
    pen = Pen()
    height = -(-len(best) // SHEET_COLUMNS) * SECTION_HEIGHT + GAP
    page = np.full((height, SHEET_COLUMNS * SECTION_WIDTH, 3), PAGE, np.uint8)
    for place, (query, rows) in enumerate(best.items()):
        x, y = GAP + place % SHEET_COLUMNS * SECTION_WIDTH, place // SHEET_COLUMNS * SECTION_HEIGHT
        text = f"{questions.person[query]}: {questions.captions[query]}"
        for line, words in enumerate(pen.wrap(text, SECTION_WIDTH - 3 * GAP, CAPTION, most=2)):
            pen.write(page, words, (x, y + 18 + 19 * line), CAPTION)
        for number, row in enumerate(rows):
            left, top = x + number * (CROP_WIDTH + GAP), y + 44
            corner = left + CROP_WIDTH - 1, top + CROP_HEIGHT - 1
            cv2.rectangle(page, (left, top), corner, GREEN if hits[row, query] else RED, cv2.FILLED)
            draw_picture(pen, page, Place(left + BORDER, top + BORDER, CROP_WIDTH - 2 * BORDER, CROP_HEIGHT - 2 * BORDER), crops[row])
            pen.write(page, f"{similarity[row, query]:.2f}  frame {found.frame[row]}", (left, top + CROP_HEIGHT + 16), SMALL)
    return page


def _crops(source: LabelledFrames, found: IdentifiedBoxes, rows: Collection[int]) -> dict[int, Pixels]:
    """The pictures of these boxes, from a second pass: all frames at once would not fit into memory."""
    wanted = {int(found.frame[row]) for row in rows}
    return {
        row: cut_out(frame, found.xyxy[row].astype(np.float32))
        for number, frame in source.frames(wanted)
        for row in rows
        if found.frame[row] == number
    }


def _write_heat(path: Path, source: LabelledFrames, questions: _Questions, way: _Way) -> str:
    """Draw where the network looks for the first description that somebody fits; gives the description, or why nothing was drawn."""
    query = next((q for q in way.columns if questions.is_wanted[:, q].any()), None)
    found, similarity = way.found(), np.concatenate(way.similarity)
    if query is None or not len(found):
        return "not drawn: nobody was found"
    number = int(found.frame[similarity[:, query].argmax()])
    _, frame = next(source.frames([number]))
    page = heat_page(way.retriever, frame, questions.captions[query])
    if page is None:
        return f"not drawn: {way.retriever.name} draws no heat"
    path.write_bytes(to_jpeg(page))
    return questions.captions[query]


def heat_page(retriever: Retriever, frame: Frame, description: str) -> Pixels | None:
    """A frame with the network's heat over it, BGR (H, W, 3), a panel for the whole description and one for each of its sub-sentences.

    The box is that of the person who fits the whole description best. After FastPR's figure 8. None where the network draws no heat.
    """
    parts = [part.strip() for part in SUB_SENTENCE.split(description) if part.strip()]
    texts = _understood(retriever, [description, *(parts if len(parts) > 1 else [])])
    sought = retriever.look_for([frame], retriever.ask(texts), with_heat=True)[0]
    if sought.heat is None:
        return None
    pen, panels = Pen(), []
    for text, heat in zip(texts, sought.heat, strict=True):
        panel = _heated(frame.bgr, heat)
        if len(sought.detections):
            panel = with_box(panel, sought.detections.xyxy[int(sought.similarity[:, 0].argmax())].tolist())
        size = PANEL_WIDTH, round(PANEL_WIDTH * frame.height / frame.width)
        head = np.full((50, PANEL_WIDTH, 3), PAGE, np.uint8)
        for line, words in enumerate(pen.wrap(text, PANEL_WIDTH - 2 * GAP, CAPTION, most=2)):
            pen.write(head, words, (GAP, 19 + 20 * line), CAPTION)
        panels.append(np.vstack([head, cv2.resize(panel, size, interpolation=cv2.INTER_AREA)]))
    blank = np.full_like(panels[0], PAGE)
    panels += [blank] * (-len(panels) % PANEL_COLUMNS)
    rows = [np.hstack(panels[start : start + PANEL_COLUMNS]) for start in range(0, len(panels), PANEL_COLUMNS)]
    return np.asarray(np.vstack(rows), np.uint8)


def _understood(retriever: Retriever, texts: Sequence[str]) -> list[str]:
    """Those texts in which the retriever can see something."""
    return [texts[column] for column in _way(retriever, texts).columns]


def _heated(bgr: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """A picture (H, W, 3) under a heat map (h, w) 0..1: the hotter, the more of the colour."""
    smooth = np.clip(cv2.resize(np.asarray(heat, np.float32), (bgr.shape[1], bgr.shape[0])), 0, 1)  # (H, W)
    colours = cv2.applyColorMap((255 * smooth).astype(np.uint8), cv2.COLORMAP_JET).astype(np.float32)  # (H, W, 3)
    share = HEAT_SHARE * smooth[..., None]  # (H, W, 1)
    return np.asarray((1 - share) * bgr + share * colours, np.uint8)
