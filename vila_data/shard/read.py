"""Open a shard set: samples by number, through the index, reading only what is requested."""

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

from vila_data.core.errors import DataError, UsageError
from vila_data.core.ranges.reader import Span, read_spans
from vila_data.core.samples import SampleContent, decode_sample
from vila_data.core.store import Store
from vila_data.core.tables import read_table
from vila_data.shard.manifest import Manifest, parse_manifest

_OPEN_SHARDS = 64


@dataclass(frozen=True)
class Sample:
    """One sample: its members' bytes by suffix (``json``, ``0.jpg``, ``jpg``, ``txt``)."""

    key: str
    shard: str
    members: dict[str, bytes]

    @cached_property
    def json(self) -> dict[str, Any]:
        """The sample's JSON, parsed on first access.

        Raises:
            DataError: the member is not JSON.
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

    def webdataset(self, *, shuffle: int = 0, seed: int = 0, epoch: int = 0, decode: str | None = None) -> Any:
        """A webdataset pipeline over the set, to extend with: `.map`, `.to_tuple`, `.batched`, `webdataset.WebLoader`.

        Samples are dicts of `__key__`, `__url__` and the members' bytes by suffix (`json`, `0.jpg`, `jpg`, `txt`), the
        same as webdataset reads from the tars, in the set's order; they are read by the index, from any store.
        webdataset gives each rank whole shards, and each worker of its DataLoader. A rank or worker that gets none is
        an error; ranks may get unequally many samples.

        shuffle: samples among which the next one is chosen; above 0, the shards of a worker are shuffled too. 0: neither.
        seed, epoch: decide the order. Each further iteration of the same object is the next epoch; workers that are
        started again begin at `epoch`, so make a pipeline for each epoch or keep the workers (`persistent_workers`).
        decode: `.decode(decode)`, such as "pil" or "torchrgb"; None: bytes, as does `.decode` with arguments of your own.
        """
        import webdataset as wds  # it imports torch

        order = {self._store.location(shard.name): number for number, shard in enumerate(self.manifest.shards)}
        shards = wds.SimpleShardList(list(order))
        steps: list[Any] = [shards, wds.split_by_node, wds.split_by_worker, _Members(self, order)]
        if shuffle > 0:  # detshuffle adds the epoch to the seed
            steps.insert(3, wds.detshuffle(len(order), len(order), seed << 32, epoch - 1))
            steps.append(wds.detshuffle(shuffle, shuffle, seed << 32, epoch - 1))
        pipeline = wds.FluidWrapper(wds.DataPipeline(*steps))
        return pipeline if decode is None else pipeline.decode(decode)

    def _open(self, shard: int) -> _Shard:
        facts = self.manifest.shards[shard]
        opened = _Shard(self._store, facts.name)
        if len(opened.keys) != facts.samples:
            where = self._store.location(facts.name.replace(".tar", ".parquet"))
            raise DataError(
                f"{where}: {len(opened.keys)} samples, but the manifest says {facts.samples}: run check on the set"
            )
        return opened


@dataclass(frozen=True)
class _Members:
    """The stage of a webdataset pipeline that reads shards. order: their numbers by URL."""

    reader: ShardSetReader
    order: dict[str, int]

    def __call__(self, shards: Iterator[dict[str, str]]) -> Iterator[dict[str, Any]]:
        number = -1
        for shard in shards:
            number = self.order[shard["url"]]
            for sample in self.reader._open(number).samples():
                yield {"__key__": sample.key, "__url__": shard["url"], **sample.members}
        if number < 0:
            raise UsageError(
                f"webdataset: the set has {len(self.order)} shards, fewer than one per worker of each rank: "
                "use fewer workers, or write smaller shards (max_mb of the set in the recipe)"
            )


class _Shard:
    """A shard's index as columns, and its tar, open where it is local.

    Row r has the members firsts[r] to firsts[r + 1]. Members are read one by one from a local tar: no copy is made
    besides the one that is returned, and a tar that is truncated is an error, where a mapped one would end the process.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._store = store
        self._descriptor: int | None = None
        index = read_index(store, name.replace(".tar", ".parquet"), ["key", "members", "offsets", "sizes"])
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
        """Samples of the rows from `start` to `stop`, or to the last; from a remote store many by one request."""
        stop = len(self.keys) if stop is None else stop
        firsts, offsets, sizes, descriptor = self._firsts, self._offsets, self._sizes, self._descriptor
        places = range(firsts[start], firsts[stop])
        ahead = read_spans(self._store, (Span(self.name, offsets[place], sizes[place]) for place in places))
        for row in range(start, stop):
            key = self.keys[row]
            prefix = len(key) + 1
            members = {}
            for place in range(firsts[row], firsts[row + 1]):
                if descriptor is None:
                    data = next(ahead)
                else:
                    data = os.pread(descriptor, sizes[place], offsets[place])
                    if len(data) != sizes[place]:  # more than one call gives, or a tar that is cut
                        data = self._store.read_range(self.name, offsets[place], sizes[place])
                members[self._members[place][prefix:]] = data
            yield Sample(key, self.name, members)


def read_index(store: Store, path: str, columns: Sequence[str]) -> pa.Table:
    """Columns of a shard's index.

    Raises:
        DataError: it is not an index, or lacks a column.
    """
    return read_table(store, path, columns, what="an index", advice="run check on the set")


def open_shards(path: str | os.PathLike[str]) -> ShardSetReader:
    """The shard set in a directory or at an fsspec URL.

    Raises:
        DataError: there is no manifest: not a set, or one that is not finished.
    """
    store = Store(os.fspath(path))
    if store.size("manifest.json") is None:
        raise DataError(
            f"{store.url}: manifest.json is missing: the shard set is not finished, or this is not a shard set"
        )
    return ShardSetReader(store, parse_manifest(store.read("manifest.json"), store.location("manifest.json")))
