"""Two-stage baselines for speed measurements alone: a person detector, then one encoder pass for every crop.

``TorchTwoStage`` is what the papers compare with (Faster R-CNN and a re-identification ResNet-50), with random weights: the time does not
depend on their values as long as as many boxes go through each stage. Its region network hands the full 1,000 proposals a frame to
the box head with random weights too. ``OsnetEncoder`` is the light encoder of a two-stage way that is meant to be quick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.preprocess import open_session
from pipeline.errors import BadInputError, MissingDependencyError, NotFoundError
from pipeline.types import Frame

Float32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]

CROP_HEIGHT_PX, CROP_WIDTH_PX = 256, 128
MEAN_RGB = np.asarray([0.485, 0.456, 0.406], np.float32)
STD_RGB = np.asarray([0.229, 0.224, 0.225], np.float32)
AT_ONCE = 32  # crops of one encoder pass; bounds memory


def crop_tensor(crops: Sequence[Pixels]) -> Float32:
    """BGR uint8 crops of any size to RGB, ImageNet-standardised, (N, 3, 256, 128)."""
    resized = np.stack([cv2.resize(crop, (CROP_WIDTH_PX, CROP_HEIGHT_PX)) for crop in crops])[..., ::-1]  # (N, 256, 128, 3)
    standard = (resized.astype(np.float32) / 255 - MEAN_RGB) / STD_RGB
    return np.ascontiguousarray(standard.transpose(0, 3, 1, 2), np.float32)


class TorchTwoStage:
    """Faster R-CNN (ResNet-50 FPN, shorter side 800) and a ResNet-50 at 256×128, both of torchvision, with random weights.

    threads: set for the whole process, as torch has one number only. Raises MissingDependencyError without torch and torchvision.
    """

    def __init__(self, threads: int = 1, device: str = "cpu") -> None:
        torch, torchvision = _torch_and_torchvision()
        torch.set_num_threads(threads)
        self._torch, self._device = torch, device
        detector = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        encoder = torchvision.models.resnet50(weights=None)
        encoder.fc = torch.nn.Identity()
        self._detector: Any = detector.eval().to(device)
        self._encoder: Any = encoder.eval().to(device)

    def detect(self, frames: Sequence[Frame]) -> list[int]:
        """How many boxes the detector gives in each frame; with random weights they mean nothing."""
        with self._torch.no_grad():
            pictures = [self._picture(frame) for frame in frames]
            return [len(found["boxes"]) for found in self._detector(pictures)]

    def encode(self, crops: Sequence[Pixels]) -> Float32:
        """Crops to (N, 2048)."""
        vectors = [np.zeros((0, 2048), np.float32)]
        with self._torch.no_grad():
            for start in range(0, len(crops), AT_ONCE):
                batch = self._torch.from_numpy(crop_tensor(crops[start : start + AT_ONCE])).to(self._device)  # (B, 3, 256, 128)
                vectors.append(self._encoder(batch).float().cpu().numpy())  # (B, 2048)
        return np.concatenate(vectors)

    def _picture(self, frame: Frame) -> Any:
        """RGB 0..1, (3, H, W); scaling and standardising are torchvision's own."""
        planes = np.ascontiguousarray(frame.bgr[..., ::-1].transpose(2, 0, 1))  # (3, H, W)
        return self._torch.from_numpy(planes).to(self._device).float() / 255


class OsnetEncoder:
    """OSNet (or any re-identification network of 256×128 RGB crops) from an ONNX file, by onnxruntime on the CPU.

    Raises NotFoundError without the file, BadInputError when its input is another.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        if not path.is_file():
            raise NotFoundError(f"crop encoder {path} must be an ONNX file; check the path")
        self._session: Any = open_session(path, threads)
        asked = self._session.get_inputs()[0]
        if list(asked.shape[1:]) != [3, CROP_HEIGHT_PX, CROP_WIDTH_PX]:
            raise BadInputError(f"crop encoder {path} must take (N, 3, {CROP_HEIGHT_PX}, {CROP_WIDTH_PX}), got {asked.shape}")
        self._input = asked.name
        self._at_once = asked.shape[0] if isinstance(asked.shape[0], int) else AT_ONCE

    def encode(self, crops: Sequence[Pixels]) -> Float32:
        """Crops to (N, D), as the network gives them; (0, 0) without crops."""
        parts: list[Float32] = []
        for start in range(0, len(crops), self._at_once):
            batch = crop_tensor(crops[start : start + self._at_once])  # (B, 3, 256, 128)
            parts.append(self._session.run(None, {self._input: batch})[0])
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def cuda_timer() -> Callable[[Callable[[], object]], float] | None:
    """Seconds on the GPU that some work takes under bfloat16 autocast, by CUDA events; None where torch sees no GPU.

    Raises MissingDependencyError without torch.
    """
    torch, _ = _torch_and_torchvision()
    if not torch.cuda.is_available():
        return None

    def seconds(work: Callable[[], object]) -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        with torch.autocast("cuda", torch.bfloat16):
            before.record()
            work()
            after.record()
        torch.cuda.synchronize()
        return float(before.elapsed_time(after)) / 1e3

    return seconds


def _torch_and_torchvision() -> tuple[Any, Any]:
    try:
        import torch
        import torchvision
    except ImportError:
        raise MissingDependencyError("torch with torchvision", "torch") from None
    return torch, torchvision
