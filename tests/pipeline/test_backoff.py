"""Pauses between attempts."""

from __future__ import annotations

import random

from pipeline.backoff import Backoff


def test_backoff_doubles_to_its_limit_with_jitter_and_starts_again() -> None:
    backoff = Backoff(0.5, 8.0, random.Random(5))
    waits = [backoff.next_s() for _ in range(60)]
    wholes = [min(8.0, 0.5 * 2**n) for n in range(60)]
    assert all(whole / 2 <= wait <= whole for wait, whole in zip(waits, wholes, strict=True))
    assert len(set(waits)) == 60
    backoff.reset()
    assert backoff.next_s() <= 0.5
