"""One sample's token file row as the columns of a pack, its images expanded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.schemas import IGNORED, IMAGE_ID
from vila_data.encode.token_set import TokenSample

_NONE: Final = np.zeros((0, 2), np.int64)


@dataclass(frozen=True, slots=True)
class Expanded:
    """A sample's columns. ids, labels int32[tokens]; image_columns int64[k, 2]: first column and columns of each image."""

    sample: TokenSample
    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    image_columns: NDArray[np.int64]


def expand(sample: TokenSample, tokens_per_image: int, *, tokens: int, images: int) -> Expanded:
    """The sample with `tokens_per_image` columns an image, the last one fewer where its length ends inside it.

    Raises:
        DataError: it does not have the `tokens` and `images` that its pack was planned with.
    """
    if (sample.tokens, len(sample.images)) != (tokens, images):
        found = f"{sample.tokens} tokens and {len(sample.images)} images"
        raise DataError(f"{found} where lengths.parquet says {tokens} and {images}")
    marks = np.flatnonzero(sample.ids == IMAGE_ID)
    if not len(marks) == len(sample.offsets) == len(sample.sizes) == images:
        raise DataError(f"{len(marks)} marks and {len(sample.offsets)} places for {images} images")
    if not images:
        if tokens != len(sample.ids):
            raise DataError(f"{len(sample.ids)} ids where {tokens} were planned")
        return Expanded(sample, sample.ids, sample.labels, _NONE)
    counts = np.ones(len(sample.ids), np.int64)
    counts[marks] = tokens_per_image
    ends = np.cumsum(counts)
    if not ends[-1] - tokens_per_image < tokens <= ends[-1]:
        raise DataError(f"{ends[-1]} columns where {tokens} were planned")
    labels = sample.labels
    labels[marks] = IGNORED
    firsts = ends[marks] - tokens_per_image
    columns = np.stack([firsts, np.minimum(ends[marks], tokens) - firsts], axis=1)
    return Expanded(sample, np.repeat(sample.ids, counts)[:tokens], np.repeat(labels, counts)[:tokens], columns)
