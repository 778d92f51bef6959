"""The embed stage: which shots it keeps, when it speaks, what it says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from pipeline.embed import (
    BestShots,
    EmbedRules,
    EmbedStage,
    Revision,
    crowding,
    media_folder,
    occlusions,
    pool,
    safe_name,
    sharpness,
    shrink,
    zones_touched,
)
from pipeline.types import BODY, FACE, TEXT, Camera, Frame, Vectors
from tests.fakes import NOON_NS, ColourLooks, FaceOnWhite, FakeTrack, S, noise, unit

CAMERA = Camera("north", "clip.mp4", zones={"door": ((0, 0), (100, 0), (100, 200), (0, 200)), "street": ((150, 0), (300, 0), (300, 300))})
BOX = np.array([[20, 20, 80, 180]], np.float32)


class SmearingLooks(ColourLooks):
    """Gives body vectors that are not numbers."""

    def encode(self, crops: Sequence[np.ndarray]) -> dict[str, Vectors]:
        return super().encode(crops) | {BODY: Vectors("fake-body@1", np.full((len(crops), 3), np.nan, np.float32))}


def stage(**parts: object) -> EmbedStage:
    return EmbedStage(CAMERA, parts.get("looks") or ColourLooks(), parts.get("face"), parts.get("rules"))  # type: ignore[arg-type]


def show(
    embed: EmbedStage,
    at_s: float,
    box: np.ndarray = BOX,
    confidence: float = 0.9,
    picture: np.ndarray | None = None,
    vectors: Mapping[str, Vectors] | None = None,
) -> int:
    at_ns = NOON_NS + int(at_s * S)
    frame = Frame("north", at_ns, noise(240, 320, seed=1) if picture is None else picture)
    embed.observe(frame, ["p1"], box, np.array([confidence], np.float32), vectors=vectors)
    return at_ns


def given(body: np.ndarray, text: np.ndarray, version: int = 1) -> dict[str, Vectors]:
    """What a detector gives for one person."""
    return {BODY: Vectors(f"fake-body@{version}", body[None]), TEXT: Vectors(f"fake-text@{version}", text[None])}


RED = unit(1, 0, 0, 0, 0)


def track(until_s: float, **changes: object) -> FakeTrack:
    at_ns = NOON_NS + np.arange(0, int(until_s * 10) + 1) * (S // 10)
    values = {
        "tracklet_id": "p1",
        "at_ns": at_ns,
        "boxes": np.repeat(BOX, len(at_ns), 0),
        "confidences": np.full(len(at_ns), 0.9, np.float32),
    }
    return FakeTrack(**{**values, **changes})  # type: ignore[arg-type]


def published(embed: EmbedStage, at_s: float, **changes: object) -> list[Revision]:
    return embed.revisions([track(at_s, **changes)], NOON_NS + int(at_s * S))


def test_a_sharp_crop_is_worth_more_than_a_blurred_one() -> None:
    sharp = noise(120, 60)
    waves = 128 + 100 * np.sin(np.arange(120) / 12)
    blurred = np.broadcast_to(waves[:, None, None], (120, 60, 3)).astype(np.uint8)
    assert sharpness(sharp) > 0.9 > sharpness(blurred) > sharpness(np.full((120, 60, 3), 90, np.uint8)) == 0.0
    assert sharpness(noise(2, 2)) == 0.0


def test_the_best_shots_are_large_whole_and_unhidden() -> None:
    shots, picture = BestShots(1), noise(240, 320)
    small = np.array([20, 20, 40, 80], np.float32)
    assert shots.offer(picture, 0, small, 0.9, 0.0) is not None
    assert shots.offer(picture, S, BOX[0], 0.9, 0.9) is None, "larger but hidden"
    assert shots.offer(picture, S, np.array([-50, 20, 12, 180], np.float32), 0.9, 0.0) is None, "cut off by the frame"
    assert shots.offer(picture, S, BOX[0], 0.9, 0.0) is not None
    assert [shot.at_ns for shot in shots.shots] == [S]


def test_shots_are_spread_over_quarter_seconds() -> None:
    shots, picture = BestShots(4), noise(240, 320)
    for number in range(40):  # 2 s at 20 frames a second, growing
        shots.offer(picture, number * S // 20, np.array([20, 20, 80, 100 + 2 * number], np.float32), 0.9, 0.0)
    quarters = [shot.at_ns // (S // 4) for shot in shots.shots]
    assert sorted(quarters) == [4, 5, 6, 7]
    assert sorted(shot.slot for shot in shots.shots) == [0, 1, 2, 3]
    assert [shot.quality for shot in shots.shots] == sorted((shot.quality for shot in shots.shots), reverse=True)


def test_a_bridged_box_and_a_box_outside_the_frame_are_no_shots() -> None:
    shots, picture = BestShots(4), noise(240, 320)
    assert shots.offer(picture, 0, BOX[0], 0.0, 0.0) is None
    assert shots.offer(picture, 0, np.array([400, 400, 440, 480], np.float32), 0.9, 0.0) is None
    assert shots.offer(noise(1, 1), 0, BOX[0], 0.9, 0.0) is None


def test_a_kept_shot_does_not_hold_on_to_the_frame() -> None:
    shots, picture = BestShots(1), noise(240, 320)
    shot = shots.offer(picture, 0, BOX[0], 0.9, 0.0)
    assert shot is not None
    assert shot.crop.base is None
    assert shot.crop.shape == (160, 60, 3)


def test_people_in_front_hide_those_behind() -> None:
    boxes = np.array([[0, 0, 10, 20], [5, 0, 15, 30], [100, 0, 110, 20]], np.float32)
    assert occlusions(boxes).tolist() == [0.5, 0.0, 0.0]


def test_pooling_leans_towards_the_better_shot_and_has_length_one() -> None:
    pooled = pool([unit(1, 0), unit(0, 1)], [0.9, 0.1], BODY, "m@1")
    assert pooled is not None
    assert float(np.linalg.norm(pooled.vector)) == pytest.approx(1.0)
    assert pooled.vector[0] > 8 * pooled.vector[1]
    assert pooled.quality == pytest.approx(0.82)
    assert pool([], [], BODY, "m@1") is None
    assert pool([unit(1, 0), unit(-1, 0)], [0.5, 0.5], BODY, "m@1") is None, "they cancel out"


def test_a_tracklet_is_published_when_confirmed_and_once() -> None:
    embed = stage()
    show(embed, 0.0)
    assert published(embed, 0.0, is_confirmed=False) == []
    show(embed, 1.0)
    (first,) = published(embed, 1.0)
    assert (first.tracklet.revision, first.tracklet.is_closed, first.tracklet.zones) == (1, False, ("door",))
    assert {e.modality for e in first.tracklet.embeddings} == {BODY, TEXT}
    assert first.tracklet.attributes[0].name == "upper colour"
    assert published(embed, 1.1) == []


def test_a_clearly_better_shot_is_a_new_revision_but_not_within_two_seconds() -> None:
    embed = stage()
    show(embed, 0.0, np.array([[20, 20, 40, 80]], np.float32))
    assert len(published(embed, 1.0)) == 1
    for step in range(20):  # comes nearer; a box that grows all at once would not be trusted
        show(embed, 1.02 + step * 0.025)
    assert published(embed, 1.6) == []
    (second,) = published(embed, 3.1)
    assert second.tracklet.revision == 2
    show(embed, 5.0, BOX + np.array([0, 0, 0, 5], np.float32))
    assert published(embed, 6.0) == [], "hardly better"


def test_a_closing_track_is_published_whole_and_forgotten() -> None:
    embed = stage()
    show(embed, 0.0)
    published(embed, 1.0)
    (last,) = published(embed, 4.0, is_closed=True)
    assert (last.tracklet.is_closed, last.tracklet.revision, len(last.tracklet.at_ns)) == (True, 2, 41)
    assert embed.open_tracks == 0


def test_a_ghost_that_never_was_confirmed_is_forgotten_unsaid() -> None:
    embed = stage()
    show(embed, 0.0)
    assert published(embed, 0.3, is_confirmed=False, is_closed=True) == []
    assert embed.open_tracks == 0


def test_only_new_shots_are_encoded_and_stored() -> None:
    looks = ColourLooks()
    embed = stage(looks=looks)
    show(embed, 0.0)
    show(embed, 0.5)
    (first,) = published(embed, 1.0)
    assert looks.crops == 2
    assert [key.rsplit("/", 1)[1] for key, _ in first.pictures] == ["0.jpg", "1.jpg", "context.jpg"]
    show(embed, 1.5)
    (last,) = published(embed, 2.0, is_closed=True)
    assert looks.crops == 3
    assert [key.rsplit("/", 1)[1] for key, _ in last.pictures] == ["2.jpg"]
    assert len(last.tracklet.crops) == 4, "three shots and the context picture"


def test_all_people_share_a_batch() -> None:
    looks = ColourLooks()
    embed = stage(looks=looks)
    boxes = np.array([[0, 0, 40, 100], [100, 0, 140, 100], [200, 0, 240, 100]], np.float32)
    embed.observe(Frame("north", NOON_NS, noise(240, 320)), ["a", "b", "c"], boxes, np.full(3, 0.9, np.float32))
    tracks = [track(1.0, tracklet_id=name) for name in "abc"]
    assert [r.tracklet.tracklet_id for r in embed.revisions(tracks, NOON_NS + S)] == ["a", "b", "c"]
    assert looks.batches == [3]


def test_what_the_detector_saw_is_not_encoded_again() -> None:
    looks, face = ColourLooks(), FaceOnWhite()
    embed = stage(looks=looks, face=face)
    show(embed, 0.0, vectors=given(unit(0, 1, 0), RED))
    (first,) = published(embed, 1.0)
    body, text = (first.tracklet.embedding(modality) for modality in (BODY, TEXT))
    assert body is not None
    assert text is not None
    np.testing.assert_allclose(body.vector, unit(0, 1, 0), atol=1e-6)
    np.testing.assert_allclose(text.vector, RED, atol=1e-6)
    assert (body.space, text.space) == ("fake-body@1", "fake-text@1")
    assert [(each.name, each.value) for each in first.tracklet.attributes] == [("upper colour", "red")]
    assert (looks.crops, embed.times.shots_encoded) == (0, 0)
    assert len(face.looks) == 1, "a face is looked for all the same"


@pytest.mark.parametrize(
    "vectors",
    [None, {}, given(np.zeros(3, np.float32), np.zeros(5, np.float32)), given(unit(0, 1, 0), RED, version=2)],
    ids=["nothing", "no modality", "too faint", "another space"],
)
def test_where_the_detector_gives_no_vector_the_crop_is_encoded(vectors: dict[str, Vectors] | None) -> None:
    looks = ColourLooks()
    embed = stage(looks=looks)
    show(embed, 0.0, vectors=vectors)
    (first,) = published(embed, 1.0)
    assert {(e.modality, e.space) for e in first.tracklet.embeddings} == {(BODY, "fake-body@1"), (TEXT, "fake-text@1")}
    assert looks.crops == embed.times.shots_encoded == 1


def test_a_modality_that_the_detector_lacks_comes_from_the_crop() -> None:
    looks = ColourLooks()
    embed = stage(looks=looks)
    show(embed, 0.0, vectors={TEXT: Vectors("fake-text@1", RED[None])})
    (first,) = published(embed, 1.0)
    text = first.tracklet.embedding(TEXT)
    assert text is not None
    np.testing.assert_allclose(text.vector, RED, atol=1e-6)
    assert first.tracklet.embedding(BODY) is not None
    assert looks.crops == 1


def test_each_person_gets_the_vectors_of_its_own_row() -> None:
    embed = stage()
    boxes = np.array([[0, 0, 40, 100], [100, 0, 140, 100]], np.float32)
    vectors = {
        BODY: Vectors("fake-body@1", np.stack([unit(1, 0, 0), unit(0, 1, 0)])),
        TEXT: Vectors("fake-text@1", np.stack([RED, unit(0, 0, 1, 0, 0)])),
    }
    embed.observe(Frame("north", NOON_NS, noise(240, 320)), ["a", "b"], boxes, np.full(2, 0.9, np.float32), vectors=vectors)
    made = embed.revisions([track(1.0, tracklet_id=name) for name in "ab"], NOON_NS + S)
    assert [revision.tracklet.attributes[0].value for revision in made] == ["red", "blue"]


def test_a_kept_vector_does_not_hold_on_to_those_of_the_frame() -> None:
    embed = stage()
    show(embed, 0.0, vectors=given(unit(0, 1, 0), RED))
    (shot,) = embed._growing["p1"].shots.shots
    assert all(vector.base is None for vector in shot.vectors.values())


def test_a_face_is_looked_for_in_the_head_of_large_crops_only() -> None:
    face = FaceOnWhite()
    embed = stage(face=face)
    bright = np.clip(noise(240, 320).astype(int) + 90, 0, 255).astype(np.uint8)
    show(embed, 0.0, picture=bright)
    show(embed, 0.5, np.array([[20, 20, 60, 100]], np.float32), picture=bright)
    (first,) = published(embed, 1.0)
    assert face.looks == [(73, 78, 3)], "the upper part, with a margin, of the one whose face may be large enough"
    found = first.tracklet.embedding(FACE)
    assert found is not None
    assert found.space == "fake-face@1"


def bright(seed: int = 1) -> np.ndarray:
    """A sharp picture in which FaceOnWhite sees faces."""
    return np.clip(noise(240, 320, seed).astype(int) + 90, 0, 255).astype(np.uint8)


def test_faces_are_looked_for_in_new_heads_alone() -> None:
    face = FaceOnWhite()
    embed = stage(face=face)
    show(embed, 0.0, picture=bright())
    show(embed, 0.6, picture=bright(2))
    published(embed, 1.0)
    assert len(face.looks) == embed.times.heads_searched == 2
    show(embed, 1.2, picture=bright(3))
    (last,) = published(embed, 2.0, is_closed=True)
    assert len(face.looks) == 3
    assert last.tracklet.embedding(FACE) is not None


def test_a_head_clearly_better_than_any_before_is_worth_a_revision() -> None:
    embed, dull = stage(face=FaceOnWhite()), np.clip(noise(240, 320, seed=1) // 64 + 150, 0, 255).astype(np.uint8)
    dull[150:] = noise(90, 320)  # legs are sharp: the shot as a whole hardly gets better
    show(embed, 0.0, picture=dull)
    assert len(published(embed, 1.0)) == 1
    show(embed, 3.5, picture=bright())
    (second,) = published(embed, 3.6)
    assert second.tracklet.embedding(FACE) is not None
    assert published(embed, 8.0) == [], "said once"


def test_without_a_face_encoder_no_heads_are_kept() -> None:
    embed = stage()
    show(embed, 0.0, picture=bright())
    assert embed._growing["p1"].faces.best_merit == 0.0


def test_the_same_faces_make_the_same_revisions() -> None:
    def run() -> list[list[float]]:
        embed, made = stage(face=FaceOnWhite()), []
        for number in range(40):
            show(embed, number / 10, BOX + np.array([0, 0, 0, number / 4], np.float32), picture=bright(number))
            made += published(embed, number / 10, is_confirmed=number > 8, is_closed=number == 39)
        return [[*embedding.vector.tolist(), embedding.quality] for r in made if (embedding := r.tracklet.embedding(FACE))]

    assert run() == run() != []


def test_the_same_frames_make_the_same_revisions() -> None:
    def run() -> list[tuple[int, list[float], list[str]]]:
        embed, made = stage(), []
        for number in range(30):
            show(embed, number / 10, BOX + np.array([0, 0, 0, number], np.float32))
            made += published(embed, number / 10, is_confirmed=number > 8, is_closed=number == 29)
        return [(r.tracklet.revision, r.tracklet.embeddings[0].vector.tolist(), [key for key, _ in r.pictures]) for r in made]

    assert run() == run()
    assert len(run()) >= 2


def test_vectors_that_are_not_numbers_are_left_out() -> None:
    embed = stage(looks=SmearingLooks())
    show(embed, 0.0)
    (first,) = published(embed, 1.0)
    assert [e.modality for e in first.tracklet.embeddings] == [TEXT]


def test_the_context_picture_is_small_and_marks_the_person() -> None:
    embed = stage(rules=EmbedRules(best_shots=1))
    picture = np.zeros((1080, 1920, 3), np.uint8)
    picture[:, :, 1] = noise(1080, 1920)[:, :, 1]
    show(embed, 0.0, np.array([[300, 300, 600, 900]], np.float32), picture=picture)
    (first,) = published(embed, 1.0)
    key, context = first.pictures[-1]
    assert key.endswith("/context.jpg")
    assert context.shape == (360, 640, 3)
    assert context[150, 99].tolist() == [64, 200, 255]
    assert first.tracklet.crops[-1].quality == 0.0
    assert not any(key.endswith("context.jpg") for key, _ in published(embed, 2.0, is_closed=True)[0].pictures)


def test_shrinking_averages_blocks() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[::2] = 100
    small, scale = shrink(picture, 2)
    assert (small.shape, scale, int(small[0, 0, 0])) == ((2, 2, 3), 0.5, 50)


def test_a_zone_is_touched_by_feet_not_heads() -> None:
    zones = {
        "above": ((0, 0), (100, 0), (100, 100), (0, 100)),
        "below": ((0, 100), (100, 100), (100, 300), (0, 300)),
        "line": ((0, 0), (9, 9)),
    }
    assert zones_touched(BOX, zones) == ("below",)
    assert zones_touched(np.zeros((0, 4), np.float32), zones) == ()


def test_media_keys_are_safe_on_any_file_system() -> None:
    folder = media_folder("gate/../north:1", "..hidden", NOON_NS)
    assert folder.split("/")[1] == "2023-11-14"
    assert ".." not in folder.split("/")
    assert len(folder.split("/")) == 3
    assert safe_name("plain-1") == "plain-1"
    assert safe_name("a/b") != safe_name("a:b")


def test_observing_is_cheap_beside_detection() -> None:
    embed, picture = stage(), noise(1080, 1920)
    boxes = np.array([[100 * n, 100, 100 * n + 60, 250] for n in range(15)], np.float32)
    for number in range(30):
        frame = Frame("north", NOON_NS + number * S // 25, picture)
        embed.observe(frame, [str(n) for n in range(15)], boxes, np.full(15, 0.9, np.float32))
    started = time.perf_counter()
    for number in range(30, 60):
        embed.observe(Frame("north", NOON_NS + number * S // 25, picture), [str(n) for n in range(15)], boxes, np.full(15, 0.9, np.float32))
    assert (time.perf_counter() - started) / 30 < 0.05


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="share N, got 1, 2, 1"):
        stage().observe(Frame("north", NOON_NS, noise(10, 10)), ["a"], np.zeros((2, 4), np.float32), np.zeros(1, np.float32))


def test_vectors_of_other_boxes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"float32 \(1, D\), one row per box"):
        show(stage(), 0.0, vectors={TEXT: Vectors("fake-text@1", np.stack([RED, RED]))})


def test_a_box_that_shows_somebody_else_too_is_crowded_whoever_stands_in_front() -> None:
    xyxy = np.asarray([[0, 0, 40, 100], [20, 10, 60, 110], [200, 0, 240, 100]], np.float32)
    assert crowding(xyxy).tolist() == pytest.approx([0.45, 0.45, 0.0])
    assert crowding(xyxy[:1]).tolist() == [0.0]


def test_a_box_that_suddenly_takes_in_more_is_no_best_shot() -> None:
    embed = stage()
    show(embed, 0.0)
    show(embed, 0.3)
    taller = BOX.copy()
    taller[:, 1] -= 0.3 * (taller[:, 3] - taller[:, 1])
    show(embed, 0.6, taller)
    boxes = [reference.box for reference in published(embed, 1.0)[0].tracklet.crops if reference.quality > 0.05]
    assert boxes
    assert all(box[1] == pytest.approx(float(BOX[0, 1]), abs=1) for box in boxes)
