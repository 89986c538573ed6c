"""The best rows so far, whatever the order and the blocks in which rows come.

A block is judged by one float32 matrix product, whose last bits depend on how the library cuts it up. So what
may be among the best is weighed again, each row on its own in float64, and equal scores are ordered by place:
the result is a function of the vectors and the query alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SLACK: Final = 2.0**-22
"""Of a float32 sum of D products of unit vectors: its error is below D times this."""
_CACHED: Final = 1 << 18
"""Values converted at a time: 1 MB of float32, which stays in a core's cache."""


def rough_scores(query_D: NDArray[np.float32], block_ND: NDArray[np.float16]) -> NDArray[np.float32]:
    """[N] products with the query in float32; several threads may call it at once."""
    rough_N = np.empty(len(block_ND), np.float32)
    rows = max(1, _CACHED // len(query_D))
    piece_RD = np.empty((min(rows, len(block_ND)), len(query_D)), np.float32)
    for start in range(0, len(block_ND), rows):
        stop = min(start + rows, len(block_ND))
        np.copyto(piece_RD[: stop - start], block_ND[start:stop])
        with np.errstate(invalid="ignore"):  # damaged vectors
            np.dot(piece_RD[: stop - start], query_D, out=rough_N[start:stop])
    return rough_N


@dataclass
class Ranking:
    """The `count` rows most similar to `query_D` (float32, unit length) among those that were added.

    A place is (group, row): `groups` are ordered as they rank between equal scores.
    """

    query_D: NDArray[np.float32]
    count: int
    scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))
    groups: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def add(
        self,
        group: int,
        first_row: int,
        block_ND: NDArray[np.float16],
        rough_N: NDArray[np.float32],
        allowed_N: NDArray[np.bool_] | None = None,
    ) -> None:
        """Rows `first_row` and on of a group, with their `rough_scores`; only those that are allowed."""
        possible_N = np.isfinite(rough_N) if allowed_N is None else np.isfinite(rough_N) & allowed_N
        rough_N = np.where(possible_N, rough_N, -np.inf).astype(np.float32)
        slack = _SLACK * len(self.query_D)
        least = self.scores[-1] - slack if len(self.scores) >= self.count else -np.inf
        if len(rough_N) > self.count:
            least = max(least, np.partition(rough_N, -self.count)[-self.count] - 2 * slack)
        near = np.flatnonzero((rough_N >= least) & (rough_N > -np.inf))
        if len(near):
            self.weigh(np.full(len(near), group, np.int64), first_row + near, block_ND[near])

    def weigh(self, groups: NDArray[np.int64], rows: NDArray[np.int64], vectors_ND: NDArray[np.float16]) -> None:
        """Rows of any groups, each by its exact score."""
        exact = (vectors_ND.astype(np.float64) * self.query_D.astype(np.float64)).sum(axis=1)
        scores = np.concatenate([self.scores, exact])
        groups = np.concatenate([self.groups, groups])
        rows = np.concatenate([self.rows, rows])
        best = np.lexsort((rows, groups, -scores))[: self.count]
        self.scores, self.groups, self.rows = scores[best], groups[best], rows[best]
