"""How fast tracklets are linked as they come, from the first to the last, and how right the links are, on people made of numbers.

People are points on spheres: every tracklet's vector is its person's plus noise, spread so that two views of one person lie at about the
cosines that real networks give, and so do two people. All tracklets have a body (which changes after some hours, as clothes do), a third
a face, a tenth a voice; they come from cameras at a steady rate, a person being seen some times in a row and again hours later. People
share styles of clothes: two of one style look far more alike than two of any.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.calibration import Calibration
from pipeline.errors import BadInputError
from pipeline.evidence import PlainAssociator
from pipeline.index.linking import Linker, LinkRules
from pipeline.types import BODY, FACE, VOICE, Embedding, Tracklet
from services.adapters.faiss_neighbours import FaissNeighbours

Float32 = NDArray[np.float32]

CAMERAS = 200
EVERY_S = 0.15  # between two tracklets of all cameras: each camera sees somebody every 30 s
VISITS_OF_A_PERSON = 12
TRACKLETS_OF_A_VISIT = 4  # within minutes
CLOTHES_LAST_S = 10 * 3600.0
DIMENSIONS = {BODY: 256, FACE: 128, VOICE: 192}
LIKENESS = {BODY: (0.86, 0.10), FACE: (0.70, 0.05), VOICE: (0.72, 0.10)}  # mean cosine of two views of one person, and of two people
STYLES, STYLE_LIKENESS = 300, 0.55  # of clothes: mean cosine of two people who share one
SHARE = {BODY: 1.0, FACE: 1 / 3, VOICE: 0.1}
QUALITY = {BODY: 0.8, FACE: 0.8, VOICE: 0.8}
BATCH = 200
SAY_EVERY = 20_000
SECOND_NS = 1_000_000_000
STARTS_AT_NS = 1_700_000_000 * SECOND_NS
START_SHARE = 20  # the first and last twentieth are told as start and end


@dataclass(frozen=True, slots=True, eq=False)
class _Town:
    """Who is seen when and where: person, camera int64 (N,), started_at_ns int64 (N,) rising."""

    person: NDArray[np.int64]
    camera: NDArray[np.int64]
    started_at_ns: NDArray[np.int64]


def bench_link(count: int = 100_000, seed: int = 1, accept: float = 0.9, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Links ``count`` synthetic tracklets in the order in which they end; speed by quarter, memory, precision and recall of identities.

    Times are of the processor, but for ``tracklets_per_s``: other work on the machine does not count.
    ``pairs``: of all pairs of tracklets of one identity, how many are one person (precision), and of one person, one identity (recall);
    ``links``: how many of the links join one person. Raises BadInputError for fewer than 1,000.
    """
    if count < 1000:
        raise BadInputError(f"bench link must be asked for 1,000 tracklets or more, got {count}")
    random = np.random.default_rng(seed)
    town = _town(count, random)
    rules = LinkRules(accept=accept)
    neighbours = FaissNeighbours(rules.body_horizon_s)
    linker = Linker(PlainAssociator(Calibration.default()), neighbours, rules)
    person_of = {f"t{number:08d}": int(person) for number, person in enumerate(town.person)}
    memory_mb, taken_s, wall_s, right, links = _resident_mb(), [], 0.0, 0, 0
    for batch in _tracklets(town, random):
        wall_started, started = time.perf_counter(), time.process_time()
        changes = linker.link(batch, batch[-1].ended_at_ns)
        taken_s += [(time.process_time() - started) / len(batch)] * len(batch)
        wall_s += time.perf_counter() - wall_started
        if len(taken_s) % SAY_EVERY < len(batch):
            rate = SAY_EVERY / sum(taken_s[-SAY_EVERY:])
            say(f"{len(taken_s)} of {count} tracklets, the last {SAY_EVERY} at {rate:.0f} a processor second, {_resident_mb():.0f} MB")
        links += len(changes.links)
        right += sum(person_of[link.first] == person_of[link.second] for link in changes.links)
    taken = np.asarray(taken_s)
    edge = max(1, count // START_SHARE)
    quarters = [float(part.mean()) for part in np.array_split(taken, 4)]
    precision, recall = _pairs(person_of, {name: str(linker.identity_of(name)) for name in person_of})
    return {
        "tracklets": count,
        "people": int(town.person.max()) + 1,
        "cameras": CAMERAS,
        "hours": round(float(town.started_at_ns[-1] - town.started_at_ns[0]) / SECOND_NS / 3600, 2),
        "seed": seed,
        "tracklets_per_s": round(count / wall_s, 1),
        "tracklets_per_processor_s": round(1 / float(taken.mean()), 1),
        "tracklets_per_processor_s_by_quarter": [round(1 / quarter, 1) for quarter in quarters],
        "ms_a_tracklet_at_the_start": round(1e3 * float(taken[:edge].mean()), 3),
        "ms_a_tracklet_at_the_end": round(1e3 * float(taken[-edge:].mean()), 3),
        "last_quarter_to_second": round(quarters[3] / quarters[1], 3),
        "arrival_per_s": round(1 / EVERY_S, 2),
        "vectors_held": len(neighbours),
        "memory_mb": round(_resident_mb() - memory_mb, 1),
        "kb_a_tracklet": round(1e3 * (_resident_mb() - memory_mb) / count, 2),
        "identities": len({linker.identity_of(name) for name in person_of}),
        "links": {"made": links, "precision": round(right / max(links, 1), 5)},
        "pairs": {"precision": round(precision, 5), "recall": round(recall, 5)},
    }


def _town(count: int, random: np.random.Generator) -> _Town:
    """People walk through: visits of a few tracklets within minutes, hours apart, never in two places at once."""
    span_s = count * EVERY_S
    people = max(2, count // (VISITS_OF_A_PERSON * TRACKLETS_OF_A_VISIT))
    visits = count // TRACKLETS_OF_A_VISIT + 1
    person = random.integers(0, people, visits)
    at_s = random.uniform(0, span_s, visits)
    step = np.arange(TRACKLETS_OF_A_VISIT)
    whole_person = np.repeat(person, TRACKLETS_OF_A_VISIT)
    whole_at_s = (at_s[:, None] + 60.0 * step + random.uniform(0, 30, (visits, TRACKLETS_OF_A_VISIT))).ravel()
    camera = (random.integers(0, CAMERAS, visits)[:, None] + step).ravel() % CAMERAS
    order = np.argsort(whole_at_s, kind="stable")[:count]
    return _Town(whole_person[order], camera[order], STARTS_AT_NS + (whole_at_s[order] * SECOND_NS).astype(np.int64))


def _tracklets(town: _Town, random: np.random.Generator) -> Iterator[list[Tracklet]]:
    """The town's tracklets of ten seconds in batches; a person's centres are made from its number, so that none is kept."""
    no_times, no_boxes, no_confidence = np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    for array in (no_times, no_boxes, no_confidence):
        array.flags.writeable = False
    everybody = {modality: _unit(np.random.default_rng(7).normal(size=dimension)) for modality, dimension in DIMENSIONS.items()}
    for start in range(0, len(town.person), BATCH):
        batch = []
        for number in range(start, min(start + BATCH, len(town.person))):
            person, from_ns = int(town.person[number]), int(town.started_at_ns[number])
            clothes = int((from_ns - STARTS_AT_NS) / SECOND_NS / CLOTHES_LAST_S)
            embeddings = []
            for at, modality in enumerate(DIMENSIONS):
                if random.random() < SHARE[modality]:
                    key = (person, at, clothes if modality == BODY else 0)
                    vector = _view(modality, everybody[modality], key, random)
                    embeddings.append(Embedding(modality, f"synthetic-{modality}@1", vector, QUALITY[modality]))
            camera = f"camera-{town.camera[number]:03d}"
            to_ns = from_ns + 10 * SECOND_NS
            name = f"t{number:08d}"
            batch.append(Tracklet(name, 1, camera, from_ns, to_ns, no_times, no_boxes, no_confidence, tuple(embeddings)))
        yield batch


def _view(modality: str, everybody: Float32, key: tuple[int, ...], random: np.random.Generator) -> Float32:
    """One look at a person: what all share, what is the person's own, and what is of this moment, so that cosines are as LIKENESS says."""
    same, others = LIKENESS[modality]
    shared = np.sqrt(others) * everybody
    personal = np.random.default_rng(key)
    if modality == BODY:
        style = np.random.default_rng((7, int(personal.integers(STYLES))))
        shared = shared + np.sqrt(STYLE_LIKENESS - others) * _unit(style.normal(size=len(everybody)))
        others = STYLE_LIKENESS
    own, moment = _unit(personal.normal(size=len(everybody))), _unit(random.normal(size=len(everybody)))
    return _unit(shared + np.sqrt(same - others) * own + np.sqrt(1 - same) * moment)


def _unit(values: NDArray[Any]) -> Float32:
    made: Float32 = (values / np.linalg.norm(values)).astype(np.float32)
    return made


def _pairs(person_of: dict[str, int], identity_of: dict[str, str]) -> tuple[float, float]:
    """Precision and recall over pairs of tracklets."""

    def within(counts: Counter[Any]) -> int:
        return sum(held * (held - 1) // 2 for held in counts.values())

    both = within(Counter((person, identity_of[name]) for name, person in person_of.items()))
    one_identity, one_person = within(Counter(identity_of.values())), within(Counter(person_of.values()))
    return both / max(one_identity, 1), both / max(one_person, 1)


def _resident_mb() -> float:
    """Memory of this process now, in MB."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
