"""A stand-in for MobileNetV2 and people of noise, for tests of the encoders that need no download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.body import MAP_CHANNELS, MID_CHANNELS


@pytest.fixture(scope="session")
def small_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with the inputs and outputs of MobileNetV2, one pooled convolution deep."""
    random = np.random.default_rng(0)
    nodes, weights, outputs = [], [], []
    for name, channels, stride in (("map", MAP_CHANNELS, 32), ("mid", MID_CHANNELS, 16)):
        kernel = random.normal(0, 0.01, (channels, 3, 1, 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"{name}.w"))
        nodes.append(helper.make_node("AveragePool", ["rgb"], [f"{name}.pooled"], kernel_shape=[stride] * 2, strides=[stride] * 2))
        nodes.append(helper.make_node("Conv", [f"{name}.pooled", f"{name}.w"], [name]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", channels, f"{name}h", f"{name}w"]))
    picture = helper.make_tensor_value_info("rgb", TensorProto.FLOAT, ["b", 3, "h", "w"])
    graph = helper.make_graph(nodes, "small", [picture], outputs, weights)
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
