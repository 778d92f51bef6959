"""The detector-retriever as it runs: boxes, vectors and fit from one pass, on a base of a few convolutions and the shipped weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.detector_retriever.runtime import (
    CELL_PX,
    CELLS_GRAPH,
    PEOPLE_GRAPH,
    SEEN,
    DetectorRetriever,
    RetrieverLooks,
    network,
    with_maps,
)
from models.detector_retriever.words import WEIGHTS, RetrieverTextEncoder, read_weights
from models.nanodet import NanoDetDetector
from pipeline.errors import BadInputError, SettingsError, UnreadableMediaError
from pipeline.types import BODY, TEXT, Detections, Frame

Painter = Callable[..., np.ndarray]

WIDTH, HEIGHT = 160, 96
BLUE, CYAN, RED, FAINT = (250, 0, 0), (250, 250, 0), (0, 0, 250), (193, 110, 115)  # BGR
SOUGHT = ["red jacket, blue jeans", "man in a black coat", "woman with a backpack"]


def frame(*people: tuple[tuple[int, int], tuple[int, int, int]], width: int = WIDTH, height: int = HEIGHT) -> Frame:
    """Grey, with people of a colour at cells (column, row)."""
    picture = np.full((height, width, 3), 114, np.uint8)
    for (column, row), colour in people:
        picture[row * CELL_PX : (row + 1) * CELL_PX, column * CELL_PX : (column + 1) * CELL_PX] = colour
    return Frame("gate", 0, picture)


TWO = frame(((2, 1), BLUE), ((7, 3), CYAN))


@pytest.fixture(scope="module")
def retriever(small_base: Path) -> DetectorRetriever:
    return DetectorRetriever(small_base, RetrieverTextEncoder(), side=WIDTH)


@pytest.fixture(scope="module")
def looks(small_base: Path) -> RetrieverLooks:
    return RetrieverLooks(small_base)


def sure(found: Detections) -> Detections:
    return found.where(found.confidence > 0.9)


# ------------------------------------------------------------------------------------------- frames


def test_one_pass_gives_boxes_and_two_vectors_each(retriever: DetectorRetriever) -> None:
    (found,) = retriever.detect([TWO])
    people = sure(found)
    assert sorted(people.xyxy.round().tolist()) == [[32, 16, 48, 32], [112, 48, 128, 64]]
    assert {modality: each.space for modality, each in people.vectors.items()} == retriever.spaces
    for each in people.vectors.values():
        np.testing.assert_allclose(np.linalg.norm(each.values, axis=1), 1, atol=1e-4)
    one, other = people.vectors[TEXT].values
    assert float(one @ other) < 0.999, "two people of two colours"


def test_the_boxes_are_those_of_the_plain_detector(retriever: DetectorRetriever, small_base: Path) -> None:
    plain = NanoDetDetector(small_base, side=WIDTH).detect([TWO])[0]
    found = retriever.detect([TWO])[0]
    np.testing.assert_allclose(found.xyxy, plain.xyxy, atol=1e-3)
    np.testing.assert_allclose(found.confidence, plain.confidence, atol=1e-4)


def test_a_faint_box_has_no_vectors(retriever: DetectorRetriever) -> None:
    (found,) = retriever.detect([frame(((2, 1), BLUE), ((7, 3), FAINT))])
    is_faint = found.confidence < SEEN
    assert is_faint.tolist() == [False, True]
    for each in found.vectors.values():
        assert each.values.any(axis=1).tolist() == [True, False]
    sought = retriever.look_for([frame(((2, 1), BLUE), ((7, 3), FAINT))], retriever.ask(SOUGHT))[0]
    assert (sought.similarity[is_faint] == -1).all()
    assert (sought.similarity[~is_faint] > -1).all()


def test_a_frame_in_a_batch_gives_what_it_gives_alone(retriever: DetectorRetriever) -> None:
    frames = [TWO, frame(), frame(((4, 2), CYAN)), frame(((1, 1), BLUE), width=96, height=64), TWO]
    together = retriever.detect(frames)
    for each, found in zip(frames, together, strict=True):
        alone = retriever.detect([each])[0]
        np.testing.assert_allclose(found.xyxy, alone.xyxy, atol=1e-3)
        for modality in (BODY, TEXT):
            np.testing.assert_allclose(found.vectors[modality].values, alone.vectors[modality].values, atol=1e-4)


def test_nobody_is_nobody(retriever: DetectorRetriever) -> None:
    (found,) = retriever.detect([frame()])
    assert len(found) == 0
    assert all(each.values.shape == (0, retriever._width) for each in found.vectors.values())
    sought = retriever.look_for([frame()], retriever.ask(SOUGHT), with_heat=True)[0]
    assert sought.similarity.shape == (0, 3)
    assert retriever.detect([]) == []


def test_tiles_find_the_same_people_with_vectors(small_base: Path) -> None:
    (found,) = DetectorRetriever(small_base, tiles="on", side=WIDTH).detect([TWO])
    people = sure(found)
    assert len(people) >= 2
    assert all(each.values.any(axis=1).all() for each in people.vectors.values())


def test_every_person_is_compared_with_every_description(retriever: DetectorRetriever) -> None:
    sought = retriever.look_for([TWO, frame()], retriever.ask(SOUGHT))
    assert [each.similarity.shape for each in sought] == [(len(sought[0].detections), 3), (0, 3)]
    assert np.isfinite(sought[0].similarity).all()
    assert sought[0].heat is None
    np.testing.assert_allclose(sought[0].detections.xyxy, retriever.detect([TWO])[0].xyxy, atol=1e-3)


def test_a_description_asked_among_others_fits_as_it_does_alone(retriever: DetectorRetriever) -> None:
    together = retriever.look_for([TWO], retriever.ask(SOUGHT))[0].similarity
    alone = [retriever.look_for([TWO], retriever.ask([each]))[0].similarity for each in SOUGHT]
    np.testing.assert_allclose(together, np.concatenate(alone, axis=1), atol=1e-4)


def test_heat_covers_the_frame_and_not_what_pads_it(retriever: DetectorRetriever) -> None:
    wide = frame(((1, 1), BLUE), width=160, height=80)  # made 96 high for the network
    heat = retriever.look_for([wide], retriever.ask(SOUGHT), with_heat=True)[0].heat
    assert heat is not None
    assert heat.shape == (3, 80 // CELL_PX, 160 // CELL_PX)
    assert 0 <= heat.min() <= heat.max() <= 1


def test_without_a_text_encoder_nothing_can_be_asked(small_base: Path) -> None:
    with pytest.raises(BadInputError, match="needs a text encoder"):
        DetectorRetriever(small_base, side=WIDTH).ask(SOUGHT)


def test_a_description_that_says_nothing_is_refused(retriever: DetectorRetriever) -> None:
    with pytest.raises(BadInputError, match="got: zorp"):
        retriever.ask(["red coat", "zorp"])


# ------------------------------------------------------------------------------------------- crops


def test_crops_have_vectors_of_length_one_in_the_detectors_spaces(
    looks: RetrieverLooks, retriever: DetectorRetriever, noise_person: Painter
) -> None:
    made = looks.encode([noise_person(1), noise_person(2), noise_person(1, 300, 110)])
    assert {modality: each.space for modality, each in made.items()} == looks.spaces == retriever.spaces
    for each in made.values():
        assert each.values.shape[0] == 3
        np.testing.assert_allclose(np.linalg.norm(each.values, axis=1), 1, atol=1e-4)


def test_no_crops_have_no_vectors(looks: RetrieverLooks, noise_person: Painter) -> None:
    some, none = looks.encode([noise_person(1)]), looks.encode([])
    assert {modality: each.values.shape for modality, each in none.items()} == {m: (0, each.values.shape[1]) for m, each in some.items()}


def test_a_batch_gives_what_single_crops_give(small_base: Path, noise_person: Painter) -> None:
    crops = [noise_person(seed, 100 + 7 * seed, 40 + seed) for seed in range(20)]
    together = RetrieverLooks(small_base).encode(crops)
    alone = [RetrieverLooks(small_base).encode([crop]) for crop in crops]
    for modality in (BODY, TEXT):
        np.testing.assert_allclose(together[modality].values, np.concatenate([each[modality].values for each in alone]), atol=1e-4)


def test_the_network_runs_once_for_a_crop_seen_before(small_base: Path, noise_person: Painter) -> None:
    looks = RetrieverLooks(small_base)
    first = looks.encode([noise_person(3)])
    looks._network = None  # type: ignore[assignment]  # would fail now if it were asked
    again = looks.encode([noise_person(3), noise_person(3)])
    for modality in (BODY, TEXT):
        np.testing.assert_array_equal(again[modality].values, np.repeat(first[modality].values, 2, axis=0))


@pytest.mark.parametrize("crop", [np.zeros((0, 5, 3), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_crop_is_refused(crop: np.ndarray, looks: RetrieverLooks) -> None:
    with pytest.raises(BadInputError, match="BGR uint8"):
        looks.encode([crop])


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (3000, 900)])
def test_a_crop_of_any_size_works(shape: tuple[int, int], looks: RetrieverLooks) -> None:
    made = looks.encode([np.full((*shape, 3), 90, np.uint8)])
    assert all(np.isfinite(each.values).all() for each in made.values())


def test_attributes_come_from_vectors(looks: RetrieverLooks, noise_person: Painter) -> None:
    vectors = looks.encode([noise_person(1), noise_person(2)])[TEXT].values
    found = looks.attributes(vectors, [0.9, 0.2])
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert looks.attributes(vectors[:0], []) == ()
    with pytest.raises(ValueError, match="one per vector"):
        looks.attributes(vectors, [0.5])


# ------------------------------------------------------------------------------------------- files


def test_detector_and_crops_share_one_network(retriever: DetectorRetriever, looks: RetrieverLooks, small_base: Path) -> None:
    assert retriever._network is looks._network is network(small_base, WEIGHTS, 1)


def test_another_network_is_refused(tmp_path: Path) -> None:
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    onnx.save(empty, tmp_path / "other.onnx")
    with pytest.raises(UnreadableMediaError, match=r"other\.onnx must be NanoDet-g"):
        with_maps(tmp_path / "other.onnx")


@pytest.mark.parametrize("missing", [WEIGHTS.name, PEOPLE_GRAPH, CELLS_GRAPH])
def test_a_missing_file_is_named(missing: str, small_base: Path, tmp_path: Path) -> None:
    for name in (WEIGHTS.name, PEOPLE_GRAPH, CELLS_GRAPH):
        if name != missing:
            shutil.copyfile(WEIGHTS.with_name(name), tmp_path / name)
    for make in (DetectorRetriever, RetrieverLooks):
        with pytest.raises(SettingsError, match=missing.replace(".", r"\.")):
            make(small_base, weights=tmp_path / WEIGHTS.name)


def test_all_vectors_have_the_width_of_the_words(looks: RetrieverLooks, noise_person: Painter) -> None:
    made = looks.encode([noise_person(1)])
    assert made[TEXT].values.shape[1] == len(read_weights(WEIGHTS)["sentence_bias"])


@pytest.mark.accuracy
def test_a_person_in_a_frame_looks_like_its_crop(shared_data: Path, weights: Callable[[str], Path]) -> None:
    """The same person through both ways is nearer than anybody else: a picture that a user gives finds whom a camera saw."""
    import av

    from models.two_stage import cut_out

    base = weights("nanodet")
    retriever, looks = DetectorRetriever(base, side=640), RetrieverLooks(base)
    with av.open(str(shared_data / "video" / "crossing.mp4")) as film:
        picture = next(film.decode(video=0)).to_ndarray(format="bgr24")
    scene = Frame("crossing", 0, picture)
    people = retriever.detect([scene])[0]
    people = people.where(people.confidence > 0.3)
    made = looks.encode([cut_out(scene, box) for box in people.xyxy])
    assert len(people) >= 3
    for modality in (BODY, TEXT):
        likeness = people.vectors[modality].values @ made[modality].values.T  # (N, N)
        assert (likeness.argmax(axis=1) == np.arange(len(people))).mean() > 0.8
