"""How well tracklets of two cameras are linked: footage of one moment from two sides, boxes with identities in one of them only.

The tracklets of the first camera get their person by overlap with the marked boxes. Those of the other camera get theirs through the
ground: the homographies of both cameras to one plan map the feet of every marked box into the other picture, where a tracked box takes
the person whose feet are clearly nearest to its own. A tracklet whose boxes name several people, or none, is counted as unlabelled.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.errors import BadInputError, NotFoundError
from pipeline.evaluate.tracking import IdentifiedBoxes, box_iou, read_mot
from pipeline.index.linking import Linker
from pipeline.index.stage import newest
from pipeline.types import BODY, Tracklet

Float64 = NDArray[np.float64]

MARKED_IOU = 0.5
NEAR, CLEARLY_NEARER = 0.5, 1.5  # feet within half a body height, and the second nearest half as far again and more
PURE, LEAST_BOXES = 0.7, 8  # share of a tracklet's labelled boxes that must name one person, and how many there must be
SWEEP = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledBoxes:
    """The boxes of tracklets that were told apart: tracklet id -> person of each such box."""

    people: dict[str, Counter[int]]
    boxes: dict[str, int]

    def person_of(self, tracklet_id: str) -> int | None:
        """The one person that a tracklet shows; None where its boxes name several, or too few any."""
        named = self.people[tracklet_id]
        if named.total() < LEAST_BOXES:
            return None
        person, count = named.most_common(1)[0]
        return person if count >= PURE * named.total() else None


def read_homography(folder: Path, video: Path) -> Float64:
    """The matrix (3, 3) from a picture to the plan, of the file in ``folder`` whose number the video's name carries.

    Raises NotFoundError, or BadInputError for a file that holds no ``Matrix: [nine numbers]``.
    """
    numbers = {int(each) for each in re.findall(r"\d+", video.stem)}
    files = [path for path in sorted(folder.glob("*homography*")) if numbers & {int(each) for each in re.findall(r"\d+", path.stem)}]
    if len(files) != 1:
        raise NotFoundError(f"{folder} must hold one homography file with the number of {video.name}, got {len(files)}")
    found = re.search(r"Matrix:\s*(\[[^\]]*\])", files[0].read_text("utf-8"))
    try:
        values = np.asarray(json.loads(found.group(1)) if found else [], np.float64)
    except ValueError:
        values = np.zeros(0)
    if values.shape != (9,):
        raise BadInputError(f"{files[0]} must hold Matrix: [nine numbers]")
    return values.reshape(3, 3)


def evaluate_linking(
    first: Sequence[Tracklet],
    second: Sequence[Tracklet],
    truth: IdentifiedBoxes,
    to_second: Float64,
    make_linker: Callable[[float], Linker],
    accept: float,
) -> dict[str, Any]:
    """Figures of linking all revisions of two cameras in the order in which they came, each time from nothing.

    first, second: revisions of both cameras, whose times are those of the same moments; to_second: (3, 3) ground of the first picture to
    that of the second; make_linker: for an accepting probability.
    """
    frame_of = _frame_numbers([*first, *second])
    labels = LabelledBoxes({}, {})
    closed = {"first": newest(first), "second": newest(second)}
    for tracklet in closed["first"]:
        _label(labels, tracklet, frame_of, lambda number, box: _marked(truth, number, box))
    for tracklet in closed["second"]:
        _label(labels, tracklet, frame_of, lambda number, box: _standing(truth, to_second, number, box))
    revisions = sorted([*first, *second], key=lambda each: (each.ended_at_ns, each.camera_id, each.tracklet_id, each.revision))
    body_only = [_of_body(each) for each in revisions]
    names = [each.tracklet_id for side in closed.values() for each in side]
    alone = {name: name for name in names}
    best = {name: f"person {labels.person_of(name)}" if labels.person_of(name) is not None else name for name in names}
    report: dict[str, Any] = {
        "tracklets": {side: len(tracklets) for side, tracklets in closed.items()},
        "unlabelled": {side: sum(labels.person_of(each.tracklet_id) is None for each in held) for side, held in closed.items()},
        "people_in_both": len(
            set.intersection(*({labels.person_of(each.tracklet_id) for each in held} - {None} for held in closed.values()))
        ),
        "accept": accept,
        "linked": _figures(labels, closed, _identities(make_linker(accept), revisions, names)),
        "body_only": _figures(labels, closed, _identities(make_linker(accept), body_only, names)),
        "not_linked": _figures(labels, closed, alone),
        "linked_as_labelled": _figures(labels, closed, best),
        "sweep": {
            f"{each:.2f}": _figures(labels, closed, _identities(make_linker(each), body_only, names)) for each in sorted({*SWEEP, accept})
        },
    }
    return report


def _of_body(tracklet: Tracklet) -> Tracklet:
    return replace(tracklet, embeddings=tuple(each for each in tracklet.embeddings if each.modality == BODY))


def _identities(linker: Linker, revisions: Sequence[Tracklet], names: Sequence[str]) -> dict[str, str]:
    for revision in revisions:
        linker.link([revision], revision.ended_at_ns)
    return {name: str(linker.identity_of(name)) for name in names}


# --------------------------------------------------------------------------------------------------- labels


def _frame_numbers(tracklets: Sequence[Tracklet]) -> Callable[[int], int]:
    """From times to the frame numbers of MOT files, from 1; both clips begin with the same frame."""
    times = np.unique(np.concatenate([each.at_ns for each in tracklets])) if tracklets else np.zeros(0, np.int64)
    if len(times) < 2:
        raise BadInputError("both clips must show people in several frames, got none")
    period_ns = float(np.median(np.diff(times)))
    start_ns = int(times[0]) // 1_000_000_000 * 1_000_000_000  # the clips are given a whole second to begin at
    return lambda at_ns: round((at_ns - start_ns) / period_ns) + 1


def _label(
    labels: LabelledBoxes, tracklet: Tracklet, frame_of: Callable[[int], int], person_at: Callable[[int, Float64], int | None]
) -> None:
    named: Counter[int] = Counter()
    for at_ns, box in zip(tracklet.at_ns, tracklet.xyxy, strict=True):
        person = person_at(frame_of(int(at_ns)), box.astype(np.float64))
        if person is not None:
            named[person] += 1
    labels.people[tracklet.tracklet_id] = named
    labels.boxes[tracklet.tracklet_id] = len(tracklet.at_ns)


def _marked(truth: IdentifiedBoxes, number: int, box: Float64) -> int | None:
    """The person whose marked box a tracked box covers."""
    here = truth.where(truth.frame == number)
    if not len(here):
        return None
    overlap = box_iou(box[None], here.xyxy)[0]
    return int(here.identity[overlap.argmax()]) if overlap.max() >= MARKED_IOU else None


def _standing(truth: IdentifiedBoxes, to_second: Float64, number: int, box: Float64) -> int | None:
    """The person whose feet, mapped over the ground, stand where a box of the other camera stands."""
    here = truth.where(truth.frame == number)
    if not len(here):
        return None
    feet = np.stack([(here.xyxy[:, 0] + here.xyxy[:, 2]) / 2, here.xyxy[:, 3], np.ones(len(here))])  # (3, N)
    mapped = to_second @ feet
    away = np.hypot(mapped[0] / mapped[2] - (box[0] + box[2]) / 2, mapped[1] / mapped[2] - box[3]) / max(box[3] - box[1], 1.0)
    order = np.argsort(away)
    if away[order[0]] > NEAR or (len(away) > 1 and away[order[1]] < CLEARLY_NEARER * away[order[0]] + 0.15):
        return None
    return int(here.identity[order[0]])


# -------------------------------------------------------------------------------------------------- figures


def _figures(labels: LabelledBoxes, closed: dict[str, list[Tracklet]], identity_of: dict[str, str]) -> dict[str, float | int]:
    """Pairs across the cameras, one tracklet of each, both labelled; and IDF1 over all labelled boxes."""
    sides = [[(each.tracklet_id, labels.person_of(each.tracklet_id)) for each in held] for held in closed.values()]
    right = wrong = missed = 0
    for ours, our_person in sides[0]:
        for theirs, their_person in sides[1]:
            if our_person is None or their_person is None:
                continue
            is_linked, is_same = identity_of[ours] == identity_of[theirs], our_person == their_person
            right += is_linked and is_same
            wrong += is_linked and not is_same
            missed += is_same and not is_linked
    return {
        "pairs_right": right,
        "pairs_wrong": wrong,
        "pairs_missed": missed,
        "precision": right / max(right + wrong, 1),
        "recall": right / max(right + missed, 1),
        "idf1": _idf1(labels, identity_of),
        "identities": len(set(identity_of.values())),
    }


def _idf1(labels: LabelledBoxes, identity_of: dict[str, str]) -> float:
    """IDF1 (Ristani et al., 2016) over both cameras, of the boxes whose person is known; others count on neither side."""
    shared: Counter[tuple[str, int]] = Counter()
    for tracklet_id, named in labels.people.items():
        for person, count in named.items():
            shared[identity_of[tracklet_id], person] += count
    identities = sorted({identity for identity, _ in shared})
    people = sorted({person for _, person in shared})
    table = np.zeros((len(identities), len(people)))
    for (identity, person), count in shared.items():
        table[identities.index(identity), people.index(person)] = count
    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].sum() / max(table.sum(), 1.0))


def evaluate_footage(
    gather: Callable[[Path, str], list[Tracklet]],
    video: Path,
    ground_truth: Path,
    other: Path,
    calibration: Path,
    make_linker: Callable[[float], Linker],
    accept: float,
) -> dict[str, Any]:
    """The figures of `sightline evaluate linking`. gather: all revisions that a clip gives, as the camera of a name.

    Raises NotFoundError or BadInputError for the ground truth or the calibration.
    """
    truth = read_mot(ground_truth)
    to_second = np.linalg.inv(read_homography(calibration, other)) @ read_homography(calibration, video)
    return evaluate_linking(gather(video, "first"), gather(other, "second"), truth, to_second, make_linker, accept)
