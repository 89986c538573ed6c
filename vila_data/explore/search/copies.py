"""A segment's index as a local file: itself where the store is a disk, else a copy, kept for the next search."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vila_data.core.errors import DataError, StorageError
from vila_data.core.ranges.cache import FileCache, cache_directory, digest
from vila_data.core.ranges.prefetch import whole
from vila_data.core.ranges.reader import read_spans
from vila_data.core.receipts import read_receipt
from vila_data.core.store import Store

BOUND: Final = 16 << 30
"""Bytes of all copies; those used least recently are given up first."""
_LOG = logging.getLogger(__name__)


@contextmanager
def local_index(store: Store, path: str, receipt: str) -> Iterator[Path]:
    """An index on this machine.

    A copy has the sha256 that the receipt names, and lies in `copies_folder` under it: one of an index that was built
    again is another one. Where that folder cannot be written the copy is a temporary file. One that the block finds
    unreadable is deleted.

    Raises:
        DataError: the file is not the one of its receipt.
        StorageError: the store cannot be read, or no disk has room for a copy.
    """
    if store.is_local:
        yield Path(store.location(path))
        return
    found = read_receipt(store, receipt)
    if found is None or path not in found.outputs:
        raise DataError(f"{store.location(receipt)}: not the receipt of {path}; delete both and build it again")
    size, sha256 = found.outputs[path]["bytes"], found.outputs[path]["sha256"]

    def fetch(target: int) -> None:
        _fetch(store, path, size, sha256, target)

    try:
        copy = FileCache(copies_folder(), BOUND).get(digest("index", sha256), os.path.basename(path), fetch)
    except OSError as error:
        _LOG.warning("the copy of %s is not kept: %s", store.location(path), error)
        with store.scratch() as folder:
            yield _temporary(folder / "index", fetch, store.location(path))
        return
    try:
        yield copy
    except DataError:
        copy.unlink(missing_ok=True)
        raise


def copies_folder() -> Path:
    """Where copies are kept: `vila-data-1/indexes` in XDG_CACHE_HOME, or in ~/.cache.

    Raises:
        OSError: there is no such place, or it cannot be written.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return cache_directory(home) / "indexes"
    except (RuntimeError, StorageError) as error:  # no home; not writable
        raise OSError(str(error)) from error


def _temporary(copy: Path, fetch: Callable[[int], None], where: str) -> Path:
    try:
        with open(copy, "wb") as target:
            fetch(target.fileno())
    except OSError as error:
        raise StorageError(f"{where}: cannot be copied to the local disk: {error.strerror or error}") from error
    return copy


def _fetch(store: Store, path: str, size: int, sha256: str, target: int) -> None:
    """Write a file of the store to a descriptor, some requests at a time."""
    found = hashlib.sha256()
    with open(target, "wb", closefd=False) as stream:
        for piece in read_spans(store, whole(path, size)):
            found.update(piece)
            stream.write(piece)
    if found.hexdigest() != sha256:
        raise DataError(f"{store.location(path)}: not the index of its receipt; delete it and build it again")
