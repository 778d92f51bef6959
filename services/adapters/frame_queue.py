"""Pictures between the thread that decodes and the thread that uses them."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class StampedPicture:
    """A decoded picture with its time, not yet converted: most never need to be."""

    captured_at_ns: int
    number: int
    frame: Any


class FrameQueue:
    """The newest ``limit`` pictures of a live source: one that comes when it is full pushes out the oldest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[StampedPicture] = deque()
        self._changed = threading.Condition()
        self._is_finished = False
        self.newest_ns = 0

    def put(self, item: StampedPicture) -> int:
        """Gives how many old pictures were pushed out."""
        with self._changed:
            self._items.append(item)
            self.newest_ns = item.captured_at_ns
            lost = max(0, len(self._items) - self._limit)
            for _ in range(lost):
                self._items.popleft()
            self._changed.notify_all()
            return lost

    def get(self) -> StampedPicture | None:
        """The oldest picture, waited for; None once ``finish`` was called and nothing is left."""
        with self._changed:
            while not self._items and not self._is_finished:
                self._changed.wait()
            return self._items.popleft() if self._items else None

    def finish(self, *, empty: bool = False) -> None:
        """Nothing more comes; ``empty`` also forgets what is held."""
        with self._changed:
            self._is_finished = True
            if empty:
                self._items.clear()
            self._changed.notify_all()
