"""Body vectors: MobileNetV2 stripes, colour names and HSV histograms, projected by a small learnt matrix. onnxruntime and numpy."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.attributes import region_colours, stripe_colours, stripe_histogram
from pipeline.errors import BadInputError, SettingsError

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]

BODY_WEIGHTS = Path(__file__).parent / "weights" / "body.npz"
INPUT_HEIGHT_PX, INPUT_WIDTH_PX = 256, 128
STRIPES = 8
BATCH = 16
REMEMBERED = 256  # crops whose features are kept, so that two encoders of one crop run the network once
MAP_CHANNELS, MID_CHANNELS = 1280, 96
COLOUR_FEATURES = 408


class LookFeatures:
    """What body vectors, text-aligned vectors and attributes of a crop are made of: MobileNetV2 stripes and colours.

    A stripe is the mean over the columns of a feature map, the middle columns counting most. Safe to share between threads.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._remembered: OrderedDict[bytes, tuple[Float32, Float32]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, crops: Sequence[Uint8]) -> tuple[Float32, Float32]:
        """BGR uint8 (h, w, 3) crops -> stripes (N, STRIPES, MAP_CHANNELS + MID_CHANNELS) and colours (N, 408), float32.

        Raises BadInputError for crops of another shape.
        """
        if not crops:
            return np.zeros((0, STRIPES, MAP_CHANNELS + MID_CHANNELS), np.float32), np.zeros((0, COLOUR_FEATURES), np.float32)
        keys = [_key(crop) for crop in crops]
        with self._lock:
            found = {key: self._remembered[key] for key in keys if key in self._remembered}
        missing = {key: crop for key, crop in zip(keys, crops, strict=True) if key not in found}
        wanted = list(missing)
        for start in range(0, len(wanted), BATCH):
            part = wanted[start : start + BATCH]
            stripes = self._stripes([_input(missing[key]) for key in part])
            found.update({key: (row, colour_features(missing[key])) for key, row in zip(part, stripes, strict=True)})
        with self._lock:
            self._remembered.update({key: found[key] for key in wanted})
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return np.stack([found[key][0] for key in keys]), np.stack([found[key][1] for key in keys])

    def _stripes(self, pictures: list[Uint8]) -> Float32:
        rgb = np.stack(pictures)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)  # (B, 3, 256, 128)
        last, mid = self._session.run(["map", "mid"], {"rgb": rgb})  # (B, 1280, 8, 4), (B, 96, 16, 8)
        last = np.sqrt(np.maximum((last * _hat(4)).sum(-1), 0)).transpose(0, 2, 1)  # (B, 8, 1280); the root tames large activations
        mid = (mid * _hat(8)).sum(-1).transpose(0, 2, 1)  # (B, 16, 96)
        mid = mid.reshape(len(mid), STRIPES, -1, MID_CHANNELS).mean(2)  # (B, 8, 96)
        joined: Float32 = np.concatenate([last, mid], -1).astype(np.float32)
        return joined


@lru_cache(maxsize=4)
def look_features(path: Path, threads: int = 1) -> LookFeatures:
    """The features of the network at ``path``, one for the whole process, so that its encoders share each forward pass."""
    return LookFeatures(path, threads)


def _key(crop: Uint8) -> bytes:
    if crop.ndim != 3 or crop.shape[2] != 3 or crop.dtype != np.uint8 or 0 in crop.shape:
        raise BadInputError(f"a crop must be BGR uint8 (h, w, 3) with h, w > 0, got {crop.dtype} {crop.shape}")
    return hashlib.blake2b(np.ascontiguousarray(crop).data, digest_size=16, salt=crop.shape[0].to_bytes(8, "big")).digest()


def _hat(columns: int) -> Float32:
    """Column weights, largest in the middle, sum 1."""
    weight = {4: np.array([0.15, 0.35, 0.35, 0.15]), 8: np.array([0.4, 0.8, 1.2, 1.6, 1.6, 1.2, 0.8, 0.4]) / 8}[columns]
    return weight.astype(np.float32)


def _input(crop: Uint8) -> Uint8:
    resized: Any = cv2.resize(crop, (INPUT_WIDTH_PX, INPUT_HEIGHT_PX), interpolation=cv2.INTER_LINEAR)
    picture: Uint8 = resized
    return picture


def colour_features(crop: Uint8) -> Float32:
    """Colour names of 8 stripes and 2 regions (square roots) and HSV histograms of 4 stripes of a crop: (408,)."""
    parts = [np.sqrt(stripe_colours(crop, STRIPES)), np.sqrt(region_colours(crop)), stripe_histogram(crop, 4)]
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def raw_features(stripes: Float32, colours: Float32, mean: Float32, basis: Float32) -> Float32:
    """Features before standardising: the map's stripes in ``basis`` (1280, K), the mid-level stripes, the colours: (N, F)."""
    last = (stripes[..., :MAP_CHANNELS] - mean) @ basis  # (N, 8, K)
    mid = stripes[..., MAP_CHANNELS:]  # (N, 8, 96)
    flat = [part.reshape(len(part), part.shape[1] * part.shape[2]) for part in (last, mid)]
    return np.concatenate([*flat, colours], 1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class LookProjection:
    """A linear map from the features of a crop to a vector. mean: (1280,); basis: (1280, K); weight: (F, D); bias: (D,)."""

    mean: Float32
    basis: Float32
    weight: Float32
    bias: Float32

    @classmethod
    def of(cls, weights: dict[str, NDArray[Any]], name: str = "image") -> LookProjection:
        """From the arrays of a weights file."""
        keys = ("mean", "basis", f"{name}_weight", f"{name}_bias")
        return cls(*(np.ascontiguousarray(weights[key], np.float32) for key in keys))

    def __call__(self, stripes: Float32, colours: Float32) -> Float32:
        """(N, 8, 1376) and (N, 408) -> (N, D), not normalised."""
        vectors: Float32 = (raw_features(stripes, colours, self.mean, self.basis) @ self.weight + self.bias).astype(np.float32)
        return vectors


def read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a weights file; raises SettingsError, naming it, when it is missing or broken."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise SettingsError(f"the weights {path.name} must be a readable .npz file: {error}; train them or reinstall") from error


def unit(vectors: Float32) -> Float32:
    """Rows of length 1, (N, D)."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    normal: Float32 = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return normal


class MobileNetBodyEncoder:
    """BodyEncoder: the same person's crops lie near each other, over cameras too, while the clothes stay the same."""

    def __init__(self, path: Path, threads: int = 1, weights: Path = BODY_WEIGHTS) -> None:
        """``path``: MobileNetV2 as convert_mobilenet writes it. Raises SettingsError when ``weights`` cannot be read."""
        arrays = read_weights(weights)
        self.space = str(arrays["space"])
        self._features = look_features(path, threads)
        self._project = LookProjection.of(arrays)

    def encode(self, crops: Sequence[Uint8]) -> Float32:
        """BGR uint8 (h, w, 3) crops of any size -> float32 (N, D), length 1. Raises BadInputError for another shape."""
        return unit(self._project(*self._features.of(crops)))
