"""Small TensorFlow Lite models, written here, against numpy; and what is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import pytest

from models.convert import tflite
from models.convert.translate import translate
from pipeline.errors import UnreadableMediaError
from tests.models.test_convert import convolve, run, spread

RANDOM = np.random.default_rng(11)
SHAPE = (1, 6, 8, 3)
ADD, CONVOLUTION, DEPTHWISE, MULTIPLY, RELU, RESHAPE, SUBTRACT, PRELU, ABSOLUTE, SPIN = 0, 3, 4, 18, 19, 22, 41, 54, 101, 77
KINDS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int32): 2}


class TinyLite:
    """Writes a .tflite file: tensors, operators in order; the first tensor is the input, the last the output."""

    def __init__(self, shape: tuple[int, ...] = SHAPE) -> None:
        self._tensors: list[tuple[tuple[int, ...], np.ndarray | None]] = [(shape, None)]
        self._operators: list[tuple[int, list[int], int, list[tuple[int, str, int]]]] = []

    def constant(self, values: np.ndarray) -> int:
        self._tensors.append((values.shape, values))
        return len(self._tensors) - 1

    def add(self, code: int, inputs: list[int], shape: tuple[int, ...], options: list[tuple[int, str, int]] | None = None) -> int:
        """options: (field, "int8" or "int32", value)."""
        self._tensors.append((shape, None))
        self._operators.append((code, inputs, len(self._tensors) - 1, options or []))
        return len(self._tensors) - 1

    def bytes(self) -> bytes:
        made = flatbuffers.Builder(1024)
        stored = [values for _, values in self._tensors if values is not None]
        buffers = [self._table(made, {})]
        for values in stored:
            data = made.CreateByteVector(np.ascontiguousarray(values).tobytes())
            buffers.append(self._table(made, {0: data}))
        tensors, held = [], 0
        for shape, values in self._tensors:
            held += values is not None
            sizes = made.CreateNumpyVector(np.asarray(shape, np.int32))
            kind = KINDS[values.dtype] if values is not None else 0
            numbers = [(1, "Int8", kind), (2, "Uint32", held if values is not None else 0)]
            tensors.append(self._table(made, {0: sizes}, numbers))
        codes = sorted({code for code, *_ in self._operators})
        operators = []
        for code, inputs, output, options in self._operators:
            settings = self._table(made, {}, [(field, kind.capitalize(), value) for field, kind, value in options])
            sources, results = (made.CreateNumpyVector(np.asarray(each, np.int32)) for each in (inputs, [output]))
            operators.append(self._table(made, {1: sources, 2: results, 4: settings}, [(0, "Uint32", codes.index(code))]))
        names = [self._table(made, {}, [(0, "Int8", code), (3, "Int32", code)]) for code in codes]
        first, last = (made.CreateNumpyVector(np.asarray([each], np.int32)) for each in (0, len(self._tensors) - 1))
        graph = self._table(made, {0: self._list(made, tensors), 1: first, 2: last, 3: self._list(made, operators)})
        parts = {1: self._list(made, names), 2: self._list(made, [graph]), 4: self._list(made, buffers)}
        made.Finish(self._table(made, parts, [(0, "Uint32", 3)]), b"TFL3")
        return bytes(made.Output())

    @staticmethod
    def _list(made: flatbuffers.Builder, tables: list[int]) -> int:
        made.StartVector(4, len(tables), 4)
        for table in reversed(tables):
            made.PrependUOffsetTRelative(table)
        return int(made.EndVector())

    @staticmethod
    def _table(made: flatbuffers.Builder, offsets: dict[int, int], numbers: list[tuple[int, str, int]] | None = None) -> int:
        made.StartObject(8)
        for field, offset in offsets.items():
            made.PrependUOffsetTRelativeSlot(field, offset, 0)
        for field, kind, value in numbers or []:
            getattr(made, f"Prepend{kind}Slot")(field, value, 0)
        return int(made.EndObject())


def convert(lite: TinyLite, folder: Path) -> onnx.ModelProto:
    path = folder / "tiny.tflite"
    path.write_bytes(lite.bytes())
    return translate(tflite.read(path))


def picture() -> np.ndarray:
    return RANDOM.normal(size=SHAPE).astype(np.float32)


def window(padding: int, stride: int, activation: int, is_depthwise: bool = False, times: int = 1) -> list[tuple[int, str, int]]:
    """The options of a convolution. padding: 0 SAME, 1 VALID; activation: 0 none, 1 Relu."""
    late = int(is_depthwise)
    depth = [(3, "int32", times)] if is_depthwise else []
    return [(0, "int8", padding), (1, "int32", stride), (2, "int32", stride), *depth, (3 + late, "int8", activation)]


@pytest.mark.parametrize(("padding", "stride"), [(0, 1), (0, 2), (1, 1)])
def test_a_convolution_with_bias_and_activation(tmp_path: Path, padding: int, stride: int) -> None:
    kernel, bias = RANDOM.normal(size=(5, 3, 3, 3)).astype(np.float32), RANDOM.normal(size=5).astype(np.float32)
    lite = TinyLite()
    lite.add(CONVOLUTION, [0, lite.constant(kernel), lite.constant(bias)], (1, 1, 1, 5), window(padding, stride, 1))
    x = picture()
    expected = np.maximum(convolve(x, kernel.transpose(1, 2, 3, 0), stride, is_same=padding == 0) + bias, 0)
    np.testing.assert_allclose(run(convert(lite, tmp_path), x)[0], expected, atol=1e-4)


@pytest.mark.parametrize("times", [1, 2])
def test_a_depthwise_convolution_with_a_half_precision_kernel(tmp_path: Path, times: int) -> None:
    kernel = RANDOM.normal(size=(1, 3, 3, 3 * times)).astype(np.float16)
    lite = TinyLite()
    lite.add(DEPTHWISE, [0, lite.constant(kernel)], (1, 6, 8, 3 * times), window(0, 1, 0, True, times))
    x = picture()
    expected = convolve(x, spread(kernel[0].astype(np.float32).reshape(3, 3, 3, times)), 1)
    np.testing.assert_allclose(run(convert(lite, tmp_path), x)[0], expected, atol=1e-3)


def test_the_sums_by_which_mobilefacenet_writes_its_slopes(tmp_path: Path) -> None:
    slope = RANDOM.random(3).astype(np.float32)
    lite = TinyLite()
    risen = lite.add(RELU, [0], SHAPE)
    below = lite.add(SUBTRACT, [0, lite.add(ABSOLUTE, [0], SHAPE)], SHAPE)
    lite.add(ADD, [risen, lite.add(MULTIPLY, [lite.constant(slope / 2), below], SHAPE)], SHAPE)
    x = picture()
    np.testing.assert_allclose(run(convert(lite, tmp_path), x)[0], np.where(x > 0, x, slope * x), atol=1e-5)


def test_a_slope_of_its_own_and_an_activation_after_a_sum(tmp_path: Path) -> None:
    slope = RANDOM.random((1, 1, 3)).astype(np.float32)
    lite = TinyLite()
    leaned = lite.add(PRELU, [0, lite.constant(slope)], SHAPE)
    lite.add(ADD, [leaned, 0], SHAPE, [(0, "int8", 1)])
    x = picture()
    np.testing.assert_allclose(run(convert(lite, tmp_path), x)[0], np.maximum(np.where(x > 0, x, slope * x) + x, 0), atol=1e-5)


def test_a_reshape_keeps_the_batch(tmp_path: Path) -> None:
    lite = TinyLite((2, 1, 1, 4))
    lite.add(RESHAPE, [0, lite.constant(np.asarray([-1, 4], np.int32))], (2, 4))
    model = convert(lite, tmp_path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    x = RANDOM.normal(size=(3, 1, 1, 4)).astype(np.float32)
    np.testing.assert_allclose(run(model, x)[0], x[:, 0, 0])


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    lite = TinyLite()
    lite.add(SPIN, [0], SHAPE)
    with pytest.raises(UnreadableMediaError, match="operator 77"):
        convert(lite, tmp_path)


@pytest.mark.parametrize(
    "spoil", [lambda data: b"", lambda data: b"no model at all", lambda data: data[:120], lambda data: data[:8] + b"\xff" * len(data)]
)
def test_what_is_no_model_is_called_so(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    lite = TinyLite()
    lite.add(RELU, [0], SHAPE)
    path = tmp_path / "broken.tflite"
    path.write_bytes(spoil(lite.bytes()))
    with pytest.raises(UnreadableMediaError, match=r"broken\.tflite must be a float TensorFlow Lite model"):
        tflite.read(path)


def test_the_real_mobilefacenet_gives_a_batch_what_it_gives_each_alone(weights: Callable[[str], Path]) -> None:
    model = onnx.load(weights("mobilefacenet"))
    x = RANDOM.normal(size=(3, 112, 112, 3)).astype(np.float32)
    together = run(model, x)[0]
    assert together.shape == (3, 192)
    for row in range(3):
        np.testing.assert_allclose(together[row], run(model, x[row : row + 1])[0][0], atol=1e-4)
