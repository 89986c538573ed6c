"""Exact search over embeddings: every vector is read once, block by block, from a disk or by range requests.

Shapes: N rows, D the model's dimension. The files are those of score.embeddings: float16 [N, D].

A block is scored by one float32 matrix product, whose last bits depend on how the library splits it. So the rows that
may be among the best are rescored one by one in float64, and equal scores are ordered by part and row: the result
depends on the vectors and the query alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from vila_data.core.cpus import cpu_count
from vila_data.core.errors import DataError
from vila_data.core.layout import Part, score_stage
from vila_data.core.ranges.reader import Span, read_spans
from vila_data.core.receipts import read_receipt
from vila_data.core.store import Store
from vila_data.score.embeddings import embedding_paths

Kind = Literal["images", "captions"]
"""Which embeddings are searched."""

BLOCK_BYTES: Final = 8 << 20
"""Float16 bytes per block. One block per thread, and two more, are in memory."""
_MAX_THREADS: Final = 16
_MIN_REMOTE_THREADS: Final = 8
_RECEIPT_REQUESTS: Final = 16
"""Concurrent requests to a remote store, where files are small."""
_HEADER: Final = 128
"""Bytes of the header of a two-dimensional .npy file."""
_FLOAT32_ERROR: Final = 2.0**-22
"""The error of a float32 sum of D products of unit vectors is below D times this."""
_CACHED_VALUES: Final = 1 << 18
"""Values converted at a time: 1 MB of float32, which stays in a core's cache."""


@dataclass(frozen=True)
class EmbeddedPart:
    """The vectors of one kind of one part by one scorer: [rows, dim]. sha256: of the file, from its receipt."""

    part: Part
    scorer: str
    path: str
    metadata: str
    rows: int
    dim: int
    sha256: str


@dataclass(frozen=True)
class Slice:
    """Rows `start` to `stop` of a part. group: the part's position among those searched."""

    group: int
    part: EmbeddedPart
    start: int
    stop: int


Allowed = Callable[[EmbeddedPart], NDArray[np.bool_]]
"""Which rows of a part may be found: bool [N]. Called for each block, so it should cache."""


def find_parts(store: Store, parts: Iterable[Part], scorer: str, kind: Kind) -> list[EmbeddedPart]:
    """The parts of a corpus that have embeddings by a scorer, in order. Parts without a valid score receipt are skipped.

    Raises:
        DataError: a file does not match its receipt, or is not a float16 table.
    """
    with ThreadPoolExecutor(_RECEIPT_REQUESTS, "parts") as pool:
        found = [one for one in pool.map(lambda part: _embedded(store, part, scorer, kind), parts) if one is not None]
    widths = {one.dim for one in found}
    if len(widths) > 1:
        directory = store.location(found[0].path.rsplit("/", 1)[0])
        raise DataError(f"{directory}: found vectors of different lengths: {sorted(widths)}; run the recipe again")
    return found


def _embedded(store: Store, part: Part, scorer: str, kind: Kind) -> EmbeddedPart | None:
    receipt_path = part.receipt(score_stage(scorer))
    receipt = read_receipt(store, receipt_path)
    images, texts, metadata = embedding_paths(part, scorer)
    path = images if kind == "images" else texts
    if receipt is None or path not in receipt.outputs:
        return None
    expected = receipt.outputs[path]
    size = store.size(path)
    redo = f"delete {store.location(receipt_path)} and run the recipe again"
    if size is None or size != expected["bytes"]:
        found = "the file is missing" if size is None else f"found {size:,} bytes"
        raise DataError(f"{store.location(path)}: {found}, but its receipt says {expected['bytes']:,} bytes; {redo}")
    try:
        stream = BytesIO(store.read_range(path, 0, min(_HEADER, size)))
        version = np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        raise DataError(f"{store.location(path)}: not a .npy file: {error}; {redo}") from error
    fits = version == (1, 0) and len(shape) == 2 and dtype == np.dtype("<f2") and stream.tell() == _HEADER
    if not fits or _HEADER + 2 * shape[0] * shape[1] != size:
        raise DataError(f"{store.location(path)}: not a complete two-dimensional float16 table; {redo}")
    return EmbeddedPart(part, scorer, path, metadata, shape[0], shape[1], expected["sha256"])


def read_block(store: Store, block: Slice) -> NDArray[np.float16]:
    """[stop - start, D] vectors.

    Raises:
        StorageError: the file ends early, or cannot be read.
    """
    width = 2 * block.part.dim
    data = store.read_range(block.part.path, _HEADER + block.start * width, (block.stop - block.start) * width)
    return np.frombuffer(data, "<f2").reshape(-1, block.part.dim)


def read_rows(store: Store, part: EmbeddedPart, rows: Sequence[int]) -> NDArray[np.float16]:
    """[len(rows), D] some vectors of a part, in the order given; fastest where it is ascending.

    Raises:
        StorageError: the file ends early, or cannot be read.
    """
    width = 2 * part.dim
    data = b"".join(read_spans(store, (Span(part.path, _HEADER + row * width, width) for row in rows)))
    return np.frombuffer(data, "<f2").reshape(len(rows), part.dim)


def blocks(slices: Sequence[Slice], block_bytes: int = BLOCK_BYTES) -> Iterator[Slice]:
    """The slices in pieces of at most `block_bytes` float16 bytes, in order."""
    for piece in slices:
        rows = max(1, block_bytes // (2 * piece.part.dim))
        for start in range(piece.start, piece.stop, rows):
            yield Slice(piece.group, piece.part, start, min(start + rows, piece.stop))


@dataclass
class Ranking:
    """The `count` rows most similar to `query_D` (float32, unit length) among those added so far, best first."""

    query_D: NDArray[np.float32]
    count: int
    scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))
    groups: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def add(
        self,
        block: Slice,
        vectors_ND: NDArray[np.float16],
        rough_N: NDArray[np.float32],
        allowed_N: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add the allowed rows of a block, given their `rough_scores`."""
        possible_N = np.isfinite(rough_N) if allowed_N is None else np.isfinite(rough_N) & allowed_N
        rough_N = np.where(possible_N, rough_N, -np.inf).astype(np.float32)
        slack = _FLOAT32_ERROR * len(self.query_D)
        least = self.scores[-1] - slack if len(self.scores) >= self.count else -np.inf
        if len(rough_N) > self.count:
            least = max(least, np.partition(rough_N, -self.count)[-self.count] - 2 * slack)
        near = np.flatnonzero((rough_N >= least) & (rough_N > -np.inf))
        if len(near):
            self.add_exact(block.group, block.start + near, vectors_ND[near])

    def add_exact(self, group: int, rows: NDArray[np.int64], vectors_ND: NDArray[np.float16]) -> None:
        """Add rows of a group, each by its float64 score."""
        exact = (vectors_ND.astype(np.float64) * self.query_D.astype(np.float64)).sum(axis=1)
        scores = np.concatenate([self.scores, exact])
        groups = np.concatenate([self.groups, np.full(len(rows), group, np.int64)])
        rows = np.concatenate([self.rows, rows])
        best = np.lexsort((rows, groups, -scores))[: self.count]
        self.scores, self.groups, self.rows = scores[best], groups[best], rows[best]


def rough_scores(query_D: NDArray[np.float32], block_ND: NDArray[np.float16]) -> NDArray[np.float32]:
    """[N] products with the query in float32. Thread-safe."""
    rough_N = np.empty(len(block_ND), np.float32)
    rows = max(1, _CACHED_VALUES // len(query_D))
    piece_RD = np.empty((min(rows, len(block_ND)), len(query_D)), np.float32)
    for start in range(0, len(block_ND), rows):
        stop = min(start + rows, len(block_ND))
        np.copyto(piece_RD[: stop - start], block_ND[start:stop])
        with np.errstate(invalid="ignore"):  # damaged vectors
            np.dot(piece_RD[: stop - start], query_D, out=rough_N[start:stop])
    return rough_N


def search_exact(
    store: Store,
    slices: Sequence[Slice],
    ranking: Ranking,
    allowed: Allowed | None = None,
    progress: Callable[[int], None] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Add every row of some slices to a ranking, reading and scoring the next blocks meanwhile.

    Args:
        progress: called with the number of rows scored since its last call.

    Raises:
        StorageError: a file ends early, or cannot be read.
    """

    def scored(block: Slice) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        vectors_ND = read_block(store, block)
        return vectors_ND, rough_scores(ranking.query_D, vectors_ND)

    threads = min(_MAX_THREADS, cpu_count() if store.is_local else max(_MIN_REMOTE_THREADS, cpu_count()))
    with ThreadPoolExecutor(threads, "blocks") as pool:
        upcoming = blocks(slices, block_bytes)
        pending = deque((block, pool.submit(scored, block)) for block in islice(upcoming, threads + 1))
        while pending:
            block, future = pending.popleft()
            vectors_ND, rough_N = future.result()
            pending.extend((block, pool.submit(scored, block)) for block in islice(upcoming, 1))
            mask = None if allowed is None else allowed(block.part)[block.start : block.stop]
            ranking.add(block, vectors_ND, rough_N, mask)
            if progress is not None:
                progress(len(vectors_ND))
