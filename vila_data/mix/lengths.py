"""What a shard set's samples cost, and their order in a pass: short runs of rows in an order over the whole set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.mix.seeded import numbers, order

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_ROWS: Final = 64
"""Rows of a shard that a pass reads one after another: a block of 65,520 samples so mixes a thousand places of a set."""


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
        """From a set's lengths (core.tables.LENGTHS): `shards` shards, rows in the order of shards and rows."""
        shard, row = (table.column(name).to_numpy().astype(np.int64) for name in ("shard", "row"))
        counts = np.bincount(shard, minlength=shards)
        ends = np.cumsum(counts)
        if len(ends) != shards or not np.array_equal(np.repeat(ends - counts, counts) + row, np.arange(len(row))):
            raise DataError(f"lengths: {len(row)} rows are not those of {shards} shards, in order, each once")
        tokens, images = (
            np.ascontiguousarray(table.column(name).to_numpy(), np.int32) for name in ("tokens", "images")
        )
        return cls(tokens, images, ends.astype(np.int64))

    def only(self, keep: NDArray[np.bool_]) -> Lengths:
        """The same rows; those not in `keep` bool[n] are not in the stream."""
        return Lengths(np.where(keep, self.tokens, 0).astype(np.int32), self.images, self.ends)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """int64[s]: rows of each shard."""
        sizes: NDArray[np.int64] = np.diff(self.ends, prepend=0)
        return sizes

    @cached_property
    def chunk_ends(self) -> NDArray[np.int64]:
        """int64[s]: chunks of CHUNK_ROWS rows, the last of a shard being shorter, up to the end of each shard."""
        return np.cumsum(-(-self.sizes // CHUNK_ROWS), dtype=np.int64)

    def chunk_places(
        self, chunks: NDArray[np.integer]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """int64[c] each: the shard of some chunks, the first row in it, and how many rows."""
        shard = np.searchsorted(self.chunk_ends, chunks, side="right")
        sizes = self.sizes[shard]
        first_chunk = self.chunk_ends[shard] - -(-sizes // CHUNK_ROWS)
        row = (chunks - first_chunk) * CHUNK_ROWS
        return shard, row, np.minimum(sizes - row, CHUNK_ROWS)

    @cached_property
    def live(self) -> NDArray[np.uint8]:
        """uint8[c]: samples of each chunk that are in the stream."""
        chunks = int(self.chunk_ends[-1]) if len(self.ends) else 0
        if not chunks:
            return np.zeros(0, np.uint8)
        shard, row, _ = self.chunk_places(np.arange(chunks))
        starts = self.ends[shard] - self.sizes[shard] + row
        return np.add.reduceat((self.tokens > 0).view(np.uint8), starts, dtype=np.uint8)

    @cached_property
    def totals(self) -> tuple[int, int, int]:
        """(samples, images, tokens) of a pass."""
        images = int(np.where(self.tokens > 0, self.images, 0).sum(dtype=np.int64))
        return int(self.live.sum(dtype=np.int64)), images, int(self.tokens.sum(dtype=np.int64))

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


class _Pass(NamedTuple):
    """A pass over c chunks that hold samples in the stream: int32[c] which, in order; int64[c] samples up to the end
    of each; uint8[c] the row of each at which it begins, to go on and around."""

    chunks: NDArray[np.int32]
    ends: NDArray[np.int64]
    begins: NDArray[np.uint8]


class SourceReader:
    """Samples of one shard set by their place in a pass.

    A pass holds each sample in the stream once. Shards are cut into chunks of CHUNK_ROWS rows, the last of a shard being
    shorter; the chunks of all shards come in an order of (seed, epoch, source, pass), the rows of a chunk as stored,
    from one of (seed, epoch, source, pass) on and around, so that a source of few chunks that an epoch does not finish
    does not always show the same samples. Memory is 26 bytes a chunk. samples: how many a pass holds.
    """

    def __init__(self, lengths: Lengths, source: int, seed: int, epoch: int) -> None:
        self.lengths = lengths
        self.samples = lengths.totals[0]
        self._source, self._seed, self._epoch = source, seed, epoch
        self._order = lru_cache(maxsize=2)(self._pass_order)

    def read(self, pass_: int, start: int, count: int) -> Run:
        """Samples `start` to `start + count` of a pass, or to its end."""
        stop = min(start + count, self.samples)
        if start >= stop:
            return Run.joined([])
        order = self._order(pass_)
        first, last = np.searchsorted(order.ends, [start, stop - 1], side="right").tolist()
        chunk, begin = order.chunks[first : last + 1], order.begins[first : last + 1].astype(np.int64)
        shard, row, rows = self.lengths.chunk_places(chunk)
        shard_start = self.lengths.ends[shard] - self.lengths.sizes[shard]
        stretches = np.stack([shard_start + row + begin, shard_start + row], axis=1).reshape(-1)
        sizes = np.stack([rows - begin, begin], axis=1).reshape(-1)
        place = np.repeat(stretches - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum()))
        shards, place_row = np.repeat(shard.astype(np.int32), rows), place - np.repeat(shard_start, rows)
        tokens = self.lengths.tokens[place]
        skipped = start - (int(order.ends[first - 1]) if first else 0)
        taken: slice | NDArray[np.int64] = slice(skipped, skipped + stop - start)
        if not tokens.all():
            taken = np.flatnonzero(tokens > 0)[taken]
        tokens, place = tokens[taken], place[taken]
        return Run(
            np.full(len(tokens), self._source, np.int16),
            shards[taken],
            place_row[taken].astype(np.int32),
            np.full(len(tokens), pass_, np.int32),
            tokens,
            self.lengths.images[place],
        )

    def _pass_order(self, pass_: int) -> _Pass:
        of = (self._seed, self._epoch, self._source, pass_)
        live = self.lengths.live
        every = order(len(live), *of)
        chunks: NDArray[np.int32] = every[live[every] > 0].astype(np.int32)
        begins = numbers(len(chunks), *of, 1) % self.lengths.chunk_places(chunks)[2].astype(np.uint64)
        return _Pass(chunks, np.cumsum(live[chunks], dtype=np.int64), begins.astype(np.uint8))
