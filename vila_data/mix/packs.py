"""Packs as two arrays, and the two plain ways of making them: the paper's and the released code's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError

Ints = NDArray[np.int32]
"""One entry a sample: its tokens with images expanded, or its images."""


@dataclass(frozen=True)
class Packs:
    """Which samples make each sequence.

    ends int64[p]: pack j is `members[ends[j - 1]:ends[j]]` (from 0 for the first); members int64[n]: positions in the
    arrays that were packed, in the order in which a pack holds them.
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

    def sums(self, values: NDArray[np.integer]) -> NDArray[np.int64]:
        """int64[p]: the sum of `values`, one entry a sample, over each pack."""
        running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values[self.members], dtype=np.int64)])
        sums: NDArray[np.int64] = running[self.ends] - running[self.starts]
        return sums


def check_lengths(tokens: Ints, images: Ints) -> None:
    """Raise DataError unless every sample has at least one token and no fewer than zero images."""
    if tokens.ndim != 1 or tokens.shape != images.shape:
        raise UsageError(f"pack: tokens {tokens.shape} and images {images.shape} must be two lists of one length")
    if not len(tokens):
        return
    if int(tokens.min()) < 1:
        raise DataError(f"pack: sample {int(tokens.argmin())} has {int(tokens.min())} tokens; leave empty samples out")
    if int(images.min()) < 0:
        raise DataError(f"pack: sample {int(images.argmin())} has {int(images.min())} images")


def one_each(tokens: Ints, images: Ints) -> Packs:
    """One sample a sequence, in their order (semantics `paper`)."""
    check_lengths(tokens, images)
    return Packs(np.arange(1, len(tokens) + 1, dtype=np.int64), np.arange(len(tokens), dtype=np.int64))


def micro_batches(tokens: Ints, images: Ints, *, micro_batch: int) -> Packs:
    """VILA v1.0's packs (semantics `released_code`): every `micro_batch` consecutive samples by themselves.

    Sorted by tokens, longest first and ties in their order, then next-fit: a sample opens a new pack where it would
    take the open one beyond the longest sample of its micro-batch. The last micro-batch may be short.
    """
    check_lengths(tokens, images)
    if micro_batch < 1:
        raise UsageError(f"pack.micro_batch is {micro_batch}: give 1 or more")
    n = len(tokens)
    batch = np.arange(n) // micro_batch
    order = np.lexsort((-tokens.astype(np.int64), batch))
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
