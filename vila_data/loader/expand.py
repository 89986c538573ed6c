"""One sample's token file row, written into a pack's columns with its images expanded."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.schemas import IGNORED, IMAGE_ID
from vila_data.encode.token_set import TokenSample


@dataclass(frozen=True, slots=True)
class Expansion:
    """A sample that was found to be as its pack was planned."""

    sample: TokenSample
    tokens_per_image: int

    @staticmethod
    def of(sample: TokenSample, tokens_per_image: int, *, tokens: int, images: int) -> Expansion:
        """The sample with `tokens_per_image` columns an image, the last one fewer where its length ends inside it.

        Raises:
            DataError: it does not have the `tokens` and `images` that its pack was planned with.
        """
        if sample.tokens != tokens or len(sample.images) != images:
            found = f"{sample.tokens} tokens and {len(sample.images)} images"
            raise DataError(f"{found} where lengths.parquet says {tokens} and {images}")
        whole = len(sample.ids) + images * (tokens_per_image - 1)
        least = whole - tokens_per_image + 1 if images else whole
        if len(sample.marks) != images or not least <= tokens <= whole:
            raise DataError(f"{whole} columns and {len(sample.marks)} marks where {tokens} and {images} were planned")
        return Expansion(sample, tokens_per_image)

    def write(self, ids: NDArray[np.int64], labels: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Fill `ids` and `labels` int64[tokens]; first column and columns of each image."""
        own, columns = self.sample.ids, len(ids)
        labels[:] = IGNORED
        for first, last in self.sample.trained.tolist():
            self._train(first, last, labels)
        places, column, read = [], 0, 0
        for mark in self.sample.marks:
            stop = column + mark - read
            ids[column:stop] = own[read:mark]
            column = min(stop + self.tokens_per_image, columns)
            ids[stop:column] = IMAGE_ID
            places.append((stop, column - stop))
            read = mark + 1
        ids[column:] = own[read : read + columns - column]
        return places

    def _train(self, first: int, last: int, labels: NDArray[np.int64]) -> None:
        """Give the columns of places `first` to `last` of `ids` their labels; images among them have none."""
        own, wider = self.sample.ids, self.tokens_per_image - 1
        while first < last:
            before = bisect_left(self.sample.marks, first)
            stop = min(last, self.sample.marks[before]) if before < len(self.sample.marks) else last
            column = first + before * wider
            labels[column : column + stop - first] = own[first:stop][: max(0, len(labels) - column)]
            first = stop + 1
