"""Pictures of the media store: BGR arrays to JPEG and back."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import NotFoundError, UnreadableMediaError
from pipeline.ports import MediaStore

JPEG_QUALITY = 90


def to_jpeg(bgr: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """A picture (H, W, 3) as JPEG. Raises ValueError for what is no picture."""
    if bgr.ndim != 3 or bgr.shape[2] != 3 or bgr.dtype != np.uint8 or 0 in bgr.shape:
        raise ValueError(f"a picture must be uint8 (H, W, 3) and not empty, got {bgr.dtype} {bgr.shape}")
    is_encoded, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not is_encoded:
        raise ValueError(f"a picture of {bgr.shape} did not encode")
    return bytes(data.tobytes())


def from_jpeg(data: bytes, name: str = "picture") -> NDArray[np.uint8]:
    """JPEG bytes as BGR (H, W, 3); raises UnreadableMediaError, naming ``name``."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        raise UnreadableMediaError(f"{name} must be a JPEG, got {len(data)} bytes that do not decode")
    return np.asarray(picture, np.uint8)


def store(media: MediaStore, pictures: Iterable[tuple[str, NDArray[np.uint8]]]) -> int:
    """Put (key, BGR picture) pairs into the media store as JPEG; gives how many. Raises StorageFullError as the store does."""
    count = 0
    for key, bgr in pictures:
        media.put(key, to_jpeg(bgr))
        count += 1
    return count


def load(media: MediaStore, key: str) -> NDArray[np.uint8] | None:
    """The picture of ``key``, or None where it is gone (retention) or damaged: a page is drawn without it then."""
    try:
        return from_jpeg(media.get(key), key)
    except (NotFoundError, UnreadableMediaError):
        return None
