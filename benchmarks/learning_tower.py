"""The sample's own CLIP (shards/sample/clip) as the vision tower of examples/vila_model.py, frozen as VILA's is.

It is a small convolutional network; the 4 x 4 places of its last layer are 16 patch tokens of 96 dimensions.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

CLIP = Path(__file__).resolve().parents[1] / "shards" / "sample" / "clip" / "image.onnx"


class SampleTower(nn.Module):
    """Normalised pixels_NCHW of 64 px to features_NTD, 16 tokens of 96."""

    image_size, width, side = 64, 96, 4
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3

    def __init__(self, path: Path = CLIP) -> None:
        super().__init__()
        graph = onnx.load(str(path)).graph
        weights = {one.name: torch.tensor(numpy_helper.to_array(one)) for one in graph.initializer}
        layers: list[nn.Module] = []
        for number, node in enumerate(one for one in graph.node if one.op_type == "Conv"):
            weight, bias = (weights[name] for name in node.input[1:])
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, 2 - number % 2, 1)
            layer.load_state_dict({"weight": weight, "bias": bias})
            layers += [layer, nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("head_weight", weights[graph.node[-3].input[1]])
        self.register_buffer("head_bias", weights[graph.node[-3].input[2]])

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """Features of the 16 places, row by row."""
        return self.layers(pixels_NCHW).flatten(2).transpose(1, 2)

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        """CLIP's unit vectors_ND: for the check that these are its weights."""
        flat = self.layers(pixels_NCHW).flatten(1)
        return nn.functional.normalize(flat @ self.head_weight.T + self.head_bias, dim=1)
