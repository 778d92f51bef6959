"""Scenes put together of talking faces, and what is counted of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.blazeface import BlazeFace, FoundFaces
from models.lips import MouthReader
from models.voice import CampPlusEncoder
from pipeline.errors import NotFoundError
from pipeline.types import Camera
from pipeline.voice.listening import Listening
from services.adapters.pyav_capture import PyAvCapture
from services.evaluate_attribution import (
    RememberedFaces,
    RememberedVoices,
    Scene,
    Talking,
    Tally,
    evaluate_attribution,
    figures,
    judge,
    played,
    scenes,
    talking_clip,
)
from tests.voices import ANNA_HZ, RATE_HZ, BrightMouths, ToneVoices, babbled, silence

HZ = 25
PIXELS = 48


def a_clip(name: str, seed: int) -> Talking:
    """A square that is bright while its sound is loud."""
    sound = np.concatenate([silence(0.4 + 0.2 * seed), babbled(1.8, ANNA_HZ, seed), silence(0.9)])
    frames = int(len(sound) / RATE_HZ * HZ)
    loud = [float(np.abs(sound[n * RATE_HZ // HZ : (n + 1) * RATE_HZ // HZ]).max(initial=0.0)) for n in range(frames)]
    pictures = np.stack([np.full((PIXELS, PIXELS, 3), int(np.clip(20 + 600 * each, 0, 255)), np.uint8) for each in loud])
    return Talking(name, pictures, HZ, sound)


def measure(talking: Path, voices: Path | None) -> dict[str, object]:
    voice, lips = RememberedVoices(ToneVoices()), BrightMouths()
    return evaluate_attribution(
        talking,
        voices,
        lambda path: a_clip(path.stem, int(path.stem)),
        lambda path: babbled(6.0, ANNA_HZ, 77),
        lambda camera: Listening(camera, voice, lips),
    )


@pytest.fixture
def talking(tmp_path: Path) -> Path:
    folder = tmp_path / "talking"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.mpg").touch()
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    (tmp_path / "voices" / "anna").mkdir(parents=True)
    (tmp_path / "voices" / "anna" / "1.flac").touch()
    return tmp_path / "voices"


def test_mouths_that_move_with_their_sound_get_their_turns(talking: Path, voices: Path) -> None:
    result = measure(talking, voices)
    assert (result["clips"], result["strangers"]) == (3, 1)
    alone, three = result["visible_1"], result["visible_3"]
    assert isinstance(alone, dict)
    assert isinstance(three, dict)
    assert alone["recall"] == 1.0
    assert three["precision_in_view"] == 1.0
    assert three["recall"] > three["chance_recall"] == pytest.approx(1 / 3, abs=1e-4)
    assert alone["turns_out_of_view"] > 0


def test_the_networks_are_asked_once_about_the_same() -> None:
    voices, sound = ToneVoices(), babbled(1.0, ANNA_HZ)
    once = RememberedVoices(voices)
    assert once.encode(sound) is once.encode(sound.copy())
    assert len(voices.encoded_s) == 1
    assert once.space == voices.space

    class Nowhere:
        asked = 0

        def find(self, bgr: np.ndarray) -> FoundFaces:
            self.asked += 1
            return FoundFaces(np.zeros((0, 4), np.float32), np.zeros((0, 6, 2), np.float32), np.zeros(0, np.float32))

    nowhere = Nowhere()
    faces = RememberedFaces(nowhere)
    for value in (1, 2, 1, 2):
        faces.find(np.full((8, 8, 3), value, np.uint8))
    assert nowhere.asked == 2


def test_every_face_is_heard_once_alone_and_beside_all_others() -> None:
    made = list(scenes(3, 0))
    alone = [scene for scene in made if len(scene.cells) == 1 and scene.speaker is not None]
    assert [scene.sound for scene in alone] == [0, 1, 2]
    pairs = [scene for scene in made if len(scene.cells) == 2 and scene.speaker is not None]
    assert len(pairs) == 3 * 2 * 4
    assert {scene.speaker for scene in pairs} == {0, 1}
    assert all(scene.cells[scene.speaker] == (scene.sound, "own") for scene in pairs if scene.speaker is not None)
    assert all(scene.sound not in [clip for clip, _ in scene.cells] for scene in made if scene.speaker is None)


def test_others_play_their_clip_in_four_manners() -> None:
    clip = Talking("a", np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(3, axis=3), HZ, silence(0.4))
    first = {manner: played(clip, manner)[:3, 0, 0, 0].tolist() for manner in ("own", "shifted", "reversed", "still")}
    assert first == {"own": [0, 1, 2], "shifted": [6, 7, 8], "reversed": [9, 8, 7], "still": [0, 0, 0]}


def test_the_figures_of_counts_one_can_check_by_hand() -> None:
    results = {
        (2, "in_view", "own"): Tally(turns=9, right=6, wrong=1, silent_scenes=1),
        (2, "out_of_view", "own"): Tally(turns=20, wrong=2),
    }
    counted = figures(results)["visible_2"]
    assert counted["recall"] == 0.6
    assert counted["precision_in_view"] == round(6 / 7, 4)
    assert counted["false_out_of_view"] == 0.1
    assert counted["precision"] == 0.75  # 0.6 of 0.6 right, 0.1 wrong and 0.1 astray
    assert counted["chance_recall"] == 0.45


def test_a_folder_without_clips_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="clips of two talking faces or more, got 0"):
        measure(tmp_path, None)


def test_a_folder_without_voices_is_named(talking: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="a folder of recordings for each speaker, got none"):
        measure(talking, tmp_path / "nothing")


def test_a_real_face_that_speaks_beside_one_that_rests_is_given_its_turn(weights: Callable[[str], Path], shared_data: Path) -> None:
    voice = CampPlusEncoder(weights("campplus"), weights("silero-vad"), weights("segmentation"))
    lips = MouthReader(BlazeFace(weights("blazeface")))
    paths = sorted((shared_data / "talking").glob("*.mpg"))[1:3]
    clips = [talking_clip(PyAvCapture(Camera(path.stem, str(path), 12.5, starts_at_ns=1)), path) for path in paths]
    scene = Scene(((0, "still"), (1, "own")), 1, 1, "still")
    assert judge(scene, clips, [], lambda camera: Listening(camera, voice, lips)) == Tally(turns=1, right=1)
