"""Train the detector-retriever: sightline train detector-retriever --config FILE --data DIR --work DIR --out DIR.

The base stays as it is, so detection cannot get worse. Its maps of every crop and of composed scenes are made once (regions.py); then two
steps in turn, after FastPR's alternate optimisation: the ID-Net and the network of words on crops, then the query-conditioned heads on
scenes. Runs on with the newest checkpoint when started again; under torchrun every process takes batches of its own. Curves: curves.csv.
"""

from __future__ import annotations

import csv
import json
import os
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from models.detector_retriever.base import Base
from models.detector_retriever.conditioning import CROP_COLUMNS, CROP_ROWS, Conditioning, centre_cells, regions_of_grid
from models.detector_retriever.losses import Cmpc, Oim, cmpm, contrast, cross_scale, part_similarity, same_person
from models.detector_retriever.network import DIMENSIONS, Heard, IdNet, Looks, Regions, Said, WordNet
from models.detector_retriever.words import Vocabulary
from models.training.captions import Caption, attribute_targets, part_of, read_captions, vocabulary_of
from models.training.examine import Figures, examine_people
from models.training.regions import Stored, crop_names, gather, make_scenes, make_views
from pipeline.errors import SettingsError
from pipeline.search.description import Term, parse

Float32 = NDArray[np.float32]
Say = Callable[[str], None]

TEMPERATURE = 0.05  # at the start; learnt
EXACT = 0.7  # share of descriptions shown with a crop they were written for, where that is known
SUBSET = 32  # pairs of a batch that cross-scale alignment looks at: its cost grows with the square
WELL_VISIBLE = 0.45


@dataclass(frozen=True)
class DataConfig:
    crop_views: int = 4
    scene_rounds: int = 3
    held_out_people: int = 152
    held_out_seed: int = 0


@dataclass(frozen=True)
class PeopleConfig:
    steps: int = 1500
    pairs: int = 64
    learning_rate: float = 1e-3
    trunk_learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    dropout: float = 0.5
    checkpoint_every: int = 100
    examine_every: int = 500


@dataclass(frozen=True)
class LossConfig:
    contrast: float = 1.0
    reidentification: float = 1.0
    oim: float = 0.3
    cmpm: float = 0.0
    cmpc: float = 0.05
    cross_scale: float = 0.1
    attributes: float = 1.0


@dataclass(frozen=True)
class ConditioningConfig:
    steps: int = 600
    scenes: int = 8
    queries: int = 6
    learning_rate: float = 1e-3
    confidence: float = 1.0
    gates: float = 1.0
    label: float = 0.3
    rebuild: float = 0.1
    offset: float = 0.1


@dataclass(frozen=True)
class Config:
    """The recipe; every key of the TOML file."""

    seed: int = 0
    threads: int = 1
    device: str = "auto"
    precision: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    people: PeopleConfig = field(default_factory=PeopleConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)


def read_config(path: Path | None, changes: Sequence[str] = ()) -> Config:
    """The recipe of a TOML file (None: the defaults) with ``changes`` such as "losses.oim=0". Raises SettingsError for an unknown key."""
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text("utf-8")) if path else {}
        for change in changes:
            key, _, value = change.partition("=")
            section, _, name = key.rpartition(".")
            target = values.setdefault(section, {}) if section else values
            target[name] = tomllib.loads(f"value = {value}")["value"]
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"the recipe must be a readable TOML file, changes KEY=VALUE: {error}") from error
    made: dict[str, Any] = {}
    for name, kind in {"data": DataConfig, "people": PeopleConfig, "losses": LossConfig, "conditioning": ConditioningConfig}.items():
        made[name] = _section(name, kind, values.pop(name, {}))
    result = _section("", Config, {**values, **made})
    assert isinstance(result, Config)
    return result


def _section(name: str, kind: type[Any], values: Mapping[str, Any]) -> Any:
    allowed = {each.name: each for each in fields(kind)}
    for key in values:
        if key not in allowed:
            raise SettingsError(f"unknown key {f'{name}.' if name else ''}{key} in the recipe; allowed here: {', '.join(allowed)}")
    return kind(**values)


@dataclass
class People:
    """Everything the first step draws from. crops: person -> camera -> rows; captions and what was read of them; targets: person -> (T,)."""

    names: list[str]
    person: NDArray[np.str_]
    camera: NDArray[np.str_]
    trained: list[str]
    held_out: set[str]
    crops: dict[str, dict[str, list[int]]]
    captions: list[Caption]
    queries: list[Caption]
    said: Said
    captions_of: dict[str, list[int]]
    vocabulary: Vocabulary
    terms: list[Term]
    targets: dict[str, Float32]
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
            said=said_of(vocabulary, descriptions),
            captions_of=captions_of,
            vocabulary=vocabulary,
            terms=terms,
            targets=targets,
            sources=sources,
            rows_of=rows_of,
        )


def held_out_people(captions: Sequence[Caption], config: DataConfig) -> set[str]:
    """People whom training never sees: drawn from those that human beings described."""
    described = sorted({caption.person for caption in captions if caption.is_human})
    drawn = np.random.default_rng(config.held_out_seed).permutation(described)
    return set(drawn[: config.held_out_people].tolist())


def said_of(vocabulary: Vocabulary, descriptions: Sequence[Any]) -> Said:
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
    """ID-Net, words and the losses between them; one module, so that torchrun's processes share its gradients."""

    def __init__(self, people: People, config: Config) -> None:
        super().__init__()
        self.weights = config.losses
        self.looks = IdNet(len(people.terms), config.people.dropout)
        self.words = WordNet(len(people.vocabulary.words), len(people.vocabulary.terms))
        self.cmpc = Cmpc(len(people.trained), DIMENSIONS)
        self.oim = Oim(len(people.trained), DIMENSIONS)
        start = torch.tensor(float(np.log(1 / TEMPERATURE)))
        self.scale_text, self.scale_body = nn.Parameter(start.clone()), nn.Parameter(start.clone())

    def forward(self, regions: Regions, person: torch.Tensor, described: torch.Tensor, said: Said, targets: torch.Tensor) -> dict[str, Any]:
        """The losses by name. regions: 2P, first all of camera a; person (2P,); described: rows that ``said`` speaks of; targets (2P, T)."""
        looks: Looks = self.looks(regions)
        heard: Heard = self.words(said)
        losses = self._body_losses(looks, person)
        losses |= self._text_losses(Looks(*(each[described] for each in looks)), heard, person[described])
        if self.weights.attributes:
            known = ~torch.isnan(targets)
            each = functional.binary_cross_entropy_with_logits(looks.attributes, torch.nan_to_num(targets), reduction="none")
            losses["attributes"] = (each * known).sum() / known.sum().clamp(min=1)
        return losses

    def _body_losses(self, looks: Looks, person: torch.Tensor) -> dict[str, torch.Tensor]:
        body, half = functional.normalize(looks.body, dim=1), len(person) // 2
        losses = {}
        if self.weights.reidentification:
            similarity = body[:half] @ body[half:].T * self.scale_body.exp()
            losses["reidentification"] = contrast(similarity, same_person(person[:half], person[half:]))
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


def draw(people: People, config: Config, step: int, rank: int, device: str) -> tuple[Any, ...]:
    """The batch of a step: the same for the same seed, step and rank, so that a resumed run goes on as if it had never stopped."""
    random = np.random.default_rng([config.seed, step, rank])
    chosen = random.permutation(len(people.trained))[: config.people.pairs]
    which, rows, described, captions = [], [], [], []
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
            source = int(random.integers(len(people.sources)))
            held = people.rows_of[source].get(crop)
            source = source if held else 0
            which.append(source)
            rows.append(int(random.choice(held)) if held else crop)
    unknown = np.full(len(people.terms), np.nan, np.float32)
    targets = np.stack([people.targets.get(people.trained[number], unknown) for number in chosen])
    return (
        gather(people.sources, which, rows, device),
        torch.from_numpy(np.concatenate([chosen, chosen])).to(device),
        torch.tensor(described, device=device),
        people.said.rows(torch.tensor(captions)).to(device),
        torch.from_numpy(np.concatenate([targets, targets])).to(device),
    )


@dataclass
class Place:
    """Where training runs: this process among ``processes``, its device and number format."""

    rank: int
    processes: int
    device: str
    precision: torch.dtype

    @classmethod
    def of(cls, config: Config) -> Place:
        processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        has_gpu = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if has_gpu else "cpu"
        if processes > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if has_gpu else "gloo")
        precise = config.precision == "float32" or (config.precision == "auto" and not has_gpu)
        return cls(rank, processes, device, torch.float32 if precise else torch.bfloat16)

    def autocast(self) -> Any:
        return torch.autocast(self.device.split(":")[0], self.precision, enabled=self.precision != torch.float32)

    def shared(self, module: nn.Module) -> nn.Module:
        """``module`` so that every process takes the mean gradient."""
        if self.processes == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)


class Curves:
    """A CSV file of figures by step; the first process writes it."""

    def __init__(self, path: Path, place: Place) -> None:
        self._path, self._is_first = path, place.rank == 0

    def note(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        if not self._is_first:
            return
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            for name, value in values.items():
                writer.writerow([phase, step, name, f"{value:.5g}"])


class Schedule:
    """Optimiser, one-cycle learning rate and the checkpoint of one step of training."""

    def __init__(self, module: nn.Module, groups: Sequence[dict[str, Any]], steps: int, weight_decay: float, checkpoint: Path) -> None:
        self.module, self.checkpoint, self.step = module, checkpoint, 0
        self.optimiser = torch.optim.AdamW(groups, weight_decay=weight_decay)
        rates = [group["lr"] for group in groups]
        self.rate = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, rates, total_steps=max(steps, 2), pct_start=0.1)
        if checkpoint.exists():
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
            module.load_state_dict(state["module"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.rate.load_state_dict(state["rate"])
            self.step = int(state["step"])

    def advance(self, loss: torch.Tensor) -> None:
        """One step down the gradient, which is cut at length 5."""
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 5.0)
        self.optimiser.step()
        self.rate.step()
        self.step += 1

    def save(self) -> None:
        """Replace the checkpoint whole, so that a killed process leaves the one before."""
        state = {"module": self.module.state_dict(), "optimiser": self.optimiser.state_dict(), "rate": self.rate.state_dict()}
        scratch = self.checkpoint.with_suffix(".part")
        torch.save({**state, "step": self.step}, scratch)
        scratch.replace(self.checkpoint)


def train_people(people: People, config: Config, base: Base, work: Path, place: Place, say: Say) -> PeopleObjective:
    """The first step: ID-Net and words."""
    torch.manual_seed(config.seed)
    objective = PeopleObjective(people, config)
    objective.looks.start_from(base)
    objective = objective.to(place.device, memory_format=torch.channels_last)
    trunk = [*objective.looks.early.parameters(), *objective.looks.late.parameters()]
    own = {id(parameter) for parameter in trunk}
    rest = [parameter for parameter in objective.parameters() if id(parameter) not in own]
    rates = config.people
    groups = [{"params": trunk, "lr": rates.trunk_learning_rate}, {"params": rest, "lr": rates.learning_rate}]
    schedule = Schedule(objective, groups, rates.steps, rates.weight_decay, work / "people.pt")
    shared, curves = place.shared(objective), Curves(work / "curves.csv", place)
    weights, started, sums, begun = asdict(config.losses), time.monotonic(), defaultdict(float), schedule.step
    while schedule.step < rates.steps:
        objective.train()
        batch = draw(people, config, schedule.step, place.rank, place.device)
        with place.autocast():
            losses = shared(*batch)
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
    return objective.eval()


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
    heard = Heard(*(each.float().cpu() for each in objective.eval().words(said.to(place.device))))
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

