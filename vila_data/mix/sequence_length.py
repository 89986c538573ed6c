"""Which sequence length would waste least, by packing a bounded sample of the stream at each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vila_data.core.errors import UsageError
from vila_data.mix.pack_report import PackReport
from vila_data.mix.packs import Ints, check_lengths
from vila_data.mix.plan import pack_block

STEP = 64
SAMPLE = 16_384


@dataclass(frozen=True)
class SequenceLengths:
    """The length that would waste least, and what each length tried came to.

    best: tokens; fill: (length, share of the sequences' tokens filled) for each candidate, by length; cut: (length,
    samples of those tried that are longer and would be cut to it) where there are any; samples: how many were tried.
    """

    best: int
    fill: tuple[tuple[int, float], ...]
    cut: tuple[tuple[int, int], ...]
    samples: int


def candidate_lengths(current: int, longest: int) -> tuple[int, ...]:
    """Multiples of STEP from three quarters to five quarters of `current`, none too short for `longest`; and `current`."""
    low, high = -(-max(current * 3 // 4, longest) // STEP), current * 5 // 4 // STEP
    return tuple(sorted({*(STEP * k for k in range(low, high + 1)), current}))


def best_sequence_length(
    tokens: Ints,
    images: Ints,
    candidates: Sequence[int] | None = None,
    *,
    current: int,
    max_images: int | None,
    seed: int,
    sample: int = SAMPLE,
) -> SequenceLengths:
    """Pack a seeded draw of at most `sample` samples at each candidate length (None: those about `current`).

    tokens, images int32[n] as for `pack_block`. A sample longer than a candidate is cut to it and counted; by default
    no candidate is that short. Of equally good lengths the one nearest to `current` is named.
    """
    check_lengths(tokens, images)
    if not len(tokens):
        raise UsageError("best_sequence_length: no samples to pack")
    if len(tokens) > sample:
        chosen = np.sort(np.random.default_rng(seed).choice(len(tokens), size=sample, replace=False))
        tokens, images = tokens[chosen], images[chosen]
    lengths = tuple(sorted(set(candidates))) if candidates else candidate_lengths(current, int(tokens.max()))
    fill, cut = [], []
    for length in lengths:
        short = np.minimum(tokens, length)
        packs = pack_block(short, images, capacity=length, max_images=max_images)
        fill.append((length, PackReport.of(packs, short, images, capacity=length, max_images=max_images).fill))
        longer = int((tokens > length).sum())
        if longer:
            cut.append((length, longer))
    best = max(fill, key=lambda entry: (entry[1], -abs(entry[0] - current)))[0]
    return SequenceLengths(best, tuple(fill), tuple(cut), len(tokens))
