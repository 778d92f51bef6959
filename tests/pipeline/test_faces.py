"""The faces of a track: which heads are kept, which face is the person's, and one vector of those that agree."""

from __future__ import annotations

import doctest
import time

import numpy as np
import pytest

from pipeline import faces
from pipeline.faces import BEST_FACES, CANDIDATES, TrackFaces, belonging, expected_face_px, of_one_person, own_face
from pipeline.ports import Face
from pipeline.shots import thinned
from pipeline.types import FACE, Embedding
from tests.fakes import S, embedding, noise, unit

BOX = np.array([100, 20, 160, 220], np.float32)  # a standing person, 200 px high: a face of about 27 px


def a_face(middle: float, top: float, side: float = 27, *vector: float, quality: float = 0.8, has_vector: bool = True) -> Face:
    box = np.array([middle - side / 2, top, middle + side / 2, top + side], np.float32)
    return Face(box, 0.9, quality, embedding(FACE, *(vector or (1.0, 0.0)), quality=quality) if has_vector else None)


class FacesInTurn:
    """The FaceEncoder port: gives one face, in the middle near the top, with the next vector of a list each time it is asked."""

    space = "fake-face@1"

    def __init__(self, *vectors: tuple[float, ...] | None, quality: float = 0.8) -> None:
        self.vectors, self.quality, self.looks = list(vectors), quality, 0

    def faces(self, bgr: np.ndarray) -> list[Face]:
        vector = self.vectors[self.looks % len(self.vectors)]
        self.looks += 1
        return [] if vector is None else [a_face(bgr.shape[1] / 2, bgr.shape[0] * 0.2, 27, *vector, quality=self.quality)]


def watched(seconds: float, rate: int = 10, box: np.ndarray = BOX, confidence: float = 0.9, hidden: float = 0.0) -> TrackFaces:
    track = TrackFaces()
    picture = noise(240, 320)
    for number in range(int(seconds * rate)):
        track.offer(picture, number * S // rate, box, confidence, hidden)
    return track


def test_the_worked_example_holds() -> None:
    assert doctest.testmod(faces).failed == 0


def test_heads_are_a_half_second_apart_and_no_more_than_a_handful() -> None:
    encoder = FacesInTurn((1.0, 0.0))
    assert watched(1.9).look(encoder) == 4
    assert watched(60).look(encoder) == CANDIDATES


def test_a_head_is_looked_at_once() -> None:
    track, encoder = watched(2), FacesInTurn((1.0, 0.0))
    first = track.look(encoder)
    assert track.look(encoder) == 0
    assert encoder.looks == first


def test_pixels_are_let_go_once_they_were_looked_at() -> None:
    track = watched(3)
    track.look(FacesInTurn((1.0, 0.0)))
    assert all(head.bgr is None for head in track._heads)


def test_a_person_too_small_to_have_a_face_costs_nothing() -> None:
    assert not TrackFaces().offer(noise(240, 320), 0, np.array([0, 0, 30, 90], np.float32), 0.9, 0.0)
    assert expected_face_px(30, 90) < 18


def test_a_person_hidden_or_cut_off_at_the_head_is_worth_less() -> None:
    picture = noise(240, 320)

    def merit(box: np.ndarray, hidden: float = 0.0, confidence: float = 0.9) -> float:
        track = TrackFaces()
        track.offer(picture, 0, box, confidence, hidden)
        return track.best_merit

    cut_off = BOX - np.array([0, 70, 0, 70], np.float32)
    cut_at_feet = BOX + np.array([0, 100, 0, 100], np.float32)
    assert merit(BOX) > merit(BOX, hidden=0.5) > 0
    assert merit(BOX) > 3 * merit(cut_off)
    assert merit(cut_at_feet) == pytest.approx(merit(BOX), rel=0.1), "feet have no face"
    assert merit(BOX, confidence=0.0) == 0.0


def test_a_sharper_head_takes_the_place_of_the_worst() -> None:
    track = TrackFaces()
    dull = (noise(240, 320) // 16 + 120).astype(np.uint8)
    for number in range(CANDIDATES):
        track.offer(dull, number * S, BOX, 0.9, 0.0)
    before = track.best_merit
    assert track.offer(noise(240, 320), 100 * S, BOX, 0.9, 0.0)
    assert track.best_merit > before
    assert not track.offer(dull, 200 * S, BOX, 0.9, 0.0)
    assert len(track._heads) == CANDIDATES


def test_a_bust_is_searched_as_a_whole_and_a_giant_thinned() -> None:
    encoder = FacesInTurn((1.0, 0.0))
    shapes: list[tuple[int, ...]] = []
    encoder.faces = lambda bgr: shapes.append(bgr.shape) or []  # type: ignore[assignment, func-returns-value]
    for box in ((20, 20, 220, 230), (0, 0, 1000, 2000)):
        track = TrackFaces()
        track.offer(noise(2000, 1000), 0, np.array(box, np.float32), 0.9, 0.0)
        track.look(encoder)
    assert shapes[0][0] >= 200, "down to the width of the box"
    assert max(shapes[1][:2]) <= 400


def test_thinning_averages() -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[:, ::2] = 100
    assert (thinned(picture, 2) == 50).all()
    assert thinned(picture, 2).shape == (2, 3, 3)
    assert thinned(picture, 1).base is None


# -------------------------------------------------------------------------------------- whose face it is


def test_the_face_in_the_middle_at_the_top_is_the_persons_own() -> None:
    own, beside, below = a_face(130, 25), a_face(155, 25, quality=1.0), a_face(130, 150, quality=1.0)
    assert own_face([beside, below, own], (100, 20, 160, 220)) is own


def test_a_sharper_stranger_behind_is_still_a_stranger() -> None:
    own, behind = a_face(130, 25, quality=0.3), a_face(150, 22, 16, quality=1.0)
    assert own_face([behind, own], (100, 20, 160, 220)) is own


def test_a_face_that_fits_nobody_is_nobodys() -> None:
    assert own_face([a_face(130, 160)], (100, 20, 160, 220)) is None, "at the knees"
    assert own_face([a_face(160, 22)], (100, 20, 160, 220)) is None, "at the edge"
    assert own_face([a_face(130, 20, 120)], (100, 20, 160, 220)) is None, "four times too large"
    assert own_face([a_face(130, 25, has_vector=False)], (100, 20, 160, 220)) is None
    assert own_face([], (100, 20, 160, 220)) is None


def test_a_bust_has_a_larger_face_than_somebody_standing() -> None:
    bust = (20.0, 20.0, 220.0, 240.0)
    assert belonging(a_face(120, 50, 80).xyxy, bust) > 0.8
    assert belonging(a_face(120, 50, 80).xyxy, (90, 20, 150, 240)) < 0.6


# ------------------------------------------------------------------------------------------- one vector


def test_a_face_that_disagrees_with_the_others_is_somebody_elses() -> None:
    near, far = embedding(FACE, 1.0, 0.1), embedding(FACE, 0.0, 1.0, quality=1.0)
    assert of_one_person([far, near, near], 0.5) == [near, near]
    assert of_one_person([far, near], 0.5) == [far], "of two, the better one"
    assert of_one_person([near], 0.5) == [near]
    assert of_one_person([], 0.5) == []


def test_the_best_few_faces_make_one_vector_weighted_by_quality() -> None:
    track = watched(3)
    track.look(FacesInTurn((1.0, 0.0), (1.0, 0.4)))
    pooled = track.embedding(0.5)
    assert pooled is not None
    assert (pooled.modality, pooled.space) == (FACE, "fake-face@1")
    assert float(np.linalg.norm(pooled.vector)) == pytest.approx(1.0)
    assert unit(1.0, 0.4)[1] > pooled.vector[1] > 0
    assert pooled.quality == pytest.approx(0.8)


def test_more_than_a_few_faces_add_nothing() -> None:
    track = watched(10)
    track.look(FacesInTurn((1.0, 0.0), quality=0.9))
    assert BEST_FACES < CANDIDATES
    pooled = track.embedding(0.5)
    assert pooled is not None
    assert pooled.quality == pytest.approx(0.9)


def test_a_track_in_which_no_face_was_seen_has_no_vector() -> None:
    track = watched(3)
    assert track.embedding(0.5) is None, "nobody looked yet"
    track.look(FacesInTurn(None))
    assert track.embedding(0.5) is None


def test_a_stranger_who_passed_through_the_box_leaves_nothing_behind() -> None:
    track = watched(3)
    track.look(FacesInTurn((1.0, 0.0, 0.0), (1.0, 0.1, 0.0), (0.0, 0.0, 1.0)))
    pooled = track.embedding(0.5)
    assert pooled is not None
    assert pooled.vector[2] == 0.0


def test_the_same_frames_make_the_same_vector() -> None:
    def made() -> list[float]:
        track = watched(8)
        track.look(FacesInTurn((1.0, 0.0), (0.9, 0.3), (0.7, 0.7)))
        pooled: Embedding | None = track.embedding(0.5)
        return pooled.vector.tolist() if pooled is not None else []

    assert made() == made() != []


def test_offering_is_cheap_beside_detection() -> None:
    tracks, picture = [TrackFaces() for _ in range(15)], noise(1080, 1920)
    box = np.array([100, 100, 260, 600], np.float32)
    started = time.perf_counter()
    for number in range(50):
        for track in tracks:
            track.offer(picture, number * S // 25, box, 0.9, 0.0)
    assert (time.perf_counter() - started) / 50 < 0.02
