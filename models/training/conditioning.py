"""The second step of training: the query-conditioned heads on composed scenes, and how much of them is added to the query-free cosine."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch.nn import functional

from models.detector_retriever.conditioning import (
    CROP_COLUMNS,
    CROP_ROWS,
    PHRASES,
    Conditioning,
    centre_cells,
    regions_of_grid,
)
from models.detector_retriever.losses import part_similarity
from models.detector_retriever.network import Heard
from models.detector_retriever.words import sub_sentences
from models.nanodet import MEAN_BGR, STD_BGR
from models.training.captions import Caption
from models.training.config import Config
from models.training.loop import Curves, Place, Schedule, seed_step
from models.training.people import WELL_VISIBLE, People, PeopleObjective, looks_of, said_of, text_parts
from pipeline.search.description import Term, parse

Float32 = NDArray[np.float32]

OTHER_CELLS = 64  # of a scene, beside those of people
Say = Callable[[str], None]


@dataclass
class Scenes:
    """Composed scenes: maps (S, C, h, w); row, scene, crop, box (xyxy, network px) of every person in them; people of each scene."""

    coarse: NDArray[np.float16]
    halved: NDArray[np.float16]
    pixels: NDArray[np.uint8]
    crop: NDArray[np.intp]
    box: Float32
    visible: Float32
    rows_of: dict[int, list[int]]
    trained: list[int]
    held_out: list[int]

    @classmethod
    def read(cls, work: Path, people: People) -> Scenes:
        table = np.load(work / "people.npy")
        rows_of: dict[int, list[int]] = defaultdict(list)
        for row, (scene, visible) in enumerate(zip(table[:, 0].astype(int), table[:, 6], strict=True)):
            if visible >= WELL_VISIBLE:
                rows_of[int(scene)].append(row)
        crop = table[:, 1].astype(np.intp)
        is_held = {scene: str(people.person[crop[rows[0]]]) in people.held_out for scene, rows in rows_of.items()}
        return cls(
            np.load(work / "scenes_coarse.npy", mmap_mode="r"),
            np.load(work / "scenes_halved.npy", mmap_mode="r"),
            np.load(work / "scenes_pixels.npy", mmap_mode="r"),
            crop,
            table[:, 2:6].astype(np.float32),
            table[:, 6].astype(np.float32),
            rows_of,
            [scene for scene, held in is_held.items() if not held],
            [scene for scene, held in is_held.items() if held],
        )

    def maps(self, scenes: Sequence[int], device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps of stride 16: coarse (B, 256, h, w) and the middle one halved (B, 128, h, w)."""
        coarse, halved = (torch.from_numpy(np.stack([held[scene] for scene in scenes])).float() for held in (self.coarse, self.halved))
        return coarse.to(device), halved.to(device)

    def cells_of(self, rows: Sequence[int], grid: tuple[int, int], device: str) -> torch.Tensor:
        """The cells that hold the centres of some people."""
        return centre_cells(torch.from_numpy(self.box[list(rows)]), *grid).to(device)


def clause_terms(caption: Caption, terms: Mapping[Term, int]) -> Float32:
    """Which terms each of the first PHRASES sub-sentences holds, (T, terms)."""
    found = np.zeros((PHRASES, len(terms)), np.float32)
    for place, clause in enumerate(sub_sentences(caption.text)[:PHRASES]):
        for term in parse(clause).terms():
            if term in terms:
                found[place, terms[term]] = 1
    return found


def train_conditioning(
    people: People, objective: PeopleObjective, config: Config, source: Path, work: Path, place: Place, say: Say
) -> Conditioning:
    """Gates, grid attention and the proxy tasks; words and ID-Net stay as they are. source: the folder of the scenes."""
    torch.manual_seed(config.seed + 1)
    rates, scenes = config.conditioning, Scenes.read(source, people)
    net = Conditioning(len(people.vocabulary.terms))
    net.to(place.device)
    schedule = Schedule(
        net, [{"params": list(net.parameters()), "lr": rates.learning_rate}], rates.steps, 1e-2, work / "conditioning.pt", place
    )
    curves, started, begun = Curves(work / "curves.csv", place), time.monotonic(), schedule.step
    sums: dict[str, float] = defaultdict(float)
    objective.eval()
    while schedule.step < rates.steps:
        seed_step(config.seed, schedule.step, place.rank)
        random = np.random.default_rng([config.seed, 2, schedule.step, place.rank])
        losses = _scene_losses(net, objective, people, scenes, config, random, place)
        schedule.advance(sum((value for value in losses.values()), torch.zeros((), device=place.device)))
        for name, each in losses.items():
            sums[name] += float(each.detach()) / 50
        if schedule.step % 50 == 0:
            curves.note("conditioning", schedule.step, sums)
            took = (time.monotonic() - started) / (schedule.step - begun)
            say(f"conditioning {schedule.step}/{rates.steps}  {took:.2f} s a step  " + "  ".join(f"{k} {v:.3f}" for k, v in sums.items()))
            sums.clear()
        if place.rank == 0 and (schedule.step % 100 == 0 or schedule.step == rates.steps):
            schedule.save()
    net.eval()
    return net


def _scene_losses(
    net: Conditioning, objective: PeopleObjective, people: People, scenes: Scenes, config: Config, random: np.random.Generator, place: Place
) -> dict[str, torch.Tensor]:
    """The weighted losses of a batch of scenes."""
    rates, device = config.conditioning, place.device
    drawn = [scenes.trained[number] for number in random.integers(0, len(scenes.trained), rates.scenes)]
    coarse, halved = scenes.maps(drawn, device)
    cells, grid = net.cells(coarse, halved), (coarse.shape[2], coarse.shape[3])
    region = regions_of_grid(*grid).to(device)
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=device))
    for number, scene in enumerate(drawn):
        rows = scenes.rows_of[scene]
        names = [str(people.person[scenes.crop[row]]) for row in rows]
        known = [index for index, name in enumerate(names) if people.captions_of.get(name)]
        chosen = random.permutation(known)[: rates.queries]
        if not len(chosen):
            continue
        captions = [int(random.choice(people.captions_of[names[index]])) for index in chosen]
        with torch.no_grad():
            heard = objective.words(people.said.rows(torch.tensor(captions)).to(device))
        asked = net.asked(heard)
        places = scenes.cells_of(rows, grid, device)  # (N,)
        # the attention sees every cell; what follows it is worked out where people stand and at some cells more
        others = torch.from_numpy(random.choice(cells.shape[1], OTHER_CELLS, replace=False)).to(device)
        used = torch.cat([places, others])  # (K,)
        weight = net.attention(cells[number], asked)  # (Q, T, S)
        fused = net.fused(cells[number][used], weight[:, :, used])  # (Q, K, M)
        confidence = net.confidence(net.shared(fused))[..., 0]  # (Q, K)
        gated = (asked.gates * net.gated.weight) @ cells[number][used].T + net.gated.bias  # (Q, K)
        answer = torch.from_numpy(chosen).to(device)  # (Q,) places among the first N of K
        wanted = (used[None] == places[answer][:, None]).float()  # (Q, K)
        people_here = len(rows)
        if rates.confidence:
            squared = (wanted - confidence.sigmoid()).square().sum(1).mean()  # eq. 3
            named = functional.cross_entropy(confidence[:, :people_here], answer)
            sums["confidence"] = sums["confidence"] + rates.confidence * (squared + named)
        if rates.gates:
            named = functional.cross_entropy(gated[:, :people_here], answer)
            found = functional.binary_cross_entropy_with_logits(gated, wanted)
            sums["gates"] = sums["gates"] + rates.gates * (named + found)
        if rates.offset:
            moved = _offset_loss(net, fused, answer, region[used], random)
            sums["offset"] = sums["offset"] + rates.offset * moved
        if rates.label:
            said = torch.from_numpy(np.stack([clause_terms(people.captions[caption], people.vocabulary.terms) for caption in captions]))
            each = functional.binary_cross_entropy_with_logits(net.label_logits(cells[number], weight), said.to(device), reduction="none")
            sums["label"] = sums["label"] + rates.label * (each.sum(2) * asked.is_phrase).sum() / asked.is_phrase.sum().clamp(min=1) / 10
        if rates.rebuild:
            crops = np.stack([scenes.pixels[rows[index]] for index in chosen]).astype(np.float32)  # (Q, 3, 48, 16)
            standard = (torch.from_numpy(crops) - torch.from_numpy(MEAN_BGR).view(3, 1, 1)) / torch.from_numpy(STD_BGR).view(3, 1, 1)
            small = functional.adaptive_avg_pool2d(standard, (CROP_ROWS, CROP_COLUMNS)).to(device)
            rebuilt = net.rebuilt(fused[torch.arange(len(chosen)), answer])
            sums["rebuild"] = sums["rebuild"] + rates.rebuild * functional.mse_loss(rebuilt, small)  # eq. 2
    return {name: value / rates.scenes for name, value in sums.items()}


def _offset_loss(
    net: Conditioning, fused: torch.Tensor, answer: torch.Tensor, region: torch.Tensor, random: np.random.Generator
) -> torch.Tensor:
    """Target-centric offset (eq. 5): the target's cell of I~ (Q, K, M) and one of another region change places, |q - p| is guessed."""
    swapped, other = fused.clone(), []
    for query, cell in enumerate(answer.tolist()):
        elsewhere = torch.nonzero(region != region[cell])[:, 0]
        chosen = int(elsewhere[int(random.integers(len(elsewhere)))])
        swapped[query, [cell, chosen]] = fused[query, [chosen, cell]]
        other.append(chosen)
    distance = (region[torch.tensor(other, device=region.device)] - region[answer]).abs() - 1  # 0..7
    return functional.cross_entropy(net.direction_logits(net.shared(swapped), region), distance)


@dataclass(frozen=True)
class SceneScores:
    """Per held-out scene: the summands (Q, N, 4) of query-free cosine, parts, confidence and gates; answer (Q,); names of the asked."""

    summands: list[Float32]
    answers: list[NDArray[np.intp]]
    asked: list[str]


@torch.no_grad()  # type: ignore[untyped-decorator]
def score_scenes(
    people: People, objective: PeopleObjective, net: Conditioning, scenes: Scenes, device: str, most: int = 10**9
) -> SceneScores:
    """What every held-out description gives for everybody in the scenes in which its person stands."""
    queries = defaultdict(list)
    for caption in people.queries:
        queries[caption.person].append(caption)
    result = SceneScores([], [], [])
    for scene in scenes.held_out[:most]:
        rows = scenes.rows_of[scene]
        names = [str(people.person[scenes.crop[row]]) for row in rows]
        asked = [(index, caption) for index, name in enumerate(names) for caption in queries.get(name, [])]
        if not asked or len(rows) < 2:
            continue
        said = said_of(people.vocabulary, [parse(caption.text) for _, caption in asked])
        heard: Heard = objective.words(said.to(device))
        looks = looks_of(people, objective, rows, len(people.sources) - 1, device)
        cosine = functional.normalize(heard.sentence.cpu(), dim=1) @ functional.normalize(looks.text, dim=1).T
        parts = sum(part_similarity(looks.parts, *text_parts(Heard(*(each.cpu() for each in heard))))).T
        coarse, halved = scenes.maps([scene], device)
        cells, read = net.cells(coarse, halved)[0], net.asked(heard)
        places = scenes.cells_of(rows, (coarse.shape[2], coarse.shape[3]), device)
        weight = net.attention(cells, read)[:, :, places]
        confidence, gated = net.scores(cells[places], weight, read)
        result.summands.append(torch.stack([cosine, parts, confidence.cpu(), gated.cpu()], 2).numpy())
        result.answers.append(np.array([index for index, _ in asked]))
        result.asked.extend(caption.person for _, caption in asked)
    return result


def fit_sum(scores: SceneScores, used: Sequence[int] = (0, 1, 2, 3)) -> Float32:
    """How much each summand counts beside the cosine, (4,), first 1: listwise logistic regression over a scene, none below 0."""

    def loss(weights: NDArray[np.float64]) -> float:
        full = np.zeros(4)
        full[list(used)] = weights
        total = 0.0
        for summands, answers in zip(scores.summands, scores.answers, strict=True):
            logits = summands @ full
            logits = logits - logits.max(1, keepdims=True)
            total -= float((logits[np.arange(len(answers)), answers] - np.log(np.exp(logits).sum(1))).sum())
        return total / len(scores.asked) + 1e-4 * float(weights @ weights)

    start = np.array([10.0, 1.0, 0.3, 0.3])[list(used)]
    found = minimize(loss, start, bounds=[(1.0, 60.0), *[(0.0, 20.0)] * (len(used) - 1)], method="L-BFGS-B").x
    weights = np.zeros(4, np.float32)
    weights[list(used)] = found / found[0]
    return weights


def within_scene(scores: SceneScores, weights: Float32) -> float:
    """How often the described person is the best of a scene, percent."""
    hits = [(summands @ weights).argmax(1) == answers for summands, answers in zip(scores.summands, scores.answers, strict=True)]
    return round(100 * float(np.concatenate(hits).mean()), 1)


def examine_conditioning(scores: SceneScores, say: Say) -> tuple[dict[str, float], Float32]:
    """Figures of sums, each fitted on one half of the people and measured on the other; and the weights fitted on all."""
    half = {name: index % 2 for index, name in enumerate(sorted(set(scores.asked)))}
    choices = {"cosine": (0,), "with parts": (0, 1), "with confidence": (0, 2), "with gates": (0, 3), "with all": (0, 1, 2, 3)}
    figures: dict[str, float] = {}
    for name, used in choices.items():
        measured = []
        for side in (0, 1):
            fitted = fit_sum(_those(scores, half, side), used)
            measured.append(within_scene(_those(scores, half, 1 - side), fitted))
        figures[name] = round(float(np.mean(measured)), 1)
    everything = fit_sum(scores)
    for name, row in (("confidence alone", 2), ("gates alone", 3)):
        figures[name] = within_scene(scores, np.eye(4, dtype=np.float32)[row])
    say(f"  best of its scene: {json.dumps(figures)}  weights {everything.round(3).tolist()}")
    return figures, everything


def _those(scores: SceneScores, half: dict[str, int], side: int) -> SceneScores:
    """The descriptions of one half of the people."""
    summands, answers, start = [], [], 0
    asked: list[str] = []
    for block, answer in zip(scores.summands, scores.answers, strict=True):
        names = scores.asked[start : start + len(answer)]
        start += len(answer)
        keep = [index for index, name in enumerate(names) if half[name] == side]
        if keep:
            summands.append(block[keep])
            answers.append(answer[keep])
            asked.extend(names[index] for index in keep)
    return SceneScores(summands, answers, asked)
