"""vila_data in benchmarks/stream.py: open_shards for raw samples, vd.stream for decoded pictures and packed tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from stream_peers import Amount, counted, jpegs

import vila_data as vd

SEQUENCE = 4096


def raw(folder: str, name: str, passes: int) -> Iterator[Amount]:
    def samples() -> Iterator[int]:
        for _ in range(passes):
            for sample in vd.open_shards(Path(folder, "shards", name)):
                yield sum(map(len, sample.members.values()))

    return counted(samples())


def batches(folder: str, blend: str, size: int, fit: str, rows: int, workers: int) -> Iterator[Any]:
    """Batches of one epoch after the other."""
    with vd.stream(
        Path(folder, f"{blend}.yaml"),
        run=folder,
        rank=0,
        world_size=1,
        batch_size=rows,
        num_workers=workers,
        image={"size_px": size, "fit": fit},
    ) as loader:
        for _ in count():
            yield from loader


def decoded(folder: str, size: int, images: int, rows: int, workers: int) -> Iterator[Amount]:
    """The pairs through the whole loader: their packs have 6 or 7 pictures a row, ids, labels and lineage."""
    shown = 0
    for batch in batches(folder, "pairs", size, "resize", rows, workers):
        assert batch.pixels.shape[1:] == (3, size, size) and not batch.faults
        shown += len(batch.pixels)
        yield {"images": len(batch.pixels), "samples": len(batch.origins)}
        if shown >= images:
            return


def packed(folder: str, blend: str, size: int, fit: str, rows: int, packs: int, workers: int) -> Iterator[Amount]:
    given = 0
    for batch in batches(folder, blend, size, fit, rows, workers):
        assert batch.ids.shape == (rows, SEQUENCE) and not batch.faults
        yield {
            "tokens": batch.tokens,
            "images": len(batch.pixels),
            "samples": len(batch.origins),
            "positions": batch.ids.numel(),
        }
        given += batch.packs
        if given >= packs:
            return


def pixels(folder: str, size: int, images: int, out: str) -> dict[str, Any]:
    """Writes what decode_into makes of the first pairs."""
    from vila_data.loader.pixels import ImageOptions, decode_into

    found = np.empty((images, size, size, 3), np.uint8)
    for jpeg, one in zip(jpegs(folder), found, strict=False):
        decode_into(jpeg, ImageOptions(size_px=size, fit="resize"), one)
    np.save(out, found)
    return {}


CONTESTANTS = {"raw": raw, "decoded": decoded, "packed": packed, "pixels": pixels}
