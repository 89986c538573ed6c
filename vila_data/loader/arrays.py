"""One batch as plain arrays: what a worker writes and a trainer's process reads, with no torch.

Shapes: B rows of L columns, N images of H x W pixels, S samples, C segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class BatchArrays:
    """Packs as rows. Images are expanded: a row has one column for each token that the model will see.

    ids_BL:        int64; IMAGE_ID at every column of an image, the pad id in padding.
    labels_BL:     int64; IGNORED where nothing is trained: images, padding, what the sample masks, and the first token
                   of each sample, which keeps its label under semantics `released_code` alone.
    positions_BL:  int64; from 0 in each sample, and from 0 in the row's padding.
    segments_BL:   int32; 1, 2, ... the sample of the row; 0 in padding.
    cu_seqlens:    int32[C + 1]; bounds of the segments over the B * L columns, row by row; each padding is a segment.
    pixels_NHWC:   uint8 RGB; the images in order of rows and columns.
    image_places:  int64[N, 4]; row, first column, columns (tokens_per_image, or fewer where the image is cut), and the
                   sample's place in `sample_places`.
    sample_places: int64[S, 3]; row, first column, columns; in order of rows and columns.
    """

    ids_BL: NDArray[np.int64]
    labels_BL: NDArray[np.int64]
    positions_BL: NDArray[np.int64]
    segments_BL: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    pixels_NHWC: NDArray[np.uint8]
    image_places: NDArray[np.int64]
    sample_places: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a sample comes from.

    set: the shard set, by its name in the blend; shard and row: the file, and the sample's number in it; pass_: how
    often the blend has been through the set before, from 0.
    """

    set: str
    corpus: str
    record_id: str
    key: str
    shard: str
    row: int
    pass_: int


@dataclass(frozen=True, slots=True)
class Fault:
    """What broke in one sample, which keeps its place in its pack and is not trained.

    where: the shard and its member; stage: what was being done; reason: the error's own words; sample: its place in
    the batch's `origins`.
    """

    where: str
    record_id: str
    stage: Literal["tokens", "read", "decode"]
    reason: str
    sample: int
