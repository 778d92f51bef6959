"""Reads a torch checkpoint (a zip of one pickle and raw storages) with numpy alone. Nothing in it can be executed."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnreadableMediaError

Array = NDArray[Any]

STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
DAMAGE = (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError, ValueError, TypeError, IndexError, AttributeError)


def read(path: Path) -> Any:
    """What ``torch.save`` put there, its tensors as numpy arrays.

    Raises UnreadableMediaError for what is no such file, or when its pickle asks for anything but tensors and plain containers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Unpickler(archive).load()
    except DAMAGE as error:
        raise UnreadableMediaError(f"{path.name} must be a torch checkpoint, but does not read ({error}): fetch it again") from error


class _Unpickler(pickle.Unpickler):
    """Knows tensors and ordered dictionaries, and no other class."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        pickled = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if pickled is None:
            raise UnreadableMediaError("a torch checkpoint must hold data.pkl, got a zip without it")
        self._archive = archive
        self._folder = pickled.removesuffix("data.pkl")
        if f"{self._folder}byteorder" in archive.namelist() and archive.read(f"{self._folder}byteorder") != b"little":
            raise UnreadableMediaError("a torch checkpoint must be little-endian to be read here")
        super().__init__(io.BytesIO(archive.read(pickled)))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuilt
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise UnreadableMediaError(f"a torch checkpoint must hold tensors and plain containers alone, got {module}.{name}: it is not read")

    def persistent_load(self, pid: Any) -> Array:
        kind, dtype, key, _, length = pid
        if kind != "storage":
            raise UnreadableMediaError(f"a torch checkpoint must refer to storages alone, got {kind!r}")
        return np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), dtype)[:length]


def rebuilt(storage: Array, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Array:
    """A tensor's elements copied out of its storage; raises UnreadableMediaError when they lie outside it."""
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min(offset, *size, *stride, 0) < 0 or (0 not in size and last >= len(storage)):
        raise UnreadableMediaError(f"a tensor of {tuple(size)} must lie inside its storage of {len(storage)} elements")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), steps).copy()
