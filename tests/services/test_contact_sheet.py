"""The page an operator looks at."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipeline.types import CameraCoverage, Coverage, CropReference, Gap, Match, Ranking, Sighting, Stay
from services.contact_sheet import (
    CARD,
    CARD_WIDTH,
    PADDING,
    PAGE_WIDTH,
    contact_page,
    contact_sheet,
    coverage_in_words,
    score_in_words,
    sightings_in_words,
)
from services.crops import to_jpeg
from services.typography import Ink, Pen
from tests.fakes import NOON_NS, InMemoryMedia, S, noise

INK = Ink(16, 400, (255, 255, 255))


@pytest.fixture(params=["own fonts", "stroke font"])
def pen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pen:
    if request.param == "stroke font":
        monkeypatch.delattr(cv2, "FontFace", raising=False)
    return Pen()


def a_match(rank: int = 1, **changes: object) -> Match:
    crops = tuple(CropReference(f"north/t{rank}/{name}.jpg", NOON_NS, (0, 0, 9, 9), 0.5) for name in ("0", "context"))
    made = Match(rank, f"t{rank}", "north", NOON_NS, NOON_NS + 12 * S, 1.0 - rank / 12, why=("red upper body: yes, 0.91",), crops=crops)
    return replace(made, **changes)


def a_ranking(*matches: Match, **changes: object) -> Ranking:
    account = CameraCoverage("north", NOON_NS, NOON_NS + 7200 * S, gaps=(Gap(NOON_NS, NOON_NS + 90 * S, "frozen"),))
    made = Ranking("q1", matches, Coverage((account,), ("colours@1",), 1234), 0.25)
    return replace(made, **changes)


def media(*matches: Match) -> InMemoryMedia:
    kept = InMemoryMedia()
    for match in matches:
        kept.put(match.crops[0].key, to_jpeg(np.full((160, 60, 3), (0, 0, 250), np.uint8)))
        kept.put(match.crops[1].key, to_jpeg(np.full((360, 640, 3), (0, 250, 0), np.uint8)))
    return kept


def count(page: np.ndarray, bgr: tuple[int, int, int]) -> int:
    return int((np.abs(page.astype(int) - bgr).max(axis=2) < 12).sum())


def test_each_match_shows_its_crop_and_its_frame() -> None:
    matches = [a_match(rank) for rank in range(1, 8)]
    page = contact_sheet(a_ranking(*matches), media(*matches), "“red jacket”")
    assert page.shape[1] == PAGE_WIDTH
    assert page.dtype == np.uint8
    assert count(page, (0, 0, 250)) > 7 * 100 * 270
    assert count(page, (0, 250, 0)) > 7 * 290 * 160


def test_a_page_grows_with_rows_and_stacks_rankings() -> None:
    matches = [a_match(rank) for rank in range(1, 7)]
    one_row, two_rows = (contact_sheet(a_ranking(*matches[:n]), media(*matches), "q") for n in (5, 6))
    assert two_rows.shape[0] > one_row.shape[0] + 400
    both = contact_page([("a", a_ranking(*matches[:5])), ("b", a_ranking(*matches[:5]))], media(*matches))
    assert both.shape[0] > 1.7 * one_row.shape[0]


def test_pictures_that_are_gone_or_damaged_leave_a_note_not_an_error() -> None:
    match = a_match()
    kept = media(match)
    kept.put(match.crops[1].key, b"no jpeg")
    kept.delete([match.crops[0].key])
    page = contact_sheet(a_ranking(match), kept, "q")
    assert count(page, (0, 0, 250)) == 0
    assert contact_sheet(a_ranking(a_match(crops=())), kept, "q").shape == page.shape


def test_strange_crops_fit_their_place() -> None:
    match = a_match()
    for height, width in ((1, 1), (4000, 3), (3, 2000)):
        kept = media(match)
        kept.put(match.crops[0].key, to_jpeg(noise(height, width)))
        assert contact_sheet(a_ranking(match), kept, "q").shape[1] == PAGE_WIDTH


def test_nobody_found_is_a_page_too() -> None:
    assert contact_sheet(a_ranking(), InMemoryMedia(), "q").shape[0] < 400


def test_nothing_is_written_outside_the_cards() -> None:
    endless = a_match(camera_id="camera-with-a-very-long-name-over-the-gate", why=("w" * 400, "long reason " * 60))
    page = contact_sheet(a_ranking(endless), media(endless), "title " * 200, subtitle="window " * 100)
    card_end = 36 + CARD_WIDTH
    rows = slice(-600, -60)
    assert (page[rows, card_end : card_end + 300] == page[-10, -10]).all(), "right of the only card"
    inner_edge = page[rows, card_end - PADDING + 2 : card_end - 2]
    assert count(inner_edge, CARD) > 0.9 * inner_edge.shape[0] * inner_edge.shape[1] * 0.9
    assert (page[:, -20:] == page[-10, -10]).all(), "the right margin"


def test_a_partial_answer_and_its_notes_are_seen() -> None:
    whole = contact_sheet(a_ranking(a_match()), InMemoryMedia(), "q")
    notes = Coverage((), (), 0, ("never seen by the index: camera roof",))
    partial = contact_sheet(a_ranking(a_match(), is_partial=True, coverage=notes), InMemoryMedia(), "q")
    amber = (64, 190, 255)
    assert count(partial, amber) > count(whole, amber) + 500


def test_scores_are_words_and_coverage_is_a_sentence() -> None:
    assert [score_in_words(score) for score in (0.99, 0.9, 0.499, 0.0)] == ["very likely", "probably", "possibly", "weak likeness"]
    said = coverage_in_words(a_ranking())
    assert said == "searched 1,234 tracklets  ·  1 camera  ·  2.0 h of footage  ·  90 s of it not seen  ·  colours@1  ·  0.25 s".replace(
        "90 s", "2 min"
    )


def test_text_is_cut_to_its_room(pen: Pen) -> None:
    for text in ("short", "a long description of somebody in a red jacket", "x" * 300, "夜間カメラ 入口 " * 20, ""):
        assert pen.width(pen.fit(text, 120, INK), INK) <= 120
    assert pen.fit("short", 120, INK) == "short"


def test_text_wraps_at_words_and_ends_with_an_ellipsis(pen: Pen) -> None:
    lines = pen.wrap("one two three four five six seven eight nine ten eleven twelve", 110, INK, most=3)
    assert len(lines) == 3
    assert all(pen.width(line, INK) <= 110 for line in lines)
    assert lines[-1].endswith("…")
    assert pen.wrap("all of it", 400, INK, most=3) == ["all of it"]
    assert pen.wrap("", 100, INK, most=2) == []


def test_what_is_written_is_as_wide_as_measured(pen: Pen) -> None:
    page = np.zeros((60, 600, 3), np.uint8)
    written = pen.write(page, "probably 0.82 in gate", (10, 40), INK)
    columns = np.flatnonzero(page.any(axis=(0, 2)))
    assert abs(written - pen.width("probably 0.82 in gate", INK)) <= 1
    assert columns.min() >= 8
    assert columns.max() <= 10 + written + 3


def test_the_way_of_a_person_over_the_cameras_is_written_above_the_matches() -> None:
    stays = tuple(
        Stay(name, NOON_NS + at * S, NOON_NS + (at + 9) * S, (name,)) for name, at in (("north", 0), ("hall", 65), ("south", 3700))
    )
    ranking = a_ranking(a_match(), sightings=(Sighting("", 0.9, stays), Sighting("p2", 0.4, stays[:1])))
    assert sightings_in_words(ranking) == ["probably one person: north 22:13:20 → hall 22:14:25 → south 23:15:00"]
    plain = contact_sheet(a_ranking(a_match()), media(a_match()), "a portrait")
    assert contact_sheet(ranking, media(a_match()), "a portrait").shape[0] > plain.shape[0]


def test_very_many_stays_are_counted() -> None:
    stays = tuple(Stay(f"c{number}", NOON_NS + number * S, NOON_NS + number * S, ("t",)) for number in range(20))
    assert sightings_in_words(a_ranking(sightings=(Sighting("", 0.8, stays),)))[0].endswith("c11 22:13:31 and 8 more stays")
