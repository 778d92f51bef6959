"""The identity index of one machine: SQLite is the truth, FAISS files beside it are derived and make search fast.

Rows are cut into segments of ``segment_size`` in order of arrival. A sealed segment has, per embedding space,
- exact: the vectors as float16 in an IndexScalarQuantizer, memory-mapped; filters go into its search as a bitmap;
- coarse (large segments): the kind that was measured to lose nothing and to be quicker (faiss_coarse.py), searched when the filter
  leaves a segment whole; its best candidates of all segments are ranked again by the exact vectors. Where none is, there is none.
The newest rows are searched exactly in memory. Segments outside the time window are not touched.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss as untyped_faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError, MissingDependencyError, NotReadyError, ReadOnlyStorageError, SpaceMismatchError, StorageFullError
from pipeline.index.stage import reembedded
from pipeline.ports import Hit, IndexStatistics
from pipeline.types import CameraCoverage, CropReference, Embedding, Filter, Reembedding, Tracklet
from services.adapters import faiss_coarse
from services.adapters.sqlite_store import (
    SEALED_TO,
    Columns,
    FileRecord,
    SegmentRecord,
    Space,
    SqliteStore,
    translated_errors,
)

EXACT = "exact"
OF_OLD = "coarse"  # what a RaBitQ file was called when there was no other kind
DATABASE = "index.sqlite"
LARGEST_ROW = 2**54  # row << SPACE_BITS still fits SQLite's integer
CHUNK = 16_384  # vectors converted at a time while building

Vectors = NDArray[np.float16]
faiss: Any = untyped_faiss  # its stubs lack the keywords that its Python layer adds
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _SpaceIndex:
    """The vectors of one space in one segment. positions: int64 (M,) of the segment's columns, one per vector; on_gpu: exact's copy."""

    exact: Any
    positions: NDArray[np.int64]
    coarse: Any = None
    coarse_kind: str = ""
    on_gpu: Any = None


@dataclass(slots=True)
class _Segment:
    """Rows with their columns, which of them live, and the spaces loaded so far."""

    record: SegmentRecord
    columns: Columns
    alive: NDArray[np.bool_]
    from_ns: int
    to_ns: int
    dead: int = 0
    spaces: dict[int, _SpaceIndex | None] = field(default_factory=dict)

    def mark_gone(self, rows: NDArray[np.int64]) -> None:
        if len(self.columns) == 0:
            return
        at = np.minimum(np.searchsorted(self.columns.rows, rows), len(self.columns) - 1)
        self.alive[at[self.columns.rows[at] == rows]] = False
        self.dead = int(len(self.alive) - np.count_nonzero(self.alive))


def _segment(record: SegmentRecord, columns: Columns) -> _Segment:
    from_ns = int(columns.started_at_ns.min()) if len(columns) else 0
    to_ns = int(columns.ended_at_ns.max()) if len(columns) else -1
    return _Segment(record, columns, np.ones(len(columns), bool), from_ns, to_ns)


class FaissGallery:
    """The Gallery port over one folder. One writer at a time (a file lock), any number of read-only ones beside it."""

    def __init__(
        self,
        folder: Path,
        *,
        read_only: bool = False,
        segment_size: int = 131_072,
        coarse_from: int = 32_768,
        coarse_kinds: Sequence[str] | None = None,
        candidates: int = 4_000,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        """Opens or creates the index in ``folder``.

        segment_size: rows of a segment; coarse_from: vectors from which a segment may get a coarse index; coarse_kinds: take the first of
        these unmeasured, None: measure; candidates: how many are ranked again exactly (more: better recall, slower); threads: of FAISS,
        in the whole process; device: "gpu" searches sealed segments that the filter leaves whole on the first GPU, exactly.
        Raises MissingDependencyError (no GPU, or FAISS was built without), NotReadyError (another writer, naming its pid; read_only and
        no index there), ReadOnlyStorageError, NewerSchemaError.
        """
        self.folder = Path(folder)
        self._read_only = read_only
        self._segment_size, self._candidates = segment_size, candidates
        self._coarse_from, self._coarse_kinds = coarse_from, coarse_kinds
        self._lock = threading.RLock()
        self._writer_lock: int | None = None
        self._segments: dict[int, _Segment] = {}
        self._open = _segment(SegmentRecord(0, 1, LARGEST_ROW), Columns.none())
        self._damaged: dict[int, SegmentRecord] = {}
        self._spaces: list[Space] = []
        self._cameras: dict[str, int] = {}
        self._zone_sets: dict[tuple[str, ...], int] = {}
        self._mark: int | None = None
        self._gone_to, self._sealed_to = 0, -1
        self._gpu = _gpu_resources() if device == "gpu" else None
        faiss.omp_set_num_threads(threads)
        if not read_only:
            self._take_writer_lock()
        try:
            self._store = SqliteStore(self.folder / DATABASE, read_only=read_only)
        except BaseException:
            self._release_writer_lock()
            raise
        if not read_only:
            self._remove_strays()
            self._note_missing()
            self._mend()
            self._finish_deletions()

    # -------------------------------------------------------------------------------------- writer lock

    def _take_writer_lock(self) -> None:
        path = self.folder / "writer.lock"
        with translated_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise NotReadyError(
                f"{self.folder} must have one writer, process {owner} is it: stop that one or open with read_only"
            ) from None
        self._writer_lock = lock
        with translated_errors(self.folder), suppress(StorageFullError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)

    def _release_writer_lock(self) -> None:
        if self._writer_lock is not None:
            os.close(self._writer_lock)
            self._writer_lock = None

    def close(self) -> None:
        with self._lock:
            self._store.close()
            self._segments.clear()
            self._release_writer_lock()

    def __enter__(self) -> FaissGallery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------------------- write

    def upsert(self, tracklets: Sequence[Tracklet]) -> int:
        """See Gallery.upsert. One durable transaction per call."""
        with self._lock:
            written = self._store.upsert(tracklets)
            if written:
                self._mark = None
                self._tidy()
            return written

    def add_embeddings(self, added: Sequence[Reembedding]) -> int:
        """See Gallery.add_embeddings. A row is written anew, so that its vectors stay together and no search sees half of them."""
        with self._lock:
            stored = {tracklet.tracklet_id: tracklet for tracklet in self._store.tracklets([each.tracklet_id for each in added])}
            changed: dict[str, Tracklet] = {}
            for each in added:
                tracklet = changed.get(each.tracklet_id) or stored.get(each.tracklet_id)
                if tracklet is not None and tracklet.revision == each.revision:
                    changed[each.tracklet_id] = reembedded(tracklet, each)
            written = self._store.upsert(list(changed.values()), again=True) if changed else 0
            if written:
                self._mark = None
                self._tidy()
            return written

    def _tidy(self) -> None:
        """Seal a full open segment and rewrite segments that are a quarter superseded; on a full disk both wait."""
        try:
            self._follow()
            if len(self._open.columns) >= self._segment_size:
                self._seal()
            for segment in [s for s in self._segments.values() if 4 * s.dead > len(s.columns)]:
                self._rewrite([segment.record])
        except StorageFullError as error:
            logger.warning("segment not written, searching goes on without it: %s", error)

    def _seal(self) -> None:
        last_row = int(self._open.columns.rows[-1])
        self._replace([], [(self._sealed_to + 1, last_row)], sealed_to=last_row)

    def _rewrite(self, records: Sequence[SegmentRecord]) -> None:
        """Build the segments again from the database, so that nothing removed is left in their files."""
        self._replace(records, [(record.first_row, record.last_row) for record in records])

    def _replace(self, old: Sequence[SegmentRecord], spans: Sequence[tuple[int, int]], sealed_to: int | None = None) -> None:
        """Put segments over ``spans`` in the place of ``old``: files first, then the database, then the old files go."""
        for at in range(max(len(spans), 1)):
            span = spans[at : at + 1]
            next_id = self._store.next_segment_id()
            built = [self._build(next_id, *rows) for rows in span]
            with self._store.writing():
                for record in old[at : at + 1]:
                    self._store.drop_segment(record)
                for record, columns, files in built:
                    if len(columns):
                        self._store.add_segment(record, columns)
                        self._store.add_files(record.segment_id, files)
                if sealed_to is not None:
                    self._store.set_meta(SEALED_TO, sealed_to)
        self._mark = None
        self._remove_strays()

    def _build(self, segment_id: int, first_row: int, last_row: int) -> tuple[SegmentRecord, Columns, list[FileRecord]]:
        columns = self._store.columns_between(first_row, last_row)
        files = []
        for space in self._store.spaces():
            rows, vectors = self._vectors(first_row, last_row, space)
            if len(rows):
                positions = np.searchsorted(columns.rows, rows).astype("<i4") if len(rows) < len(columns) else np.zeros(0, "<i4")
                files += self._write_files(segment_id, space, vectors, positions.tobytes())
        return SegmentRecord(segment_id, first_row, last_row), columns, files

    def _vectors(self, first_row: int, last_row: int, space: Space) -> tuple[NDArray[np.int64], Vectors]:
        nothing = (np.zeros(0, np.int64), np.zeros((0, space.dimension), np.float16))
        return self._store.vectors_between(first_row, last_row, [space]).get(space.number, nothing)

    def _write_files(self, segment_id: int, space: Space, vectors: Vectors, positions: bytes) -> list[FileRecord]:
        exact = _exact_index(vectors, space.dimension)
        kind, coarse, recall = self._coarse(space, vectors, exact)
        files = []
        for name_of_kind, index in ((EXACT, exact), (kind, coarse)):
            if index is not None:
                name = f"segment-{segment_id:08d}-{space.number}.{name_of_kind}.faiss"
                size, checksum = _write_durably(self.folder / name, faiss.serialize_index(index))
                is_exact = name_of_kind == EXACT
                record = FileRecord(
                    space.number, name_of_kind, name, size, checksum, positions if is_exact else b"", 1.0 if is_exact else recall
                )
                files.append(record)
        return files

    def _coarse(self, space: Space, vectors: Vectors, exact: Any) -> tuple[str, Any, float]:
        """Kind, index and recall of the coarse index that these vectors get; "" and None where they are better looked at one by one."""
        if len(vectors) < self._coarse_from or space.dimension % 8:
            return "", None, 0.0
        if self._coarse_kinds is not None:
            kind = next(iter(self._coarse_kinds), "")
            return kind, faiss_coarse.build(kind, vectors) if kind else None, 0.0
        if space.dimension < faiss_coarse.LEAST_DIMENSION:
            return "", None, 0.0
        for kind in faiss_coarse.choices(vectors, _exact_of, self._candidates, self._chosen_before(space)):
            index = faiss_coarse.build(kind, vectors)
            quality = faiss_coarse.measure(index, kind, exact, vectors, self._candidates)
            logger.info("coarse index", extra={"space": space.space, "kind": kind, "recall": quality.recall, "gain": quality.gain})
            if quality.is_enough:
                return kind, index, quality.recall
        return "", None, 0.0

    def _chosen_before(self, space: Space) -> str:
        """The kind that the newest segment of this space has: what was good there is tried first, and measured again."""
        kinds = [record.kind for record in self._store.files() if record.space == space.number and record.kind != EXACT]
        return "" if not kinds else faiss_coarse.RABITQ if kinds[-1] == OF_OLD else kinds[-1]

    def _remove_strays(self) -> None:
        """Files of segments that are no more, or that never came to be because the writer was killed."""
        known = {record.name for record in self._store.files()}
        for path in self.folder.glob("segment-*.faiss*"):
            if path.name not in known:
                path.unlink(missing_ok=True)

    def _note_missing(self) -> None:
        """Look for files that are gone or cut short; their content is checked when they are first read."""
        for segment in self._store.segments():
            for record in self._store.files(segment.segment_id):
                path = self.folder / record.name
                if not path.exists() or path.stat().st_size != record.size:
                    self._damaged[segment.segment_id] = segment

    def delete(self, tracklet_ids: Sequence[str]) -> list[CropReference]:
        """See Gallery.delete. Segments that held them are written anew, which takes seconds for a large one."""
        with self._lock:
            names = list(dict.fromkeys(tracklet_ids))
            crops: list[CropReference] = []
            for start in range(0, len(names), CHUNK):
                crops += self._take_out(names[start : start + CHUNK])
            self._finish_deletions()
            return crops

    def _take_out(self, names: Sequence[str]) -> list[CropReference]:
        """Remove from the database; the segments' files still hold the vectors."""
        crops = self._store.crops_of(names)
        stored = [(row, name) for name, row, _ in self._store.rows_of(names)]
        rows = [row for row, _ in stored] + self._store.superseded_of(names)
        with self._store.writing() as connection:
            self._store.remove(stored, keep_superseded=False)
            # Until their files are written anew these rows count as superseded; a killed writer finds them there and goes on.
            sealed_to = self._store.meta(SEALED_TO)
            connection.executemany("INSERT OR REPLACE INTO superseded VALUES (?, '')", [(row,) for row in rows if row <= sealed_to])
        self._mark = None
        return crops

    def _finish_deletions(self) -> None:
        gone = np.asarray(self._store.superseded_of([""]), np.int64)
        touched = [s for s in self._store.segments() if np.any((gone >= s.first_row) & (gone <= s.last_row))]
        if touched:
            self._rewrite(touched)
        if not self._store.empty_journal():
            logger.warning("a reader holds the journal of %s: removed rows leave it with the next write", self.folder)

    def expire(self, before_ns: int, cameras: Sequence[str] = ()) -> list[CropReference]:
        """See Gallery.expire."""
        return self.delete(self._store.ended_before(before_ns, cameras))

    def record_coverage(self, coverage: CameraCoverage) -> None:
        self._store.record_coverage(coverage)

    # --------------------------------------------------------------------------------------------- read

    def tracklets(self, tracklet_ids: Sequence[str]) -> list[Tracklet]:
        return self._store.tracklets(tracklet_ids)

    def scan(self, window: Filter) -> Iterator[Tracklet]:
        return self._store.scan(window)

    def coverage(self, window: Filter) -> tuple[CameraCoverage, ...]:
        return self._store.coverage(window)

    def statistics(self) -> IndexStatistics:
        """What the index holds; vectors are counted per space."""
        count, from_ns, to_ns = self._store.extent()
        vectors: dict[str, int] = {}
        by_modality: dict[str, dict[str, int]] = {}
        for space in self._store.spaces():
            if space.vectors:
                vectors[space.space] = vectors.get(space.space, 0) + space.vectors
                by_modality.setdefault(space.modality, {})[space.space] = space.vectors
        size = 0
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                size += path.stat().st_size
        cameras = tuple(sorted(self._store.cameras()))
        return IndexStatistics(count, vectors, cameras, from_ns, to_ns, len(self._store.segments()), size, by_modality)

    # ------------------------------------------------------------------------------------------- search

    def search(self, embedding: Embedding, window: Filter, top_k: int) -> list[Hit]:
        """See Gallery.search."""
        if top_k < 1:
            raise BadInputError(f"top_k must be 1 or more, got {top_k}")
        with self._lock, self._store.reading():
            self._follow()
            space = self._space_of(embedding)
            if space is None:
                return []
            rows, similarities = self._nearest(embedding.vector, space, window, top_k)
            names = self._store.names_of(rows.tolist())
        self._mend()
        pairs = zip(rows.tolist(), similarities.tolist(), strict=True)
        return [Hit(names[row], similarity) for row, similarity in pairs if row in names]

    def _mend(self) -> None:
        """Write damaged files anew from the database; a reader leaves that to the writer."""
        if self._read_only or not self._damaged:
            return
        with self._lock:
            known = {record.segment_id for record in self._store.segments()}
            damaged, self._damaged = [r for r in self._damaged.values() if r.segment_id in known], {}
            try:
                self._rewrite(damaged)
            except StorageFullError as error:
                logger.warning("damaged files stay: %s", error)

    def _space_of(self, embedding: Embedding) -> Space | None:
        held = [s for s in self._spaces if s.modality == embedding.modality and s.vectors]
        space = next((s for s in held if s.space == embedding.space), None)
        if space is None and held:
            raise SpaceMismatchError(", ".join(s.space for s in held), embedding.space)
        if space is not None and space.dimension != len(embedding.vector):
            raise BadInputError(f"vectors of space {space.space!r} must have {space.dimension} numbers, got {len(embedding.vector)}")
        return space

    def _nearest(self, query: NDArray[np.float32], space: Space, window: Filter, top_k: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Rows and cosines, best first, of all segments."""
        mask = _WindowMask(self._cameras, self._zone_sets, window)
        found = _Best()
        rough: list[tuple[_Segment, _SpaceIndex, NDArray[Any], NDArray[Any]]] = []
        segments = [s for s in (*self._segments.values(), self._open) if s.from_ns <= window.to_ns and s.to_ns >= window.from_ns]
        candidates = max(self._candidates, 10 * top_k)
        share = min(candidates, max(4 * candidates // max(len(segments), 1), 2 * top_k))
        for segment in segments:
            index = self._loaded(segment, space)
            if index is None:
                continue
            passes = mask.of(segment)
            if passes is None and index.on_gpu is not None:
                scores, at = index.on_gpu.search(query[None], min(top_k + segment.dead, len(index.positions)))  # (1, K)
                keep = (at[0] >= 0) & segment.alive[index.positions[at[0]]]
                found.add(segment.columns.rows[index.positions[at[0][keep]]], scores[0][keep])
            elif passes is None and index.coarse is not None and segment.dead < share:
                asked = max(faiss_coarse.candidates_of(index.coarse_kind, share), 2 * top_k) + segment.dead
                scores, at = index.coarse.search(query[None], min(asked, len(index.positions)))  # (1, K)
                keep = (at[0] >= 0) & segment.alive[index.positions[at[0]]]
                rough.append((segment, index, at[0][keep], scores[0][keep]))
            else:
                found.add(*_exact_search(segment, index, passes, query, top_k))
        for segment, index, at in _best_rough(rough, candidates):
            nearest, similarities = faiss_coarse.among(index.exact, at, query, top_k)
            found.add(segment.columns.rows[index.positions[nearest]], similarities)
        return found.top(top_k)

    def _loaded(self, segment: _Segment, space: Space) -> _SpaceIndex | None:
        """The segment's vectors of this space; read on first use, rebuilt from the database when missing or damaged."""
        if space.number not in segment.spaces:
            segment.spaces[space.number] = self._load(segment, space)
        return segment.spaces[space.number]

    def _load(self, segment: _Segment, space: Space) -> _SpaceIndex | None:
        files = {f.kind: f for f in self._store.files(segment.record.segment_id) if f.space == space.number}
        if EXACT not in files:
            return None
        try:
            indexes = {kind: _read_checked(self.folder / record.name, record) for kind, record in files.items()}
        except (OSError, ValueError, RuntimeError) as error:
            logger.warning("rebuilding a derived file from the database: %s", error)
            return self._rebuilt(segment, space)
        stored = np.frombuffer(files[EXACT].positions, "<i4").astype(np.int64)
        positions = stored if len(stored) else np.arange(len(segment.columns))
        kind = next((each for each in indexes if each != EXACT), "")
        on_gpu = _copy_to_gpu(self._gpu, indexes[EXACT], space.dimension) if self._gpu is not None else None
        return _SpaceIndex(indexes[EXACT], positions, indexes.get(kind), faiss_coarse.RABITQ if kind == OF_OLD else kind, on_gpu)

    def _rebuilt(self, segment: _Segment, space: Space) -> _SpaceIndex | None:
        self._damaged[segment.record.segment_id] = segment.record
        rows, vectors = self._vectors(segment.record.first_row, segment.record.last_row, space)
        if not len(rows):
            return None
        exact = _exact_index(vectors, space.dimension)
        return _SpaceIndex(exact, np.searchsorted(segment.columns.rows, rows))

    # ------------------------------------------------------------------------------------------- follow

    def _follow(self) -> None:
        """Take over what the writer has done since; cheap when nothing changed. Call inside a read view."""
        with self._store.reading():
            mark = self._store.change_mark()
            if mark == self._mark:
                return
            gone = self._store.gone_since(self._gone_to)
            if gone is None:  # too far behind: start over
                self._segments.clear()
                self._sealed_to = -1
                gone = (self._store.end_of_gone(), np.zeros(0, np.int64))
            self._follow_segments(gone[1])
            self._follow_open(gone[1])
            self._spaces, self._cameras, self._zone_sets = self._store.spaces(), self._store.cameras(), self._store.zone_sets()
            self._gone_to, self._mark = gone[0], mark

    def _follow_segments(self, gone: NDArray[np.int64]) -> None:
        records = {record.segment_id: record for record in self._store.segments()}
        for segment_id in [known for known in self._segments if known not in records]:
            del self._segments[segment_id]
        for segment in self._segments.values():
            segment.mark_gone(gone)
        for segment_id, record in records.items():
            if segment_id not in self._segments:
                segment = _segment(record, self._store.segment_columns(segment_id))
                segment.mark_gone(self._store.superseded(record.first_row, record.last_row))
                self._segments[segment_id] = segment

    def _follow_open(self, gone: NDArray[np.int64]) -> None:
        sealed_to = self._store.meta(SEALED_TO)
        if sealed_to != self._sealed_to:
            self._open = _segment(SegmentRecord(0, sealed_to + 1, LARGEST_ROW), Columns.none())
            self._sealed_to = sealed_to
        segment = self._open
        segment.mark_gone(gone)
        if 4 * segment.dead > len(segment.columns) and segment.dead > 1000:  # revisions pile up: start over without the dead
            segment = self._open = _segment(segment.record, Columns.none())
        last_row = int(segment.columns.rows[-1]) if len(segment.columns) else sealed_to
        fresh = self._store.columns_between(last_row + 1, LARGEST_ROW)
        if not len(fresh):
            return
        offset = len(segment.columns)
        grown = _segment(segment.record, segment.columns.followed_by(fresh))
        grown.alive[:offset] = segment.alive
        grown.dead, grown.spaces = segment.dead, segment.spaces
        spaces = self._store.spaces()
        for number, (rows, vectors) in self._store.vectors_between(last_row + 1, int(fresh.rows[-1]), spaces).items():
            _append(grown.spaces, number, vectors, offset + np.searchsorted(fresh.rows, rows))
        for space in spaces:
            grown.spaces.setdefault(space.number, None)
        self._open = grown


class _WindowMask:
    """A filter made ready: which rows of a segment pass."""

    def __init__(self, cameras: dict[str, int], zone_sets: dict[tuple[str, ...], int], window: Filter) -> None:
        self._window = window
        self._cameras = self._zones = None
        if window.cameras:
            self._cameras = _table(cameras.values(), [cameras[name] for name in window.cameras if name in cameras])
        if window.zones:
            wanted = set(window.zones)
            self._zones = _table(zone_sets.values(), [number for names, number in zone_sets.items() if wanted & set(names)])

    def of(self, segment: _Segment) -> NDArray[np.bool_] | None:
        """Rows that live and pass, (N,); None when the filter leaves the segment whole."""
        columns, window = segment.columns, self._window
        tests: list[NDArray[np.bool_]] = []
        if window.from_ns > segment.from_ns:
            tests.append(columns.ended_at_ns >= window.from_ns)
        if window.to_ns < segment.to_ns:
            tests.append(columns.started_at_ns <= window.to_ns)
        if self._cameras is not None:
            tests.append(self._cameras[columns.cameras])
        if self._zones is not None:
            tests.append(self._zones[columns.zone_sets])
        if not tests or all(test.all() for test in tests):
            return None
        passes: NDArray[np.bool_] = np.logical_and.reduce([*tests, segment.alive])
        return passes


class _Best:
    """Collects rows and cosines, gives the best."""

    def __init__(self) -> None:
        self._rows: list[NDArray[Any]] = []
        self._similarities: list[NDArray[Any]] = []

    def add(self, rows: NDArray[Any], similarities: NDArray[Any]) -> None:
        self._rows.append(rows)
        self._similarities.append(similarities)

    def top(self, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        if not self._rows:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        rows, similarities = np.concatenate(self._rows), np.concatenate(self._similarities)
        order = np.lexsort((rows, -similarities))[:count]  # equal cosines: the older row first, so that answers repeat
        return rows[order], np.clip(similarities[order], -1.0, 1.0)


def _table(known: Any, chosen: Sequence[int]) -> NDArray[np.bool_]:
    table = np.zeros(max([0, *known]) + 1, bool)
    table[list(chosen)] = True
    return table


def _exact_search(
    segment: _Segment, index: _SpaceIndex, passes: NDArray[np.bool_] | None, query: NDArray[np.float32], top_k: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows and cosines of the best that pass; the filter is part of the search."""
    if passes is None and segment.dead == 0:
        similarities, at = index.exact.search(query[None], min(top_k, len(index.positions)))  # (1, K)
    else:
        allowed = segment.alive if passes is None else passes  # (N,)
        if len(index.positions) < len(allowed):  # not every row has a vector of this space
            allowed = allowed[index.positions]  # (M,)
        count = int(np.count_nonzero(allowed))
        if count == 0:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        nearest, found = faiss_coarse.among(index.exact, np.flatnonzero(allowed), query, top_k)
        return segment.columns.rows[index.positions[nearest]], found
    keep = at[0] >= 0
    return segment.columns.rows[index.positions[at[0][keep]]], similarities[0][keep]


def _best_rough(
    rough: Sequence[tuple[_Segment, _SpaceIndex, NDArray[Any], NDArray[Any]]], candidates: int
) -> Iterator[tuple[_Segment, _SpaceIndex, NDArray[Any]]]:
    """The best candidates over all segments by their rough score, per segment."""
    scores = np.concatenate([score for *_, score in rough]) if rough else np.zeros(0, np.float32)
    threshold = np.partition(scores, len(scores) - candidates)[len(scores) - candidates] if len(scores) > candidates else -np.inf
    for segment, index, at, score in rough:
        chosen = at[score >= threshold]
        if len(chosen):
            yield segment, index, chosen


def _exact_index(vectors: Vectors, dimension: int) -> Any:
    index = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.add_sa_codes(np.ascontiguousarray(vectors).view(np.uint8).reshape(len(vectors), -1))  # its code is the float16 itself
    return index


def _gpu_resources() -> Any:
    """Memory and streams of the first GPU. Raises MissingDependencyError."""
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        raise MissingDependencyError("faiss-gpu with a GPU", "gpu")
    return faiss.StandardGpuResources()


def _copy_to_gpu(resources: Any, exact: Any, dimension: int) -> Any:
    """The same float16 vectors in the memory of a GPU, for the same exact search."""
    options = faiss.GpuIndexFlatConfig()
    options.useFloat16 = True
    index = faiss.GpuIndexFlatIP(resources, dimension, options)
    for start in range(0, exact.ntotal, CHUNK):
        index.add(exact.reconstruct_n(start, min(CHUNK, exact.ntotal - start)))
    return index


def _exact_of(vectors: Vectors) -> Any:
    return _exact_index(np.ascontiguousarray(vectors), vectors.shape[1])


def _append(spaces: dict[int, _SpaceIndex | None], number: int, vectors: Vectors, positions: NDArray[np.int64]) -> None:
    known = spaces.get(number)
    if known is None:
        spaces[number] = _SpaceIndex(_exact_index(vectors, vectors.shape[1]), positions)
        return
    known.exact.add_sa_codes(np.ascontiguousarray(vectors).view(np.uint8).reshape(len(vectors), -1))
    known.positions = np.concatenate([known.positions, positions])


def _write_durably(path: Path, content: NDArray[np.uint8]) -> tuple[int, int]:
    """Length and CRC-32 of what was written; the file is there whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    try:
        with translated_errors(path), temporary.open("wb") as file:
            file.write(content.data)
            file.flush()
            os.fsync(file.fileno())
        with translated_errors(path):
            temporary.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except (StorageFullError, ReadOnlyStorageError):
        temporary.unlink(missing_ok=True)
        raise
    return len(content), zlib.crc32(content.data)


def _read_checked(path: Path, record: FileRecord) -> Any:
    """The index in a file, memory-mapped where FAISS can; raises ValueError when it is not what was written, OSError when missing."""
    checksum, size = 0, 0
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            checksum, size = zlib.crc32(part, checksum), size + len(part)
    if (checksum, size) != (record.checksum, record.size):
        raise ValueError(f"{path.name} must have {record.size} bytes of CRC {record.checksum}, got {size} of {checksum}")
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if record.kind == EXACT else 0)


class BareIndex:
    """FAISS alone over the same vectors, for the search bench: no database, no segments, no re-ranking."""

    def __init__(self, index: Any) -> None:
        self._index = index

    def searcher(self, passes: NDArray[np.bool_], top_k: int) -> Callable[[NDArray[np.float32]], NDArray[np.int64]]:
        """A function that gives the rows nearest to a probe among those that pass."""
        if passes.all():
            return lambda probe: np.asarray(self._index.search(probe[None], top_k)[1][0], np.int64)
        bitmap = np.packbits(passes, bitorder="little")
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bitmap))
        count = min(top_k, int(np.count_nonzero(passes)))
        return lambda probe: np.asarray(self._index.search(probe[None], count, params=parameters)[1][0], np.int64)


def bare_index(kind: str, vectors: Vectors) -> BareIndex:
    """A bare "flat" (float32), "float16" or "coarse" (RaBitQ) index of float16 vectors (N, D)."""
    dimension = vectors.shape[1]
    if kind == "float16":
        return BareIndex(_exact_index(vectors, dimension))
    if kind == "coarse":
        return BareIndex(faiss_coarse.build(faiss_coarse.RABITQ, vectors))
    index = faiss.IndexFlatIP(dimension)
    for start in range(0, len(vectors), CHUNK):
        index.add(vectors[start : start + CHUNK].astype(np.float32))
    return BareIndex(index)
