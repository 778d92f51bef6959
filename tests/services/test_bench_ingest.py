from __future__ import annotations

import itertools

import numpy as np

from pipeline.types import Frame
from services.bench_ingest import LimitedCapture, RepeatedCapture, resident_mb


def frames(count: int) -> list[Frame]:
    return [Frame("a", 1000 + 40_000_000 * number, np.zeros((4, 4, 3), np.uint8), number) for number in range(count)]


def test_repeated_frames_keep_rising_in_time() -> None:
    given = list(RepeatedCapture(frames(3), 10).frames())
    assert [frame.number for frame in given] == list(range(10))
    steps = {b.captured_at_ns - a.captured_at_ns for a, b in itertools.pairwise(given)}
    assert steps == {40_000_000}


def test_a_limited_capture_ends_early() -> None:
    assert len(list(LimitedCapture(RepeatedCapture(frames(3), 10), 4).frames())) == 4


def test_resident_memory_is_a_plausible_number() -> None:
    assert 10 < resident_mb() < 100_000
