"""How far shares are from those asked for, over every stretch of as many steps, in bounded memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WINDOW_STEPS = 1_000


class Windows:
    """The worst deviation over all windows of WINDOW_STEPS consecutive steps of `packs_a_step` packs.

    Fed pack by pack; a window's share is its units over its total, compared with what was asked for pack by pack, so
    that a window over a change is measured by both sides. Steps that are not full at the end do not count.
    """

    def __init__(self, sources: int, packs_a_step: int) -> None:
        self._packs = packs_a_step
        self._left = np.zeros((0, 2, sources))
        self._sums = np.zeros((1, 2, sources))
        self.windows = 0
        self.worst = np.zeros(sources)

    def add(self, units: NDArray[np.int64], totals: NDArray[np.int64], asked: NDArray[np.float64]) -> None:
        """Take the next packs: units, totals int64[p, e] as held; asked float64[e], in force for all of them."""
        values = np.concatenate([self._left, np.stack([units - totals * asked, totals], axis=1)])
        steps = len(values) // self._packs
        self._left = values[steps * self._packs :]
        if not steps:
            return
        by_step = values[: steps * self._packs].reshape(steps, self._packs, *values.shape[1:]).sum(axis=1)
        sums = np.concatenate([self._sums, self._sums[-1] + np.cumsum(by_step, axis=0)])
        if len(sums) > WINDOW_STEPS:
            lag, total = np.moveaxis(sums[WINDOW_STEPS:] - sums[:-WINDOW_STEPS], 1, 0)
            share = np.abs(lag) / np.where(total > 0, total, np.inf)
            self.worst = np.maximum(self.worst, share.max(axis=0))
            self.windows += len(share)
        kept = sums[-WINDOW_STEPS:]
        self._sums = kept - kept[:1]
