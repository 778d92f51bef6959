"""Small stand-ins with the ports' shapes: they work in memory and can be read in a minute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError, NotFoundError, SpaceMismatchError
from pipeline.index.stage import reembedded
from pipeline.ports import Compared, Face, Hit, IndexStatistics
from pipeline.types import (
    BODY,
    FACE,
    TEXT,
    Attribute,
    CameraCoverage,
    CropReference,
    Embedding,
    Filter,
    Reembedding,
    Tracklet,
    Vectors,
)

S = 1_000_000_000
NOON_NS = 1_700_000_000 * S
COLOURS = ("red", "green", "blue", "white", "black")


def unit(*values: float) -> NDArray[np.float32]:
    vector = np.asarray(values, np.float32)
    return vector / np.float32(np.linalg.norm(vector))


def embedding(modality: str, *values: float, space: str = "", quality: float = 0.8) -> Embedding:
    return Embedding(modality, space or f"fake-{modality}@1", unit(*values), quality)


def a_tracklet(tracklet_id: str = "t1", *embeddings: Embedding, **changes: Any) -> Tracklet:
    """A person seen for two seconds from noon on, at camera north, unless said otherwise."""
    started = int(changes.pop("started_at_ns", NOON_NS))
    values: dict[str, Any] = {
        "tracklet_id": tracklet_id,
        "revision": 1,
        "camera_id": "north",
        "started_at_ns": started,
        "ended_at_ns": started + 2 * S,
        "at_ns": np.array([started, started + 2 * S]),
        "xyxy": np.array([[10, 10, 40, 90], [20, 10, 50, 90]], np.float32),
        "confidence": np.array([0.9, 0.9], np.float32),
        "embeddings": embeddings,
        "crops": (CropReference(f"north/{tracklet_id}/0.jpg", started, (10.0, 10.0, 40.0, 90.0), 0.5),),
    }
    return Tracklet(**{**values, **changes})


def passes(tracklet: Tracklet, window: Filter) -> bool:
    return (
        tracklet.started_at_ns <= window.to_ns
        and tracklet.ended_at_ns >= window.from_ns
        and (not window.cameras or tracklet.camera_id in window.cameras)
        and (not window.zones or bool(set(window.zones) & set(tracklet.zones)))
    )


class InMemoryGallery:
    """The Gallery port over a dictionary, exact."""

    def __init__(self, *tracklets: Tracklet, coverage: Sequence[CameraCoverage] = ()) -> None:
        self.held: dict[str, Tracklet] = {}
        self.accounts = list(coverage)
        self.searches = 0
        self.upsert(tracklets)

    def add_embeddings(self, added: Sequence[Reembedding]) -> int:
        fitting = [each for each in added if each.tracklet_id in self.held and self.held[each.tracklet_id].revision == each.revision]
        for each in fitting:
            self.held[each.tracklet_id] = reembedded(self.held[each.tracklet_id], each)
        return len(fitting)

    def upsert(self, tracklets: Sequence[Tracklet]) -> int:
        newer = [t for t in tracklets if t.tracklet_id not in self.held or t.revision > self.held[t.tracklet_id].revision]
        self.held.update((t.tracklet_id, t) for t in newer)
        return len(newer)

    def search(self, embedding: Embedding, window: Filter, top_k: int) -> list[Hit]:
        self.searches += 1
        spaces = {e.space for t in self.held.values() for e in t.embeddings if e.modality == embedding.modality}
        if spaces and embedding.space not in spaces:
            raise SpaceMismatchError(sorted(spaces)[0], embedding.space)
        hits = [
            Hit(t.tracklet_id, e.similarity(embedding))
            for t in self.held.values()
            for e in t.embeddings
            if e.space == embedding.space and passes(t, window)
        ]
        return sorted(hits, key=lambda hit: (-hit.similarity, hit.tracklet_id))[:top_k]

    def tracklets(self, tracklet_ids: Sequence[str]) -> list[Tracklet]:
        return [self.held[tracklet_id] for tracklet_id in tracklet_ids if tracklet_id in self.held]

    def scan(self, window: Filter) -> Iterator[Tracklet]:
        nothing = {"at_ns": np.zeros(0, np.int64), "xyxy": np.zeros((0, 4)), "confidence": np.zeros(0), "embeddings": ()}
        for tracklet in sorted(self.held.values(), key=lambda t: t.started_at_ns):
            if passes(tracklet, window):
                yield replace(tracklet, **nothing)

    def record_coverage(self, coverage: CameraCoverage) -> None:
        self.accounts.append(coverage)

    def coverage(self, window: Filter) -> tuple[CameraCoverage, ...]:
        return tuple(
            account
            for account in self.accounts
            if account.from_ns <= window.to_ns
            and account.to_ns >= window.from_ns
            and (not window.cameras or account.camera_id in window.cameras)
        )

    def delete(self, tracklet_ids: Sequence[str]) -> list[CropReference]:
        return [crop for tracklet_id in tracklet_ids if (gone := self.held.pop(tracklet_id, None)) for crop in gone.crops]

    def expire(self, before_ns: int, cameras: Sequence[str] = ()) -> list[CropReference]:
        return self.delete(
            [t.tracklet_id for t in self.held.values() if t.ended_at_ns < before_ns and (not cameras or t.camera_id in cameras)]
        )

    def statistics(self) -> IndexStatistics:
        cameras = sorted({t.camera_id for t in self.held.values()} | {account.camera_id for account in self.accounts})
        by_modality: dict[str, dict[str, int]] = {}
        for each in (embedding for tracklet in self.held.values() for embedding in tracklet.embeddings):
            spaces = by_modality.setdefault(each.modality, {})
            spaces[each.space] = spaces.get(each.space, 0) + 1
        return IndexStatistics(len(self.held), {}, tuple(cameras), 0, 0, 1, 0, by_modality)

    def close(self) -> None:
        """Nothing to close."""


class InMemoryMedia:
    """The MediaStore port over a dictionary."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def put(self, key: str, jpeg: bytes) -> None:
        self.held[key] = jpeg

    def get(self, key: str) -> bytes:
        if key not in self.held:
            raise NotFoundError(f"media key must be stored, got {key}")
        return self.held[key]

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.held.pop(key, None)


class WordTextEncoder:
    """Understands colour words only."""

    space = "fake-text@1"

    def encode(self, text: str) -> Embedding:
        vector = np.array([float(colour in text.lower().split()) for colour in COLOURS], np.float32)
        if not vector.any():
            raise BadInputError(f"nothing in {text!r} can be seen in a picture")
        return Embedding(TEXT, self.space, vector)

    def parse(self, text: str) -> SimpleNamespace:
        words = [word for word in text.lower().split() if word not in (*COLOURS, "a", "jacket", "coat")]
        return SimpleNamespace(unknown=[w for w in words if w != "foreign"], ignored=[w for w in words if w == "foreign"])

    def explain(self, text: str, attributes: Sequence[Attribute]) -> tuple[str, ...]:
        seen = {attribute.value: attribute.score for attribute in attributes}
        return tuple(f"{word}: yes, {seen[word]:.2f}" if word in seen else f"{word}: no" for word in text.split() if word in COLOURS)


@dataclass
class ColourLooks:
    """The LookEncoder port: body is the mean colour of a crop, text which of red, green, blue leads; counts what it was given."""

    spaces: dict[str, str] = field(default_factory=lambda: {BODY: "fake-body@1", TEXT: "fake-text@1"})
    crops: int = 0
    batches: list[int] = field(default_factory=list)

    def encode(self, crops: Sequence[NDArray[np.uint8]]) -> dict[str, Vectors]:
        self.crops += len(crops)
        self.batches.append(len(crops))
        body = np.array([crop.reshape(-1, 3).mean(axis=0) + 1 for crop in crops], np.float32).reshape(-1, 3)
        text = np.concatenate([body[:, ::-1], np.zeros((len(crops), 2), np.float32)], axis=1)  # in the order of COLOURS
        vectors = {BODY: body, TEXT: text}
        return {
            modality: Vectors(self.spaces[modality], each / np.linalg.norm(each, axis=1, keepdims=True))
            for modality, each in vectors.items()
        }

    def attributes(self, vectors: NDArray[np.float32], quality: Sequence[float]) -> tuple[Attribute, ...]:
        mean = np.average(vectors, axis=0, weights=np.asarray(quality) + 1e-6)
        best = int(mean.argmax())
        return (Attribute("upper colour", COLOURS[best], float(np.clip(mean[best], 0, 1))),)


@dataclass
class FaceOnWhite:
    """The FaceEncoder port: sees a face, where a head would show one, in a picture that is bright."""

    space: str = "fake-face@1"
    looks: list[tuple[int, ...]] = field(default_factory=list)

    def faces(self, bgr: NDArray[np.uint8]) -> list[Face]:
        self.looks.append(bgr.shape)
        if bgr.mean() < 128:
            return []
        middle, side = bgr.shape[1] / 2, bgr.shape[1] / 4
        box = np.array([middle - side / 2, side, middle + side / 2, 2 * side], np.float32)
        return [Face(box, 0.9, 0.2, None), Face(box, 0.9, float(bgr.mean()) / 255, Embedding(FACE, self.space, unit(1, 0)))]


@dataclass
class FakeTrack:
    """What the embed stage asks of a track."""

    tracklet_id: str
    at_ns: NDArray[np.int64]
    boxes: NDArray[np.float32]
    confidences: NDArray[np.float32]
    is_confirmed: bool = True
    is_closed: bool = False


class SteppingClock:
    """A clock that moves by ``step_s`` whenever it is read."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def noise(height: int, width: int, seed: int = 0, bgr: Mapping[int, int] | None = None) -> NDArray[np.uint8]:
    """A sharp picture; ``bgr`` sets channels to a constant."""
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    for channel, value in (bgr or {}).items():
        picture[..., channel] = value
    return picture


class InMemoryNeighbours:
    """The Neighbours port over a dictionary, exact."""

    def __init__(self, body_horizon_s: float = 8 * 3600.0) -> None:
        self.held: dict[str, Tracklet] = {}
        self._horizon_ns = int(body_horizon_s * S)

    def add(self, tracklets: Sequence[Tracklet]) -> None:
        self.held.update((each.tracklet_id, each) for each in tracklets)

    def remove(self, tracklet_ids: Sequence[str]) -> None:
        for tracklet_id in tracklet_ids:
            self.held.pop(tracklet_id, None)

    def told_apart(self, tracklet_id: str, others: Sequence[str]) -> None:
        pass

    def near(self, tracklet_ids: Sequence[str], top_k: int) -> list[list[str]]:
        return [self._near(self.held[each], top_k) if each in self.held else [] for each in tracklet_ids]

    def _near(self, tracklet: Tracklet, top_k: int) -> list[str]:
        found: dict[str, None] = {}
        for ours in tracklet.embeddings:
            if ours.modality == TEXT:
                continue
            hits = []
            for other in self.held.values():
                gap_ns = max(other.started_at_ns - tracklet.ended_at_ns, tracklet.started_at_ns - other.ended_at_ns)
                is_late = ours.modality == BODY and gap_ns > self._horizon_ns
                theirs = next((each for each in other.embeddings if each.space == ours.space), None)
                if other.tracklet_id != tracklet.tracklet_id and theirs is not None and not is_late:
                    hits.append((-ours.similarity(theirs), other.tracklet_id))
            found.update(dict.fromkeys(tracklet_id for _, tracklet_id in sorted(hits)[:top_k]))
        return list(found)

    def compare(self, tracklet_id: str, others: Sequence[str]) -> list[Compared]:
        tracklet = self.held.get(tracklet_id)
        compared = []
        for ours in tracklet.embeddings if tracklet else ():
            theirs = [
                next((each for each in self.held[other].embeddings if each.space == ours.space), None) if other in self.held else None
                for other in others
            ]
            cosine = np.array([np.nan if each is None else ours.similarity(each) for each in theirs])
            quality = np.array([0.0 if each is None else each.quality for each in theirs])
            compared.append(Compared(ours.modality, ours.space, cosine, ours.quality, quality))
        return compared
