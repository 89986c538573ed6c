"""What a reader of byte ranges takes, gives and counts, whatever store it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field

from vila_data.core.config import StrictModel
from vila_data.core.spans import Span


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
