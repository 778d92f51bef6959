"""Linking: who is probably who, what cannot be, and what an operator said."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.calibration import Calibration
from pipeline.errors import BadInputError
from pipeline.evidence import PlainAssociator, compare
from pipeline.index.linking import Linker, LinkRules
from pipeline.index.units import name_of
from pipeline.ports import LinkChanges
from pipeline.types import BODY, FACE, TEXT, VOICE, Decision, Embedding, Tracklet
from pipeline.types.identity import pair_key
from tests.fakes import NOON_NS, InMemoryNeighbours, S, a_tracklet, embedding

ANNA, BERT, CLEO = (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)
HOUR_S = 3600
NOW_NS = NOON_NS + 10**15


def a_linker(positions: dict[str, tuple[float, float]] | None = None, **rules: Any) -> Linker:
    associator = PlainAssociator(Calibration.default())
    return Linker(associator, InMemoryNeighbours(), LinkRules(**{"accept": 0.8, **rules}), (positions or {}).get)


def face(*values: float, quality: float = 0.8) -> Embedding:
    return embedding(FACE, *values, quality=quality)


def body(*values: float) -> Embedding:
    return embedding(BODY, *values)


def voice(*values: float) -> Embedding:
    return embedding(VOICE, *values)


def seen(name: str, *embeddings: Embedding, at_s: float = 0, camera: str = "north", **changes: Any) -> Tracklet:
    return a_tracklet(name, *embeddings, started_at_ns=NOON_NS + int(at_s * S), camera_id=camera, **changes)


def heard(name: str, *embeddings: Embedding, at_s: float = 0, camera: str = "north") -> Tracklet:
    nothing = {"at_ns": np.zeros(0, np.int64), "xyxy": np.zeros((0, 4), np.float32), "confidence": np.zeros(0, np.float32)}
    return seen(name, *embeddings, at_s=at_s, camera=camera, crops=(), **nothing)


def link(linker: Linker, *tracklets: Tracklet) -> LinkChanges:
    return linker.link(tracklets, NOW_NS)


def parts(linker: Linker, names: str) -> list[str]:
    """ "ab c": who is with whom."""
    by_identity: dict[str | None, str] = {}
    for name in names:
        by_identity[linker.identity_of(name)] = by_identity.get(linker.identity_of(name), "") + name
    return sorted(by_identity.values())


def kinds(changes: LinkChanges) -> list[str]:
    return [event.kind for event in changes.events]


def word(first: str, second: str, verdict: str, at_ns: int = NOW_NS) -> Decision:
    return Decision(first, second, verdict, "anna", at_ns, "case 7")


# ------------------------------------------------------------------------------------------------- evidence


def test_the_same_face_days_apart_is_probably_the_same_person() -> None:
    linker = a_linker()
    changes = link(linker, seen("a", face(*ANNA)), seen("b", face(*ANNA), at_s=72 * HOUR_S), seen("c", face(*BERT), at_s=9))
    assert parts(linker, "abc") == ["ab", "c"]
    assert kinds(changes) == ["made"]
    (found,) = changes.links
    assert (found.first, found.second, found.made_by, found.verdict, found.gap_s) == ("a", "b", "model", "probable", 72 * HOUR_S - 2)
    assert found.similarities == {FACE: pytest.approx(1.0)}
    assert 0.9 < found.probability < 1.0


def test_clothes_tell_the_same_hours_and_nothing_after_the_horizon() -> None:
    linker = a_linker()
    link(linker, seen("a", body(*ANNA)), seen("b", body(*ANNA), at_s=HOUR_S), seen("c", body(*ANNA), at_s=20 * HOUR_S))
    assert parts(linker, "abc") == ["ab", "c"]


def test_clothes_tell_less_and_less() -> None:
    strengths = []
    for hours in (0.1, 2, 4):
        linker = a_linker(accept=0.6)
        (found,) = link(linker, seen("a", body(*ANNA)), seen("b", body(*ANNA), at_s=hours * HOUR_S)).links
        strengths.append(found.log_odds[BODY])
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[2] == pytest.approx(strengths[0] / 2, rel=0.05)


def test_a_link_carries_the_evidence_that_compare_gives() -> None:
    ours, theirs = (face(0.9, 0.3, 0, 0), body(*ANNA)), (face(*ANNA, quality=0.5), body(0.9, 0.1, 0, 0), embedding(TEXT, *ANNA))
    (found,) = link(a_linker(), seen("a", *ours), seen("b", *theirs, at_s=600)).links
    evidence = compare(PlainAssociator(Calibration.default()), ours, theirs, 598.0)
    assert found.similarities == pytest.approx(evidence.similarities)
    assert found.log_odds == pytest.approx(evidence.log_odds)
    assert found.probability == pytest.approx(min(evidence.probability, 0.999))


def test_words_alone_never_link() -> None:
    linker = a_linker()
    link(linker, seen("a", embedding(TEXT, *ANNA)), seen("b", embedding(TEXT, *ANNA), at_s=60))
    assert parts(linker, "ab") == ["a", "b"]


def test_nothing_is_ever_certain() -> None:
    everything = (face(*ANNA, quality=1.0), voice(*ANNA), body(*ANNA))
    (found,) = link(a_linker(), seen("a", *everything), seen("b", *everything, at_s=60)).links
    assert found.probability == 0.999


def test_vectors_of_different_spaces_are_not_compared() -> None:
    linker = a_linker()
    link(linker, seen("a", embedding(FACE, *ANNA, space="old@1")), seen("b", embedding(FACE, *ANNA, space="new@2"), at_s=60))
    assert parts(linker, "ab") == ["a", "b"]


def test_a_tracklet_with_face_and_body_brings_those_together_that_have_only_one_of_them() -> None:
    linker = a_linker()
    link(linker, seen("a", face(*ANNA)), seen("b", body(*BERT), at_s=60))
    assert parts(linker, "ab") == ["a", "b"]
    changes = link(linker, seen("c", face(*ANNA), body(*BERT), at_s=120))
    assert parts(linker, "abc") == ["abc"]
    assert kinds(changes) == ["made"]


def test_two_identities_that_a_newcomer_shows_to_be_one_are_merged_and_keep_the_older_name() -> None:
    linker = a_linker()
    link(
        linker, seen("a", face(*ANNA)), seen("b", face(*ANNA), at_s=60), seen("c", body(*BERT), at_s=120), seen("d", body(*BERT), at_s=180)
    )
    assert parts(linker, "abcd") == ["ab", "cd"]
    changes = link(linker, seen("e", face(*ANNA), body(*BERT), at_s=240))
    assert parts(linker, "abcde") == ["abcde"]
    assert linker.identity_of("d") == name_of("a")
    merged = next(event for event in changes.events if event.kind == "merged")
    assert (merged.identity_id, merged.other, set(merged.tracklet_ids)) == (name_of("a"), name_of("c"), {"c", "d"})
    assert {member.tracklet_id for member in changes.members} >= {"c", "d", "e"}


def test_two_identities_whose_faces_differ_are_not_merged_by_somebody_dressed_like_both() -> None:
    linker = a_linker()
    link(linker, seen("a", face(*ANNA), body(*CLEO)), seen("b", face(*BERT), body(*CLEO), at_s=60))
    link(linker, seen("c", body(*CLEO), at_s=120))
    assert linker.identity_of("a") != linker.identity_of("b")


def test_clothes_do_not_link_where_the_faces_deny_it() -> None:
    linker = a_linker()
    link(linker, seen("a", face(*ANNA), body(*CLEO)), seen("b", face(*BERT), body(*CLEO), at_s=60))
    assert parts(linker, "ab") == ["a", "b"]


def test_one_likeness_does_not_outweigh_what_all_other_members_say() -> None:
    linker = a_linker()
    link(linker, *(seen(f"{i}", face(*ANNA), at_s=60 * i) for i in range(5)), seen("5", face(1, 0.6, 0, 0), at_s=600))
    assert parts(linker, "012345") == ["012345"]
    link(linker, seen("x", face(0.2, 0.98, 0, 0), at_s=660))
    assert linker.identity_of("x") != linker.identity_of("0")


def test_a_voice_without_a_body_is_linked_by_voice_alone_and_may_be_who_is_in_the_picture() -> None:
    linker = a_linker()
    link(linker, seen("a", voice(*ANNA), body(*ANNA)), heard("b", voice(*ANNA), at_s=1), heard("c", voice(*BERT), at_s=1))
    assert parts(linker, "abc") == ["ab", "c"]


# ------------------------------------------------------------------------------------------- what cannot be


def test_two_people_in_one_picture_are_two_people_though_they_look_alike() -> None:
    linker = a_linker()
    link(linker, seen("a", body(*ANNA)), seen("b", body(*ANNA), at_s=1))
    assert parts(linker, "ab") == ["a", "b"]


def test_a_track_that_hands_over_to_the_next_may_overlap_a_little() -> None:
    linker = a_linker()
    link(linker, seen("a", body(*ANNA)), seen("b", body(*ANNA), at_s=1.7))
    assert parts(linker, "ab") == ["ab"]


def test_whoever_overlaps_with_any_member_stays_out() -> None:
    linker = a_linker()
    link(linker, seen("a", face(*ANNA)), seen("b", face(*ANNA), at_s=60), seen("c", face(*ANNA), at_s=61))
    assert parts(linker, "abc") in (["ab", "c"], ["ac", "b"], ["a", "b", "c"])
    assert linker.identity_of("b") != linker.identity_of("c")


def test_of_two_look_alikes_side_by_side_neither_is_linked_on_likeness_alone() -> None:
    linker = a_linker()
    link(linker, seen("a", body(*ANNA), camera="south"))
    link(linker, seen("b", body(*ANNA), at_s=60), seen("c", body(*ANNA), at_s=60))
    assert parts(linker, "abc").count("abc") == 0
    assert linker.identity_of("c") != linker.identity_of("a")


def test_whoever_is_much_nearer_takes_the_place_of_another_in_the_same_picture() -> None:
    linker = a_linker()
    link(linker, seen("a", face(*ANNA), camera="south"), seen("b", face(1, 0.75, 0, 0), at_s=60))
    assert parts(linker, "ab") == ["ab"]
    changes = link(linker, seen("c", face(*ANNA), at_s=61))
    assert parts(linker, "abc") == ["ac", "b"]
    assert "split" in kinds(changes)


def test_nobody_is_in_two_distant_places_at_once() -> None:
    positions = {"north": (0.0, 0.0), "south": (0.0, 1000.0), "beside": (20.0, 0.0)}
    linker = a_linker(positions)
    link(linker, seen("a", face(*ANNA)), seen("b", face(*ANNA), at_s=30, camera="south"))
    assert parts(linker, "ab") == ["a", "b"]
    link(linker, seen("c", face(*ANNA), at_s=0.5, camera="beside"))
    assert linker.identity_of("c") == linker.identity_of("a")
    link(
        linker, seen("d", face(*BERT)), seen("e", face(*BERT), at_s=600, camera="south"), seen("f", face(*BERT), at_s=603, camera="nowhere")
    )
    assert parts(linker, "def") == ["def"]


def test_a_top_speed_of_0_asks_for_no_travel_time() -> None:
    linker = a_linker({"north": (0.0, 0.0), "south": (0.0, 1000.0)}, top_speed_m_s=0.0)
    link(linker, seen("a", face(*ANNA)), seen("b", face(*ANNA), at_s=3, camera="south"))
    assert parts(linker, "ab") == ["ab"]


# ------------------------------------------------------------------------------------------------ revisions


def test_a_revision_that_is_known_changes_nothing() -> None:
    linker = a_linker()
    link(linker, seen("a", face(*ANNA)), seen("b", face(*ANNA), at_s=60))
    assert link(linker, seen("a", face(*BERT))) == LinkChanges()
    assert link(linker, seen("b", face(*ANNA), at_s=60)) == LinkChanges()


def test_a_revision_that_looks_otherwise_leaves_its_identity() -> None:
    linker = a_linker()
    link(linker, seen("a", face(*ANNA)), seen("b", face(*ANNA), at_s=60), seen("c", face(*ANNA), at_s=120))
    changes = link(linker, seen("b", face(*BERT), at_s=60, revision=2))
    assert parts(linker, "abc") == ["ac", "b"]
    assert kinds(changes) == ["split"]
    assert set(changes.unlinked) >= {("a", "b")}


def test_a_revision_that_says_the_same_makes_no_event() -> None:
    linker = a_linker()
    link(linker, seen("a", face(*ANNA)), seen("b", face(*ANNA), at_s=60))
    for name, at_s in (("a", 0), ("b", 60)):
        changes = link(linker, seen(name, face(*ANNA), at_s=at_s, revision=2, is_closed=True))
        assert parts(linker, "ab") == ["ab"]
        assert changes.events == ()
        assert [member.revision for member in changes.members if member.tracklet_id == name] == [2]


def test_a_revision_that_now_overlaps_with_a_member_is_parted_from_it() -> None:
    linker = a_linker()
    link(linker, seen("a", face(*ANNA)), seen("b", face(*ANNA), at_s=60))
    link(linker, seen("a", face(*ANNA), revision=2, ended_at_ns=NOON_NS + 62 * S))
    assert parts(linker, "ab") == ["a", "b"]


def test_vectors_of_another_model_that_were_made_later_link_whoever_comes_after() -> None:
    linker = a_linker()
    old, new = embedding(FACE, *ANNA, space="old@1"), embedding(FACE, *ANNA, space="new@2")
    link(linker, seen("a", old))
    linker.refresh([seen("a", old, new), seen("unknown", new)])
    link(linker, seen("b", new, at_s=60))
    assert parts(linker, "ab") == ["ab"]
    assert linker.identity_of("unknown") is None


# ------------------------------------------------------------------------------------------------ operators


def test_a_cut_sticks_through_a_third_and_through_new_revisions() -> None:
    linker = a_linker()
    link(linker, *(seen(name, face(*ANNA), at_s=60 * i) for i, name in enumerate("abc")))
    changes = linker.decide(word("a", "b", "different"))
    assert linker.identity_of("a") != linker.identity_of("b")
    assert "split" in kinds(changes)
    assert [(cut.verdict, cut.made_by) for cut in changes.links if {cut.first, cut.second} == {"a", "b"}] == [("different", "anna")]
    link(linker, *(seen(name, face(*ANNA), at_s=60 * i, revision=2) for i, name in enumerate("abc")))
    link(linker, *(seen(f"{i}", face(*ANNA), at_s=1000 + 60 * i) for i in range(5)))
    assert linker.identity_of("a") != linker.identity_of("b")


def test_a_cut_withdrawn_brings_back_what_was() -> None:
    linker = a_linker()
    link(linker, *(seen(name, face(*ANNA), at_s=60 * i) for i, name in enumerate("abc")))
    linker.decide(word("a", "b", "different"))
    changes = linker.decide(word("b", "a", "withdrawn", NOW_NS + 1))
    assert parts(linker, "abc") == ["abc"]
    assert linker.identity_of("a") == name_of("a")
    assert kinds(changes) in (["merged"], ["grown"])
    assert linker.decisions() == []


def test_a_confirmed_pair_stays_together_whatever_it_looks_like() -> None:
    linker = a_linker()
    link(linker, seen("a", face(*ANNA)), seen("b", face(*BERT), at_s=60))
    changes = linker.decide(word("a", "b", "same"))
    assert parts(linker, "ab") == ["ab"]
    (found,) = changes.links
    assert (found.verdict, found.made_by) == ("same", "anna")
    assert found.probability < 0.5
    link(linker, seen("b", face(*CLEO), at_s=60, revision=2))
    assert parts(linker, "ab") == ["ab"]


def test_a_word_on_tracklets_that_come_later_holds_for_them() -> None:
    linker = a_linker()
    linker.decide(word("a", "b", "different"))
    linker.decide(word("c", "d", "same"))
    link(linker, *(seen(name, face(*ANNA), at_s=60 * i) for i, name in enumerate("ab")))
    link(linker, seen("c", face(*BERT), at_s=300), seen("d", face(*CLEO), at_s=360))
    assert parts(linker, "abcd") == ["a", "b", "cd"]


def test_words_that_contradict_one_another_are_refused_and_say_which() -> None:
    linker = a_linker()
    link(linker, *(seen(name, face(*ANNA), at_s=60 * i) for i, name in enumerate("abc")))
    linker.decide(word("a", "b", "different"))
    with pytest.raises(BadInputError, match=r"called different by anna: withdraw that first"):
        linker.decide(word("b", "a", "same"))
    linker.decide(word("b", "c", "same"))
    with pytest.raises(BadInputError, match="cannot be one person"):
        linker.decide(word("a", "c", "same"))
    linker.decide(word("c", "d", "same"))
    with pytest.raises(BadInputError, match="confirmed to be one person"):
        linker.decide(word("b", "d", "different"))
    assert linker.decide(word("a", "b", "different")) == LinkChanges()


def test_a_confirmation_goes_before_what_the_model_found() -> None:
    linker = a_linker()
    link(linker, seen("a", face(*ANNA), camera="south"), seen("b", face(*ANNA), at_s=60), seen("c", face(*BERT), at_s=61))
    assert parts(linker, "abc") == ["ab", "c"]
    linker.decide(word("a", "c", "same"))
    assert parts(linker, "abc") == ["ac", "b"]


# ------------------------------------------------------------------------------------------------- removal


def test_the_erased_are_gone_and_whoever_they_alone_held_together_is_parted() -> None:
    linker = a_linker()
    link(linker, seen("a", face(*ANNA)), seen("b", body(*BERT), at_s=60), seen("c", face(*ANNA), body(*BERT), at_s=120))
    assert parts(linker, "abc") == ["abc"]
    linker.decide(word("c", "x", "different"))
    changes = linker.remove(["c"], NOW_NS)
    assert changes.gone == ("c",)
    assert changes.forgotten == ("c+x",)
    assert parts(linker, "ab") == ["a", "b"]
    assert linker.identity_of("c") is None
    assert set(changes.unlinked) == {("a", "c"), ("b", "c")}
    assert linker.decisions() == []


def test_the_others_stay_together_where_their_own_evidence_does_it() -> None:
    linker = a_linker()
    link(linker, *(seen(name, face(*ANNA), at_s=60 * i) for i, name in enumerate("abcd")))
    name = linker.identity_of("d")
    linker.remove(["a"], NOW_NS)
    assert parts(linker, "bcd") == ["bcd"]
    assert linker.identity_of("d") == name


# ----------------------------------------------------------------------------------------------- the whole


def a_crowd(people: int, each: int, seed: int = 3) -> list[Tracklet]:
    """Tracklets of some people in turn, with noise; every third has a face."""
    rng = np.random.default_rng(seed)
    faces, bodies = rng.normal(size=(2, people, 64))
    tracklets = []
    for number, (_, person) in enumerate(itertools.product(range(each), range(people))):
        vectors = [embedding(BODY, *(bodies[person] + 0.4 * rng.normal(size=64)))]
        if number % 3 == 0:
            vectors.append(embedding(FACE, *(faces[person] + 0.4 * rng.normal(size=64))))
        tracklets.append(seen(f"{person:02d}-{number}", *vectors, at_s=7.0 * number, camera=f"camera-{number % 5}"))
    return tracklets


def partition(linker: Linker, tracklets: Sequence[Tracklet]) -> dict[str, str | None]:
    return {each.tracklet_id: linker.identity_of(each.tracklet_id) for each in tracklets}


def test_a_crowd_is_told_apart_and_the_same_order_gives_the_same_identities() -> None:
    crowd = a_crowd(12, 6)
    first, second = a_linker(), a_linker()
    link(first, *crowd)
    link(second, *crowd)
    assert partition(first, crowd) == partition(second, crowd)
    found = {frozenset(first.identity(each.tracklet_id).tracklet_ids) for each in crowd}  # type: ignore[union-attr]
    assert len(found) == 12
    assert all(len({name[:2] for name in names}) == 1 for names in found)


def test_what_is_restored_is_what_was_and_goes_on_alike() -> None:
    crowd = a_crowd(8, 6)
    live = a_linker()
    neighbours = InMemoryNeighbours()
    members, links = {}, {}
    for changes in (link(live, *crowd[:30]), live.decide(word(crowd[0].tracklet_id, crowd[8].tracklet_id, "different"))):
        members.update({each.tracklet_id: each for each in changes.members})
        links.update({(each.first, each.second): each for each in changes.links})
        for pair in changes.unlinked:
            links.pop(pair, None)
    restored = Linker(PlainAssociator(Calibration.default()), neighbours, LinkRules(accept=0.8))
    neighbours.add(crowd[:30])
    restored.restore(crowd[:30], members)
    assert restored.restore_links(links.values(), live.decisions(), NOW_NS) == LinkChanges()
    assert partition(restored, crowd[:30]) == partition(live, crowd[:30])
    for linker in (live, restored):
        link(linker, *crowd[30:])
    assert partition(restored, crowd) == partition(live, crowd)
    assert restored.identity_of(crowd[0].tracklet_id) != restored.identity_of(crowd[8].tracklet_id)


def test_an_identity_whose_links_went_while_nobody_looked_is_mended_at_the_start() -> None:
    live = a_linker()
    three = [seen("a", face(*ANNA)), seen("b", body(*BERT), at_s=60), seen("c", face(*ANNA), body(*BERT), at_s=120)]
    changes = link(live, *three)
    members = {each.tracklet_id: each for each in changes.members}
    neighbours = InMemoryNeighbours()
    neighbours.add(three[:2])
    restored = Linker(PlainAssociator(Calibration.default()), neighbours, LinkRules(accept=0.8))
    restored.restore(three[:2], members)
    mended = restored.restore_links(changes.links, (), NOW_NS)
    assert parts(restored, "ab") == ["a", "b"]
    assert kinds(mended) == ["split"]


def test_members_links_and_events_tell_the_same_story_whatever_happens() -> None:
    """Random walks: what was written is what is, no cut pair meets, nobody meets whoever was beside them."""
    rng = np.random.default_rng(11)
    crowd = a_crowd(6, 8)
    linker = a_linker()
    written: dict[str, str] = {}
    links: dict[tuple[str, str], Any] = {}
    cuts: set[str] = set()
    alive: dict[str, Tracklet] = {}
    for step in range(150):
        dice = rng.random()
        names = sorted(alive)
        if dice < 0.5 or len(names) < 3:
            tracklet = crowd[step % len(crowd)]
            alive[tracklet.tracklet_id] = tracklet
            changes = link(linker, tracklet)
        elif dice < 0.75:
            name = names[rng.integers(len(names))]
            noise = rng.normal(size=64)
            changed = [embedding(e.modality, *(e.vector + rng.choice([0.02, 0.4]) * noise)) for e in alive[name].embeddings]
            alive[name] = replace(alive[name], revision=linker.revision_of(name) + 1, embeddings=tuple(changed))
            changes = link(linker, alive[name])
        elif dice < 0.9:
            first, second = (str(each) for each in rng.choice(names, 2, replace=False))
            verdict = str(rng.choice(["different", "same", "withdrawn"]))
            try:
                changes = linker.decide(word(first, second, verdict))
            except BadInputError:
                continue
            cuts.discard(pair_key(first, second))
            if verdict == "different":
                cuts.add(pair_key(first, second))
        else:
            name = names[rng.integers(len(names))]
            alive.pop(name)
            cuts = {pair for pair in cuts if name not in pair.split("+")}
            changes = linker.remove([name], NOW_NS)
        written.update({each.tracklet_id: each.identity_id for each in changes.members})
        for gone in changes.gone:
            written.pop(gone)
        links.update({(each.first, each.second): each for each in changes.links})
        for pair in changes.unlinked:
            links.pop(pair, None)
        assert written == {name: linker.identity_of(name) for name in alive}
        assert all(linker.identity_of(first) != linker.identity_of(second) for first, second in (pair.split("+") for pair in cuts))
        for name in alive:
            identity = linker.identity(name)
            assert identity is not None
            known = [each for pair, each in links.items() if set(pair) <= set(identity.tracklet_ids) and each.verdict != "different"]
            assert list(identity.links) == sorted(known, key=lambda each: (each.first, each.second))
            assert len(identity.links) >= len(identity.tracklet_ids) - 1
