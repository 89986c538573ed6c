"""Random numbers and permutations as pure functions of integers: no generator, no state, the same on every machine."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_STEP: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)


def numbers(count: int, *seeds: int) -> NDArray[np.uint64]:
    """uint64[count]: pseudo-random numbers given by the integers `seeds` (SplitMix64's finalizer; docs/sources.md)."""
    with np.errstate(over="ignore"):
        state = np.zeros(1, np.uint64)
        for value in seeds:
            state = _mixed(state ^ np.uint64(value % (1 << 64)))
        return _mixed(state + np.arange(count, dtype=np.uint64) * _STEP)


def permutation(count: int, *seeds: int) -> NDArray[np.int64]:
    """int64[count]: a permutation given by the integers `seeds`."""
    return np.argsort(numbers(count, *seeds), kind="stable")


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + _STEP
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed
