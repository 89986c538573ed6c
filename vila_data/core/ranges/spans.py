"""Byte ranges of files, the requests that fetch neighbors together, and what a reader of them takes, gives and counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Protocol

from pydantic import Field

from vila_data.core.config import StrictModel

LARGEST: Final = 8 << 20
"""Bytes of a request for several spans."""


class Span(NamedTuple):
    """`size` bytes from `offset` of a file; `path` is relative to its store."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """`size` bytes from `offset` of a file, which contain these spans."""

    path: str
    offset: int
    size: int
    spans: tuple[Span, ...]


class Run:
    """Spans that one request fetches, as far as they are known.

    gap:     bytes between two spans that are fetched along with them rather than asked for apart.
    largest: bytes of a request, unless one span alone is larger.
    """

    def __init__(self, gap: int, largest: int) -> None:
        self._gap, self._largest = gap, largest
        self._path, self._start, self._stop = "", 0, 0

    def takes(self, span: Span) -> bool:
        """Add a span; False where it does not fit and begins another run."""
        path, offset, size = span
        stop = max(self._stop, offset + size)
        fits = (
            path == self._path
            and self._start <= offset <= self._stop + self._gap
            and stop - self._start <= self._largest
        )
        if not fits:
            self._path, self._start, stop = path, offset, offset + size
        self._stop = stop
        return fits


def merged(spans: Iterable[Span], gap: int, largest: int) -> list[Request]:
    """Requests that contain these spans, in the order of the first span of each; gap, largest: see `Run`.

    By hand: fsspec.utils.merge_offset_ranges does not say which span is in which request, and up to fsspec 2024.6 at least,
    which the package allows, it loses the end of a span that contains another one (0 to 100 and 10 to 20 become 0 to 20).
    """
    order = {span: number for number, span in reversed(list(enumerate(spans)))}
    run = Run(gap, largest)
    groups: list[list[Span]] = []
    for span in sorted(order):
        if not run.takes(span):
            groups.append([])
        groups[-1].append(span)
    requests = [
        Request(path, first, max(offset + size for _, offset, size in group) - first, tuple(group))
        for group in groups
        for path, first, _ in group[:1]
    ]
    return sorted(requests, key=lambda request: min(order[span] for span in request.spans))


def whole(path: str, size: int) -> Iterator[Span]:
    """The spans of a whole file of `size` bytes, a request each."""
    return (Span(path, offset, min(LARGEST, size - offset)) for offset in range(0, size, LARGEST))


class ReadOptions(StrictModel):
    """How byte ranges are read. Only `open_files` concerns a local store.

    cache_dir:    folder on a local disk for what was read from a remote store, shared by all processes
                  of a user on a machine and kept afterwards. None: ranges are not kept, and whole files
                  lie in a private temporary folder.
    cache_bytes:  bound of that folder: three quarters are for ranges, one quarter for whole files.
    io_threads:   requests under way at a time.
    retries:      attempts after the first one; 0: none.
    timeout_s:    hard limit of one attempt.
    backoff_s:    the nth retry waits a random time up to ``backoff_s * 2**n``, 20 s at most.
    ahead_bytes:  bound of the bytes that are wanted and fetched, or on their way, but not yet read.
    open_files:   files open at a time, never more than a quarter of the process's limit of descriptors.
    """

    cache_dir: str | None = None
    cache_bytes: Annotated[int, Field(gt=0)] = 32 << 30
    io_threads: Annotated[int, Field(ge=1, le=256)] = 16
    retries: Annotated[int, Field(ge=0, le=20)] = 5
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    backoff_s: Annotated[float, Field(ge=0)] = 0.2
    ahead_bytes: Annotated[int, Field(gt=0)] = 64 << 20
    open_files: Annotated[int, Field(ge=1)] = 1024


@dataclass(slots=True)
class RangeCounters:
    """What a reader has done since it was opened.

    reads, bytes: spans given out and their bytes. cache_hits: spans found in the disk cache.
    retries: attempts that failed and were followed by another. seconds: time that callers spent in `read`
    and `local_copy`. slowest: the one call that took longest, (path, seconds).
    """

    reads: int = 0
    bytes: int = 0
    cache_hits: int = 0
    retries: int = 0
    seconds: float = 0.0
    slowest: tuple[str, float] = ("", 0.0)

    def spent(self, path: str, seconds: float) -> None:
        """Count the time of one call."""
        self.seconds += seconds
        if seconds > self.slowest[1]:
            self.slowest = (path, seconds)


class RangeReader(Protocol):
    """Reads byte ranges of the files of one store. Any thread may call it."""

    counters: RangeCounters

    def want(self, spans: Sequence[Span]) -> None:
        """Announce spans that will be read soon, in this order; returns at once and raises nothing."""

    def read(self, span: Span) -> memoryview | bytes:
        """The bytes of a span, all of them; they stay valid as long as they are referred to.

        Raises:
            StorageError: location, offset, size and reason; the file is missing, shorter, or cannot be read.
        """

    def local_copy(self, path: str) -> Path:
        """A whole file as a local file, to be opened at once.

        Raises:
            StorageError: it is missing or cannot be read, or there is no room for it.
        """

    def close(self) -> None:
        """Give up what is under way; bytes that were given out stay valid."""
