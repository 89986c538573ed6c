"""Byte ranges of local files: mapped, given out without a copy."""

from __future__ import annotations

import mmap
import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vila_data.core.errors import StorageError
from vila_data.stream.spans import RangeCounters, Span

_PAGE: Final = mmap.ALLOCATIONGRANULARITY
_ADVISED: Final = 256
"""Spans that one call of `want` may announce to the kernel: each one is a system call."""


class MappedReader:
    """Spans of local files as read-only views of maps, of which the least recently used are let go.

    A view keeps its map alive, so it stays valid when the map is let go, the reader closed or the file deleted.
    Pages are read when they are touched: `counters.seconds` is the time of opening files, not of the disk.
    """

    def __init__(self, root: Path, open_files: int) -> None:
        self.counters = RangeCounters()
        self._root = root
        self._maps: OrderedDict[str, mmap.mmap | None] = OrderedDict()
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._bound = open_files if limit == resource.RLIM_INFINITY else max(1, min(open_files, limit // 4))
        self._lock = threading.Lock()

    def want(self, spans: Sequence[Span]) -> None:
        """Ask the kernel to read the pages of these spans ahead."""
        for path, offset, size in spans[:_ADVISED]:
            try:
                mapped = self._map(path)
            except StorageError:
                continue
            start = offset - offset % _PAGE
            if mapped is not None and offset >= 0 and size > 0 and offset + size <= len(mapped):
                mapped.madvise(mmap.MADV_WILLNEED, start, offset + size - start)

    def read(self, span: Span) -> memoryview | bytes:
        """See spans.RangeReader."""
        start = time.perf_counter()
        path, offset, size = span
        mapped = self._map(path)
        # The size is that of now: a file cut short after it was mapped must not be touched behind its end.
        there = 0 if mapped is None else min(mapped.size(), len(mapped))
        if offset < 0 or size < 0 or offset + size > there:
            raise StorageError(
                f"{self._root / path}: {size} bytes at offset {offset} were asked for, but the file has {there} bytes: "
                "it was cut short or written again since its manifest was; check the run with `vila-data check`"
            )
        counters = self.counters
        counters.reads += 1
        counters.bytes += size
        counters.spent(path, time.perf_counter() - start)
        return b"" if mapped is None else memoryview(mapped)[offset : offset + size]

    def local_copy(self, path: str) -> Path:
        """The file itself."""
        found = self._root / path
        if not found.is_file():
            raise StorageError(f"{found}: no such file")
        return found

    def close(self) -> None:
        """Let go of all maps; a view that is still used keeps its own."""
        with self._lock:
            self._maps.clear()

    def _map(self, path: str) -> mmap.mmap | None:
        """The map of a file; None for an empty one, which cannot be mapped."""
        with self._lock:
            if path in self._maps:
                self._maps.move_to_end(path)
                return self._maps[path]
            mapped = self._open(path)
            self._maps[path] = mapped
            if len(self._maps) > self._bound:
                self._maps.popitem(last=False)
            return mapped

    def _open(self, path: str) -> mmap.mmap | None:
        try:
            descriptor = os.open(self._root / path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(descriptor).st_size
                return mmap.mmap(descriptor, size, prot=mmap.PROT_READ) if size else None
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            reason = "no such file" if isinstance(error, FileNotFoundError) else reason
            raise StorageError(f"{self._root / path}: {reason}") from error
