"""Byte ranges of files, the requests that fetch neighbors together, and threads that fetch them ahead within a bound of memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Protocol

from pydantic import Field

from vila_data.core.config import StrictModel
from vila_data.core.errors import StorageError

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

    gap:     bytes between two spans that are fetched along with them rather than by another request.
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

    cache_dir:    directory on a local disk for what was read from a remote store, shared by all processes
                  of a user on a machine and kept afterwards. None: ranges are not kept, and whole files
                  are in a private temporary directory.
    cache_bytes:  bound of that directory: three quarters are for ranges, one quarter for whole files.
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


_WINDOW: Final = 16 << 20
"""Bytes of the spans that are wanted together; those of two windows are less than what may be ahead."""
_WINDOW_SPANS: Final = 4096

Get = Callable[[str, int, int], bytes]
"""(path, offset, size) -> the bytes, all of them, or a StorageError."""


class RangeError(StorageError):
    """Why something could not be fetched. lasting: another attempt would have been of no use."""

    def __init__(self, reason: str, attempts: int, lasting: bool) -> None:
        self.reason = reason
        self.lasting = lasting
        super().__init__(f"{reason} ({attempts} attempt{'s' if attempts > 1 else ''})")


class PrefetchReader:
    """Spans of a store's files, each request by one call of `get`.

    Threads take requests in the order wanted while what is on its way and what was fetched but not read stays
    within `ahead_bytes`. A span that is read before its turn is fetched by the caller; if the bound was full then,
    spans that were passed over are given up, so that wanting what is never read does not end the fetching.

    location: full name of a path, for messages. gap: see Run.

    By hand: fsspec's `cat_ranges` gives nothing before it has all of it, so nothing is fetched while ranges are used. From a
    store with 30 ms and 60 MB/s per request, 256 MB of 150 kB images took 1.7 s, the first 0.3 s, and 56 MB of memory;
    by `cat_ranges` 2.1 s, 1.1 s and 256 MB; by batches of 8 requests 1.9 s, 0.3 s and 127 MB.
    """

    def __init__(
        self, get: Get, location: Callable[[str], str], *, gap: int, ahead_bytes: int, io_threads: int = 16
    ) -> None:
        self.counters = RangeCounters()
        self._get = get
        self._location = location
        self.gap = gap
        self._ahead_bytes = ahead_bytes
        self._io_threads = io_threads
        self._state = threading.Condition()
        self._closed = False
        self._uses: dict[Span, int] = {}
        self._queued: dict[Request, None] = {}
        self._pending: dict[Span, Request] = {}
        self._ready: OrderedDict[Span, bytes | memoryview | StorageError] = OrderedDict()
        self._ahead = 0
        self._threads: list[threading.Thread] = []

    def want(self, spans: Sequence[Span]) -> None:
        """Queue requests for these spans; neighbors in a file share one."""
        with self._state:
            new = []
            for span in spans:
                if isinstance(self._ready.get(span), StorageError):
                    self._drop(span)
                if span not in self._uses and span.size > 0 and span.offset >= 0:
                    new.append(span)
                self._uses[span] = self._uses.get(span, 0) + 1
            for request in merged(new, self.gap, min(LARGEST, self._ahead_bytes)):
                self._queued[request] = None
                self._pending.update(dict.fromkeys(request.spans, request))
            while len(self._threads) < min(self._io_threads, len(self._queued)) and not self._closed:
                thread = threading.Thread(target=self._serve, daemon=True, name="vila-data-ranges")
                self._threads.append(thread)
                thread.start()
            self._state.notify_all()

    def read(self, span: Span) -> memoryview | bytes:
        """See prefetch.RangeReader."""
        start = time.perf_counter()
        try:
            found = self._take(span)
            if found is None:
                found = self._load(Request(span.path, span.offset, span.size, (span,)))[span]
        except RangeError as error:
            raise StorageError(
                f"{self._location(span.path)}: {span.size} bytes at offset {span.offset} cannot be read: {error}"
            ) from error
        finally:
            with self._state:
                self.counters.spent(span.path, time.perf_counter() - start)
        with self._state:
            self.counters.reads += 1
            self.counters.bytes += span.size
        return found

    def close(self) -> None:
        """See prefetch.RangeReader."""
        with self._state:
            self._closed = True
            for kept in (self._queued, self._pending, self._ready, self._uses):
                kept.clear()
            self._state.notify_all()
        self._break_off()
        for thread in self._threads:
            thread.join(1.0)

    def _break_off(self) -> None:
        """End requests that are under way, as far as that is possible."""

    def _load(self, request: Request) -> dict[Span, bytes | memoryview]:
        """The bytes of a request's spans."""
        data = self._get(request.path, request.offset, request.size) if request.size else b""
        if len(request.spans) == 1:
            return {request.spans[0]: data}
        starts = ((span, span.offset - request.offset) for span in request.spans)
        return {span: data[start : start + span.size] for span, start in starts}

    def _take(self, span: Span) -> bytes | memoryview | None:
        """The bytes of a span that was wanted; None where the caller has to fetch them."""
        with self._state:
            if self._closed:
                raise RangeError("the reader is closed", 1, True)
            if span.offset < 0 or span.size < 0:
                raise RangeError("not a valid range", 1, True)
            request = self._pending.get(span)
            own = request if request in self._queued else None
            if own is not None:
                if self._ahead + own.size > self._ahead_bytes:
                    self._give_up(own)
                del self._queued[own]
                self._ahead += own.size
        if own is not None:
            self._run(own)
        with self._state:
            while span in self._pending:
                self._state.wait()
            found = self._ready.get(span)
            if span in self._uses:
                self._uses[span] -= 1
                if not self._uses[span] or found is None or isinstance(found, StorageError):
                    self._drop(span)
                    if self._has_room():  # otherwise each span would wake all threads
                        self._state.notify_all()
        if isinstance(found, StorageError):
            raise found
        return found

    def _serve(self) -> None:
        """What each thread does: take the next request when there is room for it."""
        while True:
            with self._state:
                while not self._closed and not self._has_room():
                    self._state.wait()
                if self._closed:
                    return
                request = next(iter(self._queued))
                del self._queued[request]
                self._ahead += request.size
            self._run(request)

    def _has_room(self) -> bool:
        request = next(iter(self._queued), None)
        return request is not None and (not self._ahead or self._ahead + request.size <= self._ahead_bytes)

    def _run(self, request: Request) -> None:
        """Fetch a request and lay its spans ready. What is not laid ready is fetched by who reads it."""
        found: Mapping[Span, bytes | memoryview | StorageError] = {}
        try:
            found = self._load(request)
        except StorageError as error:
            # A span that reaches past the file's end must not take its neighbors along.
            passing = isinstance(error, RangeError) and not error.lasting
            if passing or len(request.spans) == 1:
                found = dict.fromkeys(request.spans, error)
        finally:
            with self._state:
                self._ahead -= request.size
                for span in request.spans:
                    if self._pending.pop(span, None) is not None and span in found:
                        self._ready[span] = found[span]
                        self._ahead += _weight(found[span])
                self._state.notify_all()

    def _give_up(self, reached: Request) -> None:
        """Make room for a queued request: drop what is queued before it, and spans that have been ready longest."""
        for request in list(self._queued):
            if request is reached:
                break
            del self._queued[request]
            for span in request.spans:
                del self._pending[span]
                self._drop(span)
        for span in list(self._ready):
            if self._ahead + reached.size <= self._ahead_bytes:
                break
            self._drop(span)

    def _drop(self, span: Span) -> None:
        """Forget a span that is not pending."""
        self._uses.pop(span, None)
        self._ahead -= _weight(self._ready.pop(span, b""))


def _weight(found: bytes | memoryview | StorageError) -> int:
    return 0 if isinstance(found, StorageError) else len(found)


def read_prefetched(reader: PrefetchReader, spans: Iterable[Span]) -> Iterator[bytes]:
    """The bytes of each span, in the order given; the spans after it are fetched meanwhile, in windows that end where
    a request ends.
    """
    before: list[Span] = []
    for window in _windows(spans, Run(reader.gap, LARGEST)):
        if before or len(window) > 1:
            reader.want(window)
        yield from map(bytes, map(reader.read, before))
        before = window
    yield from map(bytes, map(reader.read, before))


def _windows(spans: Iterable[Span], run: Run) -> Iterator[list[Span]]:
    window: list[Span] = []
    held = 0
    for span in spans:
        if not run.takes(span) and (held + span.size > _WINDOW or len(window) >= _WINDOW_SPANS):
            yield window
            window, held = [], 0
        window.append(span)
        held += span.size
    if window:
        yield window
