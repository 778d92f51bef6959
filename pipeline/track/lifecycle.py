"""One person followed in one camera, from first sight to close: tentative → confirmed ⇄ lost → closed."""

from __future__ import annotations

import hashlib
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from pipeline.track.motion import Motion, bridge, smooth, to_centre, to_corners

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

MOST_BOXES = 4096  # kept of a track; beyond it the older half is thinned to every other box, again and again
LOOK_MEMORY = 0.9  # share of the old look that stays at each good sight
CLEAR_SIGHT = 0.25  # covered by nearer people less than this, a sight may change the look


class State(Enum):
    """tentative: may be a ghost; confirmed: a person, seen lately; lost: a person, not seen lately; closed: for good."""

    TENTATIVE = "tentative"
    CONFIRMED = "confirmed"
    LOST = "lost"
    CLOSED = "closed"


def derived_id(camera_id: str, first_at_ns: int, order: int) -> str:
    """16 hex characters from camera, first frame time, and the order within that frame: a replay gives the same."""
    return hashlib.sha256(f"{camera_id}\n{first_at_ns}\n{order}".encode()).hexdigest()[:16]


class Track:
    """A person's boxes over time.

    at_ns int64 (T,) rising; boxes float32 (T, 4) xyxy; confidences float32 (T,), 0 where the box was bridged, not seen;
    occlusions float32 (T,): how much of the box nearer people cover, 0..1. Once closed, boxes are smoothed.
    """

    def __init__(self, tracklet_id: str, box: Float32, at_ns: int, confidence: float, detection: int, occlusion: float) -> None:
        self.tracklet_id = tracklet_id
        self.state = State.TENTATIVE
        self.motion = Motion(to_centre(box[None])[0], at_ns)
        self.look: Float32 | None = None
        self.hits = 0
        self.doubles = 0  # sights in which it lay on somebody else
        self.confidence_sum = 0.0
        self.detection = -1
        self._at_ns: list[int] = []
        self._boxes: list[Float32] = []
        self._confidences: list[float] = []
        self._occlusions: list[float] = []
        self._keep(at_ns, box, confidence, occlusion)
        self._count(confidence, detection)

    # --------------------------------------------------------------------------------------- what is read

    @property
    def at_ns(self) -> NDArray[np.int64]:
        return np.asarray(self._at_ns, np.int64)

    @property
    def boxes(self) -> Float32:
        return np.asarray(self._boxes, np.float32).reshape(-1, 4)

    @property
    def confidences(self) -> Float32:
        return np.asarray(self._confidences, np.float32)

    @property
    def occlusions(self) -> Float32:
        return np.asarray(self._occlusions, np.float32)

    @property
    def is_confirmed(self) -> bool:
        """Whether it ever was confirmed: closed tracks stay so."""
        return self.state in (State.CONFIRMED, State.LOST) or (self.state is State.CLOSED and self._was_confirmed)

    @property
    def is_closed(self) -> bool:
        return self.state is State.CLOSED

    @property
    def first_at_ns(self) -> int:
        return self._at_ns[0]

    @property
    def last_at_ns(self) -> int:
        return self._at_ns[-1]

    @property
    def mean_confidence(self) -> float:
        return self.confidence_sum / self.hits

    def seen_s(self) -> float:
        """From first to last sight, seconds."""
        return (self.last_at_ns - self.first_at_ns) / 1e9

    def unseen_s(self, now_ns: int) -> float:
        return (now_ns - self.last_at_ns) / 1e9

    # ------------------------------------------------------------------------------------- what changes it

    def see(self, box: Float32, at_ns: int, confidence: float, detection: int, occlusion: float, missed_ns: NDArray[np.int64]) -> None:
        """Take in a detection; the frames missed since the last one (``missed_ns``, (M,)) get bridged boxes of confidence 0."""
        if len(missed_ns):
            ends = to_centre(np.stack([self._boxes[-1], box]))
            between = to_corners(bridge(self.last_at_ns, ends[0], at_ns, ends[1], missed_ns))  # (M, 4)
            for when, bridged in zip(missed_ns, between, strict=True):
                self._keep(int(when), bridged, 0.0, 1.0)
        self.motion.see(to_centre(box[None])[0], at_ns, confidence)
        self._keep(at_ns, box, confidence, occlusion)
        self._count(confidence, detection)

    def see_look(self, look: Float32, occlusion: float) -> None:
        """Blend in how the person looks now, unless others cover it."""
        if occlusion > CLEAR_SIGHT or not look.any():
            return
        blended = look if self.look is None else LOOK_MEMORY * self.look + (1 - LOOK_MEMORY) * look
        self.look = (blended / max(float(np.linalg.norm(blended)), 1e-6)).astype(np.float32)

    def miss(self) -> None:
        self.detection = -1
        if self.state is State.CONFIRMED:
            self.state = State.LOST

    def adopt(self, later: Track, missed_ns: NDArray[np.int64]) -> None:
        """Take over the boxes of a later piece of the same person; the gap's frames (``missed_ns``) are bridged."""
        ends = to_centre(np.stack([self._boxes[-1], later._boxes[0]]))
        for when, bridged in zip(
            missed_ns, to_corners(bridge(self.last_at_ns, ends[0], later.first_at_ns, ends[1], missed_ns)), strict=True
        ):
            self._keep(int(when), bridged, 0.0, 1.0)
        for row in zip(later._at_ns, later._boxes, later._confidences, later._occlusions, strict=True):
            self._keep(*row)
        self.motion, self.detection, self.state = later.motion, later.detection, State.CONFIRMED
        self.hits += later.hits
        self.confidence_sum += later.confidence_sum
        if later.look is not None:
            self.see_look(later.look, 0.0)

    def close(self, smooth_s: float) -> None:
        """Close for good; boxes are smoothed over about ``smooth_s`` seconds, bridged ones following the line between."""
        self._was_confirmed = self.state is not State.TENTATIVE
        self.state, self.detection = State.CLOSED, -1
        if not self._was_confirmed:
            return
        weight = np.asarray(self._confidences, np.float64) * (1 - 0.7 * np.clip(np.asarray(self._occlusions), 0, 1))
        centre = smooth(self.at_ns, to_centre(self.boxes), weight, smooth_s)
        self._boxes = list(to_corners(centre))

    # ---------------------------------------------------------------------------------------------- inside

    _was_confirmed = False

    def _count(self, confidence: float, detection: int) -> None:
        self.hits += 1
        self.confidence_sum += confidence
        self.detection = detection

    def _keep(self, at_ns: int, box: Float32, confidence: float, occlusion: float) -> None:
        self._at_ns.append(at_ns)
        self._boxes.append(box)
        self._confidences.append(confidence)
        self._occlusions.append(occlusion)
        if len(self._at_ns) > MOST_BOXES:
            thinned = slice(1, MOST_BOXES // 2, 2)
            del self._at_ns[thinned], self._boxes[thinned], self._confidences[thinned], self._occlusions[thinned]
