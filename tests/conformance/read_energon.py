"""Read a set with Megatron-Energon's loader; run by that environment's python.

    python read_energon.py SET_FOLDER NUM_WORKERS

Prints JSON: Energon's version, and each sample as its key, its class and its pieces in order,
a text as itself and an image as [height, width].
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
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


def main(folder: str, workers: int) -> None:
    dataset = get_train_dataset(
        folder,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        repeat=False,
        task_encoder=Encoder(),
    )
    samples = []
    for sample in get_savable_loader(dataset):
        pieces = sample.sequence if hasattr(sample, "sequence") else [sample.image, sample.caption]
        samples.append([sample.__key__, type(sample).__name__, [piece(one) for one in pieces]])
    print(json.dumps({"version": version("megatron-energon"), "samples": samples}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
