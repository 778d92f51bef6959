"""Reads a TensorFlow.js graph model: model.json and the weight files beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.convert.source_graph import Array, Node, SourceGraph, producer
from pipeline.errors import UnreadableMediaError

STORED_TYPES = {"float32": np.float32, "int32": np.int32, "bool": np.bool_, "float16": np.float16, "uint8": np.uint8, "uint16": np.uint16}


def read(path: Path, outputs: Sequence[str] = ()) -> SourceGraph:
    """The graph of ``path`` (model.json). outputs: names, by default every node that no other uses.

    Raises UnreadableMediaError when the file is no graph model or its weight files are short.
    """
    try:
        description = json.loads(path.read_text())
        entries = description["modelTopology"]["node"]
        constants = _weights(path.parent, description["weightsManifest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableMediaError(f"{path.name} must be a TensorFlow.js graph model with its weights beside it: {error}") from error
    nodes = {}
    for entry in entries:
        sources = tuple(source for source in entry.get("input", []) if not source.startswith("^"))
        attributes = {key: _attribute(value) for key, value in entry.get("attr", {}).items() if key != "value"}
        nodes[entry["name"]] = Node(entry["name"], entry["op"], sources, attributes)
    inputs = {node.name: tuple(node.attributes["shape"]) for node in nodes.values() if node.op == "Placeholder"}
    used = {producer(source) for node in nodes.values() for source in node.inputs}
    leaves = tuple(name for name, node in nodes.items() if name not in used and node.op not in ("Const", "NoOp"))
    return SourceGraph(nodes, constants, inputs, tuple(outputs) or leaves)


def _weights(folder: Path, manifest: Sequence[dict[str, Any]]) -> dict[str, Array]:
    constants = {}
    for group in manifest:
        stored = b"".join((folder / name).read_bytes() for name in group["paths"])
        offset = 0
        for weight in group["weights"]:
            quantization = weight.get("quantization", {})
            stored_type = np.dtype(STORED_TYPES[quantization.get("dtype", weight["dtype"])])
            count = int(np.prod(weight["shape"], dtype=np.int64))
            values = np.frombuffer(stored, stored_type, count, offset)
            offset += count * stored_type.itemsize
            if "scale" in quantization:
                values = values.astype(np.float32) * quantization["scale"] + quantization["min"]
            wanted = np.dtype(STORED_TYPES[weight["dtype"]])
            if wanted.kind == "i" and values.dtype.kind == "f":
                values = np.round(values)
            constants[weight["name"]] = values.astype(wanted).reshape(weight["shape"])
    return constants


def _attribute(value: dict[str, Any]) -> Any:
    """One attribute of the protocol buffer's JSON form as a plain value."""
    if "shape" in value:
        return [int(dimension.get("size", -1)) for dimension in value["shape"].get("dim", [])]
    if "list" in value:
        items: tuple[str, list[Any]] = next(iter(value["list"].items()), ("i", []))
        return [_scalar(items[0], item) for item in items[1]]
    kind, item = next(iter(value.items()), ("b", None))
    return _scalar(kind, item)


def _scalar(kind: str, item: Any) -> Any:
    if kind == "s":
        return base64.b64decode(item).decode("latin1")
    if kind == "i":
        return int(item)
    return item
