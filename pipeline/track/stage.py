"""The track stage: joins the detections of one camera into tracks. One Tracker per camera; nothing is shared between them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.track.association import assign, hidden_shares, is_doubled, likeness, overlap_of
from pipeline.track.lifecycle import State, Track, derived_id
from pipeline.track.motion import to_corners
from pipeline.types import Detections

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class TrackerSettings:
    """Times in seconds, confidences as the detector gives them, shares 0..1.

    confirm_after_s: seen this long (and ``confirm_hits`` times) a track is a person; lost_after_s: unseen this long it closes.
    sure: from here a box takes part in the first round; unsure: from here in the second, which only carries tracks on.
    start: from here an unmatched box starts a track; person: mean confidence that a track must reach to be confirmed.
    buffer: share of its size by which a box grows before overlaps are taken; a lost track's grows with the time unseen.
    least_sure, least_unsure: similarity below which nothing is joined. look_weight: weight of looks in it; least_look: cosine below
    which a lost track is not found again. smooth_s: width of the smoothing of closed tracks, 0 = none.
    """

    confirm_after_s: float = 0.8
    lost_after_s: float = 3.0
    confirm_hits: int = 3
    sure: float = 0.2
    unsure: float = 0.03
    start: float = 0.3
    person: float = 0.5
    buffer: float = 0.25
    least_sure: float = 0.15
    least_unsure: float = 0.45
    look_weight: float = 0.2
    least_look: float = 0.75
    smooth_s: float = 0.12

    def __post_init__(self) -> None:
        if not 0 <= self.unsure <= self.sure <= 1:
            raise ValueError(f"0 <= unsure <= sure <= 1 must hold, got unsure {self.unsure}, sure {self.sure}")
        if self.lost_after_s <= 0 or self.confirm_after_s < 0:
            raise ValueError(f"lost_after_s must be above 0 and confirm_after_s 0 or more, got {self.lost_after_s}, {self.confirm_after_s}")


@dataclass(frozen=True, slots=True, eq=False)
class TrackUpdates:
    """What a frame changed.

    seen: tracks with a detection in this frame (M), tentative ones among them; detection: its row, int (M,); xyxy float32 (M, 4),
    confidence (M,), occlusion (M,): 0..1 covered by nearer people. open: all confirmed tracks, lost ones among them;
    confirmed: those of them confirmed by this frame; closed: confirmed tracks that ended now; forgotten: ids of tracks that ended
    unconfirmed or turned out to continue an older track.
    """

    seen: tuple[Track, ...]
    detection: Rows
    xyxy: Float32
    confidence: Float32
    occlusion: Float32
    open: tuple[Track, ...]
    confirmed: tuple[Track, ...] = ()
    closed: tuple[Track, ...] = ()
    forgotten: tuple[str, ...] = ()


class Tracker:
    """Follows the people of one camera. Frames must come in time order; the same frames give the same tracks and ids."""

    # A frame more than this many usual steps late is a gap of the camera; a tentative track survives two missed steps.
    _TENTATIVE_STEPS = 2.5
    _TENTATIVE_S = 0.4

    def __init__(self, camera_id: str, settings: TrackerSettings | None = None) -> None:
        self.camera_id = camera_id
        self.settings = settings or TrackerSettings()
        self._tracks: list[Track] = []
        self._times: deque[int] = deque()
        self._step_s = 0.0

    def update(self, at_ns: int, detections: Detections, appearance: Float32 | None = None) -> TrackUpdates:
        """Take in a frame: its time, detections (N) and looks, float32 (N, D) of length 1 or zeros where unknown.

        Raises ValueError when time does not rise or looks do not match the detections.
        """
        if self._times and at_ns <= self._times[-1]:
            raise ValueError(f"at_ns must rise from frame to frame, got {at_ns} after {self._times[-1]}")
        if appearance is not None and len(appearance) != len(detections):
            raise ValueError(f"appearance must be float32 ({len(detections)}, D), got {appearance.shape}")
        self._learn_step(at_ns)
        # Faint boxes must not hide anybody: what counts as unseen is left out before coverings are taken.
        rows = np.flatnonzero(detections.confidence >= self.settings.unsure)
        held = detections.where(rows)
        frame = _Seen(at_ns, held.xyxy, held.confidence, hidden_shares(held.xyxy), None if appearance is None else appearance[rows], rows)
        for track in self._tracks:
            track.miss()
        free = self._match_sure(frame)
        free = self._match_unsure(frame, free)
        self._start(frame, free)
        self._notice_doubles(frame)
        confirmed, adopted = self._confirm(at_ns)
        closed, forgotten = self._retire(at_ns)
        return self._updates(frame, confirmed, closed, [*adopted, *forgotten])

    def finish(self) -> TrackUpdates:
        """The stream ended: every open track closes; tentative ones are forgotten."""
        closed = [track for track in self._tracks if track.state is not State.TENTATIVE]
        forgotten = [track.tracklet_id for track in self._tracks if track.state is State.TENTATIVE]
        for track in closed:
            track.close(self.settings.smooth_s)
        self._tracks = []
        nobody = np.zeros((0, 4), np.float32)
        return TrackUpdates((), np.zeros(0, np.intp), nobody, nobody[:, 0], nobody[:, 0], (), (), tuple(closed), tuple(forgotten))

    # ---------------------------------------------------------------------------------------------- time

    def _learn_step(self, at_ns: int) -> None:
        """Keep the frame times that a lost track may still have to bridge, and the usual step between frames."""
        if self._times:
            step_s = (at_ns - self._times[-1]) / 1e9
            usual = self._step_s or step_s
            self._step_s = 0.9 * usual + 0.1 * min(step_s, 4 * usual)
        self._times.append(at_ns)
        horizon_ns = at_ns - int((self.settings.lost_after_s + 2 * self.settings.confirm_after_s + 2) * 1e9)
        while len(self._times) > 2 and self._times[0] < horizon_ns:
            self._times.popleft()

    def _between(self, first_ns: int, last_ns: int) -> NDArray[np.int64]:
        """The times of the frames strictly between two times."""
        missed = []
        for when in reversed(self._times):
            if when <= first_ns:
                break
            if when < last_ns:
                missed.append(when)
        return np.asarray(missed[::-1], np.int64)

    # ------------------------------------------------------------------------------------------- matching

    def _match_sure(self, frame: _Seen) -> Rows:
        """First round: sure boxes and all tracks, lately seen ones first. Gives the rows left over."""
        rows = np.flatnonzero(frame.confidence >= self.settings.sure)
        lately, lost = self._split_by_age(frame.at_ns)
        rows = self._match(frame, rows, [track for track in lately if track.state is not State.TENTATIVE], self.settings.least_sure)
        rows = self._match(frame, rows, [track for track in lately if track.state is State.TENTATIVE], self.settings.least_sure)
        return self._match(frame, rows, lost, self.settings.least_sure, is_lost=True)

    def _match_unsure(self, frame: _Seen, free: Rows) -> Rows:
        """Second round: unsure boxes carry on tracks seen lately, never those lost for long; gives the sure rows left over."""
        unsure = np.flatnonzero((frame.confidence >= self.settings.unsure) & (frame.confidence < self.settings.sure))
        lately, _ = self._split_by_age(frame.at_ns)
        self._match(frame, unsure, lately, self.settings.least_unsure)
        return free

    def _split_by_age(self, at_ns: int) -> tuple[list[Track], list[Track]]:
        """Tracks not seen in this frame: those seen within half a second (or two usual steps), and the others."""
        lately_s = max(0.5, 2.5 * self._step_s)
        waiting = [track for track in self._tracks if track.detection < 0]
        lately = [track for track in waiting if track.unseen_s(at_ns) <= lately_s]
        return lately, [track for track in waiting if track.unseen_s(at_ns) > lately_s]

    def _match(self, frame: _Seen, rows: Rows, tracks: list[Track], least: float, is_lost: bool = False) -> Rows:
        """Join ``tracks`` with detections ``rows``; gives the rows left over."""
        if not tracks or not len(rows):
            return rows
        similarity = self._similarity(frame, rows, tracks, is_lost)
        taken = []
        for index, column in assign(similarity, least):
            row = int(rows[column])
            track = tracks[index]
            missed = self._between(track.last_at_ns, frame.at_ns)
            track.see(frame.xyxy[row], frame.at_ns, float(frame.confidence[row]), row, float(frame.occlusion[row]), missed)
            if frame.looks is not None and frame.confidence[row] >= self.settings.sure:
                track.see_look(frame.looks[row], float(frame.occlusion[row]))
            if track.state is State.LOST:
                track.state = State.CONFIRMED
            taken.append(column)
        return np.delete(rows, taken)

    def _similarity(self, frame: _Seen, rows: Rows, tracks: list[Track], is_lost: bool) -> Float64:
        """Geometry and looks in one number 0..1, (T, N)."""
        settings = self.settings
        expected = to_corners(np.stack([track.motion.at(frame.at_ns) for track in tracks]))  # (T, 4)
        unseen_s = np.asarray([track.unseen_s(frame.at_ns) for track in tracks])
        buffer = np.round(settings.buffer * (1 + np.minimum(unseen_s, 2.0)), 2)  # (T,)
        near = overlap_of(expected, frame.xyxy[rows], buffer)  # (T, N)
        if frame.looks is None or not settings.look_weight:
            return near
        size = frame.looks.shape[1]
        held = np.stack([track.look if track.look is not None else np.zeros(size, np.float32) for track in tracks])
        alike = likeness(held, frame.looks[rows])  # (T, N)
        # Looks of two people are seldom below 0.5: stretched, so that differences count.
        stretched = np.clip((alike - 0.5) / 0.5, 0, 1)
        mixed = np.where(np.isnan(alike), near, (1 - settings.look_weight) * near + settings.look_weight * stretched * (near > 0))
        mixed[near <= 0.02] = 0
        if is_lost:
            mixed[alike < settings.least_look] = 0
        return mixed

    # --------------------------------------------------------------------------------- starting and ending

    def _start(self, frame: _Seen, free: Rows) -> None:
        """Start tracks on sure boxes left over, unless they show again what a track already shows."""
        held = np.asarray([frame.xyxy[track.detection] for track in self._tracks if track.detection >= 0], np.float32).reshape(-1, 4)
        order = 0
        for row in free[np.argsort(-frame.confidence[free], kind="stable")]:
            box = frame.xyxy[row]
            if frame.confidence[row] < self.settings.start or is_doubled(box[None], held, 0.5, 0.8)[0]:
                continue
            name = derived_id(self.camera_id, frame.at_ns, order)
            track = Track(name, box, frame.at_ns, float(frame.confidence[row]), int(row), float(frame.occlusion[row]))
            if frame.looks is not None:
                track.see_look(frame.looks[row], float(frame.occlusion[row]))
            self._tracks.append(track)
            held = np.concatenate([held, box[None]])
            order += 1

    def _notice_doubles(self, frame: _Seen) -> None:
        """Count for each tentative track the sights in which it shows a part of somebody confirmed."""
        tentative = [track for track in self._tracks if track.state is State.TENTATIVE and track.detection >= 0]
        held = np.asarray([frame.xyxy[each.detection] for each in self._tracks if each.state is State.CONFIRMED], np.float32).reshape(-1, 4)
        if tentative and len(held):
            seen = np.stack([frame.xyxy[track.detection] for track in tentative])
            for track, doubled in zip(tentative, is_doubled(seen, held, 0.5, 0.8), strict=True):
                track.doubles += int(doubled)

    def _confirm(self, at_ns: int) -> tuple[list[Track], list[str]]:
        """Confirm tracks seen for long enough; one that continues a lost track is joined to it instead. (confirmed, ids joined)."""
        confirmed: list[Track] = []
        joined: list[str] = []
        for track in [each for each in self._tracks if each.state is State.TENTATIVE and each.detection >= 0]:
            settings = self.settings
            if track.hits < settings.confirm_hits or track.seen_s() < settings.confirm_after_s:
                continue
            if track.mean_confidence < settings.person or track.doubles > 0.5 * track.hits:
                continue
            earlier = self._continued_by(track)
            if earlier is not None:
                earlier.adopt(track, self._between(earlier.last_at_ns, track.first_at_ns))
                self._tracks.remove(track)
                joined.append(track.tracklet_id)
            else:
                track.state = State.CONFIRMED
                confirmed.append(track)
        return confirmed, joined

    def _continued_by(self, later: Track) -> Track | None:
        """The lost track that ``later`` goes on with, if one ended before it began, near where it began, and looked alike."""
        first = later.boxes[:1]
        best, best_score = None, self.settings.least_sure
        for track in self._tracks:
            gap_s = (later.first_at_ns - track.last_at_ns) / 1e9
            if track.state is not State.LOST or gap_s <= 0 or gap_s > self.settings.lost_after_s:
                continue
            expected = to_corners(track.motion.at(later.first_at_ns)[None])
            near = float(overlap_of(expected, first, np.asarray([self.settings.buffer * (1.5 + min(gap_s, 2.0))]))[0, 0])
            alike = float(track.look @ later.look) if track.look is not None and later.look is not None else 0.0
            score = near if alike >= self.settings.least_look else 0.0
            if score > best_score:
                best, best_score = track, score
        return best

    def _retire(self, at_ns: int) -> tuple[list[Track], list[str]]:
        """Close tracks unseen for too long: (confirmed ones closed, ids of tentative ones)."""
        patience_s = max(self._TENTATIVE_S, self._TENTATIVE_STEPS * self._step_s)
        # A lost track stays until nothing tentative that began in time could still turn out to continue it.
        lost_s = max(self.settings.lost_after_s + self.settings.confirm_after_s, 2.5 * self._step_s)
        closed, forgotten, kept = [], [], []
        for track in self._tracks:
            unseen_s = track.unseen_s(at_ns)
            if track.state is State.TENTATIVE and unseen_s > patience_s:
                forgotten.append(track.tracklet_id)
            elif track.state is not State.TENTATIVE and unseen_s > lost_s:
                track.close(self.settings.smooth_s)
                closed.append(track)
            else:
                kept.append(track)
        self._tracks = kept
        return closed, forgotten

    def _updates(self, frame: _Seen, confirmed: list[Track], closed: list[Track], forgotten: list[str]) -> TrackUpdates:
        seen = tuple(track for track in self._tracks if track.detection >= 0)
        rows = np.asarray([track.detection for track in seen], np.intp)
        return TrackUpdates(
            seen,
            frame.rows[rows],
            frame.xyxy[rows],
            frame.confidence[rows],
            frame.occlusion[rows],
            tuple(track for track in self._tracks if track.state is not State.TENTATIVE),
            tuple(confirmed),
            tuple(closed),
            tuple(forgotten),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A frame's detections (N) as the rounds need them."""

    at_ns: int
    xyxy: Float32
    confidence: Float32
    occlusion: Float32
    looks: Float32 | None
    rows: Rows  # of the detections given
