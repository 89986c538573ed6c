"""Where a batch's arrays lie in one buffer: the same for the worker that fills it and the process that reads it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from vila_data.batch.arrays import BatchArrays

_ALIGN: Final = 64


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
        """Bytes of a buffer that holds them."""
        return sum(_aligned(count * np.dtype(kind).itemsize) for count, kind, _ in self._fields_of())

    def arrays_in(self, buffer: Any) -> BatchArrays:
        """Views of a writable buffer of `nbytes` or more; what they hold is whatever is in it."""
        views, at = [], 0
        for count, kind, shape in self._fields_of():
            views.append(np.frombuffer(buffer, kind, count, at).reshape(shape))
            at += _aligned(count * np.dtype(kind).itemsize)
        return BatchArrays(*views)

    def _fields_of(self) -> list[tuple[int, Any, tuple[int, ...]]]:
        """(values, type, shape) of each field of BatchArrays, in order."""
        cells = self.rows * self.length
        row = (self.rows, self.length)
        pixels = (self.images, self.side, self.side, 3)
        return [
            (cells, np.int64, row),
            (cells, np.int64, row),
            (cells, np.int64, row),
            (cells, np.int32, row),
            (self.segments + 1, np.int32, (self.segments + 1,)),
            (int(np.prod(pixels)), np.uint8, pixels),
            (self.images * 4, np.int64, (self.images, 4)),
            (self.samples * 3, np.int64, (self.samples, 3)),
        ]


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
