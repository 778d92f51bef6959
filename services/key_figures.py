"""How good a long-term key (a face, a voice) is, from similarities alone: ranks, pairs, and searches for people who are not there.

And how the people and their samples lie in a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.open_set import Searches, equal_error_rate, fnir_at_fpir, people_drawn, searches, threshold_at_fpir
from pipeline.evaluate.retrieval import intervals, outcomes, ranked_hits, ranking_figures

Float64 = NDArray[np.float64]
Booleans = NDArray[np.bool_]

FPIR = 0.01
RESAMPLES = 200


def samples_of(folder: Path, endings: Sequence[str]) -> list[tuple[Path, str]]:
    """Every file with one of ``endings`` (lower case) anywhere below DIR/<person>/, with its person, in order; hidden ones are left out."""
    found: list[tuple[Path, str]] = []
    for person in sorted(each for each in folder.glob("*") if each.is_dir() and not each.name.startswith(".")):
        for path in sorted(person.rglob("*")):
            is_hidden = any(part.startswith(".") for part in path.relative_to(person).parts)
            if path.suffix.lower() in endings and not is_hidden and path.is_file():
                found.append((path, person.name))
    return found


def key_figures(similarity: Float64, is_match: Booleans, is_own: Booleans, person: NDArray[np.str_], threshold: float) -> dict[str, Any]:
    """Every probe searched in the gallery without itself; rates are parts of 1, None where nothing was compared.

    similarity: (Q, G); is_match: of one person; is_own: the probe's own sample, left out; person: (Q,) of the probes; threshold: where
    the same and another person are equally likely by the calibration. Intervals are 95 %, over people.
    """
    hits = ranked_hits(similarity, is_match, is_own)
    figures = ranking_figures(hits)
    asked = searches(similarity, is_match, is_own)
    genuine, impostor = similarity[is_match & ~is_own], similarity[~is_match & ~is_own]
    measured: dict[str, Any] = dict.fromkeys(
        ("EER", "rank_1", "rank_5", "mAP", "FNIR_at_FPIR_1_percent", "threshold_at_FPIR_1_percent", "false_match_rate")
    )
    measured |= {"false_non_match_rate": None, "queries": figures.queries, "gallery": similarity.shape[1]}
    if figures.queries:
        measured |= {f"rank_{k}": round(figures.rank(k), 4) for k in (1, 5)}
        measured["mAP"] = round(figures.mean_average_precision, 4)
    if len(impostor):
        measured["false_match_rate"] = round(float((impostor >= threshold).mean()), 5)
    if len(genuine):
        measured["false_non_match_rate"] = round(float((genuine < threshold).mean()), 5)
    if len(genuine) and len(impostor) and np.isfinite(asked.strangers).all():
        measured["EER"] = round(equal_error_rate(genuine, impostor), 4)
        measured["FNIR_at_FPIR_1_percent"] = round(fnir_at_fpir(asked.mated, asked.strangers, FPIR), 4)
        measured["threshold_at_FPIR_1_percent"] = round(threshold_at_fpir(asked.strangers, FPIR), 4)
        measured["intervals"] = _intervals(hits, similarity, is_match, is_own, person, asked)
    return measured


def _intervals(
    hits: Sequence[Booleans], similarity: Float64, is_match: Booleans, is_own: Booleans, person: NDArray[np.str_], asked: Searches
) -> dict[str, list[float]]:
    """Of EER, rank-1, mAP and FNIR, over the people asked for."""
    result = outcomes(hits)
    is_there = result.first > 0
    bounds = intervals(np.stack([result.within(1), result.precision], axis=1)[is_there], person[is_there])  # (2, 2)
    drawn: list[tuple[float, float]] = []
    for rows in people_drawn(person, RESAMPLES):
        mine, others = is_match[rows] & ~is_own[rows], ~is_match[rows] & ~is_own[rows]
        if mine.any() and others.any() and not np.isnan(asked.mated[rows]).all():
            eer = equal_error_rate(similarity[rows][mine], similarity[rows][others])
            drawn.append((eer, fnir_at_fpir(asked.mated[rows], asked.strangers[rows], FPIR)))
    eer_and_fnir = np.percentile(np.array(drawn), (2.5, 97.5), axis=0).T  # (2, 2)
    named = zip(("EER", "rank_1", "mAP", "FNIR_at_FPIR_1_percent"), (eer_and_fnir[0], *bounds, eer_and_fnir[1]), strict=True)
    return {name: [round(float(bound), 4) for bound in pair] for name, pair in named}
