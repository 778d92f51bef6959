"""A query to a ranking, over a gallery in memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.errors import BadInputError, NotFoundError, SpaceMismatchError
from pipeline.search.stage import SearchStage
from pipeline.types import BODY, FACE, TEXT, Attribute, CameraCoverage, Embedding, Filter, Probe, Query, Reembedding, Tracklet
from tests.fakes import NOON_NS, InMemoryGallery, S, SteppingClock, WordTextEncoder, a_tracklet, embedding

RED, BLUE = embedding(TEXT, 1, 0, 0, 0, 0), embedding(TEXT, 0, 0, 1, 0, 0)
ANNA, BERTA = embedding(FACE, 1, 0), embedding(FACE, 0, 1)
COAT, SUIT = embedding(BODY, 1, 0), embedding(BODY, 0, 1)


class SlowGallery(InMemoryGallery):
    """Takes a second for each search."""

    def __init__(self, clock: SteppingClock, *tracklets: Tracklet) -> None:
        super().__init__(*tracklets)
        self.clock = clock

    def search(self, embedding: Embedding, window: Filter, top_k: int):  # type: ignore[no-untyped-def]
        self.clock.now_s += 1.0
        return super().search(embedding, window, top_k)


def people() -> list[Tracklet]:
    return [
        a_tracklet("anna-red", RED, ANNA, COAT, attributes=(Attribute("upper colour", "red", 0.91),)),
        a_tracklet("anna-blue", BLUE, ANNA, embedding(BODY, 0.8, 0.6), camera_id="south", started_at_ns=NOON_NS + 3600 * S),
        a_tracklet("berta-red", embedding(TEXT, 1, 0.2, 0, 0, 0), BERTA, SUIT),
        a_tracklet("nobody-green", embedding(TEXT, 0, 1, 0, 0, 0), embedding(BODY, 0.9, 0.436)),
    ]


def ask(gallery: InMemoryGallery, *probes: Probe, **changes: object) -> Query:
    return Query("q1", probes, **changes)  # type: ignore[arg-type]


def ids(stage: SearchStage, query: Query) -> list[str]:
    return [match.tracklet_id for match in stage.search(query).matches]


def words(text: str, **changes: object) -> Probe:
    return Probe("text", text, **changes)  # type: ignore[arg-type]


def picture(*embeddings: Embedding, kind: str = "portrait", **changes: object) -> Probe:
    return Probe(kind, embeddings=embeddings, **changes)  # type: ignore[arg-type]


@pytest.fixture
def gallery() -> InMemoryGallery:
    accounts = [CameraCoverage(name, NOON_NS, NOON_NS + 7200 * S, seen=100, sampled=100) for name in ("north", "south")]
    return InMemoryGallery(*people(), coverage=accounts)


@pytest.fixture
def stage(gallery: InMemoryGallery) -> SearchStage:
    return SearchStage(gallery, WordTextEncoder())


def test_words_find_the_described_people_best_first(stage: SearchStage, gallery: InMemoryGallery) -> None:
    ranking = stage.search(ask(gallery, words("a red jacket"), top_k=2))
    assert [(m.rank, m.tracklet_id) for m in ranking.matches] == [(1, "anna-red"), (2, "berta-red")]
    assert ranking.matches[0].score > ranking.matches[1].score > 0.5
    assert "red: yes, 0.91" in ranking.matches[0].why
    assert not ranking.is_partial


def test_spoken_words_are_words(stage: SearchStage, gallery: InMemoryGallery) -> None:
    assert ids(stage, ask(gallery, Probe("speech", "red"), top_k=1)) == ["anna-red"]


def test_a_portrait_finds_the_face_whatever_is_worn(stage: SearchStage, gallery: InMemoryGallery) -> None:
    ranking = stage.search(ask(gallery, picture(ANNA)))
    assert [m.tracklet_id for m in ranking.matches[:2]] == ["anna-blue", "anna-red"]
    assert ranking.matches[0].why[0] == "face 1.00 in fake-face@1"
    assert ranking.matches[0].similarities == {FACE: pytest.approx(1.0)}


def test_face_and_words_together_find_the_one_who_has_both(stage: SearchStage, gallery: InMemoryGallery) -> None:
    assert ids(stage, ask(gallery, picture(ANNA), words("blue")))[0] == "anna-blue"
    assert ids(stage, ask(gallery, picture(ANNA), words("red")))[0] == "anna-red"


def test_a_tracklet_finds_its_like_and_never_itself(stage: SearchStage, gallery: InMemoryGallery) -> None:
    found = ids(stage, ask(gallery, Probe("tracklet", tracklet_id="anna-red")))
    assert found[0] == "anna-blue"
    assert "anna-red" not in found


def test_a_tracklet_without_a_face_says_so(stage: SearchStage, gallery: InMemoryGallery) -> None:
    ranking = stage.search(ask(gallery, Probe("tracklet", tracklet_id="nobody-green")))
    assert any("no usable face" in note for note in ranking.coverage.notes)


def test_an_unknown_tracklet_is_an_error_that_names_it(stage: SearchStage, gallery: InMemoryGallery) -> None:
    with pytest.raises(NotFoundError, match="'t-404' is not in the index"):
        stage.search(ask(gallery, Probe("tracklet", tracklet_id="t-404")))


def test_unlike_words_push_a_match_down(stage: SearchStage, gallery: InMemoryGallery) -> None:
    both = picture(ANNA)
    assert ids(stage, ask(gallery, both, words("blue", is_negative=True)))[0] == "anna-red"
    assert ids(stage, ask(gallery, both, words("red", is_negative=True)))[0] == "anna-blue"


def test_only_what_to_avoid_is_no_question(stage: SearchStage, gallery: InMemoryGallery) -> None:
    with pytest.raises(BadInputError, match="what to look for"):
        stage.search(ask(gallery, words("red", is_negative=True)))


def test_words_that_cannot_be_seen_are_refused_alone_and_noted_in_company(stage: SearchStage, gallery: InMemoryGallery) -> None:
    with pytest.raises(BadInputError, match="friendly"):
        stage.search(ask(gallery, words("friendly")))
    ranking = stage.search(ask(gallery, words("friendly"), picture(ANNA)))
    assert ranking.matches
    assert any("friendly" in note for note in ranking.coverage.notes)


def test_words_that_were_not_used_are_named(stage: SearchStage, gallery: InMemoryGallery) -> None:
    ranking = stage.search(ask(gallery, words("foreign friendly red jacket")))
    assert ranking.coverage.notes == ("words not understood: friendly", "words not used, by rule: foreign")


def test_window_and_cameras_bound_the_search(stage: SearchStage, gallery: InMemoryGallery) -> None:
    later = Filter(from_ns=NOON_NS + 1800 * S)
    ranking = stage.search(ask(gallery, picture(ANNA), window=later))
    assert [m.tracklet_id for m in ranking.matches] == ["anna-blue"]
    assert ranking.coverage.tracklets == 1
    assert ids(stage, ask(gallery, picture(ANNA), window=Filter(cameras=("north",))))[0] == "anna-red"


def test_coverage_says_what_was_searched_and_what_was_not(stage: SearchStage, gallery: InMemoryGallery) -> None:
    ranking = stage.search(ask(gallery, words("red"), window=Filter(cameras=("north", "roof"))))
    assert [account.camera_id for account in ranking.coverage.cameras] == ["north"]
    assert ranking.coverage.spaces == ("fake-text@1",)
    assert ranking.coverage.tracklets == 3
    assert ranking.coverage.notes == ("never seen by the index: camera roof",)


def test_counting_a_large_window_does_not_hold_up_the_answer() -> None:
    crowd = InMemoryGallery(*[a_tracklet(f"t{number}", RED) for number in range(1200)])
    stage = SearchStage(crowd, WordTextEncoder(), clock=SteppingClock(0.2))
    ranking = stage.search(ask(crowd, words("red"), window=Filter(cameras=("north",)), deadline_s=60.0))
    assert ranking.coverage.tracklets == 1000
    assert any("more than the 1000 tracklets" in note for note in ranking.coverage.notes)
    assert not ranking.is_partial


def test_a_deadline_gives_a_part_and_says_so(gallery: InMemoryGallery) -> None:
    clock = SteppingClock()
    stage = SearchStage(SlowGallery(clock, *people()), WordTextEncoder(), clock=clock)
    ranking = stage.search(ask(gallery, picture(ANNA, weight=2.0), words("red"), deadline_s=0.5))
    assert ranking.is_partial
    assert [m.tracklet_id for m in ranking.matches[:2]] == ["anna-blue", "anna-red"], "the weightier probe was searched"
    assert any("deadline of 0.5 s passed before text" in note for note in ranking.coverage.notes)


def test_time_spent_before_the_search_counts(gallery: InMemoryGallery) -> None:
    clock = SteppingClock()
    clock.now_s = 5.0
    stage = SearchStage(gallery, WordTextEncoder(), clock=clock)
    assert stage.search(ask(gallery, picture(ANNA), words("red"), deadline_s=1.0), started_s=1.0).is_partial


def test_vectors_of_another_model_are_never_compared(stage: SearchStage, gallery: InMemoryGallery) -> None:
    foreign = embedding(FACE, 1, 0, space="other-face@9")
    with pytest.raises(SpaceMismatchError):
        stage.search(ask(gallery, picture(foreign)))
    ranking = stage.search(ask(gallery, picture(foreign, COAT, kind="look-alike")))
    assert ranking.matches[0].tracklet_id == "anna-red"
    assert any("other-face@9" in note for note in ranking.coverage.notes)


def test_an_empty_index_answers_with_nothing(gallery: InMemoryGallery) -> None:
    ranking = SearchStage(InMemoryGallery(), WordTextEncoder()).search(ask(gallery, words("red"), picture(ANNA)))
    assert (ranking.matches, ranking.coverage.tracklets, ranking.is_partial) == ((), 0, False)


def test_without_a_text_encoder_words_are_refused(gallery: InMemoryGallery) -> None:
    with pytest.raises(BadInputError, match="no text encoder"):
        SearchStage(gallery, None).search(ask(gallery, words("red")))


def test_the_same_question_gets_the_same_answer(gallery: InMemoryGallery) -> None:
    twins = [a_tracklet(f"t{number}", RED) for number in (3, 1, 2, 0)]
    orders: list[Sequence[str]] = []
    for held in (twins, twins[::-1]):
        stage = SearchStage(InMemoryGallery(*held), WordTextEncoder())
        orders.append(ids(stage, ask(gallery, words("red"), top_k=3)))
    assert orders[0] == orders[1] == ["t0", "t1", "t2"]


def test_a_half_done_upgrade_is_told_and_never_mixed() -> None:
    new = [Embedding(FACE, "new-face@2", [0.0, 1.0], 0.9)]
    gallery = InMemoryGallery(*people())
    gallery.add_embeddings([Reembedding("anna-red", 1, "new-face@2", tuple(new))])
    ranking = SearchStage(gallery, None).search(ask(gallery, picture(*new)))
    assert [match.tracklet_id for match in ranking.matches] == ["anna-red"]
    assert any("at least 2 tracklets have a face vector of fake-face@1 alone" in note for note in ranking.coverage.notes)


def test_a_tracklet_of_two_models_asks_in_the_space_that_the_index_holds_most_of() -> None:
    gallery = InMemoryGallery(*people())
    gallery.add_embeddings([Reembedding("anna-red", 1, "new-face@2", (Embedding(FACE, "new-face@2", [0.0, 1.0], 0.9),))])
    ranking = SearchStage(gallery, None).search(ask(gallery, Probe("tracklet", tracklet_id="anna-red")))
    assert "new-face@2" not in ranking.coverage.spaces
    assert ranking.matches[0].tracklet_id == "anna-blue"
