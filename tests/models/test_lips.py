"""Mouths: still ones, moving ones, and those too small to be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from models.blazeface import BlazeFace, FoundFaces
from models.lips import PATCH, MouthReader, mouth_patch
from pipeline.ports import Head
from pipeline.voice.attribution import LipMotion, lip_fit
from pipeline.voice.turns import Loudness, loudness

S = 1_000_000_000
HZ = 25


class DrawnFaces:
    """Stands in for BlazeFace: eyes and mouth of a drawn face, moved as it was drawn."""

    def __init__(self, height_px: float = 80.0) -> None:
        self.looks = 0
        self._height_px = height_px

    def find(self, bgr: np.ndarray) -> FoundFaces:
        self.looks += 1
        columns = np.flatnonzero(bgr[40, :, 1] > 250)  # the eyes are the brightest
        if not len(columns):
            return FoundFaces(np.zeros((0, 4), np.float32), np.zeros((0, 6, 2), np.float32), np.zeros(0, np.float32))
        left, right = float(columns[0]) + 2, float(columns[-1]) - 2
        middle = (left + right) / 2
        points = np.asarray([[[left, 40], [right, 40], [middle, 60], [middle, 80], [0, 50], [99, 50]]], np.float32)
        box = np.asarray([[middle - 40, 20, middle + 40, 20 + self._height_px]], np.float32)
        return FoundFaces(box, points, np.asarray([0.9], np.float32))


def drawn(number: int, opening: float, shift: int = 0) -> Head:
    """A face with two eyes and a dark mouth ``opening`` pixels high, moved right by ``shift``."""
    grey = np.full((120, 140), 150, np.uint8)
    grey = cv2.GaussianBlur(grey, (0, 0), 1)
    for eye in (35, 65):
        grey[38:43, eye - 2 + shift : eye + 3 + shift] = 255
    cv2.ellipse(grey, (50 + shift, 80), (12, max(1, round(opening))), 0, 0, 360, 40, -1)
    return Head(number * S // HZ, grey, 0.0, 0.0)


def opened(openings: Sequence[float], shifts: Sequence[int] | None = None) -> list[Head]:
    return [drawn(number, opening, shifts[number] if shifts else 0) for number, opening in enumerate(openings)]


def test_a_mouth_that_opens_moves_and_one_that_rests_does_not() -> None:
    reader = MouthReader(DrawnFaces())
    rests = reader.read(opened([3] * 20))
    speaks = reader.read(opened([3 + 5 * (number % 4) for number in range(20)]))
    assert rests.shape == (20,)
    assert rests.dtype == np.float32
    assert np.isnan(rests[0])
    assert np.nanmax(rests) < 0.1
    assert np.nanmean(speaks) > 5


def test_a_head_that_moves_with_a_mouth_at_rest_moves_little() -> None:
    reader = MouthReader(DrawnFaces())
    walks = reader.read(opened([5] * 20, shifts=list(range(20))))
    speaks = reader.read(opened([3 + 5 * (number % 4) for number in range(20)]))
    assert np.nanmean(walks) < 0.25 * np.nanmean(speaks)


def test_key_points_are_looked_for_in_one_picture_of_five() -> None:
    faces = DrawnFaces()
    MouthReader(faces).read(opened([3] * 30))
    assert faces.looks <= 8


def test_a_face_below_forty_pixels_is_not_read_but_a_thinned_one_is() -> None:
    far = MouthReader(DrawnFaces(height_px=30))
    assert np.isnan(far.read(opened([3, 9, 3, 9]))).all()
    thinned = [Head(head.at_ns, head.grey, head.left, head.top, 2.0) for head in opened([3, 9, 3, 9])]
    assert np.isfinite(far.read(thinned)[1:]).all()


def test_no_face_or_one_picture_is_no_motion() -> None:
    reader = MouthReader(DrawnFaces())
    blank = [Head(number * S // HZ, np.full((120, 100), 90, np.uint8), 0.0, 0.0) for number in range(5)]
    assert np.isnan(reader.read(blank)).all()
    assert np.isnan(reader.read(opened([3]))).all()
    assert reader.read([]).shape == (0,)


def test_pictures_far_from_any_face_are_not_made_up() -> None:
    blank = np.full((120, 100), 90, np.uint8)
    heads = [*opened([3, 9, 3]), *(Head((3 + number) * S // HZ, blank, 0.0, 0.0) for number in range(40))]
    motion = MouthReader(DrawnFaces()).read(heads)
    assert np.isnan(motion[12:]).all()


def test_a_patch_is_upright_and_of_one_size_at_every_scale() -> None:
    grey = np.zeros((200, 200), np.uint8)
    grey[:, 100:] = 200  # right half bright
    level = mouth_patch(Head(0, grey, 0.0, 0.0), np.asarray([[80.0, 60], [120, 60], [100, 100]]), 40.0)
    assert level.shape == (PATCH, PATCH)
    assert level[:, :8].max() < 20 < 180 < level[:, -8:].min()
    turned = mouth_patch(Head(0, np.rot90(grey, -1).copy(), 0.0, 0.0), np.asarray([[140.0, 80], [140, 120], [100, 100]]), 40.0)
    assert turned[:, :8].max() < 20 < 180 < turned[:, -8:].min()


def test_a_patch_at_the_edge_repeats_it() -> None:
    points = np.asarray([[1.0, 1], [9, 1], [5, 190]])
    assert (mouth_patch(Head(0, np.full((200, 10), 77, np.uint8), 0.0, 0.0), points, 60.0) == 77).all()
    assert (mouth_patch(Head(0, np.full((20, 20), 77, np.uint8), 0.0, 0.0), points + 500, 60.0) == 0).all()


@pytest.fixture(scope="module")
def reader(weights: Callable[[str], Path]) -> MouthReader:
    return MouthReader(BlazeFace(weights("blazeface")))


def test_lips_of_real_faces_move_with_their_own_sound_more_than_with_it_moved_in_time(reader: MouthReader, shared_data: Path) -> None:
    own, moved = [], []
    for path in sorted((shared_data / "talking").glob("*.mpg"))[:3]:
        with av.open(str(path)) as clip:
            greys = [frame.to_ndarray(format="bgr24")[..., 1] for frame in clip.decode(video=0)]
        heads = [Head(number * S // HZ, np.ascontiguousarray(grey), 0.0, 0.0) for number, grey in enumerate(greys)]
        lips = LipMotion(np.asarray([head.at_ns for head in heads]), reader.read(heads))
        heard = loudness_of(path)
        for sound, fits in ((heard.db, own), (np.roll(heard.db, 120), moved)):
            fit = lip_fit(Loudness(0, heard.step_ns, sound), lips)
            assert fit is not None
            fits.append(fit.value)
    assert min(own) > max(moved)


def loudness_of(path: Path) -> Loudness:
    resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
    with av.open(str(path)) as clip:
        parts = [made.to_ndarray().reshape(-1) for frame in clip.decode(audio=0) for made in resampler.resample(frame)]
    return Loudness(0, S // 100, loudness(np.concatenate(parts)))
