"""The same network on torch, for a GPU (bf16) or to check the exported graphs: stands in for runtime.Network.

Maps stay on the device between the base, the regions and the cells; only detections and vectors come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.detector_retriever.base import Base
from models.detector_retriever.conditioning import Conditioning
from models.detector_retriever.network import IdNet, regions_of
from models.detector_retriever.runtime import Looks
from models.detector_retriever.words import unit
from pipeline.errors import SettingsError

Float32 = NDArray[np.float32]


class TorchNetwork:
    """Base, ID-Net and cells on a device. half: bf16 for convolutions, as on a GPU."""

    def __init__(self, base: Path, weights: Path, device: str, half: bool) -> None:
        """weights: detector_retriever.npz, with detector_retriever.pt beside it. Raises SettingsError when that cannot be read."""
        path = weights.with_suffix(".pt")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError) as error:
            raise SettingsError(f"the weights {path.name} must be a readable torch state: {error}; train them or reinstall") from error
        self._device, self._half = torch.device(device), half
        looks, cells = (_part(state, name) for name in ("looks", "conditioning"))
        self._base = self._ready(Base.from_onnx(base))
        people = IdNet(len(looks["attributes.bias"]), has_late=any(name.startswith("late.") for name in looks))
        people.load_state_dict(looks)
        self._people = self._ready(people)
        conditioning = Conditioning(len(cells["label.bias"]))
        conditioning.load_state_dict(cells)
        self._cells = self._ready(conditioning)

    def maps(self, pictures: Float32) -> tuple[list[Float32], dict[str, Any]]:
        """As runtime.Network.maps; the maps are tensors on the device."""
        given = torch.from_numpy(np.ascontiguousarray(pictures)).to(self._device, memory_format=torch.channels_last)
        with torch.inference_mode(), self._autocast():
            made = self._base(given)
        found = [each.float().cpu().numpy() for each in (*made.scores, *made.sides)]
        return found, {"fine": made.fine, "middle": made.middle, "coarse": made.coarse, "pictures": given}

    def looks(self, maps: Mapping[str, Any], pictures: Float32, boxes: Float32, picture: NDArray[np.int64]) -> Looks:
        """As runtime.Network.looks."""
        numbered = torch.from_numpy(np.concatenate([picture[:, None], boxes], 1).astype(np.float32)).to(self._device)
        with torch.inference_mode(), self._autocast():
            regions = regions_of(maps["fine"].float(), maps["middle"].float(), maps["pictures"], numbered)
            made = self._people(regions)
        body, text, parts = (each.float().cpu().numpy() for each in made[:3])
        return Looks(unit(body), unit(text), parts)

    def grid(self, maps: Mapping[str, Any]) -> Float32:
        """As runtime.Network.grid."""
        coarse = maps["coarse"]
        with torch.inference_mode(), self._autocast():
            cells = self._cells.cells(coarse, maps["middle"])  # (B, S, M)
        grid: Float32 = cells.float().transpose(1, 2).reshape(len(coarse), -1, *coarse.shape[2:]).cpu().numpy()
        return grid

    def _ready(self, module: Any) -> Any:
        return module.eval().to(self._device, memory_format=torch.channels_last)

    def _autocast(self) -> Any:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._half)


def _part(state: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """One module's tensors in float32."""
    own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    return {key: value.float() if value.is_floating_point() else value for key, value in own.items()}
