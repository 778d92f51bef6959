"""The training losses of the two parents, each usable alone. B pairs of a person's look and a description, D-dimensional."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def same_person(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Which pairs of two lists of person numbers are one person, float (B, G)."""
    return (first[:, None] == second[None]).float()


def contrast(similarity: torch.Tensor, match: torch.Tensor) -> torch.Tensor:
    """Cross-entropy both ways over scaled cosines (B, G); every match (B, G) of a row shares its probability."""
    forth = match / match.sum(1, keepdim=True).clamp(min=1)
    back = match.T / match.T.sum(1, keepdim=True).clamp(min=1)
    return -(forth * similarity.log_softmax(1)).sum(1).mean() - (back * similarity.T.log_softmax(1)).sum(1).mean()


def cmpm(looks: torch.Tensor, words: torch.Tensor, match: torch.Tensor, epsilon: float = 1e-8) -> torch.Tensor:
    """Cross-modal projection matching (SDRPN eq. 7 to 9; Zhang and Lu, ECCV 2018): KL of projections and true matches, both ways.

    looks, words: (B, D) not normalised; match: (B, B).
    """
    target = match / match.sum(1, keepdim=True)

    def one_way(from_: torch.Tensor, onto: torch.Tensor) -> torch.Tensor:
        projected = from_ @ functional.normalize(onto, dim=1).T  # (B, B)
        return (projected.softmax(1) * (projected.log_softmax(1) - (target + epsilon).log())).sum(1).mean()

    return one_way(looks, words) + one_way(words, looks)


class Cmpc(nn.Module):  # type: ignore[misc]
    """Cross-modal projection classification (SDRPN eq. 10, 11): each modality, projected onto the other's direction, names the person."""

    def __init__(self, people: int, dimensions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dimensions, people))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, looks: torch.Tensor, words: torch.Tensor, person: torch.Tensor) -> torch.Tensor:
        """looks, words: (B, D) of pairs that belong together; person: (B,) numbers."""
        weight = functional.normalize(self.weight, dim=0)
        loss = looks.new_zeros(())
        for source, onto in ((looks, words), (words, looks)):
            direction = functional.normalize(onto, dim=1)
            projected = (source * direction).sum(1, keepdim=True) * direction  # (B, D)
            loss = loss + functional.cross_entropy(projected @ weight, person)
        return loss


class Oim(nn.Module):  # type: ignore[misc]
    """Online instance matching (Xiao et al., CVPR 2017; SDRPN's ID-Net loss): a look-up table of every person, moved towards each crop."""

    def __init__(self, people: int, dimensions: int, momentum: float = 0.5, scale: float = 20.0) -> None:
        super().__init__()
        self.momentum, self.scale = momentum, scale
        self.register_buffer("table", functional.normalize(torch.randn(people, dimensions), dim=1) * 0.01)

    def forward(self, looks: torch.Tensor, person: torch.Tensor) -> torch.Tensor:
        """looks: (B, D) of length 1; person: (B,) numbers."""
        loss = functional.cross_entropy(self.scale * looks @ self.table.clone().T, person)
        with torch.no_grad():
            for vector, number in zip(looks.detach(), person.tolist(), strict=True):
                self.table[number] = functional.normalize(self.momentum * self.table[number] + (1 - self.momentum) * vector, dim=0)
        return loss


def cross_scale(parts: torch.Tensor, texts: torch.Tensor, is_text: torch.Tensor, match: torch.Tensor, scale: float = 10.0) -> torch.Tensor:
    """Cross-scale alignment (SDRPN eq. 3 to 6): every image part attends to all text parts and the other way round; KL with the matches.

    parts: (B, m, D) of all image scales, texts: (B, n, D) of all text scales with is_text (B, n); match: (B, B).
    """
    similarity = part_similarity(parts, texts, is_text)  # (B images, B texts), image to text and back
    target = match / match.sum(1, keepdim=True)
    loss = parts.new_zeros(())
    for direction in similarity:
        scaled = scale * direction
        loss = loss + functional.kl_div(scaled.log_softmax(1), target, reduction="batchmean")
        loss = loss + functional.kl_div(scaled.T.log_softmax(1), target.T, reduction="batchmean")
    return loss / 2


def part_similarity(
    parts: torch.Tensor, texts: torch.Tensor, is_text: torch.Tensor, heat: float = 9.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """How well N people's parts (N, m, D) and Q texts' parts (Q, n, D) agree, (N, Q) by attention of parts to texts and back, -1..1."""
    look, word = functional.normalize(parts, dim=2), functional.normalize(texts, dim=2)
    each = torch.einsum("imd,tnd->itmn", look, word)  # (N, Q, m, n)
    # The attended vector is a sum of unit vectors: its cosine and its length follow from inner products, no (N, Q, m, D) is made.
    onto_text = (heat * each.masked_fill(~is_text[None, :, None], -1e4)).softmax(3)  # (N, Q, m, n)
    length = torch.einsum("itmn,tnk,itmk->itm", onto_text, word @ word.transpose(1, 2), onto_text)  # squared
    forth = ((onto_text * each).sum(3) / length.clamp(min=1e-6).sqrt()).mean(2)  # (N, Q)
    onto_look = (heat * each).softmax(2)  # (N, Q, m, n)
    length = torch.einsum("itmn,imk,itkn->itn", onto_look, look @ look.transpose(1, 2), onto_look)
    back = (onto_look * each).sum(2) / length.clamp(min=1e-6).sqrt()  # (N, Q, n)
    return forth, (back * is_text[None]).sum(2) / is_text.sum(1).clamp(min=1)[None]
