"""Open a shard set: samples by number, through the index, without reading what is not asked for."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from vila_data.core.errors import DataError
from vila_data.core.samples import SampleContent, decode_sample
from vila_data.core.store import Store
from vila_data.core.tables import read_parquet
from vila_data.shard.manifest import Manifest, parse_manifest

_OPEN_SHARDS = 64
_WINDOW = 8 << 20  # bytes of one read where samples follow one another at a remote store


@dataclass(frozen=True)
class Sample:
    """One sample: its members' bytes by suffix (``json``, ``0.jpg``, ``jpg``, ``txt``)."""

    key: str
    shard: str
    members: dict[str, bytes]

    @cached_property
    def json(self) -> dict[str, Any]:
        """The sample's JSON, parsed when it is first asked for.

        Raises:
            DataError: the member is no JSON.
        """
        try:
            value: dict[str, Any] = json.loads(self.members["json"])
        except (ValueError, KeyError) as error:
            raise DataError(f"{self.shard}: {self.key}.json: not JSON: {error!r}; run check on the set") from error
        return value

    @property
    def content(self) -> SampleContent:
        """What the sample's JSON says.

        Raises:
            DataError: the member is missing, or not of one of the layouts.
        """
        return decode_sample(self.members.get("json", b""), f"{self.shard}: {self.key}.json")


class ShardSetReader(Sequence[Sample]):
    """A set's samples in the order of its shards; other threads may read at the same time."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.manifest = manifest
        self._store = store
        self._ends = np.cumsum([shard.samples for shard in manifest.shards])
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._open)

    def __reduce__(self) -> tuple[type[ShardSetReader], tuple[Store, Manifest]]:
        return (ShardSetReader, (self._store, self.manifest))

    def __len__(self) -> int:
        return self.manifest.samples

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        number %= len(self)
        shard = int(np.searchsorted(self._ends, number, side="right"))
        row = number - (int(self._ends[shard - 1]) if shard else 0)
        return next(self._shard(shard).samples(row, row + 1))

    def __iter__(self) -> Iterator[Sample]:
        for shard in range(len(self.manifest.shards)):
            yield from self._shard(shard).samples()

    def between(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop`, each shard's index let go when they are through it."""
        first = 0
        for shard, end in enumerate(self._ends.tolist()):
            if start < end and first < stop:
                yield from self._open(shard).samples(max(start, first) - first, min(stop, end) - first)
            first = end

    def _open(self, shard: int) -> _Shard:
        facts = self.manifest.shards[shard]
        opened = _Shard(self._store, facts.name)
        if len(opened.keys) != facts.samples:
            where = self._store.location(facts.name.replace(".tar", ".parquet"))
            raise DataError(
                f"{where}: {len(opened.keys)} samples, the manifest has {facts.samples}: run check on the set"
            )
        return opened


class _Shard:
    """A shard's index as columns, and its tar, open where it is local.

    Row r has the members firsts[r] to firsts[r + 1]. Members are read one by one from a local tar: no copy is made
    beside the one that is given, and a tar that is cut is an error, where a mapped one would end the process.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._store = store
        self._descriptor: int | None = None
        index = _read_index(store, name.replace(".tar", ".parquet"))
        members, offsets, sizes = (index.column(i).combine_chunks() for i in ("members", "offsets", "sizes"))
        self.keys: list[str] = index.column("key").to_numpy().tolist()
        self._firsts: list[int] = members.offsets.to_numpy().tolist()
        self._members: list[str] = members.values.to_numpy(zero_copy_only=False).tolist()
        self._offsets: list[int] = offsets.values.to_numpy().tolist()
        self._sizes: list[int] = sizes.values.to_numpy().tolist()
        if store.is_local and self._sizes:
            store.read_range(name, 0, 1)  # says what is wrong with a tar that cannot be opened
            self._descriptor = os.open(store.location(name), os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)

    def samples(self, start: int = 0, stop: int | None = None) -> Iterator[Sample]:
        """Samples of the rows from `start` to `stop`, or to the last."""
        stop = len(self.keys) if stop is None else stop
        if self._descriptor is None:
            yield from self._remote_samples(start, stop)
            return
        firsts, offsets, sizes, descriptor = self._firsts, self._offsets, self._sizes, self._descriptor
        for row in range(start, stop):
            key = self.keys[row]
            prefix = len(key) + 1
            members = {}
            for place in range(firsts[row], firsts[row + 1]):
                data = os.pread(descriptor, sizes[place], offsets[place])
                if len(data) != sizes[place]:  # more than one call gives, or a tar that is cut
                    data = self._store.read_range(self.name, offsets[place], sizes[place])
                members[self._members[place][prefix:]] = data
            yield Sample(key, self.name, members)

    def _remote_samples(self, start: int, stop: int) -> Iterator[Sample]:
        """The same from a store where each read costs a round trip: one of up to _WINDOW bytes for many samples."""
        row = start
        while row < stop:
            first = self._offsets[self._firsts[row]]
            last = row + 1
            while last < stop and self._end(last) - first <= _WINDOW:
                last += 1
            window = self._store.read_range(self.name, first, self._end(last - 1) - first)
            for one in range(row, last):
                yield self._cut(one, window, first)
            row = last

    def _cut(self, row: int, window: bytes, first: int) -> Sample:
        prefix = len(self.keys[row]) + 1
        members = {}
        for place in range(self._firsts[row], self._firsts[row + 1]):
            at = self._offsets[place] - first
            members[self._members[place][prefix:]] = window[at : at + self._sizes[place]]
        return Sample(self.keys[row], self.name, members)

    def _end(self, row: int) -> int:
        last = self._firsts[row + 1] - 1
        return self._offsets[last] + self._sizes[last]


def _read_index(store: Store, path: str) -> pa.Table:
    columns = ["key", "members", "offsets", "sizes"]
    try:
        with store.open_read(path) as stream:
            return read_parquet(stream, columns=columns)
    except pa.ArrowException as error:
        raise DataError(f"{store.location(path)}: not an index: {error}") from error


def open_shards(path: str | os.PathLike[str]) -> ShardSetReader:
    """The shard set in a folder or at an fsspec URL.

    Raises:
        DataError: there is no manifest: not a set, or one that is not finished.
    """
    store = Store(os.fspath(path))
    if store.size("manifest.json") is None:
        raise DataError(f"{store.url}: no manifest.json: not a finished shard set")
    return ShardSetReader(store, parse_manifest(store.read("manifest.json"), store.location("manifest.json")))
