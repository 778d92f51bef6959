"""Train the detector-retriever: sightline train detector-retriever --data DIR --work DIR --out DIR [--config FILE] [--set KEY=VALUE].

The base stays as it is, so detection cannot get worse. Its maps of every crop and of composed scenes are made once (regions.py); then two
steps in turn, after FastPR's alternate optimisation: the ID-Net and the network of words (people.py), then the query-conditioned heads on
scenes (conditioning.py). Goes on from the newest checkpoint when started again; under torchrun every process takes batches of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.detector_retriever.base import Base
from models.detector_retriever.conditioning import Conditioning
from models.detector_retriever.export import attribute_arrays, conditioning_arrays, export_cells, export_people, word_arrays
from models.detector_retriever.network import Heard
from models.detector_retriever.runtime import CELLS_GRAPH, PEOPLE_GRAPH
from models.training.captions import attribute_targets, read_captions
from models.training.conditioning import Scenes, examine_conditioning, score_scenes, train_conditioning
from models.training.config import Config
from models.training.examine import examine_attributes, fit_matches, pool
from models.training.loop import Place
from models.training.people import People, PeopleObjective, examine, held_out_people, looks_of, said_of, train_people
from models.training.regions import crop_names, make_scenes, make_teacher, make_views
from pipeline.search.description import parse

Say = Callable[[str], None]
Arrays = dict[str, NDArray[Any]]

BODY_SPACE, TEXT_SPACE = "retriever-body@1", "retriever-text@1"
CALIBRATION = "calibration.npz"


def train(config: Config, base_path: Path, data: Path, work: Path, out: Path, teacher: Path | None, say: Say) -> dict[str, Any]:
    """The whole recipe; gives the figures on the people held out ({} with none) and writes the weights into ``out``.

    work: keeps regions, checkpoints, curves and figures; calibrations are fitted where people are held out and kept there, so that a
    second run on everybody (held_out_people = 0) in the same folder finds them. teacher: a re-identification network as ONNX.
    Raises SettingsError, NotFoundError, UnreadableMediaError.
    """
    torch.set_num_threads(config.threads)
    started, place = time.monotonic(), Place.of(config)
    base = Base.from_onnx(base_path)
    if place.rank == 0:
        prepare(config, base, data, work, teacher, say)
    if place.processes > 1:
        torch.distributed.barrier()
    people = People.read(data, work, config)
    run = work / ("everybody" if not people.held_out else f"without-{len(people.held_out)}")
    run.mkdir(parents=True, exist_ok=True)
    objective = train_people(people, config, base, run, place, say)
    if (work / "people.npy").exists():
        net = train_conditioning(people, objective, config, work, run, place, say)
    else:
        say("no scenes (data.scene_rounds = 0): the query-conditioned heads stay untrained and count nothing")
        net = Conditioning(len(people.vocabulary.terms))
    if place.rank:
        return {}
    figures: dict[str, Any] = {}
    if people.held_out:
        figures, calibration = measure(people, objective, net, work, config, place, say)
        np.savez(work / CALIBRATION, **calibration)
        figures |= {"config": asdict(config), "elapsed_s": round(time.monotonic() - started)}
        (run / "figures.json").write_text(json.dumps(figures, indent=1))
    write(people, objective, net, work, out)
    return figures


def prepare(config: Config, base: Base, data: Path, work: Path, teacher: Path | None, say: Say) -> None:
    """Regions of crops and scenes, made once."""
    work.mkdir(parents=True, exist_ok=True)
    base = base.to(memory_format=torch.channels_last)
    make_views(data, work, base, config.data.crop_views, config.seed, say)
    if teacher is not None:
        make_teacher(data, work, teacher)
    if config.data.scene_rounds:
        names = crop_names(data / "persons")
        captions = read_captions(data, {name: row for row, name in enumerate(names)})
        # scenes are shared by the run without the people held out and the run on everybody: their people never stand together
        apart = held_out_people(captions, config.data if config.data.held_out_people else type(config.data)())
        make_scenes(data, work, base, config.data.scene_rounds, apart, config.seed, say)


@torch.no_grad()  # type: ignore[untyped-decorator]
def measure(
    people: People, objective: PeopleObjective, net: Conditioning, work: Path, config: Config, place: Place, say: Say
) -> tuple[dict[str, Any], Arrays]:
    """Figures on the people held out, and the calibrations fitted on them."""
    figures: dict[str, Any] = {"people": examine(people, objective, config, place)}
    summands = np.array([1, 0, 0, 0], np.float32)
    if (work / "people.npy").exists():
        scores = score_scenes(people, objective, net, Scenes.read(work, people), place.device)
        figures["scenes"], summands = examine_conditioning(scores, say)
    rows = [row for row, who in enumerate(people.person) if str(who) in people.held_out]
    looks = looks_of(people, objective, rows, 0, place.device)
    text, body = (functional.normalize(each, dim=1).numpy() for each in (looks.text, looks.body))
    said = said_of(people.vocabulary, [parse(caption.text) for caption in people.queries])
    heard = Heard(*(each.cpu() for each in objective.words(said.to(place.device))))
    words = functional.normalize(heard.sentence, dim=1).numpy()
    pooled, who = pool(text, people.person[rows], people.camera[rows])
    asked = np.array([caption.person for caption in people.queries])
    pooled_body, _ = pool(body, people.person[rows], people.camera[rows])
    same = who[:, None] == who[None]
    calibration: Arrays = {
        "summands": summands,
        "text_calibration": np.array(fit_matches(words @ pooled.T, asked[:, None] == who[None]), np.float32),
        "body_calibration": np.array(fit_matches(pooled_body @ pooled_body.T, same, np.eye(len(who), dtype=bool)), np.float32),
    }
    logits, _ = pool(looks.attributes.numpy(), people.person[rows], people.camera[rows], is_unit=False)
    captions = [caption for caption in people.all_captions if caption.person in people.held_out]
    _, targets = attribute_targets(captions, people.terms)
    wanted = np.stack([targets[str(name)] for name in who])
    figures["attributes"], fitted = examine_attributes(logits, wanted, people.terms)
    names = np.array(["|".join(term) for term in people.terms])
    return figures, {**calibration, **fitted, "attribute_names": names}


def write(people: People, objective: PeopleObjective, net: Conditioning, work: Path, out: Path) -> None:
    """The files of models/weights: two graphs, the arrays that numpy runs, and the torch state in float16."""
    out.mkdir(parents=True, exist_ok=True)
    export_people(objective.looks.cpu().eval(), out / PEOPLE_GRAPH)
    export_cells(net.cpu().eval(), out / CELLS_GRAPH)
    arrays: dict[str, Any] = {
        **word_arrays(objective.words.cpu().eval(), people.vocabulary),
        **attribute_arrays(objective.looks, people.terms),
        **conditioning_arrays(net),
        "body_space": np.array(BODY_SPACE),
        "text_space": np.array(TEXT_SPACE),
        **_calibration(work, people),
    }
    np.savez_compressed(out / "detector_retriever.npz", **arrays)
    halves = {
        f"{part}.{name}": value.half() if value.is_floating_point() else value
        for part, module in (("looks", objective.looks), ("words", objective.words), ("conditioning", net))
        for name, value in module.state_dict().items()
    }
    torch.save(halves, out / "detector_retriever.pt")


def _calibration(work: Path, people: People) -> Arrays:
    """What was fitted on people held out; without it every curve is flat and no attribute is shown."""
    count = len(people.terms)
    plain: Arrays = {
        "summands": np.array([1, 0, 0, 0], np.float32),
        "text_calibration": np.array([10.0, -3.0], np.float32),
        "body_calibration": np.array([10.0, -5.0], np.float32),
        "attribute_auc": np.zeros(count, np.float32),
        "attribute_slope": np.ones(count, np.float32),
        "attribute_offset": np.zeros(count, np.float32),
    }
    if not (work / CALIBRATION).exists():
        return plain
    with np.load(work / CALIBRATION) as file:
        fitted = {name: file[name] for name in file.files}
    place = {name: row for row, name in enumerate(fitted.pop("attribute_names"))}
    for name in ("attribute_auc", "attribute_slope", "attribute_offset"):
        known = fitted.pop(name)
        for row, term in enumerate(people.terms):  # everybody names more terms than the run without the people held out
            if "|".join(term) in place:
                plain[name][row] = known[place["|".join(term)]]
    return {**plain, **fitted}
