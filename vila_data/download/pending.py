"""A part's records and their distinct images between the metadata and the tar, while images are fetched and decoded."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vila_data.core.images import StoredImage
from vila_data.core.records import BadRecord

_RECORDS_BYTES: Final = 16 << 20
_IMAGES_BYTES: Final = 64 << 20

Held = bytes | tuple[int, int]
"""Bytes, or their offset and size in the spool."""


class ScratchFile:
    """An append-only scratch file, read by offset. Any thread may append or read."""

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
        if len(data) != size:
            raise OSError(f"scratch file is {size - len(data)} bytes too short")
        return data

    def close(self) -> None:
        """Close the file; the owner of its directory deletes it."""
        os.close(self._descriptor)


class SpillBuffer:
    """Bytes that wait for their turn: in memory up to `budget` bytes, the rest in `spool`.

    Of 1,500 images (75 MB) from one host, 3 to 8 MB waited at a time. Of 2,500 (126 MB), the first of which took 75 s,
    60 MB were spooled.
    """

    def __init__(self, scratch: ScratchFile, budget: int) -> None:
        self._scratch = scratch
        self._free = budget
        self._lock = threading.Lock()

    def put(self, content: bytes) -> Held:
        """Keep `content`.

        Raises:
            OSError: no space left.
        """
        with self._lock:
            fits = len(content) <= self._free
            self._free -= len(content) if fits else 0
        return content if fits else (self._scratch.append(content), len(content))

    def take(self, held: Held) -> bytes:
        """What `put` kept; call it once."""
        if not isinstance(held, bytes):
            return self._scratch.read(*held)
        with self._lock:
            self._free += len(held)
        return held


@dataclass(slots=True, eq=False)
class Image:
    """A distinct image of a part. Records with equal URLs share it.

    With its URL of 100 characters it takes 0.8 kB, 80 MB in a part of 100,000; in columns of numbers it was 0.3 kB.

    finished:       the fields below are known.
    error:          a class of core.fates.IMAGE_ERRORS; None: stored.
    original_bytes: size of the body, where a whole one came.
    detail:         more than the error's class: the name of a format that is not decoded, or a limit.
    stored, sha256: the stored image without its bytes, and their digest.
    held:           the bytes until they are written to the tar.
    offset, size:   of the bytes in the tar.
    """

    finished: bool = False
    error: str | None = None
    http_code: int | None = None
    original_bytes: int | None = None
    detail: str | None = None
    stored: StoredImage | None = None
    sha256: bytes = b""
    held: Held | None = None
    offset: int = 0
    size: int = 0


@dataclass(slots=True, eq=False)
class PendingRecord:
    """A record that is not yet in the tar. images: (URL, matched_text_index, image)."""

    record_id: str
    n_texts: int
    text_chars: int
    content: Held
    images: list[tuple[str, int | None, Image]]


class Pending:
    """Records in order, for one consumer that iterates over them and waits for each image; any thread may call.

    Whichever side fails calls `fail`, and the other side gets that error.
    """

    def __init__(self, scratch: ScratchFile) -> None:
        self.records = SpillBuffer(scratch, _RECORDS_BYTES)
        self.images = SpillBuffer(scratch, _IMAGES_BYTES)
        self._line: deque[PendingRecord | BadRecord] = deque()
        self._changed = threading.Condition()
        self._awaited: Image | None = None
        self._ended = False
        self._failure: BaseException | None = None

    def append(self, record: PendingRecord | BadRecord) -> None:
        """Add the next record."""
        with self._changed:
            self._check()
            self._line.append(record)
            if self._awaited is None:
                self._changed.notify()

    def finish(self, image: Image) -> None:
        """Mark an image as finished."""
        with self._changed:
            self._check()
            image.finished = True
            if image is self._awaited:
                self._changed.notify()

    def end(self) -> None:
        """Say that no record follows and that all images are finished."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def fail(self, error: BaseException) -> None:
        """Make every further call raise `error`."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify()

    def __iter__(self) -> Iterator[PendingRecord | BadRecord]:
        while True:
            with self._changed:
                while not (self._line or self._ended or self._failure):
                    self._changed.wait()
                self._check()
                if not self._line:
                    return
                record = self._line.popleft()
            yield record

    def wait_for(self, image: Image) -> None:
        """Wait until `image` is finished.

        Raises:
            RuntimeError: it was not finished at the end: a programming error.
        """
        with self._changed:
            self._awaited = image
            while not (image.finished or self._ended or self._failure):
                self._changed.wait()
            self._awaited = None
            self._check()
            if not image.finished:
                raise RuntimeError("an image was never finished")

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
