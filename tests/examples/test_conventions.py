"""The loader where torchdata's StatefulDataLoader and torch.distributed.checkpoint expect a stateful object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.loader.made_stream import opened


def keys(batches: list[Any]) -> list[list[tuple[str, int, int]]]:
    return [[(origin.key, origin.row, origin.pass_) for origin in batch.origins] for batch in batches]


def wrapped(folder: Path, **options: Any) -> StatefulDataLoader:
    return StatefulDataLoader(opened(folder, batch_size=2, **options), batch_size=None, num_workers=0)


def test_a_stateful_data_loader_goes_on_where_it_was(made_folder: Path) -> None:
    expected = list(opened(made_folder, batch_size=2))
    assert len(expected) > 6
    first = wrapped(made_folder)
    batches = iter(first)
    begun = [next(batches) for _ in range(3)]
    state = json.loads(json.dumps(first.state_dict()))
    second = wrapped(made_folder)
    second.load_state_dict(state)
    rest = list(second)
    assert keys([*begun, *rest]) == keys(expected)
    assert all(torch.equal(one.ids, two.ids) for one, two in zip([*begun, *rest], expected, strict=True))


def test_a_stateful_data_loader_gives_the_next_epoch(made_folder: Path) -> None:
    loader = opened(made_folder, batch_size=2)
    expected = [keys(list(loader)), keys(list(loader))]
    data = wrapped(made_folder)
    assert [keys(list(data)), keys(list(data))] == expected and expected[0] != expected[1]


def test_a_distributed_checkpoint_keeps_the_place(made_folder: Path, tmp_path: Path) -> None:
    expected = list(opened(made_folder, batch_size=2))
    loader = opened(made_folder, batch_size=2)
    batches = iter(loader)
    begun = [next(batches) for _ in range(2)]
    dcp.save({"loader": loader}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    other = opened(made_folder, batch_size=4)
    dcp.load({"loader": other}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    rest = list(other)
    flat = [sample for batch in keys([*begun, *rest]) for sample in batch]
    assert flat == [sample for batch in keys(expected) for sample in batch]
    loader.close()
