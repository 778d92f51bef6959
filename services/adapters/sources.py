"""What a user names (a file, a folder, an address) to cameras, and a camera to its open Capture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.capture import Part, without_credentials
from pipeline.errors import BadInputError, UnreadableMediaError
from pipeline.ports import Capture
from pipeline.types import Camera
from services.adapters.folder_capture import PICTURES, FolderCapture, pictures_of
from services.adapters.pyav_capture import LIVE_SCHEMES, CaptureOptions, PyAvCapture, check_file, is_local_file, scheme_of

VIDEOS = frozenset(
    {".mp4", ".mkv", ".avi", ".mov", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".webm", ".flv", ".m4v", ".3gp", ".wmv", ".asf"}
)


def open_capture(camera: Camera, **options: Any) -> Capture:
    """The Capture of any source; ``options`` are those of CaptureOptions, and ``camera.options`` overrides them.

    Raises NotFoundError or UnreadableMediaError at once for a local source that is missing or empty.
    """
    known = {field.name for field in fields(CaptureOptions)}
    chosen = {**options, **camera.options}
    unknown = sorted(set(chosen) - known)
    if unknown:
        raise BadInputError(f"capture options must be among {', '.join(sorted(known))}, got {', '.join(unknown)}")
    settings = CaptureOptions(**chosen)
    if is_local_file(camera.uri):
        path = Path(camera.uri)
        check_file(path)
        if path.is_dir() or path.suffix.lower() in PICTURES:
            return FolderCapture(camera, Part(settings.from_s, settings.to_s))
    return PyAvCapture(camera, settings)


def cameras_from_sources(sources: Sequence[str], sampling_hz: float = 0.0) -> list[Camera]:
    """Cameras for what a user names: a video file, a folder of videos (a camera each), a folder of pictures (one camera), an address.

    Ids come from file names or addresses, never with credentials, and are made unique. Raises NotFoundError or UnreadableMediaError.
    """
    cameras: list[Camera] = []
    taken: set[str] = set()
    for source in sources:
        for uri in _expand(source):
            camera_id = _unused(_camera_id(uri), taken)
            taken.add(camera_id)
            is_live = scheme_of(uri) in LIVE_SCHEMES or uri.startswith("/dev/")
            cameras.append(Camera(camera_id, uri, sampling_hz, is_live=is_live))
    return cameras


def _expand(source: str) -> list[str]:
    if not is_local_file(source):
        return [source]
    path = Path(source)
    check_file(path)
    if path.is_file():
        return [str(path)]
    videos = sorted(str(each) for each in path.iterdir() if each.is_file() and each.suffix.lower() in VIDEOS)
    if videos:
        return videos
    if pictures_of(path):
        return [str(path)]
    below = [uri for folder in sorted(each for each in path.iterdir() if each.is_dir()) for uri in _expand_quietly(folder)]
    if not below:
        raise UnreadableMediaError(f"folder {path} must hold videos ({', '.join(sorted(VIDEOS))}) or pictures, got none: check the path")
    return below


def _expand_quietly(folder: Path) -> list[str]:
    try:
        return _expand(str(folder))
    except UnreadableMediaError:  # a folder of notes beside folders of videos
        return []


def _camera_id(uri: str) -> str:
    """A short name of letters, digits, dot and dash, without credentials."""
    if is_local_file(uri):
        path = Path(uri).absolute()
        name = path.name if path.is_dir() else path.stem
    else:
        name = without_credentials(uri).partition("://")[2].partition("?")[0].removeprefix("***@") or uri.removeprefix("/dev/")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[-56:] or "camera"


def _unused(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    return next(f"{name}-{count}" for count in range(2, len(taken) + 3) if f"{name}-{count}" not in taken)
