"""Exact duplicates over a whole corpus: the first picture of equal bytes stays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])
"""The first 128 bits of a sha256: 16 bytes a picture, so 100 million take 1.6 GB."""


def digests(sha256: pa.ChunkedArray, mask: NDArray[np.bool_]) -> NDArray[np.void]:
    """DIGEST[k] of the hex digests where `mask` is true, in order."""
    hexes = sha256.filter(pa.array(mask)).to_pylist()
    return np.frombuffer(bytes.fromhex("".join(value[:32] for value in hexes)), dtype=DIGEST)


def later_copies(digests_by_part: list[NDArray[np.void]]) -> list[NDArray[np.bool_]]:
    """bool[k] for each part: whether an equal digest stands earlier in the corpus."""
    together = np.concatenate(digests_by_part) if digests_by_part else np.empty(0, DIGEST)
    order = np.lexsort((together["low"], together["high"]))  # stable: equal digests stay in corpus order
    ordered = together[order]
    copy = np.zeros(len(together), dtype=bool)
    copy[order[1:]] = ordered[1:] == ordered[:-1]
    ends = np.cumsum([len(part) for part in digests_by_part])
    return np.split(copy, ends[:-1]) if digests_by_part else []
