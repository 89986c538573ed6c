"""Reading and decoding ahead of the model, within bounds.

One thread reads a part's tar from front to back; a pool decodes; the consumer takes
events in the part's order. At most `ahead` pictures are decoded or being decoded and
not yet embedded, whatever the size of the part.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

Event = TypeVar("Event")
Result = TypeVar("Result")


@dataclass
class FeedStats:
    """Where a task's time went, in seconds; filled by `score_part`.

    waiting: the model stood still because its next input was not ready.
    model:   inside the model.
    total:   from the first read to the last row.
    """

    waiting: float = 0.0
    model: float = 0.0
    total: float = 0.0

    @property
    def waiting_share(self) -> float:
        """Share of `waiting` in the whole time; 0 before anything ran."""
        return self.waiting / self.total if self.total else 0.0


class Feed(Generic[Event]):
    """Run `read` in a thread of its own and hand over its events in order.

    `read` gets this feed, yields events, and calls `submit` for work to be done by the pool.
    """

    def __init__(self, read: Callable[[Feed[Event]], Iterable[Event]], threads: int, ahead: int) -> None:
        self._read = read
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._pictures = threading.Semaphore(ahead)
        self._places = threading.Semaphore(max(4 * ahead, 64))
        self._stop = threading.Event()

    def __enter__(self) -> Feed[Event]:
        self._reading = self._reader.submit(self._run)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._pictures.release()
        self._places.release()
        self._reader.shutdown(wait=True)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Have the pool do `work`; waits while `ahead` results are outstanding."""
        self._pictures.acquire()
        if self._stop.is_set():  # nobody will ask for the result
            return Future()
        return self._pool.submit(work)

    def release(self, count: int) -> None:
        """Say that `count` results of `submit` have been used."""
        self._pictures.release(count)

    def events(self, stats: FeedStats) -> Iterator[Event]:
        """The events, in order; time spent waiting for them is added to `stats.waiting`.

        Raises: what `read` raised, after the events before it.
        """
        while True:
            begun = time.perf_counter()
            event = self._events.get()
            stats.waiting += time.perf_counter() - begun
            if event is None:
                self._reading.result()
                return
            self._places.release()
            yield event

    def _run(self) -> None:
        try:
            for event in self._read(self):
                self._places.acquire()
                if self._stop.is_set():
                    return
                self._events.put(event)
        finally:
            self._events.put(None)
