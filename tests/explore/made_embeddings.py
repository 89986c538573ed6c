"""Embeddings on disk or in memory, from given vectors, with metadata and fates where a test asks for them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmark_files import benchmark
from vila_data.core.layout import Part, record_key
from vila_data.core.receipts import committing
from vila_data.core.store import Store
from vila_data.core.tables import FATES
from vila_data.explore.search.exact import EmbeddedPart, Slice
from vila_data.score.embeddings import METADATA, embedding_paths

made = benchmark("search")


def memory_store() -> Store:
    return Store(f"memory://{uuid.uuid4().hex}")


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    return (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)


def write_part(store: Store, corpus: str, index: int, vectors_ND: np.ndarray, *, every_kept: int = 1) -> Part:
    """A part as score and filter leave it: row n is image 1 of record row 2 n; kept where n is a multiple."""
    part = made.part(index, corpus)
    paths = embedding_paths(part, "clip")
    rows = [
        (f"{record_key(corpus, index, 2 * n)}.1.jpg", f"caption {n}", None, record_key(corpus, index, 2 * n), f"id-{n}")
        for n in range(len(vectors_ND))
    ]
    with committing(store, part.receipt("score clip"), "made") as outputs:
        for path in paths[:2]:
            with open(outputs.path(path), "wb") as stream:
                np.save(stream, vectors_ND.astype("<f2"))
        values = [dict(zip(METADATA.names, (*row, 1, 0.5), strict=True)) for row in rows]
        pq.write_table(pa.Table.from_pylist(values, METADATA), outputs.path(paths[2]), row_group_size=7)
    with committing(store, part.receipt("filter"), "made") as outputs:
        fates = []
        for n, row in enumerate(rows):
            kept = n % every_kept == 0
            decided = {"fate": "kept", "reason": None} if kept else {"fate": "dropped", "reason": "min_similarity"}
            facts = {"row": 2 * n, "record_id": row[4], "stage": "filter", "text_index": None, "similarity": None}
            fates += [{**facts, **decided, "image_index": image} for image in (None, 0, 1)]
        pq.write_table(pa.Table.from_pylist(fates, FATES), outputs.path(part.fates_table()))
    return part


def whole(parts: Sequence[EmbeddedPart]) -> list[Slice]:
    return [Slice(group, part, 0, part.rows) for group, part in enumerate(parts)]
