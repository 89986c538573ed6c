"""An image-text model as the score stage sees it, whatever runs it.

Shapes: N items, D the model's dimension, C = 3 channels, H and W pixels.

On a CPU each item runs alone in one thread and the threads take different items, so
that a value depends on the item and the model only: not on batch size, neighbours
or the number of threads. On a GPU items run in batches of `batch_size`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.core.receipts import sha256_of
from vila_data.score.config import ClipConfig

Item = TypeVar("Item")
PREPROCESSING = 1
"""Version of pixels.py and of the tokenizer calls: another number, another fingerprint."""

ITEMS_A_THREAD = 8
"""Items that a CPU call gives each thread: enough that waiting for the last one costs little."""


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


def cpu_count() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def files_fingerprint(backend: str, files: Iterable[Path]) -> str:
    """16 hex digits from the names and bytes of a model's files."""
    digest = hashlib.sha256(f"{backend} {PREPROCESSING}\n".encode())
    for path in sorted(files):
        facts = path.stat()
        digest.update(f"{path.name} {_file_sha256(path, facts.st_size, facts.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=256)
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """sha256 of a file; `size` and `mtime_ns` make a changed file a new entry."""
    return sha256_of(path)


def model_folder(model: str, needed: Iterable[str]) -> Path:
    """The folder of a model, with the files that it must have.

    Raises:
        UsageError: no such folder, or a file is missing.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise UsageError(f"score.clip.model: {model}: no such folder; give the folder that holds {', '.join(needed)}")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"score.clip.model: {model}: lacks {', '.join(missing)}; copy the whole model folder, or name another"
        )
    return folder


def unit_length(vectors_ND: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    """Vectors divided by their length, each on its own.

    Raises:
        DataError: a vector is zero or not finite: the model's weights or its input are broken.
    """
    lengths_N = np.sqrt((vectors_ND.astype(np.float64) ** 2).sum(axis=1))
    if not (np.isfinite(lengths_N).all() and (lengths_N > 0).all()):
        raise DataError(f"{what}: the model gives an embedding of length 0 or not finite; its files are damaged")
    unit_ND: NDArray[np.float32] = (vectors_ND / lengths_N[:, None]).astype(np.float32)
    return unit_ND


def spread(
    run: Callable[[Callable[[Item], NDArray[np.float32]], list[Item]], Iterable[NDArray[np.float32]]],
    embed: Callable[[Item], NDArray[np.float32]],
    items: list[Item],
    dim: int,
) -> NDArray[np.float32]:
    """[N, D] `embed` of each item, by a thread pool's `map`, in the items' order."""
    result_ND = np.empty((len(items), dim), np.float32)
    for row, vector in enumerate(run(embed, items)):
        result_ND[row] = vector
    return result_ND
