"""From rows of embeddings to what a user asks for: the record, the image, its caption and its fate."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
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
from vila_data.explore.search.ranking import Ranking
from vila_data.explore.search.vectors import EmbeddedPart

_READERS: Final = 8
_TABLES: Final = 4
_COLUMNS: Final = ("key", "record_id", "image_index", "caption", "url", "similarity")


@dataclass(frozen=True)
class Hit:
    """A found image. score: cosine to the query. fate, reason: None where the run has no filter tables.

    caption: the text that stands with its vector; similarity: the image's to that text.
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
    """The rows of a ranking, best first; its groups are places in `parts`.

    Raises:
        DataError: metadata or fates do not fit the vectors.
    """
    places: dict[int, list[int]] = {}
    for group, row in zip(ranking.groups.tolist(), ranking.rows.tolist(), strict=True):
        places.setdefault(group, []).append(row)
    with ThreadPoolExecutor(1 if store.is_local else _READERS, "hits") as pool:
        found = dict(
            zip(places, pool.map(lambda group: _rows(store, parts[group], places[group]), places), strict=True)
        )
    hits = []
    scores = ranking.scores.tolist()
    for group, row, score in zip(ranking.groups.tolist(), ranking.rows.tolist(), scores, strict=True):
        hits.append(Hit(score=score, corpus=parts[group].part.corpus, **found[group][row]))
    return hits


class Kept:
    """Which rows of a part's embeddings are of kept images; `of(part)`: bool [N]. The last few parts are held."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.of = lru_cache(maxsize=_TABLES)(self._read)

    def _read(self, part: EmbeddedPart) -> NDArray[np.bool_]:
        rows = read_table(self._store, part.metadata, ["key", "image_index"])
        _same_length(self._store, part, rows.num_rows)
        fates = _fates(self._store, part)
        if fates is None:
            raise UsageError(
                f"{self._store.location(part.part.fates_table())}: no such file, so nothing is known to be kept; "
                "run the recipe's stage filter, or search without --fate kept"
            )
        places = _fate_places(self._store, part, fates, rows)
        kept: NDArray[np.bool_] = pc.equal(fates.column("fate"), "kept").to_numpy(zero_copy_only=False)[places]
        return kept


def _rows(store: Store, part: EmbeddedPart, wanted: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The fields of Hit of some rows of a part; only the row groups that hold them are read."""
    with store.open_read(part.metadata) as stream, parsing(store.location(part.metadata)):
        file = pq.ParquetFile(stream)
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        ends = np.cumsum(groups)
        _same_length(store, part, int(ends[-1]) if groups else 0)
        numbers = np.searchsorted(ends, wanted, side="right").tolist()
        needed = sorted(set(numbers))
        table = file.read_row_groups(needed, list(_COLUMNS), use_threads=False)
    firsts = dict(zip(needed, np.cumsum([0, *(groups[number] for number in needed)]).tolist(), strict=False))
    starts = (ends - groups).tolist()
    places = [firsts[number] + row - starts[number] for number, row in zip(numbers, wanted, strict=True)]
    chosen = table.take(places)
    values = chosen.to_pylist()
    fates = _fates(store, part)
    decided = [(None, None)] * len(values)
    if fates is not None:
        taken = fates.take(_fate_places(store, part, fates, chosen))
        decided = list(zip(taken.column("fate").to_pylist(), taken.column("reason").to_pylist(), strict=True))
    return {
        row: {**value, "fate": fate, "reason": reason}
        for row, value, (fate, reason) in zip(wanted, values, decided, strict=True)
    }


def _fates(store: Store, part: EmbeddedPart) -> pa.Table | None:
    """Fates of a part's images; None where the run was not filtered."""
    path = part.part.fates_table()
    if store.size(path) is None:
        return None
    table = read_table(store, path, ["row", "image_index", "fate", "reason"])
    return table.filter(pc.is_valid(table.column("image_index")))


def _fate_places(store: Store, part: EmbeddedPart, fates: pa.Table, rows: pa.Table) -> NDArray[np.int64]:
    """[N] the place among the fates of each row of metadata, joined by record row and image index."""
    prefix = len(record_key(part.part.corpus, part.part.index, 0)) - 6
    record_rows = pc.cast(pc.utf8_slice_codeunits(rows.column("key"), prefix), pa.int64())
    wanted = _join_key(record_rows, rows.column("image_index"))
    there = _join_key(fates.column("row"), fates.column("image_index"))
    order = np.argsort(there, kind="stable")
    places = np.minimum(np.searchsorted(there[order], wanted), max(0, len(there) - 1))
    if len(there) == 0 or not np.array_equal(there[order][places], wanted):
        where = store.location(part.part.fates_table())
        raise DataError(f"{where}: lacks images of {part.metadata}; delete its receipt and run the recipe again")
    found: NDArray[np.int64] = order[places]
    return found


def _join_key(row: pa.ChunkedArray, image_index: pa.ChunkedArray) -> NDArray[np.int64]:
    key: NDArray[np.int64] = (row.to_numpy().astype(np.int64) << 32) | image_index.to_numpy().astype(np.int64)
    return key


def _same_length(store: Store, part: EmbeddedPart, rows: int) -> None:
    if rows != part.rows:
        raise DataError(
            f"{store.location(part.metadata)}: {rows:,} rows beside {part.rows:,} vectors; "
            f"delete {store.location(part.part.receipt(score_stage(part.scorer)))} and run the recipe again"
        )
