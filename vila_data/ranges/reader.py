"""Byte ranges of a run's files, from a local disk or from any store that fsspec knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec

from vila_data.core.spans import Span
from vila_data.core.store import Store
from vila_data.ranges.local import LocalReader
from vila_data.ranges.spans import RangeCounters, RangeReader, ReadOptions

__all__ = ["RangeCounters", "RangeReader", "ReadOptions", "Span", "open_ranges"]


def open_ranges(store: Store, options: ReadOptions, version_of: Callable[[str], str] | None = None) -> RangeReader:
    """A reader of the store's files: descriptors where the store is local, requests and a disk cache where it is not.

    version_of: a path's version, any text that is another one when the file is written again (the manifest's
    sha256 of it); it is part of the cache's keys, and several threads call it. None: the store is asked, once a path.

    Raises:
        StorageError: the cache's folder cannot be made or written.
    """
    if not store.is_local:
        from vila_data.ranges.remote import RemoteReader

        return RemoteReader(store, options, version_of)
    _, root = fsspec.core.url_to_fs(store.url)
    return LocalReader(Path(root), options.open_files)
