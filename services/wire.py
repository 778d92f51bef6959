"""The one wire format: what every type looks like as bytes, and back.

Each message is a map whose first entry is ``schema_version`` and whose second is ``type``. Tracklets and coverage travel as msgpack with
raw arrays, the rest as JSON with arrays in base64. An array is a map of ``dtype`` (little-endian: <f2, <f4 or <i8), ``shape`` and
``data``. Fields that a reader does not know are skipped, so adding one keeps the version; anything else raises it.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeVar, cast, get_origin

import msgspec
import numpy as np

from pipeline.archive import JobProgress
from pipeline.errors import SchemaError
from pipeline.types import (
    Alert,
    ArchiveJob,
    Camera,
    CameraCoverage,
    Decision,
    Erasure,
    IdentityEvent,
    Query,
    Ranking,
    Reembedding,
    Tracklet,
    Watch,
)

SCHEMA_VERSION = 1

T = TypeVar("T")

NAMES: dict[type[Any], str] = {
    Alert: "alert",
    ArchiveJob: "archive-job",
    Camera: "camera",
    CameraCoverage: "coverage",
    Decision: "decision",
    Erasure: "erasure",
    IdentityEvent: "identity-event",
    JobProgress: "job-progress",
    Query: "query",
    Ranking: "ranking",
    Reembedding: "reembedding",
    Tracklet: "tracklet",
    Watch: "watch",
}
IN_MSGPACK = (Tracklet, CameraCoverage)
_DTYPES = ("<f2", "<f4", "<i8")


class _Head(msgspec.Struct):
    schema_version: int
    type: str


def encode(value: Any, vector_dtype: str = "<f2") -> bytes:
    """The bytes of a value of one of the travelling types. vector_dtype: <f2 halves a tracklet's vectors, <f4 keeps every bit."""
    name = NAMES.get(type(value))
    if name is None:
        raise TypeError(f"a value that travels must be one of {', '.join(kind.__name__ for kind in NAMES)}, got {type(value).__name__}")
    if vector_dtype not in ("<f2", "<f4"):
        raise ValueError(f"vector_dtype must be <f2 or <f4, got {vector_dtype!r}")
    body = msgspec.to_builtins(value, builtin_types=(bytes,), enc_hook=_array_to_map)
    if isinstance(value, Tracklet) and vector_dtype == "<f2":
        for embedding in body["embeddings"]:
            embedding["vector"] = _halved(embedding["vector"])
    document = {"schema_version": SCHEMA_VERSION, "type": name, **body}
    if isinstance(value, IN_MSGPACK):
        return msgspec.msgpack.encode(document)
    return msgspec.json.encode(document)  # bytes become base64


def decode(kind: type[T], data: bytes | None) -> T:
    """The value of type ``kind`` that ``data`` holds; raises SchemaError for damaged bytes, another type or a newer schema."""
    name = NAMES[kind]
    if data is None:
        raise SchemaError(f"a {name} must have bytes, got a tombstone")
    codec: Any = msgspec.msgpack if kind in IN_MSGPACK else msgspec.json
    try:
        head = codec.decode(data, type=_Head)
        if head.schema_version > SCHEMA_VERSION:
            raise SchemaError(
                f"a {name} must have schema_version {SCHEMA_VERSION} or lower, got {head.schema_version}:"
                " a newer Sightline wrote it, update this one"
            )
        if head.schema_version < 1 or head.type != name:
            raise SchemaError(f"the message must be a {name}, got {head.type!r} with schema_version {head.schema_version}")
        return cast(T, codec.decode(data, type=kind, dec_hook=_array_from_map))
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise SchemaError(f"these {len(data)} bytes must decode as a {name}: {error}") from error


def schema_version(data: bytes | None) -> int | None:
    """The schema version that ``data`` claims; None where there is none to be read."""
    for codec in (msgspec.msgpack, msgspec.json):
        try:
            return cast(int, cast(Any, codec).decode(data or b"", type=_Head).schema_version)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
    return None


def _array_to_map(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"a field that travels must be plain or an array, got {type(value).__name__}")
    dtype = value.dtype.newbyteorder("<").str
    if dtype not in _DTYPES:
        raise NotImplementedError(f"an array that travels must be one of {', '.join(_DTYPES)}, got {dtype}")
    return {"dtype": dtype, "shape": list(value.shape), "data": np.ascontiguousarray(value, dtype).tobytes()}


def _halved(array: dict[str, Any]) -> dict[str, Any]:
    values = np.frombuffer(array["data"], array["dtype"]).astype("<f2")
    return {"dtype": "<f2", "shape": array["shape"], "data": values.tobytes()}


def _array_from_map(kind: Any, value: Any) -> Any:
    if (get_origin(kind) or kind) is not np.ndarray:
        raise NotImplementedError(f"no wire form for {kind}")
    if not isinstance(value, dict) or value.get("dtype") not in _DTYPES:
        raise ValueError(f"an array must be a map with dtype {', '.join(_DTYPES)}, shape and data")
    data, shape = value.get("data"), value.get("shape")
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise ValueError(f"an array's data must be base64: {error}") from error
    if not isinstance(data, bytes) or not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError("an array must have data and a shape of lengths 0 or more")
    array = np.frombuffer(data, value["dtype"])
    if array.size != int(np.prod([float(length) for length in shape])):
        raise ValueError(f"an array of shape {tuple(shape)} must have as many values, got {array.size}")
    wanted = np.dtype(kind.__args__[1].__args__[0]) if hasattr(kind, "__args__") else array.dtype
    if array.dtype.kind != wanted.kind:
        raise ValueError(f"the array must be {wanted}, got {array.dtype}")
    converted = array.reshape(shape).astype(wanted, copy=False)
    converted.flags.writeable = False
    return converted
