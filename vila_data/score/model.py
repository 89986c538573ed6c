"""A model's files by directory or hub id, and their fingerprint without loading them; items over threads; unit vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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

ITEMS_PER_THREAD: Final = 8
"""Items that a CPU call gives each thread: enough that waiting for the last one costs little."""


_BACKEND: Final = "transformers"
_TOKENIZERS: Final = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
_SUFFIXES: Final = (".json", ".txt", ".model", ".safetensors")
PROCESSORS: Final = ("preprocessor_config.json", "processor_config.json")


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
    """The directory of a model, with the files that it must have. key: the recipe's, for errors.

    Raises:
        UsageError: no such directory, or a file is missing.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{key}: {model}: no such directory; give the directory that contains {', '.join(needed)}")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"{key}: {model}: has no {', '.join(missing)}; copy the whole model directory, or choose another model"
        )
    return folder


@dataclass(frozen=True)
class Source:
    """A model's place: `name` and `revision` as transformers takes them; `folder` if it is local."""

    name: str
    revision: str | None
    folder: Path | None

    def file(self, *names: str) -> Path | None:
        """The first of these files that the model has, fetched if need be."""
        if self.folder is not None:
            return next((self.folder / name for name in names if (self.folder / name).is_file()), None)
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        for name in names:
            try:
                return Path(hf_hub_download(self.name, name, revision=self.revision))
            except EntryNotFoundError:
                continue
        return None


def find_model(model: str, revision: str | None) -> Source:
    """Where the model is; a hub id is pinned to a commit, the cached one if there is one.

    Raises:
        UsageError: no such folder, a directory that lacks files, or a hub id that cannot be reached.
    """
    if Path(model).expanduser().is_dir() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        _local_files(model)
        return Source(str(Path(model).expanduser()), None, Path(model).expanduser())
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        path = cached if isinstance(cached, str) else hf_hub_download(model, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"score.clip.model: {model}: is neither a directory nor a model in the hub or its local cache "
            f"({reason}); give a directory, or download the model with network access"
        ) from error
    return Source(model, Path(path).parent.name, None)


def model_fingerprint(model: str, revision: str | None) -> str:
    """16 hex digits: of the files' bytes for a directory, of id and commit for a hub model.

    Raises:
        UsageError: as `find_model`.
    """
    source = find_model(model, revision)
    if source.folder is not None:
        return files_fingerprint(_BACKEND, _local_files(model))
    return hashlib.sha256(f"{_BACKEND} {PREPROCESSING} {source.name}@{source.revision}".encode()).hexdigest()[:16]


def _local_files(model: str) -> list[Path]:
    """The files of a directory that decide what the model computes."""
    folder = model_folder(model, ("config.json",))
    names = {path.name for path in folder.iterdir() if path.is_file()}
    safe = any(name.endswith(".safetensors") for name in names)
    lacking = [
        what
        for what, found in (
            ("its weights (model.safetensors)", safe or any(name.endswith(".bin") for name in names)),
            ("preprocessor_config.json", bool(names & set(PROCESSORS))),
            ("tokenizer.json", bool(names & set(_TOKENIZERS))),
        )
        if not found
    ]
    if lacking:
        raise UsageError(
            f"score.clip.model: {model}: has no {', '.join(lacking)}; copy the whole model directory, or choose another model"
        )
    return [folder / name for name in sorted(names) if name.endswith(_SUFFIXES) or (name.endswith(".bin") and not safe)]


def unit_length(vectors_ND: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    """Vectors divided by their length, each on its own.

    Raises:
        DataError: a vector is zero or not finite: the model's weights or its input are broken.
    """
    lengths_N = np.sqrt((vectors_ND.astype(np.float64) ** 2).sum(axis=1))
    if not (np.isfinite(lengths_N).all() and (lengths_N > 0).all()):
        raise DataError(f"{what}: the model returned an embedding that is zero or not finite; its files are damaged")
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
