"""Translates a source graph into ONNX, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from models.convert.source_graph import Array, Node, SourceGraph, producer
from pipeline.errors import UnreadableMediaError

OPSET, IR_VERSION = 18, 9
TO_NCHW, TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]
SAME_NAMED = {"Relu", "Sigmoid", "Tanh", "Sqrt", "Exp", "Abs", "Neg", "Reciprocal", "Identity"}
RENAMED = {"Add": "Add", "AddV2": "Add", "BiasAdd": "Add", "Sub": "Sub", "Mul": "Mul", "RealDiv": "Div", "Maximum": "Max", "Minimum": "Min"}
RENAMED |= {"Prelu": "PRelu"}


def translate(graph: SourceGraph) -> onnx.ModelProto:
    """The ONNX model of ``graph``; outputs keep their names. Raises UnreadableMediaError for an operation that is not known here."""
    translator = Translator(graph)
    for node in graph.ordered():
        translator.add(node)
    model = translator.model()
    _write_whole_sizes(model)
    return model


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    """The shapes that ONNX can infer, by value name; 0 for a length that is not known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.value_info, *graph.input]
    return {value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim] for value in values}


def _write_whole_sizes(model: onnx.ModelProto) -> None:
    """Resize targets of height and width alone become (batch, channels, height, width): onnxruntime moves transposes past a Resize and
    forgets that its sizes were of two axes."""
    shapes = shapes_of(model)
    stored = {initializer.name: initializer for initializer in model.graph.initializer}
    for node in model.graph.node:
        before = shapes.get(node.input[0], [])
        if node.op_type == "Resize" and len(before) == 4 and all(before[:2]):
            height, width = numpy_helper.to_array(stored[node.input[3]])
            sizes = np.asarray([*before[:2], height, width], np.int64)
            stored[node.input[3]].CopyFrom(numpy_helper.from_array(sizes, node.input[3]))
            kept = [attribute for attribute in node.attribute if attribute.name != "axes"]
            del node.attribute[:]
            node.attribute.extend(kept)


class Translator:
    """Collects the ONNX nodes of one graph."""

    def __init__(self, graph: SourceGraph) -> None:
        self.graph = graph
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, Array] = {}
        self._names: dict[str, list[str]] = {name: [name] for name in graph.inputs}  # ONNX names of each source node's outputs
        self._rules: dict[str, Callable[[Node], str | list[str]]] = {
            "Conv2D": self._convolution,
            "_FusedConv2D": self._convolution,
            "DepthwiseConv2dNative": self._convolution,
            "FusedDepthwiseConv2dNative": self._convolution,
            "MatMul": self._product,
            "_FusedMatMul": self._product,
            "MaxPool": self._pool,
            "AvgPool": self._pool,
            "Mean": self._reduce,
            "Sum": self._reduce,
            "Pad": self._pad,
            "PadV2": self._pad,
            "Reshape": self._reshape,
            "Transpose": lambda node: self.op("Transpose", [self.name(node.inputs[0])], perm=self.integers(node.inputs[1])),
            "ConcatV2": lambda node: self.op("Concat", [self.name(i) for i in node.inputs[:-1]], axis=self.integers(node.inputs[-1])[0]),
            "SplitV": self._split,
            "ResizeBilinear": self._resize,
            "LeakyRelu": lambda node: self.activation(self.name(node.inputs[0]), "LeakyRelu", node),
            "Relu6": lambda node: self.activation(self.name(node.inputs[0]), "Relu6", node),
            "Softmax": lambda node: self.op("Softmax", [self.name(node.inputs[0])], axis=-1),
            "Square": lambda node: self.op("Mul", [self.name(node.inputs[0])] * 2),
            "Rsqrt": lambda node: self.op("Reciprocal", [self.op("Sqrt", [self.name(node.inputs[0])])]),
        }

    def add(self, node: Node) -> None:
        """Translate one node whose inputs are translated already."""
        if self.graph.constant(node.name) is not None:
            return
        if node.op in SAME_NAMED or node.op in RENAMED:
            made: str | list[str] = self.op(RENAMED.get(node.op, node.op), [self.name(source) for source in node.inputs])
        elif node.op in self._rules:
            made = self._rules[node.op](node)
        else:
            raise UnreadableMediaError(
                f"no translation to ONNX is known for the operation {node.op} ({node.name}): add one to translate.py"
            )
        self._names[node.name] = [made] if isinstance(made, str) else made

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        outputs = []
        for output in self.graph.outputs:
            if output != self.name(output):
                self._nodes.append(helper.make_node("Identity", [self.name(output)], [output]))
            outputs.append(helper.make_empty_tensor_value_info(output))
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in self.graph.inputs.items()]
        initializers = [numpy_helper.from_array(np.ascontiguousarray(values), name) for name, values in self._initializers.items()]
        graph = helper.make_graph(self._nodes, "sightline", inputs, outputs, initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    # ------------------------------------------------------------------------------------- building blocks

    def op(self, kind: str, inputs: Sequence[str], output_count: int = 1, **attributes: Any) -> Any:
        """Append an ONNX node; gives its output name, or the list of names for several."""
        names = [f"{kind.lower()}_{len(self._nodes)}_{index}" for index in range(output_count)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if output_count == 1 else names

    def stored(self, values: ArrayLike) -> str:
        """The name of a constant of the ONNX model; int32 becomes int64."""
        array = np.asarray(values)
        array = array.astype({"i": np.int64, "f": np.float32}.get(array.dtype.kind, array.dtype))
        name = f"stored_{len(self._initializers)}"
        self._initializers[name] = array
        return name

    def name(self, reference: str) -> str:
        """The ONNX name behind a reference of the source graph; a constant is stored on first use."""
        source, _, index = reference.partition(":")
        if source not in self._names:
            value = self.graph.constant(source)
            if value is None:
                raise UnreadableMediaError(f"graph must define {source!r} before it is used")
            self._names[source] = [self.stored(value)]
        return self._names[source][int(index or 0)]

    def array(self, reference: str) -> Array:
        """The constant behind ``reference``; raises UnreadableMediaError when it depends on the input."""
        value = self.graph.constant(reference)
        if value is None:
            raise UnreadableMediaError(f"{producer(reference)!r} must be a constant of the graph to be translated")
        return value

    def integers(self, reference: str) -> list[int]:
        return [int(value) for value in self.array(reference).reshape(-1)]

    def activation(self, x: str, kind: str, node: Node) -> str:
        """``x`` after the activation ``kind``."""
        made: str
        if kind == "Relu6":
            made = self.op("Clip", [x, self.stored(np.float32(0)), self.stored(np.float32(6))])
        elif kind == "LeakyRelu":
            slope = node.attributes.get("leakyrelu_alpha", node.attributes.get("alpha", 0.2))
            made = self.op("LeakyRelu", [x], alpha=float(slope))
        elif kind == "Prelu":
            made = self.op("PRelu", [x, self.name(node.inputs[-1])])
        elif kind in SAME_NAMED:
            made = self.op(kind, [x])
        else:
            raise UnreadableMediaError(f"no translation to ONNX is known for the activation {kind} ({node.name})")
        return made

    def nchw(self, x: str) -> str:
        made: str = self.op("Transpose", [x], perm=TO_NCHW)
        return made

    def nhwc(self, x: str) -> str:
        made: str = self.op("Transpose", [x], perm=TO_NHWC)
        return made

    # --------------------------------------------------------------------------------------------- rules

    def _convolution(self, node: Node) -> str:
        kernel = self.array(node.inputs[1]).astype(np.float32)  # (kh, kw, in, out), depthwise (kh, kw, in, multiplier)
        strides = node.attributes["strides"][1:3]
        dilations = (node.attributes.get("dilations") or [1, 1, 1, 1])[1:3]
        attributes = {"strides": strides, "dilations": dilations, **_padding(node, kernel.shape[:2], dilations)}
        if "Depthwise" in node.op:
            height, width, channels, multiplier = kernel.shape
            kernel = kernel.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
            attributes["group"] = channels
        else:
            kernel = kernel.transpose(3, 2, 0, 1)  # (out, in, kh, kw)
        fused = node.attributes.get("fused_ops") or []
        inputs = [self.nchw(self.name(node.inputs[0])), self.stored(kernel)]
        if "BiasAdd" in fused:
            inputs.append(self.stored(self.array(node.inputs[2]).reshape(-1)))
        y = self.nhwc(self.op("Conv", inputs, **attributes))
        return self._after(y, [kind for kind in fused if kind != "BiasAdd"], node)

    def _after(self, y: str, kinds: Sequence[str], node: Node) -> str:
        for kind in kinds:
            y = self.activation(y, kind, node)
        return y

    def _product(self, node: Node) -> str:
        sides = [self.name(source) for source in node.inputs[:2]]
        for index, side in enumerate(("transpose_a", "transpose_b")):
            if node.attributes.get(side):
                sides[index] = self.op("Transpose", [sides[index]], perm=[1, 0])
        y = self.op("MatMul", sides)
        fused = node.attributes.get("fused_ops") or []
        if "BiasAdd" in fused:
            y = self.op("Add", [y, self.name(node.inputs[2])])
        return self._after(y, [kind for kind in fused if kind != "BiasAdd"], node)

    def _pool(self, node: Node) -> str:
        size, strides = node.attributes["ksize"][1:3], node.attributes["strides"][1:3]
        kind = "MaxPool" if node.op == "MaxPool" else "AveragePool"
        x = self.nchw(self.name(node.inputs[0]))
        return self.nhwc(self.op(kind, [x], kernel_shape=size, strides=strides, **_padding(node, size, [1, 1])))

    def _reduce(self, node: Node) -> str:
        axes, x = self.integers(node.inputs[1]), self.name(node.inputs[0])
        keep = int(bool(node.attributes.get("keep_dims")))
        kind = "ReduceSum" if node.op == "Sum" else "ReduceMean"
        made: str = self.op(kind, [x, self.stored(np.asarray(axes, np.int64))], keepdims=keep)
        return made

    def _pad(self, node: Node) -> str:
        widths = self.array(node.inputs[1]).astype(np.int64)  # (axes, 2)
        inputs = [self.name(node.inputs[0]), self.stored(np.concatenate([widths[:, 0], widths[:, 1]]))]
        if node.op == "PadV2":
            inputs.append(self.stored(np.float32(self.array(node.inputs[2]).reshape(()))))
        made: str = self.op("Pad", inputs, mode="constant")
        return made

    def _reshape(self, node: Node) -> str:
        shape = self.array(node.inputs[1]).astype(np.int64)
        made: str = self.op("Reshape", [self.name(node.inputs[0]), self.stored(shape)])
        return made

    def _split(self, node: Node) -> list[str]:
        sizes = self.integers(node.inputs[1])
        inputs = [self.name(node.inputs[0]), self.stored(np.asarray(sizes, np.int64))]
        made = self.op("Split", inputs, len(sizes), axis=self.integers(node.inputs[2])[0])
        return [made] if isinstance(made, str) else list(made)

    def _resize(self, node: Node) -> str:
        x = self.nchw(self.name(node.inputs[0]))
        if node.attributes.get("align_corners"):
            grid = "align_corners"
        else:
            grid = "half_pixel" if node.attributes.get("half_pixel_centers") else "asymmetric"
        height, width = self.integers(node.inputs[1])
        inner = self.stored(np.asarray([height, width], np.int64))
        return self.nhwc(self.op("Resize", [x, "", "", inner], axes=[2, 3], mode="linear", coordinate_transformation_mode=grid))


def _padding(node: Node, kernel: Sequence[int], dilations: Sequence[int]) -> dict[str, Any]:
    kind = node.attributes.get("padding", "VALID")
    if kind == "EXPLICIT":
        top, bottom, left, right = node.attributes["explicit_paddings"][2:6]
        return {"pads": [top, left, bottom, right]}
    if kind != "SAME":
        return {"auto_pad": "VALID"}
    if max(dilations) == 1:
        return {"auto_pad": "SAME_UPPER"}
    if list(node.attributes["strides"][1:3]) != [1, 1]:
        raise UnreadableMediaError(
            f"a dilated convolution with SAME padding must have stride 1, got {node.attributes['strides']} ({node.name})"
        )
    half = [dilation * (size - 1) // 2 for dilation, size in zip(dilations, kernel, strict=True)]  # onnxruntime: no auto_pad here
    return {"pads": half + half}
