"""The score task of an image-text model: a part's pictures and texts to the table of their similarities.

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
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.cpus import cpu_count
from vila_data.core.receipts import Outputs
from vila_data.core.tables import SCORE_IMAGES
from vila_data.score.clip import Clip
from vila_data.score.embeddings import EmbeddingFiles
from vila_data.score.feed import Feed, FeedStats
from vila_data.score.reading import UNUSED, Job, Reader
from vila_data.score.rows import KnownTable, read_rows
from vila_data.score.scorer import Task
from vila_data.score.table import TableWriter
from vila_data.score.vectors import Vectors
from vila_data.score.writing import RowWriter

_AHEAD: Final = 3
"""Batches of pictures that may be decoded and not yet embedded."""
KNOWN: Final = ("similarity", "similarities")
"""Columns from which the others of a row that was scored before are made again."""

Pixels = NDArray[np.float32]
Event = Future[Pixels] | Job


def score_similarities(
    task: Task,
    clip: Clip,
    known: KnownTable | None,
    outputs: Outputs,
    metadata: dict[bytes, bytes],
    progress: Callable[[int], None] | None,
    stats: FeedStats,
) -> dict[str, Any]:
    """Write the score table of a part, and its embeddings if asked for; the counts of its receipt.

    Raises:
        DataError: the part's files do not fit together, or bytes are damaged.
        StorageError: the store cannot be read or written.
    """
    store, part = task.store, task.part
    rows_of = partial(read_rows, store, part, task.needed, known)
    reader = Reader(store, part, rows_of, clip.prepare, 2 * clip.image_side, texts=True)
    with ExitStack() as stack:
        table = stack.enter_context(TableWriter(outputs.path(task.path), SCORE_IMAGES, metadata))
        images = stack.enter_context(Vectors(outputs.directory / "images.f32", clip.dim))
        texts = stack.enter_context(Vectors(outputs.directory / "texts.f32", clip.dim))
        files = None
        if getattr(task.scorer, "embeddings", False):
            scored = sum(image.wanted for record in rows_of() for image in record.images)
            files = EmbeddingFiles(store, part, task.name, outputs, clip.dim, scored, known is not None)
            stack.enter_context(files)
        ahead = _AHEAD * clip.batch_size
        feed = stack.enter_context(Feed[Event](reader.events, task.threads or cpu_count(), ahead))
        rows = RowWriter(task.path, table, files, images, texts)
        _Model(clip, progress, stats).run(feed, (images, texts), rows)
    return {
        "images_scored": rows.scored,
        "images_skipped": rows.skipped,
        "distinct_images": len(reader.images),
        "distinct_texts": len(reader.texts),
    }


class _Model:
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
