"""The first step of training: the ID-Net and the network of words, on regions of crops and of people in composed scenes."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import nn
from torch.nn import functional

from models.detector_retriever.base import Base
from models.detector_retriever.losses import Cmpc, Oim, cmpm, contrast, cross_scale, part_similarity, same_person
from models.detector_retriever.network import COLOURS, DIMENSIONS, Heard, IdNet, Looks, Regions, Said, WordNet
from models.detector_retriever.words import Vocabulary
from models.training.captions import Caption, attribute_targets, part_of, read_captions, vocabulary_of
from models.training.config import Config, DataConfig
from models.training.examine import Figures, examine_people
from models.training.loop import Curves, Place, Schedule, seed_step
from models.training.regions import Stored, crop_names, gather
from pipeline.search.description import Description, Term, parse

Float32 = NDArray[np.float32]
Say = Callable[[str], None]

TEMPERATURE = 0.05  # at the start; learnt
EXACT = 0.7  # share of descriptions shown with a crop they were written for, where that is known
SUBSET = 32  # pairs of a batch that cross-scale alignment looks at: its cost grows with the square
WELL_VISIBLE = 0.45


@dataclass
class People:
    """Everything the first step draws from. crops: person -> camera -> rows; captions and what was read of them; queries: human captions of
    the people held out; targets: person -> (T,)."""

    names: list[str]
    person: NDArray[np.str_]
    camera: NDArray[np.str_]
    trained: list[str]
    held_out: set[str]
    crops: dict[str, dict[str, list[int]]]
    captions: list[Caption]
    queries: list[Caption]
    all_captions: list[Caption]
    said: Said
    captions_of: dict[str, list[int]]
    vocabulary: Vocabulary
    terms: list[Term]
    targets: dict[str, Float32]
    teacher: Float32 | None
    sources: list[Stored]
    rows_of: list[dict[int, list[int]]]

    @classmethod
    def read(cls, data: Path, work: Path, config: Config) -> People:
        names = crop_names(data / "persons")
        person = np.array([name.split("/")[0] for name in names])
        camera = np.array([name.split("/")[1][0] for name in names])
        captions = read_captions(data, {name: row for row, name in enumerate(names)})
        held_out = held_out_people(captions, config.data)
        own = [caption for caption in captions if caption.person not in held_out]
        random = np.random.default_rng(config.seed)
        parts = [caption.with_text(part_of(caption.text, random)) for caption in own if random.random() < 1 / 3]
        own += [part for part in parts if part.text]  # short descriptions are learnt too
        descriptions = [parse(caption.text) for caption in own]
        vocabulary = vocabulary_of(descriptions)
        crops: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for row, (who, where) in enumerate(zip(person, camera, strict=True)):
            if who not in held_out:
                crops[str(who)][str(where)].append(row)
        captions_of = defaultdict(list)
        for number, caption in enumerate(own):
            captions_of[caption.person].append(number)
        terms, targets = attribute_targets(own)
        sources, rows_of = _sources(work, config.data.crop_views, len(names))
        trained = sorted(who for who, cameras in crops.items() if len(cameras) == 2)
        return cls(
            names=names,
            person=person,
            camera=camera,
            trained=trained,
            held_out=held_out,
            crops=crops,
            captions=own,
            queries=[caption for caption in captions if caption.is_human and caption.person in held_out],
            all_captions=captions,
            said=said_of(vocabulary, descriptions),
            captions_of=captions_of,
            vocabulary=vocabulary,
            terms=terms,
            targets=targets,
            teacher=np.load(work / "teacher.npy") if (work / "teacher.npy").exists() and config.losses.teacher else None,
            sources=sources,
            rows_of=rows_of,
        )


def held_out_people(captions: Sequence[Caption], config: DataConfig) -> set[str]:
    """People whom training never sees: drawn from those that human beings described."""
    described = sorted({caption.person for caption in captions if caption.is_human})
    drawn = np.random.default_rng(config.held_out_seed).permutation(described)
    return set(drawn[: config.held_out_people].tolist())


def people_held_out(data: Path) -> set[str]:
    """People whom a training on ``data`` with the usual recipe leaves out."""
    rows = {name: row for row, name in enumerate(crop_names(data / "persons"))}
    return held_out_people(read_captions(data, rows), DataConfig())


def said_of(vocabulary: Vocabulary, descriptions: Sequence[Description]) -> Said:
    """Descriptions as the network reads them."""
    numbers = [vocabulary.numbers(description) for description in descriptions]
    return Said(*(torch.from_numpy(np.stack(column)) for column in zip(*numbers, strict=True)))


def _sources(work: Path, views: int, crops: int) -> tuple[list[Stored], list[dict[int, list[int]]]]:
    """Views of crops, then scenes; and in which of their rows a crop stands."""
    sources = [Stored.open(work / "views" / str(view)) for view in range(views)]
    rows_of: list[dict[int, list[int]]] = [{row: [row] for row in range(crops)} for _ in sources]
    if (work / "people.npy").exists():
        people = np.load(work / "people.npy")
        seen = defaultdict(list)
        for row, (crop, visible) in enumerate(zip(people[:, 1].astype(int), people[:, 6], strict=True)):
            if visible >= WELL_VISIBLE:
                seen[int(crop)].append(row)
        sources.append(Stored.open(work / "scenes"))
        rows_of.append(dict(seen))
    return sources, rows_of


class PeopleObjective(nn.Module):  # type: ignore[misc]
    """ID-Net, words and the losses between them."""

    def __init__(self, people: People, config: Config) -> None:
        super().__init__()
        self.weights = config.losses
        self.looks = IdNet(len(people.terms), config.people.dropout, config.people.late_stage)
        self.words = WordNet(len(people.vocabulary.words), len(people.vocabulary.terms))
        self.cmpc = Cmpc(len(people.trained), DIMENSIONS)
        self.oim = Oim(len(people.trained), DIMENSIONS)
        self.taught = None if people.teacher is None else nn.Linear(DIMENSIONS, people.teacher.shape[1])
        start = torch.tensor(float(np.log(1 / TEMPERATURE)))
        self.scale_text, self.scale_body = nn.Parameter(start.clone()), nn.Parameter(start.clone())

    def forward(
        self,
        regions: Regions,
        person: torch.Tensor,
        described: torch.Tensor,
        said: Said,
        targets: torch.Tensor,
        teacher: torch.Tensor | None,
    ) -> dict[str, Any]:
        """The losses by name. regions: 2P, all of camera a first; person (2P,); described: rows that ``said`` is of; targets (2P, T);
        teacher (2P, D')."""
        looks: Looks = self.looks(regions)
        heard: Heard = self.words(said)
        losses = self._body_losses(looks, person)
        losses |= self._text_losses(Looks(*(each[described] for each in looks)), heard, person[described])
        if self.weights.attributes:
            known = ~torch.isnan(targets)
            each = functional.binary_cross_entropy_with_logits(looks.attributes, torch.nan_to_num(targets), reduction="none")
            losses["attributes"] = (each * known).sum() / known.sum().clamp(min=1)
        if self.taught is not None and teacher is not None:
            losses["teacher"] = (1 - functional.cosine_similarity(self.taught(looks.body), teacher)).mean()
        return losses

    def _body_losses(self, looks: Looks, person: torch.Tensor) -> dict[str, torch.Tensor]:
        body = functional.normalize(looks.body, dim=1)
        losses = {}
        if self.weights.reidentification:
            # people of the same camera are strangers that must be told apart too
            oneself = torch.eye(len(person), device=body.device)
            similarity = body @ body.T * self.scale_body.exp() - 1e4 * oneself
            losses["reidentification"] = contrast(similarity, same_person(person, person) - oneself)
        if self.weights.oim:
            losses["oim"] = self.oim(body, person)
        return losses

    def _text_losses(self, looks: Looks, heard: Heard, person: torch.Tensor) -> dict[str, torch.Tensor]:
        match, losses = same_person(person, person), {}
        if self.weights.contrast:
            similarity = functional.normalize(looks.text, dim=1) @ functional.normalize(heard.sentence, dim=1).T
            losses["contrast"] = contrast(similarity * self.scale_text.exp(), match)
        if self.weights.cmpm:
            losses["cmpm"] = cmpm(looks.text, heard.sentence, match)
        if self.weights.cmpc:
            losses["cmpc"] = self.cmpc(looks.text, heard.sentence, person)
        if self.weights.cross_scale:
            texts, is_text = text_parts(Heard(*(each[:SUBSET] for each in heard)))
            losses["cross_scale"] = cross_scale(looks.parts[:SUBSET], texts, is_text, match[:SUBSET, :SUBSET])
        return losses


def text_parts(heard: Heard) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentence, sub-sentences and words of B descriptions side by side: (B, n, D) and which are there (B, n)."""
    texts = torch.cat([heard.sentence[:, None], heard.clauses, heard.words], 1)
    is_text = torch.cat([torch.ones_like(heard.is_clause[:, :1]), heard.is_clause, heard.is_word], 1)
    used = is_text.any(0)
    return texts[:, used], is_text[:, used]


def _source(people: People, config: Config, chance: float) -> int:
    """Where a look is taken from: the crop as it is, an altered copy, or a composed scene."""
    views = config.data.crop_views
    if chance < config.data.share_as_it_is or len(people.sources) == 1:
        return 0
    chance = (chance - config.data.share_as_it_is) / (1 - config.data.share_as_it_is)
    altered = config.data.share_altered / (1 - config.data.share_as_it_is)
    if len(people.sources) > views and chance >= altered:
        return views
    return 1 + int(min(chance / altered, 0.999) * (views - 1)) if views > 1 else 0


def draw(people: People, config: Config, step: int, rank: int, device: str) -> tuple[Any, ...]:
    """The batch of a step: the same for the same seed, step and rank, so that a resumed run goes on as if it had never stopped."""
    random = np.random.default_rng([config.seed, step, rank])
    chosen = random.permutation(len(people.trained))[: config.people.pairs]
    which: list[int] = []
    rows: list[int] = []
    described: list[int] = []
    captions: list[int] = []
    crops: list[int] = []
    for camera in ("a", "b"):
        for number in chosen:
            name = people.trained[number]
            shots, exact = people.crops[name][camera], list[int]()
            if people.captions_of.get(name):
                caption = int(random.choice(people.captions_of[name]))
                described.append(len(rows))
                captions.append(caption)
                exact = [row for row in people.captions[caption].rows if people.camera[row] == camera]
            crop = int(random.choice(exact)) if exact and random.random() < EXACT else int(random.choice(shots))
            source = _source(people, config, random.random())
            held = people.rows_of[source].get(crop)
            source = source if held else 0
            which.append(source)
            crops.append(crop)
            rows.append(int(random.choice(held)) if held else crop)
    unknown = np.full(len(people.terms), np.nan, np.float32)
    targets = np.stack([people.targets.get(people.trained[number], unknown) for number in chosen])
    return (
        gather(people.sources, which, rows, device),
        torch.from_numpy(np.concatenate([chosen, chosen])).to(device),
        torch.tensor(described, device=device),
        people.said.rows(torch.tensor(captions)).to(device),
        torch.from_numpy(np.concatenate([targets, targets])).to(device),
        None if people.teacher is None else torch.from_numpy(people.teacher[crops]).to(device),
    )


def usual_colours(people: People) -> torch.Tensor:
    """The centres of the pixels' colours of some crops by k-means, (COLOURS, 3), standardised BGR."""
    random = np.random.default_rng(0)
    rows = random.integers(0, len(people.names), 400).tolist()
    pixels = gather([people.sources[0]], [0] * len(rows), rows).pixels  # (400, 3, 48, 16)
    drawn = random.permutation(pixels.permute(0, 2, 3, 1).reshape(-1, 3).numpy())[:40_000]
    centres, _ = kmeans2(drawn.astype(np.float64), COLOURS, minit="++", rng=np.random.default_rng(0))
    return torch.from_numpy(centres).float()


def train_people(people: People, config: Config, base: Base, work: Path, place: Place, say: Say) -> PeopleObjective:
    """The first step: ID-Net and words."""
    torch.manual_seed(config.seed)
    objective = PeopleObjective(people, config)
    objective.looks.start_from(base, usual_colours(people))
    objective.to(place.device, memory_format=torch.channels_last)
    trunk = [*objective.looks.early.parameters(), *(objective.looks.late.parameters() if objective.looks.late else ())]
    own = {id(parameter) for parameter in trunk}
    rest = [parameter for parameter in objective.parameters() if id(parameter) not in own]
    rates = config.people
    groups = [{"params": trunk, "lr": rates.trunk_learning_rate}, {"params": rest, "lr": rates.learning_rate}]
    schedule = Schedule(objective, groups, rates.steps, rates.weight_decay, work / "people.pt", place)
    curves = Curves(work / "curves.csv", place)
    weights, started, begun = asdict(config.losses), time.monotonic(), schedule.step
    sums: dict[str, float] = defaultdict(float)
    while schedule.step < rates.steps:
        objective.train()
        seed_step(config.seed, schedule.step, place.rank)
        batch = draw(people, config, schedule.step, place.rank, place.device)
        with place.autocast():
            losses = objective(*batch)
        loss = sum((weights[name] * each.float() for name, each in losses.items()), torch.zeros((), device=place.device))
        schedule.advance(loss)
        for name, each in losses.items():
            sums[name] += float(each.detach()) / 50
        if schedule.step % 50 == 0:
            curves.note("people", schedule.step, sums)
            took = (time.monotonic() - started) / (schedule.step - begun)
            say(f"people {schedule.step}/{rates.steps}  {took:.2f} s a step  " + "  ".join(f"{k} {v:.3f}" for k, v in sums.items()))
            sums.clear()
        if place.rank == 0 and (schedule.step % rates.checkpoint_every == 0 or schedule.step == rates.steps):
            schedule.save()
        if place.rank == 0 and people.held_out and (schedule.step % rates.examine_every == 0 or schedule.step == rates.steps):
            figures = examine(people, objective, config, place)
            curves.note("examined", schedule.step, {name: each["rank-1"] for name, each in figures.items() if "rank-1" in each})
            say(f"  held out: {json.dumps(figures)}")
    objective.eval()
    return objective


@torch.no_grad()  # type: ignore[untyped-decorator]
def looks_of(people: People, objective: PeopleObjective, rows: Sequence[int], source: int, device: str) -> Looks:
    """The ID-Net's answer for rows of one source."""
    objective.eval()
    parts = [objective.looks(gather([people.sources[source]], [0] * len(block), block, device)) for block in _blocks(rows, 64)]
    return Looks(*(torch.cat(column).float().cpu() for column in zip(*parts, strict=True)))


def _blocks(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


@torch.no_grad()  # type: ignore[untyped-decorator]
def examine(people: People, objective: PeopleObjective, config: Config, place: Place) -> Figures:
    """Figures on the people held out: their crops as they are, and as they stand in composed scenes."""
    rows = [row for row, who in enumerate(people.person) if str(who) in people.held_out]
    queries = people.queries
    said = said_of(people.vocabulary, [parse(caption.text) for caption in queries])
    heard = Heard(*(each.cpu() for each in objective.eval().words(said.to(place.device))))
    looks = looks_of(people, objective, rows, 0, place.device)
    texts, is_text = text_parts(heard)
    both = [part_similarity(looks.parts, texts[block], is_text[block]) for block in _blocks(range(len(queries)), 32)]
    parts = torch.cat([sum(pair) for pair in both], 1).T.numpy()  # (Q, G)
    return examine_people(
        functional.normalize(heard.sentence, dim=1).numpy(),
        np.array([caption.person for caption in queries]),
        functional.normalize(looks.text, dim=1).numpy(),
        functional.normalize(looks.body, dim=1).numpy(),
        people.person[rows],
        people.camera[rows],
        parts,
    )
