"""How much of the detector's own speed the whole line keeps, measured beside the bare limits in the same run."""

from __future__ import annotations

import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.ports import Capture, Detector
from pipeline.types import Camera, CameraCoverage, Frame, Sound
from services.ingest import CameraStages
from services.settings import Settings

MEMORY_SAMPLES = 20


@dataclass(frozen=True, slots=True)
class Parts:
    """The loaded networks, shared by every round."""

    detector: Detector
    make_stages: Callable[[Camera], CameraStages]


class RepeatedCapture:
    """Frames of a capture over and over until ``count`` were given, with times that go on rising; for measuring only."""

    def __init__(self, frames: list[Frame], count: int, camera_id: str = "bench") -> None:
        self.camera = Camera(camera_id, "memory")
        self._frames, self._count = frames, count

    def frames(self) -> Iterator[Frame]:
        step_ns = self._frames[1].captured_at_ns - self._frames[0].captured_at_ns if len(self._frames) > 1 else 40_000_000
        start_ns = self._frames[0].captured_at_ns
        for number, frame in enumerate(itertools.islice(itertools.cycle(self._frames), self._count)):
            yield Frame(self.camera.camera_id, start_ns + number * step_ns, frame.bgr, number)

    def sounds(self) -> Iterator[Sound]:
        return iter(())

    def coverage(self) -> CameraCoverage:
        return CameraCoverage(self.camera.camera_id, 0, 0)

    def close(self) -> None:
        self._count = 0


class LimitedCapture:
    """The first ``count`` frames of a capture."""

    def __init__(self, capture: Capture, count: int) -> None:
        self.camera = capture.camera
        self._capture, self._limit = capture, count

    def frames(self) -> Iterator[Frame]:
        yield from itertools.islice(self._capture.frames(), self._limit)

    def sounds(self) -> Iterator[Sound]:
        return iter(())

    def coverage(self) -> CameraCoverage:
        return self._capture.coverage()

    def close(self) -> None:
        self._capture.close()


def bench_ingest(settings: Settings, video: Path | None, *, frames: int = 200, rounds: int = 3, memory_frames: int = 0) -> dict[str, Any]:
    """Frames a second of decode alone, detector alone and the whole line, interleaved; ratios are medians over the rounds.

    The whole line decodes, detects, tracks, embeds, writes crops, log and index. The detector alone is given the same decoded
    frames in the same batches; ``forward`` is its network alone on prepared input.
    """
    from services import wiring
    from services.demo_clip import find_clip

    registry = wiring.weight_registry(settings)
    cache = settings.storage.cache_folder / "clips"
    clip, _ = find_clip(video, cache, lambda: registry.path("people-photograph"), lambda text: None)
    detector = wiring.make_detector(settings)
    camera = Camera("bench", str(clip))
    kept = list(LimitedCapture(wiring.open_camera(settings, camera), frames).frames())
    parts = Parts(detector, wiring.stage_maker(settings))
    with tempfile.TemporaryDirectory() as folder:  # warm: networks are loaded once, in every row alike
        _line_rate(_in_folder(settings, Path(folder)), camera, parts, min(len(kept), 30))
    rates: dict[str, list[float]] = {"decode": [], "forward": [], "detector": [], "line": []}
    for _ in range(rounds):
        rates["decode"].append(_decode_rate(settings, camera, frames))
        rates["forward"].append(_forward_rate(detector, kept, settings.detect.batch_size))
        rates["detector"].append(_detector_rate(detector, kept, settings.detect.batch_size))
        with tempfile.TemporaryDirectory() as folder:
            rates["line"].append(_line_rate(_in_folder(settings, Path(folder)), camera, parts, len(kept)))
    result: dict[str, Any] = {
        "clip": clip.name,
        "frames": len(kept),
        "rounds": rounds,
        **{f"{name}_frames_per_second": round(statistics.median(values), 2) for name, values in rates.items()},
        "line_to_detector": _median_ratio(rates["line"], rates["detector"]),
        "line_to_forward": _median_ratio(rates["line"], rates["forward"]),
        "line_to_decode": _median_ratio(rates["line"], rates["decode"]),
    }
    if memory_frames:
        with tempfile.TemporaryDirectory() as folder:
            result["memory"] = _memory(_in_folder(settings, Path(folder)), kept, parts, memory_frames)
    return result


def _in_folder(settings: Settings, folder: Path) -> Settings:
    return settings.model_copy(update={"storage": settings.storage.model_copy(update={"data_folder": folder})})


def _median_ratio(above: list[float], below: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def _decode_rate(settings: Settings, camera: Camera, frames: int) -> float:
    from services import wiring

    started = time.perf_counter()
    count = sum(1 for _ in LimitedCapture(wiring.open_camera(settings, camera), frames).frames())
    return count / (time.perf_counter() - started)


def _detector_rate(detector: Detector, frames: list[Frame], batch: int) -> float:
    started = time.perf_counter()
    for first in range(0, len(frames), batch):
        detector.detect(frames[first : first + batch])
    return len(frames) / (time.perf_counter() - started)


def _forward_rate(detector: Detector, frames: list[Frame], batch: int) -> float:
    """The network alone; a detector without ``prepare`` and ``forward`` is measured whole."""
    prepare, forward = getattr(detector, "prepare", None), getattr(detector, "forward", None)
    if prepare is None or forward is None:
        return _detector_rate(detector, frames, batch)
    prepared = prepare(frames[:batch])
    started = time.perf_counter()
    done = 0
    while done < len(frames):
        forward(prepared)
        done += batch
    return done / (time.perf_counter() - started)


def _line_rate(settings: Settings, camera: Camera, parts: Parts, frames: int) -> float:
    from services import footage, wiring

    started = time.perf_counter()
    capture = LimitedCapture(wiring.open_camera(settings, camera), frames)
    report = footage.run_captures(settings, [capture], detector=parts.detector, make_stages=parts.make_stages)
    return report.frames / (time.perf_counter() - started)


def _memory(settings: Settings, frames: list[Frame], parts: Parts, count: int) -> dict[str, Any]:
    """Resident memory along ``count`` frames of the whole line, and its growth from the first tenth to the end."""
    from services import footage

    every = max(1, count // MEMORY_SAMPLES)
    samples: list[tuple[int, float]] = []

    def note(done: int) -> None:
        if done % every == 0:
            samples.append((done, resident_mb()))

    capture = RepeatedCapture(frames, count)
    report = footage.run_captures(settings, [capture], detector=parts.detector, make_stages=parts.make_stages, on_frame=note)
    settled = [mb for done, mb in samples if done >= count // 10]
    return {
        "frames": report.frames,
        "first_mb": round(settled[0], 1),
        "last_mb": round(settled[-1], 1),
        "most_mb": round(max(settled), 1),
        "growth_mb_per_1000_frames": round((settled[-1] - settled[0]) / max(1, count * 0.9) * 1000, 3),
        "samples_mb": [round(mb, 1) for _, mb in samples],
    }


def resident_mb() -> float:
    """Resident memory of this process in megabytes (the peak where the system tells no more)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
