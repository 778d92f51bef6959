"""A stand-in for the base network and people of noise, for tests that need no download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.nanodet import BINS, CLASSES, PERSON, STRIDES


class _Layers:
    """The nodes of a graph while it grows."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def pooled(self, source: str, size: int, output: str) -> str:
        return self.node("AveragePool", [source], output, kernel_shape=[size] * 2, strides=[size] * 2)

    def convolved(self, source: str, kernel: np.ndarray, bias: np.ndarray, output: str) -> str:
        """A convolution of one pixel with (out, in) weights."""
        inputs = [source, self.constant(f"{output}.w", kernel[..., None, None].astype(np.float32)), self.constant(f"{output}.b", bias)]
        return self.node("Conv", inputs, output)

    def stage(self, source: str, channels: int, size: int, name: str) -> str:
        """``channels`` of two convolutions joined, as a stage of the real base ends."""
        pooled = self.pooled(source, size, f"{name}.pooled")
        into = 3 if size == 4 else channels // 2
        halves = [
            self.convolved(
                pooled, self.random.normal(0, into**-0.5, (channels // 2, into)), np.zeros(channels // 2, np.float32), f"{name}.{half}"
            )
            for half in "ab"
        ]
        return self.node("Concat", halves, name, axis=1)

    def head(self, stride: int, kernel: np.ndarray, bias: np.ndarray, name: str, is_score: bool) -> str:
        """An output (B, cells, channels) straight from the picture's mean colours."""
        made = self.convolved(self.pooled("picture", stride, f"{name}.pooled"), kernel, bias, f"{name}.conv")
        if is_score:
            made = self.node("Sigmoid", [made], f"{name}.sigmoid")
        shape = self.constant(f"{name}.shape", np.array([0, len(bias), -1], np.int64))
        flat = self.node("Reshape", [made, shape], f"{name}.flat")
        return self.node("Transpose", [flat], name, perm=[0, 2, 1])


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with the stages and outputs of NanoDet that sees a person, 16 pixels wide and high, in every cell of 16 pixels that is blue
    and not red."""
    layers = _Layers()
    layers.stage(layers.stage(layers.stage("picture", 64, 4, "first"), 128, 2, "second"), 256, 2, "third")
    outputs = []
    for stride in STRIDES:
        scores, certain = np.zeros((CLASSES, 3)), np.full(CLASSES, -20, np.float32)
        if stride == 16:
            scores[PERSON], certain[PERSON] = (3, 0, -3), -6
        sides = np.zeros(4 * BINS, np.float32)
        sides[[0, 1, BINS, BINS + 1, 2 * BINS, 2 * BINS + 1, 3 * BINS, 3 * BINS + 1]] = 50  # between none and one cell: half a cell
        outputs.append(layers.head(stride, scores, certain, f"scores{stride}", is_score=True))
        outputs.append(layers.head(stride, np.zeros((4 * BINS, 3)), sides, f"sides{stride}", is_score=False))
    picture = helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["b", 3, "h", "w"])
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", None, None]) for name in outputs]
    graph = helper.make_graph(layers.nodes, "small", [picture], infos, layers.weights)
    path = tmp_path_factory.mktemp("network") / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="session")
def noise_person() -> Callable[..., np.ndarray]:
    """Makes a crop of two colours and noise, always the same for the same seed and size."""

    def make(seed: int, height: int = 160, width: int = 60) -> np.ndarray:
        random = np.random.default_rng(seed)
        upper, lower = random.integers(0, 200, (2, 3))
        crop = np.concatenate([np.tile(upper, (height // 2, width, 1)), np.tile(lower, (height - height // 2, width, 1))])
        return (crop + random.integers(0, 40, crop.shape)).astype(np.uint8)

    return make
