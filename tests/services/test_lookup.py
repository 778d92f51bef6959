from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import BadInputError
from pipeline.types import CameraCoverage, Coverage, Match, Probe, Ranking
from services.lookup import SearchRequest, probes_of, ranking_table, title_of, write_sheet
from services.settings import Settings


def test_a_search_for_nothing_says_what_it_could_be_for() -> None:
    with pytest.raises(BadInputError, match="must say what to look for"):
        probes_of(Settings(), SearchRequest(unlike=("backpack",)))


def test_words_and_what_it_is_not_become_probes() -> None:
    probes, heard = probes_of(Settings(), SearchRequest(text="red coat", tracklet_id="t1", unlike=("backpack",)))
    assert [(probe.kind, probe.is_negative) for probe in probes] == [("text", False), ("tracklet", False), ("text", True)]
    assert heard == ""
    assert title_of(probes) == "“red coat” + tracklet + not “backpack”"


def test_a_contact_sheet_must_be_a_picture_file(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"must end in \.jpg or \.png"):
        write_sheet(Settings(), tmp_path / "sheet.pdf", [])


def test_a_ranking_is_shown_with_why_and_what_it_rests_on() -> None:
    coverage = Coverage((CameraCoverage("gate", 0, 60_000_000_000, 600, 600),), ("retriever-text@1",), 12, ("camera yard never seen",))
    match = Match(1, "abc", "gate", 1_000_000_000, 2_000_000_000, 0.93, {"text": 0.4}, ("red upper body: yes, 0.91",))
    shown = ranking_table(Ranking("q", (match,), coverage, 0.2, is_partial=True), width=200)
    assert "0.93  probably  gate" in shown
    assert "red upper body: yes, 0.91" in shown
    assert "12 tracklets" in shown
    assert "PARTIAL" in shown
    assert "note: camera yard never seen" in shown


def test_an_empty_ranking_says_so() -> None:
    assert "nobody found" in ranking_table(Ranking("q", (), Coverage(), 0.1), width=100)


def test_the_kind_of_a_probe_stands_for_a_picture() -> None:
    assert title_of([Probe("tracklet", tracklet_id="x")]) == "tracklet"
