"""Byte ranges of a remote store: fetched ahead in the order wanted, within a bound, and kept in a disk cache."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from vila_data.core.errors import StorageError
from vila_data.core.spans import Request, Span, merged
from vila_data.core.store import Store
from vila_data.ranges.cache import FileCache, RangeCache, cache_folder, digest, private_folder
from vila_data.ranges.fetch import FetchError, RangeFetch
from vila_data.ranges.spans import RangeCounters, ReadOptions

_GAP: Final = 64 << 10
"""Bytes between two spans that are fetched along with them rather than asked for apart."""
_LARGEST: Final = 8 << 20
_CHUNKS_AHEAD: Final = 4


class RemoteReader:
    """Spans of a remote store's files.

    Threads take requests in the order wanted while what is on its way and what was fetched but not read stays
    within `ahead_bytes`. A span that is read before its turn is fetched by the caller; if the bound was full then,
    spans that were passed over are given up, so that wanting what is never read does not end the fetching.
    """

    def __init__(self, store: Store, options: ReadOptions, version_of: Callable[[str], str] | None) -> None:
        self.counters = RangeCounters()
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
        self._state = threading.Condition()
        self._closed = False
        self._uses: dict[Span, int] = {}
        self._queued: dict[Request, None] = {}
        self._pending: dict[Span, Request] = {}
        self._ready: OrderedDict[Span, bytes | memoryview | FetchError] = OrderedDict()
        self._ahead = 0
        self._threads: list[threading.Thread] = []

    def want(self, spans: Sequence[Span]) -> None:
        """Queue requests for these spans; neighbours in a file share one."""
        with self._state:
            new = []
            for span in spans:
                if isinstance(self._ready.get(span), FetchError):
                    self._drop(span)
                if span not in self._uses and span.size > 0 and span.offset >= 0:
                    new.append(span)
                self._uses[span] = self._uses.get(span, 0) + 1
            for request in merged(new, _GAP, min(_LARGEST, self._options.ahead_bytes)):
                self._queued[request] = None
                self._pending.update(dict.fromkeys(request.spans, request))
            while len(self._threads) < min(self._options.io_threads, len(self._queued)) and not self._closed:
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
                f"{self._store.location(span.path)}: {span.size} bytes at offset {span.offset} cannot be read: {error}"
            ) from error
        finally:
            with self._state:
                self.counters.spent(span.path, time.perf_counter() - start)
        with self._state:
            self.counters.reads += 1
            self.counters.bytes += span.size
        return found

    def local_copy(self, path: str) -> Path:
        """See spans.RangeReader. Without a `cache_dir` the copy lies in a private folder until `close`; the folder
        of a process that was killed is deleted by the next one that makes its own.
        """
        start = time.perf_counter()
        location = self._store.location(path)
        try:
            with self._state:
                if self._files is None:
                    folder = self._closing.enter_context(private_folder())
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
        with self._state:
            self._closed = True
            for kept in (self._queued, self._pending, self._ready, self._uses):
                kept.clear()
            self._state.notify_all()
        self._fetch.close()
        for thread in self._threads:
            thread.join(1.0)
        self._closing.close()

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
                if self._ahead + own.size > self._options.ahead_bytes:
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
                if not self._uses[span] or found is None or isinstance(found, FetchError):
                    self._drop(span)
                    self._state.notify_all()
        if isinstance(found, FetchError):
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
        return request is not None and (not self._ahead or self._ahead + request.size <= self._options.ahead_bytes)

    def _run(self, request: Request) -> None:
        """Fetch a request and lay its spans ready. What is not laid ready is fetched by who reads it."""
        found: Mapping[Span, bytes | memoryview | FetchError] = {}
        try:
            found = self._load(request)
        except FetchError as error:
            # A span that reaches behind the file's end must not take its neighbours along.
            if not error.lasting or len(request.spans) == 1:
                found = dict.fromkeys(request.spans, error)
        finally:
            with self._state:
                self._ahead -= request.size
                for span in request.spans:
                    if self._pending.pop(span, None) is not None and span in found:
                        self._ready[span] = found[span]
                        self._ahead += _weight(found[span])
                self._state.notify_all()

    def _load(self, request: Request) -> dict[Span, bytes | memoryview]:
        """The spans' bytes from the cache or the store; those from the store are put into the cache."""
        found: dict[Span, bytes | memoryview] = {span: b"" for span in request.spans if not span.size}
        cache, keys = self._ranges, dict[Span, str]()
        if cache is not None:
            version = self._version(request.path)
            for span in request.spans:
                keys[span] = digest(self._store.url, span.path, version, span.offset, span.size)
                if span.size and (kept := cache.get(keys[span], span.size)) is not None:
                    found[span] = kept
                    with self._state:
                        self.counters.cache_hits += 1
        for part in merged([span for span in request.spans if span not in found], _GAP, _LARGEST):
            data = self._fetch.get(part.path, part.offset, part.size)
            for span in part.spans:
                start = span.offset - part.offset
                found[span] = data if len(part.spans) == 1 else data[start : start + span.size]
                if cache is not None:
                    cache.put(keys[span], found[span])
        return found

    def _copy(self, path: str, target: int) -> None:
        """Write a whole file to a descriptor, some chunks ahead of the one that is written."""
        size = self._fetch.size(path)
        chunks = deque(range(0, size, _LARGEST))
        coming: deque[tuple[int, Future[bytes]]] = deque()
        while chunks or coming:
            while chunks and len(coming) < _CHUNKS_AHEAD:
                offset = chunks.popleft()
                coming.append((offset, self._fetch.start(path, offset, min(_LARGEST, size - offset))))
            offset, future = coming.popleft()
            left = memoryview(self._fetch.wait(future))
            while left:
                written = os.pwrite(target, left, offset)
                left, offset = left[written:], offset + written

    def _version(self, path: str) -> str:
        if path not in self._versions:
            self._versions[path] = self._version_of(path)
        return self._versions[path]

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
            if self._ahead + reached.size <= self._options.ahead_bytes:
                break
            self._drop(span)

    def _drop(self, span: Span) -> None:
        """Forget a span that is not pending."""
        self._uses.pop(span, None)
        self._ahead -= _weight(self._ready.pop(span, b""))


def _weight(found: bytes | memoryview | FetchError) -> int:
    return 0 if isinstance(found, FetchError) else len(found)
