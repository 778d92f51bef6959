"""Looking for descriptions in the shared features of a frame: FastPR's grid attention and SDRPN's channel gates.

Both read the same maps as everything else and score the cell that holds a person's centre; what does not depend on the description is
computed once a frame, so that one more standing description costs a few vector products. Adapted from the papers in three places: the
grid is the frame's own at stride 16 instead of 7×7; phrases are the sub-sentences of a free description instead of one-hot labels; and
the fully connected layers work per cell, so that any frame size fits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from models.detector_retriever.network import DIMENSIONS, Heard

STRIDE = 16
CELL = 128  # M of the paper
PHRASES = 6  # T
TEMPERATURE = 0.5
REDUCTION = 16  # r of SDRPN
DIRECTIONS = 8  # |q - p| of two of the nine regions
CROP_ROWS, CROP_COLUMNS = 24, 8  # of the rebuilt picture


class Asked(NamedTuple):
    """Q descriptions as the heads want them. gates: (Q, M) 0..1; phrases: (Q, T, M), zeros where there is none; is_phrase: (Q, T)."""

    gates: torch.Tensor
    phrases: torch.Tensor
    is_phrase: torch.Tensor


class Conditioning(nn.Module):  # type: ignore[misc]
    """Scores of cells for descriptions."""

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(256, CELL, 1)
        self.middle = nn.Conv2d(128, CELL, 1)
        self.mix = nn.Conv2d(CELL, CELL, (7, 3), padding=(3, 1), groups=CELL)  # a person is tall: the centre must know head and feet
        self.gate = nn.Sequential(nn.Linear(DIMENSIONS, CELL // REDUCTION), nn.ReLU(), nn.Linear(CELL // REDUCTION, CELL), nn.Sigmoid())
        self.gated = nn.Linear(CELL, 1)
        self.phrase = nn.Linear(DIMENSIONS, CELL)
        self.join = nn.Linear(PHRASES * CELL, CELL)  # the 1×1 convolution over the T fused maps
        self.shared = nn.Sequential(nn.Linear(CELL, CELL), nn.ReLU(), nn.Linear(CELL, CELL), nn.ReLU())
        self.confidence = nn.Sequential(nn.Linear(CELL, CELL // 2), nn.ReLU(), nn.Linear(CELL // 2, 1))
        nn.init.constant_(self.confidence[2].bias, -5.0)  # nearly all cells hold nobody who was asked for
        self.label = nn.Linear(CELL, terms)
        self.rebuild = nn.Sequential(nn.Linear(CELL, 512), nn.ReLU(), nn.Linear(512, 3 * CROP_ROWS * CROP_COLUMNS))
        self.offset = nn.Linear(9 * CELL, DIRECTIONS)

    def cells(self, coarse: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
        """The grid I_en, (B, S, M) with S cells row by row, from the maps of stride 16 and 8 (SEEDS 1)."""
        x = self.coarse(coarse) + self.middle(_halved(middle, coarse))  # (B, M, H/16, W/16)
        x = functional.leaky_relu(x, 0.1)
        x = x + self.mix(x)
        return x.flatten(2).transpose(1, 2)  # (B, S, M)

    def asked(self, heard: Heard) -> Asked:
        """What is applied to every frame, made once."""
        is_phrase = heard.is_clause[:, :PHRASES]
        return Asked(
            self.gate(functional.normalize(heard.sentence, dim=1)),  # SDRPN eq. 1
            self.phrase(functional.normalize(heard.clauses[:, :PHRASES], dim=2)) * is_phrase[..., None],
            is_phrase,
        )

    def attention(self, cells: torch.Tensor, asked: Asked) -> torch.Tensor:
        """w_i = softmax over the cells of <I_en, v_i> / temperature, times the number of cells: (Q, T, S) for one frame's cells (S, M)."""
        logits = torch.einsum("sm,qtm->qts", cells, asked.phrases) / TEMPERATURE
        weight = logits.softmax(2) * cells.shape[0]
        return weight * asked.is_phrase[..., None]

    def fused(self, cells: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """I~ at some cells (N, M) with their weights (Q, T, N): the T maps I_en ⊙ w_i joined by the 1×1 convolution, (Q, N, M).

        The convolution is applied to the cells before the weights: it does not depend on the description.
        """
        kernels = self.join.weight.view(CELL, PHRASES, CELL)  # (M, T, M)
        ready = torch.einsum("nc,mtc->tnm", cells, kernels)  # (T, N, M)
        weight = weight.clamp(max=50.0).add(1e-6).log1p()  # a cell can hold nearly all of the attention of a thousand
        return torch.einsum("qtn,tnm->qnm", weight, ready) + self.join.bias

    def scores(self, cells: torch.Tensor, weight: torch.Tensor, asked: Asked) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of FastPR's confidence and of SDRPN's gated objectness at cells (N, M): two times (Q, N)."""
        confidence = self.confidence(self.shared(self.fused(cells, weight)))[..., 0]  # (Q, N)
        gated = (asked.gates * self.gated.weight) @ cells.T + self.gated.bias  # eq. 2: s ⊙ X, then the anchor score
        return confidence, gated

    # ------------------------------------------------------------------------------ proxy tasks (FastPR, training only)

    def label_logits(self, cells: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Which terms each phrase holds, from its fused feature I~_i summed over the frame: (Q, T, terms). Proxy task 1."""
        return self.label(torch.einsum("qts,sm->qtm", weight, cells) / cells.shape[0])

    def rebuilt(self, fused: torch.Tensor) -> torch.Tensor:
        """The target's crop from I~ at its cell (Q, M): (Q, 3, 24, 8), standardised. Proxy task 2."""
        return self.rebuild(fused).view(-1, 3, CROP_ROWS, CROP_COLUMNS)

    def direction_logits(self, shared: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
        """|q - p| from the features behind the common layer (Q, S, M), averaged over nine regions (S,): (Q, 8). Proxy task 3."""
        member = functional.one_hot(region, 9).float()  # (S, 9)
        pooled = torch.einsum("qsm,sr->qrm", shared, member / member.sum(0).clamp(min=1))
        return self.offset(pooled.flatten(1))


def _halved(middle: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    return middle if middle.shape[-2:] == coarse.shape[-2:] else functional.avg_pool2d(middle, 2)


def regions_of_grid(rows: int, columns: int) -> torch.Tensor:
    """Which of the nine regions each cell of a grid lies in, (rows × columns,)."""
    down = torch.arange(rows) * 3 // rows
    across = torch.arange(columns) * 3 // columns
    return (down[:, None] * 3 + across[None]).flatten()


def centre_cells(boxes: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The cell that holds the centre of each box (N, 4) in network pixels: indices (N,)."""
    x = ((boxes[:, 0] + boxes[:, 2]) / 2 / STRIDE).long().clamp(0, columns - 1)
    y = ((boxes[:, 1] + boxes[:, 3]) / 2 / STRIDE).long().clamp(0, rows - 1)
    return y * columns + x
