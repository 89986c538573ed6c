"""Many byte ranges of a store's files, one after the other; at an object store, neighbours come by one request.

There a request costs a round trip and money, so what lies between two ranges is read along where it is short.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache
from typing import BinaryIO, Final

from vila_data.core.errors import StorageError
from vila_data.core.spans import Request, Span, merged
from vila_data.core.store import Store

GAP: Final = 512 << 10
"""Bytes that are read along rather than skipped: they take less time than a request."""
LARGEST: Final = 8 << 20
"""Bytes of a request for several ranges."""
_AT_A_TIME: Final = 8
_UNDER_WAY: Final = 32 << 20
"""Bytes asked for at a time; a request that is larger is alone."""
_WINDOW: Final = 32 << 20
"""Bytes of the ranges among which neighbours are looked for, and that are held until they are given out."""
_WINDOW_SPANS: Final = 4096
_WORTH_IT: Final = 0.75
"""A local disk puts ranges in order where so large a share of the requests is left, or a smaller one."""


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
    for window in _windows(spans):
        found: dict[Span, bytes] = {}
        with closing(_fetched(store, merged(filter(_is_some, window), GAP, LARGEST))) as answers:
            for span in window:
                while _is_some(span) and span not in found:
                    request, data = next(answers)
                    found.update(_cut(request, data))
                yield found[span] if _is_some(span) else b""


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
    requests = merged(filter(_is_some, wanted), GAP, LARGEST)
    if len(requests) > _WORTH_IT * len(wanted):
        yield from read_spans(store, wanted)
        return
    with store.scratch() as folder, open(folder / "spans", "w+b") as spool:
        places: dict[Span, int] = {}
        with closing(_fetched(store, requests)) as answers:
            for request, data in answers:
                places.update(_put_by(spool, request, data))
        for span in wanted:
            spool.seek(places.get(span, 0))
            yield spool.read(span.size)


class Blocks:
    """Reads spans of which the next one will be of the same block, such as the pictures of a record.

    At an object store a block is read whole, and some are held.
    """

    def __init__(self, store: Store, held: int = 4) -> None:
        self._store = store
        self._block = lru_cache(maxsize=held)(self._read_block)

    def read(self, span: Span, block: Span) -> bytes:
        """The bytes of a span that lies in a block.

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


def _is_some(span: Span) -> bool:
    """Whether a span has bytes.

    Raises:
        StorageError: it is none.
    """
    if span.offset < 0 or span.size < 0:
        raise StorageError(f"{span.path}: {span.size} bytes at offset {span.offset}: no such range; check the run")
    return span.size > 0


def _windows(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """The spans in runs that may be held."""
    window: list[Span] = []
    held = 0
    for span in spans:
        if window and (held + span.size > _WINDOW or len(window) >= _WINDOW_SPANS):
            yield window
            window, held = [], 0
        window.append(span)
        held += span.size
    if window:
        yield window


def _fetched(store: Store, requests: Iterable[Request]) -> Generator[tuple[Request, bytes]]:
    """The answers to requests, in their order, some of them under way at a time."""
    with ThreadPoolExecutor(_AT_A_TIME, "spans") as pool:
        waiting: deque[tuple[Request, Future[bytes]]] = deque()
        under_way = 0
        for request in requests:
            while waiting and (len(waiting) >= _AT_A_TIME or under_way + request.size > _UNDER_WAY):
                done, answer = waiting.popleft()
                under_way -= done.size
                yield done, answer.result()
            waiting.append((request, pool.submit(store.read_range, request.path, request.offset, request.size)))
            under_way += request.size
        while waiting:
            done, answer = waiting.popleft()
            yield done, answer.result()


def _cut(request: Request, data: bytes) -> Iterator[tuple[Span, bytes]]:
    if len(request.spans) == 1:
        yield request.spans[0], data
        return
    for span in request.spans:
        start = span.offset - request.offset
        yield span, data[start : start + span.size]


def _put_by(spool: BinaryIO, request: Request, data: bytes) -> Iterator[tuple[Span, int]]:
    """Append what the spans of a request hold, each byte once; where each span begins in the file."""
    view = memoryview(data)
    stop = request.offset
    shift = spool.tell() - request.offset
    for span in request.spans:  # by offset
        if span.offset > stop:
            shift -= span.offset - stop
            stop = span.offset
        end = span.offset + span.size
        if end > stop:
            spool.write(view[stop - request.offset : end - request.offset])
            stop = end
        yield span, span.offset + shift
