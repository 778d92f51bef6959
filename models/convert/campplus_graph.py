"""CAM++ as an ONNX graph from its checkpoint.

Wang et al., CAM++: A Fast and Efficient Network for Speaker Verification Using Context-Aware Masking, Interspeech 2023: a small 2-D
residual head over frequency, a TDNN of half the frame rate, three dense TDNN blocks with context-aware masking, mean and deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from models.convert.graph_builder import GraphBuilder

Weights = Mapping[str, NDArray[Any]]

BINS = 80
BLOCKS = ((12, 1), (24, 2), (16, 2))  # (layers, dilation)
SEGMENT = 100  # frames of the masking's local context, at half the frame rate
EPSILON = 1e-5


def build(weights: Weights) -> onnx.ModelProto:
    """features float32 (batch, frames, 80), log-mel minus its mean -> vectors (batch, 192), not normalised; frames at least 4.

    The activation that some copies put behind the last normalisation is left out, as in the paper's network.
    """
    graph = _CampPlus(weights)
    x = graph.op("Transpose", "features", perm=[0, 2, 1])  # (B, 80, T)
    x = graph.head(graph.op("Unsqueeze", x, graph.stored([1])))  # (B, 320, T)
    x = graph.normalised(graph.convolution(x, "xvector.tdnn.linear", stride=2), "xvector.tdnn.nonlinear")  # (B, 128, T / 2)
    graph.measure(x)
    for index, (layers, dilation) in enumerate(BLOCKS, 1):
        for layer in range(1, layers + 1):
            x = graph.op("Concat", x, graph.dense_layer(x, f"xvector.block{index}.tdnnd{layer}", dilation), axis=1)
        x = graph.convolution(graph.normalised(x, f"xvector.transit{index}.nonlinear"), f"xvector.transit{index}.linear")
    x = graph.normalised(x, "xvector.out_nonlinear")  # (B, 512, T / 2)
    vectors = graph.dense(graph.statistics(x))
    return graph.model({"features": ["batch", "frames", BINS]}, {"vectors": (vectors, ["batch", 192])})


class _CampPlus(GraphBuilder):
    """The parts of the network; x is the name of a value (batch, channels, time), in the head (batch, channels, frequency, time)."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self._weights = weights
        self._length = self._missing = self._pads = self._share = ""

    # --------------------------------------------------------------------------------------------- parts

    def head(self, x: str) -> str:
        x = self.normalised(self._picture(x, "head.conv1", 1), "head.bn1")
        for layer in ("head.layer1", "head.layer2"):
            x = self._residual(x, f"{layer}.0", 2)
            x = self._residual(x, f"{layer}.1", 1)
        x = self.normalised(self._picture(x, "head.conv2", 2), "head.bn2")
        return self.op("Reshape", x, self.stored([0, 320, -1]))

    def measure(self, x: str) -> None:
        """What every mask needs of the length T of ``x``: T, what is missing to whole segments, one over the frames of each segment."""
        self._length = self.op("Shape", x, start=2, end=3)  # (1,)
        whole = self.stored([SEGMENT])
        over = self.op("Mod", self._length, whole)
        self._missing = self.op("Mod", self.op("Sub", whole, over), whole)
        self._pads = self.op("Concat", self.stored([0, 0, 0, 0, 0]), self._missing, axis=0)
        ones = self.op("Expand", self.stored(np.ones((1, 1, 1))), self.op("Concat", self.stored([1, 1]), self._length, axis=0))
        self._share = self.op("Reciprocal", self._sums(ones))  # (1, 1, S)

    def dense_layer(self, x: str, name: str, dilation: int) -> str:
        """(B, C, T) -> (B, 32, T): a bottleneck, a dilated convolution, and the mask that the context opens and closes."""
        x = self.convolution(self.normalised(x, f"{name}.nonlinear1"), f"{name}.linear1")
        x = self.normalised(x, f"{name}.nonlinear2")  # (B, 128, T)
        local = self.convolution(x, f"{name}.cam_layer.linear_local", dilation=dilation)  # (B, 32, T)
        mean = self.op("ReduceMean", x, self.stored([2]), keepdims=1)  # (B, 128, 1)
        context = self.op("Add", mean, self.op("Mul", self._sums(x), self._share))  # (B, 128, S): one mask a segment
        narrow = self.op("Relu", self.convolution(context, f"{name}.cam_layer.linear1"))
        mask = self.op("Sigmoid", self.convolution(narrow, f"{name}.cam_layer.linear2"))  # (B, 32, S)
        masked = self.op("Mul", self._segments(local), self.op("Unsqueeze", mask, self.stored([3])))  # (B, 32, S, 100)
        flat = self.op("Reshape", masked, self.stored([0, 0, -1]))
        return self.op("Slice", flat, self.stored([0]), self._length, self.stored([2]))

    def statistics(self, x: str) -> str:
        """Mean and deviation over time, (B, 2 C)."""
        time = self.stored([2])
        mean = self.op("ReduceMean", x, time, keepdims=1)
        squares = self.op("ReduceSumSquare", self.op("Sub", x, mean), time, keepdims=0)
        free = self.op("Cast", self.op("Sub", self._length, self.stored([1])), to=onnx.TensorProto.FLOAT)
        deviation = self.op("Sqrt", self.op("Div", squares, free))
        return self.op("Concat", self.op("Squeeze", mean, time), deviation, axis=1)

    def dense(self, x: str) -> str:
        """(B, 1024) -> (B, 192), the last normalisation folded in."""
        name = "xvector.dense.nonlinear.batchnorm"
        scale = 1 / np.sqrt(self._weights[f"{name}.running_var"] + EPSILON)  # (192,)
        matrix = self._weights["xvector.dense.linear.weight"][:, :, 0] * scale[:, None]
        return self.op("Gemm", x, self.stored(matrix), self.stored(-self._weights[f"{name}.running_mean"] * scale), transB=1)

    # ------------------------------------------------------------------------------------------- building blocks

    def convolution(self, x: str, name: str, stride: int = 1, dilation: int = 1) -> str:
        kernel = self._weights[f"{name}.weight"]
        pad = (kernel.shape[2] - 1) // 2 * dilation
        bias = [self.stored(self._weights[f"{name}.bias"])] if f"{name}.bias" in self._weights else []
        return self.op("Conv", x, self.stored(kernel), *bias, strides=[stride], dilations=[dilation], pads=[pad, pad])

    def normalised(self, x: str, name: str, has_relu: bool = True) -> str:
        prefix = f"{name}.batchnorm" if f"{name}.batchnorm.weight" in self._weights else name
        parts = [self.stored(self._weights[f"{prefix}.{part}"]) for part in ("weight", "bias", "running_mean", "running_var")]
        y = self.op("BatchNormalization", x, *parts, epsilon=EPSILON)
        return self.op("Relu", y) if has_relu else y

    def _picture(self, x: str, name: str, stride: int) -> str:
        kernel = self._weights[f"{name}.weight"]
        pads: Sequence[int] = [kernel.shape[2] // 2, kernel.shape[3] // 2] * 2
        return self.op("Conv", x, self.stored(kernel), strides=[stride, 1], pads=pads)

    def _residual(self, x: str, name: str, stride: int) -> str:
        y = self.normalised(self._picture(x, f"{name}.conv1", stride), f"{name}.bn1")
        y = self.normalised(self._picture(y, f"{name}.conv2", 1), f"{name}.bn2", has_relu=False)
        if stride != 1:
            x = self.normalised(self._picture(x, f"{name}.shortcut.0", stride), f"{name}.shortcut.1", has_relu=False)
        return self.op("Relu", self.op("Add", y, x))

    def _segments(self, x: str) -> str:
        """(B, C, T) -> (B, C, S, 100), the last filled up with zeros."""
        return self.op("Reshape", self.op("Pad", x, self._pads), self.stored([0, 0, -1, SEGMENT]))

    def _sums(self, x: str) -> str:
        return self.op("ReduceSum", self._segments(x), self.stored([3]), keepdims=0)
