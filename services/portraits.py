"""A portrait as an operator gives it: a picture file in, one face's vector out, or one line that says what to do."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadInputError, NotFoundError, UnreadableMediaError
from pipeline.ports import Face
from pipeline.types import Probe
from services.settings import Settings
from services.typography import Ink, Pen

Pixels = NDArray[np.uint8]

MOST_BYTES = 64 * 1024 * 1024
MOST_PIXELS = 120_000_000  # 360 MB once decoded
LEAST_SIDE_PX = 24  # a smaller picture holds no face that could be told from another
MARK_BGR = (64, 200, 255)


def read_picture(path: Path) -> Pixels:
    """BGR uint8 (H, W, 3); raises NotFoundError, BadInputError for one too large, UnreadableMediaError for what is no picture."""
    if not path.is_file():
        raise NotFoundError(f"picture {path} must exist; check the path")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise BadInputError(f"picture {path} must have at most {MOST_BYTES // 1024**2} MB, got {size / 1024**2:.0f} MB: save it smaller")
    data = path.read_bytes()
    width, height = stated_size(data)
    if width * height > MOST_PIXELS:
        most = MOST_PIXELS // 1_000_000
        raise BadInputError(f"picture {path} must have at most {most} million pixels, got {width} x {height}: save it smaller")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:
        picture = None
    if picture is None:
        raise UnreadableMediaError(f"picture {path} must be a JPEG, PNG or other picture, got {len(data)} bytes that do not decode")
    return np.asarray(picture, np.uint8)


def stated_size(data: bytes) -> tuple[int, int]:
    """Width and height as the head of a PNG or JPEG states them, before anything is decoded; (0, 0) of anything else."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # the frame header, of whatever coding
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + length
    return 0, 0


def faces_in(settings: Settings, path: Path) -> list[Face]:
    """The faces of a picture, left to right; those too poor for a vector say why in ``flaw``. Raises as ``read_picture`` does."""
    from services import wiring

    return _left_to_right(wiring.face_encoder(settings).faces(read_picture(path)))


def portrait_probe(settings: Settings, path: Path, which: int | None = None, numbered: Path | None = None, space: str = "") -> Probe:
    """A face of a picture as a probe.

    which: its number, from 1 at the left, needed where several can be searched for; numbered: where to write the picture with the numbers,
    when they are asked for; space: that of the vector, when an index does not answer in that of the settings.
    Raises BadInputError where no face can be searched for or it is not said which, NotFoundError, UnreadableMediaError.
    """
    from services import wiring

    bgr = read_picture(path)
    height, width = bgr.shape[:2]
    if min(height, width) < LEAST_SIDE_PX:
        raise BadInputError(
            f"portrait {path} must be at least {LEAST_SIDE_PX} pixels wide and high, got {width} x {height}: take a larger one"
        )
    encoder = wiring.face_encoder_of(settings, space) if space else wiring.face_encoder(settings)
    faces = _left_to_right(encoder.faces(bgr))
    if not faces:
        raise BadInputError(f"portrait {path} must show a face, found none in {width} x {height} pixels: take one that looks at the camera")
    embedding = _chosen(faces, path, which, bgr, numbered).embedding
    if embedding is None:
        raise ValueError("a chosen face has a vector")
    return Probe("portrait", embeddings=(embedding,))


def _chosen(faces: list[Face], path: Path, which: int | None, bgr: Pixels, numbered: Path | None) -> Face:
    """The face with a vector that is meant, or a BadInputError that names all there are."""
    width = bgr.shape[1]
    if which is not None:
        if not 1 <= which <= len(faces):
            raise BadInputError(f"--face must be 1 to {len(faces)} for portrait {path}, got {which}: {_listed(faces, width)}")
        face = faces[which - 1]
        if face.embedding is None:
            raise BadInputError(
                f"face {which} of portrait {path} cannot be searched for ({face.flaw}): take a larger, sharper picture of it"
            )
        return face
    usable = [face for face in faces if face.embedding is not None]
    if len(usable) == 1:
        return usable[0]
    if not usable:
        flaws = faces[0].flaw if len(faces) == 1 else _listed(faces, width)
        raise BadInputError(f"portrait {path} must show a face clearly, got {flaws}: take a larger, sharper picture from the front")
    written = ""
    if numbered is not None:
        write_numbered(bgr, faces, numbered)
        written = f" ({numbered} shows the numbers)"
    raise BadInputError(f"portrait {path} shows {_listed(faces, width)}: choose one with --face N{written}")


def _left_to_right(faces: list[Face]) -> list[Face]:
    return sorted(faces, key=lambda face: (float(face.xyxy[0] + face.xyxy[2]), float(face.xyxy[1])))


def _listed(faces: list[Face], width: int) -> str:
    """5 faces: 1 at left (x 40..90, y 20..80), 2 ..."""
    told = []
    for number, face in enumerate(faces, 1):
        x1, y1, x2, y2 = (round(float(value)) for value in face.xyxy)
        place = ("left", "middle", "right")[min(2, max(0, 3 * (x1 + x2) // (2 * width)))]
        flaw = f", {face.flaw}" if face.embedding is None else ""
        told.append(f"{number} at {place} (x {x1}..{x2}, y {y1}..{y2}{flaw})")
    return f"{len(faces)} face{'s' if len(faces) > 1 else ''}: {', '.join(told)}"


def write_numbered(bgr: Pixels, faces: list[Face], path: Path) -> None:
    """Write the picture with each face in a numbered frame, as .jpg or .png; raises BadInputError for another ending."""
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise BadInputError(f"a picture with numbers must end in .jpg or .png, got {path.name!r}")
    page, pen = bgr.copy(), Pen()
    size_px = max(16, min(bgr.shape[:2]) // 16)
    for number, face in enumerate(faces, 1):
        x1, y1, x2, y2 = (round(float(value)) for value in face.xyxy)
        cv2.rectangle(page, (x1, y1), (x2, y2), MARK_BGR, max(2, size_px // 10))
        pen.write(page, str(number), (max(0, x1) + 4, max(0, y1) + size_px), Ink(size_px, 700, MARK_BGR))
    _, data = cv2.imencode(path.suffix.lower(), page)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())
