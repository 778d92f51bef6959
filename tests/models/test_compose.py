"""Composed scenes: people stand on the ground, are who the truth says, and come out the same from the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.training.compose import (
    Background,
    Composer,
    Cutout,
    Ground,
    Scene,
    backgrounds,
    cutout,
    cutouts,
    descriptions,
    fit_ground,
    main,
    write_scenes,
)
from pipeline.errors import BadInputError, NotFoundError


def a_crop(seed: int = 0, height: int = 120, width: int = 48) -> np.ndarray:
    """A person of plain clothes before a bright wall."""
    random = np.random.default_rng(seed)
    crop = random.integers(190, 220, (height, width, 3)).astype(np.uint8)
    upper, lower = ((int(b), int(g), int(r)) for b, g, r in random.integers(0, 110, (2, 3)))
    cv2.rectangle(crop, (width // 4, height // 6), (3 * width // 4, height // 2), upper, -1)
    cv2.rectangle(crop, (width // 3, height // 2), (2 * width // 3, height - 4), lower, -1)
    cv2.circle(crop, (width // 2, height // 10), width // 7, (40, 50, 60), -1)
    return crop


def a_cutout(person: int, camera: str = "a", number: int = 1) -> Cutout:
    crop = a_crop(person)
    return Cutout(np.dstack([crop, cutout(crop)]), f"p{person:02d}", camera, f"p{person:02d}/{camera}{number}.jpg")


def a_yard(height: int = 360, width: int = 480) -> Background:
    picture = np.full((height, width, 3), 150, np.uint8)
    picture[: height // 3] = 230
    return Background(picture, Ground(0.5, 0.0), (((0.0, 0.4), (1.0, 0.4), (1.0, 1.0), (0.0, 1.0)),), "yard")


def a_composer(people: int = 8, seed: int = 0) -> Composer:
    return Composer([a_yard()], [a_cutout(person, camera) for person in range(people) for camera in "ab"], seed)


def same(one: Scene, other: Scene) -> bool:
    boxes = all(np.array_equal(a.xyxy, b.xyxy) and a.name == b.name for a, b in zip(one.people, other.people, strict=True))
    return boxes and np.array_equal(one.bgr, other.bgr)


def research_folder(folder: Path, people: int = 4) -> Path:
    for person in range(people):
        (folder / "persons" / f"p{person}").mkdir(parents=True)
        for name in ("a1", "b2"):
            cv2.imwrite(str(folder / "persons" / f"p{person}" / f"{name}.jpg"), a_crop(person))
    (folder / "frames").mkdir()
    for moment in range(3):
        frame = np.full((450, 800, 3), 120, np.uint8)
        frame[250:400, 100 + 200 * moment : 150 + 200 * moment] = 0  # somebody walks through
        cv2.imwrite(str(folder / "frames" / f"c3s1_{moment}.jpg"), frame)
    human = [{"person": "p0", "caption": "a man"}, {"person": "p1", "caption": "a woman"}]
    written = [
        {"person": "p2", "captions": ["a boy", "a child"], "doubtful": False},
        {"person": "p3", "captions": ["nobody"], "doubtful": True},
    ]
    for name, lines in (("captions", human), ("captions_written", written)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_mask_holds_the_person_and_not_the_wall() -> None:
    mask = cutout(a_crop())
    assert mask.dtype == np.uint8
    assert mask.shape == (120, 48)
    assert (mask[30:55, 18:30] > 200).all()
    assert (mask[:, :3] < 60).all()
    assert 0.2 <= (mask > 127).mean() <= 0.85


def test_a_crop_without_a_visible_person_gets_the_soft_prior() -> None:
    mask = cutout(np.full((120, 48, 3), 99, np.uint8))
    assert mask[40, 24] > 200
    assert mask[2, 2] < 60


def test_a_mask_is_the_same_every_time() -> None:
    assert np.array_equal(cutout(a_crop(3)), cutout(a_crop(3)))


def test_a_crop_of_another_shape_is_refused() -> None:
    with pytest.raises(BadInputError, match="a crop must be"):
        cutout(np.zeros((10, 10), np.uint8))


def test_masks_are_kept_between_runs(tmp_path: Path) -> None:
    data, cache = research_folder(tmp_path / "data"), tmp_path / "cache" / "masks.npz"
    first = cutouts(data, ["p0/a1.jpg", "p1/b2.jpg"], cache)
    written = cache.read_bytes()
    again = cutouts(data, ["p1/b2.jpg", "p0/a1.jpg"], cache)
    assert cache.read_bytes() == written
    assert np.array_equal(first[0].bgra, again[1].bgra)
    assert (first[1].person, first[1].camera, first[1].name) == ("p1", "b", "p1/b2.jpg")
    assert len(cutouts(data, ["p2/a1.jpg", "p0/a1.jpg"], cache)) == 2


def test_ground_is_found_among_bent_people(tmp_path: Path) -> None:
    lines = []
    for number in range(60):
        foot = 200 + 5 * number
        tall = 0.4 * (foot - 50) * (0.6 if number % 10 == 0 else 1)
        lines.append(f"1,{number},300,{foot - tall},40,{tall},1,-1,-1,-1")
    (tmp_path / "boxes.txt").write_text("\n".join(lines))
    ground = fit_ground(tmp_path / "boxes.txt", 768, 576)
    assert ground.slope == pytest.approx(0.4, abs=0.01)
    assert ground.horizon == pytest.approx(50, abs=5)


def test_the_median_over_time_is_free_of_people(tmp_path: Path) -> None:
    (background,) = backgrounds(research_folder(tmp_path))
    assert background.name == "c3s1"
    assert np.abs(background.bgr.astype(int) - 120).max() < 12


def test_a_folder_without_pictures_has_no_background(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no background found"):
        backgrounds(tmp_path)


def test_everybody_in_a_scene_is_another_person_inside_the_frame_and_of_the_wanted_height() -> None:
    composer = a_composer()
    for _ in range(5):
        scene = composer.scene(320, 240, 6, (40, 120))
        assert scene.bgr.shape == (240, 320, 3)
        assert scene.bgr.dtype == np.uint8
        assert len({placed.person for placed in scene.people}) == 6
        for placed in scene.people:
            x0, y0, x1, y1 = placed.xyxy
            assert placed.xyxy.dtype == np.float32
            assert 0 <= x0 < x1 <= 320
            assert 0 <= y0 < y1 <= 240
            assert y1 - y0 <= 120 * 1.15
            assert 0 <= placed.visible <= 1


def test_nearer_people_come_later_and_are_taller() -> None:
    people = a_composer().scene(480, 360, 8, (20, 300)).people
    feet = [placed.xyxy[3] for placed in people]
    assert feet == sorted(feet)
    assert people[-1].xyxy[3] - people[-1].xyxy[1] > people[0].xyxy[3] - people[0].xyxy[1]


def test_a_crowd_hides_some_and_a_single_person_is_seen() -> None:
    assert min(placed.visible for placed in a_composer(30).scene(200, 150, 30, (60, 110)).people) < 0.6
    alone = Composer([a_yard()], [a_cutout(0)], 3).scene(480, 360, 1, (60, 100)).people[0]
    assert alone.visible > 0.5


def test_the_same_seed_gives_the_same_scenes() -> None:
    one, other, third = a_composer(seed=5), a_composer(seed=5), a_composer(seed=6)
    pairs = [(one.scene(160, 120, 4), other.scene(160, 120, 4)) for _ in range(3)]
    assert all(same(*pair) for pair in pairs)
    assert not same(pairs[0][0], third.scene(160, 120, 4))


def test_wanted_crops_are_the_ones_in_the_scene() -> None:
    names = ["p03/b1.jpg", "p05/a1.jpg"]
    assert sorted(placed.name for placed in a_composer().scene(320, 240, 2, names=names).people) == names


def test_a_scene_of_unknown_or_too_few_people_is_refused() -> None:
    composer = a_composer(2)
    with pytest.raises(NotFoundError, match="no cut-out named"):
        composer.scene(320, 240, 1, names=["nobody/a1.jpg"])
    with pytest.raises(BadInputError, match="names must be as many"):
        composer.scene(320, 240, 2, names=["p00/a1.jpg"])
    with pytest.raises(BadInputError, match="different people"):
        composer.scene(320, 240, 3)
    with pytest.raises(BadInputError, match="needs a background"):
        Composer([], [a_cutout(0)])


def test_everybody_is_well_visible_in_two_scenes(tmp_path: Path) -> None:
    people = [f"p{person:02d}" for person in range(8)]
    lines = write_scenes(tmp_path, a_composer(), people, 8, 320, 240)
    assert [json.loads(line) for line in (tmp_path / "truth.jsonl").read_text().splitlines()] == lines
    assert [path.name for path in sorted(tmp_path.glob("*.jpg"))] == [line["file"] for line in lines]
    assert lines[0]["file"] == "000001.jpg"
    views = [shown["person"] for line in lines for shown in line["people"] if shown["visible"] >= 0.3]
    assert all(views.count(person) >= 2 for person in people)


def test_too_few_scenes_for_the_people_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="raise the count"):
        write_scenes(tmp_path, a_composer(30), [f"p{person:02d}" for person in range(30)], 1, 320, 240)
    with pytest.raises(NotFoundError, match="no cut-out of"):
        write_scenes(tmp_path, a_composer(), ["nobody"], 5, 320, 240)


def test_doubtful_descriptions_are_left_out(tmp_path: Path) -> None:
    assert descriptions(research_folder(tmp_path)) == {"p0": ["a man"], "p1": ["a woman"], "p2": ["a boy", "a child"]}


def test_the_command_writes_scenes_truth_and_descriptions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out, people = research_folder(tmp_path / "data"), tmp_path / "out", tmp_path / "people.txt"
    people.write_text("p0\np2\n")
    main(["--data", str(data), "--out", str(out), "--scenes", "3", "--width", "320", "--height", "240", "--people", str(people)])
    assert json.loads(capsys.readouterr().out)["scenes"] == 3
    assert [json.loads(line)["person"] for line in (out / "described.jsonl").read_text().splitlines()] == ["p0", "p2"]
    assert len((out / "truth.jsonl").read_text().splitlines()) == len(list(out.glob("*.jpg"))) == 3
