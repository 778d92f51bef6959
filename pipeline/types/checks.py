"""Validators of the types: say what must hold and what came."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_only(values: Any, name: str, dtype: Any, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """``values`` as a read-only array of ``dtype`` and ``shape`` (None: any length); raises ValueError otherwise.

    A read-only array of the right type is taken as it is; anything else is copied, so that the caller's array stays free.
    """
    array = np.asarray(values)
    wanted = ", ".join("N" if length is None else str(length) for length in shape)
    if array.size == 0 and len(shape) > 1 and array.ndim != len(shape):
        array = np.zeros(tuple(0 if length is None else length for length in shape), dtype)
    if array.ndim != len(shape) or any(w is not None and w != g for w, g in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name} must be {np.dtype(dtype).name} ({wanted}), got {array.dtype} {array.shape}")
    if array.dtype != np.dtype(dtype) or array.flags.writeable:
        array = array.astype(dtype)  # copies
        array.flags.writeable = False
    return array


def fraction(value: float, name: str) -> None:
    """Raises ValueError unless ``value`` lies in 0..1."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in 0..1, got {value}")


LARGEST = 2**63 - 1  # what a database and an int64 hold


def storable(value: int, name: str) -> None:
    """Raises ValueError unless ``value`` fits into 64 bits: whoever sends more must not stop those who store it."""
    if not -LARGEST <= value <= LARGEST:
        raise ValueError(f"{name} must fit into 64 bits, got {value}")


def in_order(first_ns: int, last_ns: int, name: str) -> None:
    """Raises ValueError when a time span ends before it starts, or does not fit into 64 bits."""
    storable(first_ns, name)
    storable(last_ns, name)
    if last_ns < first_ns:
        raise ValueError(f"{name} must not end before it starts, got {first_ns} to {last_ns}")
