"""What the index worker writes out of a batch of tracklet messages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pipeline.types import Reembedding, Tracklet


def newest(tracklets: Iterable[Tracklet]) -> list[Tracklet]:
    """The highest revision of each tracklet, in order of first appearance; of equal revisions the first."""
    best: dict[str, Tracklet] = {}
    for tracklet in tracklets:
        known = best.get(tracklet.tracklet_id)
        if known is None or tracklet.revision > known.revision:
            best[tracklet.tracklet_id] = tracklet
    return list(best.values())


def reembedded(tracklet: Tracklet, added: Reembedding) -> Tracklet:
    """The tracklet with another model's vectors beside its own; what it had in that space before is replaced."""
    kept = tuple(embedding for embedding in tracklet.embeddings if embedding.space != added.space)
    versions = tuple(dict.fromkeys((*tracklet.model_versions, added.space)))
    return replace(tracklet, embeddings=kept + added.embeddings, model_versions=versions)
