"""The FAISS neighbours: what a plain dictionary would give, at any size."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.types import BODY, FACE, TEXT, Tracklet
from services.adapters import faiss_neighbours
from services.adapters.faiss_neighbours import FaissNeighbours
from tests.fakes import NOON_NS, InMemoryNeighbours, S, a_tracklet, embedding

HOUR_S = 3600


def crowd(count: int, seed: int = 1) -> list[Tracklet]:
    """Tracklets, one every 20 s, of people who come again and again; every second one with a face."""
    rng = np.random.default_rng(seed)
    faces, bodies = rng.normal(size=(2, count // 8 + 1, 16))
    made = []
    for number in range(count):
        person = int(rng.integers(len(faces)))
        vectors = [embedding(BODY, *(bodies[person] + 0.3 * rng.normal(size=16))), embedding(TEXT, *bodies[person])]
        if number % 2:
            vectors.append(embedding(FACE, *(faces[person] + 0.3 * rng.normal(size=16))))
        made.append(a_tracklet(f"t{number:05d}", *vectors, started_at_ns=NOON_NS + 20 * number * S))
    return made


@pytest.fixture(params=["matrix", "graph"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways a shelf is kept; the graph from few vectors on."""
    if request.param == "graph":
        monkeypatch.setattr(faiss_neighbours, "EXACT_TO", 16)
        monkeypatch.setattr(faiss_neighbours, "BUILT_ANEW_FROM", 8)
    return str(request.param)


def both(count: int = 400, horizon_s: float = HOUR_S) -> tuple[list[Tracklet], FaissNeighbours, InMemoryNeighbours]:
    tracklets = crowd(count)
    fast, plain = FaissNeighbours(horizon_s), InMemoryNeighbours(horizon_s)
    for start in range(0, count, 50):
        fast.add(tracklets[start : start + 50])
        plain.add(tracklets[start : start + 50])
    return tracklets, fast, plain


def test_the_nearest_are_those_of_an_exact_search(kind: str) -> None:
    tracklets, fast, plain = both()
    asked = [each.tracklet_id for each in tracklets[::7]]
    shares = []
    for found, wanted in zip(fast.near(asked, 5), plain.near(asked, 5), strict=True):
        shares.append(len(set(found) & set(wanted)) / len(wanted))
    assert np.mean(shares) > (0.97 if kind == "matrix" else 0.93)


def test_a_tracklet_is_compared_as_exactly_as_halves_allow(kind: str) -> None:
    tracklets, fast, plain = both()
    others = [*(each.tracklet_id for each in tracklets[:60]), "nobody"]
    ours = {each.space: each for each in fast.compare("t00101", others)}
    theirs = {each.space: each for each in plain.compare("t00101", others) if each.modality != TEXT}
    assert ours.keys() == theirs.keys()
    for space, each in ours.items():
        np.testing.assert_allclose(each.cosine, theirs[space].cosine, atol=2e-3)
        np.testing.assert_allclose(each.other_quality, theirs[space].other_quality)
        assert (each.modality, each.quality) == (theirs[space].modality, theirs[space].quality)
    assert fast.compare("nobody", others) == []


def test_bodies_of_other_hours_are_not_near(kind: str) -> None:
    fast = FaissNeighbours(HOUR_S)
    late = a_tracklet("late", embedding(BODY, 1, 0), embedding(FACE, 1, 0), started_at_ns=NOON_NS + 30 * HOUR_S * S)
    fast.add([a_tracklet("a", embedding(BODY, 1, 0)), a_tracklet("b", embedding(FACE, 1, 0)), late])
    assert fast.near(["late"], 5) == [["b"]]


def test_a_revision_replaces_what_was(kind: str) -> None:
    _, fast, _ = both(200)
    changed = a_tracklet("t00003", embedding(BODY, *range(16)), revision=2, started_at_ns=NOON_NS + 60 * S)
    count = len(fast)
    fast.add([changed])
    (compared,) = fast.compare("t00003", ["t00003"])
    assert compared.cosine == pytest.approx([1.0], abs=1e-3)
    assert len(fast) == count - 1  # its face is no more
    fast.add([a_tracklet("probe", embedding(BODY, *range(16)))])
    assert fast.near(["probe"], 1) == [["t00003"]]


def test_the_removed_never_come_back(kind: str) -> None:
    tracklets, fast, _ = both(300)
    gone = {each.tracklet_id for each in tracklets[::2]}
    fast.remove(sorted(gone))
    fast.remove(["nobody"])
    assert fast.near(sorted(gone), 20) == [[]] * len(gone)
    for found in fast.near([each.tracklet_id for each in tracklets[1::2]], 20):
        assert found
        assert not gone & set(found)
    assert fast.compare("t00000", ["t00001"]) == []
    assert all(np.isnan(each.cosine).all() for each in fast.compare("t00001", ["t00000"]))
    fast.add([tracklets[0]])
    assert fast.near([tracklets[0].tracklet_id], 1) != [[]]


def test_the_many_revisions_of_a_long_track_do_not_hide_the_others(kind: str) -> None:
    fast = FaissNeighbours(HOUR_S)
    fast.add([a_tracklet(f"t{i}", embedding(FACE, 1, 2, 0.01 * i)) for i in range(300)])
    for revision in range(1, 100):
        fast.add([a_tracklet("long", embedding(FACE, 1, 0.3 * (-1) ** revision, 0.001 * revision), revision=revision)])
    (found,) = fast.near(["long"], 5)
    assert len(found) == 5


def test_a_shelf_that_is_half_dead_is_built_anew_without_them(kind: str) -> None:
    fast = FaissNeighbours(HOUR_S)
    for revision in range(1, 30):
        rng = np.random.default_rng(revision)
        fast.add([a_tracklet(f"t{i}", embedding(FACE, *rng.normal(size=8)), revision=revision) for i in range(40)])
    (space,) = fast._spaces.values()
    (shelf,) = space.shelves.values()
    assert len(shelf) == 40
    assert len(shelf.ids) <= 2 * (40 + faiss_neighbours.BUILT_ANEW_FROM)


def test_bodies_are_compared_without_what_people_of_one_picture_have_in_common() -> None:
    rng = np.random.default_rng(2)
    people, tint = rng.normal(size=(30, 64)), rng.normal(size=64) * 1.5
    plain, tinted = FaissNeighbours(HOUR_S), FaissNeighbours(HOUR_S)
    for neighbours, lean in ((plain, 0.0), (tinted, tint)):
        neighbours.add(
            [a_tracklet(f"t{i}", embedding(BODY, *(person + lean)), embedding(FACE, *person)) for i, person in enumerate(people)]
        )
        again = a_tracklet("again", embedding(BODY, *(people[0] + 0.3 * rng.normal(size=64))), camera_id="south")
        neighbours.add([again])
    names = [f"t{i}" for i in range(30)]
    before = tinted.compare("t1", names[2:])[0].cosine.mean()
    assert before > 0.5
    for number, name in enumerate(names):
        tinted.told_apart(name, names[:number])
    after = tinted.compare("t1", names[2:])
    assert abs(after[0].cosine.mean()) < 0.1
    assert after[1].cosine == pytest.approx(plain.compare("t1", names[2:])[1].cosine, abs=1e-2)  # faces are left as they are
    assert tinted.compare("again", ["t0"])[0].cosine[0] > 0.85


def test_who_walks_alone_before_a_camera_is_compared_as_it_is() -> None:
    fast = FaissNeighbours(HOUR_S)
    fast.add([a_tracklet(f"t{i}", embedding(BODY, 1, 0.1 * i, 0), started_at_ns=NOON_NS + 10 * i * S) for i in range(20)])
    assert fast.compare("t0", ["t1"])[0].cosine[0] > 0.99


def test_a_vector_of_another_length_is_left_out() -> None:
    fast = FaissNeighbours(HOUR_S)
    odd = a_tracklet("odd", embedding(FACE, 1, 0, 0))
    fast.add([a_tracklet("a", embedding(FACE, 1, 0)), odd])
    assert fast.near(["odd"], 3) == [[]]
    assert fast.compare("odd", ["a"]) == []
