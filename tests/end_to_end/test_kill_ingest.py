"""kill -9 while ingesting: what was acknowledged stays, nothing comes twice, the index answers.

SIGHTLINE_KILLS=50 pytest tests/end_to_end/test_kill_ingest.py runs the long form.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.types import Filter, Tracklet
from services import wire
from services.adapters.faiss_gallery import FaissGallery
from services.adapters.sqlite_broker import SqliteBroker
from services.topics import TRACKLETS

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("SIGHTLINE_KILLS", "3"))


def start(data: Path, clip: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "services", "--data", str(data), "--log-level", "error", "ingest", str(clip), "--json"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)


def acknowledged(data: Path) -> set[tuple[str, int]]:
    """Every (tracklet, revision) that is durable in the log."""
    if not (data / "log.sqlite").exists():
        return set()
    found = set()
    with closing(SqliteBroker(data / "log.sqlite")) as broker:
        if TRACKLETS not in broker.topics():
            return set()
        ends = {partition: end for partition, end in broker.end_offsets(TRACKLETS).items() if end}
        with closing(broker.consumer([TRACKLETS], group=uuid.uuid4().hex)) as consumer:
            while any(p not in consumer.assignment() or consumer.position(p) < end for p, end in ends.items()):
                for message in consumer.poll(0.5):
                    tracklet = wire.decode(Tracklet, message.value)
                    found.add((tracklet.tracklet_id, tracklet.revision))
    return found


def indexed(data: Path) -> dict[str, int]:
    with closing(FaissGallery(data / "index", read_only=True)) as gallery:
        rows = list(gallery.scan(Filter()))
    assert len({row.tracklet_id for row in rows}) == len(rows), "a tracklet is there twice"
    return {row.tracklet_id: row.revision for row in rows}


@pytest.mark.accuracy
def test_after_kills_every_acknowledged_tracklet_is_there_once_and_the_index_answers(tmp_path: Path, shared_data: Path) -> None:
    clip = shared_data / "video" / "crossing.mp4"
    calm = tmp_path / "calm"
    started = time.monotonic()
    assert start(calm, clip).wait(300) == 0
    whole_s = time.monotonic() - started
    rng, data, known, landed = random.Random(7), tmp_path / "killed", set[tuple[str, int]](), 0
    for _ in range(3 * KILLS):  # a run that ended before its kill does not count
        if landed == KILLS:
            break
        process = start(data, clip)
        try:
            process.wait(rng.uniform(0.1, 0.9) * whole_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            landed += 1
        after = acknowledged(data)
        assert known <= after, "an acknowledged tracklet is gone from the log"
        known = after
    assert landed == KILLS, f"only {landed} kills landed while it ran"
    assert start(data, clip).wait(300) == 0
    final = indexed(data)
    assert {tracklet_id for tracklet_id, _ in known} <= set(final)
    assert final == indexed(calm)
    with closing(FaissGallery(data / "index", read_only=True)) as gallery:
        some = gallery.tracklets(list(final)[:1])[0]
        body = some.embedding("body")
        assert body is not None
        assert gallery.search(body, Filter(), 1)[0].tracklet_id == some.tracklet_id
