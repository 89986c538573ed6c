"""`open_shards(…).webdataset()`: what webdataset itself reads from the tars, split and shuffled."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader
from webdataset.tariterators import base_plus_ext

from tests.made_run import SETS, MadeRun
from vila_data.core.errors import UsageError
from vila_data.core.store import Store
from vila_data.core.tarcodec import sample_key
from vila_data.shard.read import ShardSetReader, open_shards


def opened(made: MadeRun, name: str) -> ShardSetReader:
    return open_shards(made.store.location(f"shards/{name}"))


def by_webdataset(made: MadeRun, name: str, **options: Any) -> list[dict[str, Any]]:
    tars = sorted(map(str, Path(made.store.location(f"shards/{name}")).glob("*.tar")))
    assert len(tars) > 1
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, **options))
    return [{key: value for key, value in sample.items() if key != "__local_path__"} for sample in samples]


def keys(samples: Iterator[dict[str, Any]]) -> list[str]:
    return [sample["__key__"] for sample in samples]


@pytest.mark.parametrize("name", list(SETS))
def test_samples_are_those_that_webdataset_reads(made: MadeRun, name: str) -> None:
    wanted = by_webdataset(made, name)
    pipeline = opened(made, name).webdataset()
    assert list(pipeline) == list(pickle.loads(pickle.dumps(pipeline))) == wanted
    assert [list(sample) for sample in pipeline] == [list(sample) for sample in wanted], "members in the tar's order"


def test_a_remote_set(made: MadeRun) -> None:
    remote = Store("memory://webdataset")
    for path in made.store.files("shards/docs"):
        remote.commit_bytes(made.store.read(path), path)
    found = list(open_shards("memory://webdataset/shards/docs").webdataset())
    wanted = by_webdataset(made, "docs")
    assert [sample.pop("__url__").startswith("memory://webdataset/shards/docs/docs-0000") for sample in found]
    assert found == [{key: value for key, value in sample.items() if key != "__url__"} for sample in wanted]


def test_decoding(made: MadeRun) -> None:
    found = list(opened(made, "pairs").webdataset(decode="rgb8"))
    by_hand = list(opened(made, "pairs").webdataset().decode("rgb8"))
    assert all(sample["jpg"].dtype == np.uint8 and sample["json"]["caption"] == sample["txt"] for sample in found)
    assert all(np.array_equal(one["jpg"], other["jpg"]) for one, other in zip(found, by_hand, strict=True))


def test_shuffling_is_of_seed_and_epoch(made: MadeRun) -> None:
    reader = opened(made, "pairs")
    plain = keys(reader.webdataset())
    shuffled = reader.webdataset(shuffle=50, seed=3)
    first, second = keys(shuffled), keys(shuffled)
    assert sorted(first) == sorted(second) == sorted(plain)
    assert len({tuple(plain), tuple(first), tuple(second)}) == 3
    assert keys(reader.webdataset(shuffle=50, seed=3)) == first
    assert keys(reader.webdataset(shuffle=50, seed=3, epoch=1)) == second
    assert keys(reader.webdataset(shuffle=50, seed=4)) not in (first, second)


def test_ranks_and_workers_take_whole_shards(made: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = opened(made, "pairs")
    shards = len(reader.manifest.shards)
    assert shards >= 4
    taken: list[dict[str, Any]] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        alone = keys(reader.webdataset())
        loader: Any = DataLoader(reader.webdataset(shuffle=9), batch_size=None, num_workers=2)
        of_rank = list(loader)
        assert sorted(keys(iter(of_rank))) == sorted(alone)
        taken += of_rank
    assert sorted(keys(iter(taken))) == sorted(sample.key for sample in reader)
    monkeypatch.setenv("WORLD_SIZE", str(shards + 1))
    monkeypatch.setenv("RANK", str(shards))
    with pytest.raises(UsageError, match=rf"the set has {shards} shards, fewer than one per worker of each rank"):
        next(iter(reader.webdataset()))


@pytest.mark.parametrize("name", ["a.jpg", "a.0.jpg", "d.x/a.json", "d/e/a.tar.gz", "000.seg.png"])
def test_names_are_cut_as_webdataset_cuts_them(name: str) -> None:
    assert sample_key(name) == base_plus_ext(name)
