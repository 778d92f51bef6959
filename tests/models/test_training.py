"""Training on a research folder of six people made of noise: it runs, goes on where it stopped, and refuses what it cannot read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra: pip install 'sightline[torch]'")
pytest.importorskip("torchvision", reason="training needs the extra: pip install 'sightline[torch]'")

from models.detector_retriever.runtime import RetrieverLooks  # noqa: E402
from models.detector_retriever.words import RetrieverTextEncoder  # noqa: E402
from models.training.captions import part_of, read_captions  # noqa: E402
from models.training.conditioning import SceneScores, fit_sum, within_scene  # noqa: E402
from models.training.config import RECIPE, Config, read_config  # noqa: E402
from models.training.detector_retriever import train  # noqa: E402
from models.training.examine import auc, fit_matches, pool  # noqa: E402
from models.training.regions import Stored, crop_names  # noqa: E402
from pipeline.errors import NotFoundError, SettingsError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # six people use no term often enough

SMALL = (
    "data.crop_views=2", "data.scene_rounds=0", "data.held_out_people=2", "people.steps=4", "people.pairs=3", "people.checkpoint_every=2",
)  # fmt: skip
COLOURS = {"red": (30, 30, 200), "blue": (200, 40, 30), "green": (40, 160, 40), "white": (230, 230, 230), "black": (20, 20, 20)}


@pytest.fixture(scope="module")
def research(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people, each in two cameras, described by the colours they are painted in."""
    folder, random = tmp_path_factory.mktemp("research"), np.random.default_rng(0)
    lines = []
    for number in range(6):
        upper, lower = random.choice(list(COLOURS), 2)
        own = folder / "persons" / f"made_{number:03d}"
        own.mkdir(parents=True)
        for name in ("a1", "a2", "b1", "b2"):
            halves = [np.tile(COLOURS[colour], (80, 60, 1)) for colour in (upper, lower)]
            crop = np.concatenate(halves) + random.integers(0, 25, (160, 60, 3))
            cv2.imwrite(str(own / f"{name}.jpg"), crop.clip(0, 255).astype(np.uint8))
        text = f"A man in a {upper} jacket, {lower} jeans and white shoes"
        lines += [{"person": own.name, "images": [f"{own.name}/a1.jpg"], "exact_image": True, "caption": text}] * 3
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def trained(research: Path, weights: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    work = tmp_path_factory.mktemp("work")
    figures = train(read_config(None, SMALL), weights("nanodet"), research, work, work / "weights", None, lambda _: None)
    return work, figures


def test_training_gives_figures_of_people_it_never_saw(trained: tuple[Path, dict[str, Any]]) -> None:
    work, figures = trained
    assert figures["people"]["text"]["queries"] == 6  # two people held out, three captions each
    assert "examined,4,text," in (work / "without-2" / "curves.csv").read_text()


def test_what_was_trained_can_be_used_without_torch(trained: tuple[Path, dict[str, Any]], weights: Callable[[str], Path]) -> None:
    own = trained[0] / "weights" / "detector_retriever.npz"
    looks, words = RetrieverLooks(weights("nanodet"), weights=own), RetrieverTextEncoder(weights=own)
    found = looks.encode([np.full((160, 60, 3), 90, np.uint8)])["text"]
    assert found.space == words.space
    assert found.values.shape[1] == len(words.encode("red jacket").vector)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    trained: tuple[Path, dict[str, Any]], research: Path, weights: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = torch.load(trained[0] / "without-2" / "people.pt", weights_only=True)
    assert whole["step"] == 4
    (tmp_path / "views").symlink_to(trained[0] / "views")

    class StoppedError(Exception):
        pass

    from models.training import loop

    advance = loop.Schedule.advance

    def stop_at_three(schedule: Any, loss: Any) -> None:
        if schedule.step == 3:
            raise StoppedError
        advance(schedule, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Schedule, "advance", stop_at_three)
        with pytest.raises(StoppedError):
            train(read_config(None, SMALL), weights("nanodet"), research, tmp_path, tmp_path / "weights", None, lambda _: None)
    assert torch.load(tmp_path / "without-2" / "people.pt", weights_only=True)["step"] == 2
    train(read_config(None, SMALL), weights("nanodet"), research, tmp_path, tmp_path / "weights", None, lambda _: None)
    again = torch.load(tmp_path / "without-2" / "people.pt", weights_only=True)
    for name, value in whole["module"].items():
        torch.testing.assert_close(again["module"][name], value, rtol=1e-4, atol=1e-5)


def test_the_conditioned_heads_learn_from_scenes(research: Path, weights: Callable[[str], Path], tmp_path: Path) -> None:
    """Scenes of noise in the place of composed ones: what is tested is that every loss runs and what comes out is used."""
    random, names = np.random.default_rng(0), crop_names(research / "persons")
    people = []
    stored = Stored.open(tmp_path / "scenes", 24)
    for array in (stored.fine, stored.middle):
        array[:] = random.normal(0, 1, array.shape)
    for scene in range(8):
        for place in range(3):
            crop = (scene * 3 + place) % len(names)
            people.append((scene, crop, 20 + 60 * place, 10, 60 + 60 * place, 90, 1.0))
    np.save(tmp_path / "people.npy", np.array(people, np.float64))
    for name, channels in (("coarse", 256), ("halved", 128)):
        np.save(tmp_path / f"scenes_{name}.npy", random.normal(0, 1, (8, channels, 9, 16)).astype(np.float16))
    (tmp_path / "scenes.done").touch()
    said: list[str] = []
    recipe = read_config(None, [*SMALL[:1], "data.scene_rounds=1", *SMALL[2:], "conditioning.steps=50", "conditioning.scenes=2"])
    figures = train(recipe, weights("nanodet"), research, tmp_path, tmp_path / "weights", None, said.append)
    assert set(figures["scenes"]) >= {"cosine", "with all", "confidence alone", "gates alone"}
    losses = next(line for line in said if line.startswith("conditioning 50/50"))
    for name in ("confidence", "gates", "label", "rebuild", "offset"):
        assert name in losses


def test_the_recipe_that_ships_is_the_default_recipe() -> None:
    assert read_config(RECIPE) == Config()


def test_an_unknown_key_of_a_recipe_is_named() -> None:
    with pytest.raises(SettingsError, match=r"unknown key people\.stepz"):
        read_config(None, ["people.stepz=3"])


def test_a_folder_without_crops_is_refused(tmp_path: Path, weights: Callable[[str], Path]) -> None:
    with pytest.raises(NotFoundError, match="folder of crops"):
        train(read_config(None, SMALL), weights("nanodet"), tmp_path, tmp_path / "work", tmp_path / "out", None, lambda _: None)


def test_half_of_a_caption_keeps_whole_clauses() -> None:
    text = "A man in a red jacket, blue jeans, and white shoes. He carries a bag"
    part = part_of(text, np.random.default_rng(0))
    assert part
    assert all(clause in text for clause in part.split(", "))
    assert part_of("red jacket", np.random.default_rng(0)) == ""


def test_captions_know_the_crops_they_were_written_for(research: Path) -> None:
    captions = read_captions(research, {"made_000/a1.jpg": 7})
    assert captions[0].rows == (7,)
    assert captions[-1].rows == ()


def test_the_sum_of_scores_leans_on_the_summand_that_knows() -> None:
    random = np.random.default_rng(0)
    answers = [random.integers(0, 5, 4) for _ in range(30)]
    blocks = []
    for answer in answers:
        block = random.normal(0, 0.1, (4, 5, 4)).astype(np.float32)
        block[np.arange(4), answer, 2] += 1.0
        blocks.append(block)
    scores = SceneScores(blocks, answers, ["somebody"] * 120)
    weights = fit_sum(scores)
    assert weights[2] > 1
    assert within_scene(scores, weights) > within_scene(scores, np.array([1, 0, 0, 0], np.float32))


def test_figures_of_vectors_by_hand() -> None:
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == pytest.approx(0.75)
    vectors, who = pool(np.eye(4, dtype=np.float32)[:3], np.array(["x", "x", "y"]), np.array(["a", "a", "a"]))
    np.testing.assert_allclose(vectors[0], [0.5**0.5, 0.5**0.5, 0, 0], atol=1e-6)
    assert who.tolist() == ["x", "y"]
    slope, offset = fit_matches(np.array([[0.9, 0.1, 0.2]]), np.array([[True, False, False]]))
    assert slope * 0.9 + offset > 0 > slope * 0.15 + offset
