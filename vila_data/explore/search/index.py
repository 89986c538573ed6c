"""An index over a large set of vectors, and search through it.

The vectors of a corpus are split into segments, each with its own faiss index: an inverted file whose cells hold the
vectors in 4 bits per value. A search reads the cells nearest to the query, takes more candidates than requested and
rescores them with their float16 vectors: scores and their order are those of an exact search, which may only find rows
in cells that were not read. docs/decisions/0012-search-index.md has the measurements.

A segment's receipt names the vectors that it was built from, so an index of other vectors is never used, and an
interrupted build resumes. Building takes half a byte per value of a segment for the codes and 4 bytes per value of the
training sample: 0.4 GB at D = 512 (benchmarks/search.py). A remote index is copied to this machine once and kept for
the next search.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.cpus import cpu_count
from vila_data.core.errors import DataError, StorageError, UsageError
from vila_data.core.ranges.cache import FileCache, cache_directory, digest
from vila_data.core.ranges.prefetch import whole
from vila_data.core.ranges.reader import read_spans
from vila_data.core.receipts import committing, fingerprint, read_receipt, valid_receipt
from vila_data.core.store import Store
from vila_data.explore.search.exact import Allowed, EmbeddedPart, Kind, Ranking, Slice, blocks, read_block, read_rows

SEGMENT_ROWS: Final = 1 << 19
LEAST_ROWS: Final = 20_000
"""A smaller corpus is searched exactly in less time than it takes to open an index."""
SAMPLES_PER_CELL: Final = 40
PROBED_SHARE: Final = 1 / 8
"""Share of a segment's cells that a search reads: texts are far from all images, so their neighbors are in many cells."""
CANDIDATES: Final = 100
"""At least so many rows of a segment are rescored, and 4 per requested result."""
MAX_COPIES_BYTES: Final = 16 << 30
"""Bytes of all local copies of remote indexes; the least recently used are deleted first."""
_VERSION: Final = 1
_SEED: Final = 1
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of a corpus, and the paths of their index and its receipt. inputs: fingerprint of the vectors."""

    path: str
    receipt: str
    slices: tuple[Slice, ...]
    inputs: str

    @property
    def rows(self) -> int:
        """Vectors in it."""
        return sum(piece.stop - piece.start for piece in self.slices)


def index_directory(corpus: str, kind: Kind) -> str:
    """Directory of a corpus's index."""
    return f"search/{corpus}/{kind}"


def plan_segments(parts: Sequence[tuple[int, EmbeddedPart]], kind: Kind, rows: int = SEGMENT_ROWS) -> list[Segment]:
    """Split the parts of one corpus, each with its group, into segments of at most `rows` vectors."""
    segments: list[Segment] = []
    pieces: list[Slice] = []
    free = rows
    for group, part in parts:
        start = 0
        while start < part.rows:
            stop = min(part.rows, start + free)
            pieces.append(Slice(group, part, start, stop))
            free -= stop - start
            start = stop
            if free == 0:
                segments.append(_segment(pieces, kind, len(segments)))
                pieces, free = [], rows
    if pieces:
        segments.append(_segment(pieces, kind, len(segments)))
    return segments


def _segment(pieces: Sequence[Slice], kind: Kind, number: int) -> Segment:
    directory = index_directory(pieces[0].part.part.corpus, kind)
    name = f"segment-{number:05d}"
    made_from = [[piece.part.path, piece.part.sha256, piece.start, piece.stop] for piece in pieces]
    inputs = fingerprint([_VERSION, made_from])
    return Segment(f"{directory}/{name}.faiss", f"{directory}/.receipts/{name}.json", tuple(pieces), inputs)


def is_built(store: Store, segment: Segment) -> bool:
    """Whether the segment's index is complete and was built from these vectors."""
    return valid_receipt(store, segment.receipt, segment.inputs) is not None


def has_faiss() -> bool:
    """Whether faiss is installed."""
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def _faiss() -> Any:
    if not has_faiss():
        raise UsageError('search: an index needs faiss: pip install "vila-data[search]"')
    import faiss

    faiss.omp_set_num_threads(cpu_count())
    return faiss


def build_segment(store: Store, segment: Segment, progress: Callable[[int], None] | None = None) -> None:
    """Write a segment's index, then its receipt. The same vectors on one machine give the same bytes.

    progress: called with the number of vectors added since its last call.

    Raises:
        UsageError: faiss is not installed.
        StorageError: the store cannot be read or written.
    """
    faiss = _faiss()
    dim, cells = segment.slices[0].part.dim, _cell_count(segment.rows)
    index = faiss.index_factory(dim, f"IVF{cells},SQ4", faiss.METRIC_INNER_PRODUCT)
    index.train(_training_sample(store, segment, min(segment.rows, SAMPLES_PER_CELL * cells)))
    for block in blocks(segment.slices):
        index.add(read_block(store, block).astype(np.float32))
        if progress is not None:
            progress(block.stop - block.start)
    with committing(store, segment.receipt, segment.inputs) as outputs:
        try:
            faiss.write_index(index, str(outputs.path(segment.path)))
        except RuntimeError as error:  # faiss has no other kind
            raise OSError("the index cannot be written; check whether the disk is full") from error
        outputs.counts.update(vectors=segment.rows, cells=cells, dim=dim)


def _cell_count(rows: int) -> int:
    """About 4 times the square root of the rows, a power of two."""
    return 1 << max(0, int(np.log2(4 * np.sqrt(rows))))


def _training_sample(store: Store, segment: Segment, count: int) -> NDArray[np.float32]:
    """[count, D] vectors of a segment, sampled without replacement with a fixed seed."""
    chosen = np.sort(np.random.default_rng(_SEED).choice(segment.rows, count, replace=False))
    sample_ND = np.empty((count, segment.slices[0].part.dim), np.float32)
    first = done = 0
    for block in blocks(segment.slices):
        rows = block.stop - block.start
        here = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + rows)] - first
        sample_ND[done : done + len(here)] = read_block(store, block)[here]
        done, first = done + len(here), first + rows
    return sample_ND


def search_segment(store: Store, segment: Segment, ranking: Ranking, allowed: Allowed | None = None) -> None:
    """Add the rows that a segment's index finds to a ranking, with their exact scores.

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
                raise RuntimeError(f"it has {index.ntotal} vectors of length {index.d}")
        except RuntimeError as error:
            where = store.location(segment.path)
            raise DataError(f"{where}: does not match its receipt; delete it and rebuild it: {error}") from error
        parameters = faiss.SearchParametersIVF(nprobe=max(1, round(index.nlist * PROBED_SHARE)), sel=selector)
        _, found = index.search(ranking.query_D[None], wanted, params=parameters)
        del index
    positions = np.sort(found[0][found[0] >= 0])
    first = 0
    for piece in segment.slices:
        stop = first + piece.stop - piece.start
        rows = positions[(positions >= first) & (positions < stop)] - first + piece.start
        if len(rows):
            ranking.add_exact(piece.group, rows, read_rows(store, piece.part, rows.tolist()))
        first = stop


@contextmanager
def local_index(store: Store, path: str, receipt: str) -> Iterator[Path]:
    """An index as a file on this machine: the file itself if the store is a local disk, else a copy of it.

    A copy is kept in `copies_directory` under the sha256 of its receipt, so a rebuilt index gets a new copy. If that
    directory cannot be written, the copy is a temporary file. If the with block raises a DataError, the copy is deleted.

    Raises:
        DataError: the file does not match its receipt.
        StorageError: the store cannot be read, or no disk has room for a copy.
    """
    if store.is_local:
        yield Path(store.location(path))
        return
    found = read_receipt(store, receipt)
    if found is None or path not in found.outputs:
        raise DataError(f"{store.location(receipt)}: not the receipt of {path}; delete both and rebuild the index")
    size, sha256 = found.outputs[path]["bytes"], found.outputs[path]["sha256"]

    def fetch(descriptor: int) -> None:
        fetched = hashlib.sha256()
        with open(descriptor, "wb", closefd=False) as stream:
            for piece in read_spans(store, whole(path, size)):
                fetched.update(piece)
                stream.write(piece)
        if fetched.hexdigest() != sha256:
            raise DataError(f"{store.location(path)}: does not match its receipt; delete it and rebuild it")

    try:
        copy = FileCache(copies_directory(), MAX_COPIES_BYTES).get(
            digest("index", sha256), os.path.basename(path), fetch
        )
    except OSError as error:
        _LOG.warning("no copy of %s is kept: %s", store.location(path), error)
        with store.scratch() as directory:
            copy = directory / "index"
            try:
                with open(copy, "wb") as stream:
                    fetch(stream.fileno())
            except OSError as full:
                raise StorageError(
                    f"{store.location(path)}: cannot be copied to the local disk: {full.strerror or full}"
                ) from full
            yield copy
        return
    try:
        yield copy
    except DataError:
        copy.unlink(missing_ok=True)
        raise


def copies_directory() -> Path:
    """Where copies are kept: `vila-data-1/indexes` in XDG_CACHE_HOME, or in ~/.cache.

    Raises:
        OSError: there is no such directory, or it cannot be written.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return cache_directory(home) / "indexes"
    except (RuntimeError, StorageError) as error:  # no home; not writable
        raise OSError(str(error)) from error
