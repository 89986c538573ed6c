"""The columns that a subset's condition may name, from a shard's index and its samples' lengths."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.expression import Kind

COLUMNS: Final[dict[str, Kind]] = {
    "key": "text",
    "record_id": "text",
    "n_images": "number",
    "text_chars": "number",
    "min_similarity": "number",
    "max_similarity": "number",
    "tokens": "number",
    "images": "number",
    "text_tokens": "number",
}
"""The columns that a condition may name. The shard's index has key, record_id, n_images, text_chars and, over the
sample's images, the least and the largest similarity (where none is scored NaN, to which only != holds);
tokens, images and text_tokens are what the encoded sample has."""

_OF_INDEX = ("key", "record_id", "n_images", "text_chars")
_OF_LENGTHS = ("tokens", "images", "text_tokens")


def index_columns(names: Iterable[str]) -> list[str]:
    """Which columns of a shard's index `subset_columns` needs for `names`; none where lengths say it all."""
    found = {name if name in _OF_INDEX else "similarities" for name in names if name not in _OF_LENGTHS}
    return sorted(found)


def subset_columns(index: pa.Table, lengths: pa.Table, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """{name: n entries} of one shard for `names` of COLUMNS.

    index: the shard's core.tables.SHARD_INDEX, of which `index_columns` are needed; lengths: its LENGTHS; n rows each,
    in the shard's order.

    Raises:
        DataError: they are not of one length.
    """
    if index.num_rows != lengths.num_rows:
        raise DataError(f"subset: the shard's index has {index.num_rows} rows, its lengths {lengths.num_rows}")
    found: dict[str, NDArray[Any]] = {}
    for name in names:
        if name in _OF_INDEX:
            found[name] = index.column(name).to_numpy()
        elif name in _OF_LENGTHS:
            found[name] = lengths.column(name).to_numpy()
        else:
            least = name == "min_similarity"
            found[name] = _extremes(index.column("similarities"), np.fmin if least else np.fmax)
    return found


def _extremes(column: pa.ChunkedArray, extreme: np.ufunc) -> NDArray[np.float64]:
    """float64[n]: of each list the least or largest entry that is not null; NaN where there is none."""
    counts = pc.list_value_length(column).to_numpy().astype(np.int64)
    values = pc.list_flatten(column).cast(pa.float64()).to_numpy()
    result = np.full(len(counts), np.nan)
    if len(values):
        some = counts > 0
        result[some] = extreme.reduceat(values, (np.cumsum(counts) - counts)[some])
    return result
