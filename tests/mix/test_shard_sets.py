"""Opening a blend's shard sets: a few files per set, however many shards it has."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.benchmark_files import benchmark
from tests.mix.made_lengths import blend
from vila_data.core.errors import UsageError
from vila_data.core.store import Store
from vila_data.encode.token_set import TokenSet
from vila_data.mix.sequence import PackSequence
from vila_data.mix.shard_sets import read_blended_sets

TWICE = blend(
    weight_unit="samples",
    sources=[
        {"shards": "pairs", "weight": 1},
        {"shards": "pairs", "weight": 2, "subset": {"where": "text_tokens < 30"}},
    ],
)


@pytest.fixture(scope="module")
def opening() -> ModuleType:
    """benchmarks/opening.py, whose made run this is."""
    return benchmark("opening")


@pytest.mark.parametrize("remote", [False, True])
def test_opening_reads_manifests_and_lengths_alone(
    opening: ModuleType, remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file of a shard is there, none is asked for, and requests are as many for 3 shards as for 300."""
    asked: dict[int, list[str]] = {}
    for shards in (3, 300):
        url = f"memory://opening-{shards}" if remote else str(tmp_path / str(shards))
        opening.make_run(url, shards, 20)
        asked[shards] = []
        at = Store._at

        def noted(store: Store, path: str, shards: int = shards, at: object = at) -> str:
            asked[shards].append(path)
            return str(at(store, path))  # type: ignore[operator]

        with monkeypatch.context() as patched:
            patched.setattr(Store, "_at", noted)
            sets = read_blended_sets(Store(url), TWICE, opening.PACK, opening.NotedTokenizer())
            sequence = PackSequence(TWICE, opening.PACK, sets.lengths, seed=0, epoch=0)
            assert sum(len(planned.samples) for planned in sequence) > 10 * shards
    assert asked[3] == asked[300] and len(set(asked[300])) == 3
    assert all(path.endswith(("manifest.json", "lengths.parquet")) for path in asked[300])


def test_what_is_opened_of_each_source(opening: ModuleType, tmp_path: Path) -> None:
    opening.make_run(str(tmp_path), 5, 100)
    store = Store(str(tmp_path))
    sets = read_blended_sets(store, TWICE, opening.PACK, opening.NotedTokenizer())
    assert len(sets.sets) == len(sets.lengths) == 2 and sets.sets[0] == sets.sets[1]
    assert pickle.loads(pickle.dumps(sets.sets)) == sets.sets
    opened = sets.sets[0]
    assert opened.name == opened.shards.name == opened.tokens.name == "pairs" and len(opened.shards.shards) == 5
    assert TokenSet(store, opened.tokens, opened.token_directory).lengths(["row"]).num_rows == 500
    for lengths in sets.lengths:
        assert lengths.tokens.dtype == lengths.images.dtype == np.int32 and lengths.ends.dtype == np.int64
        assert lengths.tokens.flags.c_contiguous and lengths.images.flags.c_contiguous
    (counts,) = sets.subsets
    assert 0 < counts.kept < counts.samples == 500
    assert counts.kept == int((sets.lengths[1].tokens > 0).sum()) == sets.lengths[1].totals.samples
    assert sets.lengths[0].totals.samples == 500


def test_a_missing_set(opening: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="set 'pairs' is not finished"):
        read_blended_sets(Store(str(tmp_path)), TWICE, opening.PACK, opening.NotedTokenizer())
