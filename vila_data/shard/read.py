"""Open a shard set: samples by number, through the index, without reading what is not asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from vila_data.core.errors import DataError
from vila_data.core.store import Store
from vila_data.core.tables import read_parquet
from vila_data.shard.manifest import Manifest, parse_manifest

_OPEN_INDEXES = 64


@dataclass(frozen=True)
class Sample:
    """One sample: its JSON, and its members' bytes by suffix (``json``, ``0.jpg``, ``jpg``, ``txt``)."""

    key: str
    shard: str
    json: dict[str, Any]
    members: dict[str, bytes]


class ShardSetReader(Sequence[Sample]):
    """A set's samples in the order of its shards."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.manifest = manifest
        self._store = store
        self._ends = np.cumsum([shard.samples for shard in manifest.shards])
        self._index = lru_cache(maxsize=_OPEN_INDEXES)(self._read_index)

    def __len__(self) -> int:
        return self.manifest.samples

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        number %= len(self)
        shard = int(np.searchsorted(self._ends, number, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        return self._sample(shard, number - first)

    def __iter__(self) -> Iterator[Sample]:
        for shard in range(len(self.manifest.shards)):
            for row in range(self.manifest.shards[shard].samples):
                yield self._sample(shard, row)

    def _sample(self, shard: int, row: int) -> Sample:
        name = self.manifest.shards[shard].name
        entry = self._index(shard)[row]
        start = entry["offsets"][0]
        data = self._store.read_range(name, start, entry["offsets"][-1] + entry["sizes"][-1] - start)
        members = {
            member.split(".", 1)[1]: data[offset - start : offset - start + size]
            for member, offset, size in zip(entry["members"], entry["offsets"], entry["sizes"], strict=True)
        }
        return Sample(entry["key"], name, json.loads(members["json"]), members)

    def _read_index(self, shard: int) -> list[dict[str, Any]]:
        name = self.manifest.shards[shard].name.replace(".tar", ".parquet")
        try:
            with self._store.open_read(name) as stream:
                rows: list[dict[str, Any]] = read_parquet(stream).to_pylist()
        except pa.ArrowException as error:
            raise DataError(f"{self._store.location(name)}: not an index: {error}") from error
        return rows


def open_shards(path: str | os.PathLike[str]) -> ShardSetReader:
    """The shard set in a folder or at an fsspec URL.

    Raises:
        DataError: there is no manifest: not a set, or one that is not finished.
    """
    store = Store(os.fspath(path))
    if store.size("manifest.json") is None:
        raise DataError(f"{store.url}: no manifest.json: not a finished shard set")
    return ShardSetReader(store, parse_manifest(store.read("manifest.json"), store.location("manifest.json")))
