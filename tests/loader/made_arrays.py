"""Random batches as arrays, right by construction: sums consistent, images expanded, the last one of a sample perhaps cut."""

from __future__ import annotations

import numpy as np

from vila_data.core.tables import IGNORED, IMAGE_ID
from vila_data.loader.arrays import BatchArrays, Origin
from vila_data.loader.batch import PackedBatch
from vila_data.loader.pixels import Normalization

PAD_ID = 0
VOCABULARY = 90  # text ids are 3 to 89
MADE_UP = Normalization.of((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def made_arrays(
    seed: int = 0,
    *,
    rows: int = 3,
    length: int = 64,
    tokens_per_image: int = 4,
    side: int = 8,
    cut: bool = False,
    empty_rows: int = 0,
) -> BatchArrays:
    """`rows` x `length` columns, of which the last `empty_rows` rows are padding; `cut`: images may be cut short."""
    rng = np.random.default_rng(seed)
    ids = np.full((rows, length), PAD_ID, np.int64)
    labels = np.full((rows, length), IGNORED, np.int64)
    positions, segments = np.zeros((rows, length), np.int64), np.zeros((rows, length), np.int32)
    samples: list[tuple[int, int, int]] = []
    images: list[tuple[int, int, int, int]] = []
    bounds = [0]
    for row in range(rows):
        at, segment = 0, 0
        while row < rows - empty_rows and (room := length - at) > 8 and (segment == 0 or rng.random() < 0.85):
            segment += 1
            sample_ids, spans = _sample(rng, room, tokens_per_image, cut)
            stop = at + len(sample_ids)
            ids[row, at:stop] = sample_ids
            text = sample_ids != IMAGE_ID
            labels[row, at:stop] = np.where(text & (rng.random(len(text)) < 0.8), sample_ids, IGNORED)
            positions[row, at:stop] = np.arange(stop - at)
            segments[row, at:stop] = segment
            images += [(row, at + first, columns, len(samples)) for first, columns in spans]
            samples.append((row, at, stop - at))
            bounds.append(row * length + stop)
            at = stop
        positions[row, at:] = np.arange(length - at)
        if at < length:
            bounds.append((row + 1) * length)
    return BatchArrays(
        ids_BL=ids,
        labels_BL=labels,
        positions_BL=positions,
        segments_BL=segments,
        cu_seqlens=np.array(bounds, np.int32),
        pixels_NHWC=rng.integers(0, 256, (len(images), side, side, 3), dtype=np.uint8),
        image_spans=np.array(images, np.int64).reshape(-1, 4),
        sample_spans=np.array(samples, np.int64).reshape(-1, 3),
    )


def made_batch(
    seed: int = 0, *, keep: object = None, trains_first_label: bool = False, **options: int | bool
) -> PackedBatch:
    """A PackedBatch over `made_arrays`."""
    arrays = made_arrays(seed, **options)  # type: ignore[arg-type]
    rows, empty = len(arrays.ids_BL), int(options.get("empty_rows", 0))
    origins = [Origin("docs", "mmc4", f"r{n}", f"k{n}", "docs-000000", n, 0) for n in range(len(arrays.sample_spans))]
    return PackedBatch.of(
        arrays,
        origins=origins,
        faults=(),
        packs=rows - empty,
        epoch=1,
        step=7,
        tokens_per_image=int(options.get("tokens_per_image", 4)),
        trains_first_label=trains_first_label,
        normalization=MADE_UP,
        keep=keep,
    )


def _sample(
    rng: np.random.Generator, room: int, tokens_per_image: int, cut: bool
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Ids of a sample that fits into `room`, and its images' (first column, columns)."""
    ids: list[int] = [1]
    spans: list[tuple[int, int]] = []
    for _ in range(int(rng.integers(1, 6))):
        left = room - len(ids)
        if rng.random() < 0.5 and left >= tokens_per_image:
            spans.append((len(ids), tokens_per_image))
            ids += [IMAGE_ID] * tokens_per_image
        else:
            ids += rng.integers(3, VOCABULARY, min(left, int(rng.integers(1, 9)))).tolist()
    if cut and spans and sum(spans[-1]) == len(ids) and rng.random() < 0.7:
        gone = int(rng.integers(1, tokens_per_image))
        ids = ids[:-gone]
        spans[-1] = (spans[-1][0], tokens_per_image - gone)
    return np.array(ids, np.int64), spans
