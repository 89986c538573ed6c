"""Which samples of a shard set take part: by a list of record_ids or by a condition on columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.core.expression import parse
from vila_data.mix.columns import COLUMNS
from vila_data.mix.config import Subset


class SubsetFilter:
    """A subset, applied shard by shard; counts what it kept and which listed ids it met.

    columns: the columns that `keep` needs; listed: how many distinct ids a list has, 0 for a condition.
    """

    def __init__(self, subset: Subset) -> None:
        self._subset = subset
        self._condition = parse(subset.where, COLUMNS) if subset.where is not None else None
        self._file = subset.ids or subset.without_ids or ""
        self._ids = _read_ids(self._file) if self._condition is None else np.zeros(0, np.str_)
        self._met = np.zeros(len(self._ids), np.bool_)
        self.listed = len(self._ids)
        self.columns = self._condition.names if self._condition is not None else frozenset({"record_id"})
        self.samples = 0
        self.kept = 0

    def keep(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """bool[n]: which samples of a shard take part; columns hold n entries each, in the shard's order.

        Raises:
            DataError: a column is not there, or not as long as another.
        """
        missing = sorted(self.columns - set(columns))
        if missing:
            raise DataError(f"subset: the shard has no column {', '.join(missing)}; there: {', '.join(columns)}")
        if len({len(columns[name]) for name in self.columns}) > 1:
            raise DataError(f"subset: columns {', '.join(sorted(self.columns))} are not of one length")
        found = self._condition.holds(columns) if self._condition is not None else self._listed(columns["record_id"])
        self.samples += len(found)
        self.kept += int(found.sum())
        return found

    def unmatched_ids(self) -> int:
        """How many listed ids no shard so far had."""
        return int((~self._met).sum())

    def _listed(self, record_ids: NDArray[Any]) -> NDArray[np.bool_]:
        ids = np.asarray(record_ids, np.str_)
        place = np.searchsorted(self._ids, ids)
        place[place == len(self._ids)] = 0
        listed: NDArray[np.bool_] = self._ids[place] == ids
        self._met[place[listed]] = True
        return listed if self._subset.ids is not None else ~listed


def _read_ids(file: str) -> NDArray[np.str_]:
    """str[k]: the distinct ids of a file, sorted."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: the subset's list of ids cannot be read: {error}") from error
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{file}: not a JSON list of record_ids: {error}") from error
        if not all(isinstance(entry, str) for entry in found):
            raise UsageError(f"{file}: a list of record_ids has texts only")
    else:
        found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise UsageError(f"{file}: the subset's list of ids is empty")
    return np.unique(np.asarray(found, np.str_))
