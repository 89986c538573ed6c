"""SPDL in benchmarks/stream.py: its own tar iterator, its decoder (FFmpeg) and its pipeline of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import spdl.io
from spdl.pipeline import PipelineBuilder
from stream_decoders import DECODERS
from stream_peers import BATCH, PASSES, Amount, counted, first_images, jpegs, np, tars


def raw(folder: str, name: str, passes: int) -> Iterator[Amount]:
    """Each tar read whole, then cut by iter_tarfile; members made bytes, samples grouped by key."""

    def samples() -> Iterator[int]:
        for path in tars(folder, name, passes):
            with open(path, "rb") as stream:
                data = stream.read()
            key: str | None = None
            members: dict[str, bytes] = {}
            for member, content in spdl.io.iter_tarfile(data):
                found, suffix = member.split(".", 1)
                if found != key:
                    if members:
                        yield sum(map(len, members.values()))
                    key, members = found, {}
                members[suffix] = bytes(content)
            yield sum(map(len, members.values()))

    return counted(samples())


def pixels_of(jpeg_batch: list[bytes], size: int) -> Any:
    """A batch by SPDL's own decoder, scaled as it is, not padded; bicubic, its default."""
    scaled = spdl.io.get_video_filter_desc(scale_width=size, scale_height=size, scale_mode=None, pix_fmt="rgb24")
    buffer = spdl.io.load_image_batch(jpeg_batch, width=None, height=None, filter_desc=scaled)
    return spdl.io.to_numpy(buffer)


def decoded(folder: str, decoder: str, size: int, images: int, workers: int) -> Iterator[Amount]:
    def source() -> Iterator[bytes]:
        for path in tars(folder, "pairs", PASSES):
            with open(path, "rb") as stream:
                data = stream.read()
            for name, content in spdl.io.iter_tarfile(data):
                if name.endswith(".jpg"):
                    yield bytes(content)

    def by_hand(batch: list[bytes]) -> Any:
        return np.stack([DECODERS[decoder](jpeg, size) for jpeg in batch])

    decode = (lambda batch: pixels_of(batch, size)) if decoder == "spdl" else by_hand
    threads = max(1, workers)
    pipeline = (
        PipelineBuilder()
        .add_source(source())
        .aggregate(BATCH)
        .pipe(decode, concurrency=threads, output_order="input")
        .add_sink(2)
        .build(num_threads=threads)
    )

    def batches() -> Iterator[Any]:
        with pipeline.auto_stop():
            yield from pipeline.get_iterator()

    return first_images(batches(), images)


def pixels(folder: str, size: int, images: int, out: str) -> dict[str, Any]:
    """Writes what SPDL's decoder makes of the first pairs."""
    np.save(out, pixels_of(jpegs(folder)[:images], size))
    return {}


CONTESTANTS = {"raw": raw, "decoded": decoded, "pixels": pixels}
