"""The last step of a score task: from vectors to rows of the score table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.score.assignment import assign
from vila_data.score.embeddings import EmbeddingFiles
from vila_data.score.reading import UNUSED, Job
from vila_data.score.table import TableWriter
from vila_data.score.vectors import Vectors


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
            if matched == len(similarities_T):  # behind the last text: judged by that one
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
                raise DataError(f"{self._path}: {job.rows.record_id}: scored, but without a value")
        return similarities_IT, images_ID, texts_TD
