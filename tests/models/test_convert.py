"""Small TensorFlow.js models, made here, against numpy; and the real ones, freed of their size, against themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from models.convert import tensorflow_js
from models.convert.release import release
from models.convert.translate import translate
from pipeline.errors import UnreadableMediaError

RANDOM = np.random.default_rng(7)
PICTURE = (1, 8, 12, 3)


def ints(*values: int) -> dict[str, Any]:
    return {"list": {"i": [str(value) for value in values]}}


def word(text: str) -> dict[str, Any]:
    import base64

    return {"s": base64.b64encode(text.encode()).decode()}


def words(*texts: str) -> dict[str, Any]:
    return {"list": {"s": [word(text)["s"] for text in texts]}}


def node(name: str, op: str, inputs: Sequence[str] = (), **attributes: Any) -> dict[str, Any]:
    return {"name": name, "op": op, "input": list(inputs), "attr": attributes}


class TinyModel:
    """Writes a TensorFlow.js graph model."""

    def __init__(self, folder: Path, shape: Sequence[int] = PICTURE) -> None:
        self.path = folder / "model.json"
        dimensions = {"shape": {"dim": [{"size": str(length)} for length in shape]}}
        self._nodes = [node("x", "Placeholder", shape=dimensions)]
        self._weights: list[dict[str, Any]] = []
        self._bytes = b""

    def constant(self, name: str, values: np.ndarray, **quantization: Any) -> str:
        values = np.asarray(values)
        kind = "int32" if values.dtype.kind == "i" and not quantization else "float32"
        stored = values if quantization else values.astype(kind)
        entry: dict[str, Any] = {"name": name, "shape": list(values.shape), "dtype": kind}
        self._weights.append(entry | ({"quantization": quantization} if quantization else {}))
        self._bytes += stored.tobytes()
        self._nodes.append(node(name, "Const"))
        return name

    def add(self, name: str, op: str, inputs: Sequence[str] = (), **attributes: Any) -> str:
        self._nodes.append(node(name, op, inputs, **attributes))
        return name

    def write(self) -> Path:
        manifest = [{"paths": ["model.bin"], "weights": self._weights}]
        self.path.write_text(json.dumps({"modelTopology": {"node": self._nodes}, "weightsManifest": manifest}))
        self.path.with_name("model.bin").write_bytes(self._bytes)
        return self.path


@pytest.fixture
def tiny(tmp_path: Path) -> TinyModel:
    return TinyModel(tmp_path)


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: x})
    return outputs


def convert_and_run(tiny: TinyModel, x: np.ndarray) -> list[np.ndarray]:
    return run(translate(tensorflow_js.read(tiny.write())), x)


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int, dilation: int = 1, is_same: bool = True) -> np.ndarray:
    """TensorFlow's convolution, written plainly: x (B, H, W, C), kernel (kh, kw, C, D)."""
    high, wide = ((size - 1) * dilation + 1 for size in kernel.shape[:2])
    if is_same:
        rows, columns = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
        down, across = max((rows - 1) * stride + high - x.shape[1], 0), max((columns - 1) * stride + wide - x.shape[2], 0)
        x = np.pad(x, ((0, 0), (down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0)))
    else:
        rows, columns = (x.shape[1] - high) // stride + 1, (x.shape[2] - wide) // stride + 1
    y = np.zeros((x.shape[0], rows, columns, kernel.shape[3]), np.float64)
    for row in range(rows):
        for column in range(columns):
            patch = x[:, row * stride : row * stride + high : dilation, column * stride : column * stride + wide : dilation]
            y[:, row, column] = np.tensordot(patch, kernel, axes=([1, 2, 3], [0, 1, 2]))
    return y


def spread(kernel: np.ndarray) -> np.ndarray:
    """A depthwise kernel (kh, kw, C, M) as the full kernel (kh, kw, C, C*M) it stands for."""
    high, wide, channels, times = kernel.shape
    full = np.zeros((high, wide, channels, channels * times))
    for channel in range(channels):
        full[:, :, channel, channel * times : (channel + 1) * times] = kernel[:, :, channel]
    return full


def picture(shape: Sequence[int] = PICTURE) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("stride", "dilation", "padding"), [(1, 1, "SAME"), (2, 1, "SAME"), (1, 1, "VALID"), (2, 1, "VALID"), (1, 2, "SAME")]
)
def test_a_convolution_equals_the_plain_one(tiny: TinyModel, stride: int, dilation: int, padding: str) -> None:
    kernel, x = RANDOM.normal(size=(3, 3, 3, 5)), picture()
    settings = {"strides": ints(1, stride, stride, 1), "dilations": ints(1, dilation, dilation, 1), "padding": word(padding)}
    tiny.add("y", "Conv2D", ["x", tiny.constant("k", kernel)], **settings)
    expected = convolve(x, kernel, stride, dilation, padding == "SAME")
    np.testing.assert_allclose(convert_and_run(tiny, x)[0], expected, atol=1e-4)


@pytest.mark.parametrize("times", [1, 2])
def test_a_depthwise_convolution_equals_the_plain_one(tiny: TinyModel, times: int) -> None:
    kernel, x = RANDOM.normal(size=(3, 3, 3, times)), picture()
    tiny.add("y", "DepthwiseConv2dNative", ["x", tiny.constant("k", kernel)], strides=ints(1, 2, 2, 1), padding=word("SAME"))
    np.testing.assert_allclose(convert_and_run(tiny, x)[0], convolve(x, spread(kernel), 2), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        ("Relu", lambda y: np.maximum(y, 0)),
        ("Relu6", lambda y: np.clip(y, 0, 6)),
        ("LeakyRelu", lambda y: np.where(y > 0, y, 0.1 * y)),
        ("Prelu", lambda y: np.where(y > 0, y, np.asarray([0.1, 0.2, 0.3, 0.4, 0.5]) * y)),
    ],
)
def test_fused_bias_and_activation_are_applied_in_that_order(tiny: TinyModel, kind: str, after: Callable[[Any], Any]) -> None:
    kernel, bias, x = RANDOM.normal(size=(1, 1, 3, 5)), RANDOM.normal(size=5) * 3, picture()
    inputs = ["x", tiny.constant("k", kernel), tiny.constant("b", bias)]
    if kind == "Prelu":
        inputs.append(tiny.constant("slopes", np.asarray([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)))
    settings = {"strides": ints(1, 1, 1, 1), "padding": word("SAME"), "fused_ops": words("BiasAdd", kind), "leakyrelu_alpha": {"f": 0.1}}
    tiny.add("y", "_FusedConv2D", inputs, **settings)
    np.testing.assert_allclose(convert_and_run(tiny, x)[0], after(convolve(x, kernel, 1) + bias), atol=1e-4)


def test_a_fused_matrix_product_equals_numpy(tmp_path: Path) -> None:
    tiny, matrix, bias, x = TinyModel(tmp_path, (1, 6)), RANDOM.normal(size=(4, 6)), RANDOM.normal(size=4), picture((1, 6))
    inputs = ["x", tiny.constant("m", matrix), tiny.constant("b", bias)]
    tiny.add("y", "_FusedMatMul", inputs, transpose_b={"b": True}, fused_ops=words("BiasAdd", "Relu"))
    np.testing.assert_allclose(convert_and_run(tiny, x)[0], np.maximum(x @ matrix.T + bias, 0), atol=1e-4)


def test_pools_pads_means_splits_and_joins_equal_numpy(tiny: TinyModel) -> None:
    x = picture()
    settings = {"ksize": ints(1, 2, 2, 1), "strides": ints(1, 2, 2, 1), "padding": word("VALID")}
    tiny.add("most", "MaxPool", ["x"], **settings)
    tiny.add("mean", "Mean", ["x", tiny.constant("axes", np.asarray([1, 2]))], keep_dims={"b": False})
    tiny.add("padded", "PadV2", ["x", tiny.constant("w", np.asarray([[0, 0], [1, 0], [0, 2], [0, 0]])), tiny.constant("v", np.float32(9))])
    tiny.add("halves", "SplitV", ["x", tiny.constant("s", np.asarray([1, 2])), tiny.constant("a", np.asarray(3))])
    tiny.add("turned", "ConcatV2", ["halves:1", "halves", tiny.constant("last", np.asarray(3))])
    outputs = convert_and_run(tiny, x)
    blocks = x.reshape(1, 4, 2, 6, 2, 3)
    wanted = [
        blocks.max(axis=(2, 4)),
        x.mean(axis=(1, 2)),
        np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=9),
        x[..., [1, 2, 0]],
    ]
    for got, expected in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("grid", ["align_corners", "half_pixel_centers", "neither"])
def test_a_resize_samples_on_the_grid_it_was_trained_with(tiny: TinyModel, grid: str) -> None:
    x = picture()
    settings = {name: {"b": name == grid} for name in ("align_corners", "half_pixel_centers")}
    tiny.add("y", "ResizeBilinear", ["x", tiny.constant("size", np.asarray([16, 24]))], **settings)
    places = []
    for before, after in ((8, 16), (12, 24)):
        steps = np.arange(after)
        at = {
            "align_corners": steps * (before - 1) / (after - 1),
            "half_pixel_centers": (steps + 0.5) / 2 - 0.5,
            "neither": steps / 2,
        }[grid]
        places.append(np.clip(at, 0, before - 1))
    rows = np.stack([[[np.interp(places[0], np.arange(8), x[0, :, w, c]) for c in range(3)] for w in range(12)]])  # (1, 12, 3, 16)
    expected = np.stack([[[np.interp(places[1], np.arange(12), rows[0, :, c, h]) for c in range(3)] for h in range(16)]])
    np.testing.assert_allclose(convert_and_run(tiny, x)[0], expected.transpose(0, 1, 3, 2), atol=1e-4)


def test_quantised_weights_come_back_at_their_scale(tiny: TinyModel) -> None:
    stored = RANDOM.integers(0, 255, 3).astype(np.uint8)
    tiny.add("y", "AddV2", ["x", tiny.constant("b", stored, dtype="uint8", scale=0.5, min=-3.0)])
    x = picture()
    np.testing.assert_allclose(convert_and_run(tiny, x)[0], x + stored * 0.5 - 3, atol=1e-5)


def freed(tiny: TinyModel) -> onnx.ModelProto:
    """A network with a stride-2 convolution, a resize back and a reshape to cells, freed."""
    tiny.add("half", "Conv2D", ["x", tiny.constant("k", RANDOM.normal(size=(3, 3, 3, 4)))], strides=ints(1, 2, 2, 1), padding=word("SAME"))
    tiny.add("whole", "ResizeBilinear", ["half", tiny.constant("size", np.asarray([8, 12]))], half_pixel_centers={"b": True})
    tiny.add("y", "Reshape", ["whole", tiny.constant("cells", np.asarray([1, -1, 4]))])
    return release(translate(tensorflow_js.read(tiny.write())), height_axis=1, width_axis=2)


def test_a_freed_model_runs_at_two_sizes_and_two_batch_sizes(tiny: TinyModel) -> None:
    model = freed(tiny)
    for batch, height, width in ((1, 8, 12), (3, 8, 12), (1, 16, 6), (2, 16, 6)):
        x = picture((batch, height, width, 3))
        together = run(model, x)[0]
        assert together.shape == (batch, height * width, 4)
        for row in range(batch):
            np.testing.assert_allclose(together[row], run(model, x[row : row + 1])[0][0], atol=1e-5)


def test_a_freed_model_gives_what_the_fixed_one_gave(tiny: TinyModel) -> None:
    model = freed(tiny)
    x = picture()
    fixed = translate(tensorflow_js.read(tiny.path))
    np.testing.assert_allclose(run(model, x)[0], run(fixed, x)[0], atol=1e-5)


def test_an_unknown_operation_is_named(tiny: TinyModel) -> None:
    tiny.add("y", "CropAndSpin", ["x"])
    with pytest.raises(UnreadableMediaError, match="CropAndSpin"):
        convert_and_run(tiny, picture())


def broken_models() -> Mapping[str, Callable[[Path], object]]:
    return {
        "no file": Path.unlink,
        "no JSON": lambda path: path.write_text("{"),
        "no graph": lambda path: path.write_text("{}"),
        "a list": lambda path: path.write_text("[]"),
        "short weights": lambda path: path.with_name("model.bin").write_bytes(b"ab"),
        "no weights": lambda path: path.with_name("model.bin").unlink(),
    }


@pytest.mark.parametrize("damage", list(broken_models()))
def test_a_damaged_model_is_called_so(tiny: TinyModel, damage: str) -> None:
    tiny.add("y", "AddV2", ["x", tiny.constant("b", np.ones(3, np.float32))])
    path = tiny.write()
    broken_models()[damage](path)
    with pytest.raises(UnreadableMediaError, match=r"model.json must be a TensorFlow.js graph model"):
        tensorflow_js.read(path)


def test_a_graph_that_uses_a_node_it_lacks_is_called_damaged(tiny: TinyModel) -> None:
    tiny.add("y", "AddV2", ["x", "nowhere"])
    with pytest.raises(UnreadableMediaError, match="nowhere"):
        convert_and_run(tiny, picture())


@pytest.mark.parametrize(
    ("name", "sizes", "is_nchw"), [("nanodet", ((416, 416), (224, 320)), True), ("centernet", ((512, 512), (288, 352)), False)]
)
def test_the_real_detectors_give_a_batch_what_they_give_each_alone(
    weights: Callable[[str], Path], name: str, sizes: Sequence[tuple[int, int]], is_nchw: bool
) -> None:
    model = onnx.load(weights(name))
    for height, width in sizes:
        shape = (2, 3, height, width) if is_nchw else (2, height, width, 3)
        x = (RANDOM.random(shape) * (1 if is_nchw else 255)).astype(np.float32)
        together = run(model, x)
        for row in range(2):
            for batched, alone in zip(together, run(model, x[row : row + 1]), strict=True):
                np.testing.assert_allclose(batched[row], alone[0], atol=1e-4, rtol=1e-4)
