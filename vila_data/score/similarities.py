"""The score task of an image-text model: a part's images and texts to the table of their similarities.

Each distinct image and each distinct text is embedded once. The cosine of image i
and text t is summed in float64 over the two vectors alone, so a row's values do not
depend on which other images are scored with it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.cpus import cpu_count
from vila_data.core.errors import DataError
from vila_data.core.receipts import Outputs
from vila_data.core.tables import SCORE_IMAGES
from vila_data.score.clip import Clip
from vila_data.score.embeddings import EmbeddingFiles
from vila_data.score.reading import UNUSED, Feed, FeedStats, Job, Reader
from vila_data.score.scorer import Task
from vila_data.score.tables import KnownTable, TableWriter, read_rows


def assign(similarities_IT: NDArray[np.float32]) -> NDArray[np.int32]:
    """Give each image its sentence: the one-to-one assignment with the largest sum of similarities.

    With more images than sentences, the images that the assignment leaves over take the
    sentence most similar to them (first of equals), as MMC4 does.

    Args:
        similarities_IT: cosine of image i and sentence t; I >= 0, T >= 1, finite.

    Returns:
        [I] index of each image's sentence.

    Raises:
        ValueError: the matrix has no sentence, or an entry is not finite.
    """
    images, texts = similarities_IT.shape
    if texts == 0:
        raise ValueError("no sentence to assign images to")
    chosen_I: NDArray[np.int32] = np.argmax(similarities_IT, axis=1).astype(np.int32)
    if not np.isfinite(similarities_IT).all():
        raise ValueError("a similarity is not finite")
    if images <= 1 or texts == 1:
        return chosen_I
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-similarities_IT.astype(np.float64))
    chosen_I[rows] = columns
    return chosen_I


class Vectors:
    """An append-only list of vectors of `dim` float32 values; a vector's place in it is its slot.

    One thread may append while another takes what was there before. The last two
    appended arrays are kept in memory: most vectors are asked for soon.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._dim = dim
        self._recent: tuple[tuple[int, NDArray[np.float32]], ...] = ()
        self.count = 0

    def __enter__(self) -> Vectors:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._file)

    def append(self, vectors_ND: NDArray[np.float32]) -> None:
        """Add N vectors; they get the slots `count` to `count + N - 1`."""
        vectors_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
        data = memoryview(vectors_ND.tobytes())
        at = self.count * self._dim * 4
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], at + done)
        self._recent = (*self._recent[-1:], (self.count, vectors_ND))
        self.count += len(vectors_ND)

    def take(self, slots: Sequence[int]) -> NDArray[np.float32]:
        """[len(slots), D] the vectors of some slots; neighbours are read in one go."""
        result = np.empty((len(slots), self._dim), np.float32)
        start = 0
        while start < len(slots):
            stop = start + 1
            while stop < len(slots) and slots[stop] == slots[stop - 1] + 1:
                stop += 1
            self._read(slots[start], result[start:stop])
            start = stop
        return result

    def _read(self, slot: int, out_ND: NDArray[np.float32]) -> None:
        for start, vectors_ND in self._recent:
            if start <= slot and slot + len(out_ND) <= start + len(vectors_ND):
                out_ND[:] = vectors_ND[slot - start : slot - start + len(out_ND)]
                return
        size = out_ND.nbytes
        data = os.pread(self._file, size, slot * self._dim * 4)
        if len(data) != size:
            raise IndexError(f"slots from {slot}: {len(data)} of {size} bytes were written")
        out_ND[:] = np.frombuffer(data, np.float32).reshape(out_ND.shape)


class RowWriter:
    """Writes finished records to the score table, and to the embeddings if there are any; `scored`, `skipped` count images."""

    def __init__(
        self, path: str, table: TableWriter, files: EmbeddingFiles | None, images: Vectors, texts: Vectors
    ) -> None:
        self._path = path
        self._table = table
        self._files = files
        self._images = images
        self._texts = texts
        self.scored = self.skipped = 0

    def write(self, jobs: Sequence[Job]) -> None:
        """The rows of records whose vectors are all there, in order."""
        for job in jobs:
            for values in self._table_rows(job):
                self._table.add(*values)

    def _table_rows(self, job: Job) -> Iterator[tuple[Any, ...]]:
        rows = job.rows
        wanted = [index for index, image in enumerate(rows.images) if image.wanted]
        self.skipped += len(rows.images) - len(wanted)
        if job.record is None or not wanted:
            for image in rows.images:
                yield rows.row, rows.record_id, image.image_index, False, None, image.matched_text_index, *[None] * 3
            return
        self.scored += len(wanted)
        pair = job.record.kind == "pair"
        similarities_IT, images_ID, texts_TD = self._similarities(job, wanted, 1 if pair else len(job.record.texts))
        if self._files is not None:
            self._files.add(job, wanted, similarities_IT, images_ID, texts_TD)
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
            if matched == len(similarities_T):  # after the last text: judged by that one
                matched -= 1
            similarity = similarities_T[matched] if matched is not None and 0 <= matched < len(similarities_T) else None
            tail = (image.matched_text_index, assigned, similarities_T[assigned], None if pair else similarities_T)
            yield *head, similarity, *tail

    def _similarities(
        self, job: Job, wanted: list[int], texts: int
    ) -> tuple[NDArray[np.float32], dict[int, NDArray[np.float32]], NDArray[np.float32]]:
        """([I, T] cosines of the wanted images, {image row: vector} of those embedded now, [T, D] texts if read)."""
        texts_TD = self._texts.take(job.text_slots)
        fresh = [index for index in wanted if job.image_slots[index] != UNUSED]
        vectors = self._images.take([job.image_slots[index] for index in fresh])
        images_ID = dict(zip(fresh, vectors, strict=True))
        similarities_IT = np.empty((len(wanted), texts), np.float32)
        exact_TD = texts_TD.astype(np.float64)
        for number, index in enumerate(wanted):
            known = job.rows.images[index].known
            if index in images_ID:
                similarities_IT[number] = (exact_TD * images_ID[index]).sum(axis=1)
            elif known is not None and (known["similarity"] is not None or known["similarities"] is not None):
                every_T = known["similarities"]
                similarities_IT[number] = known["similarity"] if every_T is None else every_T
            else:
                raise DataError(f"{self._path}: {job.rows.record_id}: is marked as scored, but has no value")
        return similarities_IT, images_ID, texts_TD


_AHEAD: Final = 3
"""Batches of images that may be decoded and not yet embedded."""
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
        self._image_futures: list[Future[Pixels]] = []
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
                    self._image_futures.append(event)
                full = len(self._waiting) >= 4 * batch
                if full or len(self._image_futures) >= batch or len(self._texts) >= batch:
                    self._embed(feed, full)
                    self._hand_over(pool, rows)
            self._embed(feed, everything=True)
            self._hand_over(pool, rows)
            self._await_writing()
        self._stats.total += time.perf_counter() - begun

    def _embed(self, feed: Feed[Event], everything: bool) -> None:
        size = self._clip.batch_size
        least = 1 if everything else size
        while len(self._image_futures) >= least:
            begun = time.perf_counter()
            pixels = [future.result() for future in self._image_futures[:size]]
            ready = time.perf_counter()
            self._image_vectors.append(self._clip.embed_images(pixels))
            self._stats.waiting += ready - begun
            self._stats.model += time.perf_counter() - ready
            feed.release(len(pixels))
            del self._image_futures[:size]
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
