"""From a track to a tracklet: its best shots, their vectors pooled, its plain attributes, and when to say so again.

One EmbedStage per camera. ``observe`` looks at every tracked box of a frame and costs microseconds unless the box is a better
shot, which keeps the vectors that the detector gave for it; ``revisions`` encodes, in one batch over all tracks that are due, the new
shots of a detector that gives none.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.faces import TrackFaces
from pipeline.geometry import Float32, areas, clip_to_frame, feet, inside_polygon, intersections
from pipeline.ports import FaceEncoder, LookEncoder
from pipeline.shots import pool as pool
from pipeline.shots import sharpness as sharpness
from pipeline.shots import thinned
from pipeline.types import TEXT, Attribute, Camera, CropReference, Embedding, Frame, Tracklet, Vectors

Pixels = NDArray[np.uint8]

BUCKET_NS = 250_000_000  # at most one shot a quarter of a second: neighbours in time show the same thing
FULL_SIZE_PX = 200.0  # a person this high shows all that the encoders can use
CONTEXT_WIDTH_PX = 640
CONTEXT_GAIN = 1.25  # a new context picture only for a clearly better shot: making it costs more than a crop
MARK_BGR = (64, 200, 255)
WORTH_SAYING = 0.2  # merit of a head crop, below which a face that it may show is not worth a revision of its own
HEIGHT_MEMORY = 0.8  # of the usual height at each look; people grow and shrink slowly as they walk
HEIGHT_STRAY = 0.1  # a box this share higher or lower than usual counts e^-1: it took in somebody else, or lost the legs


class Track(Protocol):
    """What this stage asks of a track: T boxes over time, bridged ones with confidence 0."""

    @property
    def tracklet_id(self) -> str: ...
    @property
    def at_ns(self) -> NDArray[np.int64]: ...
    @property
    def boxes(self) -> NDArray[np.float32]: ...
    @property
    def confidences(self) -> NDArray[np.float32]: ...
    @property
    def is_confirmed(self) -> bool: ...
    @property
    def is_closed(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class EmbedRules:
    """best_shots: crops kept per track; better_by: quality gain that is worth a new revision, at least every_s after the last;
    keep_context: one small picture of the whole frame; same_face: the cosine at which two faces are as likely those of one person as
    those of two, in the face encoder's space."""

    best_shots: int = 4
    better_by: float = 1.5
    every_s: float = 2.0
    keep_context: bool = True
    same_face: float = 0.45
    batch_size: int = 32


@dataclass(slots=True, eq=False)
class Shot:
    """One look at a person. slot: its place in the media store; vectors: by modality, from the detector or filled in by the encoder;
    is_encoded: its vectors are whole."""

    slot: int
    at_ns: int
    box: tuple[float, float, float, float]
    crop: Pixels
    quality: float
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    is_encoded: bool = False
    is_stored: bool = False


@dataclass(slots=True, eq=False)
class Context:
    """The whole frame of a good shot, made small: (H', W', 3), scale from frame pixels, the person's box, the shot's quality."""

    bgr: Pixels
    scale: float
    at_ns: int
    box: tuple[float, float, float, float]
    quality: float
    is_stored: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Revision:
    """A tracklet to publish and the pictures to store with it: (key, BGR picture)."""

    tracklet: Tracklet
    pictures: tuple[tuple[str, Pixels], ...] = ()


@dataclass(slots=True)
class EmbedTimes:
    """Seconds spent since the stage was made, for the metrics. shots_encoded: crops that went through the encoder; heads_searched: those
    in which faces were looked for."""

    observe_s: float = 0.0
    encode_s: float = 0.0
    shots_encoded: int = 0
    heads_searched: int = 0


def occlusions(xyxy: Float32) -> Float32:
    """How much of each box is hidden by people standing nearer to the camera (feet lower in the picture), (N,) 0..1."""
    if len(xyxy) < 2:
        return np.zeros(len(xyxy), np.float32)
    shared = intersections(xyxy, xyxy)  # (N, N)
    in_front = xyxy[None, :, 3] > xyxy[:, None, 3]  # (N, N)
    hidden = np.where(in_front, shared, 0.0).max(axis=1) / np.maximum(areas(xyxy), 1.0)
    share: Float32 = np.clip(hidden, 0, 1).astype(np.float32)
    return share


def crowding(xyxy: Float32) -> Float32:
    """How much of each box shows somebody else too, before or behind, (N,) 0..1: such a crop speaks for two people."""
    if len(xyxy) < 2:
        return np.zeros(len(xyxy), np.float32)
    shared = intersections(xyxy, xyxy)  # (N, N)
    np.fill_diagonal(shared, 0.0)
    share: Float32 = np.clip(shared.max(axis=1) / np.maximum(areas(xyxy), 1.0), 0, 1).astype(np.float32)
    return share


class BestShots:
    """The best looks at one person so far, at most one a quarter of a second."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"BestShots must keep at least one shot, got {limit}")
        self._limit = limit
        self.shots: list[Shot] = []

    def offer(self, bgr: Pixels, at_ns: int, box: Float32, confidence: float, occlusion: float) -> Shot | None:
        """The shot, when it is good enough to be kept; the frame is only looked into when size and view could make it so."""
        height, width = bgr.shape[:2]
        cut = clip_to_frame(box[None], width, height)[0]  # (4,)
        x1, y1, x2, y2 = (round(float(value)) for value in cut)
        if x2 - x1 < 2 or y2 - y1 < 2:
            return None
        whole = max(float(areas(box[None])[0]), 1.0)
        inside = float(areas(cut[None])[0]) / whole
        size = min(1.0, float(y2 - y1) / FULL_SIZE_PX)
        bound = size * (1.0 - occlusion) * inside * inside * confidence  # cut-off people are worth little: squared
        rival = self._rival(at_ns)
        if bound <= (rival.quality if rival else 0.0):
            return None
        view = bgr[y1:y2, x1:x2]
        quality = bound * sharpness(view)
        if quality <= (rival.quality if rival else 0.0):
            return None
        slot = rival.slot if rival else len(self.shots)
        shot = Shot(slot, at_ns, (float(x1), float(y1), float(x2), float(y2)), view.copy(), min(1.0, quality))
        if rival:
            self.shots.remove(rival)
        self.shots.append(shot)
        self.shots.sort(key=lambda each: (-each.quality, each.at_ns))
        return shot

    def _rival(self, at_ns: int) -> Shot | None:
        """The shot that a new one must beat: that of the same quarter of a second, else the worst of a full list."""
        for shot in self.shots:
            if shot.at_ns // BUCKET_NS == at_ns // BUCKET_NS:
                return shot
        return self.shots[-1] if len(self.shots) >= self._limit else None

    @property
    def best_quality(self) -> float:
        return self.shots[0].quality if self.shots else 0.0


def safe_name(name: str) -> str:
    """``name`` as one part of a file path: letters, digits, dot, dash; others replaced and told apart by a short hash."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:80].lstrip(".") or "_"
    return plain if plain == name else f"{plain}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def media_folder(camera_id: str, tracklet_id: str, started_at_ns: int) -> str:
    """Where a tracklet's pictures lie in the media store: camera/day/tracklet."""
    day = time.strftime("%Y-%m-%d", time.gmtime(started_at_ns // 1_000_000_000))
    return f"{safe_name(camera_id)}/{day}/{safe_name(tracklet_id)}"


@dataclass(slots=True, eq=False)
class _Growing:
    """What this stage remembers of an open track."""

    shots: BestShots
    faces: TrackFaces
    context: Context | None = None
    revision: int = 0
    published_quality: float = 0.0
    published_at_ns: int = 0
    published_face: float = 0.0
    attributes: tuple[Attribute, ...] = ()
    attributes_of: tuple[int, ...] = field(default_factory=tuple)
    usual_log_height: float | None = None

    def steadiness(self, height_px: float) -> float:
        """0..1: how usual a box of this height is for the track so far; takes the height in."""
        log_height = math.log(max(height_px, 1.0))
        usual = log_height if self.usual_log_height is None else self.usual_log_height
        self.usual_log_height = HEIGHT_MEMORY * usual + (1 - HEIGHT_MEMORY) * log_height
        return math.exp(-(((log_height - usual) / HEIGHT_STRAY) ** 2))


class EmbedStage:
    """Best shots, vectors and attributes of one camera's people; makes the revisions of their tracklets.

    looks: its spaces are those of every tracklet, and it encodes the shots for which the detector gave no vectors in them; face may be
    None. Every revision of a replay is the same, number for number.
    """

    def __init__(
        self,
        camera: Camera,
        looks: LookEncoder,
        face: FaceEncoder | None = None,
        rules: EmbedRules | None = None,
    ) -> None:
        self._camera = camera
        self._looks = looks
        self._face = face
        self._rules = rules or EmbedRules()
        self._growing: dict[str, _Growing] = {}
        self._small: tuple[int, Pixels, float] | None = None  # the last frame made small, shared by its people
        self.times = EmbedTimes()

    def observe(
        self,
        frame: Frame,
        tracklet_ids: Sequence[str],
        xyxy: Float32,
        confidence: NDArray[np.float32],
        occlusion: NDArray[np.float32] | None = None,
        vectors: Mapping[str, Vectors] | None = None,
    ) -> None:
        """Take in the N tracked boxes of a frame: ids, boxes (N, 4), confidence (N,), occlusion (N,) 0..1 (None: from the boxes).

        vectors: by modality, what the detector gave for the same N boxes; a row of zeros, or of another space than the encoder's, is
        no vector. Raises ValueError when the lengths differ.
        """
        if not len(tracklet_ids) == len(xyxy) == len(confidence):
            raise ValueError(f"ids, boxes and confidence must share N, got {len(tracklet_ids)}, {len(xyxy)}, {len(confidence)}")
        given = self._known(vectors or {}, len(xyxy))
        started = time.perf_counter()
        hidden = occlusions(xyxy) if occlusion is None else occlusion
        hidden = 1 - (1 - hidden) * (1 - crowding(xyxy))
        for row, tracklet_id in enumerate(tracklet_ids):
            growing = self._growing.get(tracklet_id)
            if growing is None:
                growing = self._growing[tracklet_id] = _Growing(BestShots(self._rules.best_shots), TrackFaces())
            steady = growing.steadiness(float(xyxy[row, 3] - xyxy[row, 1]))
            certain = float(confidence[row]) * steady
            if self._face is not None:
                growing.faces.offer(frame.bgr, frame.captured_at_ns, xyxy[row], certain, float(hidden[row]))
            shot = growing.shots.offer(frame.bgr, frame.captured_at_ns, xyxy[row], certain, float(hidden[row]))
            if shot is None:
                continue
            # A copy: a row would hold on to the vectors of the whole frame.
            shot.vectors = {modality: values[row].copy() for modality, values in given.items() if values[row].any()}
            if self._rules.keep_context:
                self._keep_context(growing, frame, shot)
        self.times.observe_s += time.perf_counter() - started

    def revisions(self, tracks: Sequence[Track], now_ns: int) -> list[Revision]:
        """The revisions due at stream time ``now_ns`` of ``tracks`` (open and just closed), in their order.

        One when a track is confirmed, one when its best shot got clearly better, one when it closes. A closed track is forgotten.
        """
        due = [track for track in tracks if self._is_due(track, now_ns)]
        started = time.perf_counter()
        self._encode([self._growing[track.tracklet_id] for track in due])
        made = [self._publish(track, self._growing[track.tracklet_id], now_ns) for track in due]
        self.times.encode_s += time.perf_counter() - started
        for track in tracks:
            if track.is_closed:
                self._growing.pop(track.tracklet_id, None)
        return made

    def forget(self, tracklet_ids: Sequence[str]) -> None:
        """Drop what is held of tracks that ended unconfirmed."""
        for tracklet_id in tracklet_ids:
            self._growing.pop(tracklet_id, None)

    @property
    def open_tracks(self) -> int:
        """How many tracks hold pixels now."""
        return len(self._growing)

    # ------------------------------------------------------------------------------------------- when

    def _is_due(self, track: Track, now_ns: int) -> bool:
        growing = self._growing.get(track.tracklet_id)
        if growing is None or not track.is_confirmed or not growing.shots.shots:  # asked every frame: the boxes are not touched
            return False
        if track.is_closed or growing.revision == 0:
            return True
        waited_s = (now_ns - growing.published_at_ns) / 1e9
        is_better = growing.shots.best_quality >= self._rules.better_by * growing.published_quality
        has_better_head = growing.faces.best_merit > max(self._rules.better_by * growing.published_face, WORTH_SAYING)
        return waited_s >= self._rules.every_s and (is_better or has_better_head)

    # ----------------------------------------------------------------------------------------- encode

    def _encode(self, due: Sequence[_Growing]) -> None:
        """Vectors for every shot whose own are not whole, in batches over all people; faces of every new head crop."""
        fresh = [shot for growing in due for shot in growing.shots.shots if not shot.is_encoded]
        bare = [shot for shot in fresh if shot.vectors.keys() != self._looks.spaces.keys()]
        for first in range(0, len(bare), self._rules.batch_size):
            batch = bare[first : first + self._rules.batch_size]
            made = self._looks.encode([shot.crop for shot in batch])
            for row, shot in enumerate(batch):
                shot.vectors = {modality: vectors.values[row] for modality, vectors in made.items()} | shot.vectors
        for shot in fresh:
            shot.is_encoded = True
        if self._face is not None:
            self.times.heads_searched += sum(growing.faces.look(self._face) for growing in due)
        self.times.shots_encoded += len(bare)

    def _known(self, vectors: Mapping[str, Vectors], rows: int) -> dict[str, NDArray[np.float32]]:
        """Those vectors (N, D), by modality, that lie in the encoder's spaces."""
        known = {modality: each.values for modality, each in vectors.items() if self._looks.spaces.get(modality) == each.space}
        for modality, values in known.items():
            if len(values) != rows:
                raise ValueError(f"vectors[{modality!r}] must be float32 ({rows}, D), one row per box, got {values.shape}")
        return known

    def _embeddings(self, growing: _Growing) -> tuple[Embedding, ...]:
        shots = growing.shots.shots
        qualities = [shot.quality for shot in shots]
        spaces = self._looks.spaces.items()
        pooled = [pool([shot.vectors[modality] for shot in shots], qualities, modality, space) for modality, space in spaces]
        pooled.append(growing.faces.embedding(self._rules.same_face))
        return tuple(embedding for embedding in pooled if embedding is not None)

    # ---------------------------------------------------------------------------------------- publish

    def _publish(self, track: Track, growing: _Growing, now_ns: int) -> Revision:
        growing.revision += 1
        growing.published_quality, growing.published_at_ns = growing.shots.best_quality, now_ns
        growing.published_face = growing.faces.best_merit
        shots = growing.shots.shots
        started_at_ns = int(track.at_ns[0])
        folder = media_folder(self._camera.camera_id, track.tracklet_id, started_at_ns)
        references, pictures = _crops(folder, shots)
        if growing.context is not None:
            reference, marked = _context(folder, growing.context)
            references.append(reference)
            pictures.extend(marked)
        tracklet = Tracklet(
            tracklet_id=track.tracklet_id,
            revision=growing.revision,
            camera_id=self._camera.camera_id,
            started_at_ns=started_at_ns,
            ended_at_ns=int(track.at_ns[-1]),
            at_ns=np.array(track.at_ns, np.int64),
            xyxy=np.array(track.boxes, np.float32),
            confidence=np.array(track.confidences, np.float32),
            embeddings=self._embeddings(growing),
            attributes=self._attributes(growing),
            crops=tuple(references),
            zones=zones_touched(np.asarray(track.boxes, np.float32), self._camera.zones),
            is_closed=track.is_closed,
            model_versions=self._spaces(),
        )
        return Revision(tracklet, tuple(pictures))

    def _attributes(self, growing: _Growing) -> tuple[Attribute, ...]:
        """The plain attributes; asked again only when a shot changed."""
        if TEXT not in self._looks.spaces:
            return ()
        shots = growing.shots.shots
        moments = tuple(shot.at_ns for shot in shots)
        if moments != growing.attributes_of:
            vectors = np.stack([shot.vectors[TEXT] for shot in shots])  # (K, D)
            growing.attributes = self._looks.attributes(vectors, [shot.quality for shot in shots])
            growing.attributes_of = moments
        return growing.attributes

    def _spaces(self) -> tuple[str, ...]:
        return (*self._looks.spaces.values(), *([self._face.space] if self._face is not None else []))

    # ---------------------------------------------------------------------------------------- context

    def _keep_context(self, growing: _Growing, frame: Frame, shot: Shot) -> None:
        if growing.context is not None and shot.quality < CONTEXT_GAIN * growing.context.quality:
            return
        if self._small is None or self._small[0] != frame.captured_at_ns:
            small, scale = shrink(frame.bgr, CONTEXT_WIDTH_PX)
            self._small = (frame.captured_at_ns, small, scale)
        growing.context = Context(self._small[1], self._small[2], shot.at_ns, shot.box, shot.quality)


def zones_touched(xyxy: Float32, zones: Mapping[str, Sequence[Sequence[float]]]) -> tuple[str, ...]:
    """The names of the zones (polygons in frame pixels) in which the feet of any of the boxes (T, 4) stood, in the zones' order."""
    points = feet(xyxy)  # (T, 2)
    return tuple(name for name, corners in zones.items() if len(corners) >= 3 and bool(inside_polygon(points, corners).any()))


def shrink(bgr: Pixels, width_px: int) -> tuple[Pixels, float]:
    """The picture with every block of whole pixels averaged, at most about ``width_px`` wide, and its scale (small / full)."""
    factor = max(1, round(bgr.shape[1] / width_px))
    if factor > min(bgr.shape[:2]):
        factor = 1
    return thinned(bgr, factor), 1.0 / factor


def _crops(folder: str, shots: Sequence[Shot]) -> tuple[list[CropReference], list[tuple[str, Pixels]]]:
    """References to all best shots, and the pictures of those not stored before."""
    references, pictures = [], []
    for shot in shots:
        key = f"{folder}/{shot.slot}.jpg"
        references.append(CropReference(key, shot.at_ns, shot.box, shot.quality))
        if not shot.is_stored:
            pictures.append((key, shot.crop))
            shot.is_stored = True
    return references, pictures


def _context(folder: str, context: Context) -> tuple[CropReference, list[tuple[str, Pixels]]]:
    """The reference of the context picture (quality 0: it is no crop, and comes last), and the picture when it is new."""
    key = f"{folder}/context.jpg"
    reference = CropReference(key, context.at_ns, context.box, 0.0)
    if context.is_stored:
        return reference, []
    context.is_stored = True
    return reference, [(key, with_box(context.bgr, [value * context.scale for value in context.box]))]


def with_box(bgr: Pixels, box: Sequence[float], thickness: int = 4) -> Pixels:
    """A copy with a box drawn just outside (x1, y1, x2, y2)."""
    marked = bgr.copy()
    height, width = bgr.shape[:2]
    x1, y1 = (max(0, round(value) - thickness) for value in box[:2])
    x2, y2 = min(width, round(box[2]) + thickness), min(height, round(box[3]) + thickness)
    for rows, columns in (
        (slice(y1, y1 + thickness), slice(x1, x2)),
        (slice(max(y2 - thickness, 0), y2), slice(x1, x2)),
        (slice(y1, y2), slice(x1, x1 + thickness)),
        (slice(y1, y2), slice(max(x2 - thickness, 0), x2)),
    ):
        marked[rows, columns] = MARK_BGR
    return marked
