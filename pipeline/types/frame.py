"""What a camera gives: frames and sound. Neither ever leaves its process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.types.checks import read_only


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded picture.

    camera_id: the camera; captured_at_ns: presentation time, UTC nanoseconds; bgr: uint8 (H, W, 3), read-only;
    number: ordinal of the decoded frame in its source, from 0 (frames that sampling left out are counted too).
    """

    camera_id: str
    captured_at_ns: int
    bgr: NDArray[np.uint8]
    number: int = 0

    def __post_init__(self) -> None:
        if not (self.bgr.ndim == 3 and self.bgr.shape[2] == 3 and self.bgr.dtype == np.uint8):
            raise ValueError(f"Frame.bgr must be uint8 (H, W, 3), got {self.bgr.dtype} {self.bgr.shape}")
        self.bgr.flags.writeable = False  # a frame is large: frozen in place, not copied

    @property
    def width(self) -> int:
        return int(self.bgr.shape[1])

    @property
    def height(self) -> int:
        return int(self.bgr.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """A piece of sound. samples: float32 (N,) mono, -1..1; rate_hz; starts at started_at_ns UTC."""

    camera_id: str
    started_at_ns: int
    samples: NDArray[np.float32]
    rate_hz: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", read_only(self.samples, "Sound.samples", np.float32, (None,)))


@dataclass(frozen=True, slots=True)
class Camera:
    """A source of frames.

    uri: file, folder of pictures, rtsp://, http:// or webcam device; sampling_hz: wished frames a second, 0 = all;
    zones: name -> polygon corners (x, y) in pixels of the original frame; site: where it hangs;
    starts_at_ns: UTC of the first frame of a file, 0 = the file's own time (its metadata or name), else its modification time;
    origin: who declared it, "settings" for a settings file, which takes away again what it no longer names;
    position: metres east and north of any point of the site, for travel times; None: nobody said.
    """

    camera_id: str
    uri: str
    sampling_hz: float = 0.0
    zones: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    site: str = ""
    starts_at_ns: int = 0
    is_live: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    position: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.camera_id:
            raise ValueError("Camera.camera_id must not be empty")
        if self.sampling_hz < 0:
            raise ValueError(f"Camera.sampling_hz must be 0 (all frames) or more, got {self.sampling_hz}")
