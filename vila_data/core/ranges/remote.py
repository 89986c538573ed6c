"""Byte ranges of a remote store for a loader: with attempts that are counted, and kept in a disk cache."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from vila_data.core.claims import temporary
from vila_data.core.errors import StorageError
from vila_data.core.ranges.ahead import AheadReader, FetchError, read_ahead
from vila_data.core.ranges.cache import FileCache, RangeCache, cache_folder, digest
from vila_data.core.ranges.fetch import RangeFetch
from vila_data.core.ranges.spans import LARGEST, ReadOptions, Request, Span, merged, whole
from vila_data.core.store import Store

_GAP: Final = 64 << 10
_COPY_AHEAD: Final = 4 * LARGEST


class RemoteReader(AheadReader):
    """Spans of a remote store's files, each request tried as often as the options say, and kept in their cache."""

    def __init__(self, store: Store, options: ReadOptions, version_of: Callable[[str], str] | None) -> None:
        super().__init__(
            self._request, store.location, gap=_GAP, ahead_bytes=options.ahead_bytes, io_threads=options.io_threads
        )
        self._store = store
        self._options = options
        self._fetch = RangeFetch(store, options, self.counters)
        self._version_of = version_of or self._fetch.version
        self._versions: dict[str, str] = {}
        self._closing = ExitStack()
        self._ranges: RangeCache | None = None
        self._files: FileCache | None = None
        if options.cache_dir is not None:
            folder = cache_folder(options.cache_dir)
            self._ranges = RangeCache(folder / "ranges", options.cache_bytes * 3 // 4)
            self._files = FileCache(folder / "files", options.cache_bytes // 4)

    def local_copy(self, path: str) -> Path:
        """See spans.RangeReader. Without a `cache_dir` the copy is in a temporary folder until `close`; the folder
        of a process that was killed is deleted by the next one that makes its own.
        """
        start = time.perf_counter()
        location = self._store.location(path)
        try:
            with self._state:
                if self._files is None:
                    folder = self._closing.enter_context(temporary())
                    self._files = FileCache(folder, self._options.cache_bytes // 4)
            version = self._version(path) if self._ranges is not None else ""
            key = digest(self._store.url, path, version)
            return self._files.get(key, os.path.basename(path), lambda target: self._copy(path, target))
        except FetchError as error:
            raise StorageError(f"{location}: cannot be read: {error}") from error
        except OSError as error:
            raise StorageError(f"{location}: cannot be copied to the local disk: {error}") from error
        finally:
            with self._state:
                self.counters.spent(path, time.perf_counter() - start)

    def close(self) -> None:
        """See spans.RangeReader."""
        super().close()
        self._closing.close()

    def _request(self, path: str, offset: int, size: int) -> bytes:
        return self._fetch.get(path, offset, size)

    def _break_off(self) -> None:
        self._fetch.close()

    def _load(self, request: Request) -> dict[Span, bytes | memoryview]:
        """The spans' bytes from the cache or the store; those from the store are put into the cache."""
        cache = self._ranges
        if cache is None or not request.size:
            return super()._load(request)
        found: dict[Span, bytes | memoryview] = {}
        version = self._version(request.path)
        keys = {span: digest(self._store.url, span.path, version, span.offset, span.size) for span in request.spans}
        for span, key in keys.items():
            if (kept := cache.get(key, span.size)) is not None:
                found[span] = kept
                with self._state:
                    self.counters.cache_hits += 1
        for part in merged([span for span in request.spans if span not in found], self.gap, LARGEST):
            for span, data in super()._load(part).items():
                found[span] = data
                cache.put(keys[span], data)
        return found

    def _copy(self, path: str, target: int) -> None:
        """Write a whole file to a descriptor, some requests ahead of the one that is written."""
        with (
            closing(AheadReader(self._fetch.get, self._location, gap=0, ahead_bytes=_COPY_AHEAD)) as reader,
            open(target, "wb", closefd=False) as stream,
        ):
            for piece in read_ahead(reader, whole(path, self._fetch.size(path))):
                stream.write(piece)

    def _version(self, path: str) -> str:
        if path not in self._versions:
            self._versions[path] = self._version_of(path)
        return self._versions[path]
