"""Exact search: every vector is read once, a block at a time, whether from a disk or by ranges from a store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.cpus import cpu_count
from vila_data.core.store import Store
from vila_data.explore.search.ranking import Ranking, rough_scores
from vila_data.explore.search.vectors import EmbeddedPart, read_block

BLOCK_BYTES: Final = 8 << 20
"""Float16 bytes of a block; one for each thread, and two more, are in memory."""
_MOST_THREADS: Final = 16
_REQUESTS: Final = 8
"""Threads over a remote store, at least."""


@dataclass(frozen=True)
class Slice:
    """Rows `start` to `stop` of the part that has place `group` among those searched."""

    group: int
    part: EmbeddedPart
    start: int
    stop: int


Allowed = Callable[[EmbeddedPart], NDArray[np.bool_]]
"""Which rows of a part may be found: bool [N]."""


def search_exact(
    store: Store,
    slices: Sequence[Slice],
    ranking: Ranking,
    allowed: Allowed | None = None,
    progress: Callable[[int], None] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Add every row of some slices to a ranking; the next blocks are read and judged meanwhile.

    Args:
        allowed: called once a slice.
        progress: called with the number of rows judged since its last call.

    Raises:
        StorageError: a file ends early, or cannot be read.
    """
    threads = min(_MOST_THREADS, cpu_count() if store.is_local else max(_REQUESTS, cpu_count()))
    judged = partial(_judged, store, ranking.query_D)
    with ThreadPoolExecutor(threads, "blocks") as pool:
        ahead = blocks(slices, block_bytes)
        pending = deque((block, pool.submit(judged, block)) for block in islice(ahead, threads + 1))
        masks: dict[int, NDArray[np.bool_]] = {}
        while pending:
            block, judging = pending.popleft()
            vectors_ND, rough_N = judging.result()
            pending.extend((block, pool.submit(judged, block)) for block in islice(ahead, 1))
            mask = None
            if allowed is not None:
                if block.group not in masks:
                    masks = {block.group: allowed(block.part)}
                mask = masks[block.group][block.start : block.stop]
            ranking.add(block.group, block.start, vectors_ND, rough_N, mask)
            if progress is not None:
                progress(len(vectors_ND))


def _judged(
    store: Store, query_D: NDArray[np.float32], block: Slice
) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    vectors_ND = read_block(store, block.part, block.start, block.stop)
    return vectors_ND, rough_scores(query_D, vectors_ND)


def blocks(slices: Sequence[Slice], block_bytes: int = BLOCK_BYTES) -> Iterator[Slice]:
    """Slices of at most `block_bytes` float16 bytes, in order."""
    for piece in slices:
        rows = max(1, block_bytes // (2 * piece.part.dim))
        for start in range(piece.start, piece.stop, rows):
            yield Slice(piece.group, piece.part, start, min(start + rows, piece.stop))
