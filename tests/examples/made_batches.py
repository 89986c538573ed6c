"""Packed batches made from samples given as ids, without a loader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vila_data.loader.arrays import BatchArrays
from vila_data.loader.batch import PackedBatch

IMAGE_ID, IGNORED = -200, -100


@dataclass(frozen=True)
class MadeSample:
    """ids with IMAGE_ID for an image; pictures uint8 [k, H, W, 3]; first: its ids before this place are not trained.

    last_columns: columns of the last image, where it is cut.
    """

    ids: tuple[int, ...]
    pictures: NDArray[np.uint8]
    first: int = 1
    last_columns: int | None = None


def made_sample(random: np.random.Generator, words: int, images: int, side: int, vocabulary: int = 200) -> MadeSample:
    """Random words with images at random places between them."""
    ids = random.integers(3, vocabulary, words).tolist()
    for place in sorted(random.integers(0, words, images).tolist(), reverse=True):
        ids.insert(place, IMAGE_ID)
    return MadeSample(tuple(ids), random.integers(0, 256, (images, side, side, 3), dtype=np.uint8))


def pack(rows: Sequence[Sequence[MadeSample]], length: int, tokens_per_image: int, side: int = 64) -> PackedBatch:
    """A batch with a row for each list of samples."""
    shape = (len(rows), length)
    ids, labels = np.full(shape, 2, np.int64), np.full(shape, IGNORED, np.int64)
    positions, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int32)
    bounds, images, samples, pictures = [0], [], [], [np.zeros((0, side, side, 3), np.uint8)]
    for row, members in enumerate(rows):
        at = 0
        for number, sample in enumerate(members):
            start, seen = at, 0
            for place, token in enumerate(sample.ids):
                columns = 1
                if token == IMAGE_ID:
                    seen += 1
                    cut = seen == len(sample.pictures) and sample.last_columns is not None
                    columns = sample.last_columns if cut and sample.last_columns else tokens_per_image
                    images.append((row, at, columns, len(samples)))
                elif place >= sample.first:
                    labels[row, at] = token
                ids[row, at : at + columns] = token
                at += columns
            positions[row, start:at] = np.arange(at - start)
            segments[row, start:at] = number + 1
            samples.append((row, start, at - start))
            pictures.append(sample.pictures)
            bounds.append(row * length + at)
        positions[row, at:] = np.arange(length - at)
        if at < length:
            bounds.append((row + 1) * length)
    arrays = BatchArrays(
        ids, labels, positions, segments, np.array(bounds, np.int32), np.concatenate(pictures),
        np.array(images, np.int64).reshape(-1, 4), np.array(samples, np.int64).reshape(-1, 3),
    )  # fmt: skip
    return PackedBatch.of(arrays, origins=(), faults=(), packs=len(rows), epoch=0, step=0)
