"""Byte ranges of a run's files, from a local disk or from any store that fsspec knows: the one way to read them.

`open_ranges` is for a loader, which wants spans long before it reads them, through a cache and with attempts of its own.
`read_spans`, `read_shuffled` and `Blocks` are for all others. At an object store each request costs a round trip and money,
so what is between two ranges is read along where it is short."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Final

from vila_data.core.errors import StorageError
from vila_data.core.ranges.prefetch import (
    LARGEST,
    PrefetchReader,
    RangeCounters,
    RangeReader,
    ReadOptions,
    Span,
    merged,
    read_prefetched,
)
from vila_data.core.store import Store

_ADVISED: Final = 256
"""Spans that one call of `want` may announce to the kernel: each one is a system call."""
_LARGE: Final = 4 << 20
"""Bytes from which on a span's size is compared with the file's before memory is taken for it."""


class _File:
    """A descriptor, closed after its last use."""

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
        """See prefetch.RangeReader."""
        start = time.perf_counter()
        path, offset, size = span
        file = self._file(path)
        try:
            plausible = offset >= 0 and size >= 0 and (size < _LARGE or offset + size <= _size(file))
            data = os.pread(file.descriptor, size, offset) if plausible else b""
            if len(data) != size:
                there = _size(file)
                raise StorageError(
                    f"{self._root / path}: {size} bytes at offset {offset} were requested, but the file has {there} "
                    "bytes: it was truncated or rewritten after its manifest; check the run with `vila-data check`"
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


__all__ = [
    "Blocks",
    "RangeCounters",
    "RangeReader",
    "ReadOptions",
    "Span",
    "open_ranges",
    "read_shuffled",
    "read_spans",
]

GAP: Final = 512 << 10
"""Bytes that are read along rather than skipped: they take less time than a request."""
_AHEAD: Final = 64 << 20
"""Bytes that are fetched, or on their way, before they are given out."""
_WORTH_IT: Final = 0.75
"""A local disk puts ranges in order where so large a share of the requests is left, or a smaller one."""


def open_ranges(store: Store, options: ReadOptions, version_of: Callable[[str], str] | None = None) -> RangeReader:
    """A reader of the store's files: descriptors where the store is local, requests and a disk cache where it is not.

    version_of: a path's version, any text that is another one when the file is written again (the manifest's
    sha256 of it); it is part of the cache's keys, and several threads call it. None: the store is asked, once per path.

    Raises:
        StorageError: the cache's directory cannot be made or written.
    """
    if not store.is_local:
        from vila_data.core.ranges.remote import RemoteReader

        return RemoteReader(store, options, version_of)
    return LocalReader(Path(store.location("")), options.open_files)


def read_spans(store: Store, spans: Iterable[Span]) -> Iterator[bytes]:
    """The bytes of each span, in the order given; `spans` is taken as it is needed.

    Best where they follow one another in their files. Memory: about 100 MB, besides spans that are larger.

    Raises:
        StorageError: a file is missing or shorter than a span of it, or cannot be read.
    """
    if store.is_local:
        for span in spans:
            yield store.read_range(*span)
        return
    with closing(PrefetchReader(store.read_range, store.location, gap=GAP, ahead_bytes=_AHEAD)) as reader:
        yield from read_prefetched(reader, spans)


def read_shuffled(store: Store, spans: Iterable[Span]) -> Iterator[bytes]:
    """The bytes of each span, in the order given, which may be any.

    At an object store they are fetched in the order of the files into a local temporary file, as large as the spans
    together, where that saves requests.

    Raises:
        StorageError: a file is missing or shorter than a span of it, or cannot be read.
        OSError: no space left on the local disk.
    """
    if store.is_local:
        yield from read_spans(store, spans)
        return
    wanted = list(spans)
    if len(merged(wanted, GAP, LARGEST)) > _WORTH_IT * len(wanted):
        yield from read_spans(store, wanted)
        return
    with store.scratch() as directory, open(directory / "spans", "w+b") as spool:
        places: dict[Span, int] = {}
        path, stop, shift = "", 0, 0
        ordered = sorted(set(wanted))
        for span, data in zip(ordered, read_spans(store, ordered), strict=True):
            if span.path != path or span.offset > stop:
                path, stop = span.path, span.offset
                shift = spool.tell() - stop
            fresh = max(0, span.offset + span.size - stop)  # bytes that no span before it has
            spool.write(data[span.size - fresh :])
            stop += fresh
            places[span] = span.offset + shift
        for span in wanted:
            spool.seek(places[span])
            yield spool.read(span.size)


class Blocks:
    """Reads spans of which the next one will be of the same block, such as the images of a record.

    At an object store a block is read whole, and some are held.
    """

    def __init__(self, store: Store, held: int = 4) -> None:
        self._store = store
        self._block = lru_cache(maxsize=held)(self._read_block)

    def read(self, span: Span, block: Span) -> bytes:
        """The bytes of a span within a block.

        Raises:
            StorageError: the file is missing or shorter than the span, or cannot be read.
        """
        at = span.offset - block.offset
        data = None if self._store.is_local or block.size > LARGEST else self._block(block)
        if data is None or at < 0 or at + span.size > len(data):
            return self._store.read_range(*span)
        return data[at : at + span.size]

    def _read_block(self, block: Span) -> bytes | None:
        try:
            return self._store.read_range(*block)
        except StorageError:
            return None  # a span of it may be whole all the same
