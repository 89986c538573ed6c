"""The embeddings of a run as search reads them: which parts have some, and blocks of their rows.

Shapes: N rows, D the model's dimension. The files are those of score.embeddings: float16 [N, D].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part, score_stage
from vila_data.core.ranges.reader import Span, read_spans
from vila_data.core.receipts import read_receipt
from vila_data.core.store import Store
from vila_data.score.embeddings import embedding_paths

Kind = Literal["images", "captions"]
"""What is searched: the pictures' vectors, or their captions'."""

_HEADER: Final = 128
"""Bytes of the header of a .npy file of two dimensions."""
_REQUESTS: Final = 16
"""Requests to a remote store at a time, where files are small."""


@dataclass(frozen=True)
class EmbeddedPart:
    """The vectors of one kind of one part by one scorer: `rows` of width `dim`; `sha256` of the file, as its receipt has it."""

    part: Part
    scorer: str
    path: str
    metadata: str
    rows: int
    dim: int
    sha256: str


def find_parts(store: Store, parts: Iterable[Part], scorer: str, kind: Kind) -> list[EmbeddedPart]:
    """Those parts of a corpus that have embeddings by a scorer, in order; of a part without a valid score receipt nothing is taken.

    Raises:
        DataError: a file is not as its receipt says, or is no float16 table.
    """
    with ThreadPoolExecutor(_REQUESTS, "parts") as pool:
        found = [one for one in pool.map(lambda part: _embedded(store, part, scorer, kind), parts) if one is not None]
    widths = {one.dim for one in found}
    if len(widths) > 1:
        folder = store.location(found[0].path.rsplit("/", 1)[0])
        raise DataError(f"{folder}: vectors of {sorted(widths)} values; run the recipe again")
    return found


def read_block(store: Store, part: EmbeddedPart, start: int, stop: int) -> NDArray[np.float16]:
    """[stop - start, D] rows of a part.

    Raises:
        StorageError: the file ends early, or cannot be read.
    """
    width = 2 * part.dim
    data = store.read_range(part.path, _HEADER + start * width, (stop - start) * width)
    return np.frombuffer(data, "<f2").reshape(stop - start, part.dim)


def read_rows(store: Store, part: EmbeddedPart, rows: Sequence[int]) -> NDArray[np.float16]:
    """[len(rows), D] some rows of a part, in the order given; best where it is ascending.

    Raises:
        StorageError: the file ends early, or cannot be read.
    """
    width = 2 * part.dim
    data = b"".join(read_spans(store, (Span(part.path, _HEADER + row * width, width) for row in rows)))
    return np.frombuffer(data, "<f2").reshape(len(rows), part.dim)


def _embedded(store: Store, part: Part, scorer: str, kind: Kind) -> EmbeddedPart | None:
    receipt_path = part.receipt(score_stage(scorer))
    receipt = read_receipt(store, receipt_path)
    images, texts, metadata = embedding_paths(part, scorer)
    path = images if kind == "images" else texts
    if receipt is None or path not in receipt.outputs:
        return None
    facts = receipt.outputs[path]
    size = store.size(path)
    redo = f"delete {store.location(receipt_path)} and run the recipe again"
    if size is None or size != facts["bytes"]:
        found = "missing" if size is None else f"{size:,} bytes"
        raise DataError(f"{store.location(path)}: {found}, its receipt says {facts['bytes']:,} bytes; {redo}")
    try:
        stream = BytesIO(store.read_range(path, 0, min(_HEADER, size)))
        version = np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        raise DataError(f"{store.location(path)}: not a .npy file: {error}; {redo}") from error
    fits = version == (1, 0) and len(shape) == 2 and dtype == np.dtype("<f2") and stream.tell() == _HEADER
    if not fits or _HEADER + 2 * shape[0] * shape[1] != size:
        raise DataError(f"{store.location(path)}: not a whole float16 table of two dimensions; {redo}")
    return EmbeddedPart(part, scorer, path, metadata, shape[0], shape[1], facts["sha256"])
