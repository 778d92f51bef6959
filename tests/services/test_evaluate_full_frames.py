"""Full-frame search is measured against known truth: who sees everything scores 1, who sees nothing scores chance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from models.two_stage import TwoStage
from pipeline.errors import BadInputError, NotFoundError, SpaceMismatchError, UnreadableMediaError
from pipeline.ports import Sought
from pipeline.types import Camera, CameraCoverage, Detections, Frame, Sound
from services.cli.app import app
from services.evaluate_full_frames import LabelledFrames, evaluate_full_frames, heat_page, labelled_clip, labelled_folder
from tests.fakes import ColourLooks, WordTextEncoder

WALKERS = {"red": (0, 0, 250), "green": (0, 250, 0), "blue": (250, 0, 0)}  # BGR
TRACKS = {"red": 4, "green": 7, "blue": 9}
FRAMES = 20


def box_of(colour: str, number: int) -> tuple[int, int, int, int]:
    """Where a walker is in frame ``number``, from 0."""
    left = 10 + 60 * list(WALKERS).index(colour) + number
    return left, 20, left + 20, 70


def painted(number: int, colours: Sequence[str] = tuple(WALKERS)) -> Frame:
    picture = np.full((90, 220, 3), 40, np.uint8)
    for colour in colours:
        left, top, right, bottom = box_of(colour, number)
        picture[top:bottom, left:right] = WALKERS[colour]
    return Frame("clip", number + 1, picture, number)


class PaintedClip:
    """Three walkers on grey."""

    def __init__(self) -> None:
        self.camera = Camera("clip", "painted.mp4")
        self.is_closed = False

    def frames(self) -> Iterator[Frame]:
        yield from (painted(number) for number in range(FRAMES))

    def sounds(self) -> Iterator[Sound]:
        return iter(())

    def coverage(self) -> CameraCoverage:
        return CameraCoverage("clip", 0, 0)

    def close(self) -> None:
        self.is_closed = True


class ColourDetector:
    """Finds the painted walkers."""

    name = "colours"

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        self.calls += 1
        return [self._of(frame) for frame in frames]

    def _of(self, frame: Frame) -> Detections:
        boxes = []
        for colour in WALKERS.values():
            rows, columns = np.nonzero((np.abs(frame.bgr.astype(int) - colour) < 60).all(axis=2))
            if len(rows):
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), 0.9, np.float32))


class PerfectRetriever:
    """Finds the walkers and knows which colour a description names; refuses one that names none."""

    name = "perfect"
    shift_px = 0.0

    def __init__(self) -> None:
        self._detector = ColourDetector()

    def ask(self, descriptions: Sequence[str]) -> Any:
        for text in descriptions:
            if not any(colour in text for colour in WALKERS):
                raise BadInputError(f"nothing in {text!r} can be seen")
        return list(descriptions)

    def look_for(self, frames: Sequence[Frame], asked: Any, with_heat: bool = False) -> list[Sought]:
        return [self._sought(frame, found, asked, with_heat) for frame, found in zip(frames, self._detector.detect(frames), strict=True)]

    def _sought(self, frame: Frame, found: Detections, asked: Sequence[str], with_heat: bool) -> Sought:
        named = [next(colour for colour in WALKERS if colour in text) for text in asked]
        heat = None
        if with_heat:
            heat = np.stack([(np.abs(frame.bgr.astype(int) - WALKERS[colour]) < 60).all(axis=2) for colour in named]).astype(np.float32)
        similarity = np.array([[self.fit(frame, box, colour) for colour in named] for box in found.xyxy], np.float32)
        moved = Detections(found.xyxy + np.float32(self.shift_px), found.confidence)
        return Sought(moved, similarity.reshape(len(found), len(named)), heat)

    def fit(self, frame: Frame, box: np.ndarray, colour: str) -> float:
        inside = frame.bgr[int(box[1]) + 5, int(box[0]) + 5].astype(int)
        return float(np.abs(inside - WALKERS[colour]).max() < 60)


class BlindRetriever(PerfectRetriever):
    """Finds the walkers and thinks that every description fits the one on the left."""

    name = "blind"

    def fit(self, frame: Frame, box: np.ndarray, colour: str) -> float:
        return 1.0 - float(box[0]) / 1000


class ShiftedRetriever(PerfectRetriever):
    """Knows who is who, and draws every box beside the person."""

    name = "shifted"
    shift_px = 18.0


class StuckDetector(ColourDetector):
    """Finds nobody."""

    def _of(self, frame: Frame) -> Detections:
        return Detections.none()


class EmptyRetriever(PerfectRetriever):
    """Finds nobody."""

    def __init__(self) -> None:
        self._detector = StuckDetector()


@pytest.fixture
def ground_truth(tmp_path: Path) -> Path:
    rows = [f"{n + 1},{TRACKS[colour]},{box_of(colour, n)[0]},20,20,50,1,-1,-1,-1" for n in range(FRAMES) for colour in WALKERS]
    path = tmp_path / "truth.txt"
    path.write_text("\n".join(rows) + "\n")
    return path


def described(folder: Path, *changes: dict[str, Any]) -> Path:
    lines = [{"clip": "painted", "track": TRACKS[c], "twins": [], "captions": [f"{c} person", f"a {c} coat, {c} shoes"]} for c in WALKERS]
    lines.append({"clip": "elsewhere", "track": 4, "twins": [], "captions": ["green"]})
    path = folder / "described.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in [*lines, *changes]) + "\n")
    return path


@pytest.fixture
def clip(tmp_path: Path, ground_truth: Path) -> LabelledFrames:
    return labelled_clip(PaintedClip, "painted", ground_truth, described(tmp_path))


def two_stage(detector: ColourDetector | None = None) -> TwoStage:
    return TwoStage(detector or ColourDetector(), ColourLooks(), WordTextEncoder())


def scenes(folder: Path, hidden: float = 1.0) -> Path:
    """Two frames of all three; green is visible by ``hidden`` in both, and only green and red are described."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(2):
        cv2.imwrite(str(folder / f"{number:06}.jpg"), painted(number).bgr)
        people = [{"person": c, "xyxy": box_of(c, number), "visible": hidden if c == "green" else 1.0} for c in WALKERS]
        lines.append({"file": f"{number:06}.jpg", "people": people})
    (folder / "truth.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    said = [{"person": c, "captions": [f"a {c} person"]} for c in ("red", "green")]
    (folder / "described.jsonl").write_text("\n".join(map(json.dumps, said)) + "\n")
    return folder


# ------------------------------------------------------------------------------------------------ figures


def test_who_sees_everything_scores_one_in_every_figure(clip: LabelledFrames) -> None:
    report = evaluate_full_frames(clip, PerfectRetriever())
    names = ("rank_1", "rank_5", "rank_10", "rank_1_iou_40", "rank_1_iou_60", "mAP", "ap50")
    assert [report[name] for name in names] == [1.0] * len(names)
    assert report["intervals"]["mAP"] == [1.0, 1.0]
    assert report["per_frame"] == {"rank_1": 1.0, "rank_1_by_chance": 0.3333, "interval": [1.0, 1.0], "pairs": 24}
    assert (report["queries"], report["people"], report["frames"], report["detections"]) == (6, 3, 4, 12)
    assert report["rank_1_by_chance"] == 0.3333
    assert report["ms_per_frame"] > 0


def test_who_sees_only_boxes_scores_chance(clip: LabelledFrames) -> None:
    report = evaluate_full_frames(clip, BlindRetriever())
    assert report["rank_1"] == report["per_frame"]["rank_1"] == pytest.approx(1 / 3, abs=1e-4)
    assert report["ap50"] == 1.0
    low, high = report["intervals"]["rank_1"]
    assert (low, high) == (0.0, 1.0)  # three people say little


def test_boxes_beside_the_people_score_nothing(clip: LabelledFrames) -> None:
    report = evaluate_full_frames(clip, ShiftedRetriever())
    assert report["rank_1"] == report["mAP"] == report["ap50"] == report["per_frame"]["rank_1"] == 0.0


def test_who_finds_nobody_scores_nothing(clip: LabelledFrames) -> None:
    report = evaluate_full_frames(clip, EmptyRetriever(), two_stage())
    assert report["rank_1"] == report["mAP"] == report["per_frame"]["rank_1"] == 0.0
    assert report["detections"] == report["peer"]["detections"] == 0


def test_the_frames_looked_at_are_every_nth_and_the_clip_is_closed(tmp_path: Path, ground_truth: Path) -> None:
    opened: list[PaintedClip] = []

    def open_clip() -> PaintedClip:
        opened.append(PaintedClip())
        return opened[-1]

    source = labelled_clip(open_clip, "painted", ground_truth, described(tmp_path), every=7)
    assert [number for number, _ in source.frames(None)] == [1, 8, 15]
    assert [number for number, _ in source.frames([8])] == [8]
    assert [each.is_closed for each in opened] == [True, True]


def test_a_twin_counts_as_a_hit_and_is_drawn_together(tmp_path: Path, ground_truth: Path) -> None:
    twin = {"clip": "painted", "track": 5, "twins": [TRACKS["red"]], "captions": ["red twin"]}
    report = evaluate_full_frames(labelled_clip(PaintedClip, "painted", ground_truth, described(tmp_path, twin)), PerfectRetriever())
    assert (report["rank_1"], report["mAP"], report["queries"]) == (1.0, 1.0, 7)


def test_a_caption_of_somebody_who_is_not_there_is_no_query(tmp_path: Path, ground_truth: Path) -> None:
    absent = {"clip": "painted", "track": 99, "captions": ["red ghost"]}
    report = evaluate_full_frames(labelled_clip(PaintedClip, "painted", ground_truth, described(tmp_path, absent)), PerfectRetriever())
    assert (report["queries"], report["people"]) == (6, 3)


def test_a_caption_that_says_nothing_is_counted_and_ranks_in_file_order(tmp_path: Path, ground_truth: Path) -> None:
    vague = {"clip": "painted", "track": TRACKS["blue"], "captions": ["hm"]}
    report = evaluate_full_frames(labelled_clip(PaintedClip, "painted", ground_truth, described(tmp_path, vague)), PerfectRetriever())
    assert report["captions_not_understood"] == 1
    assert report["rank_1"] == pytest.approx(6 / 7, abs=1e-4)


def test_hidden_people_are_neither_wanted_nor_wrong(tmp_path: Path) -> None:
    seen = evaluate_full_frames(labelled_folder(scenes(tmp_path / "seen")), PerfectRetriever())
    hidden = evaluate_full_frames(labelled_folder(scenes(tmp_path / "hidden", hidden=0.2)), PerfectRetriever())
    assert (seen["queries"], seen["per_frame"]["pairs"], seen["rank_1"], seen["ap50"]) == (2, 4, 1.0, 1.0)
    assert (hidden["queries"], hidden["per_frame"]["pairs"], hidden["rank_1"], hidden["ap50"]) == (1, 2, 1.0, 1.0)
    assert hidden["per_frame"]["rank_1_by_chance"] == 0.5  # red or blue: green is not in the lottery


# ------------------------------------------------------------------------------------------------ the two-stage way


def test_both_ways_are_measured_on_the_same_boxes(clip: LabelledFrames) -> None:
    detector = ColourDetector()
    report = evaluate_full_frames(clip, BlindRetriever(), two_stage(detector))
    assert report["peer"]["name"] == "colours + fake-text@1 of crops"
    assert report["peer"]["rank_1"] == 1.0
    assert report["peer"]["detections"] == report["detections"]
    assert report["difference"]["rank_1"] == pytest.approx(-2 / 3, abs=1e-4)
    assert report["difference"]["per_frame_rank_1"] == pytest.approx(-2 / 3, abs=1e-4)
    assert report["difference"]["interval"] == [-1.0, 0.0]
    assert detector.calls == 4  # its time is paid although its boxes are not used


def test_the_peer_does_not_get_better_boxes_than_the_retriever(clip: LabelledFrames) -> None:
    assert evaluate_full_frames(clip, ShiftedRetriever(), two_stage())["peer"]["ap50"] == 0.0


def test_two_stage_refuses_encoders_of_two_spaces() -> None:
    other = WordTextEncoder()
    other.space = "other@1"
    with pytest.raises(SpaceMismatchError):
        TwoStage(ColourDetector(), ColourLooks(), other)


def test_two_stage_cuts_boxes_at_the_frame() -> None:
    class Outside(ColourDetector):
        def _of(self, frame: Frame) -> Detections:
            return Detections(np.array([[-30, -30, 40, 80], [500, 500, 600, 700]], np.float32), np.ones(2, np.float32))

    way = two_stage(Outside())
    assert way.look_for([painted(0)], way.ask(["red coat", "blue coat"]))[0].similarity.shape == (2, 2)


# ------------------------------------------------------------------------------------------------ files


def count(page: np.ndarray, bgr: tuple[int, int, int]) -> int:
    return int((np.abs(page.astype(int) - bgr).max(axis=2) < 40).sum())


def test_the_sheet_shows_right_ones_in_green_and_wrong_ones_in_red(clip: LabelledFrames, tmp_path: Path) -> None:
    from services.contact_sheet import GREEN
    from services.evaluate_full_frames import RED

    for name, retriever in (("perfect", PerfectRetriever()), ("blind", BlindRetriever())):
        evaluate_full_frames(clip, retriever, sheet=tmp_path / f"{name}.jpg")
    perfect, blind = (cv2.imread(str(tmp_path / f"{name}.jpg")) for name in ("perfect", "blind"))
    assert count(perfect, GREEN) > 3 * count(perfect, RED) > 0  # four right ones each, and the fifth can only be wrong
    assert count(blind, RED) > count(blind, GREEN)


def test_heat_has_a_panel_for_the_whole_and_one_for_each_sub_sentence(clip: LabelledFrames, tmp_path: Path) -> None:
    report = evaluate_full_frames(clip, PerfectRetriever(), heat=tmp_path / "heat.jpg")
    assert report["heat"] == "red person"
    assert cv2.imread(str(tmp_path / "heat.jpg")) is not None
    one = heat_page(PerfectRetriever(), painted(0), "red person")
    three = heat_page(PerfectRetriever(), painted(0), "red coat, nothing to see, blue shoes")
    assert one is not None
    assert three is not None
    assert three.shape[0] == 2 * one.shape[0]  # whole, red, blue: two rows of two


def test_a_way_that_draws_no_heat_says_so(clip: LabelledFrames, tmp_path: Path) -> None:
    report = evaluate_full_frames(clip, two_stage(), heat=tmp_path / "heat.jpg")  # type: ignore[arg-type]
    assert "draws no heat" in report["heat"]
    assert not (tmp_path / "heat.jpg").exists()


def test_boxes_similarities_and_truth_are_written_where_asked(clip: LabelledFrames, tmp_path: Path) -> None:
    evaluate_full_frames(clip, PerfectRetriever(), two_stage(), dump=tmp_path / "dump.npz")
    held = np.load(tmp_path / "dump.npz")
    assert held["similarity"].shape == held["peer_similarity"].shape == (12, 6)
    assert held["is_wanted"].shape == (12, 6)
    assert held["query_person"].tolist() == ["4", "4", "7", "7", "9", "9"]


# ------------------------------------------------------------------------------------------------ bad input


def test_bad_input_is_named(tmp_path: Path, ground_truth: Path) -> None:
    said = described(tmp_path)
    with pytest.raises(BadInputError, match="clip 'other'"):
        labelled_clip(PaintedClip, "other", ground_truth, said)
    with pytest.raises(NotFoundError, match=r"truth\.jsonl"):
        labelled_folder(tmp_path / "empty")
    said.write_text('{"clip": "painted"}\n')
    with pytest.raises(BadInputError, match="line 1"):
        labelled_clip(PaintedClip, "painted", ground_truth, said)
    said.write_text("no json\n")
    with pytest.raises(BadInputError, match="line 1"):
        labelled_clip(PaintedClip, "painted", ground_truth, said)
    folder = scenes(tmp_path / "scenes")
    (folder / "000001.jpg").write_text("no picture")
    with pytest.raises(UnreadableMediaError, match="000001"):
        evaluate_full_frames(labelled_folder(folder), PerfectRetriever())
    (folder / "truth.jsonl").write_text('{"file": "000000.jpg", "people": [{"person": "red", "xyxy": [1, 2]}]}\n')
    with pytest.raises(BadInputError, match="xyxy"):
        labelled_folder(folder)


def test_nobody_described_or_nobody_understood_is_refused(clip: LabelledFrames, tmp_path: Path, ground_truth: Path) -> None:
    said = tmp_path / "said.jsonl"
    said.write_text(json.dumps({"clip": "painted", "track": 4, "captions": ["hm", "well"]}) + "\n")
    with pytest.raises(BadInputError, match="understood none of 2"):
        evaluate_full_frames(labelled_clip(PaintedClip, "painted", ground_truth, said), PerfectRetriever())
    said.write_text(json.dumps({"clip": "painted", "track": 4, "captions": []}) + "\n")
    with pytest.raises(BadInputError, match="nobody is described"):
        evaluate_full_frames(labelled_clip(PaintedClip, "painted", ground_truth, said), PerfectRetriever())


def test_the_command_says_what_it_must_be_given() -> None:
    from pipeline.errors import SettingsError

    result = CliRunner().invoke(app, ["evaluate", "full-frames", "--video", "clip.mp4"])
    assert isinstance(result.exception, SettingsError)
    assert "--ground-truth" in str(result.exception)
