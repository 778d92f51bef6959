"""A join that outlasts one poll, finished by a later one: what kafka-python forgets, on a coordinator with its shape."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

from kafka.future import Future
from kafka.structs import MemberState

from services.adapters.kafka_consumer import _finish_every_join


class SlowCoordinator:
    """kafka-python's ConsumerCoordinator as far as joining goes; ``begun`` counts the joins that were sent."""

    def __init__(self) -> None:
        self.rejoining, self.rejoin_needed, self.state = False, False, MemberState.STABLE
        self.begun, self.given, self.beats = 0, list[bytes](), False
        self._join_task: Any = None
        self._lock = threading.RLock()
        self._generation = SimpleNamespace(generation_id=2, member_id="m", protocol="p")
        _finish_every_join(self)

    def need_rejoin(self) -> bool:
        return self.rejoin_needed

    async def join_group_async(self, timeout_ms: float | None = None) -> bool:
        if self._join_task is None or self._join_task.is_done:
            self.begun, self.rejoining, self.state, self._join_task = self.begun + 1, True, MemberState.REBALANCING, Future()
        return False

    def _enable_heartbeat(self) -> None:
        self.beats = True

    async def _on_join_complete_async(self, generation: int, member: str, protocol: str, assignment: bytes) -> None:
        self.given.append(assignment)

    def poll(self) -> None:
        if self.need_rejoin():
            asyncio.run(self.join_group_async(timeout_ms=1))


def begun() -> SlowCoordinator:
    """One whose join was sent because the metadata had changed, and outlasted the poll."""
    coordinator = SlowCoordinator()
    asyncio.run(coordinator.join_group_async(timeout_ms=1))
    return coordinator


def test_a_join_on_its_way_is_waited_for_though_nothing_asks_for_another() -> None:
    coordinator = begun()
    assert coordinator.need_rejoin()
    coordinator.poll()
    assert (coordinator.begun, coordinator.given) == (1, [])


def test_a_join_that_ended_between_two_polls_is_taken_not_begun_anew() -> None:
    coordinator = begun()
    coordinator._join_task.success(b"partitions")
    coordinator.poll()
    assert (coordinator.begun, coordinator.given, coordinator.beats) == (1, [b"partitions"], True)
    assert coordinator.state is MemberState.STABLE
    assert not coordinator.need_rejoin()
    coordinator.poll()
    assert coordinator.given == [b"partitions"]


def test_a_join_that_failed_between_two_polls_is_begun_anew() -> None:
    coordinator = begun()
    coordinator._join_task.failure(RuntimeError("the coordinator moved"))
    coordinator.poll()
    assert (coordinator.begun, coordinator.given) == (2, [])


def test_what_a_group_gave_that_has_put_us_out_meanwhile_is_not_taken() -> None:
    coordinator = begun()
    coordinator._join_task.success(b"partitions")
    coordinator.state, coordinator.rejoin_needed = MemberState.UNJOINED, True
    coordinator.poll()
    assert (coordinator.begun, coordinator.given) == (2, [])
