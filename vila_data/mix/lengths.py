"""The lengths of a shard set's samples, and the shuffled order in which a pass reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.mix.config import Unit
from vila_data.mix.seeded import numbers, permutation

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_ROWS: Final = 64
"""Consecutive rows of a shard that a pass reads together: a block of 65,520 samples mixes a thousand chunks of a set."""


class Totals(NamedTuple):
    """Sums over the samples of one pass."""

    samples: int
    images: int
    tokens: int


@dataclass(frozen=True)
class Lengths:
    """The samples of one shard set, in the order of shards and rows.

    tokens int32[n]: with images expanded; 0 if the sample is not in the stream. images int32[n]. ends int64[s]: shard k
    has the entries ends[k - 1] (0 for the first) to ends[k]; its rows count from there. Arrays may be memory-mapped.
    """

    tokens: NDArray[np.int32]
    images: NDArray[np.int32]
    ends: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.tokens.shape != self.images.shape or self.tokens.ndim != 1:
            raise DataError(f"lengths: tokens {self.tokens.shape} and images {self.images.shape} differ in length")
        total = int(self.ends[-1]) if len(self.ends) else 0
        if total != len(self.tokens) or (len(self.ends) and (np.diff(self.ends, prepend=0) < 0).any()):
            raise DataError(f"lengths: shards end at {total}, but there are {len(self.tokens)} samples")

    @classmethod
    def of_shards(cls, shards: Sequence[tuple[NDArray[np.int32], NDArray[np.int32]]]) -> Lengths:
        """From (tokens, images) of each shard, in order."""
        empty = np.zeros(0, np.int32)
        tokens = np.concatenate([empty, *(tokens for tokens, _ in shards)]).astype(np.int32)
        images = np.concatenate([empty, *(images for _, images in shards)]).astype(np.int32)
        return cls(tokens, images, np.cumsum([len(tokens) for tokens, _ in shards], dtype=np.int64))

    @classmethod
    def of_table(cls, table: pa.Table, shards: int) -> Lengths:
        """From a set's lengths (core.tables.LENGTHS): `shards` shards, rows in the order of shards and rows."""
        shard, row = (table.column(name).to_numpy().astype(np.int64) for name in ("shard", "row"))
        counts = np.bincount(shard, minlength=shards)
        ends = np.cumsum(counts)
        if len(ends) != shards or not np.array_equal(np.repeat(ends - counts, counts) + row, np.arange(len(row))):
            raise DataError(
                f"lengths: {len(row)} rows do not list every row of {shards} shards once, in order; the token files of "
                "this set are damaged"
            )
        tokens, images = (
            np.ascontiguousarray(table.column(name).to_numpy(), np.int32) for name in ("tokens", "images")
        )
        return cls(tokens, images, ends.astype(np.int64))

    def only(self, keep: NDArray[np.bool_]) -> Lengths:
        """The same rows; samples outside `keep` bool[n] are not in the stream."""
        return Lengths(np.where(keep, self.tokens, 0).astype(np.int32), self.images, self.ends)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """int64[s]: rows of each shard."""
        sizes: NDArray[np.int64] = np.diff(self.ends, prepend=0)
        return sizes

    @cached_property
    def chunk_ends(self) -> NDArray[np.int64]:
        """int64[s]: number of chunks up to the end of each shard; the last chunk of a shard may be shorter."""
        return np.cumsum(-(-self.sizes // CHUNK_ROWS), dtype=np.int64)

    def chunk_positions(
        self, chunks: NDArray[np.integer]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """int64[c] each: the shard of some chunks, their first row in it, and their number of rows."""
        shard = np.searchsorted(self.chunk_ends, chunks, side="right")
        sizes = self.sizes[shard]
        first_chunk = self.chunk_ends[shard] - -(-sizes // CHUNK_ROWS)
        row = (chunks - first_chunk) * CHUNK_ROWS
        return shard, row, np.minimum(sizes - row, CHUNK_ROWS)

    @cached_property
    def chunk_samples(self) -> NDArray[np.uint8]:
        """uint8[c]: samples in the stream of each chunk."""
        chunks = int(self.chunk_ends[-1]) if len(self.ends) else 0
        if not chunks:
            return np.zeros(0, np.uint8)
        shard, row, _ = self.chunk_positions(np.arange(chunks))
        starts = self.ends[shard] - self.sizes[shard] + row
        return np.add.reduceat((self.tokens > 0).view(np.uint8), starts, dtype=np.uint8)

    @cached_property
    def totals(self) -> Totals:
        """Sums over a pass."""
        images = int(np.where(self.tokens > 0, self.images, 0).sum(dtype=np.int64))
        return Totals(int(self.chunk_samples.sum(dtype=np.int64)), images, int(self.tokens.sum(dtype=np.int64)))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over every entry: a different subset with equal totals is a different plan."""
        digest = hashlib.sha256(repr(tuple(self.totals)).encode())
        for values, kind in ((self.ends, "<i8"), (self.tokens, "<i4"), (self.images, "<i4")):
            digest.update(np.ascontiguousarray(values, kind).data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Samples:
    """Samples in order, as columns.

    source int16[n]: number of the shard set, counted through the blend in the recipe's order; shard, row int32[n]: the
    sample's position in it; pass_ int32[n]: the pass over its source, from 0; tokens, images int32[n].
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

    def units(self, unit: Unit) -> NDArray[np.int64]:
        """int64[n]: each sample's amount in a unit."""
        if unit == "samples":
            return np.ones(len(self), np.int64)
        return (self.images if unit == "images" else self.tokens).astype(np.int64)

    def take(self, which: NDArray[np.int64] | slice) -> Samples:
        """Some of the samples, in the order of `which`."""
        return Samples(*(column[which] for column in self.columns()))

    @staticmethod
    def joined(parts: Sequence[Samples]) -> Samples:
        """Several, one after another."""
        if not parts:
            return Samples(np.zeros(0, np.int16), *(np.zeros(0, np.int32) for _ in range(5)))
        return Samples(*(np.concatenate(columns) for columns in zip(*(part.columns() for part in parts), strict=True)))


class _PassOrder(NamedTuple):
    """The order of a pass over c chunks that have samples in the stream.

    chunks int32[c]: in order; ends int64[c]: samples up to the end of each; begins uint8[c]: the row of each chunk at
    which reading begins, wrapping around at its end.
    """

    chunks: NDArray[np.int32]
    ends: NDArray[np.int64]
    begins: NDArray[np.uint8]


class PassReader:
    """Reads the samples of one shard set by their position in a shuffled pass.

    A pass contains each sample in the stream once. Shards are cut into chunks of CHUNK_ROWS rows. The chunks of all
    shards are permuted by (seed, epoch, source, pass). Rows within a chunk keep their order, but reading begins at a
    random row and wraps around, so that an epoch that does not finish a small source does not always show the same
    samples. Memory is 26 bytes per chunk. samples: number of samples in a pass.
    """

    def __init__(self, lengths: Lengths, source: int, seed: int, epoch: int) -> None:
        self.lengths = lengths
        self.samples = lengths.totals.samples
        self._source, self._seed, self._epoch = source, seed, epoch
        self._order = lru_cache(maxsize=2)(self._pass_order)

    def read(self, pass_: int, start: int, count: int) -> Samples:
        """Samples `start` to `start + count` of a pass, or to its end."""
        stop = min(start + count, self.samples)
        if start >= stop:
            return Samples.joined([])
        order = self._order(pass_)
        first, last = np.searchsorted(order.ends, [start, stop - 1], side="right").tolist()
        begin = order.begins[first : last + 1].astype(np.int64)
        shard, row, rows = self.lengths.chunk_positions(order.chunks[first : last + 1])
        shard_start = self.lengths.ends[shard] - self.lengths.sizes[shard]
        # Each chunk is two stretches of rows: from its begin to its end, and from its start to its begin.
        stretches = np.stack([shard_start + row + begin, shard_start + row], axis=1).reshape(-1)
        sizes = np.stack([rows - begin, begin], axis=1).reshape(-1)
        position = np.repeat(stretches - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum()))
        shards, position_row = np.repeat(shard.astype(np.int32), rows), position - np.repeat(shard_start, rows)
        tokens = self.lengths.tokens[position]
        skipped = start - (int(order.ends[first - 1]) if first else 0)
        taken: slice | NDArray[np.int64] = slice(skipped, skipped + stop - start)
        if not tokens.all():
            taken = np.flatnonzero(tokens > 0)[taken]
        tokens, position = tokens[taken], position[taken]
        return Samples(
            np.full(len(tokens), self._source, np.int16),
            shards[taken],
            position_row[taken].astype(np.int32),
            np.full(len(tokens), pass_, np.int32),
            tokens,
            self.lengths.images[position],
        )

    def _pass_order(self, pass_: int) -> _PassOrder:
        seeds = (self._seed, self._epoch, self._source, pass_)
        samples = self.lengths.chunk_samples
        every = permutation(len(samples), *seeds)
        chunks: NDArray[np.int32] = every[samples[every] > 0].astype(np.int32)
        begins = numbers(len(chunks), *seeds, 1) % self.lengths.chunk_positions(chunks)[2].astype(np.uint64)
        return _PassOrder(chunks, np.cumsum(samples[chunks], dtype=np.int64), begins.astype(np.uint8))
