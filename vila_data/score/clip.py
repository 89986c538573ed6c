"""Kind clip: an image-text model as the score stage sees it, independent of its backend.

Shapes: N items, D the model's dimension, C = 3 channels, H and W pixels.

On a CPU each item runs alone in one thread and the threads take different items, so
that a value depends on the item and the model only: not on batch size, neighbours
or the number of threads. On a GPU items run in batches of `batch_size`.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from vila_data.core.cpus import cpu_count
from vila_data.score.model import files_fingerprint
from vila_data.score.scorer import Column, MissingPath, Needs, Scorer

_COSINE: Final = (-1.0, 1.0)


class Clip(Protocol):
    """A loaded model. `prepare` may be called from many threads at once, the other methods from one.

    dim:         D of the embeddings.
    fingerprint: 16 hex digits, from the bytes of the model's files.
    image_side:  pixels; `prepare` resizes an image's shorter side to this.
    batch_size:  best number of items per call.
    """

    dim: int
    fingerprint: str
    image_side: int
    batch_size: int

    def prepare(self, rgb_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`pixels_CHW`, the model's input, of a decoded image."""
        ...

    def embed_images(self, pixels_CHW: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """[N, D] float32 of unit length."""
        ...

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """[N, D] float32 of unit length; a text longer than the model's limit is truncated."""
        ...


class ClipConfig(Scorer):
    """Similarity of images and texts by CLIP, SigLIP or a similar model.

    kind:       clip.
    backend:    "transformers" (a hub id or a directory) or "onnx" (a directory with image.onnx,
                text.onnx, tokenizer.json and config.json).
    model:      hub id, or path of the directory.
    revision:   commit, tag or branch of a hub model; null is the default branch.
    batch_size: items per GPU call. On a CPU, items always run one at a time.
    embeddings: also write the vectors in clip-retrieval's layout.
    """

    cost: ClassVar[float] = 1.0
    needs: ClassVar[Needs] = "pixels and texts"
    harmless: ClassVar[frozenset[str]] = frozenset({"batch_size", "model"})
    switches: ClassVar[frozenset[str]] = frozenset({"embeddings"})
    on_demand: ClassVar[bool] = True  # a turn is not a caption

    kind: Literal["clip"] = "clip"
    backend: Literal["transformers", "onnx"] = "transformers"
    model: str = Field(min_length=1)
    revision: str | None = None
    batch_size: int = Field(default=256, ge=1, le=65536)
    embeddings: bool = False

    def columns(self) -> tuple[Column, ...]:
        """The columns of core.tables.SCORE_IMAGES."""
        index, many = pa.int32(), pa.list_(pa.float32())
        return (
            Column("similarity", pa.float32(), "cosine", _COSINE, "to its caption, or to its published sentence"),
            Column("matched_text_index", index, "", None, "sentence that was published for it"),
            Column("assigned_text_index", index, "", None, "sentence of a fresh linear assignment", joint=True),
            Column("assigned_similarity", pa.float32(), "cosine", _COSINE, "to that sentence", joint=True),
            Column("similarities", many, "cosine", _COSINE, "to every text of its document"),
        )

    def fingerprint(self) -> str:
        """See Scorer; equals `open().fingerprint`."""
        return clip_fingerprint(self)

    def open(self) -> Clip:
        """See Scorer."""
        return load_clip(self)

    def located(self, folder: Path) -> ClipConfig:
        """See Scorer; a value that is not a directory is a hub id, unless it cannot be one."""
        if (folder / self.model).is_dir():
            return self.model_copy(update={"model": str((folder / self.model).resolve())})
        if self.backend == "onnx" or self.model.startswith((".", "/")):
            raise MissingPath("model", self.model, "directory")
        return self


def load_clip(config: ClipConfig, threads: int | None = None) -> Clip:
    """Load the model of a recipe.

    Args:
        threads: width of the thread pool on a CPU; None takes the CPUs of this process.

    Raises:
        UsageError: the model does not exist, lacks a file, or a package is not installed.
        RunError: a file of the model cannot be read.
    """
    if config.backend == "onnx":
        from vila_data.score.clip_onnx import OnnxClip

        return OnnxClip(config, threads or cpu_count())
    from vila_data.score.clip_transformers import TransformersClip

    return TransformersClip(config, threads or cpu_count())


def clip_fingerprint(config: ClipConfig) -> str:
    """Fingerprint of a recipe's model without loading it: equals `load_clip(config).fingerprint`.

    Raises:
        UsageError: the model does not exist or lacks a file.
    """
    if config.backend == "onnx":
        from vila_data.score.clip_onnx import onnx_files

        return files_fingerprint("onnx", onnx_files(config.model))
    from vila_data.score.model import model_fingerprint

    return model_fingerprint(config.model, config.revision)
