"""The part of the network that is trained here: the ID-Net behind the regions of people, and the network that reads descriptions.

Regions are cut from the base's maps by RoI-Align (SDRPN's split into Base-Net and ID-Net), so that a person costs a few milliseconds and
the frame is passed through the base once. The ID-Net starts as the base's own later stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import roi_align

from models.detector_retriever.base import Base, Convolution, CspStage
from models.detector_retriever.words import CLAUSES, OTHER_WORD, PADDING

ROWS, COLUMNS = 24, 8  # cells of a region
PIXEL_ROWS, PIXEL_COLUMNS = 48, 16
STRIPES = 6  # of the ID-Net's own map
COLOUR_STRIPES = 8
COLOURS = 48
COLOUR_SOFTNESS = 0.3  # squared distance in standardised BGR at which a colour counts e^-1 as much
DIMENSIONS = 256
PARTS = 6  # global, two regions, three stripes: SDRPN's three scales
ATTRIBUTE_SCALE = 10.0
WORD_SIZE, HEARD = 128, 256


class Regions(NamedTuple):
    """Features of N people. fine: (N, 64, 24, 8), middle: (N, 128, 24, 8), pixels: (N, 3, 48, 16), standardised BGR."""

    fine: torch.Tensor
    middle: torch.Tensor
    pixels: torch.Tensor


def regions_of(fine: torch.Tensor, middle: torch.Tensor, pictures: torch.Tensor, boxes: torch.Tensor) -> Regions:
    """The regions of N people from the maps of stride 4 and 8. boxes (N, 5): index in the batch, xyxy in network pixels."""
    return Regions(
        roi_align(fine, boxes, (ROWS, COLUMNS), 1 / 4, 2, True),
        roi_align(middle, boxes, (ROWS, COLUMNS), 1 / 8, 2, True),
        roi_align(pictures, boxes, (PIXEL_ROWS, PIXEL_COLUMNS), 1.0, 2, True),
    )


class Looks(NamedTuple):
    """What the ID-Net says of N people: body and text-aligned vectors (N, 256), part vectors (N, 6, 256), attribute logits (N, T)."""

    body: torch.Tensor
    text: torch.Tensor
    parts: torch.Tensor
    attributes: torch.Tensor


class IdNet(nn.Module):  # type: ignore[misc]
    """Regions of people to vectors."""

    def __init__(self, attributes: int, dropout: float = 0.5, has_late: bool = True) -> None:
        super().__init__()
        self.fuse = Convolution(64, 128, 1, is_activated=False)
        self.early = CspStage(128, 2, 2)
        self.late = CspStage(256, 3, 2) if has_late else None
        deep = 512 if has_late else 256
        self.colours = nn.Conv2d(3, COLOURS, 1)
        width = 2 * deep + STRIPES * 256 + COLOUR_STRIPES * COLOURS
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(dropout)
        self.body = nn.Linear(width, DIMENSIONS)
        self.text = nn.Linear(width, DIMENSIONS)
        self.attributes = nn.Linear(DIMENSIONS, attributes)  # of the text-aligned vector: an index can be asked for them later
        self.parts = nn.ModuleList([nn.Linear(deep, DIMENSIONS)] + [nn.Linear(256, DIMENSIONS) for _ in range(PARTS - 1)])
        nn.init.zeros_(self.fuse.convolution.weight)
        nn.init.zeros_(self.fuse.convolution.bias)
        column = torch.tensor([0.4, 0.8, 1.2, 1.6, 1.6, 1.2, 0.8, 0.4]).repeat_interleave(2) / 16
        self.register_buffer("columns", column)

    def start_from(self, base: Base, colours: torch.Tensor) -> None:
        """Take the base's stages of stride 16 and 32 as a start, and usual colours (48, 3), standardised BGR.

        A softmax over 1×1 convolutions is a soft assignment to the nearest colour: softmax(-|x - c|² / s) = softmax((2 c·x - |c|²) / s).
        """
        self.early.load_state_dict(base.stages[2].state_dict())
        if self.late is not None:
            self.late.load_state_dict(base.stages[3].state_dict())
        with torch.no_grad():
            self.colours.weight.copy_((2 / COLOUR_SOFTNESS * colours)[..., None, None])
            self.colours.bias.copy_(-colours.square().sum(1) / COLOUR_SOFTNESS)

    def forward(self, regions: Regions) -> Looks:
        """See Looks; vectors are not normalised."""
        x = regions.middle + self.fuse(regions.fine)  # (N, 128, 24, 8)
        early = self.early(x)  # (N, 256, 12, 4)
        late = early if self.late is None else self.late(early)  # (N, 512, 6, 2)
        rows = early.mean(3)  # (N, 256, 12)
        stripes = functional.adaptive_avg_pool1d(rows, STRIPES)  # (N, 256, 6)
        colours = (self.colours(regions.pixels).softmax(1) * self.columns).sum(3)  # (N, 48, 48): a histogram per row
        colours = (functional.adaptive_avg_pool1d(colours, COLOUR_STRIPES) + 1e-4).sqrt()  # (N, 48, 8)
        whole = late.mean((2, 3))  # (N, 512)
        joined = torch.cat([whole, late.amax((2, 3)), stripes.flatten(1), colours.flatten(1)], 1)
        features = self.dropout(self.norm(joined))  # (N, F)
        scales = [whole, *functional.adaptive_avg_pool1d(rows, 2).unbind(2), *functional.adaptive_avg_pool1d(rows, 3).unbind(2)]
        parts = torch.stack([part(scale) for part, scale in zip(self.parts, scales, strict=True)], 1)  # (N, 6, D)
        text = self.text(features)
        return Looks(self.body(features), text, parts, self.attributes(ATTRIBUTE_SCALE * functional.normalize(text, dim=1)))


@dataclass
class Said:
    """B descriptions as numbers. words: ids (B, L), 0 padded; clauses: (B, L) the sub-sentence of each word; terms: (B, T) signs."""

    words: torch.Tensor
    clauses: torch.Tensor
    terms: torch.Tensor

    def rows(self, index: torch.Tensor) -> Said:
        """Those at ``index``."""
        return Said(self.words[index], self.clauses[index], self.terms[index])

    def to(self, device: str) -> Said:
        """On another device."""
        return Said(self.words.to(device), self.clauses.to(device), self.terms.to(device))


class Heard(NamedTuple):
    """What the words say: sentence (B, D), sub-sentences (B, C, D) with is_clause (B, C), words (B, L, D) with is_word (B, L)."""

    sentence: torch.Tensor
    clauses: torch.Tensor
    is_clause: torch.Tensor
    words: torch.Tensor
    is_word: torch.Tensor


class WordNet(nn.Module):  # type: ignore[misc]
    """Word vectors, a convolution over three words, the maximum over a sub-sentence and over the sentence; a signed vector per term."""

    def __init__(self, words: int, terms: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, WORD_SIZE, padding_idx=PADDING)
        self.convolution = nn.Conv1d(WORD_SIZE, HEARD, 3, padding=1)
        self.sentence = nn.Linear(HEARD, DIMENSIONS)
        self.clause = nn.Linear(HEARD, DIMENSIONS)
        self.word = nn.Linear(HEARD, DIMENSIONS)
        self.terms = nn.Linear(terms, DIMENSIONS, bias=False)
        nn.init.normal_(self.words.weight, std=0.1)

    def forward(self, said: Said) -> Heard:
        """See Heard; vectors are not normalised."""
        ids, terms = said.words, said.terms
        is_word = ids != PADDING
        if self.training:
            ids = torch.where((torch.rand(ids.shape, device=ids.device) < 0.1) & is_word, OTHER_WORD, ids)
            terms = functional.dropout(terms, 0.2)
        vectors = self.words(ids) * is_word[..., None]  # (B, L, E)
        heard = torch.relu(self.convolution(vectors.transpose(1, 2))).transpose(1, 2) * is_word[..., None]  # (B, L, H)
        sentence = functional.dropout(heard.amax(1), 0.3, self.training)  # (B, H)
        member = functional.one_hot(said.clauses, CLAUSES).bool() & is_word[..., None]  # (B, L, C)
        clauses = torch.stack([(heard * member[..., c, None]).amax(1) for c in range(CLAUSES)], 1)  # (B, C, H)
        return Heard(self.sentence(sentence) + self.terms(terms), self.clause(clauses), member.any(1), self.word(heard), is_word)
