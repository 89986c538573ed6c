"""Megatron-Energon in benchmarks/stream.py: raw samples, decoded pictures, packed sequences.

Packing follows its documentation: samples sorted by length and joined while they fit, pictures decoded after
samples are selected (postencode_sample), sequences of one length with cumulative lengths. The samples' tokens are
given ready made (benchmarks/stream_data.py), so no time goes into a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    SampleDecoder,
    WorkerConfig,
    basic_sample_keys,
    get_savable_loader,
    get_train_dataset,
    stateless,
)
from megatron.energon.edataclass import edataclass
from stream_decoders import DECODERS
from stream_peers import BATCH, Amount, counted, first_images, np

IMAGE_ID, IGNORED, PAD_ID = -200, -100, 0
BUFFER = 256  # samples from which a pack is chosen


def loader_of(folder: Path, encoder: Any, workers: int, **options: Any) -> Any:
    """Its loader without shuffling inside a shard, and without its collection of garbage at every tenth step."""
    dataset = get_train_dataset(
        folder,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=encoder,
        **options,
    )
    return get_savable_loader(dataset, gc_collect_every_n_steps=0)


# raw


@edataclass
class Raw(Sample):
    members: dict[str, bytes]


@stateless
def cook_raw(crude: Any) -> Raw:
    return Raw(**basic_sample_keys(crude), members={key: value for key, value in crude.items() if key[:2] != "__"})


class RawEncoder(DefaultTaskEncoder):  # type: ignore[misc]
    decoder = None
    cookers = (Cooker(cook_raw),)


def raw(folder: str, name: str, passes: int) -> Iterator[Amount]:
    where = Path(folder, "peers/energon", name)

    def samples() -> Iterator[int]:
        loader = loader_of(where, RawEncoder(), 0, batch_size=None, repeat=True)
        wanted = passes * sum(1 for path in where.glob("*.idx") for _ in range(path.stat().st_size // 8 - 1))
        for number, sample in enumerate(loader, 1):
            yield sum(map(len, sample.members.values()))
            if number == wanted:
                return

    return counted(samples())


# decoded


@edataclass
class Picture(Sample):
    pixels: Any


@stateless
def cook_picture(crude: Any) -> Picture:
    return Picture(**basic_sample_keys(crude), pixels=crude["jpg"])


class PictureEncoder(DefaultTaskEncoder):  # type: ignore[misc]
    """decoder None: bytes come, and `by_hand` decodes them; else Energon's decoder gives Pillow images."""

    cookers = (Cooker(cook_picture),)

    def __init__(self, by_hand: Any, size: int) -> None:
        super().__init__()
        self.by_hand, self.size = by_hand, size
        self.decoder = None if by_hand else SampleDecoder(image_decode="pilrgb")

    @stateless
    def encode_sample(self, sample: Picture) -> Picture:
        if self.by_hand:
            sample.pixels = torch.from_numpy(self.by_hand(sample.pixels, self.size))
        else:
            sample.pixels = torch.from_numpy(np.array(sample.pixels.resize((self.size, self.size))))
        return sample


def decoded(folder: str, decoder: str, size: int, images: int, workers: int) -> Iterator[Amount]:
    by_hand = None if decoder == "pillow" else DECODERS[decoder]
    where = Path(folder, "peers/energon/pairs")
    loader = loader_of(where, PictureEncoder(by_hand, size), workers, batch_size=BATCH, repeat=True)
    return first_images((batch.pixels for batch in loader), images)


# packed


@edataclass
class Tokens(Sample):
    ids: Any
    labels: Any
    images: Any  # JPEGs, then pixels
    length: int


@edataclass
class Packed(Sample):
    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    cu_lengths: torch.Tensor
    pixels: torch.Tensor
    tokens: int


@edataclass
class PackedRows(Sample):
    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    cu_lengths: list[torch.Tensor]
    pixels: torch.Tensor
    tokens: int
    samples: int


class PackingEncoder(DefaultTaskEncoder):  # type: ignore[misc]
    decoder = None

    def __init__(self, decoder: str, size: int, length: int, tokens_per_image: int) -> None:
        super().__init__()
        self.decode, self.size, self.length, self.tokens_per_image = DECODERS[decoder], size, length, tokens_per_image
        self.cookers = (Cooker(self.cook),)

    @stateless
    def cook(self, crude: Any) -> Tokens:
        ids = np.frombuffer(crude["ids"], np.int32)
        jpegs = [crude[f"{place}.jpg"] for place in range(int((ids == IMAGE_ID).sum()))]
        return Tokens(
            **basic_sample_keys(crude),
            ids=ids,
            labels=np.frombuffer(crude["labels"], np.int32),
            images=jpegs,
            length=len(ids) + len(jpegs) * (self.tokens_per_image - 1),
        )

    def select_samples_to_pack(self, samples: list[Tokens]) -> list[list[Tokens]]:
        samples.sort(key=lambda sample: sample.length)
        groups: list[list[Tokens]] = []
        held = self.length + 1
        for sample in samples:
            if held + sample.length > self.length:
                groups.append([])
                held = 0
            groups[-1].append(sample)
            held += sample.length
        return groups

    @stateless
    def postencode_sample(self, sample: Tokens) -> Tokens:
        repeats = np.where(sample.ids == IMAGE_ID, self.tokens_per_image, 1)
        sample.ids, sample.labels = np.repeat(sample.ids, repeats), np.repeat(sample.labels, repeats)
        sample.images = [self.decode(jpeg, self.size) for jpeg in sample.images]
        return sample

    @stateless
    def pack_selected_samples(self, samples: list[Tokens]) -> Packed:
        ids = np.full(self.length, PAD_ID, np.int64)
        labels = np.full(self.length, IGNORED, np.int64)
        positions = np.zeros(self.length, np.int64)
        ends = np.cumsum([sample.length for sample in samples])
        for sample, end in zip(samples, ends.tolist(), strict=True):
            start = end - sample.length
            ids[start:end], labels[start:end] = sample.ids, sample.labels
            positions[start:end] = np.arange(sample.length)
        pixels = [one for sample in samples for one in sample.images]
        shape = (0, self.size, self.size, 3)
        return Packed.derive_from(
            samples[0],
            ids=torch.from_numpy(ids),
            labels=torch.from_numpy(labels),
            positions=torch.from_numpy(positions),
            cu_lengths=torch.from_numpy(np.concatenate(([0], ends)).astype(np.int32)),
            pixels=torch.from_numpy(np.stack(pixels) if pixels else np.zeros(shape, np.uint8)),
            tokens=int(ends[-1]),
        )

    @stateless
    def batch(self, samples: list[Packed]) -> PackedRows:
        return PackedRows.derive_from(
            samples[0],
            ids=torch.stack([sample.ids for sample in samples]),
            labels=torch.stack([sample.labels for sample in samples]),
            positions=torch.stack([sample.positions for sample in samples]),
            cu_lengths=[sample.cu_lengths for sample in samples],
            pixels=torch.cat([sample.pixels for sample in samples]),
            tokens=sum(sample.tokens for sample in samples),
            samples=sum(len(sample.cu_lengths) - 1 for sample in samples),
        )


def packed(folder: str, blend: str, decoder: str, size: int, rows: int, packs: int, workers: int) -> Iterator[Amount]:
    encoder = PackingEncoder(decoder, size, 4096, 576)
    where = Path(folder, "peers/tokens", blend)
    loader = loader_of(where, encoder, workers, batch_size=rows, repeat=True, packing_buffer_size=BUFFER)
    given = 0
    for batch in loader:
        assert batch.ids.shape == (rows, 4096) and batch.pixels.dtype == torch.uint8
        yield {
            "tokens": batch.tokens,
            "images": len(batch.pixels),
            "samples": batch.samples,
            "positions": batch.ids.numel(),
        }
        given += rows
        if given >= packs:
            return


CONTESTANTS = {"raw": raw, "decoded": decoded, "packed": packed}
