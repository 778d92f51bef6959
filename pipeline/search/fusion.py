"""Several probe parts, one order: the candidates of every part, compared with all parts, weighed and sorted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.calibration import Calibration, fuse
from pipeline.probes import Part
from pipeline.types import Tracklet

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """Candidates in order: their ids, log_odds (C,), and similarities (C, P) with nan where there was nothing to compare."""

    tracklet_ids: tuple[str, ...]
    log_odds: Float
    similarities: Float


def similarities_to(parts: Sequence[Part], hits: Sequence[Mapping[str, float]], tracklets: Mapping[str, Tracklet]) -> Fused:
    """The cosine of every candidate with every part, (C, P), in the order of ``tracklets``; log-odds still 0.

    hits: what the index answered per part, id -> cosine; what it did not answer is computed from the stored vectors.
    """
    ids = tuple(tracklets)
    table = np.full((len(ids), len(parts)), np.nan)  # (C, P)
    for column, (part, answered) in enumerate(zip(parts, hits, strict=True)):
        for row, tracklet_id in enumerate(ids):
            if tracklet_id in answered:
                table[row, column] = answered[tracklet_id]
                continue
            table[row, column] = stored_similarity(part, tracklets[tracklet_id])
    return Fused(ids, np.zeros(len(ids)), table)


def stored_similarity(part: Part, tracklet: Tracklet) -> float:
    """The cosine of a part with a tracklet's vector of the same space, nan where it has none."""
    for embedding in tracklet.embeddings:
        if embedding.space == part.embedding.space and embedding.modality == part.embedding.modality:
            return float(embedding.vector @ part.embedding.vector)
    return float("nan")


def in_order(parts: Sequence[Part], compared: Fused, calibration: Calibration) -> Fused:
    """The candidates by weighted log-odds, best first; equal ones by id, so that the same question gets the same answer."""
    odds = np.column_stack(
        [
            calibration.log_odds(part.embedding.modality, part.embedding.space, compared.similarities[:, column], part.is_picture)
            for column, part in enumerate(parts)
        ]
    )  # (C, P)
    weights = np.asarray([part.weight for part in parts])  # (P,)
    is_negative = np.asarray([part.is_negative for part in parts])  # (P,)
    fused = fuse(odds, weights, is_negative)  # (C,)
    # Calibration is clipped, so equal log-odds are real near the ends: the plain mean cosine decides there, then the id.
    cosine = np.nan_to_num(compared.similarities) @ np.where(is_negative, -weights, weights)  # (C,)
    order = sorted(
        range(len(fused)), key=lambda row: (-round(float(fused[row]), 9), -round(float(cosine[row]), 9), compared.tracklet_ids[row])
    )
    return Fused(tuple(compared.tracklet_ids[row] for row in order), fused[order], compared.similarities[order])
