"""Samples for the associative network: altered as cameras and rooms do, encoded by the product, with the product's own quality."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest

from models.training.tracklets import Heard, Room, Shown, View, body_crops, body_samples, clip_samples, face_samples, voice_samples
from pipeline.errors import BadInputError
from pipeline.ports import Face
from pipeline.types import BODY, FACE, TEXT, VOICE, Embedding, Vectors


def picture(seed: int, height: int = 160, width: int = 60) -> np.ndarray:
    random = np.random.default_rng(seed)
    base = random.integers(30, 220, 3)
    return np.clip(base + random.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)


class MeanColour:
    """Faces and looks by mean colour. A face smaller than 24 px gets no vector."""

    space = "colour@1"
    spaces: ClassVar = {BODY: "clothes@1", TEXT: "words@1"}

    def __init__(self, count: int = 1) -> None:
        self._count = count

    def faces(self, bgr: np.ndarray) -> list[Face]:
        side = float(bgr.shape[1])
        box = np.array([0, 0, side, side], np.float32)
        vector = (
            Embedding(FACE, self.space, bgr.reshape(-1, 3).mean(axis=0).astype(np.float32), min(1.0, side / 100)) if side >= 24 else None
        )
        return [Face(box, 0.95, min(1.0, side / 100), vector)] * self._count

    def encode(self, crops: list[np.ndarray]) -> dict[str, Vectors]:
        raw = np.stack([crop.reshape(-1, 3).mean(axis=0) for crop in crops])
        unit = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
        return {modality: Vectors(space, unit) for modality, space in self.spaces.items()}

    def attributes(self, vectors: np.ndarray, quality: list[float]) -> tuple[()]:
        return ()


class Loudness:
    space = "loud@1"

    def activity(self, samples: np.ndarray) -> np.ndarray:
        return np.ones(len(samples) // 512, np.float32)

    def overlap(self, samples: np.ndarray) -> np.ndarray:
        return np.zeros(len(samples) // 512, np.float32)

    def encode(self, samples: np.ndarray) -> Embedding:
        if len(samples) < 16_000:
            raise BadInputError("a voice must last a second")
        return Embedding(VOICE, self.space, np.array([1.0, np.abs(samples).mean()], np.float32), 0.5)


def test_faces_too_small_for_the_gate_make_no_sample() -> None:
    shown = [Shown(f"p{n % 3}", n // 3, picture(n % 3, 100, 100)) for n in range(6)]
    made = face_samples(shown, MeanColour(), 12, np.random.default_rng(0))
    assert made.space == "colour@1"
    assert 0 < len(made) < 36
    assert (made.takes > 0).all()
    assert made.quality.min() > 0.2


def test_pictures_with_several_faces_are_left_out() -> None:
    with pytest.raises(BadInputError, match="face"):
        face_samples([Shown("p", 0, picture(0))], MeanColour(count=2), 2, np.random.default_rng(0))


def test_bodies_are_sampled_for_each_camera_in_every_space() -> None:
    shown = [Shown(f"p{n % 4}", camera, picture(n)) for n in range(8) for camera in (1, 2)]
    body, words = body_samples(shown, MeanColour(), 3, np.random.default_rng(0))
    assert (body.modality, words.modality) == (BODY, TEXT)
    assert set(body.takes.tolist()) == {1 << 1, 1 << 2}
    assert len(body) == len(words) <= 4 * 2 * 3
    assert np.ptp(body.quality) > 0.1
    np.testing.assert_allclose(np.linalg.norm(body.vectors, axis=1), 1.0, atol=1e-5)


def test_voices_that_are_not_heard_make_no_sample() -> None:
    random = np.random.default_rng(0)
    heard = [Heard(f"s{n % 2}", n // 2, random.normal(0, 0.1, 48_000).astype(np.float32)) for n in range(4)]
    made = voice_samples(heard, Loudness(), 20, random)
    assert made.people == ["s0", "s1"]
    assert 0 < len(made) < 40


def test_a_room_keeps_the_length_and_the_range() -> None:
    random = np.random.default_rng(0)
    sound = np.sin(np.arange(32_000) / 20).astype(np.float32)
    made = Room(1.0, 5.0, 10.0, 0.4, True).altered(sound, [sound[::-1].copy()], random)
    assert made.shape == (16_000,)
    assert made.dtype == np.float32
    assert np.abs(made).max() <= 1


def test_a_view_scales_and_darkens() -> None:
    made = View(40, 1.0, 0.3, 2.0, 60).altered(picture(0), 0.25, np.random.default_rng(0))
    assert made.shape == (40, 15, 3)
    assert made.mean() < 0.6 * picture(0).mean()


def test_crops_are_read_with_their_camera(tmp_path: Path) -> None:
    for name in ("anna/a1.jpg", "anna/b1.jpg", "bert/a1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), picture(0))
    shown = body_crops(tmp_path, {"anna"})
    assert [(each.person, each.take) for each in shown] == [("anna", 1), ("anna", 2)]


def test_a_labelled_clip_gives_the_pieces_of_its_tracks(tmp_path: Path) -> None:
    video, boxes = tmp_path / "yard.mp4", tmp_path / "yard.txt"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), 25, (200, 120))
    for _ in range(24):
        frame = np.full((120, 200, 3), 90, np.uint8)
        frame[20:110, 10:50] = picture(1, 90, 40)
        frame[20:110, 120:160] = picture(2, 90, 40)
        writer.write(frame)
    writer.release()
    lines = [f"{n},{who},{left},20,40,90,1,-1,-1,-1" for n in range(1, 25) for who, left in ((1, 10), (2, 120))]
    boxes.write_text("\n".join(lines))
    body, _ = clip_samples(video, boxes, MeanColour(), pieces=2)
    assert sorted(set(body.person.tolist())) == ["yard/1", "yard/2"]
    assert sorted(body.takes.tolist()) == [1, 1, 2, 2]
    boxes.write_text("no boxes")
    with pytest.raises(BadInputError, match=r"yard\.txt"):
        clip_samples(video, boxes, MeanColour())
