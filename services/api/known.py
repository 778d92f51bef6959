"""Cameras and watches as the topics tell them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from pipeline.errors import BadInputError
from pipeline.ports import Message
from pipeline.types import Camera, CameraCoverage, Watch
from services import wire
from services.api.bodies import CameraView, GapView, WatchView, moment
from services.cameras import take
from services.topics import CAMERAS, WATCHES
from services.worker import where

log = logging.getLogger("sightline.api")

SEEN_WITHIN_S = 30.0  # an account comes every five seconds
GAPS_SHOWN = 20


class Known:
    """Used in the event loop alone. clock_ns: UTC."""

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._cameras: dict[str, Camera] = {}
        self._accounts: dict[str, CameraCoverage] = {}
        self._watches: dict[str, Watch] = {}

    def take(self, messages: Sequence[Message]) -> None:
        """Messages of the topics cameras, coverage and watches."""
        for message in messages:
            if message.topic == CAMERAS:
                take(self._cameras, message)
                continue
            try:
                if message.topic == WATCHES:
                    self._take_watch(message)
                elif message.value is not None:
                    self._take_account(wire.decode(CameraCoverage, message.value))
            except BadInputError as error:
                log.error("message left out", extra={"reason": str(error), **where([message])})

    def _take_watch(self, message: Message) -> None:
        self._watches.pop((message.key or b"").decode(errors="replace"), None)
        if message.value is not None:
            self.put(wire.decode(Watch, message.value))

    def _take_account(self, account: CameraCoverage) -> None:
        before = self._accounts.get(account.camera_id)
        if before is None or account.to_ns >= before.to_ns:  # footage of old days tells nothing about now
            self._accounts[account.camera_id] = account

    # watches

    def put(self, watch: Watch) -> None:
        """A watch that is on the topic, or was put there a moment ago."""
        if watch.is_removed:
            self._watches.pop(watch.watch_id, None)
        else:
            self._watches[watch.watch_id] = watch

    def remove(self, watch_id: str) -> None:
        self._watches.pop(watch_id, None)

    def has_watch(self, watch_id: str) -> bool:
        return watch_id in self._watches

    def watches(self) -> list[WatchView]:
        """Those in force, oldest first; without the vectors of pictures."""
        now_ns = self._clock_ns()
        in_force = [watch for watch in self._watches.values() if watch.expires_at_ns > now_ns]
        return [WatchView.of(watch) for watch in sorted(in_force, key=lambda watch: (watch.created_at_ns, watch.watch_id))]

    # cameras

    def cameras(self) -> list[CameraView]:
        """Every camera that was added or has an account, by name. Addresses are left out: they hold passwords."""
        return [self._camera(camera_id) for camera_id in sorted(self._cameras.keys() | self._accounts.keys())]

    def _camera(self, camera_id: str) -> CameraView:
        camera, account = self._cameras.get(camera_id), self._accounts.get(camera_id)
        view = CameraView(camera_id, is_added=camera is not None)
        if camera is not None:
            view.site, view.zones, view.is_live = camera.site, sorted(camera.zones), camera.is_live
        if account is None:
            return view
        last = account.gaps[-1] if account.gaps else None
        last_ns = last.from_ns if last is not None and last.to_ns >= account.to_ns else account.to_ns  # a gap that still lasts
        if account.seen > account.corrupt:
            view.last_frame = moment(last_ns)
            view.is_seen = self._clock_ns() - last_ns < SEEN_WITHIN_S * 1e9
        view.since = moment(account.from_ns)
        view.frames, view.dropped, view.corrupt, view.gap_s = account.seen, account.dropped, account.corrupt, account.gap_s
        view.gaps = [GapView(moment(gap.from_ns), moment(gap.to_ns), gap.reason) for gap in account.gaps[-GAPS_SHOWN:]]
        return view
