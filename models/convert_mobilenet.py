"""MobileNetV2 (ImageNet) from a torch checkpoint to ONNX, without torch.

The source is the file that torch wrote before it used zip archives: five pickles in a row (magic number, protocol, system facts, state
dictionary, storage keys), then every storage as an int64 count and its raw values. Only the names that a state dictionary needs are
unpickled; any other name is refused, so a tampered file cannot run code.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import UnreadableMediaError

MAGIC = 0x1950A86A20F9469CFC6C
# expand, out, times, stride
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
MEAN_RGB = (0.485, 0.456, 0.406)
DEVIATION_RGB = (0.229, 0.224, 0.225)
BATCH_NORM_EPSILON = 1e-5
MID_LEVEL = 13  # the last block at stride 16, 96 channels

Array = NDArray[Any]


class _Storage:
    """A run of values that tensors are views of; filled after the pickles are read."""

    def __init__(self, dtype: str, count: int) -> None:
        self.values: Array = np.zeros(count, dtype)


class _Tensor:
    """A view of a storage that is not filled yet."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self) -> Array:
        itemsize = self.storage.values.itemsize
        view = np.lib.stride_tricks.as_strided(self.storage.values[self.offset :], self.shape, tuple(s * itemsize for s in self.strides))
        return view.copy()


class _StateReader(pickle.Unpickler):
    """Unpickles a state dictionary and nothing else."""

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise UnreadableMediaError(f"a checkpoint may only name tensors and storages, got {module}.{name}: do not use this file")
        return self.ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, count = pid[:5]
        if kind != "storage":
            raise UnreadableMediaError(f"a checkpoint may only refer to storages, got {kind!r}")
        return self.storages.setdefault(str(key), _Storage(dtype, int(count)))


def read_checkpoint(source: Path) -> dict[str, Array]:
    """The arrays of a torch state dictionary by name; raises UnreadableMediaError for anything else."""
    with source.open("rb") as file:
        try:
            if _StateReader(file).load() != MAGIC:
                raise UnreadableMediaError(f"{source.name} must be a torch checkpoint of the old form, got another magic number")
            _StateReader(file).load()  # protocol version
            _StateReader(file).load()  # byte order and type sizes
            reader = _StateReader(file)
            state = reader.load()
            for key in _StateReader(file).load():
                _fill(reader.storages[str(key)], file)
        except (pickle.UnpicklingError, EOFError, KeyError, ValueError, struct.error) as error:
            raise UnreadableMediaError(f"{source.name} must be a torch checkpoint of the old form: {error}") from error
    return {name: tensor.array() for name, tensor in state.items()}


def _fill(storage: _Storage, file: BinaryIO) -> None:
    (count,) = struct.unpack("<q", file.read(8))
    if count != len(storage.values):
        raise ValueError(f"storage must hold {len(storage.values)} values, got {count}")
    storage.values[:] = np.frombuffer(file.read(count * storage.values.itemsize), storage.values.dtype)


class _Graph:
    """Nodes and weights of the network while it grows."""

    def __init__(self, state: dict[str, Array]) -> None:
        self.state = state
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, values: Array) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def convolution(self, source: str, conv: str, norm: str, stride: int, is_activated: bool) -> str:
        """Convolution with its batch norm folded in, and ReLU6 where asked."""
        kernel = self.state[f"{conv}.weight"]  # (out, in / groups, k, k)
        scale = self.state[f"{norm}.weight"] / np.sqrt(self.state[f"{norm}.running_var"] + BATCH_NORM_EPSILON)  # (out,)
        bias = self.state[f"{norm}.bias"] - self.state[f"{norm}.running_mean"] * scale
        size = kernel.shape[-1]
        is_depthwise = kernel.shape[1] == 1 and size > 1
        weights = [self.weight(f"{conv}.w", kernel * scale[:, None, None, None]), self.weight(f"{conv}.b", bias)]
        output = self.node(
            "Conv",
            [source, *weights],
            conv,
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[size // 2] * 4,
            group=kernel.shape[0] if is_depthwise else 1,
        )
        return self.node("Clip", [output, "zero", "six"], f"{conv}.relu6") if is_activated else output

    def inverted_residual(self, source: str, name: str, expand: int, stride: int, is_residual: bool) -> str:
        """One block: widen, depthwise, narrow; the sum with its input where the shapes agree."""
        output, step = source, 0
        if expand != 1:
            output, step = self.convolution(source, f"{name}.conv.0", f"{name}.conv.1", 1, True), 3
        output = self.convolution(output, f"{name}.conv.{step}", f"{name}.conv.{step + 1}", stride, True)
        output = self.convolution(output, f"{name}.conv.{step + 3}", f"{name}.conv.{step + 4}", 1, False)
        return self.node("Add", [source, output], f"{name}.sum") if is_residual else output


def _build(state: dict[str, Array]) -> onnx.ModelProto:
    graph = _Graph(state)
    graph.weight("zero", np.array(0.0))
    graph.weight("six", np.array(6.0))
    mean = graph.weight("mean", np.array(MEAN_RGB).reshape(1, 3, 1, 1) * 255)
    scale = graph.weight("scale", 1 / (np.array(DEVIATION_RGB).reshape(1, 3, 1, 1) * 255))
    output = graph.node("Mul", [graph.node("Sub", ["rgb", mean], "centred"), scale], "normal")
    output = graph.convolution(output, "features.0.0", "features.0.1", 2, True)
    channels, index, mid = 32, 1, output
    for expand, width, times, stride in BLOCKS:
        for repeat in range(times):
            step = stride if repeat == 0 else 1
            output = graph.inverted_residual(output, f"features.{index}", expand, step, step == 1 and channels == width)
            if index == MID_LEVEL:
                mid = output
            channels, index = width, index + 1
    output = graph.convolution(output, f"features.{index}.0", f"features.{index}.1", 1, True)
    graph.node("Identity", [mid], "mid")
    graph.node("Identity", [output], "map")
    picture = helper.make_tensor_value_info("rgb", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    maps = [
        helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", 1280, "rows", "columns"]),
        helper.make_tensor_value_info("mid", TensorProto.FLOAT, ["batch", 96, "mid_rows", "mid_columns"]),
    ]
    made = helper.make_graph(graph.nodes, "mobilenetv2", [picture], maps, graph.weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def convert(source: Path, target: Path) -> None:
    """Write ``source`` (torch checkpoint of MobileNetV2 1.0 without its classifier) to ``target`` as ONNX.

    Input ``rgb`` float32 (B, 3, h, w), RGB 0..255, normalised inside; outputs ``map`` (B, 1280, h/32, w/32) and
    ``mid`` (B, 96, h/16, w/16).
    Raises UnreadableMediaError when the file is something else. Architecture: Sandler et al., MobileNetV2, CVPR 2018, table 2.
    """
    state = read_checkpoint(source)
    if state.get("features.18.0.weight", np.zeros(0)).shape != (1280, 320, 1, 1):
        raise UnreadableMediaError(f"{source.name} must hold MobileNetV2 of width 1.0, got {len(state)} arrays without its last layer")
    model = _build({name: values.astype(np.float64) for name, values in state.items()})
    onnx.checker.check_model(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, target)
