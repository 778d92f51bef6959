"""Who is near whom, in memory: the Neighbours port over FAISS.

Faces and voices are kept for as long as their tracklets, bodies on shelves of some hours each, so that only those of the horizon are
searched. A small shelf is searched exactly; one that grows becomes an HNSW graph of half-precision vectors, to which a vector is added in
about 0.3 ms however many there are. A vector that was replaced or removed is never given again, and is left out when its shelf is built
anew, which happens when half of it is such.

Bodies are compared without what all people of their camera have in common, its light and colours. How much that is, people tell who are
in one picture and so are certainly two; whoever walks alone before a camera is compared as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import faiss as untyped_faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.ports import Compared
from pipeline.types import BODY, TEXT, Embedding, Tracklet

faiss: Any = untyped_faiss  # its stubs lack the keywords that its Python layer adds

Float32 = NDArray[np.float32]

EXACT_TO = 2_048  # a shelf of so many vectors is searched whole
BUILT_ANEW_FROM = 512  # dead vectors below which building anew is not worth it
LINKS_OF_A_VECTOR, WIDTH_OF_BUILDING, WIDTH_OF_SEARCH = 16, 40, 64  # of HNSW
LOOKS_BEHIND_THE_DEAD = 4  # each four times as far
THE_SAME = 0.995  # cosine from which another revision's vector is not worth a place of its own
SHELVES_OF_A_HORIZON = 4
SHELVES_KEPT = 16  # of one body space, those last added to: archives may tell of any time
DOUBTED_PAIRS = 10  # so many pairs of people who are certainly two, and what they have in common is half believed
SECOND_NS = 1_000_000_000


class _Shelf:
    """Vectors of one space (and, of bodies, one stretch of time): rows with their tracklet, None where it is dead."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self.ids: list[str | None] = []
        self.rows: dict[str, int] = {}
        self.quality: dict[str, float] = {}
        self._matrix: Float32 | None = np.empty((64, dimension), np.float32)
        self._graph: Any = None

    def __len__(self) -> int:
        return len(self.rows)

    def put(self, tracklet_id: str, vector: Float32, quality: float) -> None:
        row = self.rows.get(tracklet_id)
        self.quality[tracklet_id] = quality
        if row is not None:
            if float(self.vectors([row])[0] @ vector) >= THE_SAME:
                return
            self.ids[row] = None
        self._append(tracklet_id, vector)
        self._tidy()

    def take_out(self, tracklet_id: str) -> None:
        self.ids[self.rows.pop(tracklet_id)] = None
        del self.quality[tracklet_id]
        self._tidy()

    def _append(self, tracklet_id: str, vector: Float32) -> None:
        row = len(self.ids)
        if self._matrix is not None:
            if row == len(self._matrix):
                self._matrix = np.concatenate([self._matrix, np.empty_like(self._matrix)])
            self._matrix[row] = vector
        else:
            self._graph.add(vector[None])
        self.ids.append(tracklet_id)
        self.rows[tracklet_id] = row

    def _tidy(self) -> None:
        """From a matrix to a graph when it is large; anew without the dead when they are half of it."""
        dead = len(self.ids) - len(self.rows)
        is_full = self._matrix is not None and len(self.ids) > EXACT_TO
        if is_full or (dead > BUILT_ANEW_FROM and 2 * dead > len(self.ids)):
            names = list(self.rows)
            vectors = self.vectors([self.rows[name] for name in names])
            self.ids, self.rows = list(names), {name: row for row, name in enumerate(names)}
            if len(names) > EXACT_TO // 2:
                graph = faiss.IndexHNSWSQ(self._dimension, faiss.ScalarQuantizer.QT_fp16, LINKS_OF_A_VECTOR, faiss.METRIC_INNER_PRODUCT)
                graph.hnsw.efConstruction, graph.hnsw.efSearch = WIDTH_OF_BUILDING, WIDTH_OF_SEARCH
                graph.train(vectors[:1])
                graph.add(vectors)
                self._matrix, self._graph = None, graph
            else:
                self._matrix, self._graph = np.empty((max(64, 2 * len(names)), self._dimension), np.float32), None
                self._matrix[: len(names)] = vectors

    def vectors(self, rows: Sequence[int]) -> Float32:
        """(N, D) of some rows."""
        if self._matrix is not None:
            found: Float32 = self._matrix[np.asarray(rows, np.int64)]
            return found
        rebuilt: Float32 = self._graph.reconstruct_batch(np.asarray(rows, np.int64))
        return rebuilt

    def search(self, probes: Float32, top_k: int) -> list[list[tuple[float, str]]]:
        """For each probe (Q, D) the nearest living, most ``top_k``: (cosine, id)."""
        count = len(self.ids)
        if not self.rows:
            return [[] for _ in probes]
        wanted = min(count, int((top_k + 8) * count / len(self.rows)))
        found = self._living(probes, wanted, top_k)
        for _ in range(LOOKS_BEHIND_THE_DEAD):
            if wanted == count or min(map(len, found)) >= min(top_k, len(self.rows)):
                break
            wanted = min(count, 4 * wanted)  # the many revisions of one tracklet lie close together: behind them are the others
            found = self._living(probes, wanted, top_k)
        return found

    def _living(self, probes: Float32, wanted: int, top_k: int) -> list[list[tuple[float, str]]]:
        """The living of the ``wanted`` nearest rows, most ``top_k``."""
        if self._matrix is not None:
            cosines = probes @ self._matrix[: len(self.ids)].T  # (Q, N)
            rows = np.argpartition(-cosines, wanted - 1, axis=1)[:, :wanted]
            cosines = np.take_along_axis(cosines, rows, axis=1)
        else:
            cosines, rows = self._graph.search(probes, wanted)
        found = []
        for cosines_of, rows_of in zip(cosines.tolist(), rows.tolist(), strict=True):
            hits = [(cosine, self.ids[row]) for cosine, row in zip(cosines_of, rows_of, strict=True) if row >= 0]
            alive = [(cosine, name) for cosine, name in hits if name is not None]
            found.append(sorted(alive, key=lambda hit: (-hit[0], hit[1]))[:top_k])
        return found


@dataclass(slots=True, eq=False)
class _Space:
    """One embedding space. shelves: by stretch of time, 0 of what is kept for long, last added to at the end; shelf_of: by tracklet."""

    modality: str
    dimension: int
    shelves: dict[int, _Shelf] = field(default_factory=dict)
    shelf_of: dict[str, _Shelf] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Tint:
    """What the bodies of one camera have in common. total: sum of their vectors (D,); apart, pairs: sum of the cosines of people who are
    certainly two, and how many; shared (D,): the part that is taken off."""

    total: NDArray[np.float64]
    apart: float = 0.0
    pairs: int = 0
    shared: Float32 | None = None

    def learn(self, cosines: Float32) -> None:
        self.apart += float(cosines.sum())
        self.pairs += len(cosines)
        likeness = max(0.0, self.apart / self.pairs) * (self.pairs / (self.pairs + DOUBTED_PAIRS)) ** 2
        length = float(np.linalg.norm(self.total))
        self.shared = (self.total * (np.sqrt(likeness) / length)).astype(np.float32) if length > 0 else None


class FaissNeighbours:
    """The Neighbours port. Not for several threads; rebuilt from the gallery at every start."""

    def __init__(self, body_horizon_s: float) -> None:
        self._horizon_ns = int(body_horizon_s * SECOND_NS)
        self._stretch_ns = max(1, self._horizon_ns // SHELVES_OF_A_HORIZON)
        self._spaces: dict[str, _Space] = {}
        self._span: dict[str, tuple[int, int]] = {}  # of bodies: from, to
        self._camera: dict[str, str] = {}  # of bodies
        self._tints: dict[tuple[str, str], _Tint] = {}  # by space and camera

    def __len__(self) -> int:
        """How many vectors there are."""
        return sum(len(space.shelf_of) for space in self._spaces.values())

    def add(self, tracklets: Sequence[Tracklet]) -> None:
        """See Neighbours.add. A vector whose length is not that of its space is left out: the gallery refuses it."""
        for tracklet in tracklets:
            spaces = {each.space for each in tracklet.embeddings}
            for name in self._spaces:
                if name not in spaces:
                    self._take_out(name, tracklet.tracklet_id)
            for embedding in _compared(tracklet):
                space = self._spaces.setdefault(embedding.space, _Space(embedding.modality, len(embedding.vector)))
                if len(embedding.vector) == space.dimension:
                    self._put(space, tracklet, embedding)

    def _put(self, space: _Space, tracklet: Tracklet, embedding: Embedding) -> None:
        tracklet_id = tracklet.tracklet_id
        stretch = tracklet.started_at_ns // self._stretch_ns if space.modality == BODY else 0
        shelf = space.shelves.pop(stretch, None) or _Shelf(space.dimension)
        space.shelves[stretch] = shelf  # the last added to is the last
        before = space.shelf_of.get(tracklet_id)
        if before is not None:
            self._count(embedding.space, tracklet_id, -1)
            if before is not shelf:
                before.take_out(tracklet_id)
        shelf.put(tracklet_id, embedding.vector, embedding.quality)
        space.shelf_of[tracklet_id] = shelf
        if space.modality == BODY:
            self._span[tracklet_id] = tracklet.started_at_ns, tracklet.ended_at_ns
            self._camera[tracklet_id] = tracklet.camera_id
            self._count(embedding.space, tracklet_id, 1)
        if len(space.shelves) > SHELVES_KEPT:
            for name in space.shelves.pop(next(iter(space.shelves))).rows:
                del space.shelf_of[name]
                if not any(name in each.shelf_of for each in self._spaces.values() if each.modality == BODY):
                    del self._span[name], self._camera[name]

    def _count(self, name: str, tracklet_id: str, times: int) -> None:
        """A body into what its camera's people have in common, or out of it."""
        space = self._spaces[name]
        if space.modality == BODY:
            shelf = space.shelf_of[tracklet_id]
            tint = self._tints.setdefault((name, self._camera[tracklet_id]), _Tint(np.zeros(space.dimension)))
            tint.total += times * shelf.vectors([shelf.rows[tracklet_id]])[0]

    def _take_out(self, name: str, tracklet_id: str) -> None:
        shelf = self._spaces[name].shelf_of.get(tracklet_id)
        if shelf is not None:
            self._count(name, tracklet_id, -1)
            shelf.take_out(tracklet_id)
            del self._spaces[name].shelf_of[tracklet_id]

    def remove(self, tracklet_ids: Sequence[str]) -> None:
        """See Neighbours.remove."""
        for tracklet_id in tracklet_ids:
            for name in self._spaces:
                self._take_out(name, tracklet_id)
            self._span.pop(tracklet_id, None)
            self._camera.pop(tracklet_id, None)

    def told_apart(self, tracklet_id: str, others: Sequence[str]) -> None:
        """See Neighbours.told_apart."""
        for name, space in self._spaces.items():
            own = space.shelf_of.get(tracklet_id)
            theirs = [(space.shelf_of[other], other) for other in others if other in space.shelf_of]
            if space.modality == BODY and own is not None and theirs:
                vector = own.vectors([own.rows[tracklet_id]])[0]
                cosines = np.array([shelf.vectors([shelf.rows[other]])[0] @ vector for shelf, other in theirs], np.float32)
                self._tints[name, self._camera[tracklet_id]].learn(cosines)

    def near(self, tracklet_ids: Sequence[str], top_k: int) -> list[list[str]]:
        """See Neighbours.near; the probes of one shelf are searched together."""
        hits: list[dict[str, list[tuple[float, str]]]] = [{} for _ in tracklet_ids]
        for name, space in self._spaces.items():
            probes: dict[int, list[tuple[int, Float32]]] = {}
            for number, tracklet_id in enumerate(tracklet_ids):
                shelf = space.shelf_of.get(tracklet_id)
                if shelf is not None:
                    vector = shelf.vectors([shelf.rows[tracklet_id]])[0]
                    for stretch in self._stretches(space, tracklet_id):
                        probes.setdefault(stretch, []).append((number, vector))
            for stretch, asked in probes.items():
                vectors = np.stack([vector for _, vector in asked])
                is_edge = space.modality == BODY and not self._is_whole_stretch_near(stretch, [tracklet_ids[number] for number, _ in asked])
                for (number, _), found in zip(asked, space.shelves[stretch].search(vectors, top_k + 1), strict=True):
                    if is_edge:
                        found = [hit for hit in found if self._is_within_the_horizon(tracklet_ids[number], hit[1])]
                    hits[number].setdefault(name, []).extend(found)
        return [_nearest(tracklet_id, by_space.values(), top_k) for tracklet_id, by_space in zip(tracklet_ids, hits, strict=True)]

    def _is_whole_stretch_near(self, stretch: int, tracklet_ids: Sequence[str]) -> bool:
        """Whether all that began in a stretch of time is within the horizon of each of these, so that nobody need be asked one by one."""
        from_ns, to_ns = stretch * self._stretch_ns, (stretch + 1) * self._stretch_ns
        spans = [self._span[each] for each in tracklet_ids]
        return all(from_ns >= began - self._horizon_ns and to_ns <= ended + self._horizon_ns for began, ended in spans)

    def _is_within_the_horizon(self, tracklet_id: str, other: str) -> bool:
        (from_ns, to_ns), (other_from_ns, other_to_ns) = self._span[tracklet_id], self._span[other]
        return max(other_from_ns - to_ns, from_ns - other_to_ns) <= self._horizon_ns

    def _stretches(self, space: _Space, tracklet_id: str) -> list[int]:
        if space.modality != BODY:
            return list(space.shelves)
        from_ns, to_ns = self._span[tracklet_id]
        first, last = (from_ns - self._horizon_ns) // self._stretch_ns, (to_ns + self._horizon_ns) // self._stretch_ns
        return [stretch for stretch in space.shelves if first <= stretch <= last]

    def compare(self, tracklet_id: str, others: Sequence[str]) -> list[Compared]:
        """See Neighbours.compare."""
        compared = []
        for name, space in self._spaces.items():
            own = space.shelf_of.get(tracklet_id)
            if own is None:
                continue
            places: dict[int, tuple[_Shelf, list[int], list[int]]] = {id(own): (own, [-1], [own.rows[tracklet_id]])}
            quality = np.zeros(len(others))
            for number, other in enumerate(others):
                shelf = space.shelf_of.get(other)
                if shelf is not None:
                    _, numbers, rows = places.setdefault(id(shelf), (shelf, [], []))
                    numbers.append(number)
                    rows.append(shelf.rows[other])
                    quality[number] = shelf.quality[other]
            order = [number for _, numbers, _ in places.values() for number in numbers]  # -1: the tracklet itself, the first
            vectors = np.concatenate([shelf.vectors(rows) for shelf, _, rows in places.values()])  # (1 + N', D)
            if space.modality == BODY:
                vectors = self._without_tint(name, [tracklet_id if number < 0 else others[number] for number in order], vectors)
            cosine = np.full(len(others), np.nan)
            cosine[order[1:]] = vectors[1:] @ vectors[0]
            compared.append(Compared(space.modality, name, cosine, own.quality[tracklet_id], quality))
        return compared

    def _without_tint(self, space: str, tracklet_ids: Sequence[str], vectors: Float32) -> Float32:
        """(N, D) bodies without what their cameras give them, of length 1 again."""
        shared = [self._tints[space, self._camera[each]].shared for each in tracklet_ids]
        if all(each is None for each in shared):
            return vectors
        bare = vectors - np.stack([np.zeros_like(vectors[0]) if each is None else each for each in shared])
        made: Float32 = bare / np.maximum(np.linalg.norm(bare, axis=1, keepdims=True), 1e-6)
        return made


def _compared(tracklet: Tracklet) -> list[Embedding]:
    return [each for each in tracklet.embeddings if each.modality != TEXT]


def _nearest(tracklet_id: str, by_space: Iterable[list[tuple[float, str]]], top_k: int) -> list[str]:
    """The nearest of every space, each once, without itself."""
    found: dict[str, None] = {}
    for hits in by_space:
        others = [name for _, name in sorted(hits, key=lambda hit: (-hit[0], hit[1])) if name != tracklet_id]
        found.update(dict.fromkeys(others[:top_k]))
    return list(found)
