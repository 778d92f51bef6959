"""How long to wait before the next try; one rule for cameras, brokers, disks and processes."""

from __future__ import annotations

import random


class Backoff:
    """Waiting times between attempts: doubling from ``first_s`` to ``most_s`` seconds, each shortened at random by up to half.

    The jitter keeps a hundred cameras behind one switch, or all workers of a broker, from knocking in step when it comes back.
    """

    def __init__(self, first_s: float = 0.1, most_s: float = 30.0, rng: random.Random | None = None) -> None:
        self._first_s, self._most_s, self._rng = first_s, most_s, rng or random.Random()
        self._attempts = 0

    def next_s(self) -> float:
        """Seconds to wait before the next attempt."""
        whole_s = min(self._most_s, self._first_s * 2.0 ** min(self._attempts, 32))
        self._attempts += 1
        return whole_s * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start from ``first_s`` again: an attempt worked."""
        self._attempts = 0
