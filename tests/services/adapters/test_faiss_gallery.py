"""The embedded index under ill fate: killed writers, lost files, full disks, and the bytes that a deletion must not leave."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import NotReadyError, ReadOnlyStorageError, StorageFullError
from pipeline.types import Embedding, Filter, Tracklet
from services.adapters import faiss_coarse, faiss_gallery
from services.adapters.faiss_gallery import FaissGallery

SMALL = {"segment_size": 40, "coarse_from": 20, "coarse_kinds": ("rabitq",), "candidates": 1000}

WRITER = """
import sys
import numpy as np
from pathlib import Path
from pipeline.types import Embedding, Tracklet
from services.adapters.faiss_gallery import FaissGallery

def tracklet(n, revision):
    vector = np.random.default_rng([n, revision]).standard_normal(32).astype(np.float32)
    return Tracklet(f"t{n}", revision, "c", n, n + 1, [], [], [], (Embedding("body", "b@1", vector),))

gallery = FaissGallery(Path(sys.argv[1]), segment_size=40, coarse_from=20, coarse_kinds=("rabitq",))
first, last = int(sys.argv[2]), int(sys.argv[3])
for n in range(first, last, 5):
    batch = [tracklet(m, 1) for m in range(n, n + 5)] + ([tracklet(n - 20, 2)] if n >= 20 else [])
    gallery.upsert(batch)
    print(n, flush=True)
print("done", flush=True)
sys.stdin.read()
"""


def tracklet(number: int, revision: int = 1) -> Tracklet:
    vector = np.random.default_rng([number, revision]).standard_normal(32).astype(np.float32)
    embedding = (Embedding("body", "b@1", vector),)
    return Tracklet(f"person-number-{number:06d}", revision, f"c{number % 3}", number, number + 1, [], [], [], embedding)


def probe(number: int, revision: int = 1) -> Embedding:
    return tracklet(number, revision).embeddings[0]


def start_writer(folder: Path, first: int = 0, last: int = 100_000) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(last)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    acknowledged = -5
    dice = random.Random(7)
    for _ in range(4):
        writer = start_writer(tmp_path, acknowledged + 5)
        assert writer.stdout is not None
        end = time.monotonic() + 20
        lines = [int(writer.stdout.readline())]
        until = time.monotonic() + dice.uniform(0.05, 0.4)
        while time.monotonic() < min(until, end):
            lines.append(int(writer.stdout.readline()))
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.communicate()[0].split("\n")[:-1]
        acknowledged = max([*lines, *(int(line) for line in rest)])
        with FaissGallery(tmp_path, **SMALL) as gallery:
            names = [t.tracklet_id for t in gallery.scan(Filter())]
            assert len(names) == len(set(names))
            assert {f"t{n}" for n in range(acknowledged + 5)} <= set(names)
            found = [hit.tracklet_id for hit in gallery.search(probe(3), Filter(), len(names) + 10)]
            assert sorted(found) == sorted(names)
            assert len(gallery.tracklets(["t0"])) == 1


def test_a_reader_sees_new_tracklets_within_a_second_without_reopening(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="index something first"):
        FaissGallery(tmp_path, read_only=True)
    writer = start_writer(tmp_path, 0, 200)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        with FaissGallery(tmp_path, read_only=True) as first, FaissGallery(tmp_path, read_only=True) as second:
            for line in writer.stdout:
                if line == "done\n":
                    break
                number = int(line)
                for reader in (first, second):
                    # The writer may be at its second revision by now.
                    best = [reader.search(probe(number, revision), Filter(), 1)[0] for revision in (1, 2)]
                    assert f"t{number}" in {hit.tracklet_id for hit in best if hit.similarity > 0.99}
            assert first.statistics().segments >= 4
            with pytest.raises(NotReadyError, match=str(writer.pid)):
                FaissGallery(tmp_path)
            with pytest.raises(ReadOnlyStorageError):
                first.upsert([tracklet(1)])
    finally:
        stop(writer)
    with FaissGallery(tmp_path) as gallery:
        assert gallery.statistics().tracklets == 200


@pytest.mark.parametrize("fate", ["missing", "cut short", "one bit", "empty"])
def test_a_damaged_segment_is_rebuilt_from_the_database(tmp_path: Path, fate: str) -> None:
    with FaissGallery(tmp_path, **SMALL) as gallery:
        for start in range(0, 100, 10):
            gallery.upsert([tracklet(n) for n in range(start, start + 10)])
        before = gallery.search(probe(5), Filter(), 100)
    assert {path.suffixes[0] for path in tmp_path.glob("segment-*")} == {".exact", ".rabitq"}
    for path in tmp_path.glob("segment-*"):
        content = bytearray(path.read_bytes())
        if fate == "one bit":
            content[len(content) // 2] ^= 4
        path.unlink() if fate == "missing" else path.write_bytes({"cut short": content[:99], "empty": b""}.get(fate, content))
    with FaissGallery(tmp_path, read_only=True) as reader:
        found = reader.search(probe(5), Filter(), 100)
        assert [hit.tracklet_id for hit in found] == [hit.tracklet_id for hit in before]
        assert [hit.similarity for hit in found] == pytest.approx([hit.similarity for hit in before], abs=1e-5)
    with FaissGallery(tmp_path, **SMALL) as gallery:
        gallery.search(probe(5), Filter(), 100)
        assert [hit.tracklet_id for hit in gallery.search(probe(5), Filter(), 100)] == [hit.tracklet_id for hit in before]
        assert not gallery._damaged


def test_a_deletion_leaves_neither_name_nor_vector_in_any_file(tmp_path: Path) -> None:
    gallery = FaissGallery(tmp_path, **SMALL)
    for start in range(0, 100, 10):
        gallery.upsert([tracklet(n) for n in range(start, start + 10)])
    gallery.upsert([tracklet(13, 2), tracklet(95, 2)])
    traces = {b"person-number-000013", b"person-number-000095"}
    traces |= {probe(n, r).vector.astype("<f2").tobytes() for n in (13, 95) for r in (1, 2)}

    def left() -> list[str]:
        return [path.name for path in tmp_path.rglob("*") if path.is_file() for trace in traces if trace in path.read_bytes()]

    assert left()
    gallery.delete(["person-number-000013", "person-number-000095"])
    assert left() == []
    gallery.close()
    assert left() == []


def test_a_deletion_cut_off_by_a_kill_is_finished_by_the_next_writer(tmp_path: Path) -> None:
    class KilledWriter(FaissGallery):
        def _finish_deletions(self) -> None:
            if self._store.superseded_of([""]):
                raise KeyboardInterrupt

    gallery = KilledWriter(tmp_path, **SMALL)
    gallery.upsert([tracklet(n) for n in range(50)])
    with pytest.raises(KeyboardInterrupt):
        gallery.delete(["person-number-000013"])
    gallery.close()
    trace = probe(13).vector.astype("<f2").tobytes()
    assert any(trace in path.read_bytes() for path in tmp_path.glob("segment-*"))
    FaissGallery(tmp_path, **SMALL).close()
    assert not any(trace in path.read_bytes() for path in tmp_path.rglob("*"))


def test_a_full_disk_acknowledges_nothing_and_the_index_goes_on_afterwards(tmp_path: Path) -> None:
    with FaissGallery(tmp_path) as gallery:
        gallery.upsert([tracklet(0)])
        limit = gallery._store.connection.execute("PRAGMA page_count").fetchone()[0] + 1
        gallery._store.connection.execute(f"PRAGMA max_page_count = {limit}")  # the same SQLITE_FULL as of a full disk
        with pytest.raises(StorageFullError, match="no space left"):
            gallery.upsert([tracklet(n) for n in range(1, 2000)])
        assert gallery.statistics().tracklets == 1
        gallery._store.connection.execute("PRAGMA max_page_count = 1000000")
        assert gallery.upsert([tracklet(n) for n in range(1, 2000)]) == 1999


def test_a_full_disk_while_sealing_leaves_the_tracklets_searchable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise StorageFullError("full")

    with FaissGallery(tmp_path, **SMALL) as gallery:
        with monkeypatch.context() as patched:
            patched.setattr("services.adapters.faiss_gallery._write_durably", full_disk)
            assert gallery.upsert([tracklet(n) for n in range(100)]) == 100
            assert gallery.statistics().segments == 0
            assert len(gallery.search(probe(1), Filter(), 200)) == 100
        gallery.upsert([tracklet(100)])
        assert gallery.statistics().segments == 1
        assert len(gallery.search(probe(1), Filter(), 200)) == 101


def test_superseded_revisions_are_swept_out_of_sealed_segments(tmp_path: Path) -> None:
    with FaissGallery(tmp_path, **SMALL) as gallery:
        for revision in range(1, 6):
            gallery.upsert([tracklet(n, revision) for n in range(60)])
            assert len(gallery.search(probe(3, revision), Filter(), 100)) == 60
        assert gallery.search(probe(3, 5), Filter(), 1)[0].similarity > 0.99
        assert gallery.statistics().vectors == {"b@1": 60}
        assert len(gallery._segments) <= 3


@pytest.mark.parametrize("kind", faiss_coarse.KINDS)
def test_large_segments_keep_recall_through_every_kind_of_coarse_index(tmp_path: Path, kind: str) -> None:
    random_numbers = np.random.default_rng(3)
    people = random_numbers.standard_normal((40, 256)).astype(np.float32)
    vectors = people[random_numbers.integers(0, 40, 4000)] + 0.5 * random_numbers.standard_normal((4000, 256)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with FaissGallery(tmp_path, segment_size=2000, coarse_from=1000, coarse_kinds=(kind,), candidates=600) as gallery:
        for start in range(0, 4000, 2000):
            batch = [(n, (Embedding("body", "b@1", vectors[n]),)) for n in range(start, start + 2000)]
            gallery.upsert([Tracklet(f"{n}", 1, "c", n, n, [], [], [], embedding) for n, embedding in batch])
        shares = []
        for vector in vectors[::400]:
            found = {int(hit.tracklet_id) for hit in gallery.search(Embedding("body", "b@1", vector), Filter(), 50)}
            shares.append(len(found & set(np.argsort(-vectors @ vector)[:50].tolist())) / 50)
        assert {s.coarse_kind for segment in gallery._segments.values() for s in segment.spaces.values() if s} == {kind}
    assert np.mean(shares) >= 0.98


def test_a_segment_gets_the_kind_whose_measured_recall_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recall and speed are measured: here the bits lose people, the lists are slow, the graph is good until it is not."""
    measured = {
        kind: faiss_coarse.Quality(*said) for kind, said in {"rabitq": (0.9, 9.0), "ivf-pq": (1.0, 1.1), "hnsw": (0.995, 5.0)}.items()
    }
    monkeypatch.setattr(faiss_coarse, "measure", lambda index, kind, *_: measured[kind])
    vectors = np.random.default_rng(1).standard_normal((300, 64)).astype(np.float32)

    def kinds(gallery: FaissGallery, first: int) -> list[tuple[str, float]]:
        batch = [(n, (Embedding("body", "b@1", vectors[n]),)) for n in range(first, first + 100)]
        gallery.upsert([Tracklet(f"{n}", 1, "c", n, n, [], [], [], embedding) for n, embedding in batch])
        return [(record.kind, record.recall) for record in gallery._store.files()][2 * (first // 100) :]

    with FaissGallery(tmp_path, segment_size=100, coarse_from=50) as gallery:
        assert kinds(gallery, 0) == [("exact", 1.0), ("hnsw", 0.995)]
        assert kinds(gallery, 100) == [("exact", 1.0), ("hnsw", 0.995)]
        measured["hnsw"] = faiss_coarse.Quality(0.5, 5.0)
        assert kinds(gallery, 200) == [("exact", 1.0)], "nothing is good enough: everything is looked at"
        assert len(gallery.search(Embedding("body", "b@1", vectors[7]), Filter(), 300)) == 300


def test_measuring_a_coarse_index_tells_recall_against_the_exact_one() -> None:
    vectors = np.random.default_rng(1).standard_normal((2000, 64)).astype(np.float16)
    index = faiss_coarse.build("rabitq", vectors)
    exact = faiss_gallery._exact_of(vectors)
    assert faiss_coarse.measure(index, "rabitq", exact, vectors, 2000).recall == 1.0
    assert faiss_coarse.measure(index, "rabitq", exact, vectors, 11).recall < 0.9
    assert not faiss_coarse.Quality(0.99, 1.0).is_enough
