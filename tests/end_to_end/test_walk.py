"""From footage to an answer and out again, as a user walks it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("base_weights")


def everything_on_disk(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pieces_of(log: Path, tracklet_id: str) -> list[bytes]:
    """Short pieces of every message that carries a tracklet."""
    with closing(sqlite3.connect(f"file:{log}?mode=ro", uri=True)) as connection:
        values = [value for (value,) in connection.execute("SELECT value FROM messages") if value and tracklet_id.encode() in value]
    return [value[at : at + 60] for value in values if b"xyxy" in value for at in range(600, len(value) - 60, 600)]


@pytest.mark.accuracy
def test_a_person_is_indexed_found_shown_and_really_removed(line: Any, people: Path, tmp_path: Path) -> None:
    told = line.json("ingest", people)
    assert told["frames"] == 20
    assert told["tracklets"] >= 3
    assert told["failures"] == {}

    status = line.json("status")
    assert status["tracklets"] == told["tracklets"]
    assert [(c["camera"], c["seen"], c["gap_s"]) for c in status["coverage"]] == [("people", 20, 0.0)]

    sheet = tmp_path / "sheet.png"
    answer = line.json("search", "man in a dark jacket", "--sheet", sheet)
    scores = [match["score"] for match in answer["matches"]]
    assert len(scores) == told["tracklets"]
    assert [match["rank"] for match in answer["matches"]] == list(range(1, len(scores) + 1))
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert all(match["why"] for match in answer["matches"])
    assert answer["coverage"]["tracklets"] == told["tracklets"]
    assert [account["camera_id"] for account in answer["coverage"]["cameras"]] == ["people"]
    assert not answer["is_partial"]
    picture = cv2.imread(str(sheet))
    assert picture is not None
    assert picture.shape[1] > 300

    first = answer["matches"][0]["tracklet_id"]
    alike = line.json("search", "--tracklet", first)["matches"]
    assert alike
    assert first not in [match["tracklet_id"] for match in alike[1:]]

    assert [name for name in everything_on_disk(line.data / "crops") if first in name]
    travelled = pieces_of(line.data / "log.sqlite", first)
    assert travelled
    assert "1 tracklets removed" in line.run("erase", first).stdout
    log = b"".join(content for name, content in everything_on_disk(line.data).items() if name.startswith("log"))
    assert not [piece for piece in travelled if piece in log]
    assert not [name for name in everything_on_disk(line.data / "crops") if first in name]
    assert first not in [match["tracklet_id"] for match in line.json("search", "man in a dark jacket")["matches"]]
    index = {name: content for name, content in everything_on_disk(line.data).items() if name.startswith(("index", "crops"))}
    assert not [name for name, content in index.items() if first.encode() in content]

    assert line.json("dead-letters", "list") == []
    assert "removed" in line.run("expire", "--before", "2030-01-01").stdout
    assert not list((line.data / "crops").rglob("*.jpg"))


@pytest.mark.accuracy
def test_footage_read_again_changes_nothing_and_brings_nobody_back_who_was_erased(line: Any, people: Path, people_data: Path) -> None:
    shutil.copytree(people_data, line.data)
    before, digest = line.json("status"), line.json("index", "digest")
    told = line.json("ingest", people)
    assert told["tracklets"] == before["tracklets"]
    assert line.json("status") | {"bytes": 0} == before | {"bytes": 0}
    assert line.json("index", "digest") == digest

    erased = line.json("search", "man in a dark jacket")["matches"][0]["tracklet_id"]
    assert "1 tracklets removed" in line.run("erase", erased).stdout
    without, digest = line.json("status"), line.json("index", "digest")
    assert without["tracklets"] == before["tracklets"] - 1
    assert line.json("ingest", people)["tracklets"] == told["tracklets"]
    assert line.json("status") | {"bytes": 0} == without | {"bytes": 0}
    assert line.json("index", "digest") == digest
    assert not [name for name in everything_on_disk(line.data / "crops") if erased in name]
    assert erased not in [match["tracklet_id"] for match in line.json("search", "man in a dark jacket")["matches"]]
    assert line.json("dead-letters", "list") == []


def test_footage_without_people_is_an_answer_too(line: Any, grey_data: Path) -> None:
    shutil.copytree(grey_data, line.data)
    answer = line.json("search", "red jacket")
    assert answer["matches"] == []
    assert [account["seen"] for account in answer["coverage"]["cameras"]] == [16]
    assert "nobody found" in line.run("search", "red jacket").stdout


def test_every_question_leaves_its_purpose_behind(line: Any, grey_data: Path) -> None:
    shutil.copytree(grey_data, line.data)
    line.json("search", "red jacket", "--purpose", "lost child, incident 12")
    with closing(sqlite3.connect(f"file:{line.data / 'log.sqlite'}?mode=ro", uri=True)) as log:
        tables = [row[0] for row in log.execute("select name from sqlite_master where type = 'table'")]
        kept = [str(row) for table in tables for row in log.execute(f'select * from "{table}"')]
    assert any("lost child, incident 12" in row for row in kept)


def test_what_cannot_be_asked_is_refused_in_one_line(line: Any, grey_data: Path, tmp_path: Path) -> None:
    shutil.copytree(grey_data, line.data)
    assert "must say what to look for" in line.refused(3, "search")
    assert "must exist" in line.refused(3, "search", "--portrait", tmp_path / "nobody.jpg")
    cv2.imwrite(str(tmp_path / "wall.png"), np.full((200, 200, 3), 90, np.uint8))
    assert "must show a face" in line.refused(3, "search", "--portrait", tmp_path / "wall.png")
    assert "unseen" in line.refused(3, "search", "--tracklet", "unseen")
    assert ".jpg or .png" in line.refused(3, "search", "red jacket", "--sheet", tmp_path / "sheet.pdf")
    assert json.loads(line.run("status", "--json").stdout)["tracklets"] == 0
