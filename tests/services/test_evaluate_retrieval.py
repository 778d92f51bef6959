"""Figures of text search and re-identification on a folder of painted people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest

from pipeline.errors import BadInputError, NotFoundError, UnreadableMediaError
from pipeline.types import BODY, TEXT, Attribute, Embedding, Vectors
from services.evaluate_retrieval import evaluate_reid, evaluate_text_search

COLOURS = {"anna": (0, 0, 220), "bert": (0, 200, 0), "cleo": (220, 0, 0)}  # BGR
WORDS = {"red": (0, 0, 1), "green": (0, 1, 0), "blue": (1, 0, 0)}


class MeanColour:
    """Look encoder and text encoder in one: the mean colour of a crop, the colour of a word."""

    space = "mean-colour@1"
    spaces: ClassVar[dict[str, str]] = {BODY: space, TEXT: space}

    def encode_crops(self, crops: Sequence[np.ndarray]) -> dict[str, Vectors]:
        means = np.stack([crop.reshape(-1, 3).mean(0) for crop in crops]) + 1e-3
        vectors = Vectors(self.space, (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32))
        return {BODY: vectors, TEXT: vectors}

    def encode(self, what: Sequence[np.ndarray] | str) -> dict[str, Vectors] | Embedding:
        if not isinstance(what, str):
            return self.encode_crops(what)
        if what not in WORDS:
            raise BadInputError(f"a colour must be named, got {what}")
        return Embedding("text", self.space, np.array(WORDS[what], np.float32))

    def attributes(self, vectors: np.ndarray, quality: Sequence[float]) -> tuple[Attribute, ...]:
        return ()

    def explain(self, text: str, attributes: Sequence[Attribute]) -> tuple[str, ...]:
        return ()


@pytest.fixture
def persons(tmp_path: Path) -> Path:
    folder = tmp_path / "persons"
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for shot in ("a1", "a2", "b1"):
            cv2.imwrite(str(folder / name / f"{shot}.jpg"), np.full((40, 20, 3), colour, np.uint8))
    return folder


def captions(folder: Path, *lines: dict[str, str]) -> Path:
    path = folder / "captions.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def test_each_person_is_found_by_colour(persons: Path, tmp_path: Path) -> None:
    lines = [{"person": "anna", "caption": "red"}, {"person": "bert", "caption": "green"}, {"person": "nobody", "caption": "blue"}]
    figures = evaluate_text_search(persons, captions(tmp_path, *lines), None, MeanColour(), MeanColour())
    assert figures["crops"]["rank_1"] == figures["crops"]["mAP"] == 1.0
    assert figures["crops"]["gallery"] == 6  # of the two people named
    assert figures["tracklets"]["gallery"] == 4
    assert figures["tracklets"]["queries"] == 2


def test_a_caption_that_says_nothing_is_counted(persons: Path, tmp_path: Path) -> None:
    file = captions(tmp_path, {"person": "cleo", "caption": "hm"}, {"person": "cleo", "caption": "blue"})
    assert evaluate_text_search(persons, file, None, MeanColour(), MeanColour())["captions_not_understood"] == 1


def test_distractors_enlarge_the_gallery_and_are_never_queries(persons: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for name in ("a1.png", "b1.png"):
        cv2.imwrite(str(others / name), np.full((40, 20, 3), 90, np.uint8))
    figures = evaluate_reid(persons, others, MeanColour())
    assert figures["gallery"] == 4  # camera b of three people and of one stranger
    assert figures["queries"] == 6
    assert figures["rank_1"] == 1.0


def test_similarities_are_written_where_asked(persons: Path, tmp_path: Path) -> None:
    file = captions(tmp_path, {"person": "anna", "caption": "red"})
    evaluate_text_search(persons, file, None, MeanColour(), MeanColour(), tmp_path / "dump.npz")
    evaluate_reid(persons, None, MeanColour(), tmp_path / "reid.npz")
    assert np.load(tmp_path / "dump.npz")["similarity"].shape == (1, 3)
    assert np.load(tmp_path / "reid.npz")["similarity"].shape == (6, 3)


def test_people_may_be_links_to_a_larger_collection(persons: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    (few / "anna").symlink_to(persons / "anna")
    assert evaluate_reid(few, None, MeanColour())["queries"] == 2


def test_every_figure_has_an_interval_over_people(persons: Path, tmp_path: Path) -> None:
    lines = [{"person": "anna", "caption": "red"}, {"person": "bert", "caption": "red"}]  # bert is described wrongly
    figures = evaluate_text_search(persons, captions(tmp_path, *lines), None, MeanColour(), MeanColour())
    assert figures["crops"]["rank_1"] == 0.5
    assert figures["crops"]["intervals"]["rank_1"] == [0.0, 1.0]
    assert set(figures["persons"]["intervals"]) == {"rank_1", "rank_10", "mAP"}
    assert evaluate_reid(persons, None, MeanColour())["intervals"]["mAP"] == [1.0, 1.0]


def test_people_are_ranked_by_their_best_vector_and_strangers_stay_apart(persons: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for name in ("a1.png", "a2.png"):
        cv2.imwrite(str(others / name), np.full((40, 20, 3), 90, np.uint8))
    cv2.imwrite(str(persons / "anna" / "b1.jpg"), np.full((40, 20, 3), 200, np.uint8))  # red from one side only
    figures = evaluate_text_search(persons, captions(tmp_path, {"person": "anna", "caption": "red"}), others, MeanColour(), MeanColour())
    assert (figures["persons"]["gallery"], figures["persons"]["rank_1"], figures["persons"]["mAP"]) == (3, 1.0, 1.0)
    assert figures["tracklets"]["gallery"] == 4


def test_each_source_is_measured_alone(persons: Path, tmp_path: Path) -> None:
    for old, new in (("anna", "one_anna"), ("bert", "one_bert"), ("cleo", "two_cleo")):
        (persons / old).rename(persons / new)
    others = tmp_path / "others"
    others.mkdir()
    cv2.imwrite(str(others / "b1.png"), np.full((40, 20, 3), 90, np.uint8))
    lines = [{"person": person, "caption": "red"} for person in ("one_anna", "one_bert", "two_cleo")]
    sources = evaluate_text_search(persons, captions(tmp_path, *lines), others, MeanColour(), MeanColour())["sources"]
    assert {source: figures["crops"]["gallery"] for source, figures in sources.items()} == {"one": 6, "two": 3}
    assert {source: figures["crops"]["rank_1"] for source, figures in sources.items()} == {"one": 0.5, "two": 1.0}
    assert {source: figures["persons"]["gallery"] for source, figures in sources.items()} == {"one": 2, "two": 1}
    sources = evaluate_reid(persons, others, MeanColour())["sources"]
    assert {source: (figures["gallery"], figures["queries"], figures["people"]) for source, figures in sources.items()} == {
        "one": (2, 4, 2),
        "two": (1, 2, 1),
    }


def test_people_without_a_source_in_their_name_are_not_split(persons: Path) -> None:
    assert evaluate_reid(persons, None, MeanColour())["sources"] == {}


def test_bad_input_is_named(persons: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="empty"):
        evaluate_reid(tmp_path / "empty", None, MeanColour())
    broken = tmp_path / "captions.jsonl"
    broken.write_text("not json\n")
    with pytest.raises(BadInputError, match="line 1"):
        evaluate_text_search(persons, broken, None, MeanColour(), MeanColour())
    with pytest.raises(NotFoundError, match="captions"):
        evaluate_text_search(persons, tmp_path / "none.jsonl", None, MeanColour(), MeanColour())
    with pytest.raises(BadInputError, match="describes none"):
        evaluate_text_search(persons, captions(tmp_path, {"person": "zed", "caption": "red"}), None, MeanColour(), MeanColour())
    (persons / "anna" / "a3.jpg").write_text("no picture")
    with pytest.raises(UnreadableMediaError, match=r"a3\.jpg"):
        evaluate_reid(persons, None, MeanColour())
