"""What one frame costs the detector-retriever, and two-stage ways to the same people, interleaved in one run on one machine.

Every round takes the next batch of frames through every stage once. A peer is a detector stage plus a stage that encodes as many crops as
the retriever finds people in these frames; its time is the sum of both. Ratios are medians over the rounds that both sides ran.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MissingDependencyError, UnreadableMediaError
from pipeline.geometry import Float32, clip_to_frame
from pipeline.ports import Retriever
from pipeline.types import Camera, Frame
from services.settings import Settings

COUNTS = (1, 10, 100)  # standing descriptions
LIMIT_PERCENT = 5.0  # of a frame's time, for the 100th description
SLOW_ROUNDS = 2  # of a stage that takes a minute a batch
COLOURS = ("red", "blue", "black", "white", "green", "grey", "yellow", "brown", "pink", "orange")
TOPS, LEGS = ("jacket", "shirt", "coat", "t-shirt", "hoodie"), ("jeans", "trousers")

Say = Callable[[str], None]
Timer = Callable[[Callable[[], object]], float]  # seconds that some work takes
Crops = list[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Frames, and of each the people (N, 4) that the retriever found."""

    frames: tuple[Frame, ...]
    people: tuple[Float32, ...] = ()

    def fresh(self, random: np.random.Generator) -> Batch:
        """The same with the lowest bit of every pixel drawn anew: encoders remember crops they saw, and no stage may profit from that."""
        noise = (random.integers(0, 2, frame.bgr.shape, np.uint8) for frame in self.frames)
        return replace(self, frames=tuple(replace(f, bgr=(f.bgr & 254) | bit) for f, bit in zip(self.frames, noise, strict=True)))

    def crops(self) -> Crops:
        """Every person cut out, at least a pixel each way."""
        return [cut for frame, boxes in zip(self.frames, self.people, strict=True) for cut in _cuts(frame, boxes)]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """Something that is timed on a whole batch. A slow one is warmed with one frame and run in SLOW_ROUNDS of the rounds."""

    name: str
    run: Callable[[Batch], object]
    is_slow: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Peer:
    """A two-stage way, by its stages' time together."""

    name: str
    detector: Stage
    encoder: Stage


def bench_retriever(
    settings: Settings,
    video: Path | None,
    *,
    frames_per_batch: int = 8,
    batches: int = 6,
    osnet: Path | None = None,
    threads: int = 1,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Milliseconds a frame of the retriever with 1, 10 and 100 descriptions and of its peers, on the CPU and, where there is one, the GPU.

    ``threads`` holds for every network, torch and OpenCV; numpy's own follow OMP_NUM_THREADS. A peer that cannot be had is named so.
    """
    from services import wiring
    from services.demo_clip import find_clip

    settings = settings.model_copy(update={"detect": settings.detect.model_copy(update={"threads": threads})})
    registry = wiring.weight_registry(settings)
    clip, _ = find_clip(video, settings.storage.cache_folder / "clips", lambda: registry.path("people-photograph"), say)
    with _opencv_threads(threads):
        retriever = wiring.retriever(settings)
        given = read_batches(settings, clip, frames_per_batch, batches + 1)
        say(f"{batches} batches of {frames_per_batch} frames of {clip.name}, networks with {threads} thread(s)")
        peers, left_out = _cpu_peers(settings, threads, osnet)
        result = {"clip": clip.name, "threads": threads, **measure(retriever, peers, given, say=say), **left_out}
        return {**result, **_on_gpu(retriever, given, threads, say)}


def measure(
    retriever: Retriever,
    peers: Sequence[Peer],
    batches: Sequence[Batch],
    *,
    say: Say = lambda text: None,
    timer: Timer | None = None,
    prefix: str = "",
) -> dict[str, Any]:
    """The figures of the retriever and its peers; the first batch only warms up. Every key starts with ``prefix``."""
    started = time.perf_counter()
    asked = [retriever.ask(descriptions(count)) for count in COUNTS]
    ask_s = time.perf_counter() - started
    known = [find_people(retriever, batch, asked[0]) for batch in batches]
    ours = [Stage(f"ours_{count}", _searching(retriever, each)) for count, each in zip(COUNTS, asked, strict=True)]
    detect = getattr(retriever, "detect", None)
    if detect is not None:
        ours.append(Stage("ours_query_free", lambda batch: detect(batch.frames)))
    stages = {stage.name: stage for stage in (*ours, *itertools.chain.from_iterable((p.detector, p.encoder) for p in peers))}
    taken = interleave(list(stages.values()), known, say=say, timer=timer or _wall_seconds)
    people = sum(len(boxes) for batch in known[1:] for boxes in batch.people)
    frames = sum(len(batch.frames) for batch in known[1:])
    figures: dict[str, Any] = {
        "retriever": retriever.name,
        "frames_per_batch": len(known[0].frames),
        "batches": len(known) - 1,
        "people_per_frame": round(people / frames, 2),
        "ask_ms_per_description": round(ask_s * 1e3 / sum(COUNTS), 3),
    }
    for stage in ours:
        figures |= _spread(stage.name, taken[stage.name])
    figures |= _cost_of_descriptions(taken)
    for peer in peers:
        figures |= _beside_ours(peer, taken)
    return {prefix + key: value for key, value in figures.items()}


def interleave(stages: Sequence[Stage], batches: Sequence[Batch], *, say: Say, timer: Timer) -> dict[str, dict[int, float]]:
    """Milliseconds a frame by stage and round: A, B, C, A, B, C, ..., one batch a round; the first batch only warms up."""
    random = np.random.default_rng(0)
    warm, *rounds = batches
    slow_rounds = {round(at) for at in np.linspace(0, len(rounds) - 1, min(SLOW_ROUNDS, len(rounds)))}
    for stage in stages:
        say(f"warming {stage.name}")
        stage.run((Batch(warm.frames[:1], warm.people[:1]) if stage.is_slow else warm).fresh(random))
    taken: dict[str, dict[int, float]] = {stage.name: {} for stage in stages}
    for number, batch in enumerate(rounds):
        for stage in stages:
            if stage.is_slow and number not in slow_rounds:
                continue
            fresh = batch.fresh(random)
            ms = timer(lambda stage=stage, fresh=fresh: stage.run(fresh)) * 1e3 / len(batch.frames)  # type: ignore[misc]
            taken[stage.name][number] = ms
            say(f"round {number + 1} of {len(rounds)}: {stage.name} {ms:.1f} ms a frame")
    return taken


def descriptions(count: int) -> list[str]:
    """``count`` (1 to 200) different descriptions of clothes, of about the length people write."""
    kinds = enumerate(itertools.product(("man", "woman"), TOPS, LEGS))
    every = (
        f"{person} in a {colour} {top} and {COLOURS[(place + kind) % len(COLOURS)]} {legs}"
        for kind, (person, top, legs) in kinds
        for place, colour in enumerate(COLOURS)
    )
    return list(itertools.islice(every, count))


def find_people(retriever: Retriever, batch: Batch, asked: Any) -> Batch:
    """The batch with the boxes that every peer is given the crops of."""
    return Batch(batch.frames, tuple(sought.detections.xyxy for sought in retriever.look_for(batch.frames, asked)))


def read_batches(settings: Settings, clip: Path, frames_per_batch: int, count: int) -> list[Batch]:
    """The clip's first frames, over again where it is too short. Raises UnreadableMediaError when it has none."""
    from services import wiring
    from services.bench_ingest import LimitedCapture

    with closing(wiring.open_camera(settings, Camera("bench", str(clip)))) as capture:
        frames = list(LimitedCapture(capture, frames_per_batch * count).frames())
    if not frames:
        raise UnreadableMediaError(f"clip {clip} must have frames, got none: name another with --video")
    endless = itertools.cycle(frames)
    return [Batch(tuple(itertools.islice(endless, frames_per_batch))) for _ in range(count)]


def _cpu_peers(settings: Settings, threads: int, osnet: Path | None) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can be had, and why the others cannot."""
    from models.two_stage_peer import OsnetEncoder
    from services import wiring

    peers: list[Peer] = []
    left_out: dict[str, str] = {}
    try:
        peers.append(_torch_peer(threads, "cpu"))
    except MissingDependencyError as reason:
        left_out["rcnn_resnet50_left_out"] = str(reason)
    nanodet = wiring.make_detector(settings.model_copy(update={"detect": settings.detect.model_copy(update={"model": "nanodet"})}))
    light = Stage("nanodet", lambda batch: nanodet.detect(batch.frames))
    if osnet is None:
        left_out["nanodet_osnet_left_out"] = "no file given: --osnet FILE.onnx"
    else:
        osnet_encoder = OsnetEncoder(osnet, threads)
        peers.append(Peer("nanodet_osnet", light, Stage("osnet_crops", lambda batch: osnet_encoder.encode(batch.crops()))))
    looks = wiring.look_encoder(settings)  # our own network on every crop apart: what one pass over the frame saves
    peers.append(Peer("nanodet_own_crops", light, Stage("own_crops", lambda batch: looks.encode(batch.crops()))))
    return peers, left_out


def _torch_peer(threads: int, device: str) -> Peer:
    from models.two_stage_peer import TorchTwoStage

    torch_way = TorchTwoStage(threads, device)
    is_slow = device == "cpu"
    return Peer(
        "rcnn_resnet50",
        Stage("rcnn", lambda batch: torch_way.detect(batch.frames), is_slow),
        Stage("resnet50_crops", lambda batch: torch_way.encode(batch.crops()), is_slow),
    )


def _on_gpu(retriever: Retriever, batches: Sequence[Batch], threads: int, say: Say) -> dict[str, Any]:
    """The retriever and the torch peer by CUDA events; a retriever shows what it can do there by ``on_cuda()``, which gives its twin."""
    from models.two_stage_peer import cuda_timer

    try:
        timer = cuda_timer()
    except MissingDependencyError as reason:
        return {"cuda": str(reason)}
    if timer is None:
        return {"cuda": "no GPU here"}
    twin = getattr(retriever, "on_cuda", None)
    if twin is None:
        return {"cuda": f"{retriever.name} does not run on a GPU"}
    return measure(twin(), [_torch_peer(threads, "cuda")], batches, say=say, timer=timer, prefix="cuda_")


def _searching(retriever: Retriever, asked: Any) -> Callable[[Batch], object]:
    return lambda batch: retriever.look_for(batch.frames, asked)


def _cost_of_descriptions(taken: dict[str, dict[int, float]]) -> dict[str, Any]:
    """One more standing description in milliseconds a frame, and as a share of a frame with one description."""
    one, hundred = taken["ours_1"], taken["ours_100"]
    more = [(hundred[number] - one[number]) / 99 for number in one]
    percent = statistics.median(each / one[number] * 100 for each, number in zip(more, one, strict=True))
    return {
        "one_more_description_ms_per_frame": round(statistics.median(more), 4),
        "hundredth_description_percent_of_frame": round(percent, 3),
        "is_hundredth_description_below_5_percent": percent < LIMIT_PERCENT,
        "ours_100_to_ours_1": round(statistics.median(hundred[number] / one[number] for number in one), 3),
    }


def _beside_ours(peer: Peer, taken: dict[str, dict[int, float]]) -> dict[str, Any]:
    """A peer's time, that of its stages, and how many times ours it is."""
    detector, encoder = taken[peer.detector.name], taken[peer.encoder.name]
    whole = {number: detector[number] + encoder[number] for number in detector}
    figures: dict[str, Any] = {
        **_spread(peer.name, whole),
        f"{peer.name}_detector_ms_per_frame": round(statistics.median(detector.values()), 3),
        f"{peer.name}_crops_ms_per_frame": round(statistics.median(encoder.values()), 3),
    }
    for count in COUNTS:
        ours = taken[f"ours_{count}"]
        figures[f"{peer.name}_to_ours_{count}"] = round(statistics.median(ms / ours[number] for number, ms in whole.items()), 3)
    return figures


def _spread(name: str, taken: dict[int, float]) -> dict[str, Any]:
    values = list(taken.values())
    return {
        f"{name}_ms_per_frame": round(statistics.median(values), 3),
        f"{name}_least_ms": round(min(values), 3),
        f"{name}_most_ms": round(max(values), 3),
        f"{name}_rounds": len(values),
    }


def _cuts(frame: Frame, boxes: Float32) -> Iterator[NDArray[np.uint8]]:
    for x1, y1, x2, y2 in clip_to_frame(boxes, frame.width, frame.height).round().astype(int):
        left, top = min(x1, frame.width - 1), min(y1, frame.height - 1)
        yield frame.bgr[top : max(y2, top + 1), left : max(x2, left + 1)]


def _wall_seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextmanager
def _opencv_threads(threads: int) -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
