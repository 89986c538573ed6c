"""The two towers of the sample's tiny CLIP, in torch: about 560,000 weights together.

Shapes: N items, T tokens, D dimensions; C, H, W of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

DIM, SIZE = 128, 64
MEAN, STD = 127.0, 128.0


class ImageTower(nn.Module):
    """uint8-range pixels_NCHW, normalised, to unit vectors_ND."""

    def __init__(self, widths: tuple[int, ...] = (24, 40, 64, 96), dim: int = DIM) -> None:
        super().__init__()
        self.blocks: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
        for before, after in zip((3, *widths), widths, strict=False):
            self.blocks.append((nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after)))
            self.blocks.append((nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)))
        self.layers = nn.Sequential(*(layer for conv, norm in self.blocks for layer in (conv, norm, nn.ReLU())))
        self.head = nn.Linear(widths[-1] * (SIZE // 16) ** 2, dim)

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """Unit vectors_ND of the pictures."""
        return functional.normalize(self.head(self.layers(pixels_NCHW).flatten(1)), dim=1)


class TextTower(nn.Module):
    """ids_NT and mask_NT to unit vectors_ND: word embeddings, two convolutions over words, masked mean."""

    def __init__(self, words: int, width: int = 96, dim: int = DIM) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.first = nn.Conv1d(width, width, 5, padding=2)
        self.second = nn.Conv1d(width, width, 5, padding=2)
        self.head = nn.Linear(width, dim)

    def forward(self, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Unit vectors_ND of the texts; what is masked has no influence."""
        mask = mask_NT.to(torch.float32).unsqueeze(1)
        hidden = self.embedding(ids_NT).transpose(1, 2) * mask
        hidden = hidden + functional.relu(self.first(hidden)) * mask
        hidden = hidden + functional.relu(self.second(hidden)) * mask
        return functional.normalize(self.head(hidden.sum(2) / mask.sum(2)), dim=1)
