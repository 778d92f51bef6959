"""An archive worked off by two processes, one of them killed on the way: the same tracklets as in peace."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.types import Filter, Tracklet
from services.adapters.faiss_gallery import FaissGallery
from services.adapters.sqlite_broker import SqliteBroker
from services.topics import TRACKLETS

pytestmark = [pytest.mark.usefixtures("base_weights"), pytest.mark.accuracy]


def archive_workers(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children")
    pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    return [pid for pid in pids if b"worker\0archive" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def held(data: Path) -> dict[str, Tracklet]:
    with closing(FaissGallery(data / "index", read_only=True)) as gallery:
        return {each.tracklet_id: each for each in gallery.tracklets([row.tracklet_id for row in gallery.scan(Filter())])}


@pytest.fixture(scope="module")
def footage(shared_data: Path, tmp_path_factory: pytest.TempPathFactory, clip_reader: Callable[..., list[Any]], clip_writer: Any) -> Path:
    """Three short clips of people."""
    folder = tmp_path_factory.mktemp("footage")
    for name, every in (("crossing", 3), ("pets_view001_a", 1), ("one_by_one", 3)):
        clip_writer(folder / f"{name}.mp4", clip_reader(shared_data / "video" / f"{name}.mp4", 3.0, every)[:24])
    return folder


def test_a_killed_worker_changes_nothing(line: Any, footage: Path, tmp_path: Path, wait_until: Callable[..., None]) -> None:
    calm = line.json("archive", footage, "--workers", "2")
    assert (calm["jobs"], calm["failed"]) == (3, 0)
    in_peace = held(line.data)
    assert len(in_peace) == calm["tracklets"] >= 3

    line.data = tmp_path / "killed"
    process = line.start("archive", footage, "--workers", "2", "--json")
    wait_until("somebody is in the index", lambda: (line.data / "index").exists() and tracklets_in(line.data), 90)
    workers = archive_workers(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    killed_at = time.monotonic()
    _, complained = process.communicate(timeout=120)
    assert process.returncode == 0, complained
    assert "started again" in complained
    assert time.monotonic() - killed_at < 90
    after = held(line.data)
    assert {tracklet_id: each.revision for tracklet_id, each in after.items()} == {t: each.revision for t, each in in_peace.items()}
    for tracklet_id, tracklet in in_peace.items():
        other = after[tracklet_id]
        assert (tracklet.at_ns == other.at_ns).all()
        assert (tracklet.xyxy == other.xyxy).all()
        assert all((one.vector == two.vector).all() for one, two in zip(tracklet.embeddings, other.embeddings, strict=True))

    assert line.json("archive", footage, "--workers", "1")["seconds"] < calm["seconds"]  # all is done: nothing to do
    erased = next(tracklet_id for tracklet_id, each in in_peace.items() if each.camera_id == "crossing")
    assert "1 tracklets removed" in line.run("erase", erased).stdout
    told = messages_in(line.data)
    assert line.json("archive", footage / "crossing.mp4", "--redo", "--workers", "1")["failed"] == 0
    assert messages_in(line.data) > told, "it was worked off again"
    assert set(held(line.data)) == set(in_peace) - {erased}, "and brings nobody back who was erased"


def messages_in(data: Path) -> int:
    """Messages about tracklets so far."""
    with closing(SqliteBroker(data / "log.sqlite")) as broker:
        return sum(broker.end_offsets(TRACKLETS).values())


def tracklets_in(data: Path) -> int:
    try:
        return len(held(data))
    except Exception:  # not there yet
        return 0
