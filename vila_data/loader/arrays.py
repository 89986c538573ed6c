"""One batch as plain arrays in one buffer: what a worker writes and a trainer's process reads, without torch.

Shapes: B rows of L columns, N images of H x W pixels, S samples, C segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT: Final = 64
_INT64, _INT32, _UINT8 = np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.uint8)


@dataclass(frozen=True, eq=False)
class BatchArrays:
    """Packs as rows. Images are expanded: a row has one column for each token that the model will see.

    ids_BL:       int64; IMAGE_ID at every column of an image, the pad id in padding.
    labels_BL:    int64; IGNORED where there is no loss: images, padding, what the sample masks, and the first token of
                  each sample, which keeps its label under semantics `released_code` only.
    positions_BL: int64; from 0 in each sample, and from 0 in the row's padding.
    segments_BL:  int32; 1, 2, ... the sample of the row; 0 in padding.
    cu_seqlens:   int32[C + 1]; bounds of the segments over the B * L columns, row by row; each padding is a segment.
    pixels_NHWC:  uint8 RGB; the images in order of rows and columns.
    image_spans:  int64[N, 4]; row, first column, columns (tokens_per_image, or fewer if the image is cut), and the
                  sample's index in `sample_spans`.
    sample_spans: int64[S, 3]; row, first column, columns; in order of rows and columns.
    """

    ids_BL: NDArray[np.int64]
    labels_BL: NDArray[np.int64]
    positions_BL: NDArray[np.int64]
    segments_BL: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    pixels_NHWC: NDArray[np.uint8]
    image_spans: NDArray[np.int64]
    sample_spans: NDArray[np.int64]


class BatchSize(NamedTuple):
    """How large a batch's arrays are. side: pixels of an image's side; segments: bounds in cu_seqlens less one."""

    rows: int
    length: int
    images: int
    samples: int
    segments: int
    side: int

    @property
    def nbytes(self) -> int:
        """Bytes of a buffer for them."""
        return sum(_aligned(prod(shape) * kind.itemsize) for kind, shape in self._fields_of())

    def arrays_in(self, buffer: Any) -> BatchArrays:
        """Views of a writable buffer of at least `nbytes` bytes, which is not cleared."""
        views, offset = [], 0
        for kind, shape in self._fields_of():
            count = prod(shape)
            views.append(np.frombuffer(buffer, kind, count, offset).reshape(shape))
            offset += _aligned(count * kind.itemsize)
        return BatchArrays(*views)

    def _fields_of(self) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
        """(type, shape) of each field of BatchArrays, in order."""
        row = (self.rows, self.length)
        return [
            (_INT64, row),
            (_INT64, row),
            (_INT64, row),
            (_INT32, row),
            (_INT32, (self.segments + 1,)),
            (_UINT8, (self.images, self.side, self.side, 3)),
            (_INT64, (self.images, 4)),
            (_INT64, (self.samples, 3)),
        ]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a sample comes from.

    set: the shard set, by its name in the blend; shard and row: the file, and the sample's number in it; pass_: how
    often the blend has been through the set before, from 0.
    """

    set: str
    corpus: str
    record_id: str
    key: str
    shard: str
    row: int
    pass_: int


@dataclass(frozen=True, slots=True)
class Fault:
    """A broken image or sample: the sample keeps its columns in the pack and is excluded from the loss.

    where: the shard and its member; stage: what failed; reason: the error's message; sample: its index in the batch's
    `origins`.
    """

    where: str
    record_id: str
    stage: Literal["tokens", "read", "decode"]
    reason: str
    sample: int


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
