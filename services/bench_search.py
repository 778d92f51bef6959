"""How well and how fast the identity index searches a large synthetic gallery, beside bare FAISS in the same run.

The vectors imitate those of a re-identification network: people are points of a space whose spread falls off as a power law (a few
dozen directions carry most of it), the number of tracklets a person has is heavy-tailed (Pareto), and one tracklet is the person plus
its camera's shift (a domain gap shared by all of that camera), plus its own variation in the same directions (pose, light), plus a
little white noise. Probes are unseen views of people of the gallery. So a probe has few true matches and many near ones, as in real life.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError
from pipeline.types import BODY, Embedding, Filter, Tracklet
from services.adapters.faiss_gallery import FaissGallery, bare_index

SPACE = "synthetic@1"
CAMERAS = 1000
PEOPLE_SHARE = 20  # tracklets per person, on average
SECOND_NS = 1_000_000_000
CHUNK = 20_000
TOP_K = 100

Float32 = NDArray[np.float32]
Search = Callable[[Float32], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class _World:
    """People and cameras that views are drawn of."""

    people: Float32  # (P, D)
    cameras: Float32  # (CAMERAS, D)
    spread: Float32  # (D,)
    rotation: Float32  # (D, D)

    def views(self, person: NDArray[Any], camera: NDArray[Any], random: np.random.Generator) -> Float32:
        """Unit vectors (N, D) of these people seen by these cameras."""
        shape = (len(person), self.people.shape[1])
        own = random.standard_normal(shape, dtype=np.float32) * self.spread * np.float32(0.5)
        noise = random.standard_normal(shape, dtype=np.float32) * np.float32(0.35 / np.sqrt(shape[1]))
        raw = (self.people[person] + self.cameras[camera] + own + noise) @ self.rotation  # (N, D)
        unit: Float32 = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        return unit


@dataclass(frozen=True, slots=True)
class _Gallery:
    """What every row of the synthetic gallery is: vectors float16 (N, D), person and camera (N,). Row n starts at second n."""

    world: _World
    vectors: NDArray[np.float16]
    person: NDArray[np.int64]
    camera: NDArray[np.int64]


def _synthetic(count: int, dimension: int, random: np.random.Generator) -> _Gallery:
    spread = np.arange(1, dimension + 1, dtype=np.float32) ** np.float32(-0.5)
    spread /= np.linalg.norm(spread)
    rotation = np.linalg.qr(random.standard_normal((dimension, dimension)))[0].astype(np.float32)
    people = max(2, count // PEOPLE_SHARE)
    world = _World(
        random.standard_normal((people, dimension), dtype=np.float32) * spread,
        random.standard_normal((CAMERAS, dimension), dtype=np.float32) * spread * np.float32(0.35),
        spread,
        rotation,
    )
    weights = random.pareto(1.5, people) + 0.3
    person = random.choice(people, count, p=weights / weights.sum())
    camera = random.integers(0, CAMERAS, count)
    vectors = np.empty((count, dimension), np.float16)
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        vectors[part] = world.views(person[part], camera[part], random)
    return _Gallery(world, vectors, person, camera)


def _tracklets(gallery: _Gallery) -> Iterator[list[Tracklet]]:
    """The gallery as batches of tracklets of one second each."""
    no_times, no_boxes, no_confidence = np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    for array in (no_times, no_boxes, no_confidence):
        array.flags.writeable = False
    for start in range(0, len(gallery.vectors), CHUNK):
        vectors = gallery.vectors[start : start + CHUNK].astype(np.float32)
        vectors.flags.writeable = False
        batch = []
        for offset, vector in enumerate(vectors):
            row = start + offset
            from_ns, camera = row * SECOND_NS, f"camera-{gallery.camera[row]:04d}"
            embeddings = (Embedding(BODY, SPACE, vector),)
            batch.append(Tracklet(f"{row}", 1, camera, from_ns, from_ns + SECOND_NS // 2, no_times, no_boxes, no_confidence, embeddings))
        yield batch


def _filters(count: int) -> dict[str, Filter]:
    """Filters by name; the share that passes is exact for time and near for cameras."""
    middle = count // 2

    def cameras(number: int) -> Filter:
        return Filter(cameras=tuple(f"camera-{n:04d}" for n in range(number)))

    def stretch(length: int) -> Filter:
        return Filter(from_ns=middle * SECOND_NS, to_ns=(middle + max(length, 1)) * SECOND_NS - SECOND_NS // 2)

    return {
        "camera 0.1 %": cameras(CAMERAS // 1000),
        "camera 10 %": cameras(CAMERAS // 10),
        "time 0.1 %": stretch(count // 1000),
        "time 10 %": stretch(count // 10),
        "all 100 %": Filter(),
    }


def _passing(window: Filter, gallery: _Gallery) -> NDArray[np.bool_]:
    started = np.arange(len(gallery.vectors), dtype=np.int64) * SECOND_NS
    passes: NDArray[np.bool_] = (started + SECOND_NS // 2 >= window.from_ns) & (started <= window.to_ns)
    if window.cameras:
        passes &= np.isin(gallery.camera, [int(name.rsplit("-", 1)[1]) for name in window.cameras])
    return passes


def _timed(search: Search, probes: Float32) -> tuple[list[NDArray[np.int64]], dict[str, float]]:
    """Rows found per probe, and latency in milliseconds; one probe warms up uncounted."""
    search(probes[0])
    found, taken_ms = [], []
    for probe in probes:
        started = time.perf_counter()
        found.append(search(probe))
        taken_ms.append((time.perf_counter() - started) * 1e3)
    return found, {"median_ms": round(float(np.median(taken_ms)), 3), "p95_ms": round(float(np.percentile(taken_ms, 95)), 3)}


def _recall(found: list[NDArray[np.int64]], wanted: list[NDArray[np.int64]]) -> float:
    shares = [len(np.intersect1d(f, w)) / len(w) for f, w in zip(found, wanted, strict=True) if len(w)]
    return round(float(np.mean(shares)), 5)


def _open_elsewhere(folder: Path, probe: Float32) -> dict[str, float]:
    """Time and memory of opening the index, to the first answer, in a fresh process."""
    command = [sys.executable, "-m", "services.bench_search", str(folder)]
    vector = json.dumps([float(x) for x in probe])
    answer = subprocess.run(command, input=vector, capture_output=True, text=True, check=True, timeout=600)
    measured: dict[str, float] = json.loads(answer.stdout)
    return measured


def _resident_mb() -> tuple[float, float]:
    """Memory of this process: anonymous, and file-backed (shared with the page cache), in MB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 0.0
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1024, int(fields["RssFile"].split()[0]) / 1024


def measure_opening(folder: Path, vector: Float32) -> dict[str, float]:
    """Opens the index in this process, searches once over everything, and gives seconds and megabytes."""
    before = _resident_mb()
    started = time.perf_counter()
    with FaissGallery(folder, read_only=True) as gallery:
        opened = time.perf_counter()
        gallery.search(Embedding(BODY, SPACE, vector), Filter(), TOP_K)
        answered = time.perf_counter()
        after = _resident_mb()
    return {
        "open_s": round(opened - started, 3),
        "open_and_first_answer_s": round(answered - started, 3),
        "anonymous_memory_mb": round(after[0] - before[0], 1),
        "mapped_file_memory_mb": round(after[1] - before[1], 1),
    }


def _measured(gallery: FaissGallery, synthetic: _Gallery, probes: Float32, top_k: int) -> dict[str, Any]:
    """Per filter: recall against exact, latency, and the ratio to bare FAISS. Bare indexes are built one after the other: memory."""
    windows = _filters(len(synthetic.vectors))
    masks = {name: _passing(window, synthetic) for name, window in windows.items()}
    results: dict[str, Any] = {name: {"passing": int(mask.sum())} for name, mask in masks.items()}
    found: dict[str, list[NDArray[np.int64]]] = {}
    for name, window in windows.items():

        def ours(probe: Float32, window: Filter = window) -> NDArray[np.int64]:
            hits = gallery.search(Embedding(BODY, SPACE, probe), window, top_k)
            return np.asarray([int(hit.tracklet_id) for hit in hits], np.int64)

        found[name], results[name]["sightline"] = _timed(ours, probes)
    for kind in ("flat", "float16", "coarse"):
        bare = bare_index(kind, synthetic.vectors)
        for name, mask in masks.items():
            if kind == "coarse" and not mask.all():
                continue  # that index takes no filter
            search = bare.searcher(mask, top_k)
            rows, results[name][f"bare_{kind}"] = _timed(search, probes)
            if kind == "flat":
                results[name]["recall"] = _recall(found[name], rows)
            else:
                results[name][f"bare_{kind}"]["recall"] = _recall(rows, results[name]["_exact"])
            if kind == "flat":
                results[name]["_exact"] = rows
        del bare
    for result in results.values():
        del result["_exact"]
        result["ratio_to_bare_flat"] = round(result["sightline"]["median_ms"] / result["bare_flat"]["median_ms"], 3)
        result["ratio_to_bare_float16"] = round(result["sightline"]["median_ms"] / result["bare_float16"]["median_ms"], 3)
    return results


def bench_search(
    count: int = 1_000_000,
    dimension: int = 512,
    folder: Path | None = None,
    seed: int = 1,
    *,
    probes: int = 50,
    top_k: int = TOP_K,
    threads: int = 1,
    segment_size: int = 131_072,
) -> dict[str, Any]:
    """Builds a synthetic gallery of ``count`` tracklets and measures search, opening and size; all in one run, on one FAISS thread.

    folder: where the index is built, removed afterwards; None: a temporary one. It must not exist yet (BadInputError).
    ``recall`` is recall@top_k against exact float search of the stored vectors; ``bare_flat`` is IndexFlatIP over the same rows with the
    same filter as its IDSelector, ``bare_float16`` the same in half precision, ``bare_coarse`` the RaBitQ scan alone.
    """
    if folder is not None and folder.exists():
        raise BadInputError(f"bench folder must not exist yet, got {folder}: it would be removed afterwards")
    place = Path(tempfile.mkdtemp(prefix="sightline-bench-")) if folder is None else folder
    random = np.random.default_rng(seed)
    try:
        synthetic = _synthetic(count, dimension, random)
        started = time.perf_counter()
        with FaissGallery(place, segment_size=segment_size, threads=threads) as gallery:
            for batch in _tracklets(synthetic):
                gallery.upsert(batch)
            built_s = time.perf_counter() - started
            people = synthetic.person[random.integers(0, count, probes)]
            unseen = synthetic.world.views(people, random.integers(0, CAMERAS, probes), random)
            opening = _open_elsewhere(place, unseen[0])
            results = _measured(gallery, synthetic, unseen, top_k)
            statistics = gallery.statistics()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {
        "tracklets": count,
        "dimension": dimension,
        "seed": seed,
        "probes": probes,
        "top_k": top_k,
        "faiss_threads": threads,
        "segments": statistics.segments,
        "build_s": round(built_s, 1),
        "tracklets_per_s": round(count / built_s),
        "disk_mb": round(statistics.bytes_on_disk / 1e6, 1),
        "opening": opening,
        "filters": results,
    }


if __name__ == "__main__":
    print(json.dumps(measure_opening(Path(sys.argv[1]), np.asarray(json.load(sys.stdin), np.float32))))
