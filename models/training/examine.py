"""Figures of vectors on people that were held out, and the calibrations that follow from them. numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.detector_retriever.words import unit
from pipeline.evaluate.retrieval import ranked_hits, ranking_figures

Float32 = NDArray[np.float32]
Strings = NDArray[np.str_]
Booleans = NDArray[np.bool_]
Figures = dict[str, dict[str, float]]


def examine_people(
    words: Float32, asked: Strings, text: Float32, body: Float32, person: Strings, camera: Strings, parts: Float32 | None = None
) -> Figures:
    """Rank-1, rank-10 and mAP in percent. words (Q, D) ask for the people ``asked``; text, body (G, D): crops of ``person``, ``camera``.

    parts: similarity of the parts, (Q, G), measured alone and added to the cosines.
    """
    similarity, match = words @ text.T, asked[:, None] == person[None]
    figures = {"text": ranked(similarity, match)}
    for source in sorted({str(name).split("_")[0] for name in person}):
        own, held = np.char.startswith(asked, source), np.char.startswith(person, source)
        figures[f"text, {source}"] = ranked(similarity[own][:, held], match[own][:, held])
    if parts is not None:
        figures["text by parts"] = ranked(parts, match)
        figures["text and parts"] = ranked(similarity + 0.25 * parts, match)
    same = person[:, None] == person[None]
    ignored = same & (camera[:, None] == camera[None])
    figures["other camera"] = ranked(body @ body.T, same, ignored)
    across = (camera == "a", camera == "b")
    figures["camera a asks, b answers"] = ranked((body @ body.T)[across[0]][:, across[1]], same[across[0]][:, across[1]])
    pooled, who = pool(text, person, camera)
    figures["text, person and camera pooled"] = ranked(words @ pooled.T, asked[:, None] == who[None])
    return figures


def ranked(similarity: Float32, is_match: Booleans, is_ignored: Booleans | None = None) -> dict[str, float]:
    """Rank-1, rank-10, mAP in percent, and how many asked and answered."""
    measured = ranking_figures(ranked_hits(similarity, is_match, is_ignored))
    named = {"rank-1": measured.rank(1), "rank-10": measured.rank(10), "mAP": measured.mean_average_precision}
    return {**{name: round(100 * value, 1) for name, value in named.items()}, "queries": measured.queries, "gallery": similarity.shape[1]}


def pool(vectors: Float32, person: Strings, camera: Strings, is_unit: bool = True) -> tuple[Float32, Strings]:
    """The mean vector per person and camera, what a tracklet is in life, of length 1 unless ``is_unit`` is false; and the people."""
    keys = np.array([f"{who}/{where}" for who, where in zip(person, camera, strict=True)])
    names, owner = np.unique(keys, return_inverse=True)
    sums = np.zeros((len(names), vectors.shape[1]), np.float32)
    np.add.at(sums, owner, vectors)
    means = (sums / np.bincount(owner)[:, None]).astype(np.float32)
    return unit(means) if is_unit else means, np.array([name.split("/")[0] for name in names])


def fit_logistic(values: Float32, is_true: Booleans, weight: Float32 | None = None) -> tuple[float, float]:
    """Slope and offset of P(true) = sigmoid(slope x + offset), Newton's method with a little ridge; the slope is kept at 0 or above."""
    inputs = np.stack([values, np.ones_like(values)], 1).astype(np.float64)  # (N, 2)
    weights = np.ones(len(values)) if weight is None else np.asarray(weight, np.float64)
    coefficients = np.zeros(2)
    for _round in range(50):
        chance = 1 / (1 + np.exp(-np.clip(inputs @ coefficients, -30, 30)))
        gradient = inputs.T @ (weights * (chance - is_true)) + 1e-3 * coefficients
        curvature = (inputs * (weights * chance * (1 - chance))[:, None]).T @ inputs + 1e-3 * np.eye(2)
        coefficients -= np.linalg.solve(curvature, gradient)
    return max(float(coefficients[0]), 0.0), float(coefficients[1])


def fit_matches(similarity: Float32, is_match: Booleans, is_ignored: Booleans | None = None) -> tuple[float, float]:
    """The curve from cosine to log-odds of a match, right and wrong ones equally likely: slope and offset."""
    used = np.ones(is_match.shape, bool) if is_ignored is None else ~is_ignored
    values, right = similarity[used], is_match[used]
    balance = np.where(right, 1 / max(right.sum(), 1), 1 / max((~right).sum(), 1)) * right.size / 2
    return fit_logistic(values, right, balance.astype(np.float32))


def auc(values: Float32, is_true: Booleans) -> float:
    """Area under the ROC curve; 0.5 where a class is missing."""
    positive, negative = values[is_true], values[~is_true]
    if not len(positive) or not len(negative):
        return 0.5
    ranks = np.searchsorted(np.sort(negative), positive) + np.searchsorted(np.sort(negative), positive, side="right")
    return float(ranks.mean() / (2 * len(negative)))


def examine_attributes(logits: Float32, wanted: Float32, terms: Sequence[Any]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """AUC and calibration of every attribute head. logits, wanted: (N, T) of people never seen, pooled; wanted NaN where not known."""
    area, slope, offset = np.zeros(len(terms), np.float32), np.ones(len(terms), np.float32), np.zeros(len(terms), np.float32)
    figures = {}
    for index, term in enumerate(terms):
        known = ~np.isnan(wanted[:, index])
        values, is_true = logits[known, index], wanted[known, index] == 1
        area[index] = auc(values, is_true)
        slope[index], offset[index] = fit_logistic(values, is_true)
        # that most carry bags is so there, not elsewhere
        offset[index] -= max(0.0, float(np.log((is_true.sum() + 1) / ((~is_true).sum() + 1))))
        figures["|".join(term)] = {"AUC": round(float(area[index]), 3), "yes": int(is_true.sum()), "no": int((~is_true).sum())}
    return figures, {"attribute_auc": area, "attribute_slope": slope, "attribute_offset": offset}
