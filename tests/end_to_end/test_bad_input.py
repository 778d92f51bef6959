"""Whatever is fed to the line, it says so in one line, ends with the right code, and what it had is still there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.types import Embedding, Filter
from services.adapters.faiss_gallery import FaissGallery

pytestmark = pytest.mark.usefixtures("base_weights")

SETTINGS, BAD_INPUT, NOT_READY = 2, 3, 4


@pytest.fixture
def held(line: Any, grey_data: Path) -> Any:
    """A line that has seen something already: it must still be there after whatever comes."""
    shutil.copytree(grey_data, line.data)
    yield line
    with closing(FaissGallery(line.data / "index", read_only=True)) as gallery:
        assert "grey" in [account.camera_id for account in gallery.coverage(Filter())]


# ------------------------------------------------------------------------------------------------- footage


def test_a_missing_file_is_named(held: Any, tmp_path: Path) -> None:
    assert "nothing.mp4 must exist" in held.refused(BAD_INPUT, "ingest", tmp_path / "nothing.mp4")


def test_a_text_file_named_mp4_is_refused(held: Any, tmp_path: Path) -> None:
    (tmp_path / "letter.mp4").write_text("Dear camera,\n" * 100)
    assert "letter.mp4 must be a video" in held.refused(BAD_INPUT, "ingest", tmp_path / "letter.mp4")


def test_a_clip_of_no_bytes_is_refused(held: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    assert "empty file" in held.refused(BAD_INPUT, "ingest", tmp_path / "empty.mp4")


def test_a_truncated_clip_gives_what_decodes_and_the_account_says_what_is_missing(
    line: Any, people: Path, tmp_path: Path, clip_reader: Callable[..., list[Any]], clip_writer: Callable[..., Path]
) -> None:
    whole = clip_writer(tmp_path / "whole.mp4", clip_reader(people, 4.0, every=1), movflags="faststart")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.7)])
    told = line.json("ingest", cut)
    assert 8 <= told["frames"] < 20
    assert told["tracklets"] >= 1
    (account,) = line.json("status")["coverage"]
    assert 0.2 < account["gap_s"] < 1.6
    assert account["gaps"][-1]["reason"]
    assert len(line.json("search", "man in a jacket")["matches"]) == told["tracklets"]


def test_a_clip_cut_before_its_table_is_refused(held: Any, grey: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(grey.read_bytes()[: grey.stat().st_size // 2])
    assert "cut.mp4 must be a video" in held.refused(BAD_INPUT, "ingest", cut)


def test_a_variable_frame_rate_keeps_its_times(line: Any, tmp_path: Path, clip_writer: Callable[..., Path]) -> None:
    times_s = [0.0, 0.04, 0.5, 0.54, 0.58, 1.3, 1.9, 2.0]
    clip = clip_writer(tmp_path / "uneven.mp4", [np.full((96, 128, 3), 20 * n, np.uint8) for n in range(8)], times_s=times_s)
    assert line.json("ingest", clip)["stream_s"] == pytest.approx(2.0, abs=0.01)
    (account,) = line.json("status")["coverage"]
    assert (account["seen"], account["gap_s"]) == (8, 0.0)


def test_pictures_of_one_pixel_go_through(line: Any, tmp_path: Path, clip_writer: Callable[..., Path]) -> None:
    clip = clip_writer(tmp_path / "dot.mp4", [np.full((1, 1, 3), 20 * n, np.uint8) for n in range(8)])
    told = line.json("ingest", clip)
    assert (told["frames"], told["tracklets"]) == (8, 0)


def test_a_folder_with_one_bad_file_is_archived_but_for_that_one(line: Any, grey: Path, tmp_path: Path) -> None:
    (tmp_path / "footage").mkdir()
    shutil.copy2(grey, tmp_path / "footage" / "grey.mp4")
    (tmp_path / "footage" / "letter.mp4").write_text("Dear camera")
    done = line.run("archive", tmp_path / "footage", "--workers", "1")
    assert done.returncode == BAD_INPUT
    assert "2 jobs, 1 of them failed" in done.stdout
    assert "letter.mp4" in done.stderr
    assert "Traceback" not in done.stderr
    assert {account["camera"]: account["seen"] for account in line.json("status")["coverage"]} == {"grey": 16, "letter": 0}
    assert "letter.mp4 must be a video" in line.json("dead-letters", "list")[0]["error"]


# ------------------------------------------------------------------------------------------------- cameras


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_camera_that_refuses_is_given_up_after_the_time_set(held: Any) -> None:
    uri = f"rtsp://anna:geheim@127.0.0.1:{free_port()}/gate"
    done = held.run("ingest", uri, SIGHTLINE_CAPTURE__GIVE_UP_AFTER_S="1")
    assert done.returncode == NOT_READY
    assert "connection refused" in done.stdout
    assert "Traceback" not in done.stderr
    assert "geheim" not in done.stdout + done.stderr
    account = next(each for each in held.json("status")["coverage"] if each["camera"] != "grey")
    assert account["seen"] == 0
    assert account["gap_s"] >= 1.0
    assert "geheim" not in str(account)


@contextmanager
def rtsp_server(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    if importlib.util.find_spec("aio_rtsp_toolkit") is None:
        pytest.skip("the RTSP server aio-rtsp-toolkit is not installed")
    port, program = free_port(), Path(sys.executable).with_name("rtsp-server")
    command = [str(program), "-d", str(folder), "-H", "127.0.0.1", "-p", str(port), "-cp", str(free_port())]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ends_at = time.monotonic() + 15
        while time.monotonic() < ends_at:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield process, port
    finally:
        process.kill()
        process.wait()


@pytest.mark.accuracy
def test_a_camera_that_dies_is_given_up_and_what_it_saw_can_be_found(
    line: Any,
    shared_data: Path,
    tmp_path: Path,
    clip_reader: Callable[..., list[Any]],
    clip_writer: Callable[..., Path],
    wait_until: Callable[..., None],
) -> None:
    (tmp_path / "cameras").mkdir()
    clip_writer(tmp_path / "cameras" / "gate.mp4", clip_reader(shared_data / "video" / "crossing.mp4", 7.5))
    with rtsp_server(tmp_path / "cameras") as (server, port):
        # More than the two seconds that frames which came in a burst may be ahead of the clock: else nothing is left of the gap.
        process = line.start("ingest", f"rtsp://127.0.0.1:{port}/gate.mp4", SIGHTLINE_CAPTURE__GIVE_UP_AFTER_S="4")
        wait_until(
            "somebody is in the index", lambda: '"tracklets": 0' not in (line.run("status", "--json").stdout or '"tracklets": 0'), 40
        )
        server.send_signal(signal.SIGKILL)
        said, complained = process.communicate(timeout=40)
    assert process.returncode == NOT_READY, complained
    assert "ended early" in said
    assert "Traceback" not in complained
    matches = line.json("search", "man in a jacket")["matches"]
    assert matches
    (account,) = line.json("status")["coverage"]
    assert account["seen"] > 0
    assert account["gap_s"] > 0
    assert account["gaps"][-1]["reason"]


# ------------------------------------------------------------------------------------------------- storage


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own; skips where this user may not mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"a file system of its own cannot be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.accuracy
def test_a_full_disk_stops_the_run_and_the_next_one_completes_it(line: Any, people: Path, people_told: int, tmp_path: Path) -> None:
    expected = people_told
    with small_disk(tmp_path / "disk", "700k") as disk:
        line.data = disk / "data"
        assert "no space" in line.refused(NOT_READY, "ingest", people)
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert line.json("ingest", people)["tracklets"] == expected
        assert len(line.json("search", "man in a jacket")["matches"]) == expected


def test_a_read_only_folder_is_named_by_every_writer_and_can_still_be_looked_at(
    line: Any, grey: Path, grey_data: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "50m") as disk:
        line.data = disk / "data"
        shutil.copytree(grey_data, line.data)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for command in (("ingest", grey), ("erase", "somebody"), ("search", "red jacket")):  # no record of the purpose, no answer
            assert "must be writable" in line.refused(SETTINGS, *command)
        assert line.json("status")["coverage"][0]["seen"] == 16  # looking needs no writing
        line.data = disk / "elsewhere"
        assert "read-only" in line.refused(SETTINGS, "ingest", grey)


@pytest.mark.parametrize("database", ["log.sqlite", "index/index.sqlite"])
def test_a_database_of_a_newer_sightline_is_left_alone(held: Any, grey: Path, database: str) -> None:
    line = held
    path = line.data / database
    with closing(sqlite3.connect(path)) as newer:
        version = newer.execute("PRAGMA user_version").fetchone()[0]
        newer.execute("PRAGMA user_version = 99")
    assert "99" in line.refused(SETTINGS, "ingest", grey)
    assert "newer Sightline" in line.refused(SETTINGS, "search", "red jacket")
    with closing(sqlite3.connect(path)) as newer:
        assert newer.execute("PRAGMA user_version").fetchone()[0] == 99
        newer.execute(f"PRAGMA user_version = {version}")


@pytest.mark.accuracy
def test_an_index_of_another_embedding_space_is_not_answered_from(line: Any, people_data: Path) -> None:
    shutil.copytree(people_data, line.data)
    with closing(FaissGallery(line.data / "index")) as gallery:
        rows = gallery.tracklets([row.tracklet_id for row in gallery.scan(Filter())])
        moved = [replace(row, revision=row.revision + 1, embeddings=tuple(map(of_another_model, row.embeddings))) for row in rows]
        gallery.upsert(moved)
    said = line.refused(BAD_INPUT, "search", "man in a jacket")
    assert "another-model@9" in said
    assert "embedding space must be" in said


def of_another_model(embedding: Embedding) -> Embedding:
    return replace(embedding, space="another-model@9") if embedding.modality == "text" else embedding


# ------------------------------------------------------------------------------------------------ settings


def test_a_settings_typo_names_key_and_what_is_allowed(held: Any, tmp_path: Path, grey: Path) -> None:
    (tmp_path / "sightline.toml").write_text("[capture]\nsampling_hertz = 5\n")
    said = held.refused(SETTINGS, "ingest", grey)
    assert "unknown setting capture.sampling_hertz" in said
    assert "sampling_hz" in said
    (tmp_path / "sightline.toml").unlink()
    assert "detect.batch_size = 'many'" in held.refused(SETTINGS, "ingest", grey, SIGHTLINE_DETECT__BATCH_SIZE="many")


def test_a_data_folder_that_is_a_file_is_refused(line: Any, grey: Path) -> None:
    line.data.write_text("not a folder")
    assert "must be a folder" in line.refused(SETTINGS, "ingest", grey)
    assert os.path.getsize(line.data) == 12
