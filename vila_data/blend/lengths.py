"""What a shard set's samples cost, and their order in a pass: shards in seeded order, rows of a shard one after another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vila_data.blend.seeded import numbers, order
from vila_data.core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Lengths:
    """One shard set's samples in the order of shards and rows.

    tokens int32[n]: with images expanded; 0: not in the stream. images int32[n]. ends int64[s]: shard k has the
    entries from ends[k - 1] (0 for the first) to ends[k]; its rows count from there. Memory-mapped arrays will do.
    """

    tokens: NDArray[np.int32]
    images: NDArray[np.int32]
    ends: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.tokens.shape != self.images.shape or self.tokens.ndim != 1:
            raise DataError(f"lengths: tokens {self.tokens.shape} and images {self.images.shape} are not of one length")
        total = int(self.ends[-1]) if len(self.ends) else 0
        if total != len(self.tokens) or (len(self.ends) and (np.diff(self.ends, prepend=0) < 0).any()):
            raise DataError(f"lengths: shards end at {total}, there are {len(self.tokens)} samples")

    @classmethod
    def of_shards(cls, shards: Sequence[tuple[NDArray[np.int32], NDArray[np.int32]]]) -> Lengths:
        """From (tokens, images) a shard, in the order of shards."""
        empty = np.zeros(0, np.int32)
        tokens = np.concatenate([empty, *(tokens for tokens, _ in shards)]).astype(np.int32)
        images = np.concatenate([empty, *(images for _, images in shards)]).astype(np.int32)
        return cls(tokens, images, np.cumsum([len(tokens) for tokens, _ in shards], dtype=np.int64))

    @classmethod
    def of_table(cls, table: pa.Table, shards: int) -> Lengths:
        """From a set's lengths (core.schemas.LENGTHS): `shards` shards, rows in the order of shards and rows."""
        shard, row = (table.column(name).to_numpy().astype(np.int64) for name in ("shard", "row"))
        counts = np.bincount(shard, minlength=shards)
        ends = np.cumsum(counts)
        if len(ends) != shards or not np.array_equal(np.repeat(ends - counts, counts) + row, np.arange(len(row))):
            raise DataError(f"lengths: {len(row)} rows are not those of {shards} shards, in order, each once")
        tokens, images = (table.column(name).to_numpy().astype(np.int32) for name in ("tokens", "images"))
        return cls(tokens, images, ends.astype(np.int64))

    def only(self, keep: NDArray[np.bool_]) -> Lengths:
        """The same rows; those not in `keep` bool[n] are not in the stream."""
        return Lengths(np.where(keep, self.tokens, 0).astype(np.int32), self.images, self.ends)

    @cached_property
    def live(self) -> NDArray[np.int64]:
        """int64[s]: samples of each shard that are in the stream."""
        running = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.tokens > 0)])
        counts: NDArray[np.int64] = np.diff(running[self.ends], prepend=0)
        return counts

    @cached_property
    def totals(self) -> tuple[int, int, int]:
        """(samples, images, tokens) of a pass."""
        images = int(np.where(self.tokens > 0, self.images, 0).sum(dtype=np.int64))
        return int(self.live.sum()), images, int(self.tokens.sum(dtype=np.int64))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of every entry: another subset of as many samples and tokens is another plan."""
        digest = hashlib.sha256(repr(self.totals).encode())
        for values, kind in ((self.ends, "<i8"), (self.tokens, "<i4"), (self.images, "<i4")):
            digest.update(np.ascontiguousarray(values, kind).data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """Samples in order, one entry each.

    source int16[n]: number of the shard set, counted through the blend as the recipe has them; shard, row int32[n]:
    where the sample is in it; pass_ int32[n]: the pass over its source, from 0; tokens, images int32[n].
    """

    source: NDArray[np.int16]
    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    pass_: NDArray[np.int32]
    tokens: NDArray[np.int32]
    images: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.tokens)

    def columns(self) -> tuple[NDArray[Any], ...]:
        """The arrays, in the order of the fields."""
        return self.source, self.shard, self.row, self.pass_, self.tokens, self.images

    def take(self, which: NDArray[np.int64] | slice) -> Run:
        """Some of the samples, in the order of `which`."""
        return Run(*(column[which] for column in self.columns()))

    @staticmethod
    def joined(runs: Sequence[Run]) -> Run:
        """Runs one after another."""
        if not runs:
            return Run(np.zeros(0, np.int16), *(np.zeros(0, np.int32) for _ in range(5)))
        return Run(*(np.concatenate(columns) for columns in zip(*(run.columns() for run in runs), strict=True)))


class SourceReader:
    """Samples of one shard set by their place in a pass.

    A pass holds each sample in the stream once: shards in an order of (seed, epoch, source, pass); rows of a shard as
    stored, from one of (seed, epoch, source, pass) on and around, so that a source of few shards that an epoch does not
    finish does not always show the same samples. samples: how many a pass holds.
    """

    def __init__(self, lengths: Lengths, source: int, seed: int, epoch: int) -> None:
        self.lengths = lengths
        self.samples = lengths.totals[0]
        self._source, self._seed, self._epoch = source, seed, epoch
        self._order = lru_cache(maxsize=2)(self._pass_order)

    def read(self, pass_: int, start: int, count: int) -> Run:
        """Samples `start` to `start + count` of a pass, or to its end."""
        shards, ends, begins = self._order(pass_)
        found_shards, found_rows = [], []
        slot = int(np.searchsorted(ends, start, side="right"))
        stop = min(start + count, self.samples)
        while start < stop:
            shard = int(shards[slot])
            first = start - (int(ends[slot - 1]) if slot else 0)
            taken = min(stop, int(ends[slot])) - start
            found_shards.append(np.full(taken, shard, np.int32))
            found_rows.append(self._rows(shard, int(begins[slot]) + first, taken))
            start += taken
            slot += 1
        if not found_rows:
            return Run.joined([])
        shard_of, row = np.concatenate(found_shards), np.concatenate(found_rows)
        first_row = np.concatenate([np.zeros(1, np.int64), self.lengths.ends])
        place = first_row[shard_of] + row
        return Run(
            np.full(len(row), self._source, np.int16),
            shard_of,
            row,
            np.full(len(row), pass_, np.int32),
            self.lengths.tokens[place],
            self.lengths.images[place],
        )

    def _rows(self, shard: int, first: int, count: int) -> NDArray[np.int32]:
        begin = int(self.lengths.ends[shard - 1]) if shard else 0
        end = int(self.lengths.ends[shard])
        place = np.arange(first, first + count) % self.lengths.live[shard]
        if int(self.lengths.live[shard]) < end - begin:
            place = np.flatnonzero(self.lengths.tokens[begin:end] > 0)[place]
        rows: NDArray[np.int32] = place.astype(np.int32)
        return rows

    def _pass_order(self, pass_: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        of = (self._seed, self._epoch, self._source, pass_)
        shards = order(len(self.lengths.ends), *of)
        shards = shards[self.lengths.live[shards] > 0]
        live = self.lengths.live[shards]
        begins = numbers(len(shards), *of, 1) % live.astype(np.uint64)
        return shards, np.cumsum(live), begins.astype(np.int64)
