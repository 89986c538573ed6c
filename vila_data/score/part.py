"""One score task: a part's pictures and texts to the table of their similarities.

Each distinct picture and each distinct text is embedded once. The cosine of image i
and text t is summed in float64 over the two vectors alone, so a row's values do not
depend on which other images are scored with it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vila_data.core.cpus import cpu_count
from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.receipts import Receipt, committing, read_receipt
from vila_data.core.schemas import SCORE_IMAGES
from vila_data.core.store import Store
from vila_data.score.clip import Clip
from vila_data.score.config import ScoreConfig
from vila_data.score.embeddings import EmbeddingFiles, embedding_paths
from vila_data.score.feed import Feed, FeedStats
from vila_data.score.reading import Event, Job, Pixels, Reader
from vila_data.score.rows import count_rows, read_rows
from vila_data.score.slots import UNUSED
from vila_data.score.table import TableWriter
from vila_data.score.vectors import Vectors
from vila_data.score.writing import RowWriter

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
    total = count_rows(store, part.images_table())
    if needed is not None and len(needed) != total:
        raise DataError(f"{store.location(part.images_table())}: {total} images, but {len(needed)} were judged")
    wants_embeddings = config.clip is not None and config.clip.embeddings
    known = part.scores_table() if reuse and _reusable(store, part, clip.fingerprint, wants_embeddings) else None
    task = _Task(clip, progress, stats or FeedStats())
    reader = Reader(store, part, clip, partial(read_rows, store, part, needed, known))
    ahead = _AHEAD * clip.batch_size
    with committing(store, part.receipt("score"), inputs) as outputs:
        with ExitStack() as stack:
            metadata = _table_metadata(store, part, clip.fingerprint)
            table = stack.enter_context(TableWriter(outputs.path(part.scores_table()), SCORE_IMAGES, metadata))
            images = stack.enter_context(Vectors(outputs.folder / "images.f32", clip.dim))
            texts = stack.enter_context(Vectors(outputs.folder / "texts.f32", clip.dim))
            files = None
            if wants_embeddings:
                records = read_rows(store, part, needed, known)
                scored = sum(image.wanted for record in records for image in record.images)
                files = EmbeddingFiles(store, part, outputs, clip.dim, scored, known is not None)
                stack.enter_context(files)
            feed = stack.enter_context(Feed[Event](reader.events, threads or cpu_count(), ahead))
            rows = RowWriter(part, table, files, images, texts)
            task.run(feed, (images, texts), rows)
        outputs.counts.update(
            images_scored=rows.scored,
            images_skipped=total - rows.scored,
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
    """The model's side: fills its batches across records, hands finished records to the writing thread."""

    def __init__(self, clip: Clip, progress: Callable[[int], None] | None, stats: FeedStats) -> None:
        self._clip = clip
        self._progress = progress
        self._stats = stats
        self._pictures: list[Future[Pixels]] = []
        self._texts: list[str] = []
        self._waiting: deque[Job] = deque()
        self._writing: Future[None] | None = None

    def run(self, feed: Feed[Event], vectors: tuple[Vectors, Vectors], rows: RowWriter) -> None:
        """Consume the feed to its end; `vectors` of images and of texts."""
        begun, batch = time.perf_counter(), self._clip.batch_size
        self._image_vectors, self._text_vectors = vectors
        with ThreadPoolExecutor(1, "write") as pool:
            for event in feed.events(self._stats):
                if isinstance(event, Job):
                    self._waiting.append(event)
                    self._texts.extend(event.new_texts)
                else:
                    self._pictures.append(event)
                full = len(self._waiting) >= 4 * batch
                if full or len(self._pictures) >= batch or len(self._texts) >= batch:
                    self._embed(feed, full)
                    self._hand_over(pool, rows)
            self._embed(feed, everything=True)
            self._hand_over(pool, rows)
            self._await_writing()
        self._stats.total += time.perf_counter() - begun

    def _embed(self, feed: Feed[Event], everything: bool) -> None:
        size = self._clip.batch_size
        least = 1 if everything else size
        while len(self._pictures) >= least:
            begun = time.perf_counter()
            pixels = [future.result() for future in self._pictures[:size]]
            ready = time.perf_counter()
            self._image_vectors.append(self._clip.embed_images(pixels))
            self._stats.waiting += ready - begun
            self._stats.model += time.perf_counter() - ready
            feed.release(len(pixels))
            del self._pictures[:size]
        while len(self._texts) >= least:
            begun = time.perf_counter()
            self._text_vectors.append(self._clip.embed_texts(self._texts[:size]))
            self._stats.model += time.perf_counter() - begun
            del self._texts[:size]

    def _hand_over(self, pool: ThreadPoolExecutor, rows: RowWriter) -> None:
        """Have the records whose vectors are all there written, in order, while the model goes on."""
        images, texts = self._image_vectors.count, self._text_vectors.count
        done: list[Job] = []
        while self._waiting:
            job = self._waiting[0]
            if max(job.image_slots, default=UNUSED) >= images or max(job.text_slots, default=UNUSED) >= texts:
                break
            done.append(self._waiting.popleft())
        if done:
            self._await_writing()
            self._writing = pool.submit(rows.write, done)
            if self._progress is not None:
                self._progress(sum(len(job.rows.images) for job in done))

    def _await_writing(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None
