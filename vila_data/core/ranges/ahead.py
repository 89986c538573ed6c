"""Byte ranges fetched ahead by threads, in the order wanted and within a bound of memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from vila_data.core.errors import StorageError
from vila_data.core.ranges.spans import LARGEST, RangeCounters, Request, Run, Span, merged

_WINDOW: Final = 16 << 20
"""Bytes of the spans that are wanted together; those of two windows are less than what may be ahead."""
_WINDOW_SPANS: Final = 4096

Get = Callable[[str, int, int], bytes]
"""(path, offset, size) -> the bytes, all of them, or a StorageError."""


class FetchError(StorageError):
    """Why something could not be fetched. lasting: another attempt would have been of no use."""

    def __init__(self, reason: str, attempts: int, lasting: bool) -> None:
        self.reason = reason
        self.lasting = lasting
        super().__init__(f"{reason} ({attempts} attempt{'s' if attempts > 1 else ''})")


class AheadReader:
    """Spans of a store's files, each request by one call of `get`.

    Threads take requests in the order wanted while what is on its way and what was fetched but not read stays
    within `ahead_bytes`. A span that is read before its turn is fetched by the caller; if the bound was full then,
    spans that were passed over are given up, so that wanting what is never read does not end the fetching.

    location: full name of a path, for messages. gap: see spans.Run.

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
        """See spans.RangeReader."""
        start = time.perf_counter()
        try:
            found = self._take(span)
            if found is None:
                found = self._load(Request(span.path, span.offset, span.size, (span,)))[span]
        except FetchError as error:
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
        """See spans.RangeReader."""
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
                raise FetchError("the reader is closed", 1, True)
            if span.offset < 0 or span.size < 0:
                raise FetchError("no such range", 1, True)
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
            passing = isinstance(error, FetchError) and not error.lasting
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


def read_ahead(reader: AheadReader, spans: Iterable[Span]) -> Iterator[bytes]:
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
