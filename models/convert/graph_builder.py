"""Collects the nodes and constants of an ONNX graph that is written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from models.convert.translate import IR_VERSION, OPSET


class GraphBuilder:
    """Nodes are appended in the order they are computed; every method gives the name of what it made."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, NDArray[Any]] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of one output."""
        name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def stored(self, values: ArrayLike) -> str:
        """A constant; whole numbers are stored as int64, others as float32."""
        array = np.asarray(values)
        name = f"stored_{len(self._initializers)}"
        self._initializers[name] = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        return name

    def model(self, inputs: Mapping[str, Sequence[int | str]], outputs: Mapping[str, tuple[str, Sequence[int | str]]]) -> onnx.ModelProto:
        """The finished float32 model. inputs: name -> shape, a free axis by its name; outputs: name -> what gives it and its shape."""
        for name, (made, _) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [made], [name]))
        graph = helper.make_graph(
            self._nodes,
            "sightline",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, (_, shape) in outputs.items()],
            [numpy_helper.from_array(np.ascontiguousarray(values), name) for name, values in self._initializers.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
