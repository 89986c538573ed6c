"""Contestants of benchmarks/stream.py in the project's environment: webdataset, HF datasets, tarfile, the bare loop.

raw: every member's bytes of every sample, no decoding. decoded: batches of BATCH pictures, uint8 [BATCH, size, size, 3].
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from stream_decoders import DECODERS

Amount = dict[str, int]
BATCH = 32
GROUP = 64  # samples between two counts of a raw reader
PASSES = 4  # over the pairs: more than is ever decoded


def tars(folder: str, name: str, passes: int = 1) -> list[str]:
    return sorted(str(path) for path in Path(folder, "shards", name).glob("*.tar")) * passes


def parquets(folder: str, name: str, passes: int = 1) -> list[str]:
    return sorted(str(path) for path in Path(folder, "peers/parquet").glob(f"{name}-*.parquet")) * passes


def counted(sizes: Iterable[int]) -> Iterator[Amount]:
    """Samples and their bytes, GROUP at a time."""
    samples = total = 0
    for size in sizes:
        samples += 1
        total += size
        if samples == GROUP:
            yield {"samples": samples, "bytes": total}
            samples = total = 0
    yield {"samples": samples, "bytes": total}


def first_images(batches: Iterable[Any], images: int) -> Iterator[Amount]:
    """Batches of pixels until there were `images`."""
    shown = 0
    for batch in batches:
        pixels = np.asarray(batch)
        assert pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[3] == 3, pixels.shape
        shown += len(pixels)
        yield {"images": len(pixels)}
        if shown >= images:
            return


# raw


def raw_webdataset(folder: str, name: str, passes: int) -> Iterator[Amount]:
    import webdataset

    dataset = webdataset.WebDataset(tars(folder, name, passes), shardshuffle=False, empty_check=False)
    return counted(sum(len(data) for key, data in sample.items() if key[:2] != "__") for sample in dataset)


def raw_tarfile(folder: str, name: str, passes: int) -> Iterator[Amount]:
    def samples() -> Iterator[int]:
        for path in tars(folder, name, passes):
            with tarfile.open(path) as tar:
                key, size = None, 0
                for member in tar:
                    stream = tar.extractfile(member)
                    assert stream is not None
                    if (found := member.name.split(".", 1)[0]) != key:
                        if key is not None:
                            yield size
                        key, size = found, 0
                    size += len(stream.read())
                if key is not None:
                    yield size

    return counted(samples())


def raw_hf_parquet(folder: str, name: str, passes: int) -> Iterator[Amount]:
    import datasets

    dataset = datasets.load_dataset("parquet", data_files=parquets(folder, name, passes), split="train", streaming=True)
    return counted(len(row["json"]) + sum(map(len, row["images"])) for row in dataset)


def raw_hf_webdataset(folder: str, name: str, passes: int) -> Iterator[Amount]:
    import datasets

    files = {"train": tars(folder, name, passes)}
    dataset = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
    for key, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(key, datasets.Image(decode=False))
    return counted(
        sum(len(value["bytes"]) for value in row.values() if isinstance(value, dict) and "bytes" in value)
        for row in dataset
    )


# decoded: the pairs, one picture a sample


def decoded_webdataset(folder: str, decoder: str, size: int, images: int, workers: int) -> Iterator[Amount]:
    import webdataset

    decode = DECODERS[decoder]
    dataset = webdataset.WebDataset(tars(folder, "pairs", PASSES), shardshuffle=False, empty_check=False)
    if decoder == "pillow":
        pictures = dataset.decode("pilrgb").to_tuple("jpg").map_tuple(lambda one: np.asarray(one.resize((size, size))))
    else:
        pictures = dataset.to_tuple("jpg").map_tuple(lambda jpeg: decode(jpeg, size))
    batches: Any = pictures.batched(BATCH)
    if workers:
        batches = webdataset.WebLoader(batches, batch_size=None, num_workers=workers)
    return first_images((batch[0] for batch in batches), images)


def decoded_hf(folder: str, decoder: str, size: int, images: int, workers: int) -> Iterator[Amount]:
    import datasets

    decode = DECODERS[decoder]
    files = parquets(folder, "pairs", PASSES)
    dataset = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    dataset = dataset.map(
        lambda rows: {"pixels": [decode(one[0], size) for one in rows["images"]]},
        batched=True,
        batch_size=BATCH,
        remove_columns=["key", "json", "images"],
    )
    if workers:
        from torch.utils.data import DataLoader

        return first_images(DataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=stacked), images)
    return first_images((np.stack(batch["pixels"]) for batch in dataset.iter(batch_size=BATCH)), images)


def stacked(rows: list[dict[str, Any]]) -> Any:
    return np.stack([row["pixels"] for row in rows])


def jpegs(folder: str) -> list[bytes]:
    """All pictures of the pairs, in memory."""
    found = []
    for path in tars(folder, "pairs"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    found.append(stream.read())
    return found


def bare_loop(folder: str, decoder: str, size: int, images: int, workers: int) -> Iterator[Amount]:
    """Bytes in memory, the decoder, nothing else; with workers, as many threads."""
    held = jpegs(folder)
    held = (held * (images // len(held) + 2))[: images + BATCH]
    if decoder == "vila_data":
        from vila_data.loader.pixels import ImageOptions, decode_into

        options = ImageOptions(size_px=size, fit="resize")

        def into(jpeg: bytes, out: Any) -> None:
            decode_into(jpeg, options, out)
    else:
        decode = DECODERS[decoder]

        def into(jpeg: bytes, out: Any) -> None:
            out[:] = decode(jpeg, size)

    def batch(first: int) -> Any:
        chosen = held[first : first + BATCH]
        out = np.empty((len(chosen), size, size, 3), np.uint8)
        for jpeg, pixels in zip(chosen, out, strict=True):
            into(jpeg, pixels)
        return out

    starts = range(0, len(held), BATCH)
    if not workers:
        return first_images(map(batch, starts), images)
    return first_images(ThreadPoolExecutor(workers).map(batch, starts), images)


CONTESTANTS = {
    "raw_webdataset": raw_webdataset,
    "raw_tarfile": raw_tarfile,
    "raw_hf_parquet": raw_hf_parquet,
    "raw_hf_webdataset": raw_hf_webdataset,
    "decoded_webdataset": decoded_webdataset,
    "decoded_hf": decoded_hf,
    "bare_loop": bare_loop,
}
