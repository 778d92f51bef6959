"""How well people were found and followed: AP50, CLEAR, identity and HOTA figures of one clip.

The figures equal TrackEval's (github.com/JonathonLuiten/TrackEval, its classes HOTA, CLEAR, Identity) to the last printed digit;
tests compare. Frames are numbered as in the MOT files, from 1; boxes are xyxy float64 pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.errors import BadInputError, NotFoundError

Float64 = NDArray[np.float64]
Ids = NDArray[np.int64]

HOTA_ALPHAS: Float64 = np.arange(0.05, 0.99, 0.05)
MATCH_IOU = 0.5
_EPS = float(np.finfo(float).eps)


@dataclass(frozen=True, slots=True, eq=False)
class IdentifiedBoxes:
    """Boxes over a clip. frame: int (N,), from 1; identity: int (N,); xyxy: float64 (N, 4); confidence: float64 (N,)."""

    frame: Ids
    identity: Ids
    xyxy: Float64
    confidence: Float64

    def __post_init__(self) -> None:
        count = len(self.frame)
        shapes = (self.identity.shape, self.xyxy.shape, self.confidence.shape)
        if shapes != ((count,), (count, 4), (count,)):
            raise ValueError(f"identity, xyxy and confidence must be ({count},), ({count}, 4), ({count},), got {shapes}")

    def __len__(self) -> int:
        return len(self.frame)

    def where(self, keep: NDArray[np.bool_]) -> IdentifiedBoxes:
        """The boxes at the mask ``keep`` (N,)."""
        return IdentifiedBoxes(self.frame[keep], self.identity[keep], self.xyxy[keep], self.confidence[keep])


@dataclass(frozen=True, slots=True)
class TrackingFigures:
    """Fractions 0..1 (mota may be negative) and counts; HOTA, DetA, AssA, LocA are means over the alphas .05 to .95."""

    hota: float
    det_a: float
    ass_a: float
    loc_a: float
    idf1: float
    idp: float
    idr: float
    mota: float
    id_switches: int
    false_positives: int
    false_negatives: int
    boxes_true: int
    boxes_tracked: int
    people_true: int
    people_tracked: int

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def read_mot(path: Path) -> IdentifiedBoxes:
    """The boxes of a MOT text file: frame, id, left, top, width, height, confidence (1 where missing), ...

    Raises NotFoundError for a missing file, BadInputError naming the line for one that is no MOT text.
    """
    if not path.is_file():
        raise NotFoundError(f"ground truth must be a MOT text file, {path} is not there")
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = [float(field) for field in line.replace(",", " ").split()[:7]]
        except ValueError:
            values = []
        if len(values) < 6 or not np.isfinite(values).all():
            raise BadInputError(f"{path} line {number} must read frame,id,left,top,width,height[,confidence], got {line[:60]!r}")
        rows.append(values if len(values) == 7 else [*values, 1.0])
    table = np.asarray(rows, np.float64).reshape(-1, 7)  # (N, 7)
    xyxy = np.concatenate([table[:, 2:4], table[:, 2:4] + table[:, 4:6]], axis=1)  # (N, 4)
    return IdentifiedBoxes(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), xyxy, table[:, 6])


def box_iou(a: Float64, b: Float64) -> Float64:
    """Intersection over union of every pair in float64, (N, M)."""
    sides = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2]), 0, None)  # (N, M, 2)
    shared = sides[..., 0] * sides[..., 1]  # (N, M)
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])  # (N,)
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])  # (M,)
    union = area_a[:, None] + area_b[None, :] - shared  # (N, M)
    overlap: Float64 = np.divide(shared, union, out=np.zeros_like(shared), where=(union > _EPS) & (shared > 0))
    return overlap


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """One frame of a comparison: rows of true people (N,) and of tracks (M,), numbered from 0, and their IoU (N, M)."""

    truth: Ids
    tracked: Ids
    overlap: Float64


@dataclass(frozen=True, slots=True, eq=False)
class _Clip:
    frames: list[_Frame]
    people: int
    tracks: int
    boxes_true: int
    boxes_tracked: int


def _compare(truth: IdentifiedBoxes, tracked: IdentifiedBoxes) -> _Clip:
    """Both sides frame by frame, identities renumbered from 0."""
    truth = truth.where(truth.confidence > 0)  # MOT: 0 marks a box that must not be counted
    people, person_of = np.unique(truth.identity, return_inverse=True)
    tracks, track_of = np.unique(tracked.identity, return_inverse=True)
    frames = []
    for number in np.union1d(truth.frame, tracked.frame):
        left, right = truth.frame == number, tracked.frame == number
        for name, ids in (("ground truth", person_of[left]), ("tracks", track_of[right])):
            if len(np.unique(ids)) != len(ids):
                raise BadInputError(f"{name} must hold an identity once a frame, frame {number} holds one twice")
        frames.append(_Frame(person_of[left], track_of[right], box_iou(truth.xyxy[left], tracked.xyxy[right])))
    return _Clip(frames, len(people), len(tracks), len(truth), len(tracked))


def tracking_figures(truth: IdentifiedBoxes, tracked: IdentifiedBoxes) -> TrackingFigures:
    """CLEAR, identity and HOTA figures of ``tracked`` against ``truth``; raises BadInputError where a frame holds an identity twice.

    >>> box = IdentifiedBoxes(np.array([1, 2]), np.array([7, 7]), np.array([[0.0, 0, 10, 20], [1, 0, 11, 20]]), np.ones(2))
    >>> figures = tracking_figures(box, box)
    >>> round(figures.hota, 6), figures.idf1, figures.mota, figures.id_switches
    (1.0, 1.0, 1.0, 0)
    """
    clip = _compare(truth, tracked)
    hota, det_a, ass_a, loc_a = _hota(clip)
    idf1, idp, idr = _identity(clip)
    misses, ghosts, switches = _clear(clip)
    mota = 1 - (misses + ghosts + switches) / max(clip.boxes_true, 1)
    return TrackingFigures(
        hota=hota,
        det_a=det_a,
        ass_a=ass_a,
        loc_a=loc_a,
        idf1=idf1,
        idp=idp,
        idr=idr,
        mota=mota,
        id_switches=switches,
        false_positives=ghosts,
        false_negatives=misses,
        boxes_true=clip.boxes_true,
        boxes_tracked=clip.boxes_tracked,
        people_true=clip.people,
        people_tracked=clip.tracks,
    )


def _hota(clip: _Clip) -> tuple[float, float, float, float]:
    """HOTA, DetA, AssA, LocA (Luiten et al., IJCV 2020, sections 5 and 6), means over the alphas."""
    if not clip.boxes_true or not clip.boxes_tracked:
        return 0.0, 0.0, 0.0, 1.0
    potential = np.zeros((clip.people, clip.tracks))  # (P, T)
    true_count, tracked_count = np.zeros((clip.people, 1)), np.zeros((1, clip.tracks))
    for frame in clip.frames:
        around = frame.overlap.sum(0)[None, :] + frame.overlap.sum(1)[:, None] - frame.overlap  # (N, M)
        shared = np.divide(frame.overlap, around, out=np.zeros_like(frame.overlap), where=around > _EPS)
        potential[frame.truth[:, None], frame.tracked[None, :]] += shared
        true_count[frame.truth] += 1
        tracked_count[0, frame.tracked] += 1
    alignment = potential / (true_count + tracked_count - potential)  # (P, T)
    alphas = len(HOTA_ALPHAS)
    hits, locations = np.zeros(alphas), np.zeros(alphas)
    matches = np.zeros((alphas, clip.people, clip.tracks))
    for frame in clip.frames:
        rows, columns = linear_sum_assignment(-alignment[frame.truth[:, None], frame.tracked[None, :]] * frame.overlap)
        similarity = frame.overlap[rows, columns]
        for index, alpha in enumerate(HOTA_ALPHAS):
            good = similarity >= alpha - _EPS
            hits[index] += good.sum()
            locations[index] += similarity[good].sum()
            matches[index, frame.truth[rows[good]], frame.tracked[columns[good]]] += 1
    together = matches / np.maximum(1, true_count + tracked_count - matches)  # (A, P, T)
    ass_a = (matches * together).sum((1, 2)) / np.maximum(1, hits)  # (A,)
    det_a = hits / np.maximum(1, clip.boxes_true + clip.boxes_tracked - hits)  # (A,)
    loc_a = np.maximum(1e-10, locations) / np.maximum(1e-10, hits)  # (A,)
    hota = np.sqrt(det_a * ass_a)  # (A,)
    return float(hota.mean()), float(det_a.mean()), float(ass_a.mean()), float(loc_a.mean())


def _identity(clip: _Clip) -> tuple[float, float, float]:
    """IDF1, IDP, IDR (Ristani et al., ECCV-W 2016): people and tracks matched one to one over the whole clip."""
    if not clip.boxes_true or not clip.boxes_tracked:
        return 0.0, 0.0, 0.0
    people, tracks = clip.people, clip.tracks
    common = np.zeros((people, tracks))
    true_count, tracked_count = np.zeros(people), np.zeros(tracks)
    for frame in clip.frames:
        rows, columns = np.nonzero(frame.overlap >= MATCH_IOU)
        common[frame.truth[rows], frame.tracked[columns]] += 1
        true_count[frame.truth] += 1
        tracked_count[frame.tracked] += 1
    misses, ghosts = np.full((people + tracks,) * 2, 1e10), np.full((people + tracks,) * 2, 1e10)
    misses[:people, :tracks] = true_count[:, None] - common
    ghosts[:people, :tracks] = tracked_count[None, :] - common
    misses[people:, :], ghosts[:, tracks:] = 0, 0
    misses[np.arange(people), tracks + np.arange(people)] = true_count
    ghosts[people + np.arange(tracks), np.arange(tracks)] = tracked_count
    misses[people:, tracks:], ghosts[people:, tracks:] = 0, 0
    ghosts[:people, tracks:] = 0
    misses[people:, :tracks] = 0
    rows, columns = linear_sum_assignment(misses + ghosts)
    missed = misses[rows, columns].sum()
    hits = clip.boxes_true - missed
    ghosted = ghosts[rows, columns].sum()
    return (
        float(hits / max(1.0, hits + 0.5 * ghosted + 0.5 * missed)),
        float(hits / max(1.0, hits + ghosted)),
        float(hits / max(1.0, hits + missed)),
    )


def _clear(clip: _Clip) -> tuple[int, int, int]:
    """Misses, ghosts and identity switches (Bernardin and Stiefelhagen, 2008) at IoU 0.5; last frame's pairs are kept first."""
    misses = ghosts = switches = 0
    last_track = np.full(clip.people, -1)  # the track that last showed each person
    previous = np.full(clip.people, -1)  # the same, of the last frame alone
    for frame in clip.frames:
        if not len(frame.truth) or not len(frame.tracked):
            misses, ghosts = misses + len(frame.truth), ghosts + len(frame.tracked)
            if len(frame.truth):
                previous = np.full(clip.people, -1)
            continue
        score = 1000.0 * (frame.tracked[None, :] == previous[frame.truth][:, None]) + frame.overlap
        score[frame.overlap < MATCH_IOU - _EPS] = 0
        rows, columns = linear_sum_assignment(-score)
        matched = score[rows, columns] > _EPS
        people, tracks = frame.truth[rows[matched]], frame.tracked[columns[matched]]
        switches += int(((last_track[people] >= 0) & (last_track[people] != tracks)).sum())
        last_track[people] = tracks
        previous = np.full(clip.people, -1)
        previous[people] = tracks
        misses, ghosts = misses + len(frame.truth) - len(people), ghosts + len(frame.tracked) - len(people)
    return misses, ghosts, switches


def average_precision(truth: IdentifiedBoxes, found: IdentifiedBoxes, overlap: float = MATCH_IOU) -> float:
    """Average precision of detections at an IoU (AP50 by default), 0..1; identities are not looked at.

    Over all frames, detections are taken in falling confidence; each takes the free true box of its frame it overlaps most, and is a
    hit at ``overlap`` or more. Precision is made falling from the right, and its area over recall is summed exactly (PASCAL VOC 2010).
    """
    truth = truth.where(truth.confidence > 0)
    if not len(truth) or not len(found):
        return 0.0
    rows_of = {int(number): np.flatnonzero(truth.frame == number) for number in np.unique(truth.frame)}
    free = np.ones(len(truth), bool)
    hits = np.zeros(len(found), bool)
    for rank, index in enumerate(np.argsort(-found.confidence, kind="stable")):
        rows = rows_of.get(int(found.frame[index]))
        if rows is None:
            continue
        overlaps = np.where(free[rows], box_iou(truth.xyxy[rows], found.xyxy[index : index + 1])[:, 0], 0.0)
        best = int(overlaps.argmax())
        if overlaps[best] >= overlap:
            free[rows[best]] = False
            hits[rank] = True
    recall = np.cumsum(hits) / len(truth)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())
