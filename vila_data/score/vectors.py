"""Embeddings of a part's distinct items, kept in a local file so that memory does not grow with the part."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray


class Vectors:
    """An append-only list of vectors of `dim` float32 values; a vector's place in it is its slot.

    One thread may append while another takes what was there before. The last two
    appended arrays are kept in memory: most vectors are asked for soon.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._dim = dim
        self._recent: tuple[tuple[int, NDArray[np.float32]], ...] = ()
        self.count = 0

    def __enter__(self) -> Vectors:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._file)

    def append(self, vectors_ND: NDArray[np.float32]) -> None:
        """Add N vectors; they get the slots `count` to `count + N - 1`."""
        vectors_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
        data = memoryview(vectors_ND.tobytes())
        at = self.count * self._dim * 4
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], at + done)
        self._recent = (*self._recent[-1:], (self.count, vectors_ND))
        self.count += len(vectors_ND)

    def take(self, slots: Sequence[int]) -> NDArray[np.float32]:
        """[len(slots), D] the vectors of some slots; neighbours are read in one go."""
        result = np.empty((len(slots), self._dim), np.float32)
        start = 0
        while start < len(slots):
            stop = start + 1
            while stop < len(slots) and slots[stop] == slots[stop - 1] + 1:
                stop += 1
            self._read(slots[start], result[start:stop])
            start = stop
        return result

    def _read(self, slot: int, out_ND: NDArray[np.float32]) -> None:
        for start, vectors_ND in self._recent:
            if start <= slot and slot + len(out_ND) <= start + len(vectors_ND):
                out_ND[:] = vectors_ND[slot - start : slot - start + len(out_ND)]
                return
        size = out_ND.nbytes
        data = os.pread(self._file, size, slot * self._dim * 4)
        if len(data) != size:
            raise IndexError(f"slots from {slot}: {len(data)} of {size} bytes were written")
        out_ND[:] = np.frombuffer(data, np.float32).reshape(out_ND.shape)
