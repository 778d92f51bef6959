"""A folder of pictures, or one picture, as a camera."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.capture import SECOND_NS, CoverageAccount, Part, Sampler, time_in_name
from pipeline.errors import UnreadableMediaError
from pipeline.types import Camera, CameraCoverage, Frame, Sound

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
USUAL_HZ = 25.0  # of numbered pictures whose camera names no rate


def pictures_of(path: Path) -> list[Path]:
    """The pictures of a folder by name (a picture itself: just that one)."""
    if path.is_file():
        return [path]
    return sorted(each for each in path.iterdir() if each.is_file() and each.suffix.lower() in PICTURES)


class FolderCapture:
    """The Capture of pictures sorted by name; see ports.Capture.

    Where every name carries a time (2026-11-21T04-00-00.jpg) the pictures have those times and sampling_hz thins them out; otherwise
    they are 1/sampling_hz apart (25 Hz when it is 0), from starts_at_ns, the time in the folder's name, or the first picture's change.
    Raises UnreadableMediaError when there is no picture.
    """

    def __init__(self, camera: Camera, part: Part | None = None) -> None:
        self.camera = camera
        self._part = part or Part()
        self._pictures = pictures_of(Path(camera.uri))
        if not self._pictures:
            raise UnreadableMediaError(f"folder {camera.uri} must hold pictures ({', '.join(sorted(PICTURES))}), got none: check the path")
        self._times_ns, self._has_own_times = self._times()
        steps = np.diff(self._times_ns)
        usual_s = float(np.median(steps)) / SECOND_NS if len(steps) else 0.0
        self._account = CoverageAccount(camera.camera_id, gap_after_s=max(2.0, 5 * usual_s))
        self._closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        sampler = Sampler(self.camera.sampling_hz if self._has_own_times else 0.0)
        decoded = 0
        for number, (path, captured_at_ns) in enumerate(zip(self._pictures, self._times_ns, strict=True)):
            offset_ns = captured_at_ns - self._times_ns[0]
            is_kept = sampler.keep(offset_ns)
            if self._closed.is_set() or offset_ns >= self._part.to_ns:
                return
            if self._part.is_after(offset_ns):
                continue
            bgr = read_picture(path) if is_kept else None
            if is_kept and bgr is None:
                self._account.corrupt()
                continue
            self._account.saw(captured_at_ns)
            if bgr is not None:
                decoded += 1
                self._account.sampled()
                yield Frame(self.camera.camera_id, captured_at_ns, bgr, number)
        if not decoded and self._part.is_whole:
            raise UnreadableMediaError(f"{self.camera.uri} must hold a picture that can be decoded, got {len(self._pictures)} that cannot")

    def sounds(self) -> Iterator[Sound]:
        """Pictures are silent."""
        return iter(())

    def coverage(self) -> CameraCoverage:
        return self._account.snapshot()

    def close(self) -> None:
        self._closed.set()

    def _times(self) -> tuple[list[int], bool]:
        """UTC of every picture, rising, and whether the names gave them."""
        named = [time_in_name(path.name) for path in self._pictures]
        if all(named) and all(earlier < later for earlier, later in pairwise(named)):
            shift_ns = self.camera.starts_at_ns - named[0] if self.camera.starts_at_ns else 0
            return [moment + shift_ns for moment in named], True
        start_ns = self.camera.starts_at_ns or time_in_name(Path(self.camera.uri).name) or self._pictures[0].stat().st_mtime_ns
        rate_hz = self.camera.sampling_hz or USUAL_HZ
        return [start_ns + round(number * SECOND_NS / rate_hz) for number in range(len(self._pictures))], False


def read_picture(path: Path) -> NDArray[np.uint8] | None:
    """The picture as BGR uint8 (H, W, 3), upright; None when it does not decode."""
    try:
        content = np.fromfile(path, np.uint8)
        bgr = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except (OSError, cv2.error):
        return None
    return None if bgr is None else np.asarray(bgr, np.uint8)
