"""The speaker segmentation network as an ONNX graph from its checkpoint.

Bredin, pyannote.audio 2.1 speaker diarization pipeline, Interspeech 2023, with the powerset classes of Plaquet and Bredin, Interspeech
2023: SincNet filters (Ravanelli and Bengio, 2018), four bidirectional LSTMs, two linear layers, seven classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from models.convert.graph_builder import GraphBuilder

Weights = Mapping[str, NDArray[Any]]
Float64 = NDArray[np.float64]

CLASSES = 7  # nobody, one of three speakers, two of three
LEAST_HZ = 50.0  # of a filter's lower edge, and of its width
RATE_HZ = 16_000
STRIDE = 10
LAYERS = 4
LEAK = 0.01


def build(weights: Weights) -> onnx.ModelProto:
    """sound float32 (batch, 1, samples) at 16 kHz -> classes (batch, frames, 7), log-probabilities; a frame every 270 samples."""
    graph = GraphBuilder()

    def stored(name: str) -> str:
        return graph.stored(weights[name])

    def normalised(x: str, name: str) -> str:
        return graph.op("InstanceNormalization", x, stored(f"{name}.weight"), stored(f"{name}.bias"), epsilon=1e-5)

    x = normalised("sound", "sincnet.wav_norm1d")  # (B, 1, N)
    for layer in range(3):
        if layer == 0:
            x = graph.op("Abs", graph.op("Conv", x, graph.stored(sinc_filters(weights)), strides=[STRIDE]))
        else:
            x = graph.op("Conv", x, stored(f"sincnet.conv1d.{layer}.weight"), stored(f"sincnet.conv1d.{layer}.bias"))
        x = graph.op("MaxPool", x, kernel_shape=[3], strides=[3])
        x = graph.op("LeakyRelu", normalised(x, f"sincnet.norm1d.{layer}"), alpha=LEAK)  # (B, 80 or 60, F)
    x = graph.op("Transpose", x, perm=[2, 0, 1])  # (F, B, 60)
    for layer in range(LAYERS):
        parts = [graph.stored(part) for part in _lstm(weights, layer)]
        both = graph.op("LSTM", x, *parts, hidden_size=state_size(weights), direction="bidirectional")  # (F, 2, B, H)
        x = graph.op("Reshape", graph.op("Transpose", both, perm=[0, 2, 1, 3]), graph.stored([0, 0, -1]))  # (F, B, 2 H)
    x = graph.op("Transpose", x, perm=[1, 0, 2])  # (B, F, 2 H)
    for name in ("linear.0", "linear.1", "classifier"):
        x = graph.op("MatMul", x, graph.stored(weights[f"{name}.weight"].T))
        x = graph.op("Add", x, stored(f"{name}.bias"))
        if name != "classifier":
            x = graph.op("LeakyRelu", x, alpha=LEAK)
    classes = graph.op("LogSoftmax", x, axis=-1)
    return graph.model({"sound": ["batch", 1, "samples"]}, {"classes": (classes, ["batch", "frames", CLASSES])})


def sinc_filters(weights: Weights) -> Float64:
    """The 80 band-pass filters (80, 1, 251), even ones first, from the learned edges; see Ravanelli and Bengio, eq. 4."""
    name = "sincnet.conv1d.0.filterbank"
    low = LEAST_HZ + np.abs(weights[f"{name}.low_hz_"].astype(np.float64))  # (40, 1)
    high = np.clip(low + LEAST_HZ + np.abs(weights[f"{name}.band_hz_"].astype(np.float64)), LEAST_HZ, RATE_HZ / 2)
    half = weights[f"{name}.window_"].size  # 125
    window = weights[f"{name}.window_"].reshape(1, half).astype(np.float64)
    phase = 2 * np.pi * np.arange(-half, 0)[None] / RATE_HZ  # (1, 125)
    even = (np.sin(high * phase) - np.sin(low * phase)) / (phase / 2) * window  # (40, 125)
    odd = (np.cos(low * phase) - np.cos(high * phase)) / (phase / 2) * window
    width = high - low  # (40, 1)
    filters = np.concatenate(
        [
            np.concatenate([even, 2 * width, even[:, ::-1]], axis=1),
            np.concatenate([odd, np.zeros_like(width), -odd[:, ::-1]], axis=1),
        ]
    )  # (80, 251)
    made: Float64 = (filters / np.tile(2 * width, (2, 1)))[:, None]
    return made


def state_size(weights: Weights) -> int:
    """How many numbers one direction of an LSTM keeps."""
    return int(weights["lstm.weight_hh_l0"].shape[1])


def _lstm(weights: Weights, layer: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """One bidirectional layer in ONNX's gate order: W (2, 4 H, in), R (2, 4 H, H), B (2, 8 H)."""
    directions = [f"l{layer}", f"l{layer}_reverse"]

    def gates(kind: str, name: str) -> NDArray[Any]:
        into, forget, cell, out = np.split(weights[f"lstm.{kind}_{name}"], 4)
        return np.concatenate([into, out, forget, cell])

    return (
        np.stack([gates("weight_ih", name) for name in directions]),
        np.stack([gates("weight_hh", name) for name in directions]),
        np.stack([np.concatenate([gates("bias_ih", name), gates("bias_hh", name)]) for name in directions]),
    )
