"""Torch checkpoints read without torch, and the graphs built of them, against torch itself."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models.convert import campplus_graph, segmentation_graph, torch_checkpoint
from models.preprocess import open_session
from pipeline.errors import UnreadableMediaError

torch = pytest.importorskip("torch")
functional = torch.nn.functional


def saved(folder: Path, what: Any) -> Path:
    path = folder / "weights.pt"
    torch.save(what, path)
    return path


def with_pickle(folder: Path, pickled: bytes, storage: bytes = b"") -> Path:
    path = folder / "made.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("made/data.pkl", pickled)
        archive.writestr("made/data/0", storage)
    return path


class Evil:
    """Would run a command where a pickle is believed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must never be printed",)


# ------------------------------------------------------------------------------------------------ reading


def test_tensors_come_back_as_torch_wrote_them(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = OrderedDict(
        whole=whole, turned=whole.transpose(0, 2), part=whole[1, 1:, ::2], half=whole.half(), count=torch.tensor(7), none=torch.zeros(0, 3)
    )
    read = torch_checkpoint.read(saved(tmp_path, {"state": state, "sizes": [1, 2.5, "three", None]}))
    assert read["sizes"] == [1, 2.5, "three", None]
    for name, tensor in state.items():
        np.testing.assert_array_equal(read["state"][name], tensor.numpy())
        assert read["state"][name].dtype == tensor.numpy().dtype


def test_nothing_but_tensors_is_made_of_a_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnreadableMediaError, match=r"builtins\.print"):
        torch_checkpoint.read(with_pickle(tmp_path, pickle.dumps(Evil())))
    with pytest.raises(UnreadableMediaError, match="Linear"):
        torch_checkpoint.read(saved(tmp_path, torch.nn.Linear(2, 2)))
    assert capsys.readouterr().out == ""


def test_a_tensor_beyond_its_storage_is_refused() -> None:
    storage = np.zeros(10, np.float32)
    assert torch_checkpoint.rebuilt(storage, 4, (2, 3), (3, 1)).shape == (2, 3)
    for offset, size, stride in ((5, (2, 3), (3, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2, 2), (10, 1))):
        with pytest.raises(UnreadableMediaError, match="inside its storage"):
            torch_checkpoint.rebuilt(storage, offset, size, stride)


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "noise.pt").write_bytes(b"\x80\x02 no zip")
    with pytest.raises(UnreadableMediaError, match=r"noise\.pt must be a torch checkpoint"):
        torch_checkpoint.read(tmp_path / "noise.pt")
    with zipfile.ZipFile(tmp_path / "empty.pt", "w") as archive:
        archive.writestr("readme", "nothing")
    with pytest.raises(UnreadableMediaError, match=r"data\.pkl"):
        torch_checkpoint.read(tmp_path / "empty.pt")
    cut = saved(tmp_path, {"a": torch.zeros(1000)})
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(UnreadableMediaError):
        torch_checkpoint.read(cut)


# ------------------------------------------------------------------------------------------------- CAM++


class Drawn(dict[str, np.ndarray]):
    """Weights drawn when first asked for, of the shapes that a network of the paper has."""

    def __init__(self) -> None:
        super().__init__()
        self._random = np.random.default_rng(0)

    def draw(self, name: str, *shape: int) -> None:
        scale = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        self[f"{name}.weight"] = (self._random.normal(size=shape) * scale).astype(np.float32)

    def norm(self, name: str, channels: int, is_affine: bool = True) -> None:
        self[f"{name}.running_mean"] = (self._random.normal(size=channels) * 0.1).astype(np.float32)
        self[f"{name}.running_var"] = self._random.uniform(0.5, 2, channels).astype(np.float32)
        if is_affine:
            self[f"{name}.weight"] = self._random.uniform(0.5, 1.5, channels).astype(np.float32)
            self[f"{name}.bias"] = (self._random.normal(size=channels) * 0.1).astype(np.float32)

    def biased(self, name: str, *shape: int) -> None:
        self.draw(name, *shape)
        self[f"{name}.bias"] = (self._random.normal(size=shape[0]) * 0.1).astype(np.float32)


def drawn_campplus() -> Drawn:
    weights = Drawn()
    weights.draw("head.conv1", 32, 1, 3, 3)
    weights.draw("head.conv2", 32, 32, 3, 3)
    for name in ("head.bn1", "head.bn2"):
        weights.norm(name, 32)
    for block in ("layer1.0", "layer1.1", "layer2.0", "layer2.1"):
        for number in (1, 2):
            weights.draw(f"head.{block}.conv{number}", 32, 32, 3, 3)
            weights.norm(f"head.{block}.bn{number}", 32)
        if block.endswith("0"):
            weights.draw(f"head.{block}.shortcut.0", 32, 32, 1, 1)
            weights.norm(f"head.{block}.shortcut.1", 32)
    weights.draw("xvector.tdnn.linear", 128, 320, 5)
    weights.norm("xvector.tdnn.nonlinear.batchnorm", 128)
    channels = 128
    for index, (layers, _) in enumerate(campplus_graph.BLOCKS, 1):
        for layer in range(1, layers + 1):
            name = f"xvector.block{index}.tdnnd{layer}"
            weights.norm(f"{name}.nonlinear1.batchnorm", channels)
            weights.draw(f"{name}.linear1", 128, channels, 1)
            weights.norm(f"{name}.nonlinear2.batchnorm", 128)
            weights.draw(f"{name}.cam_layer.linear_local", 32, 128, 3)
            weights.biased(f"{name}.cam_layer.linear1", 64, 128, 1)
            weights.biased(f"{name}.cam_layer.linear2", 32, 64, 1)
            channels += 32
        weights.norm(f"xvector.transit{index}.nonlinear.batchnorm", channels)
        weights.draw(f"xvector.transit{index}.linear", channels // 2, channels, 1)
        channels //= 2
    weights.norm("xvector.out_nonlinear.batchnorm", channels)
    weights.draw("xvector.dense.linear", 192, 2 * channels, 1)
    weights.norm("xvector.dense.nonlinear.batchnorm", 192, is_affine=False)
    return weights


class TorchCampPlus:
    """The network of the paper written in torch's own functions, as 3D-Speaker publishes it."""

    def __init__(self, weights: Drawn) -> None:
        self._weights = {name: torch.from_numpy(values) for name, values in weights.items()}

    def __call__(self, features: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(features).permute(0, 2, 1).unsqueeze(1)  # (B, 1, 80, T)
        x = self._relu(self._picture(x, "head.conv1"), "head.bn1")
        for block, stride in (("layer1.0", 2), ("layer1.1", 1), ("layer2.0", 2), ("layer2.1", 1)):
            name = f"head.{block}"
            y = self._relu(self._picture(x, f"{name}.conv1", stride), f"{name}.bn1")
            y = self._norm(self._picture(y, f"{name}.conv2"), f"{name}.bn2")
            if stride == 2:
                x = self._norm(self._picture(x, f"{name}.shortcut.0", stride, 0), f"{name}.shortcut.1")
            x = functional.relu(y + x)
        x = self._relu(self._picture(x, "head.conv2", 2), "head.bn2").flatten(1, 2)  # (B, 320, T)
        x = self._relu(self._line(x, "xvector.tdnn.linear", stride=2), "xvector.tdnn.nonlinear.batchnorm")
        for index, (layers, dilation) in enumerate(campplus_graph.BLOCKS, 1):
            for layer in range(1, layers + 1):
                x = torch.cat([x, self._dense(x, f"xvector.block{index}.tdnnd{layer}", dilation)], dim=1)
            x = self._line(self._relu(x, f"xvector.transit{index}.nonlinear.batchnorm"), f"xvector.transit{index}.linear")
        x = self._relu(x, "xvector.out_nonlinear.batchnorm")
        x = torch.cat([x.mean(-1), x.std(-1, unbiased=True)], dim=-1).unsqueeze(-1)
        made: np.ndarray = self._norm(self._line(x, "xvector.dense.linear"), "xvector.dense.nonlinear.batchnorm").squeeze(-1).numpy()
        return made

    def _dense(self, x: Any, name: str, dilation: int) -> Any:
        x = self._line(self._relu(x, f"{name}.nonlinear1.batchnorm"), f"{name}.linear1")
        x = self._relu(x, f"{name}.nonlinear2.batchnorm")
        segments = functional.avg_pool1d(x, 100, 100, ceil_mode=True).repeat_interleave(100, dim=-1)[..., : x.shape[-1]]
        context = x.mean(-1, keepdim=True) + segments
        mask = self._line(functional.relu(self._line(context, f"{name}.cam_layer.linear1")), f"{name}.cam_layer.linear2")
        return self._line(x, f"{name}.cam_layer.linear_local", dilation=dilation) * torch.sigmoid(mask)

    def _picture(self, x: Any, name: str, stride: int = 1, padding: int = 1) -> Any:
        return functional.conv2d(x, self._weights[f"{name}.weight"], stride=(stride, 1), padding=padding)

    def _line(self, x: Any, name: str, stride: int = 1, dilation: int = 1) -> Any:
        kernel = self._weights[f"{name}.weight"]
        padding = (kernel.shape[2] - 1) // 2 * dilation
        return functional.conv1d(x, kernel, self._weights.get(f"{name}.bias"), stride, padding, dilation)

    def _norm(self, x: Any, name: str) -> Any:
        mean, deviation, *affine = (self._weights.get(f"{name}.{part}") for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, mean, deviation, *affine)

    def _relu(self, x: Any, name: str) -> Any:
        return functional.relu(self._norm(x, name))


def test_campplus_gives_what_torch_gives_at_any_batch_and_length() -> None:
    weights = drawn_campplus()
    model = campplus_graph.build(weights)
    onnx.checker.check_model(model)
    session, reference = open_session(model.SerializeToString()), TorchCampPlus(weights)
    random = np.random.default_rng(1)
    for batch, frames in ((1, 4), (2, 137), (1, 200), (3, 401)):  # below, at and beyond a segment of the masking
        features = random.normal(size=(batch, frames, 80)).astype(np.float32)
        made = session.run(None, {"features": features})[0]
        assert made.shape == (batch, 192)
        np.testing.assert_allclose(made, reference(features), atol=2e-4)


# ------------------------------------------------------------------------------------------- segmentation


def drawn_segmentation(hidden: int = 8) -> Drawn:
    weights, random = Drawn(), np.random.default_rng(2)
    for name, channels in (("wav_norm1d", 1), ("norm1d.0", 80), ("norm1d.1", 60), ("norm1d.2", 60)):
        weights.norm(f"sincnet.{name}", channels)
    bank = "sincnet.conv1d.0.filterbank"
    weights[f"{bank}.low_hz_"] = random.uniform(30, 3000, (40, 1)).astype(np.float32)
    weights[f"{bank}.band_hz_"] = random.uniform(30, 800, (40, 1)).astype(np.float32)
    weights[f"{bank}.window_"] = np.hamming(251)[:125].astype(np.float32)
    weights.biased("sincnet.conv1d.1", 60, 80, 5)
    weights.biased("sincnet.conv1d.2", 60, 60, 5)
    for layer in range(4):
        for end in (f"l{layer}", f"l{layer}_reverse"):
            for kind, width in (("ih", 60 if layer == 0 else 2 * hidden), ("hh", hidden)):
                weights[f"lstm.weight_{kind}_{end}"] = (random.normal(size=(4 * hidden, width)) / np.sqrt(width)).astype(np.float32)
                weights[f"lstm.bias_{kind}_{end}"] = (random.normal(size=4 * hidden) * 0.1).astype(np.float32)
    weights.biased("linear.0", 12, 2 * hidden)
    weights.biased("linear.1", 12, 12)
    weights.biased("classifier", 7, 12)
    return weights


def torch_segmentation(weights: Drawn, sound: np.ndarray, hidden: int = 8) -> np.ndarray:
    held = {name: torch.from_numpy(values) for name, values in weights.items()}

    def norm(x: Any, name: str) -> Any:
        return functional.instance_norm(x, weight=held[f"{name}.weight"], bias=held[f"{name}.bias"])

    x = norm(torch.from_numpy(sound), "sincnet.wav_norm1d")
    filters = torch.from_numpy(segmentation_graph.sinc_filters(weights).astype(np.float32))
    for layer in range(3):
        if layer == 0:
            x = functional.conv1d(x, filters, stride=10).abs()
        else:
            x = functional.conv1d(x, held[f"sincnet.conv1d.{layer}.weight"], held[f"sincnet.conv1d.{layer}.bias"])
        x = functional.leaky_relu(norm(functional.max_pool1d(x, 3), f"sincnet.norm1d.{layer}"))
    lstm = torch.nn.LSTM(60, hidden, num_layers=4, bidirectional=True, batch_first=True)
    lstm.load_state_dict({name.removeprefix("lstm."): values for name, values in held.items() if name.startswith("lstm.")})
    with torch.no_grad():
        x, _ = lstm(x.transpose(1, 2))
    for name in ("linear.0", "linear.1"):
        x = functional.leaky_relu(functional.linear(x, held[f"{name}.weight"], held[f"{name}.bias"]))
    made: np.ndarray = functional.log_softmax(functional.linear(x, held["classifier.weight"], held["classifier.bias"]), dim=-1).numpy()
    return made


def test_the_segmentation_network_gives_what_torch_gives() -> None:
    weights = drawn_segmentation()
    model = segmentation_graph.build(weights)
    onnx.checker.check_model(model)
    session = open_session(model.SerializeToString())
    for batch, samples in ((1, 16_000), (2, 5_000)):
        sound = (np.random.default_rng(3).normal(size=(batch, 1, samples)) * 0.1).astype(np.float32)
        made = session.run(None, {"sound": sound})[0]
        expected = torch_segmentation(weights, sound)
        assert made.shape == expected.shape
        np.testing.assert_allclose(made, expected, atol=1e-4)


def test_a_sinc_filter_lets_its_band_pass() -> None:
    weights = drawn_segmentation()
    bank = "sincnet.conv1d.0.filterbank"
    weights[f"{bank}.low_hz_"][0], weights[f"{bank}.band_hz_"][0] = 950.0, 450.0  # 1000 to 1500 Hz
    even = segmentation_graph.sinc_filters(weights)[0, 0]
    passed = np.abs(np.fft.rfft(even, 16_000))  # one number a Hz
    np.testing.assert_allclose(even, even[::-1], atol=1e-12)
    assert passed[1250] > 20 * passed[500]
    assert passed[1250] > 20 * passed[2500]
