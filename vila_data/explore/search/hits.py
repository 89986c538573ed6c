"""Look up the record, image, caption and fate of found embedding rows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.core.layout import record_key, score_stage
from vila_data.core.store import Store
from vila_data.core.tables import parsing, read_table
from vila_data.explore.search.exact import EmbeddedPart, Ranking

_READERS: Final = 8
_COLUMNS: Final = ("key", "record_id", "image_index", "caption", "url", "similarity")


@dataclass(frozen=True)
class Hit:
    """A found image. score: cosine to the query. fate, reason: None if the run has no filter tables.

    caption: the text that its vector belongs to. similarity: the image's to that text.
    """

    score: float
    corpus: str
    record_id: str
    image_index: int
    fate: str | None
    reason: str | None
    caption: str
    url: str | None
    key: str
    similarity: float


def hits_of(store: Store, parts: Sequence[EmbeddedPart], ranking: Ranking) -> list[Hit]:
    """The rows of a ranking, best first. Its groups are positions in `parts`.

    Raises:
        DataError: metadata or fates do not match the vectors.
    """
    ranked = list(zip(ranking.groups.tolist(), ranking.rows.tolist(), ranking.scores.tolist(), strict=True))
    by_group: dict[int, list[int]] = {}
    for group, row, _ in ranked:
        by_group.setdefault(group, []).append(row)
    with ThreadPoolExecutor(1 if store.is_local else _READERS, "hits") as pool:
        fields = pool.map(lambda group: _fields(store, parts[group], by_group[group]), by_group)
        found = dict(zip(by_group, fields, strict=True))
    return [Hit(score=score, corpus=parts[group].part.corpus, **found[group][row]) for group, row, score in ranked]


def kept_rows(store: Store, part: EmbeddedPart) -> NDArray[np.bool_]:
    """bool [N]: which rows of a part's embeddings belong to kept images.

    Raises:
        UsageError: the run has no filter tables.
        DataError: metadata or fates do not match the vectors.
    """
    rows = read_table(store, part.metadata, ["key", "image_index"])
    _check_length(store, part, rows.num_rows)
    fates = _fates(store, part)
    if fates is None:
        raise UsageError(
            f"{store.location(part.part.fates_table())}: no such file, so it is unknown which images are kept; "
            "run the recipe's filter stage, or search without --fate kept"
        )
    positions = _fate_positions(store, part, fates, rows)
    kept: NDArray[np.bool_] = pc.equal(fates.column("fate"), "kept").to_numpy(zero_copy_only=False)[positions]
    return kept


def _fields(store: Store, part: EmbeddedPart, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The fields of Hit by row of a part; only the row groups that contain the rows are read."""
    with store.open_read(part.metadata) as stream, parsing(store.location(part.metadata)):
        file = pq.ParquetFile(stream)
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        ends = np.cumsum(sizes, dtype=np.int64)
        _check_length(store, part, int(ends[-1]) if sizes else 0)
        numbers = np.searchsorted(ends, rows, side="right")
        needed = np.unique(numbers)
        table = file.read_row_groups(needed.tolist(), list(_COLUMNS), use_threads=False)
    read_rows = np.concatenate([np.arange(ends[number] - sizes[number], ends[number]) for number in needed])
    table = table.take(np.searchsorted(read_rows, rows))
    fates = _fates(store, part)
    decided = [{"fate": None, "reason": None}] * len(rows)
    if fates is not None:
        positions = _fate_positions(store, part, fates, table)
        decided = fates.select(["fate", "reason"]).take(positions).to_pylist()
    return {row: {**value, **fate} for row, value, fate in zip(rows, table.to_pylist(), decided, strict=True)}


def _fates(store: Store, part: EmbeddedPart) -> pa.Table | None:
    """Fates of a part's images; None if the run was not filtered."""
    path = part.part.fates_table()
    if store.size(path) is None:
        return None
    table = read_table(store, path, ["row", "image_index", "fate", "reason"])
    return table.filter(pc.is_valid(table.column("image_index")))


def _fate_positions(store: Store, part: EmbeddedPart, fates: pa.Table, rows: pa.Table) -> NDArray[np.int64]:
    """[N] the position in `fates` of each row of metadata, joined by record row and image index."""
    prefix = len(record_key(part.part.corpus, part.part.index, 0)) - 6
    record_rows = pc.cast(pc.utf8_slice_codeunits(rows.column("key"), prefix), pa.int64())
    wanted = _join_key(record_rows, rows.column("image_index"))
    there = _join_key(fates.column("row"), fates.column("image_index"))
    order = np.argsort(there, kind="stable")
    positions = np.minimum(np.searchsorted(there[order], wanted), max(0, len(there) - 1))
    if len(there) == 0 or not np.array_equal(there[order][positions], wanted):
        where = store.location(part.part.fates_table())
        raise DataError(f"{where}: images of {part.metadata} are missing; delete its receipt and run the recipe again")
    found: NDArray[np.int64] = order[positions]
    return found


def _join_key(row: pa.ChunkedArray, image_index: pa.ChunkedArray) -> NDArray[np.int64]:
    key: NDArray[np.int64] = (row.to_numpy().astype(np.int64) << 32) | image_index.to_numpy().astype(np.int64)
    return key


def _check_length(store: Store, part: EmbeddedPart, rows: int) -> None:
    if rows != part.rows:
        raise DataError(
            f"{store.location(part.metadata)}: found {rows:,} rows for {part.rows:,} vectors; "
            f"delete {store.location(part.part.receipt(score_stage(part.scorer)))} and run the recipe again"
        )
