"""An image-text model as the score stage sees it, whatever runs it.

Shapes: N items, D the model's dimension, C = 3 channels, H and W pixels.

On a CPU each item runs alone in one thread and the threads take different items, so
that a value depends on the item and the model only: not on batch size, neighbours
or the number of threads. On a GPU items run in batches of `batch_size`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vila_data.core.cpus import cpu_count
from vila_data.score.config import ClipConfig
from vila_data.score.model import files_fingerprint


class Clip(Protocol):
    """A loaded model. `prepare` may be called from many threads at once, the others from one.

    dim:         D of the embeddings.
    fingerprint: 16 hex digits, from the bytes of the model's files.
    image_side:  pixels; `prepare` resizes a picture's shorter side to this.
    batch_size:  items that a call takes best.
    """

    dim: int
    fingerprint: str
    image_side: int
    batch_size: int

    def prepare(self, rgb_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`pixels_CHW`, the model's input, of a decoded picture."""
        ...

    def embed_images(self, pixels_CHW: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """[N, D] float32 of unit length."""
        ...

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """[N, D] float32 of unit length; a text longer than the model reads is cut."""
        ...


def load_clip(config: ClipConfig, threads: int | None = None) -> Clip:
    """Load the model of a recipe.

    Args:
        threads: width of the thread pool on a CPU; None takes the CPUs of this process.

    Raises:
        UsageError: the model is not there, lacks a file, or a package is not installed.
        RunError: a file of the model cannot be read as what it should be.
    """
    if config.backend == "onnx":
        from vila_data.score.clip_onnx import OnnxClip

        return OnnxClip(config, threads or cpu_count())
    from vila_data.score.clip_transformers import TransformersClip

    return TransformersClip(config, threads or cpu_count())


def clip_fingerprint(config: ClipConfig) -> str:
    """Fingerprint of a recipe's model without loading it: equals `load_clip(config).fingerprint`.

    Raises:
        UsageError: the model is not there or lacks a file.
    """
    if config.backend == "onnx":
        from vila_data.score.clip_onnx import onnx_files

        return files_fingerprint("onnx", onnx_files(config.model))
    from vila_data.score.hub import model_fingerprint

    return model_fingerprint(config.model, config.revision)
