"""A person's way over the cameras, from the tracklets that are probably theirs."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.types import Stay, Tracklet

SAME_STAY_S = 30.0  # tracks broken by a pillar or a crowd are one stay


def trajectory(tracklets: Iterable[Tracklet], same_stay_s: float = SAME_STAY_S) -> tuple[Stay, ...]:
    """The stays, by time: tracklets of one camera with less than ``same_stay_s`` between them are one."""
    made: list[Stay] = []
    for tracklet in sorted(tracklets, key=lambda each: (each.started_at_ns, each.ended_at_ns, each.tracklet_id)):
        last = made[-1] if made else None
        if last is not None and last.camera_id == tracklet.camera_id and tracklet.started_at_ns - last.to_ns <= same_stay_s * 1e9:
            ids = (*last.tracklet_ids, tracklet.tracklet_id)
            made[-1] = Stay(last.camera_id, last.from_ns, max(last.to_ns, tracklet.ended_at_ns), ids)
        else:
            made.append(Stay(tracklet.camera_id, tracklet.started_at_ns, tracklet.ended_at_ns, (tracklet.tracklet_id,)))
    return tuple(made)
