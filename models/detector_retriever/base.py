"""The shared base: NanoDet-g in torch, with the outputs of its ONNX form, and the maps that everything else is read from.

Base-Net in SDRPN's words (SEEDS 2): stages down to stride 32, a feature pyramid, and per level a centre heat map (the cell that holds
the centre scores) with the four sides of the box as distributions. Architecture: RangiLyu, NanoDet 2020, custom CSP backbone ("g").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from pipeline.errors import UnreadableMediaError

CLASSES, BINS = 80, 11
PYRAMID = 128
LEAK = 0.1


class Maps(NamedTuple):
    """What one pass of the base gives for B pictures of H × W pixels.

    fine: (B, 64, H/4, W/4); middle: (B, 128, H/8, W/8); coarse: (B, 256, H/16, W/16); scores: per stride 8, 16, 32 the class scores
    (B, cells, 80) after the sigmoid; sides: per stride (B, cells, 44), 4 × 11 bins.
    """

    fine: torch.Tensor
    middle: torch.Tensor
    coarse: torch.Tensor
    scores: tuple[torch.Tensor, ...]
    sides: tuple[torch.Tensor, ...]


class Convolution(nn.Module):  # type: ignore[misc]
    """3×3 or 1×1 convolution with bias (batch norm folded in) and leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1, is_activated: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2)
        self.is_activated = is_activated

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convolution(x)  # (B, outputs, H / stride, W / stride)
        return functional.leaky_relu(x, LEAK) if self.is_activated else x


class TinyBlock(nn.Module):  # type: ignore[misc]
    """Two convolutions of half the width whose outputs are joined: (B, C, H, W) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Convolution(width, width // 2)
        self.second = Convolution(width // 2, width // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        return torch.cat([self.second(first), first], 1)


class CspStage(nn.Module):  # type: ignore[misc]
    """A stage of the backbone: (B, width, H, W) -> (B, 2 × width, H / stride, W / stride)."""

    def __init__(self, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.enter = Convolution(width, width, stride=stride)
        self.blocks = nn.Sequential(*(TinyBlock(width) for _ in range(blocks)))
        self.leave = Convolution(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        return torch.cat([self.leave(self.blocks(x)), x], 1)


class Base(nn.Module):  # type: ignore[misc]
    """NanoDet-g. Input (B, 3, H, W): BGR, standardised as models/nanodet.py does, H and W multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, stride=2)
        self.stages = nn.ModuleList([CspStage(32, 1, 1), CspStage(64, 2, 2), CspStage(128, 2, 2), CspStage(256, 3, 2)])
        self.lateral = nn.ModuleList([Convolution(width, PYRAMID, 1, is_activated=False) for width in (128, 256, 512)])
        self.heads = nn.ModuleList(
            [
                nn.Sequential(Convolution(PYRAMID, PYRAMID), Convolution(PYRAMID, CLASSES + 4 * BINS, 1, is_activated=False))
                for _ in range(3)
            ]
        )

    def forward(self, pictures: torch.Tensor) -> Maps:
        """See Maps."""
        x = functional.max_pool2d(self.stem(pictures), 3, 2, 1)  # (B, 32, H/4, W/4)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        fine, *rest = maps
        p3, p4, p5 = (lateral(x) for lateral, x in zip(self.lateral, rest, strict=True))
        p4 = p4 + _resized(p5, 2.0)
        p3 = p3 + _resized(p4, 2.0)
        p4 = p4 + _resized(p3, 0.5)
        p5 = p5 + _resized(p4, 0.5)
        found = [head(level).flatten(2).transpose(1, 2) for head, level in zip(self.heads, (p3, p4, p5), strict=True)]  # (B, cells, 124)
        scores = tuple(each[..., :CLASSES].sigmoid() for each in found)
        return Maps(fine, rest[0], rest[1], scores, tuple(each[..., CLASSES:] for each in found))

    @classmethod
    def from_onnx(cls, path: Path) -> Base:
        """With the weights of the NanoDet of the registry. Raises UnreadableMediaError when the file is another network."""
        base = cls()
        base.load_state_dict(_state(path, base.state_dict()))
        base.eval()
        return base


def _resized(x: torch.Tensor, scale: float) -> torch.Tensor:
    return functional.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


def _state(path: Path, wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Kernels and biases in the order of the graph, under the names of ``wanted``: the graph is a chain in the network's order."""
    graph = onnx.load(path).graph
    stored = {each.name: each for each in graph.initializer}
    kernels = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    biases = [node.input[1] for node in graph.node if node.op_type == "Add" and node.input[1] in stored]
    names = sorted({name.rpartition(".")[0] for name in wanted}, key=_place)
    if len(names) != len(kernels) or len(names) != len(biases):
        raise UnreadableMediaError(f"{path.name} must be NanoDet-g with {len(names)} convolutions, got {len(kernels)}")
    state: dict[str, Any] = {}
    for name, kernel, bias in zip(names, kernels, biases, strict=True):
        state[f"{name}.weight"] = torch.from_numpy(numpy_helper.to_array(stored[kernel]).copy())
        state[f"{name}.bias"] = torch.from_numpy(numpy_helper.to_array(stored[bias]).copy())
    wrong = [name for name, value in wanted.items() if state[name].shape != value.shape]
    if wrong:
        raise UnreadableMediaError(f"{path.name} must be NanoDet-g: {wrong[0]} must be {tuple(wanted[wrong[0]].shape)}")
    return state


def _place(name: str) -> tuple[int, ...]:
    """Where a layer stands in the graph."""
    parts = name.split(".")
    if parts[0] == "stem":
        return (0,)
    order = {"enter": (0,), "leave": (9,)}
    if parts[0] == "stages":
        inner = order.get(parts[2]) or (1, int(parts[3]), 0 if parts[4] == "first" else 1)
        # the pyramid's lateral convolution stands in the graph before the stage after it
        return (1, int(parts[1]) * 2, *inner)
    if parts[0] == "lateral":
        return (1, (int(parts[1]) + 1) * 2 + 1)
    return (2, int(parts[1]), int(parts[2]))
