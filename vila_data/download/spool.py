"""Scratch files that hold what a part's memory must not: bodies, records, URLs, robots.txt files."""

from __future__ import annotations

import os
import threading
from pathlib import Path


class Spool:
    """An append-only local file, read back by offset; any thread may append or read."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._lock = threading.Lock()
        self._size = 0

    def append(self, content: bytes | memoryview) -> int:
        """Write `content` and return its offset.

        Raises:
            OSError: no space left.
        """
        with self._lock:
            offset = self._size
            self._size += len(content)
        at, view = offset, memoryview(content)
        while view:
            written = os.pwrite(self._descriptor, view, at)
            view, at = view[written:], at + written
        return offset

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes that were appended at `offset`."""
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                raise OSError(f"scratch file ends {size - len(data)} bytes early")
            data += more
        return data

    def close(self) -> None:
        """Give the file back; its folder is deleted by its owner."""
        os.close(self._descriptor)
