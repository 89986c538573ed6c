"""One score task: a part's pictures and texts to the table of their similarities.

Each distinct picture and each distinct text is embedded once. The cosine of image i
and text t is summed in float64 over the two vectors alone, so a row's values do not
depend on which other images are scored with it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.receipts import Receipt, committing, read_receipt
from vila_data.core.schemas import SCORE_IMAGES
from vila_data.core.store import Store
from vila_data.score.assignment import assign
from vila_data.score.clip import Clip
from vila_data.score.config import ScoreConfig
from vila_data.score.embeddings import EmbeddingFiles, embedding_paths
from vila_data.score.feed import Feed, FeedStats
from vila_data.score.model import cpu_count
from vila_data.score.reading import Event, Job, Pixels, Reader
from vila_data.score.rows import count_rows, read_rows
from vila_data.score.slots import UNUSED
from vila_data.score.table import TableWriter
from vila_data.score.vectors import Vectors

_AHEAD: Final = 3
"""Batches of pictures that may be decoded and not yet embedded."""

_MODEL_KEY: Final = b"vila_data.clip"
_DOWNLOAD_KEY: Final = b"vila_data.download"


def score_part(
    store: Store,
    part: Part,
    needed: NDArray[np.bool_] | None,
    clip: Clip,
    config: ScoreConfig,
    inputs: str,
    progress: Callable[[int], None] | None = None,
    *,
    reuse: bool = False,
    stats: FeedStats | None = None,
    threads: int | None = None,
) -> Receipt:
    """Write the score table of a part, and its embeddings if asked for, then the receipt.

    Args:
        needed: [rows of the images table] which images to score; None needs all. Those
            without bytes are never scored.
        inputs: fingerprint for the receipt.
        progress: called with the number of image rows finished since its last call.
        reuse: take over what a committed table of this model and this download holds, and
            score only what it lacks; the result equals scoring both together from scratch.
        stats: filled with where the time went.
        threads: decoding threads; None takes the CPUs of this process.

    Raises:
        DataError: the part's files do not fit together, or bytes are damaged.
        StorageError: the store cannot be read or written.
    """
    rows = count_rows(store, part.images_table())
    if needed is not None and len(needed) != rows:
        raise DataError(f"{store.location(part.images_table())}: {rows} images, but {len(needed)} were judged")
    wants_embeddings = config.clip is not None and config.clip.embeddings
    known = part.scores_table() if reuse and _reusable(store, part, clip.fingerprint, wants_embeddings) else None
    task = _Task(store, part, clip, progress, stats or FeedStats())
    reader = Reader(store, part, clip, partial(read_rows, store, part, needed, known))
    ahead = _AHEAD * clip.batch_size
    with committing(store, part.receipt("score"), inputs) as outputs:
        table = outputs.path(part.scores_table())
        with ExitStack() as stack:
            files = None
            if wants_embeddings:
                records = read_rows(store, part, needed, known)
                scored = sum(image.wanted for record in records for image in record.images)
                files = EmbeddingFiles(store, part, outputs, clip.dim, scored, known is not None)
                stack.enter_context(files)
            feed = stack.enter_context(Feed[Event](reader.events, threads or cpu_count(), ahead))
            task.run(feed, table, files, outputs.folder)
        outputs.counts.update(
            images_scored=task.scored,
            images_skipped=rows - task.scored,
            distinct_images=len(reader.images),
            distinct_texts=len(reader.texts),
        )
    if outputs.receipt is None:
        raise DataError(f"{store.location(part.receipt('score'))}: was not written")
    return outputs.receipt


def covers(
    store: Store, part: Part, needed: NDArray[np.bool_] | None, fingerprint: str, embeddings: bool = False
) -> bool:
    """Whether a committed score table of this model and this download has every needed image.

    Args:
        needed: as for `score_part`; fingerprint: of the model (`clip_fingerprint`).
        embeddings: whether the vectors must be there too.
    """
    if not _reusable(store, part, fingerprint, embeddings):
        return False
    if needed is not None and len(needed) != count_rows(store, part.images_table()):
        return False
    records = read_rows(store, part, needed, part.scores_table())
    return all(not image.wanted or image.known is not None for record in records for image in record.images)


def _reusable(store: Store, part: Part, fingerprint: str, embeddings: bool) -> bool:
    """Whether a whole score table is there, made by this model from this download."""
    receipt = read_receipt(store, part.receipt("score"))
    if receipt is None or any(store.size(path) != facts["bytes"] for path, facts in receipt.outputs.items()):
        return False
    if part.scores_table() not in receipt.outputs:
        return False
    if embeddings and receipt.counts.get("images_scored") and embedding_paths(part)[0] not in receipt.outputs:
        return False
    with store.open_read(part.scores_table()) as stream:
        metadata = pq.read_schema(stream).metadata or {}
    wanted = _table_metadata(store, part, fingerprint)
    return all(metadata.get(key) == value for key, value in wanted.items()) and wanted[_DOWNLOAD_KEY] != b""


def _table_metadata(store: Store, part: Part, fingerprint: str) -> dict[bytes, bytes]:
    download = read_receipt(store, part.receipt("download"))
    return {_MODEL_KEY: fingerprint.encode(), _DOWNLOAD_KEY: download.fingerprint().encode() if download else b""}


class _Task:
    """The consuming side: fills the model's batches across records and writes finished records in order."""

    def __init__(
        self, store: Store, part: Part, clip: Clip, progress: Callable[[int], None] | None, stats: FeedStats
    ) -> None:
        self._clip = clip
        self._metadata = _table_metadata(store, part, clip.fingerprint)
        self._part = part
        self._progress = progress
        self._stats = stats
        self._pictures: list[Future[Pixels]] = []
        self._texts: list[str] = []
        self._waiting: deque[Job] = deque()
        self.scored = 0

    def run(self, feed: Feed[Event], table: Path, files: EmbeddingFiles | None, scratch: Path) -> None:
        """Consume the feed to its end."""
        begun = time.perf_counter()
        batch, dim = self._clip.batch_size, self._clip.dim
        with (
            Vectors(scratch / "images.f32", dim) as self._image_vectors,
            Vectors(scratch / "texts.f32", dim) as self._text_vectors,
            TableWriter(table, SCORE_IMAGES, self._metadata) as writer,
        ):
            for event in feed.events(self._stats):
                if isinstance(event, Job):
                    self._waiting.append(event)
                    self._texts.extend(event.new_texts)
                else:
                    self._pictures.append(event)
                if len(self._pictures) >= batch:
                    self._embed_pictures(feed)
                full = len(self._waiting) >= 4 * batch
                while len(self._texts) >= batch or (full and self._texts):
                    self._embed_texts()
                if full and self._pictures:
                    self._embed_pictures(feed)
                self._write_ready(writer, files)
            if self._pictures:
                self._embed_pictures(feed)
            while self._texts:
                self._embed_texts()
            self._write_ready(writer, files)
        self._stats.total += time.perf_counter() - begun

    def _embed_pictures(self, feed: Feed[Event]) -> None:
        begun = time.perf_counter()
        pixels = [future.result() for future in self._pictures]
        ready = time.perf_counter()
        self._image_vectors.append(self._clip.embed_images(pixels))
        self._stats.waiting += ready - begun
        self._stats.model += time.perf_counter() - ready
        feed.release(len(pixels))
        self._pictures.clear()

    def _embed_texts(self) -> None:
        size = self._clip.batch_size
        begun = time.perf_counter()
        self._text_vectors.append(self._clip.embed_texts(self._texts[:size]))
        self._stats.model += time.perf_counter() - begun
        del self._texts[:size]

    def _write_ready(self, writer: TableWriter, files: EmbeddingFiles | None) -> None:
        while self._waiting and self._is_ready(self._waiting[0]):
            job = self._waiting.popleft()
            for values in self._table_rows(job, files):
                writer.add(*values)
            if self._progress is not None:
                self._progress(len(job.rows.images))

    def _is_ready(self, job: Job) -> bool:
        return (
            max(job.image_slots, default=UNUSED) < self._image_vectors.count
            and max(job.text_slots, default=UNUSED) < self._text_vectors.count
        )

    def _table_rows(self, job: Job, files: EmbeddingFiles | None) -> Iterator[tuple[Any, ...]]:
        rows = job.rows
        wanted = [index for index, image in enumerate(rows.images) if image.wanted]
        if job.record is None or not wanted:
            for image in rows.images:
                yield rows.row, rows.record_id, image.image_index, False, None, image.matched_text_index, *[None] * 3
            return
        self.scored += len(wanted)
        pair = job.record.kind == "pair"
        similarities_IT, images_ID, texts_TD = self._similarities(job, wanted, 1 if pair else len(job.record.texts))
        if files is not None:
            files.add(job, wanted, similarities_IT, images_ID, texts_TD)
        assigned_I = assign(similarities_IT)
        place = {index: number for number, index in enumerate(wanted)}
        for index, image in enumerate(rows.images):
            head = (rows.row, rows.record_id, image.image_index, index in place)
            if index not in place:
                yield *head, None, image.matched_text_index, None, None, None
                continue
            similarities_T = similarities_IT[place[index]]
            assigned = int(assigned_I[place[index]])
            matched = 0 if pair else image.matched_text_index
            similarity = similarities_T[matched] if matched is not None and 0 <= matched < len(similarities_T) else None
            tail = (image.matched_text_index, assigned, similarities_T[assigned], None if pair else similarities_T)
            yield *head, similarity, *tail

    def _similarities(
        self, job: Job, wanted: list[int], texts: int
    ) -> tuple[NDArray[np.float32], dict[int, NDArray[np.float32]], NDArray[np.float32]]:
        """([I, T] cosines of the wanted images, {image row: vector} of those embedded now, [T, D] texts if read)."""
        texts_TD = self._text_vectors.take(job.text_slots)
        fresh = [index for index in wanted if job.image_slots[index] != UNUSED]
        vectors = self._image_vectors.take([job.image_slots[index] for index in fresh])
        images_ID = dict(zip(fresh, vectors, strict=True))
        similarities_IT = np.empty((len(wanted), texts), np.float32)
        exact_TD = texts_TD.astype(np.float64)
        for number, index in enumerate(wanted):
            known = job.rows.images[index].known
            if index in images_ID:
                similarities_IT[number] = (exact_TD * images_ID[index]).sum(axis=1)
            elif known is not None and (known.similarity is not None or known.similarities_T is not None):
                similarities_IT[number] = known.similarity if known.similarities_T is None else known.similarities_T
            else:
                raise DataError(f"{self._part.scores_table()}: {job.rows.record_id}: scored, but without a value")
        return similarities_IT, images_ID, texts_TD
