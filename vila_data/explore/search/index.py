"""An index of a large set of vectors, and search through it.

The vectors of a corpus are cut into segments, each with a faiss index of its own: an inverted file whose cells hold
them in 4 bits a value. A search looks into the cells nearest to the query, takes more candidates than are asked for
and weighs those again by their own float16 vectors: scores and their order are those of an exact search, which may
only find what lies in no cell that was looked into. docs/decisions/0012-search-index.md has the measurements.

A segment's receipt names the vectors that it was made from, so one of other vectors is never used, and what was
built before an interruption is not built again. Building takes half a byte a value of a segment for the codes and 4
bytes a value of the training sample: 0.4 GB at D = 512 (benchmarks/search.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.cpus import cpu_count
from vila_data.core.errors import DataError, UsageError
from vila_data.core.receipts import committing, fingerprint, valid_receipt
from vila_data.core.store import Store
from vila_data.explore.search.copies import local_index
from vila_data.explore.search.exact import Allowed, Slice, blocks
from vila_data.explore.search.ranking import Ranking
from vila_data.explore.search.vectors import EmbeddedPart, Kind, read_block, read_rows

SEGMENT_ROWS: Final = 1 << 19
LEAST_ROWS: Final = 20_000
"""A corpus with fewer is searched exactly in less time than it takes to open an index."""
SAMPLE_A_CELL: Final = 40
SHARE_LOOKED_INTO: Final = 1 / 8
"""Of a segment's cells: texts lie far from all pictures, and their nearest ones in many cells."""
CANDIDATES: Final = 100
"""At least so many of a segment are weighed again, and 4 for each row that is asked for."""
_VERSION: Final = 1
_SEED: Final = 1


@dataclass(frozen=True)
class Segment:
    """Some rows of a corpus in their order, and where their index lies; `inputs`: fingerprint of these vectors."""

    path: str
    receipt: str
    slices: tuple[Slice, ...]
    inputs: str

    @property
    def rows(self) -> int:
        """Vectors in it."""
        return sum(piece.stop - piece.start for piece in self.slices)


def index_folder(corpus: str, kind: Kind) -> str:
    """Folder of a corpus's index."""
    return f"search/{corpus}/{kind}"


def plan_segments(parts: Sequence[tuple[int, EmbeddedPart]], kind: Kind, rows: int = SEGMENT_ROWS) -> list[Segment]:
    """Cut the parts of one corpus, each with its group, into segments of at most `rows` vectors."""
    segments: list[Segment] = []
    pieces: list[Slice] = []
    room = rows
    for group, part in parts:
        start = 0
        while start < part.rows:
            stop = min(part.rows, start + room)
            pieces.append(Slice(group, part, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                segments.append(_segment(pieces, kind, len(segments)))
                pieces, room = [], rows
    if pieces:
        segments.append(_segment(pieces, kind, len(segments)))
    return segments


def is_built(store: Store, segment: Segment) -> bool:
    """Whether the segment's index is there, whole, and of these vectors."""
    return valid_receipt(store, segment.receipt, segment.inputs) is not None


def has_faiss() -> bool:
    """Whether the library can be imported."""
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def build_segment(store: Store, segment: Segment, progress: Callable[[int], None] | None = None) -> None:
    """Write a segment's index, then its receipt; the same vectors on one machine give the same bytes.

    progress: called with the number of vectors added since its last call.

    Raises:
        UsageError: faiss is not installed.
        StorageError: the store cannot be read or written.
    """
    faiss = _faiss()
    dim, cells = segment.slices[0].part.dim, cell_count(segment.rows)
    index = faiss.index_factory(dim, f"IVF{cells},SQ4", faiss.METRIC_INNER_PRODUCT)
    index.train(_sample(store, segment, min(segment.rows, SAMPLE_A_CELL * cells)))
    for block in blocks(segment.slices):
        index.add(read_block(store, block.part, block.start, block.stop).astype(np.float32))
        if progress is not None:
            progress(block.stop - block.start)
    with committing(store, segment.receipt, segment.inputs) as outputs:
        try:
            faiss.write_index(index, str(outputs.path(segment.path)))
        except RuntimeError as error:  # faiss has no other kind
            raise OSError("the index cannot be written: is the disk full?") from error
        outputs.counts.update(vectors=segment.rows, cells=cells, dim=dim)


def cell_count(rows: int) -> int:
    """Cells of an index of so many vectors: about 4 times the square root, a power of two."""
    return 1 << max(0, int(np.log2(4 * np.sqrt(rows))))


def search_segment(store: Store, segment: Segment, ranking: Ranking, allowed: Allowed | None = None) -> None:
    """Add to a ranking what a segment's index finds, by exact scores.

    Raises:
        DataError: the index cannot be read.
    """
    faiss = _faiss()
    wanted = min(segment.rows, max(CANDIDATES, 4 * ranking.count))
    selector = None
    if allowed is not None:
        mask = np.concatenate([allowed(piece.part)[piece.start : piece.stop] for piece in segment.slices])
        bits = np.packbits(mask, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
    with local_index(store, segment.path, segment.receipt) as path:
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
            if (index.ntotal, index.d) != (segment.rows, len(ranking.query_D)):
                raise RuntimeError(f"{index.ntotal} vectors of {index.d} values")
        except RuntimeError as error:
            where = store.location(segment.path)
            raise DataError(f"{where}: not the index of its receipt; delete it and build it again: {error}") from error
        parameters = faiss.SearchParametersIVF(nprobe=max(1, round(index.nlist * SHARE_LOOKED_INTO)), sel=selector)
        _, found = index.search(ranking.query_D[None], wanted, params=parameters)
        del index
    _weigh(store, segment, ranking, np.sort(found[0][found[0] >= 0]))


def _weigh(store: Store, segment: Segment, ranking: Ranking, positions: NDArray[np.int64]) -> None:
    """Add the vectors at some places of a segment to a ranking."""
    first = 0
    for piece in segment.slices:
        stop = first + piece.stop - piece.start
        here = positions[(positions >= first) & (positions < stop)] - first + piece.start
        if len(here):
            ranking.weigh(np.full(len(here), piece.group), here, read_rows(store, piece.part, here.tolist()))
        first = stop


def _segment(pieces: Sequence[Slice], kind: Kind, number: int) -> Segment:
    folder = index_folder(pieces[0].part.part.corpus, kind)
    name = f"segment-{number:05d}"
    made_from = [[piece.part.path, piece.part.sha256, piece.start, piece.stop] for piece in pieces]
    inputs = fingerprint([_VERSION, made_from])
    return Segment(f"{folder}/{name}.faiss", f"{folder}/.receipts/{name}.json", tuple(pieces), inputs)


def _sample(store: Store, segment: Segment, count: int) -> NDArray[np.float32]:
    """[count, D] vectors of a segment, drawn without replacement by a fixed seed."""
    chosen = np.sort(np.random.default_rng(_SEED).choice(segment.rows, count, replace=False))
    sample_ND = np.empty((count, segment.slices[0].part.dim), np.float32)
    first = done = 0
    for block in blocks(segment.slices):
        rows = block.stop - block.start
        here = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + rows)] - first
        sample_ND[done : done + len(here)] = read_block(store, block.part, block.start, block.stop)[here]
        done, first = done + len(here), first + rows
    return sample_ND


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UsageError('an index needs faiss: pip install "vila-data[search]"') from error
    faiss.omp_set_num_threads(cpu_count())
    return faiss
