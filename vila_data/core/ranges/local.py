"""Byte ranges of local files, read through descriptors that stay open.

Not mapped: reading costs the same beside a JPEG's decoding, a file that is cut short gives an error instead of a signal,
and what was read does not stay in the process's memory (docs/decisions/0010-loader.md has the figures).
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from vila_data.core.errors import StorageError
from vila_data.core.ranges.spans import RangeCounters, Span

_ADVISED: Final = 256
"""Spans that one call of `want` may announce to the kernel: each one is a system call."""
_LARGE: Final = 4 << 20
"""Bytes from which on a span's size is compared with the file's before memory is taken for it."""


class _File:
    """A descriptor, closed when nobody uses it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
            raise StorageError(f"{path}: {reason}") from error

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.descriptor >= 0:
            close(self.descriptor)


def _size(file: _File) -> int:
    return os.fstat(file.descriptor).st_size


class LocalReader:
    """Spans of local files; of the open ones, those least recently used are let go.

    open_files: at most, and never more than a quarter of the process's limit of descriptors.
    """

    def __init__(self, root: Path, open_files: int) -> None:
        self.counters = RangeCounters()
        self._root = root
        self._files: OrderedDict[str, _File] = OrderedDict()
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._bound = open_files if limit == resource.RLIM_INFINITY else max(1, min(open_files, limit // 4))
        self._lock = threading.Lock()

    def want(self, spans: Sequence[Span]) -> None:
        """Ask the kernel to read these spans ahead."""
        for path, offset, size in spans[:_ADVISED]:
            if offset < 0 or size <= 0:
                continue
            try:
                os.posix_fadvise(self._file(path).descriptor, offset, size, os.POSIX_FADV_WILLNEED)
            except (StorageError, OSError):
                continue  # reading it will say what is wrong

    def read(self, span: Span) -> memoryview | bytes:
        """See spans.RangeReader."""
        start = time.perf_counter()
        path, offset, size = span
        file = self._file(path)
        try:
            plausible = offset >= 0 and size >= 0 and (size < _LARGE or offset + size <= _size(file))
            data = os.pread(file.descriptor, size, offset) if plausible else b""
            if len(data) != size:
                there = _size(file)
                raise StorageError(
                    f"{self._root / path}: {size} bytes at offset {offset} were asked for, but the file has {there} "
                    "bytes: it was cut short or written again since its manifest was; check the run with `vila-data check`"
                )
        except OSError as error:
            raise StorageError(f"{self._root / path}: {size} bytes at offset {offset}: {error.strerror}") from error
        counters = self.counters
        counters.reads += 1
        counters.bytes += size
        counters.spent(path, time.perf_counter() - start)
        return data

    def local_copy(self, path: str) -> Path:
        """The file itself."""
        found = self._root / path
        if not found.is_file():
            raise StorageError(f"{found}: no such file")
        return found

    def close(self) -> None:
        """Let go of all files."""
        with self._lock:
            self._files.clear()

    def _file(self, path: str) -> _File:
        with self._lock:
            file = self._files.get(path)
            if file is not None:
                self._files.move_to_end(path)
                return file
            file = self._files[path] = _File(self._root / path)
            if len(self._files) > self._bound:
                self._files.popitem(last=False)
            return file
