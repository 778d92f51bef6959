"""`sightline evaluate cast-search`: several steps find those whose face was not seen; broken folders are named."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest

from pipeline.calibration import Calibration
from pipeline.errors import BadInputError, NotFoundError
from pipeline.evidence import PlainAssociator
from pipeline.ports import Face
from pipeline.types import BODY, FACE, TEXT, VOICE, Embedding, Vectors
from services.evaluate_cast_search import Searchers, evaluate_cast_search
from tests.films import write_csm, write_portraits

COLOURS = {"c0": (250, 40, 40), "c1": (40, 250, 40), "t0": (240, 60, 60), "t1": (60, 240, 60), "t2": (60, 60, 240)}


def colour(bgr: np.ndarray) -> np.ndarray:
    vector = bgr.reshape(-1, 3).mean(axis=0).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


class ColourFaces:
    """Finds a face in every picture, as like another as their colours are; in none of the picture's ``blind`` number."""

    space = "colour@1"

    def __init__(self, blind: int = -1) -> None:
        self._blind, self._seen = blind, 0

    def faces(self, bgr: np.ndarray) -> list[Face]:
        self._seen += 1
        if self._seen - 1 == self._blind:
            return []
        return [Face(np.array([0, 0, 9, 9], np.float32), 0.9, 0.9, Embedding(FACE, self.space, colour(bgr), 0.9))]


class ColourLooks:
    spaces: ClassVar = {BODY: "clothes@1", TEXT: "words@1"}

    def encode(self, crops: list[np.ndarray]) -> dict[str, Vectors]:
        return {modality: Vectors(space, np.stack([colour(crop) for crop in crops])) for modality, space in self.spaces.items()}

    def attributes(self, vectors: np.ndarray, quality: list[float]) -> tuple[()]:
        return ()


class SameVoice:
    space = "tone@1"

    def activity(self, samples: np.ndarray) -> np.ndarray:
        return np.ones(len(samples) // 512, np.float32)

    def overlap(self, samples: np.ndarray) -> np.ndarray:
        return np.zeros(len(samples) // 512, np.float32)

    def encode(self, samples: np.ndarray) -> Embedding:
        if not samples.any():
            raise BadInputError("a voice must be heard")
        return Embedding(VOICE, self.space, samples[:4], 0.8)


def searchers(blind: int = -1) -> Searchers:
    def read(path: Path) -> np.ndarray:
        return np.zeros(16, np.float32)

    return Searchers(ColourFaces(blind), ColourLooks(), SameVoice(), read, PlainAssociator(Calibration.default()))


def nobody() -> Searchers:
    raise AssertionError("published numbers need no encoder")


def paint(path: Path) -> None:
    random = np.random.default_rng(0)
    picture = np.clip(np.array(COLOURS[path.stem]) + random.normal(0, 30, (70, 40, 3)), 0, 255).astype(np.uint8)
    cv2.imwrite(str(path), picture)


def test_steps_by_clothes_find_the_tracklet_whose_face_was_not_seen(tmp_path: Path) -> None:
    write_csm(tmp_path)
    made = evaluate_cast_search(tmp_path, None, nobody)
    face, then = made["within_films"]["face"], made["within_films"]["face, then body"]
    assert then["mAP"] == 1.0 > face["mAP"]
    assert then["R@1"] == 1.0 > face["R@1"]
    assert then["films"] == 2
    assert made["across_films"]["face"]["cast"] == 3
    assert (made["layout"], made["subset"]) == ("CSM", "test")


def test_voices_are_searched_where_there_are_any(tmp_path: Path) -> None:
    write_csm(tmp_path, with_voice=True)
    assert "face, then body and voice" in evaluate_cast_search(tmp_path, "test", nobody)["within_films"]


def test_vectors_will_do(tmp_path: Path) -> None:
    write_csm(tmp_path, as_features=True)
    table = evaluate_cast_search(tmp_path, "test", nobody)["within_films"]
    assert table["face"]["mAP"] == table["face, then voice"]["mAP"] == 1.0


def test_pictures_go_through_our_own_encoders(tmp_path: Path) -> None:
    write_portraits(tmp_path, paint)
    made = evaluate_cast_search(tmp_path, None, searchers)
    assert made["within_films"]["face"]["mAP"] == 1.0
    assert made["across_films"] == {}  # one film
    assert made["tracklets_with"] == {FACE: 3, BODY: 3, VOICE: 0}


def test_a_silent_sound_file_is_no_voice_and_a_missing_face_is_none(tmp_path: Path) -> None:
    write_portraits(tmp_path, paint, voice="tt9/t.wav")
    made = evaluate_cast_search(tmp_path, "val", lambda: searchers(blind=2))
    assert made["tracklets_with"] == {FACE: 2, BODY: 3, VOICE: 0}


def test_a_folder_of_neither_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"meta/SUBSET\.json"):
        evaluate_cast_search(tmp_path, None, nobody)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "test.json").write_text('{"movie": ["a"], "info": {"a": {"pids": ["x"], "labels": ["x"]}}}')
    with pytest.raises(NotFoundError, match="affinities"):
        evaluate_cast_search(tmp_path, None, nobody)
