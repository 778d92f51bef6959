"""From a portrait to tracklets whose face was never seen, over a gallery in memory."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.calibration import Calibration, Logistic
from pipeline.evidence import PlainAssociator
from pipeline.search.progressive import Found, Walker, WalkRules, path_in_words, within
from pipeline.search.stage import SearchStage
from pipeline.search.trajectory import trajectory
from pipeline.types import BODY, FACE, VOICE, Embedding, Filter, Identity, Link, Match, Probe, Query, Ranking, Step, Tracklet
from tests.fakes import NOON_NS, InMemoryGallery, S, a_tracklet
from tests.fakes import embedding as vector

CALIBRATION = Calibration.default({f"fake-{modality}@1": Logistic(0.5, 16.0) for modality in (FACE, VOICE, BODY)})
HOUR = 3600 * S


def sure(modality: str, *values: float) -> Embedding:
    return vector(modality, *values, quality=1.0)


ANNA, BERTA = sure(FACE, 1, 0), sure(FACE, 0, 1)
ANNAS_VOICE, BERTAS_VOICE = sure(VOICE, 1, 0), sure(VOICE, 0, 1)
COAT, SUIT = sure(BODY, 1, 0, 0), sure(BODY, 0, 1, 0)


def people() -> list[Tracklet]:
    """Anna's face and voice; her voice in a coat seen from behind; the coat alone minutes later, and tomorrow; Berta in the same coat."""
    return [
        a_tracklet("face", ANNA, ANNAS_VOICE),
        a_tracklet("voice", ANNAS_VOICE, COAT, camera_id="south", started_at_ns=NOON_NS + 10 * HOUR),
        a_tracklet("coat", sure(BODY, 0.98, 0.2, 0), camera_id="west", started_at_ns=NOON_NS + 10 * HOUR + 1200 * S),
        a_tracklet("coat-tomorrow", COAT, camera_id="west", started_at_ns=NOON_NS + 34 * HOUR),
        a_tracklet("berta", BERTA, BERTAS_VOICE, COAT, camera_id="east", started_at_ns=NOON_NS + 10 * HOUR + 600 * S),
        a_tracklet("stranger", SUIT, camera_id="west", started_at_ns=NOON_NS + 10 * HOUR),
    ]


def stage_over(gallery: InMemoryGallery, rules: WalkRules | None = None, **changes: object) -> SearchStage:
    walker = Walker(gallery, PlainAssociator(CALIBRATION), rules, **changes)  # type: ignore[arg-type]
    return SearchStage(gallery, None, CALIBRATION, walker=walker)


def portrait(steps: int = 3, **changes: object) -> Query:
    return Query("q", (Probe("portrait", embeddings=(ANNA,)),), steps=steps, **changes)  # type: ignore[arg-type]


def answered(query: Query, *tracklets: Tracklet, rules: WalkRules | None = None) -> Ranking:
    return stage_over(InMemoryGallery(*(tracklets or people())), rules).search(query)


def probable(ranking: Ranking) -> list[str]:
    return [match.tracklet_id for match in ranking.matches if match.score >= 0.5]


def match_of(ranking: Ranking, tracklet_id: str) -> Match:
    return next(match for match in ranking.matches if match.tracklet_id == tracklet_id)


def test_a_portrait_leads_through_the_voice_to_the_coat() -> None:
    ranking = answered(portrait())
    assert probable(ranking) == ["face", "voice", "coat"]
    assert match_of(ranking, "coat").why[0] == "face 1.00 → voice 1.00 → body within 20 min 0.98"


def test_each_step_says_where_it_began_and_how_sure_it_is() -> None:
    path = match_of(answered(portrait()), "coat").path
    assert [(step.from_tracklet, step.modality) for step in path] == [("", FACE), ("face", VOICE), ("voice", BODY)]
    assert path[2].gap_s == pytest.approx(1198.0)
    assert all(0.5 < step.probability < 1 for step in path)


def test_every_step_makes_a_match_less_certain() -> None:
    scores = [match_of(answered(portrait()), name).score for name in ("face", "voice", "coat")]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3


def test_somebody_elses_face_in_the_same_coat_is_not_the_person() -> None:
    assert match_of(answered(portrait()), "berta").score < 0.1


def test_clothes_lead_nowhere_a_day_later() -> None:
    assert "coat-tomorrow" not in [match.tracklet_id for match in answered(portrait()).matches]


def test_without_steps_only_the_face_answers() -> None:
    assert probable(answered(portrait(steps=0))) == ["face"]
    assert probable(answered(portrait(steps=1))) == ["face", "voice"]


def test_words_and_clothes_alone_do_not_lead_on() -> None:
    query = Query("q", (Probe("look-alike", embeddings=(SUIT,)),))
    assert all(match.path == () for match in answered(query).matches)


def test_a_tracklet_leads_on_and_never_back_to_itself() -> None:
    ranking = answered(Query("q", (Probe("tracklet", tracklet_id="face"),)))
    assert probable(ranking) == ["voice", "coat"]


def test_a_spent_budget_is_told() -> None:
    ranking = answered(portrait(), rules=WalkRules(searches=1))
    assert any("its budget was spent" in note for note in ranking.coverage.notes)
    assert "face" in probable(ranking)
    assert not ranking.is_partial


def test_the_deadline_ends_the_walk_and_the_answer_says_so() -> None:
    gallery = InMemoryGallery(*people())
    times = iter([0.0, 0.1] + [99.0] * 1000)
    walker = Walker(gallery, PlainAssociator(CALIBRATION))
    ranking = SearchStage(gallery, None, CALIBRATION, clock=lambda: next(times), walker=walker).search(portrait())
    assert ranking.is_partial
    assert any("before the walk from match to match was over" in note for note in ranking.coverage.notes)


def test_nobody_stands_in_one_camera_twice_at_once() -> None:
    twice = [
        a_tracklet("near", COAT, camera_id="west", started_at_ns=NOON_NS + 10 * HOUR + 1200 * S),
        a_tracklet("beside", sure(BODY, 0.96, 0.28, 0), camera_id="west", started_at_ns=NOON_NS + 10 * HOUR + 1200 * S),
    ]
    ranking = answered(portrait(), *people()[:2], *twice)
    assert probable(ranking) == ["face", "voice", "near"]


def test_a_way_that_nobody_can_walk_in_time_is_no_step() -> None:
    gallery = InMemoryGallery(*people())
    stage = stage_over(gallery, allowed=lambda one, other: "west" not in (one.camera_id, other.camera_id))
    assert probable(stage.search(portrait())) == ["face", "voice"]


def test_an_unattributed_voice_is_heard_not_seen() -> None:
    nothing = np.zeros(0)
    turn = Tracklet("turn", 1, "hall", NOON_NS, NOON_NS + 3 * S, nothing, np.zeros((0, 4)), nothing, (ANNAS_VOICE,))
    ranking = answered(portrait(), *people()[:1], turn)
    assert "heard for 3.0 s, not seen" in match_of(ranking, "turn").why


def test_matches_are_put_together_by_person_with_their_way_over_the_cameras() -> None:
    ranking = answered(portrait())
    assert [stay.camera_id for stay in ranking.sightings[0].trajectory] == ["north", "south", "west"]
    assert ranking.sightings[0].score == ranking.matches[0].score


def test_what_was_linked_before_is_one_sighting_with_members_that_no_search_found() -> None:
    class Linked:
        def identity_of(self, tracklet_ids):  # type: ignore[no-untyped-def]
            return {each: "person-1" for each in tracklet_ids if each in ("face", "stranger")}

        def identity(self, identity_id):  # type: ignore[no-untyped-def]
            return Identity(identity_id, ("face", "stranger"))

    stage = SearchStage(InMemoryGallery(*people()), None, CALIBRATION, identities=Linked())
    ranking = stage.search(portrait(steps=0, top_k=1))
    assert ranking.matches[0].identity_id == "person-1"
    assert [stay.camera_id for stay in ranking.sightings[0].trajectory] == ["north", "west"]


def test_an_operators_confirmation_leads_on_and_a_cut_does_not() -> None:
    words = (
        Link("face", "stranger", 0.5, made_by="operator", verdict="same"),  # 0.5: the model had nothing to compare
        Link("face", "voice", 0.0, made_by="operator", verdict="different"),
    )
    ranking = stage_over(InMemoryGallery(*people()), links=lambda name: [each for each in words if name in (each.first, each.second)])
    found = ranking.search(portrait())
    assert probable(found) == ["face", "stranger"]
    assert match_of(found, "stranger").why[0] == "face 1.00 → confirmed by an operator"


def test_a_cut_parts_two_also_where_a_third_leads_from_one_to_the_other() -> None:
    cut = Link("face", "coat", 0.0, made_by="operator", verdict="different")
    stage = stage_over(InMemoryGallery(*people()), links=lambda name: [cut] if name in ("face", "coat") else [])
    assert probable(stage.search(portrait())) == ["face", "voice"]


def test_whoever_was_cut_from_the_tracklet_asked_for_is_no_answer_to_it_and_leads_to_none() -> None:
    cut = Link("face", "voice", 0.0, made_by="operator", verdict="different")
    stage = stage_over(InMemoryGallery(*people()), links=lambda name: [cut] if name in ("face", "voice") else [])
    for steps in (0, 3):
        found = stage.search(Query("q", (Probe("tracklet", tracklet_id="face"),), steps=steps))
        assert probable(found) == []
        assert "voice" not in [match.tracklet_id for match in found.matches]
        assert any("somebody else: tracklet voice" in note for note in found.coverage.notes)


def test_whoever_was_confirmed_to_be_the_tracklet_asked_for_is_an_answer_to_it() -> None:
    same = Link("face", "stranger", 0.5, made_by="operator", verdict="same")
    stage = stage_over(InMemoryGallery(*people()), links=lambda name: [same] if name in ("face", "stranger") else [])
    found = stage.search(Query("q", (Probe("tracklet", tracklet_id="face"),)))
    assert found.matches[0].tracklet_id == "stranger"
    assert found.matches[0].why[0] == "confirmed by an operator"
    elsewhere = stage.search(Query("q", (Probe("tracklet", tracklet_id="face"),), window=Filter(cameras=("south",))))
    assert "stranger" not in [match.tracklet_id for match in elsewhere.matches]


def test_a_link_leads_to_nobody_outside_the_window() -> None:
    same = Link("face", "stranger", 0.99, made_by="operator", verdict="same")
    stage = stage_over(InMemoryGallery(*people()), links=lambda name: [same] if name in ("face", "stranger") else [])
    assert "stranger" in probable(stage.search(portrait()))
    for window in (Filter(cameras=("north", "south")), Filter(to_ns=NOON_NS + HOUR), Filter(zones=("gate",))):
        assert "stranger" not in [match.tracklet_id for match in stage.search(portrait(window=window)).matches]


def test_a_link_made_before_counts_where_it_is_surer_than_the_step() -> None:
    known = Link("voice", "coat", 0.97, {BODY: 0.98}, {BODY: 5.0}, 1198.0)
    stage = stage_over(InMemoryGallery(*people()), links=lambda name: [known] if name in ("voice", "coat") else [])
    before = match_of(answered(portrait()), "coat").path[-1].probability
    assert match_of(stage.search(portrait()), "coat").path[-1].probability == max(before, 0.97)


def test_a_link_does_not_lead_to_somebody_whose_face_the_portrait_denies() -> None:
    """Clothes linked the two before anybody asked; the portrait knows better."""
    known = Link("voice", "berta", 0.97, {BODY: 0.99}, {BODY: 5.0}, 600.0)
    stage = stage_over(InMemoryGallery(*people()), links=lambda name: [known] if name in ("voice", "berta") else [])
    assert match_of(stage.search(portrait()), "berta").score < 0.1


def test_the_walk_takes_the_most_probable_way() -> None:
    """Two ways lead to one tracklet: the surer one is shown."""
    gallery = InMemoryGallery(*people())
    walker = Walker(gallery, PlainAssociator(CALIBRATION), WalkRules(caution=0.0))
    start = [Found(each, 0.9, (Step("", FACE, 0.8, 0.0, 0.9),)) for each in gallery.tracklets(["face", "voice"])]
    found, _ = walker.walk(start, Filter())
    by_id = {each.tracklet.tracklet_id: each for each in found}
    assert len(by_id["coat"].path) == 2


def test_gaps_read_as_people_say_them() -> None:
    assert [within(seconds) for seconds in (5, 61, 40 * 60, 3 * 3600)] == ["within a minute", "within 2 min", "within 40 min", "within 3 h"]
    assert path_in_words((Step("", FACE, 0.71, 0, 0.9), Step("a", VOICE, 0.64, 0, 0.8), Step("b", BODY, 0.83, 2400, 0.7))) == (
        "face 0.71 → voice 0.64 → body within 40 min 0.83"
    )


def test_tracks_broken_in_one_camera_are_one_stay() -> None:
    parts = [
        a_tracklet("a"),
        a_tracklet("b", started_at_ns=NOON_NS + 10 * S),
        a_tracklet("c", camera_id="south", started_at_ns=NOON_NS + 20 * S),
        a_tracklet("d", started_at_ns=NOON_NS + HOUR),
    ]
    stays = [(stay.camera_id, stay.tracklet_ids) for stay in trajectory(reversed(parts))]
    assert stays == [
        ("north", ("a", "b")),
        ("south", ("c",)),
        ("north", ("d",)),
    ]
