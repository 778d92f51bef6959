"""The demo's clip: the user's own, else a public sample that a package brings, else a moving-camera clip from a package's photograph."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import NotFoundError, ReadOnlyStorageError, SourceUnavailableError, UnreadableMediaError

DEBIAN_PACKAGE = "opencv-doc"
DEBIAN_MEMBER = "usr/share/doc/opencv-doc/examples/data/vtest.avi"
FRAME_SIZE = (768, 576)
PAN_SECONDS, PAN_HZ = 12, 10


def find_clip(own: Path | None, cache: Path, photograph: Callable[[], Path], say: Callable[[str], None]) -> tuple[Path, str]:
    """(clip, where it is from). Raises NotFoundError for an own clip that is not there, SourceUnavailableError when nothing can be had.

    ``photograph`` gives a picture of people (from the weights registry); only called when the public sample cannot be had.
    """
    if own is not None:
        if not own.exists():
            raise NotFoundError(f"video {own} must exist; check the path")
        return own, "your own"
    try:
        return debian_sample(cache, say), f"vtest.avi of Debian's {DEBIAN_PACKAGE}"
    except SourceUnavailableError as reason:
        say(f"no public sample: {reason}")
    clip = cache / "moving-camera.avi"
    if not clip.exists():
        _write_pan(photograph(), clip)
    return clip, "a moving-camera clip over a photograph of the npm package @vladmandic/human"


def debian_sample(cache: Path, say: Callable[[str], None]) -> Path:
    """The sample, from this machine or fetched once with the machine's own package client (no root needed)."""
    installed = Path("/") / DEBIAN_MEMBER
    if installed.exists():
        return installed
    kept = cache / "vtest.avi"
    if kept.exists():
        return kept
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise SourceUnavailableError("this machine has no Debian package client")
    say(f"fetching the sample clip (Debian's {DEBIAN_PACKAGE}, 95 MB, once) ...")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        fetched = subprocess.run(["apt-get", "-q", "download", DEBIAN_PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
        packages = sorted(Path(folder).glob("*.deb"))
        if fetched.returncode or not packages:
            said = fetched.stderr.strip().splitlines() or ["no package came"]
            raise SourceUnavailableError(f"apt-get download {DEBIAN_PACKAGE} failed: {said[-1]}")
        unpacking = subprocess.run(["dpkg-deb", "-x", packages[0].name, "x"], cwd=folder, check=False, capture_output=True)
        if unpacking.returncode:
            raise SourceUnavailableError(f"the package {DEBIAN_PACKAGE} came damaged: run again")
        unpacked = Path(folder) / "x" / DEBIAN_MEMBER
        if not unpacked.exists():
            raise SourceUnavailableError(f"{DEBIAN_PACKAGE} no longer carries vtest.avi")
        unpacked.replace(kept)
    return kept


def _write_pan(photograph: Path, clip: Path) -> None:
    picture = cv2.imread(str(photograph))
    if picture is None:
        raise UnreadableMediaError(f"{photograph} must be a picture, got a file that does not decode: fetch the weights again")
    clip.parent.mkdir(parents=True, exist_ok=True)
    part = clip.with_name(f"part-{clip.name}")  # half a clip of an interrupted run is never taken for a whole one
    pan(np.asarray(picture, np.uint8), part)
    part.replace(clip)


def pan(picture: NDArray[np.uint8], clip: Path) -> None:
    """Write a clip of a camera that pans over ``picture`` (BGR) to the right and back. Raises ReadOnlyStorageError."""
    width, height = FRAME_SIZE
    scale = max(height / picture.shape[0], 1.6 * width / picture.shape[1])
    wide = cv2.resize(picture, None, fx=scale, fy=scale)
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), PAN_HZ, FRAME_SIZE)
    if not writer.isOpened():
        raise ReadOnlyStorageError(f"clip {clip} must be writable: change the owner of its folder or set storage.cache_folder")
    count = PAN_SECONDS * PAN_HZ
    for number in range(count):
        phase = (1 - np.cos(2 * np.pi * number / count)) / 2  # 0..1..0, no jerk at the turn
        left = round(phase * (wide.shape[1] - width))
        top = (wide.shape[0] - height) // 2
        writer.write(np.ascontiguousarray(wide[top : top + height, left : left + width]))
    writer.release()
