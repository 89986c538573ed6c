"""Packs as two arrays, the packers of the paper and of the released code, and packing statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError

Ints = NDArray[np.int32]
"""One entry per sample: its tokens with images expanded, or its images."""
Histogram = tuple[tuple[int, int], ...]
"""(value, packs) for each value with at least one pack, ascending."""

REASONS = ("image_limit", "no_sample_fits", "end_of_block")
"""Why a pack has unfilled tokens: it is at its image limit; no sample of its block is short enough with that few images;
every sample of the block that would fit is in another pack."""


@dataclass(frozen=True)
class Packs:
    """The samples of each sequence.

    ends int64[p]: pack j is `members[ends[j - 1]:ends[j]]` (from 0 for the first); members int64[n]: positions in the
    arrays that were packed, in the order within the pack.
    """

    ends: NDArray[np.int64]
    members: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def starts(self) -> NDArray[np.int64]:
        """int64[p]: where each pack's members begin."""
        starts: NDArray[np.int64] = np.concatenate([np.zeros(1, np.int64), self.ends])[:-1]
        return starts

    @property
    def sizes(self) -> NDArray[np.int64]:
        """int64[p]: number of samples in each pack."""
        return self.ends - self.starts

    def sums(self, values: NDArray[np.integer]) -> NDArray[np.int64]:
        """int64[p]: the sum of `values`, one entry per sample, over each pack."""
        running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values[self.members], dtype=np.int64)])
        sums: NDArray[np.int64] = running[self.ends] - running[self.starts]
        return sums

    def first(self, count: int) -> Packs:
        """The first `count` packs."""
        ends = self.ends[:count]
        return Packs(ends, self.members[: ends[-1]])

    def reordered(self, order: NDArray[np.int64]) -> Packs:
        """The packs in another order."""
        starts, sizes = self.starts[order], self.sizes[order]
        ends = np.cumsum(sizes)
        return Packs(ends, self.members[np.repeat(starts - (ends - sizes), sizes) + np.arange(len(self.members))])


def check_lengths(tokens: Ints, images: Ints) -> None:
    """Raise DataError unless every sample has at least one token and a nonnegative number of images."""
    if tokens.ndim != 1 or tokens.shape != images.shape:
        raise UsageError(
            f"pack: tokens {tokens.shape} and images {images.shape} must be one-dimensional and equally long"
        )
    if not len(tokens):
        return
    if int(tokens.min()) < 1:
        raise DataError(f"pack: sample {int(tokens.argmin())} has {int(tokens.min())} tokens; exclude empty samples")
    if int(images.min()) < 0:
        raise DataError(f"pack: sample {int(images.argmin())} has {int(images.min())} images")


def pack_singly(tokens: Ints, images: Ints) -> Packs:
    """One sample per sequence, in order (semantics `paper`)."""
    check_lengths(tokens, images)
    return Packs(np.arange(1, len(tokens) + 1, dtype=np.int64), np.arange(len(tokens), dtype=np.int64))


def pack_micro_batches(tokens: Ints, images: Ints, *, micro_batch: int) -> Packs:
    """VILA v1.0's packs (semantics `released_code`): every `micro_batch` consecutive samples are packed separately.

    Samples are sorted by tokens, longest first and ties in order, then packed next-fit: a sample starts a new pack if it
    would make the current one longer than the longest sample of the micro-batch. The last micro-batch may be short.
    """
    check_lengths(tokens, images)
    if micro_batch < 1:
        raise UsageError(f"pack.micro_batch must be at least 1, found {micro_batch}")
    n = len(tokens)
    order = np.lexsort((-tokens.astype(np.int64), np.arange(n) // micro_batch))
    batches = -(-n // micro_batch)
    padded = np.zeros(batches * micro_batch, np.int64)
    padded[:n] = tokens[order]
    length = padded.reshape(batches, micro_batch)
    opens = np.zeros((batches, micro_batch), np.bool_)
    held = np.zeros(batches, np.int64)
    for column in range(micro_batch):
        held += length[:, column]
        opens[:, column] = (held > length[:, 0]) | (column == 0)
        held = np.where(opens[:, column], length[:, column], held)
    first = np.flatnonzero(opens.reshape(-1)[:n])
    return Packs(np.append(first[1:], n)[: len(first)].astype(np.int64), order.astype(np.int64))


@dataclass(frozen=True)
class PackReport:
    """Counts over packs; reports of several blocks can be added. `unfilled_tokens`, in the order of REASONS, sum to
    `capacity_tokens - tokens`."""

    packs: int = 0
    samples: int = 0
    tokens: int = 0
    images: int = 0
    capacity_tokens: int = 0
    unfilled_tokens: tuple[int, int, int] = (0, 0, 0)
    images_per_pack: Histogram = ()
    samples_per_pack: Histogram = ()

    @classmethod
    def of(cls, packs: Packs, tokens: Ints, images: Ints, *, capacity: int, max_images: int | None) -> PackReport:
        """The report of one block's packs in sequences of `capacity` tokens."""
        pack_tokens, pack_images = packs.sums(tokens), packs.sums(images)
        reason = _reasons(capacity - pack_tokens, pack_images, tokens, images, max_images)
        unfilled = np.bincount(reason, weights=capacity - pack_tokens, minlength=len(REASONS)).astype(np.int64)
        return cls(
            packs=len(packs),
            samples=len(packs.members),
            tokens=int(pack_tokens.sum()),
            images=int(pack_images.sum()),
            capacity_tokens=len(packs) * capacity,
            unfilled_tokens=(int(unfilled[0]), int(unfilled[1]), int(unfilled[2])),
            images_per_pack=_histogram(pack_images),
            samples_per_pack=_histogram(packs.sizes),
        )

    @property
    def fill(self) -> float:
        """Fill rate: fraction of the sequences' tokens that belong to samples; 1.0 without packs."""
        return self.tokens / self.capacity_tokens if self.capacity_tokens else 1.0

    def __add__(self, other: PackReport) -> PackReport:
        mine, theirs = self.unfilled_tokens, other.unfilled_tokens
        return PackReport(
            packs=self.packs + other.packs,
            samples=self.samples + other.samples,
            tokens=self.tokens + other.tokens,
            images=self.images + other.images,
            capacity_tokens=self.capacity_tokens + other.capacity_tokens,
            unfilled_tokens=(mine[0] + theirs[0], mine[1] + theirs[1], mine[2] + theirs[2]),
            images_per_pack=_merged(self.images_per_pack, other.images_per_pack),
            samples_per_pack=_merged(self.samples_per_pack, other.samples_per_pack),
        )

    def as_dict(self) -> dict[str, Any]:
        """The counts for JSON, with the fill rate and means."""
        return {
            "packs": self.packs,
            "samples": self.samples,
            "tokens": self.tokens,
            "images": self.images,
            "capacity_tokens": self.capacity_tokens,
            "fill": self.fill,
            "unfilled_tokens": dict(zip(REASONS, self.unfilled_tokens, strict=True)),
            "images_per_pack": _histogram_dict(self.images_per_pack),
            "samples_per_pack": _histogram_dict(self.samples_per_pack),
        }


def _reasons(
    room: NDArray[np.int64], pack_images: NDArray[np.int64], tokens: Ints, images: Ints, max_images: int | None
) -> NDArray[np.int64]:
    """int64[p]: for each pack the position in REASONS, given the samples of its block."""
    if not len(tokens):
        return np.zeros(0, np.int64)
    counts = np.unique(images)
    shortest = np.minimum.accumulate([int(tokens[images == count].min()) for count in counts])
    at_limit = np.zeros(len(room), np.bool_) if max_images is None else pack_images >= max_images
    image_room = np.full(len(room), counts[-1]) if max_images is None else max_images - pack_images
    allowed = np.searchsorted(counts, image_room, side="right")
    needed = np.where(allowed > 0, shortest[np.maximum(allowed, 1) - 1], np.iinfo(np.int64).max)
    return np.where(at_limit, 0, np.where(needed > room, 1, 2)).astype(np.int64)


def _histogram(values: NDArray[np.int64]) -> Histogram:
    found, counts = np.unique(values, return_counts=True)
    return tuple(zip(found.tolist(), counts.tolist(), strict=True))


def _merged(left: Histogram, right: Histogram) -> Histogram:
    counts = dict(left)
    for value, count in right:
        counts[value] = counts.get(value, 0) + count
    return tuple(sorted(counts.items()))


def _histogram_dict(histogram: Histogram) -> dict[str, Any]:
    packs = sum(count for _, count in histogram)
    mean = sum(value * count for value, count in histogram) / packs if packs else 0.0
    return {"mean": mean, "histogram": {str(value): count for value, count in histogram}}
