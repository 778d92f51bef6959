"""Train models/weights/phrases.npz and body.npz: python -m models.training.phrases --data DIR --network mobilenetv2.onnx --out DIR.

Frozen features (MobileNetV2 stripes, colour names, histograms) and small maps on top, in three steps: words and looks in one space
(contrastive, captions against crops), heads for plain attributes (logistic, "not mentioned" is not "absent"), and the body vector
(contrastive, one camera against the other). First on people of whom 152 are held out, for the figures and the calibration; then on all.
Needs torch (extra "torch") for the gradients only; one thread, fixed seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from models.body import MAP_CHANNELS, LookFeatures, raw_features, unit
from models.phrases import OTHER_WORD, PADDING
from pipeline.errors import UnreadableMediaError
from pipeline.evaluate.retrieval import ranked_hits, ranking_figures
from pipeline.search.description import FORBIDDEN, Description, Term, parse

Float32 = NDArray[np.float32]

PHRASE_SPACE, BODY_SPACE = "phrases@1", "mobilenet-stripes@1"
HELD_OUT_PEOPLE, FOLDS, COPIES = 152, 4, 2
COMPONENTS, DIMENSIONS, WORD_SIZE, HEARD = 96, 256, 128, 256
LONGEST = 60  # words
BATCH, LEARNING_RATE, WEIGHT_DECAY, TEMPERATURE = 128, 1e-3, 1e-2, 0.05
MENTIONED_OFTEN, RARE_TERM, RARE_WORD = 0.3, 8, 2
NO_HEADS = ("hair colour", "hair tone")  # nearly everybody in the data has black hair: nothing to learn for other places
GROUPS = ("upper colour", "lower colour", "shoes colour", "bag colour", "hair colour", "upper tone", "lower tone", "shoes tone", "person")


@dataclass
class Data:
    """Crops with their features, and what people wrote about them.

    person, camera: of each row; is_original: False for an altered copy; stripes, colours: float16; captions: (person, rows or [], text).
    """

    person: NDArray[np.str_]
    camera: NDArray[np.str_]
    is_original: NDArray[np.bool_]
    stripes: NDArray[np.float16]
    colours: NDArray[np.float16]
    captions: list[tuple[str, list[int], str]]
    is_human: list[bool]


def read(data: Path, network: Path, cache: Path | None) -> Data:
    """Crops, features (from ``cache`` where it is there) and captions of the research folder."""
    names = sorted(str(path.relative_to(data / "persons")) for path in (data / "persons").glob("*/*.jpg"))
    stripes, colours = _features_of(data, names, network, cache)
    rows_of = {name: [index + copy * len(names) for copy in range(1 + COPIES)] for index, name in enumerate(names)}
    captions: list[tuple[str, list[int], str]] = []
    human = _lines(data / "captions.jsonl")
    captions += [(line["person"], [row for name in line["images"] for row in rows_of.get(name, [])], line["caption"]) for line in human]
    for line in _lines(data / "captions_written.jsonl"):
        if not line["doubtful"]:
            captions += [(line["person"], [], text) for text in [*line["captions"], ", ".join(line["phrases"])]]
    person = np.array([name.split("/")[0] for name in names] * (1 + COPIES))
    camera = np.array([name.split("/")[1][0] for name in names] * (1 + COPIES))
    is_human = [True] * len(human) + [False] * (len(captions) - len(human))
    return Data(person, camera, np.arange(len(person)) < len(names), stripes, colours, captions, is_human)


def _features_of(data: Path, names: Sequence[str], network: Path, cache: Path | None) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Stripes and colours of every crop, then of every altered copy, in the same order."""
    if cache is not None and cache.is_file():
        with np.load(cache) as file:
            return file["stripes"], file["colours"]
    features, random = LookFeatures(network), np.random.default_rng(0)
    stripes, colours = [], []
    for copy in range(1 + COPIES):
        for name in names:
            picture = _picture(data / "persons" / name)
            made = features.of([altered(picture, random) if copy else picture])
            stripes.append(made[0].astype(np.float16))
            colours.append(made[1].astype(np.float16))
    joined = np.concatenate(stripes), np.concatenate(colours)
    if cache is not None:
        np.savez(cache, stripes=joined[0], colours=joined[1])
    return joined


def altered(picture: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """As another camera and detector might have given it: other light and tint, a looser or tighter box, mirrored, less sharp."""
    height, width = picture.shape[:2]
    border = cv2.copyMakeBorder(picture, height // 8, height // 8, width // 6, width // 6, cv2.BORDER_REPLICATE)
    top, bottom = random.integers(0, height // 6, 2)
    left, right = random.integers(0, width // 4, 2)
    shot: Any = border[top : len(border) - bottom, left : border.shape[1] - right]
    if random.random() < 0.5:
        shot = shot[:, ::-1]
    if random.random() < 0.5:
        shrink = random.uniform(0.35, 0.9)
        small = cv2.resize(np.ascontiguousarray(shot), None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        shot = cv2.resize(small, (shot.shape[1], shot.shape[0]), interpolation=cv2.INTER_LINEAR)
    light = (np.asarray(shot, np.float32) / 255) ** random.uniform(0.75, 1.3) * random.uniform(0.85, 1.15)
    tinted: NDArray[np.uint8] = np.clip(light * random.uniform(0.92, 1.08, 3) * 255, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(tinted)


def _picture(path: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(path))
    if picture is None:
        raise UnreadableMediaError(f"{path.name} must be a picture")
    return np.asarray(picture, np.uint8)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


@dataclass
class Features:
    """Standardised features of all crops and what undoes the standardising when a map is exported."""

    values: torch.Tensor  # (N, F)
    mean: Float32  # (1280,)
    basis: Float32  # (1280, K)
    centre: Float32  # (F,)
    spread: Float32  # (F,)

    @classmethod
    def of(cls, data: Data, is_used: NDArray[np.bool_]) -> Features:
        rows = data.stripes[np.flatnonzero(is_used & data.is_original)[::2], :, :MAP_CHANNELS].reshape(-1, MAP_CHANNELS).astype(np.float32)
        mean = rows.mean(0)
        variance, vectors = np.linalg.eigh(np.cov((rows - mean).T))
        variance, vectors = variance[::-1][:COMPONENTS], vectors[:, ::-1][:, :COMPONENTS]
        basis = (vectors / np.sqrt(variance + 1e-2 * variance[0])).astype(np.float16).astype(np.float32)  # as it is shipped
        pieces = [slice(start, start + 2048) for start in range(0, len(data.person), 2048)]  # all at once would fill the memory
        parts = ((data.stripes[piece].astype(np.float32), data.colours[piece].astype(np.float32)) for piece in pieces)
        raw = np.concatenate([raw_features(stripes, colours, mean, basis) for stripes, colours in parts])
        centre, spread = raw[is_used].mean(0), raw[is_used].std(0) + 1e-3
        return cls(torch.tensor((raw - centre) / spread), mean, basis, centre, spread)

    def export(self, linear: nn.Linear, name: str) -> dict[str, NDArray[Any]]:
        """The linear map on raw features: standardising folded in."""
        weight = linear.weight.detach().numpy().T / self.spread[:, None]  # (F, D)
        bias = linear.bias.detach().numpy() - self.centre @ weight
        return {f"{name}_weight": weight.astype(np.float16), f"{name}_bias": bias.astype(np.float32)}


class TextNetwork(nn.Module):  # type: ignore[misc]
    """Word vectors, a convolution over three words, maximum over the words; plus a vector for every parsed term."""

    def __init__(self, words: int, terms: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, WORD_SIZE, padding_idx=PADDING)
        self.convolution = nn.Conv1d(WORD_SIZE, HEARD, 3, padding=1)
        self.weight = nn.Linear(HEARD, DIMENSIONS)
        self.terms = nn.Linear(terms, DIMENSIONS, bias=False)
        nn.init.normal_(self.words.weight, std=0.1)

    def forward(self, ids: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
        if self.training:
            ids = torch.where((torch.rand(ids.shape) < 0.1) & (ids != PADDING), OTHER_WORD, ids)
            terms = functional.dropout(terms, 0.2)
        vectors = self.words(ids) * (ids != PADDING)[..., None]  # (B, L, E)
        heard = torch.relu(self.convolution(vectors.transpose(1, 2)))  # (B, H, L)
        heard = heard.masked_fill((ids == PADDING)[:, None], 0).amax(2)  # (B, H)
        made: torch.Tensor = self.weight(functional.dropout(heard, 0.3, self.training)) + self.terms(terms)
        return made

    def export(self) -> dict[str, NDArray[Any]]:
        kernel = self.convolution.weight.detach().numpy()  # (H, E, 3)
        arrays = {
            "word_vectors": self.words.weight.detach().numpy(),
            "convolution": kernel.transpose(2, 1, 0).reshape(3 * WORD_SIZE, HEARD),
            "convolution_bias": self.convolution.bias.detach().numpy() if self.convolution.bias is not None else np.zeros(HEARD),
            "word_weight": self.weight.weight.detach().numpy().T,
            "word_bias": self.weight.bias.detach().numpy(),
            "term_vectors": self.terms.weight.detach().numpy().T,
        }
        arrays["word_vectors"][PADDING] = 0
        return {name: values.astype(np.float16) for name, values in arrays.items()}


@dataclass
class Vocabulary:
    """Ids of words and of terms."""

    words: dict[str, int]
    terms: dict[Term, int]

    @classmethod
    def of(cls, descriptions: Sequence[Description]) -> Vocabulary:
        words = Counter(word for description in descriptions for word in set(description.words))
        terms = Counter(term for description in descriptions for term in description.terms())
        kept = sorted(word for word, count in words.items() if count >= RARE_WORD and word not in FORBIDDEN)
        known = {"<padding>": PADDING, "<other>": OTHER_WORD, **{word: index + 2 for index, word in enumerate(kept)}}
        return cls(known, {term: index for index, term in enumerate(sorted(t for t, count in terms.items() if count >= RARE_TERM))})

    def encode(self, descriptions: Sequence[Description]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.zeros(len(descriptions), LONGEST, dtype=torch.long)
        signs = torch.zeros(len(descriptions), len(self.terms))
        for row, description in enumerate(descriptions):
            for column, word in enumerate(description.words[:LONGEST]):
                ids[row, column] = self.words.get(word, OTHER_WORD)
            for term, sign in description.terms().items():
                if term in self.terms:
                    signs[row, self.terms[term]] = sign
        return ids, signs


def part_of(text: str, random: np.random.Generator) -> str:
    """About half of the clauses of a caption, so that short descriptions are learnt too; "" when there is only one."""
    clauses = [clause.strip() for clause in re.split(r"[.,;]| and | with ", text) if len(clause.split()) > 1]
    if len(clauses) < 2:
        return ""
    kept = sorted(random.permutation(len(clauses))[: random.integers(1, max(2, len(clauses) // 2 + 1))])
    return ", ".join(clauses[position] for position in kept)


def _contrast(similarity: torch.Tensor, person: torch.Tensor) -> torch.Tensor:
    """Cross-entropy both ways; everything of the same person is a match."""
    target = (person[:, None] == person[None]).float()
    target = target / target.sum(1, keepdim=True)
    return -(target * similarity.log_softmax(1)).sum(1).mean() - (target * similarity.T.log_softmax(1)).sum(1).mean()


def train_phrases(
    data: Data, features: Features, is_used: NDArray[np.bool_], epochs: int, seed: int
) -> tuple[TextNetwork, nn.Linear, Vocabulary]:
    """Words and looks in one space, on the people of the crops ``is_used``."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    people = {name: index for index, name in enumerate(sorted(set(data.person[is_used])))}
    captions = [caption for caption in data.captions if caption[0] in people]
    parts = [(name, crops, part_of(text, random)) for name, crops, text in captions if random.random() < 1 / 3]
    captions = captions + [part for part in parts if part[2]]
    descriptions = [parse(text) for _, _, text in captions]
    vocabulary = Vocabulary.of(descriptions)
    ids, signs = vocabulary.encode(descriptions)
    crops_of = defaultdict(list)
    for index, name in enumerate(data.person):
        crops_of[str(name)].append(index)
    owner = torch.tensor([people[name] for name, _, _ in captions])
    text, image = TextNetwork(len(vocabulary.words), len(vocabulary.terms)), nn.Linear(features.values.shape[1], DIMENSIONS)
    scale = nn.Parameter(torch.tensor(float(np.log(1 / TEMPERATURE))))
    batches = len(captions) // BATCH
    step, schedule = _optimiser([*text.parameters(), *image.parameters(), scale], epochs * batches)
    for _epoch in range(epochs):
        order = random.permutation(len(captions))
        for number in range(batches):
            rows = order[number * BATCH : (number + 1) * BATCH]
            crops = [_crop_for(captions[row], crops_of, random) for row in rows]
            looks = functional.normalize(image(functional.dropout(features.values[crops], 0.5)))
            words = functional.normalize(text(ids[rows], signs[rows]))
            _step(_contrast(words @ looks.T * scale.exp(), owner[rows]), step, schedule)
    return text.eval(), image, vocabulary


def _crop_for(caption: tuple[str, list[int], str], crops_of: Mapping[str, list[int]], random: np.random.Generator) -> int:
    """A crop the caption was written for, or (three in ten) any of that person."""
    name, crops, _ = caption
    choice = crops if crops and random.random() < 0.7 else crops_of[name]
    return choice[random.integers(len(choice))]


def _optimiser(parameters: list[nn.Parameter], steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    step = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    return step, torch.optim.lr_scheduler.OneCycleLR(step, LEARNING_RATE, total_steps=steps, pct_start=0.15)


def _step(loss: torch.Tensor, step: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    step.zero_grad()
    loss.backward()
    step.step()
    schedule.step()


def train_body(data: Data, features: Features, is_used: NDArray[np.bool_], seed: int, rounds: int = 800) -> nn.Linear:
    """The body vector: crops of one person in the two cameras against those of everybody else in the batch."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    crops: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index in np.flatnonzero(is_used & data.is_original):  # with altered copies rank-1 fell from 46 to 42 on unseen people
        crops[str(data.person[index])][str(data.camera[index])].append(int(index))
    people = [name for name, cameras in sorted(crops.items()) if len(cameras) == 2]
    image = nn.Linear(features.values.shape[1], DIMENSIONS)
    scale = nn.Parameter(torch.tensor(float(np.log(1 / TEMPERATURE))))
    step, schedule = _optimiser([*image.parameters(), scale], rounds)
    for _round in range(rounds):
        drawn = random.permutation(len(people))[:BATCH]
        pairs = [[random.choice(shots) for shots in crops[people[person]].values()] for person in drawn]
        first, second = (
            functional.normalize(image(functional.dropout(features.values[[pair[side] for pair in pairs]], 0.5))) for side in (0, 1)
        )
        _step(_contrast(first @ second.T * scale.exp(), torch.arange(len(pairs))), step, schedule)
    return image


def attribute_targets(data: Data) -> tuple[list[Term], dict[str, Float32]]:
    """For every described person and term: 1 said often, 0 never said where it would have been, NaN not known."""
    said: dict[str, Counter[Term]] = defaultdict(Counter)
    captions: Counter[str] = Counter()
    for name, _, text in data.captions:
        said[name].update(term for term, sign in parse(text).terms().items() if sign > 0)
        captions[name] += 1
    people = Counter(term for name, counts in said.items() for term, count in counts.items() if count / captions[name] >= MENTIONED_OFTEN)
    terms = sorted(term for term, count in people.items() if count >= 2 * RARE_TERM and term[0] not in NO_HEADS)
    targets = {}
    for name, count in captions.items():
        row = np.full(len(terms), np.nan, np.float32)
        groups = {term[0] for term in said[name]}
        for index, term in enumerate(terms):
            if said[name][term] / count >= MENTIONED_OFTEN:
                row[index] = 1
            elif said[name][term] == 0 and (term[0] in groups if term[0] in GROUPS else count >= 3):
                row[index] = 0  # another colour was named there; or nobody of several writers saw it
        targets[name] = row
    return terms, targets


def train_heads(data: Data, features: Features, is_used: NDArray[np.bool_], seed: int, rounds: int = 500) -> tuple[nn.Linear, list[Term]]:
    """One logistic head per attribute."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    terms, targets = attribute_targets(data)
    rows = np.array([index for index in np.flatnonzero(is_used) if str(data.person[index]) in targets])
    wanted = torch.tensor(np.stack([targets[str(data.person[index])] for index in rows]))
    head = nn.Linear(features.values.shape[1], len(terms))
    step, schedule = _optimiser(list(head.parameters()), rounds)
    for _round in range(rounds):
        batch = random.integers(0, len(rows), 2 * BATCH)
        logits = head(functional.dropout(features.values[rows[batch]], 0.5))
        target = wanted[batch]
        known = ~torch.isnan(target)
        loss = functional.binary_cross_entropy_with_logits(logits, torch.nan_to_num(target), reduction="none")
        _step((loss * known).sum() / known.sum(), step, schedule)
    return head, terms


def fit_logistic(values: Float32, is_true: NDArray[np.bool_], weight: Float32 | None = None) -> tuple[float, float]:
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


def auc(values: Float32, is_true: NDArray[np.bool_]) -> float:
    """Area under the ROC curve; 0.5 where a class is missing."""
    positive, negative = values[is_true], values[~is_true]
    if not len(positive) or not len(negative):
        return 0.5
    ranks = np.searchsorted(np.sort(negative), positive) + np.searchsorted(np.sort(negative), positive, side="right")
    return float(ranks.mean() / (2 * len(negative)))


@dataclass
class Pooled:
    """One row per person and camera: what a tracklet is in life."""

    person: NDArray[np.str_]
    values: Float32

    @classmethod
    def of(cls, data: Data, rows: NDArray[np.intp], values: Float32) -> Pooled:
        keys = sorted({(str(data.person[row]), str(data.camera[row])) for row in rows})
        own = np.array([f"{data.person[row]}/{data.camera[row]}" for row in rows])
        return cls(np.array([name for name, _ in keys]), np.stack([values[own == f"{name}/{side}"].mean(0) for name, side in keys]))


def examine(data: Data, held_out: set[str], epochs: int, seed: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Train without the people ``held_out``, measure on them: figures, and the calibration that ships."""
    is_held_out = np.isin(data.person, sorted(held_out))
    rows = np.flatnonzero(is_held_out & data.is_original)
    features = Features.of(data, ~is_held_out)
    text, image, vocabulary = train_phrases(data, features, ~is_held_out, epochs, seed)
    queries = [caption for caption, human in zip(data.captions, data.is_human, strict=True) if human and caption[0] in held_out]
    with torch.no_grad():
        words = unit(text(*vocabulary.encode([parse(caption) for _, _, caption in queries])).numpy())
        looks = unit(image(features.values[rows]).numpy())
    asked = np.array([name for name, _, _ in queries])
    tracklets = Pooled.of(data, rows, looks)
    similarity = words @ unit(tracklets.values).T
    is_match = asked[:, None] == tracklets.person[None]
    figures: dict[str, Any] = {"text, crops": _figures(words @ looks.T, asked[:, None] == data.person[rows][None])}
    for source in sorted({name.split("_")[0] for name in held_out}):
        own, gallery = np.char.startswith(asked, source), np.char.startswith(data.person[rows], source)
        chosen = (words[own] @ looks[gallery].T, asked[own][:, None] == data.person[rows][gallery][None])
        figures[f"text, crops, {source} only"] = _figures(*chosen)
    figures["text, person and camera pooled"] = _figures(similarity, is_match)
    balance = np.where(is_match, 1 / is_match.sum(), 1 / (~is_match).sum()) * is_match.size / 2
    slope, offset = fit_logistic(similarity.ravel(), is_match.ravel(), balance.ravel().astype(np.float32))
    calibration: dict[str, NDArray[Any]] = {"calibration": np.array([slope, offset], np.float32)}
    body = train_body(data, features, ~is_held_out, seed)
    with torch.no_grad():
        vectors = unit(body(features.values[rows]).numpy())
    figures["re-identification, other camera"] = _figures(vectors @ vectors.T, *_across(data, rows))
    figures["re-identification, the same features raw"] = _figures(*_raw(features, rows), *_across(data, rows))
    figures["attributes"], heads = _examine_heads(data, features, seed)
    return figures, {**calibration, **heads}


def _raw(features: Features, rows: NDArray[np.intp]) -> tuple[Float32]:
    vectors = unit(features.values[rows].numpy())
    return (vectors @ vectors.T,)


def _across(data: Data, rows: NDArray[np.intp]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Matches (same person) and what is ignored (same camera of the same person, as in the usual re-identification exam)."""
    same = data.person[rows][:, None] == data.person[rows][None]
    return same, same & (data.camera[rows][:, None] == data.camera[rows][None])


def _figures(similarity: Float32, is_match: NDArray[np.bool_], is_ignored: NDArray[np.bool_] | None = None) -> dict[str, float]:
    measured = ranking_figures(ranked_hits(similarity, is_match, is_ignored))
    named = {"rank-1": measured.rank(1), "rank-10": measured.rank(10), "mAP": measured.mean_average_precision}
    return {**{name: round(100 * value, 1) for name, value in named.items()}, "queries": measured.queries, "gallery": similarity.shape[1]}


def _examine_heads(data: Data, features: Features, seed: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Area under the curve and calibration of every attribute, each person examined by a head that never saw them (FOLDS folds)."""
    terms, targets = attribute_targets(data)
    people = np.random.default_rng(seed).permutation(sorted(targets))
    examined, wanted = [], []
    for fold in range(FOLDS):
        is_out = np.isin(data.person, people[fold::FOLDS])
        head, _ = train_heads(data, features, ~is_out, seed)
        rows = np.flatnonzero(is_out & data.is_original)
        with torch.no_grad():
            pooled = Pooled.of(data, rows, head(features.values[rows]).numpy())
        examined.append(pooled.values)
        wanted.append(np.stack([targets[str(name)] for name in pooled.person]))
    return _head_figures(terms, np.concatenate(examined), np.concatenate(wanted))


def _head_figures(terms: Sequence[Term], logits: Float32, wanted: Float32) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    area, slope, offset = np.zeros(len(terms), np.float32), np.ones(len(terms), np.float32), np.zeros(len(terms), np.float32)
    figures = {}
    for index, term in enumerate(terms):
        known = ~np.isnan(wanted[:, index])
        values, is_true = logits[known, index], wanted[known, index] == 1
        area[index] = auc(values, is_true)
        slope[index], offset[index] = fit_logistic(values, is_true)
        offset[index] -= max(
            0.0, float(np.log((is_true.sum() + 1) / ((~is_true).sum() + 1)))
        )  # that most carry bags is so there, not elsewhere
        figures["|".join(term)] = {"AUC": round(float(area[index]), 3), "yes": int(is_true.sum()), "no": int((~is_true).sum())}
    return figures, {"head_auc": area, "head_slope": slope, "head_offset": offset}


def fit_all(data: Data, calibration: Mapping[str, NDArray[Any]], epochs: int, seed: int, out: Path) -> None:
    """Train on everybody and write phrases.npz and body.npz."""
    everybody = np.ones(len(data.person), bool)
    features = Features.of(data, everybody)
    text, image, vocabulary = train_phrases(data, features, everybody, epochs, seed)
    head, terms = train_heads(data, features, everybody, seed)
    shared = {"mean": features.mean.astype(np.float32), "basis": features.basis.astype(np.float16)}
    out.mkdir(parents=True, exist_ok=True)
    phrases: dict[str, Any] = {
        "space": np.array(PHRASE_SPACE),
        "words": np.array(list(vocabulary.words)),
        "terms": np.array(["|".join(term) for term in vocabulary.terms]),
        "head_terms": np.array(["|".join(term) for term in terms]),
    }
    phrases |= {**shared, **features.export(image, "image"), **features.export(head, "head"), **text.export(), **calibration}
    np.savez_compressed(out / "phrases.npz", **phrases)
    body = train_body(data, features, everybody, seed)
    looks: dict[str, Any] = {"space": np.array(BODY_SPACE), **shared, **features.export(body, "image")}
    np.savez_compressed(out / "body.npz", **looks)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print the held-out figures as JSON, write the weights."""
    parser = argparse.ArgumentParser(prog="python -m models.training.phrases", description="Train phrases.npz and body.npz.")
    parser.add_argument("--data", type=Path, required=True, help="folder with persons/, captions.jsonl, captions_written.jsonl")
    parser.add_argument("--network", type=Path, required=True, help="MobileNetV2 as ONNX (sightline weights fetch mobilenetv2-imagenet)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--cache", type=Path, help="file that keeps the features between runs")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examine-only", action="store_true", help="only measure on held-out people")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started_s = time.monotonic()
    data = read(chosen.data, chosen.network, chosen.cache)
    described = sorted({caption[0] for caption, human in zip(data.captions, data.is_human, strict=True) if human})
    held_out = set(np.random.default_rng(chosen.seed).permutation(described)[:HELD_OUT_PEOPLE].tolist())
    figures, calibration = examine(data, held_out, chosen.epochs, chosen.seed)
    if not chosen.examine_only:
        fit_all(data, calibration, chosen.epochs, chosen.seed, chosen.out)
    print(json.dumps({"held out people": len(held_out), "elapsed_s": round(time.monotonic() - started_s), **figures}, indent=2))


if __name__ == "__main__":
    main()
