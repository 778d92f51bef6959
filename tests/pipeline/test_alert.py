"""Tracklets against standing watches."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from pipeline.alert import AlertStage, alert_id_of
from pipeline.errors import BadInputError
from pipeline.types import BODY, FACE, TEXT, Attribute, Embedding, Probe, Watch
from tests.fakes import NOON_NS, S, WordTextEncoder, a_tracklet, embedding

RED = embedding(TEXT, 1, 0, 0, 0, 0)
ANNA = embedding(FACE, 1, 0)
LATER_NS = NOON_NS + 10 * S


def watch(watch_id: str = "w1", text: str = "red", **changes: object) -> Watch:
    return replace(Watch(watch_id, (Probe("text", text),), 0.6, expires_at_ns=NOON_NS + 3600 * S), **changes)


def standing(*watches: Watch) -> AlertStage:
    stage = AlertStage(WordTextEncoder())
    for each in watches:
        stage.put(each)
    return stage


def test_a_described_person_raises_an_alert_that_says_why() -> None:
    seen = a_tracklet("t1", RED, revision=3, attributes=(Attribute("upper colour", "red", 0.9),))
    (alert,) = standing(watch()).compare(seen, LATER_NS)
    assert (alert.watch_id, alert.tracklet_id, alert.revision, alert.camera_id) == ("w1", "t1", 3, "north")
    assert (alert.seen_at_ns, alert.raised_at_ns, alert.threshold) == (seen.ended_at_ns, LATER_NS, 0.6)
    assert alert.score >= 0.6
    assert alert.why == ("red: yes, 0.90",)
    assert alert.crops == seen.crops


def test_later_revisions_and_replays_raise_nothing_more() -> None:
    stage = standing(watch())
    first = stage.compare(a_tracklet("t1", RED), LATER_NS)
    assert len(first) == 1
    assert stage.compare(a_tracklet("t1", RED, revision=2), LATER_NS) == []
    restarted = standing(watch())
    restarted.remember(first[0].alert_id)
    assert restarted.compare(a_tracklet("t1", RED), LATER_NS) == []
    assert first[0].alert_id == alert_id_of("w1", "t1") != alert_id_of("w1t", "1")


def test_a_revision_that_first_crosses_the_threshold_raises_the_alert() -> None:
    stage = standing(watch())
    assert stage.compare(a_tracklet("t1", embedding(TEXT, 0, 1, 0, 0, 0)), LATER_NS) == []
    assert len(stage.compare(a_tracklet("t1", RED, revision=2), LATER_NS)) == 1


@pytest.mark.parametrize(
    "silent",
    [
        watch(cameras=("south",)),
        watch(zones=("door",)),
        watch(expires_at_ns=NOON_NS),
        watch(expires_at_ns=LATER_NS),
        watch(threshold=1.0),
        watch(text="green"),
    ],
    ids=["another camera", "another zone", "footage after expiry", "expired on the clock", "unreachable threshold", "another colour"],
)
def test_a_watch_is_silent_outside_its_bounds(silent: Watch) -> None:
    assert standing(silent).compare(a_tracklet("t1", RED), LATER_NS) == []


def test_footage_from_before_the_watch_was_made_is_compared() -> None:
    assert standing(watch(created_at_ns=NOON_NS + 100 * S)).compare(a_tracklet("t1", RED), LATER_NS)


def test_zones_and_cameras_that_fit_raise() -> None:
    stage = standing(watch(cameras=("north", "south"), zones=("door", "gate")))
    assert stage.compare(a_tracklet("t1", RED, zones=("gate",)), LATER_NS)


def test_a_removed_watch_is_silent_and_a_changed_one_asks_anew() -> None:
    stage = standing(watch(), watch("w2"))
    stage.put(watch("w2", is_removed=True))
    assert [alert.watch_id for alert in stage.compare(a_tracklet("t1", RED), LATER_NS)] == ["w1"]
    stage.put(watch("w1", "blue"))
    assert stage.compare(a_tracklet("t2", RED), LATER_NS) == []
    stage.remove("w1")
    stage.remove("never-there")
    assert stage.watches == ()


def test_a_watch_that_cannot_be_seen_is_refused() -> None:
    with pytest.raises(BadInputError, match="friendly"):
        standing(watch(text="friendly"))


def test_portrait_and_look_alike_watches_compare_their_own_vectors_only() -> None:
    coat = embedding(BODY, 1, 0)
    stage = standing(
        watch("face", probes=(Probe("portrait", embeddings=(ANNA,)),)),
        watch("coat", probes=(Probe("look-alike", embeddings=(coat,)),)),
        watch("other-model", probes=(Probe("portrait", embeddings=(embedding(FACE, 1, 0, space="other@1"),)),), threshold=0.0),
    )
    assert [a.watch_id for a in stage.compare(a_tracklet("t1", ANNA, RED), LATER_NS)] == ["face"]
    assert [a.watch_id for a in stage.compare(a_tracklet("t2", coat), LATER_NS)] == ["coat"]


def test_a_watch_in_another_models_space_is_known_to_be_blind() -> None:
    old = watch("old", probes=(Probe("portrait", embeddings=(embedding(FACE, 1, 0, space="old-face@1"),)),))
    stage = standing(watch("words"), old)
    assert stage.unseen_by(a_tracklet("t1", RED)) == {}, "no face at all is no reason to worry"
    assert list(stage.unseen_by(a_tracklet("t1", RED, ANNA))) == ["old"]


def test_a_watch_with_face_and_words_wants_both() -> None:
    stage = standing(watch(probes=(Probe("portrait", embeddings=(ANNA,)), Probe("text", "red")), threshold=0.95))
    assert stage.compare(a_tracklet("t1", RED), LATER_NS) == []
    assert stage.compare(a_tracklet("t1", RED, ANNA, revision=2), LATER_NS)


def test_a_watch_of_a_stored_tracklet_finds_its_like() -> None:
    known = a_tracklet("anna", ANNA)
    stage = AlertStage(None, lookup=lambda ids: [known] if list(ids) == ["anna"] else [])
    stage.put(watch(probes=(Probe("tracklet", tracklet_id="anna"),)))
    assert stage.compare(a_tracklet("t1", ANNA), LATER_NS)


def test_a_thousand_watches_cost_hardly_more_than_ten() -> None:
    rng = np.random.default_rng(0)
    seen = a_tracklet("t1", Embedding(BODY, "m@1", rng.normal(size=512).astype(np.float32)))

    def cost(number: int) -> float:
        stage = AlertStage(None)
        for each in range(number):
            vector = Embedding(BODY, "m@1", rng.normal(size=512).astype(np.float32))
            stage.put(watch(f"w{each}", probes=(Probe("look-alike", embeddings=(vector,)),), threshold=0.9))
        took_s = []
        for _ in range(30):
            started = time.perf_counter()
            stage.compare(seen, LATER_NS)
            took_s.append(time.perf_counter() - started)
        return min(took_s)  # the machine may be busy with other things

    ten, thousand = cost(10), cost(1000)
    assert thousand < 30 * ten
