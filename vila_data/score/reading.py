"""The reading side of a score task: from a part's tar to distinct pictures and texts, in the part's order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.images import ImageError, decode_rgb
from vila_data.core.layout import Part
from vila_data.core.records import Record, record_from_json
from vila_data.core.store import Store
from vila_data.core.tarcodec import BLOCK
from vila_data.score.clip import Clip
from vila_data.score.feed import Feed
from vila_data.score.rows import RecordRows
from vila_data.score.slots import DIGEST, UNUSED, Slots

Pixels = NDArray[np.float32]


@dataclass(slots=True)
class Job:
    """A record on its way to the score table.

    record:      None if none of its images is scored.
    image_slots: slot of each image row's vector; UNUSED if it has none.
    text_slots:  slot of each text's vector; empty if no vector is needed.
    new_texts:   texts of this record that no record before it has, in slot order.
    """

    rows: RecordRows
    record: Record | None = None
    image_slots: list[int] = field(default_factory=list)
    text_slots: list[int] = field(default_factory=list)
    new_texts: list[str] = field(default_factory=list)


Event = Future[Pixels] | Job
"""A distinct picture to embed (they get slots 0, 1, … in this order), or a record whose pictures all came before."""


class Reader:
    """Walks over a part once; see `events`. Distinct items are known by their sha256, to 128 bits."""

    def __init__(self, store: Store, part: Part, clip: Clip, rows: Callable[[], Iterator[RecordRows]]) -> None:
        self._store = store
        self._part = part
        self._clip = clip
        self._rows = rows
        self._tar = store.location(part.images_tar())
        self.images = Slots()
        self.texts = Slots()
        self._next_image = 0
        self._next_text = 0

    def events(self, feed: Feed[Event]) -> Iterator[Event]:
        """Distinct pictures as futures of their pixels, and each record after its pictures.

        Raises:
            DataError: bytes in the tar are not what the tables say.
        """
        with self._store.open_read(self._part.images_tar()) as tar:
            for rows in self._rows():
                if not any(image.wanted for image in rows.images):
                    yield Job(rows)
                    continue
                record = self._record(tar, rows)
                job = Job(rows, record)
                for image in rows.images:
                    slot = UNUSED
                    if image.wanted:
                        digest = bytes.fromhex(image.sha256)[:DIGEST]
                        slot, new = self._image_slot(digest, image.known is None)
                        if new:
                            jpeg = self._read(tar, image.offset, image.size)
                            yield feed.submit(partial(self._decode, jpeg, image.sha256, record.record_id))
                    job.image_slots.append(UNUSED if image.known else slot)
                self._texts(job, record)
                yield job

    def _image_slot(self, digest: bytes, embed: bool) -> tuple[int, bool]:
        """(slot, whether the picture must be read) of a wanted picture."""
        slot = self.images.get(digest)
        if slot is not None and (slot != UNUSED or not embed):
            return slot, False
        slot = self._next_image if embed else UNUSED
        self._next_image += embed
        self.images.set(digest, slot)
        return slot, embed

    def _texts(self, job: Job, record: Record) -> None:
        embed = any(slot != UNUSED for slot in job.image_slots)
        for text in record.texts[:1] if record.kind == "pair" else record.texts:
            digest = hashlib.sha256(text.encode()).digest()[:DIGEST]
            slot = self.texts.get(digest)
            if slot is None or (slot == UNUSED and embed):
                slot = self._next_text if embed else UNUSED
                self._next_text += embed
                self.texts.set(digest, slot)
                if embed:
                    job.new_texts.append(text)
            if embed:
                job.text_slots.append(slot)

    def _record(self, tar: Any, rows: RecordRows) -> Record:
        at = rows.offset + BLOCK
        record = record_from_json(self._read(tar, at, rows.json_bytes), f"{self._tar}: byte {at}")
        if record.record_id != rows.record_id:
            raise DataError(
                f"{self._tar}: record {record.record_id} at byte {rows.offset}, where the table has {rows.record_id}; "
                "delete the part to redo it"
            )
        return record

    def _read(self, tar: Any, offset: int, size: int) -> bytes:
        tar.seek(offset)
        data: bytes = tar.read(size)
        if len(data) != size:
            raise DataError(f"{self._tar}: ends before byte {offset + size}: truncated; delete the part to redo it")
        return data

    def _decode(self, jpeg: bytes, sha256: str, record_id: str) -> Pixels:
        if hashlib.sha256(jpeg).hexdigest() != sha256:
            raise DataError(f"{self._tar}: {record_id}: an image has other bytes than at download; delete the part")
        try:
            rgb_HWC = decode_rgb(jpeg, 2 * self._clip.image_side)
        except ImageError as error:
            raise DataError(
                f"{self._tar}: {record_id}: an image cannot be decoded: {error}; delete the part"
            ) from error
        return self._clip.prepare(rgb_HWC)
