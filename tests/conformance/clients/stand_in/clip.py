"""Stands in for CLIP's published weights, which clip-retrieval downloads: a text's vector is the one in VILA_DATA_QUERY (.npy)."""

from __future__ import annotations

import os
from typing import Any

import numpy
import torch


class Model:
    def encode_text(self, text: Any) -> torch.Tensor:
        return torch.from_numpy(numpy.load(os.environ["VILA_DATA_QUERY"]))[None]


def load(name: str, device: str, jit: bool = False) -> tuple[Model, None]:
    return Model(), None


def tokenize(texts: list[str]) -> torch.Tensor:
    return torch.zeros(len(texts), 77, dtype=torch.int64)
