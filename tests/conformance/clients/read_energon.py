"""Read a set or a blend with Megatron-Energon's loader, from the start or from a saved state.

    python read_energon.py OUT DATASET WORKERS [--shuffle N] [--take N] [--save STATE] [--restore STATE] [--repeat]

Writes JSON: Energon's version, and each sample as its key, its class and its pieces in order, a text as itself and an image
as [height, width].
"""

from __future__ import annotations

import argparse
import json
import pickle
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    InterleavedSample,
    WorkerConfig,
    basic_sample_keys,
    get_savable_loader,
    get_train_dataset,
    stateless,
)


@stateless
def cooked(raw: Any) -> InterleavedSample:
    """A conversation as a user's own cooker may make it: the turns' words, then the images."""
    value = raw["json"]
    pictures = [raw[member.split(".", 1)[1]] for member in value["images"]]
    return InterleavedSample(
        **basic_sample_keys(raw), sequence=[*(turn["value"] for turn in value["conversations"]), *pictures]
    )


class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
    """Conversations are crude data; other sets have a class of their own."""

    cookers = (Cooker(cooked),)


def piece(value: Any) -> str | list[int]:
    if isinstance(value, str):
        return value
    channels, height, width = value.shape
    assert channels == 3 and value.is_floating_point() and 0 <= float(value.min()) <= float(value.max()) <= 1
    return [height, width]


def loader(options: argparse.Namespace) -> Any:
    dataset = get_train_dataset(
        options.dataset,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=options.workers),
        batch_size=None,
        shuffle_buffer_size=options.shuffle,
        max_samples_per_sequence=None if options.shuffle is None else options.shuffle,
        repeat=options.repeat,
        task_encoder=Encoder(),
    )
    return get_savable_loader(dataset)


def main(options: argparse.Namespace) -> None:
    source = loader(options)
    if options.restore:
        source.restore_state_rank(pickle.loads(options.restore.read_bytes()))
    samples = []
    for sample in islice(source, options.take):
        pieces = sample.sequence if hasattr(sample, "sequence") else [sample.image, sample.caption]
        samples.append([sample.__key__, type(sample).__name__, [piece(one) for one in pieces]])
    if options.save:
        options.save.write_bytes(pickle.dumps(source.save_state_rank()))
    options.out.write_text(json.dumps({"version": version("megatron-energon"), "samples": samples}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("workers", type=int)
    parser.add_argument("--shuffle", type=int)
    parser.add_argument("--take", type=int)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--restore", type=Path)
    parser.add_argument("--repeat", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
