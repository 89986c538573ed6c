"""Prefetch for the model, within bounds: from a part's tar to distinct images and texts, in the part's order.

One thread reads a part's tar from front to back; a pool decodes; the consumer takes events in the part's order. At most
`ahead` images are decoded or being decoded and not yet embedded, whatever the size of the part."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.images import ImageError, decode_rgb
from vila_data.core.layout import Part
from vila_data.core.records import Record, record_from_json
from vila_data.core.store import Store
from vila_data.core.tarcodec import BLOCK
from vila_data.score.tables import RecordRows

Event = TypeVar("Event")
Result = TypeVar("Result")


@dataclass
class FeedStats:
    """Time spent by a task, in seconds; filled by `score_part`.

    waiting: the model was idle because its next input was not ready.
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
    """Run `read` in its own thread and yield its events in order.

    `read` gets this feed, yields events, and calls `submit` for work to be done by the pool.
    """

    def __init__(self, read: Callable[[Feed[Event]], Iterable[Event]], threads: int, ahead: int) -> None:
        self._read = read
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._work = threading.Semaphore(ahead)
        self._spans = threading.Semaphore(max(4 * ahead, 64))
        self._stop = threading.Event()

    def __enter__(self) -> Feed[Event]:
        self._reading = self._reader.submit(self._run)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._work.release()
        self._spans.release()
        self._reader.shutdown(wait=True)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Submit `work` to the pool; waits while `ahead` results are outstanding."""
        self._work.acquire()
        if self._stop.is_set():  # no one will use the result
            return Future()
        return self._pool.submit(work)

    def release(self, count: int) -> None:
        """Report that `count` results of `submit` have been used."""
        self._work.release(count)

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
            self._spans.release()
            yield event

    def _run(self) -> None:
        try:
            for event in self._read(self):
                self._spans.acquire()
                if self._stop.is_set():
                    return
                self._events.put(event)
        finally:
            self._events.put(None)


Prepared = TypeVar("Prepared")
_DIGEST: Final = 16
UNUSED: Final = -1
"""Slot of an item that was seen but has no vector."""


@dataclass(slots=True)
class Job:
    """A record on its way to the score table.

    record:      None if none of its images is scored, or texts are not asked for.
    image_slots: slot of each image row's vector; UNUSED if it has none.
    text_slots:  slot of each text's vector; empty if no vector is needed.
    new_texts:   texts of this record that no record before it has, in slot order.
    """

    rows: RecordRows
    record: Record | None = None
    image_slots: list[int] = field(default_factory=list)
    text_slots: list[int] = field(default_factory=list)
    new_texts: list[str] = field(default_factory=list)


class Reader(Generic[Prepared]):
    """Walks over a part's images once; see `events`. Distinct items are known by their sha256, to 128 bits.

    prepare: (rgb_HWC) -> what an image becomes, in the feed's pool; side: as of a Scorer.
    texts:   whether a record's texts are asked for.
    """

    def __init__(
        self,
        store: Store,
        part: Part,
        rows: Callable[[], Iterator[RecordRows]],
        prepare: Callable[[NDArray[np.uint8]], Prepared],
        side: int | None,
        *,
        texts: bool,
    ) -> None:
        self._store, self._part, self._rows = store, part, rows
        self._prepare, self._side, self._with_texts = prepare, side, texts
        self._tar = store.location(part.images_tar())
        self.images: dict[bytes, int] = {}
        self.texts: dict[bytes, int] = {}
        self._next_image = 0
        self._next_text = 0

    def events(self, feed: Feed[Future[Prepared] | Job]) -> Iterator[Future[Prepared] | Job]:
        """Distinct images as futures (they get slots 0, 1, … in this order), and each record after its images.

        Raises:
            DataError: bytes in the tar are not what the tables say.
        """
        with self._store.open_read(self._part.images_tar()) as tar:
            for rows in self._rows():
                if not any(image.wanted for image in rows.images):
                    yield Job(rows, image_slots=[UNUSED] * len(rows.images))
                    continue
                job = Job(rows)
                if self._with_texts:
                    job.record = read_record(tar, self._tar, rows.offset, rows.json_bytes, rows.record_id)
                for image in rows.images:
                    slot = UNUSED
                    if image.wanted:
                        digest = bytes.fromhex(image.sha256)[:_DIGEST]
                        slot, new = self._image_slot(digest, image.known is None)
                        if new:
                            jpeg = _read(tar, self._tar, image.offset, image.size)
                            yield feed.submit(partial(self._decode, jpeg, image.sha256, rows.record_id))
                    job.image_slots.append(slot if image.known is None else UNUSED)
                if job.record is not None:
                    self._texts(job, job.record)
                yield job

    def _image_slot(self, digest: bytes, embed: bool) -> tuple[int, bool]:
        """(slot, whether the image must be read) of a wanted image."""
        slot = self.images.get(digest)
        if slot is not None and (slot != UNUSED or not embed):
            return slot, False
        slot = self._next_image if embed else UNUSED
        self._next_image += embed
        self.images[digest] = slot
        return slot, embed

    def _texts(self, job: Job, record: Record) -> None:
        embed = any(slot != UNUSED for slot in job.image_slots)
        for text in record.texts[:1] if record.kind == "pair" else record.texts:
            digest = hashlib.sha256(text.encode()).digest()[:_DIGEST]
            slot = self.texts.get(digest)
            if slot is None or (slot == UNUSED and embed):
                slot = self._next_text if embed else UNUSED
                self._next_text += embed
                self.texts[digest] = slot
                if embed:
                    job.new_texts.append(text)
            if embed:
                job.text_slots.append(slot)

    def _decode(self, jpeg: bytes, sha256: str, record_id: str) -> Prepared:
        if hashlib.sha256(jpeg).hexdigest() != sha256:
            raise DataError(
                f"{self._tar}: {record_id}: an image's bytes differ from the download; delete the part to redo it"
            )
        try:
            rgb_HWC = decode_rgb(jpeg, self._side)
        except ImageError as error:
            raise DataError(
                f"{self._tar}: {record_id}: an image cannot be decoded: {error}; delete the part to redo it"
            ) from error
        return self._prepare(rgb_HWC)


def read_record(tar: Any, where: str, offset: int, json_bytes: int, record_id: str) -> Record:
    """The record whose block is at `offset` of a part's tar.

    Raises:
        DataError: there is another, or none; `where` names the tar.
    """
    data = _read(tar, where, offset + BLOCK, json_bytes)
    record = record_from_json(data, f"{where}: byte {offset + BLOCK}")
    if record.record_id != record_id:
        raise DataError(
            f"{where}: record {record.record_id} at byte {offset}, where the table has {record_id}; "
            "delete the part to redo it"
        )
    return record


def _read(tar: Any, where: str, offset: int, size: int) -> bytes:
    tar.seek(offset)
    data: bytes = tar.read(size)
    if len(data) != size:
        raise DataError(f"{where}: is truncated: ends before byte {offset + size}; delete the part to redo it")
    return data
