"""What the settings choose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SettingsError
from pipeline.ports import PreparingDetector
from pipeline.types import BODY, TEXT
from services import wiring
from services.settings import DetectSettings, EmbedSettings, Settings


@pytest.fixture
def base(weights: Callable[[str], Path]) -> None:
    """The weights behind the default, or skip."""
    for name in ("nanodet", "use-multilingual"):
        weights(name)


def settings(**detect: object) -> Settings:
    return Settings(detect=DetectSettings(**detect))  # type: ignore[arg-type]


@pytest.mark.usefixtures("base")
def test_vectors_of_the_frame_come_from_a_detector_that_prepares_beside_and_has_the_encoders_spaces() -> None:
    chosen = Settings(embed=EmbedSettings(vectors="frame"))
    detector, looks = wiring.make_detector(chosen), wiring.look_encoder(chosen)
    assert isinstance(detector, PreparingDetector)
    assert detector.name == "detector-retriever"
    assert detector.spaces == looks.spaces == {BODY: looks.spaces[BODY], TEXT: wiring.text_encoder(settings()).space}  # type: ignore[attr-defined]


@pytest.mark.usefixtures("base")
def test_other_detectors_are_chosen_by_name_and_the_side_is_theirs() -> None:
    detector = wiring.make_detector(settings(model="nanodet", side=160))
    assert detector.name == "nanodet-416"
    assert detector._side == 160  # type: ignore[attr-defined]
    assert wiring.retriever(settings())._side == 512  # type: ignore[attr-defined]
    assert wiring.make_detector(settings()).name == "nanodet-416", "vectors of crops need boxes alone"
    assert wiring.plain_detector(settings()).name == "nanodet-416"


@pytest.mark.usefixtures("base")
def test_measuring_gets_the_retriever_whatever_detects() -> None:
    assert wiring.retriever(settings(model="centernet")).name == "detector-retriever"


@pytest.mark.usefixtures("base")
def test_one_network_serves_frames_and_crops() -> None:
    looks = wiring.look_encoder(settings())
    assert wiring.retriever(settings())._network is looks._network  # type: ignore[attr-defined]


@pytest.mark.usefixtures("base")
def test_a_picture_becomes_a_vector_of_each_space() -> None:
    made = wiring.looks_of(settings(), np.full((200, 80, 3), 90, np.uint8))
    assert {each.modality: each.space for each in made} == wiring.look_encoder(settings()).spaces


def test_every_space_of_the_encoders_has_a_curve() -> None:
    from models.detector_retriever.words import WEIGHTS, read_weights

    arrays = read_weights(WEIGHTS)
    for kind in (BODY, TEXT):
        space = str(arrays[f"{kind}_space"])
        near, far = (float(wiring.calibration().log_odds(kind, space, cosine, kind == BODY)) for cosine in (0.9, 0.1))
        assert near > far


def test_ultralytics_needs_a_file() -> None:
    with pytest.raises(SettingsError, match=r"detect\.weights"):
        wiring.make_detector(settings(model="ultralytics"))


def test_the_old_model_answers_portraits_until_the_new_one_has_caught_up() -> None:
    settings = Settings()
    assert wiring.answering_face_space(settings, {}) == ""
    assert wiring.answering_face_space(settings, {"faceres@1": 10}) == "faceres@1"
    assert wiring.answering_face_space(settings, {"faceres@1": 10, "mobilefacenet@1": 7}) == "faceres@1"
    assert wiring.answering_face_space(settings, {"faceres@1": 10, "mobilefacenet@1": 9}) == "", "its gate is another"
    assert wiring.answering_face_space(settings, {"somebody-elses@7": 10}) == "", "nobody here can ask in it: the search says so"
