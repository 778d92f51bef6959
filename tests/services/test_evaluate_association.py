"""`sightline evaluate association` and `cast-search`: fair questions, honest tables, clear words where a folder is not enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.association.network import AssociativeNetwork
from models.training.tracklets import Plan, Samples, composed, joined, load_samples, people_below, save_samples
from pipeline.calibration import Calibration
from pipeline.errors import BadInputError, NotFoundError
from pipeline.evidence import PlainAssociator
from pipeline.types import BODY, FACE, VOICE
from services.evaluate_association import LEARNED, WALK, Scene, evaluate_association, scene_of
from services.settings import load_settings
from services.wiring import associator

PLAIN = PlainAssociator(Calibration.default())


def samples(modality: str, people: int = 8, each: int = 16, noise: float = 1.0, seed: int = 0) -> Samples:
    """People whose vectors lie around their own centre, farther the lower their quality."""
    random = np.random.default_rng([seed, *modality.encode()])
    person = np.repeat(np.arange(people), each)
    quality = random.uniform(0.1, 1.0, len(person))
    raw = random.normal(size=(people, 24))[person] + random.normal(size=(len(person), 24)) * (noise * (1.6 - quality))[:, None]
    vectors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    takes = np.int64(1) << np.tile(np.arange(each) % 8, people)
    return Samples(modality, f"{modality}@1", vectors, quality, np.array([f"{modality}{n}" for n in person]), takes)


def everybody() -> dict[str, Samples]:
    return {FACE: samples(FACE, noise=0.6), BODY: samples(BODY, people=40, noise=1.3), VOICE: samples(VOICE, noise=1.0)}


def test_half_of_the_tracklets_show_no_face_and_every_one_a_body() -> None:
    made = composed(everybody(), 5, Plan(each=12), np.random.default_rng(0))
    assert len(made) == 60
    for person in set(made.person.tolist()):
        own = made.person == person
        assert (made.row[FACE][own] >= 0).sum() == 6
        assert (made.row[BODY][own] >= 0).all()


def test_two_outfits_are_two_bodies_on_two_days() -> None:
    own = everybody()
    made = composed(own, 3, Plan(each=8, outfits=2), np.random.default_rng(0))
    first = made.person == made.person[0]
    bodies = own[BODY].person[made.row[BODY][first]]
    assert len(set(bodies.tolist())) == 2
    assert np.ptp(made.at_s[first]) > 20 * 3600
    with pytest.raises(ValueError, match="bodies"):
        composed(own, 30, Plan(outfits=2), np.random.default_rng(0))


def test_joined_tracklets_keep_their_samples() -> None:
    own, random = everybody(), np.random.default_rng(0)
    one, two = composed(own, 2, Plan(each=4), random), composed(own, 2, Plan(each=4), random, "stranger")
    both, together = joined(one, own, two, own)
    row = int(two.row[BODY][0])
    assert together[BODY].person[both.row[BODY][8]] == own[BODY].person[row]


def test_pairs_that_share_a_take_are_no_question() -> None:
    scene = scene_of(everybody(), everybody(), Plan(), np.random.default_rng(0))
    body = scene.samples[BODY]
    row = scene.tracklets.row[BODY]
    same = (body.person[row][:, None] == body.person[row][None]) & ((body.takes[row][:, None] & body.takes[row][None]) != 0)
    assert scene.is_unfair[same].all()
    assert isinstance(scene, Scene)
    assert np.isnan(scene.cosine[FACE]).any()


def test_the_tables_name_every_way_and_the_dump_holds_what_was_compared(tmp_path: Path) -> None:
    made = evaluate_association(everybody(), None, PLAIN, seeds=1, dump=tmp_path / "dump.npz")
    table = made["same_day"]["halves"]
    for way in ("face only", "body only", "voice only", "face + body, equal", "all, equal: mean log-odds", LEARNED):
        assert 0 <= table[way]["mAP"] <= 1
    assert table[LEARNED]["best_ahead_by"] == [0.0, 0.0]
    assert table[LEARNED]["mAP"] > table["face only"]["mAP"]
    assert table[LEARNED]["mAP"] > table["all, equal: mean cosine"]["mAP"]
    assert table["portraits"][WALK]["mAP"] > table["portraits"]["face, one step"]["mAP"]
    assert made["pairing"] == "synthetic"
    assert "shipped" not in made["same_day"]
    two = made["two_days"]["halves"]
    assert two[LEARNED]["mAP"] > two["all, learned, time not told"]["mAP"]
    with np.load(tmp_path / "dump.npz") as held:
        assert held["log_odds"].shape == held["cosine_face"].shape == held["is_unfair"].shape


def test_people_seen_once_cannot_be_asked_for() -> None:
    once = {m: Samples(m, s.space, s.vectors, s.quality, s.person, np.ones(len(s), np.int64)) for m, s in everybody().items()}
    with pytest.raises(BadInputError, match="two takes"):
        scene_of(once, once, Plan(), np.random.default_rng(0))


def test_samples_come_back_as_they_were_kept(tmp_path: Path) -> None:
    own = samples(FACE, people=2, each=2)
    save_samples(own, tmp_path / "a.npz")
    read = load_samples(tmp_path / "a.npz")
    assert (read.modality, read.space, read.people) == (own.modality, own.space, own.people)
    np.testing.assert_array_equal(read.vectors, own.vectors)
    with pytest.raises(NotFoundError):
        load_samples(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"nothing")
    with pytest.raises(BadInputError):
        load_samples(tmp_path / "c.npz")


def test_people_are_folders_or_folders_of_folders(tmp_path: Path) -> None:
    for name in ("anna/1.jpg", "set/bert/1.jpg", "set/loose.jpg", "stills/carl.jpg", "anna/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert sorted(people_below(tmp_path, (".jpg",))) == ["anna", "set/bert"]
    assert people_below(tmp_path / "nowhere", (".jpg",)) == {}


def test_the_product_weighs_with_the_learnt_network() -> None:
    """Wherever links and walks ask; spaces that it does not know are left to the plain curves."""
    made = associator(load_settings(environment={}))
    assert isinstance(made, AssociativeNetwork)
    assert made.body_half_life_s == load_settings(environment={}).link.body_half_life_h * 3600
    assert made.log_odds(FACE, "unknown@1", 0.9, 0.9, 0.9) > 0
