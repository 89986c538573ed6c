"""Where a batch's arrays lie in one buffer: the same for the worker that fills it and the process that reads it."""

from __future__ import annotations

from math import prod
from typing import Any, Final, NamedTuple

import numpy as np

from vila_data.loader.arrays import BatchArrays

_ALIGN: Final = 64
_INT64, _INT32, _UINT8 = np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.uint8)


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
        return sum(_aligned(prod(shape) * kind.itemsize) for kind, shape in self._fields_of())

    def arrays_in(self, buffer: Any) -> BatchArrays:
        """Views of a writable buffer of `nbytes` or more; what they hold is whatever is in it."""
        views, at = [], 0
        for kind, shape in self._fields_of():
            count = prod(shape)
            views.append(np.frombuffer(buffer, kind, count, at).reshape(shape))
            at += _aligned(count * kind.itemsize)
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


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
