"""Cast search: the files of CSM and of the portrait challenge are read as published, and counted as published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.training.datasets.csmv import BETWEEN_TRACKLETS, CAST_TO_TRACKLET, CsmFolder, as_one, pictured_films
from pipeline.errors import BadInputError, NotFoundError
from pipeline.evaluate.cast_search import OTHERS, cast_figures, over_films, spread, walked
from tests.films import LABELS, write_csm, write_portraits


def test_films_are_read_one_by_one_and_as_one(tmp_path: Path) -> None:
    folder = write_csm(tmp_path)
    films, whole = folder.films(), folder.across()
    assert [film.name for film in films] == ["tt1", "tt2"]
    assert films[0].labels == tuple(LABELS["tt1"])
    assert whole is not None
    assert whole.cast == ("anna", "bert", "carl")
    assert len(whole.labels) == 7


def test_affinities_have_the_shape_of_the_film(tmp_path: Path) -> None:
    folder = write_csm(tmp_path)
    film = folder.films()[0]
    face, body = folder.affinity(film, "face", CAST_TO_TRACKLET), folder.affinity(film, "body", BETWEEN_TRACKLETS)
    assert face is not None
    assert body is not None
    assert (face.shape, body.shape) == ((2, 4), (4, 4))
    assert folder.affinity(film, "voice", BETWEEN_TRACKLETS) is None
    np.save(tmp_path / "affinity/test/in/tt1/face_mean_ct_affmat.npy", np.zeros((3, 4)))
    with pytest.raises(BadInputError, match=r"\(2, 4\), got \(3, 4\)"):
        folder.affinity(film, "face", CAST_TO_TRACKLET)


def test_vectors_stand_in_for_affinities_and_silence_is_not_compared(tmp_path: Path) -> None:
    folder = write_csm(tmp_path, as_features=True)
    film = folder.films()[0]
    face, voice = folder.affinity(film, "face", CAST_TO_TRACKLET), folder.affinity(film, "voice", BETWEEN_TRACKLETS)
    assert face is not None
    assert voice is not None
    np.testing.assert_allclose(face, [[1, 0, 0, 1], [0, 1, 0, 0]])
    assert np.isnan(voice[0]).all()
    assert voice[1, 1] == pytest.approx(1.0)


@pytest.mark.parametrize("content", ["{", "[]", '{"movie": ["a"], "info": {}}'])
def test_broken_labels_are_refused_by_the_name_of_their_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "test.json").write_text(content)
    with pytest.raises(BadInputError, match=r"test\.json"):
        CsmFolder(tmp_path).films()


def test_as_many_labels_as_tracklets_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    info = {"tt1": {"num_tracklet": 3, "pids": ["anna"], "labels": ["anna"]}}
    (tmp_path / "meta" / "test.json").write_text(json.dumps({"movie": ["tt1"], "info": info}))
    with pytest.raises(BadInputError, match="3 tracklets, got 1"):
        CsmFolder(tmp_path).films()


def test_the_challenge_is_read_with_labels_inside_or_beside(tmp_path: Path) -> None:
    folder = write_portraits(tmp_path, lambda path: path.write_bytes(b""), voice="tt9/t.wav")
    (film,) = pictured_films(folder)
    assert film.film.labels == ("nm0", "nm1", OTHERS)
    assert film.candidates[0].box == (2, 2, 30, 60)
    assert film.candidates[0].voice == tmp_path / "val/tt9/t.wav"
    content = json.loads((folder / "val.json").read_text())
    for each in content["tt9"]["candidates"]:
        del each["label"]
    (folder / "val.json").write_text(json.dumps(content))
    with pytest.raises(NotFoundError, match="labels"):
        pictured_films(folder)
    (folder / "val_label.json").write_text(json.dumps({"c0": ["t0"], "c1": ["t1"]}))
    assert pictured_films(folder)[0].film.labels == ("nm0", "nm1", OTHERS)
    assert as_one(pictured_films(folder)).film.cast == ("nm0", "nm1")


# ------------------------------------------------------------------------------------------------- the protocol


def test_others_stay_in_the_gallery_and_ask_nothing() -> None:
    figures = cast_figures([[0.9, 0.1, 0.95, 0.8]], ["anna"], ["anna", "bert", OTHERS, "anna"])
    assert figures.mean_average_precision == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert figures.tracklets == 2
    assert figures.recall == {1: 1.0, 3: 1.0, 5: 1.0}  # one portrait: always the nearest


def test_cast_who_never_appear_do_not_count() -> None:
    assert cast_figures([[1.0], [0.0]], ["anna", "bert"], ["anna"]).mean_average_precision == 1.0


def test_the_makers_program_counts_others_as_never_found() -> None:
    figures = cast_figures([[1.0, 0.0]], ["anna"], ["anna", OTHERS])
    assert (figures.mean_average_precision, figures.as_published) == (1.0, 0.5)


def test_large_casts_weigh_more_in_map_and_not_in_recall() -> None:
    large = cast_figures(np.eye(3), ["a", "b", "c"], ["a", "b", "c"])
    small = cast_figures([[0.0, 1.0]], ["d"], ["d", OTHERS])
    both = over_films([large, small])
    assert both.mean_average_precision == pytest.approx((3 * 1 + 1 * 0.5) / 4)
    assert both.recall[1] == 1.0
    assert over_films([]).cast == 0


def test_a_label_spreads_to_what_wears_the_same() -> None:
    face = np.array([[0.9, 0.1, 0.2], [0.1, 0.15, 0.8]])
    body = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]])
    made = spread(face, body)
    assert face[:, 1].argmax() == 1
    assert made[:, 1].argmax() == 0


def test_a_walk_takes_the_most_probable_path() -> None:
    walk = walked([[5.0, -5.0, -5.0]], [[0.0, 6.0, -6.0], [6.0, 0.0, 6.0], [-6.0, 6.0, 0.0]])
    assert walk[0, 0] > walk[0, 1] > walk[0, 2] > np.log(0.5)
    np.testing.assert_allclose(walked([[1.0]], [[0.0]]), np.log(1 / (1 + np.exp(-1.0))))
