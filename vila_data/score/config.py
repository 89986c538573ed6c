"""Recipe values of the score stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vila_data.core.config import StrictModel


class ClipConfig(StrictModel):
    """Which CLIP model measures similarity.

    backend:    "transformers" (a hub id or a folder) or "onnx" (a folder with image.onnx,
                text.onnx, tokenizer.json and config.json).
    model:      hub id, or path of the folder.
    revision:   commit, tag or branch of a hub model; null is the default branch.
    batch_size: items a call on a GPU. On a CPU each item runs alone, whatever this says.
    embeddings: also write the vectors in clip-retrieval's layout.
    """

    backend: Literal["transformers", "onnx"] = "transformers"
    model: str = Field(min_length=1)
    revision: str | None = None
    batch_size: int = Field(default=256, ge=1, le=65536)
    embeddings: bool = False


class ScoreConfig(StrictModel):
    """What is measured; without `clip` nothing is, and no rule may ask for similarity.

    clip: the model of similarities.
    """

    clip: ClipConfig | None = None
