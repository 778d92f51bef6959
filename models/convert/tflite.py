"""Reads a float TensorFlow Lite model (.tflite, a FlatBuffer; schema of TensorFlow 2, lite/schema/schema.fbs) with the standard library."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.convert.source_graph import Array, Node, SourceGraph
from pipeline.errors import UnreadableMediaError

MARK = b"TFL3"
STORED_TYPES = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64, 9: np.int8}
ACTIVATIONS = {0: (), 1: ("Relu",), 3: ("Relu6",), 4: ("Tanh",)}
PADDINGS = ("SAME", "VALID")
CONVOLUTION, DEPTHWISE, RESHAPE = 3, 4, 22
# Operators of one source operation, and the place of their activation among their options (None: they have none).
PLAIN: Mapping[int, tuple[str, int | None]] = {
    0: ("Add", 0),
    14: ("Sigmoid", None),
    18: ("Mul", 0),
    19: ("Relu", None),
    21: ("Relu6", None),
    28: ("Tanh", None),
    34: ("Pad", None),
    41: ("Sub", 0),
    42: ("RealDiv", 0),
    54: ("Prelu", None),
    55: ("Maximum", None),
    57: ("Minimum", None),
    75: ("Sqrt", None),
    101: ("Abs", None),
}


class _Table:
    """One table of a FlatBuffer: fields by their number in the schema, absent ones are empty or their default."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position
        self._fields = position - self._unpack("<i", position)
        self._count = (self._unpack("<H", self._fields) - 4) // 2

    def _unpack(self, code: str, position: int) -> int:
        value: int = struct.unpack_from(code, self._data, position)[0]
        return value

    def _at(self, field: int) -> int:
        """Where a field lies, 0 when it is absent."""
        offset = self._unpack("<H", self._fields + 4 + 2 * field) if field < self._count else 0
        return self._position + offset if offset else 0

    def number(self, field: int, code: str, default: int = 0) -> int:
        return self._unpack(f"<{code}", at) if (at := self._at(field)) else default

    def table(self, field: int) -> _Table | None:
        return _Table(self._data, at + self._unpack("<I", at)) if (at := self._at(field)) else None

    def _vector(self, field: int) -> tuple[int, int]:
        """How many items a vector has, and where they begin."""
        at = self._at(field)
        begin = at + self._unpack("<I", at) if at else 0
        return (self._unpack("<I", begin), begin + 4) if at else (0, 0)

    def integers(self, field: int) -> list[int]:
        count, begin = self._vector(field)
        return list(struct.unpack_from(f"<{count}i", self._data, begin))

    def tables(self, field: int) -> list[_Table]:
        count, begin = self._vector(field)
        places = range(begin, begin + 4 * count, 4)
        return [_Table(self._data, place + self._unpack("<I", place)) for place in places]

    def bytes(self, field: int) -> bytes:
        count, begin = self._vector(field)
        return self._data[begin : begin + count]


def read(path: Path) -> SourceGraph:
    """The graph of a .tflite file. Raises UnreadableMediaError when it is none, is damaged, or has an operator that is not known here."""
    try:
        data = path.read_bytes()
        if data[4:8] != MARK:
            raise ValueError("the mark TFL3 is missing")
        return _graph(_Table(data, struct.unpack_from("<I", data)[0]))
    except (OSError, ValueError, IndexError, KeyError, struct.error) as error:
        raise UnreadableMediaError(f"{path.name} must be a float TensorFlow Lite model: {error}") from error


def _graph(model: _Table) -> SourceGraph:
    codes = [max(code.number(0, "b"), code.number(3, "i")) for code in model.tables(1)]
    buffers, (main, *_) = model.tables(4), model.tables(2)
    tensors = main.tables(0)
    names = [f"tensor_{index}" for index in range(len(tensors))]
    constants: dict[str, Array] = {}
    for name, tensor in zip(names, tensors, strict=True):
        stored = buffers[tensor.number(2, "I")].bytes(0)
        if stored:
            values = np.frombuffer(stored, STORED_TYPES[tensor.number(1, "b")]).reshape(tensor.integers(0))
            constants[name] = values.astype(np.float32) if values.dtype == np.float16 else values
    nodes: dict[str, Node] = {}
    for operator in main.tables(3):
        inputs = tuple(names[index] for index in operator.integers(1) if index >= 0)
        output = operator.integers(2)[0]
        rule = RULES.get(code := codes[operator.number(0, "I")], _plain)
        kind, sources, attributes, after = rule(code, inputs, operator.table(4), constants, tensors[output].integers(0))
        inner = f"{names[output]}_before" if after else names[output]
        nodes[inner] = Node(inner, kind, sources, attributes)
        if after:
            nodes[names[output]] = Node(names[output], after[0], (inner,))
    inputs_of_graph = {names[index]: tuple(tensors[index].integers(0)) for index in main.integers(1)}
    return SourceGraph(nodes, constants, inputs_of_graph, tuple(names[index] for index in main.integers(2)))


_Made = tuple[str, tuple[str, ...], dict[str, Any], tuple[str, ...]]  # operation, inputs, attributes, the activation after it


def _plain(code: int, inputs: tuple[str, ...], options: _Table | None, constants: dict[str, Array], shape: list[int]) -> _Made:
    if code not in PLAIN:
        raise UnreadableMediaError(f"no translation to ONNX is known for the TensorFlow Lite operator {code}: add one to tflite.py")
    kind, place = PLAIN[code]
    after = ACTIVATIONS[options.number(place, "b")] if options is not None and place is not None else ()
    return kind, inputs, {}, after


def _convolution(code: int, inputs: tuple[str, ...], options: _Table | None, constants: dict[str, Array], shape: list[int]) -> _Made:
    if options is None:
        raise ValueError("a convolution has no options")
    is_depthwise = code == DEPTHWISE
    late = 1 if is_depthwise else 0  # the depth multiplier comes before the activation
    kernel = constants[inputs[1]].transpose(1, 2, 3, 0)  # (kh, kw, in, out), depthwise (kh, kw, out, 1)
    if is_depthwise:
        times = max(1, options.number(3, "i"))
        kernel = kernel.reshape(*kernel.shape[:2], kernel.shape[2] // times, times)  # (kh, kw, in, multiplier)
    constants[f"{inputs[1]}_kernel"] = kernel
    attributes = {
        "padding": PADDINGS[options.number(0, "b")],
        "strides": [1, options.number(2, "i"), options.number(1, "i"), 1],
        "dilations": [1, options.number(5 + late, "i", 1), options.number(4 + late, "i", 1), 1],
        "fused_ops": [*(["BiasAdd"] if len(inputs) > 2 else []), *ACTIVATIONS[options.number(3 + late, "b")]],
    }
    kind = "FusedDepthwiseConv2dNative" if is_depthwise else "_FusedConv2D"
    return kind, (inputs[0], f"{inputs[1]}_kernel", *inputs[2:]), attributes, ()


def _reshape(code: int, inputs: tuple[str, ...], options: _Table | None, constants: dict[str, Array], shape: list[int]) -> _Made:
    constants[f"{inputs[0]}_shape"] = np.asarray([-1, *shape[1:]], np.int64)  # the batch as it comes
    return "Reshape", (inputs[0], f"{inputs[0]}_shape"), {}, ()


RULES: Mapping[int, Callable[[int, tuple[str, ...], _Table | None, dict[str, Array], list[int]], _Made]] = {
    CONVOLUTION: _convolution,
    DEPTHWISE: _convolution,
    RESHAPE: _reshape,
}
