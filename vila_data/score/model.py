"""What the backends share: a model's files, the spreading of items over threads, unit vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.core.receipts import sha256_of

Item = TypeVar("Item")

PREPROCESSING: Final = 1
"""Version of pixels.py and of the tokenizer calls: another number, another fingerprint."""

ITEMS_A_THREAD: Final = 8
"""Items that a CPU call gives each thread: enough that waiting for the last one costs little."""


class ModelKeys(Protocol):
    """The keys of a recipe that say which model, and how much it is given at a time."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def revision(self) -> str | None: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102


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


def model_folder(model: str, needed: Iterable[str], key: str = "score.clip.model") -> Path:
    """The folder of a model, with the files that it must have. key: the recipe's, for errors.

    Raises:
        UsageError: no such folder, or a file is missing.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{key}: {model}: no such folder; give the folder that holds {', '.join(needed)}")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{key}: {model}: lacks {', '.join(missing)}; copy the whole model folder, or name another")
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
