"""Ways to find the nearest candidates of a large segment without looking at every vector, and the choice among them by measured recall.

- rabitq: one bit a dimension after a random rotation, scanned whole; needs no training, so it is built in seconds and never drifts.
- ivf-pq: lists around centroids, product-quantised; a sixth of the lists is scanned.
- hnsw: a graph walked from neighbour to neighbour; quickest to search, slowest to build, and as large as the vectors.
Candidates are always ranked again by the exact vectors. Recall is that of the hundred nearest of stored vectors, themselves left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss as untyped_faiss
import numpy as np
from numpy.typing import NDArray

faiss: Any = untyped_faiss  # its stubs lack the keywords that its Python layer adds

RABITQ, IVF_PQ, HNSW = "rabitq", "ivf-pq", "hnsw"
KINDS = (RABITQ, IVF_PQ, HNSW)  # in the order of the memory and the time that one costs
LEAST_RECALL = 0.99
LEAST_GAIN = 1.5  # an index that is not so many times as fast as looking at everything is not worth its place
LEAST_DIMENSION = 64  # an exact scan of shorter vectors is quick
TRIAL = 32_768  # vectors of a trial
PROBES, NEAREST = 48, 100
GATHERED = 256  # so few vectors are quicker fetched one by one than looked for in a scan
CHUNK = 16_384  # vectors converted at a time while building

Float16 = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured of an index: recall 0..1, and how many times as fast as the exact scan it is."""

    recall: float
    gain: float

    @property
    def is_enough(self) -> bool:
        return self.recall >= LEAST_RECALL and self.gain >= LEAST_GAIN


def build(kind: str, vectors: Float16) -> Any:
    """A coarse index of float16 vectors (N, D) of one of KINDS."""
    count, dimension = vectors.shape
    if kind == RABITQ:
        index = faiss.index_factory(dimension, f"RR{dimension},RaBitQfs", faiss.METRIC_INNER_PRODUCT)
    elif kind == IVF_PQ:
        lists = max(1, min(int(4 * math.sqrt(count)), count // 40))
        index = faiss.index_factory(dimension, f"IVF{lists},PQ{dimension // 4}x4fs", faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(4, lists // 6)
    elif kind == HNSW:
        index = faiss.index_factory(dimension, "HNSW24_SQfp16", faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 64
        index.hnsw.efSearch = 128
    else:
        raise ValueError(f"a coarse index must be one of {', '.join(KINDS)}, got {kind!r}")
    index.train(vectors[:: max(1, count // CHUNK)].astype(np.float32))
    for start in range(0, count, CHUNK):
        index.add(vectors[start : start + CHUNK].astype(np.float32))
    return index


def candidates_of(kind: str, wanted: int) -> int:
    """How many candidates to ask an index for, of ``wanted`` that one of bits alone needs: a graph ranks them nearly right itself."""
    return max(wanted // 8, 64) if kind == HNSW else wanted


def among(exact: Any, at: NDArray[Any], probe: NDArray[np.float32], top_k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The ``top_k`` nearest to ``probe`` (D,) of the vectors at the places ``at`` (K,) of an exact index: places, cosines, best first."""
    if len(at) <= GATHERED:
        cosines = exact.reconstruct_batch(at) @ probe if len(at) else np.zeros(0, np.float32)
        order = np.argsort(-cosines, kind="stable")[:top_k]
        return at[order], cosines[order]
    allowed = np.zeros(exact.ntotal, bool)
    allowed[at] = True
    parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little")))
    cosines, places = exact.search(probe[None], min(top_k, len(at)), params=parameters)  # (1, K)
    return places[0], cosines[0]


def measure(index: Any, kind: str, exact: Any, vectors: Float16, candidates: int) -> Quality:
    """Recall and speed of ``index`` with re-ranking, against ``exact``, over the same vectors (N, D)."""
    rows = np.unique(np.linspace(0, len(vectors) - 1, PROBES).astype(np.int64))  # the same ones each time: a choice can be repeated
    probes = vectors[rows].astype(np.float32)
    asked = min(candidates_of(kind, candidates), len(vectors))
    hits, wanted, coarse_s, exact_s = 0, 0, [], []
    for row, probe in zip(rows, probes, strict=True):
        started = time.perf_counter()
        nearest = exact.search(probe[None], min(NEAREST + 1, len(vectors)))[1][0]
        exact_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        found = index.search(probe[None], asked)[1][0]
        ranked, _ = among(exact, found[found >= 0], probe, NEAREST + 1)
        coarse_s.append(time.perf_counter() - started)
        others = nearest[nearest != row][:NEAREST]
        hits += len(np.intersect1d(others, ranked))
        wanted += len(others)
    return Quality(hits / max(wanted, 1), float(np.median(exact_s) / max(float(np.median(coarse_s)), 1e-9)))


def choices(vectors: Float16, exact_of: Callable[[Float16], Any], candidates: int, before: str = "") -> Iterator[str]:
    """Those of KINDS that are good enough on a part of ``vectors`` (N, D), the cheapest first; ``before``: what was good last time.

    exact_of: vectors -> their exact index; candidates: ranked again exactly of all N.
    """
    if before:
        yield before
    part = vectors[:: max(1, len(vectors) // TRIAL)]
    exact = exact_of(part)
    share = max(4 * NEAREST, candidates * len(part) // len(vectors))
    for kind in KINDS:
        if kind != before and measure(build(kind, part), kind, exact, part, share).is_enough:
            yield kind
