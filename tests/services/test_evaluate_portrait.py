"""`sightline evaluate portrait`: figures on folders made here, with faces that are patches of colour."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.errors import BadInputError, NotFoundError, UnreadableMediaError
from pipeline.ports import Face
from pipeline.types import FACE, Embedding
from services.cli.app import app
from services.evaluate_portrait import evaluate_portrait, largest, shrunk

PEOPLE = {"anna": (200, 60, 60), "bert": (60, 200, 60), "carl": (60, 60, 200)}


class PatchFaces:
    """The FaceEncoder port: a face is a bright patch in a black picture, its vector the patch's colour, its quality its size."""

    space = "patch@1"

    def faces(self, bgr: np.ndarray) -> list[Face]:
        count, _, boxes, _ = cv2.connectedComponentsWithStats((bgr.max(axis=2) > 90).astype(np.uint8))
        found = []
        for number in range(1, count):
            x, y, width, height, _ = (int(value) for value in boxes[number])
            vector = bgr[y : y + height, x : x + width].reshape(-1, 3).mean(axis=0) - 100
            box = np.array([x, y, x + width, y + height], np.float32)
            quality = min(1.0, height / 40)
            found.append(Face(box, 0.9, quality, Embedding(FACE, self.space, vector.astype(np.float32), quality)))
        return found


def page(*colours: tuple[int, int, int], side: int = 40, shift: int = 0) -> np.ndarray:
    picture = np.zeros((60, 60 * max(len(colours), 1), 3), np.uint8)
    for number, colour in enumerate(colours):
        picture[10 : 10 + side, 60 * number + 10 : 60 * number + 10 + side] = np.clip(np.array(colour) + shift, 0, 255)
    return picture


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "faces"
    for name, colour in PEOPLE.items():
        (folder / name).mkdir(parents=True)
        for number in range(3):
            cv2.imwrite(str(folder / name / f"{number}.png"), page(colour, shift=5 * number))
    return folder


def measured(faces: Path, **options: Any) -> dict[str, Any]:
    return evaluate_portrait(faces, PatchFaces(), 0.5, 0.5, **options)


def test_people_who_are_told_apart_get_full_marks(faces: Path) -> None:
    result = measured(faces)
    assert [result[name] for name in ("rank_1", "rank_5", "mAP", "EER", "FNIR_at_FPIR_1_percent")] == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert [result[name] for name in ("people", "pictures", "queries", "not_found", "below_gate")] == [3, 9, 9, 0, 0]
    assert result["false_match_rate"] == 0.0
    assert result["intervals"]["rank_1"] == [1.0, 1.0]
    assert result["space"] == "patch@1"
    assert result["above_gate"]["queries"] == 9


def test_two_people_who_look_alike_cost_the_figures(faces: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(faces / "carl" / f"{number}.png"), page(PEOPLE["anna"], shift=5 * number + 2))
    result = measured(faces)
    assert result["rank_1"] < 1
    assert result["EER"] > 0.2
    assert result["FNIR_at_FPIR_1_percent"] > 0.5
    assert result["false_match_rate"] > 0


def test_pictures_without_a_face_and_poor_faces_are_counted(faces: Path) -> None:
    cv2.imwrite(str(faces / "anna" / "empty.png"), page())
    cv2.imwrite(str(faces / "bert" / "far.png"), page(PEOPLE["bert"], side=12))
    result = measured(faces)
    assert (result["pictures"], result["not_found"], result["below_gate"]) == (11, 1, 1)
    assert (result["queries"], result["above_gate"]["queries"]) == (10, 9)
    assert result["rank_1_of_all_pictures"] == pytest.approx(10 / 11, abs=1e-4)
    assert result["above_gate"]["rank_1_of_all_pictures"] == pytest.approx(9 / 11, abs=1e-4)


def test_faces_are_shrunk_to_the_size_asked(faces: Path) -> None:
    result = measured(faces, sizes=(30, 12))
    assert list(result["sizes"]) == ["30", "12"]
    assert result["sizes"]["30"]["below_gate"] == 0
    assert result["sizes"]["12"]["below_gate"] == 9
    assert result["sizes"]["12"]["above_gate"]["queries"] == 0
    assert result["sizes"]["12"]["against_full_size"]["gallery"] == 9
    (face,) = PatchFaces().faces(page(PEOPLE["anna"]))
    assert shrunk(page(PEOPLE["anna"]), face, 10).shape == (15, 15, 3)
    assert shrunk(page(PEOPLE["anna"]), face, 400).shape == (60, 60, 3), "never enlarged"


def test_unknown_people_enlarge_the_gallery(faces: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    (gallery / "anna").mkdir(parents=True)
    cv2.imwrite(str(gallery / "anna" / "still.png"), page(PEOPLE["anna"], shift=9))
    cv2.imwrite(str(gallery / "group.png"), page((190, 190, 60), (60, 190, 190)))
    result = measured(faces, gallery=gallery)["with_gallery"]
    assert (result["faces"], result["unknown"], result["queries"]) == (3, 2, 3)
    assert result["rank_1"] == 1.0
    assert result["FNIR_at_FPIR_1_percent"] == 0.0


def test_the_largest_face_of_a_portrait_counts() -> None:
    picture = page((200, 60, 60), (60, 200, 60))
    picture[40:50, 70:110] = 0  # the second is 30 px high
    face = largest(PatchFaces().faces(picture))
    assert face is not None
    assert float(face.xyxy[0]) == 10
    assert largest([]) is None


def test_pairs_are_judged(faces: Path) -> None:
    file = faces.parent / "pairs.csv"
    file.write_text("first,second,same\nanna/0.png,anna/1.png,1\nfaces/anna/0.png,faces/bert/0.png,0\nbert/0.png,bert/2.png,true\n")
    result = measured(faces, pairs=file)["pairs"]
    assert (result["pairs"], result["compared"], result["same"]) == (3, 3, 2)
    assert (result["AUC"], result["EER"], result["accuracy"], result["best_accuracy"]) == (1.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "must have the columns first, second, same, got a, b"),
        ("", "must have the columns first, second, same, got none"),
        ("first,second,same\n", "must hold one pair or more"),
        ("first,second,same\nanna/0.png,anna/1.png,perhaps\n", "line 2 .*same must be 1 or 0, got 'perhaps'"),
        ("first,second,same\nanna/0.png,nobody.png,1\n", "line 2 .*'nobody.png' must be beside the file"),
    ],
)
def test_pairs_that_cannot_be_read_are_named(faces: Path, text: str, said: str) -> None:
    file = faces.parent / "pairs.csv"
    file.write_text(text)
    with pytest.raises(BadInputError, match=said):
        measured(faces, pairs=file)


def test_pairs_in_another_coding_are_refused(faces: Path) -> None:
    file = faces.parent / "pairs.csv"
    file.write_bytes("first,second,same\nanna/Ä.png,anna/1.png,1\n".encode("utf-16"))
    with pytest.raises(BadInputError, match="must be a CSV file in UTF-8"):
        measured(faces, pairs=file)


def test_similarities_are_dumped_with_their_names(faces: Path, tmp_path: Path) -> None:
    measured(faces, dump=tmp_path / "figures" / "dump.npz")
    dump = np.load(tmp_path / "figures" / "dump.npz")
    assert dump["similarity"].shape == (9, 9)
    assert dump["query_person"].tolist() == dump["gallery_person"].tolist()
    assert dump["query"][0].endswith("anna/0.png")
    assert len(dump["pictures"]) == 9


def test_what_cannot_be_measured_is_refused(tmp_path: Path, faces: Path) -> None:
    with pytest.raises(NotFoundError, match="a folder of pictures per person"):
        measured(tmp_path / "nobody")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="must hold pictures"):
        measured(faces, gallery=tmp_path / "empty")
    alone = tmp_path / "alone" / "anna"
    alone.mkdir(parents=True)
    cv2.imwrite(str(alone / "0.png"), page(PEOPLE["anna"]))
    with pytest.raises(BadInputError, match="two people or more, found 1"):
        measured(alone.parent)
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "broken.jpg").write_bytes(b"words")
    with pytest.raises(UnreadableMediaError, match=r"broken\.jpg must be a JPEG, PNG or other picture"):
        measured(faces, gallery=unknown)


def test_a_picture_that_does_not_decode_counts_as_one_without_a_face_and_is_named(faces: Path) -> None:
    (faces / "anna" / "broken.jpg").write_bytes(b"words")
    result = measured(faces)
    assert result["unreadable"] == [str(faces / "anna" / "broken.jpg")]
    assert (result["pictures"], result["not_found"], result["queries"]) == (10, 1, 9)
    assert result["rank_1_of_all_pictures"] == 0.9
    for name in ("bert", "carl"):
        for path in (faces / name).iterdir():
            path.write_bytes(b"words")
    with pytest.raises(BadInputError, match=r"found 1 in 10 pictures; 7 pictures do not decode, the first is .*broken\.jpg"):
        measured(faces)


def test_pictures_lie_at_any_depth_and_what_is_hidden_is_left_out(faces: Path) -> None:
    plain = measured(faces)
    (faces / "anna" / "summer").mkdir()
    (faces / "anna" / "0.png").rename(faces / "anna" / "summer" / "Ä b#1.PNG")
    (faces / "anna" / "._1.png").write_bytes(b"a fork of another system")
    (faces / "anna" / "folder.jpg").mkdir()
    (faces / ".cache" / "x").mkdir(parents=True)
    (faces / ".cache" / "x" / "0.png").write_bytes(b"")
    result = measured(faces)
    assert {**result, "elapsed_s": 0} == {**plain, "elapsed_s": 0}


def test_where_nobody_has_two_pictures_there_is_no_rank(faces: Path) -> None:
    for path in [*faces.glob("*/1.png"), *faces.glob("*/2.png")]:
        path.unlink()
    result = measured(faces)
    assert (result["queries"], result["rank_1"], result["mAP"], result["EER"]) == (0, None, None, None)


def test_the_command_prints_json_for_programs(weights: Callable[[str], Path], shared_data: Path, tmp_path: Path) -> None:
    weights("mobilefacenet")
    for name in ("amy", "raj"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for path in sorted((shared_data / "faces" / "sitcom" / name).glob("*.png"))[:3]:
            (tmp_path / "faces" / name / path.name).symlink_to(path)
    run = CliRunner().invoke(app, ["evaluate", "portrait", "--faces", str(tmp_path / "faces"), "--size", "32", "--json"])
    assert run.exit_code == 0, run.output
    result = json.loads(run.stdout)
    assert result["rank_1"] == 1.0
    assert result["sizes"]["32"]["pictures"] == 6
    assert result["space"] == "mobilefacenet@1"


@pytest.mark.accuracy
def test_portraits_find_their_person_among_the_given_people(weights: Callable[[str], Path], shared_data: Path) -> None:
    from services.measuring import measure_portrait
    from services.settings import Settings

    weights("mobilefacenet")
    result = measure_portrait(Settings(), shared_data / "faces" / "sitcom", pairs=None, gallery=None, sizes=(24,), dump=None)
    assert result["rank_1"] == 1.0
    assert result["mAP"] >= 0.99
    assert result["EER"] <= 0.012
    assert result["sizes"]["24"]["mAP"] >= 0.95
    assert result["sizes"]["24"]["above_gate"]["EER"] <= 0.04
