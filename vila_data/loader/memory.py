"""Memory for batches that are made in the trainer's own process, used again when nothing refers to it any more."""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress
from typing import Final

import numpy as np

from vila_data.loader.arrays import BatchArrays
from vila_data.loader.layout import BatchSize

_KEPT: Final = 2
_ROUND: Final = 1 << 21


class ReusedMemory:
    """Gives arrays over memory whose pages are there already: new ones would cost a tenth of the decoding."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def allocate(self, size: BatchSize) -> BatchArrays:
        """Arrays of this size; what they hold is whatever is in the memory."""
        need = size.nbytes
        memory = self._free.pop() if self._free else None
        if memory is None or len(memory) < need:
            memory = mmap.mmap(-1, -(-need // _ROUND) * _ROUND, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):  # a kernel without large pages
                memory.madvise(mmap.MADV_HUGEPAGE)
        buffer = np.frombuffer(memory, np.uint8, need)
        weakref.finalize(buffer, self._take_back, memory).atexit = False
        return size.arrays_in(buffer)

    def _take_back(self, memory: mmap.mmap) -> None:
        if len(self._free) < _KEPT:
            self._free.append(memory)
