"""One sample's token file row, written into a pack's columns with its images expanded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.schemas import IGNORED, IMAGE_ID
from vila_data.encode.image_tokens import ImageTokens
from vila_data.encode.token_set import TokenSample


@dataclass(frozen=True, slots=True)
class Expansion:
    """A sample that was found to be as its pack was planned.

    wide: columns of each image; moved: by how many columns the images before each of them, and before the end, move it.
    """

    sample: TokenSample
    wide: Sequence[int]
    moved: Sequence[int]

    @staticmethod
    def of(sample: TokenSample, policy: ImageTokens, *, tokens: int, images: int) -> Expansion:
        """The sample with as many columns per image as the policy says, the last one fewer where its length ends inside it.

        Raises:
            DataError: it does not have the `tokens` and `images` that its pack was planned with.
        """
        if sample.tokens != tokens or len(sample.images) != images:
            found = f"{sample.tokens} tokens and {len(sample.images)} images"
            raise DataError(f"{found} where lengths.parquet says {tokens} and {images}")
        wide = policy.counts(sample.widths, sample.heights) if images else []
        moved = [0, *accumulate([columns - 1 for columns in wide])]
        whole = len(sample.ids) + moved[-1]
        least = whole - wide[-1] + 1 if wide else whole
        if len(sample.placeholders) != images or not least <= tokens <= whole:
            raise DataError(
                f"{whole} columns and {len(sample.placeholders)} marks where {tokens} and {images} were planned"
            )
        return Expansion(sample, wide, moved)

    def write(self, ids: NDArray[np.int64], labels: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Fill `ids` and `labels` int64[tokens]; first column and columns of each image."""
        own, columns = self.sample.ids, len(ids)
        labels[:] = IGNORED
        for first, last in self.sample.trained.tolist():
            self._train(first, last, labels)
        places, column, read = [], 0, 0
        for mark, wide in zip(self.sample.placeholders, self.wide, strict=True):
            stop = column + mark - read
            ids[column:stop] = own[read:mark]
            column = min(stop + wide, columns)
            ids[stop:column] = IMAGE_ID
            places.append((stop, column - stop))
            read = mark + 1
        ids[column:] = own[read : read + columns - column]
        return places

    def _train(self, first: int, last: int, labels: NDArray[np.int64]) -> None:
        """Give the columns of places `first` to `last` of `ids` their labels; images among them have none."""
        own = self.sample.ids
        while first < last:
            before = bisect_left(self.sample.placeholders, first)
            stop = min(last, self.sample.placeholders[before]) if before < len(self.sample.placeholders) else last
            column = first + self.moved[before]
            labels[column : column + stop - first] = own[first:stop][: max(0, len(labels) - column)]
            first = stop + 1
