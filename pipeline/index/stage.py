"""What the index worker writes out of a batch of tracklet messages."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.types import Tracklet


def newest(tracklets: Iterable[Tracklet]) -> list[Tracklet]:
    """The highest revision of each tracklet, in order of first appearance; of equal revisions the first."""
    best: dict[str, Tracklet] = {}
    for tracklet in tracklets:
        known = best.get(tracklet.tracklet_id)
        if known is None or tracklet.revision > known.revision:
            best[tracklet.tracklet_id] = tracklet
    return list(best.values())
