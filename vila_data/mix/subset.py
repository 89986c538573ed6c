"""Subsets of a shard set, by a list of record_ids or by a condition on the samples' columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import AliasChoices, Field, model_validator

from vila_data.core.config import StrictModel
from vila_data.core.errors import DataError, UsageError
from vila_data.core.expression import Kind, parse

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
"""Columns available to a condition. The shard's index has key, record_id, n_images, text_chars and, over the sample's
images, the lowest and the highest similarity (NaN without a score; only != holds for it). tokens, images and
text_tokens count the encoded sample."""

_INDEX_COLUMNS = ("key", "record_id", "n_images", "text_chars")
_LENGTH_COLUMNS = ("tokens", "images", "text_tokens")


class Subset(StrictModel):
    """Restricts a shard set to some of its samples; set exactly one of the three keys.

    include_ids: file of record_ids, one per line or a JSON list; only these samples are used.
    exclude_ids: file in the same format; all other samples are used.
    where:       condition on a sample's columns, e.g. "n_images >= 2 and text_chars < 4000".
    """

    include_ids: str | None = Field(None, validation_alias=AliasChoices("include_ids", "ids"))
    exclude_ids: str | None = Field(None, validation_alias=AliasChoices("exclude_ids", "without_ids"))
    where: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Subset:
        found = [name for name in ("include_ids", "exclude_ids", "where") if getattr(self, name) is not None]
        if len(found) != 1:
            raise ValueError(
                "a subset needs exactly one of include_ids, exclude_ids and where; "
                f"found {' and '.join(found) or 'none'}"
            )
        if self.where is not None:
            try:
                parse(self.where, COLUMNS)
            except ValueError as error:
                raise ValueError(f"where: {error}") from None
        return self


class SubsetFilter:
    """Applies a subset shard by shard; counts the samples it kept and the listed ids it found.

    columns: the columns that `keep` needs; listed: number of distinct ids in the list, 0 for a condition.
    """

    def __init__(self, subset: Subset) -> None:
        self._condition = None if subset.where is None else parse(subset.where, COLUMNS)
        file = subset.include_ids or subset.exclude_ids
        self._ids = np.zeros(0, np.str_) if file is None else _read_ids(file)
        self._include = subset.include_ids is not None
        self._found = np.zeros(len(self._ids), np.bool_)
        self.listed = len(self._ids)
        self.columns = frozenset({"record_id"}) if self._condition is None else self._condition.names
        self.samples = 0
        self.kept = 0

    def keep(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """bool[n]: whether each sample of a shard is in the subset; `columns` as `subset_columns` returns them."""
        kept = self._listed(columns["record_id"]) if self._condition is None else self._condition.holds(columns)
        self.samples += len(kept)
        self.kept += int(kept.sum())
        return kept

    def unmatched_ids(self) -> int:
        """Number of listed ids that no shard so far contains."""
        return int((~self._found).sum())

    def _listed(self, record_ids: NDArray[Any]) -> NDArray[np.bool_]:
        ids = np.asarray(record_ids, np.str_)
        at = np.searchsorted(self._ids, ids)
        at[at == len(self._ids)] = 0
        listed: NDArray[np.bool_] = self._ids[at] == ids
        self._found[at[listed]] = True
        return listed if self._include else ~listed


def index_columns(names: Iterable[str]) -> list[str]:
    """The columns of a shard's index that `subset_columns` needs for `names`; empty if the lengths suffice."""
    needed = {name if name in _INDEX_COLUMNS else "similarities" for name in names if name not in _LENGTH_COLUMNS}
    return sorted(needed)


def subset_columns(index: pa.Table, lengths: pa.Table, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """{name: array[n]} of one shard for `names` of COLUMNS.

    index: the shard's core.tables.SHARD_INDEX, at least its `index_columns`; lengths: its LENGTHS. Both have n rows, in
    the shard's order.

    Raises:
        DataError: they differ in length.
    """
    if index.num_rows != lengths.num_rows:
        raise DataError(f"subset: the shard's index has {index.num_rows} rows, but its lengths have {lengths.num_rows}")
    found: dict[str, NDArray[Any]] = {}
    for name in names:
        if name in _INDEX_COLUMNS:
            found[name] = index.column(name).to_numpy()
        elif name in _LENGTH_COLUMNS:
            found[name] = lengths.column(name).to_numpy()
        else:
            found[name] = _extremes(index.column("similarities"), np.fmin if name == "min_similarity" else np.fmax)
    return found


def _extremes(column: pa.ChunkedArray, extreme: np.ufunc) -> NDArray[np.float64]:
    """float64[n]: the lowest or highest entry of each list that is not null; NaN if there is none."""
    counts = pc.list_value_length(column).to_numpy().astype(np.int64)
    values = pc.list_flatten(column).cast(pa.float64()).to_numpy()
    result = np.full(len(counts), np.nan)
    if len(values):
        some = counts > 0
        result[some] = extreme.reduceat(values, (np.cumsum(counts) - counts)[some])
    return result


def _read_ids(file: str) -> NDArray[np.str_]:
    """str[k]: the distinct ids in a file, sorted."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot read the subset's list of ids: {error}") from error
    if text.lstrip().startswith("["):
        try:
            ids = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{file}: not a JSON list of record_ids: {error}") from error
        if not all(isinstance(entry, str) for entry in ids):
            raise UsageError(f"{file}: a list of record_ids must contain only strings")
    else:
        ids = [line.strip() for line in text.splitlines() if line.strip()]
    if not ids:
        raise UsageError(f"{file}: the subset's list of ids is empty")
    return np.unique(np.asarray(ids, np.str_))
