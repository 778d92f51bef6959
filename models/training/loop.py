"""What every training step shares: where it runs, its curves, its optimiser with the checkpoint that it goes on from."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.training.config import Config


@dataclass
class Place:
    """Where training runs: this process among ``processes``, its device and number format."""

    rank: int
    processes: int
    device: str
    precision: torch.dtype

    @classmethod
    def of(cls, config: Config) -> Place:
        processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        has_gpu = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if has_gpu else "cpu"
        if processes > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if has_gpu else "gloo")
        precise = config.precision == "float32" or (config.precision == "auto" and not has_gpu)
        return cls(rank, processes, device, torch.float32 if precise else torch.bfloat16)

    def autocast(self) -> Any:
        return torch.autocast(self.device.split(":")[0], self.precision, enabled=self.precision != torch.float32)

    def share(self, module: nn.Module) -> None:
        """Give every process the mean gradient of all. A parameter that this batch did not touch counts as zero."""
        if self.processes == 1:
            return
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.processes


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout of a step is the same whether training was interrupted before it or not."""
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + rank)


class Curves:
    """A CSV file of figures by step; the first process writes it."""

    def __init__(self, path: Path, place: Place) -> None:
        self._path, self._is_first = path, place.rank == 0

    def note(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        if not self._is_first:
            return
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            for name, value in values.items():
                writer.writerow([phase, step, name, f"{value:.5g}"])


class Schedule:
    """Optimiser, one-cycle learning rate and the checkpoint of one step of training."""

    def __init__(
        self, module: nn.Module, groups: Sequence[dict[str, Any]], steps: int, weight_decay: float, checkpoint: Path, place: Place
    ) -> None:
        self.module, self.checkpoint, self.place, self.step = module, checkpoint, place, 0
        self.optimiser = torch.optim.AdamW(groups, weight_decay=weight_decay)
        rates = [group["lr"] for group in groups]
        self.rate = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, rates, total_steps=max(steps, 2), pct_start=0.1)
        if checkpoint.exists():
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
            module.load_state_dict(state["module"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.rate.load_state_dict(state["rate"])
            self.step = int(state["step"])

    def advance(self, loss: torch.Tensor) -> None:
        """One step down the gradient, the mean over processes, cut at length 5."""
        self.optimiser.zero_grad()
        loss.backward()
        self.place.share(self.module)
        nn.utils.clip_grad_norm_(self.module.parameters(), 5.0)
        self.optimiser.step()
        self.rate.step()
        self.step += 1

    def save(self) -> None:
        """Replace the checkpoint whole, so that a killed process leaves the one before."""
        state = {"module": self.module.state_dict(), "optimiser": self.optimiser.state_dict(), "rate": self.rate.state_dict()}
        scratch = self.checkpoint.with_suffix(".part")
        torch.save({**state, "step": self.step}, scratch)
        scratch.replace(self.checkpoint)
