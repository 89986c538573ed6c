"""The loader on a made run: the same batches however it is run, exactly resumed, and what they hold."""

from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from torch.utils.data import DataLoader

import vila_data as vd
from tests.loader.made_stream import BLEND, IMAGE, PACK, opened, recipe_of
from vila_data.core.errors import UsageError
from vila_data.encode.sequence import IGNORED, IMAGE_ID
from vila_data.encode.tokenizer import load_tokenizer
from vila_data.encode.tokens import open_tokens
from vila_data.loader.batch import PackedBatch
from vila_data.loader.pixels import ImageOptions, decode_into

TENSORS = ("ids", "labels", "positions", "segments", "cu_seqlens", "pixels", "image_spans", "sample_spans")


def same(left: PackedBatch, right: PackedBatch) -> bool:
    tensors = all(torch.equal(getattr(left, name), getattr(right, name)) for name in TENSORS)
    return tensors and left.origins == right.origins and (left.epoch, left.packs) == (right.epoch, right.packs)


def rows_of(batch: PackedBatch) -> list[tuple[Any, ...]]:
    """What each real pack of a batch holds, whatever batch it stands in."""
    rows = batch.sample_spans[:, 0].tolist()
    return [
        (tuple(batch.ids[row].tolist()), tuple(o for o, r in zip(batch.origins, rows, strict=True) if r == row))
        for row in range(batch.packs)
    ]


@pytest.fixture(scope="module")
def epoch(made_folder: Path) -> list[PackedBatch]:
    """The first epoch, a pack a batch."""
    return list(opened(made_folder))


def test_an_epoch_gives_every_sample_of_the_plan_once(made_folder: Path, epoch: list[PackedBatch]) -> None:
    keys = [origin.key for batch in epoch for origin in batch.origins]
    manifests = [vd.open_shards(made_folder / "run" / "shards" / name).manifest for name in ("docs", "pairs", "chat")]
    assert len(keys) == len(set(keys)) > 100
    assert len(keys) <= sum(manifest.samples for manifest in manifests)
    assert {origin.set for batch in epoch for origin in batch.origins} == {"docs", "pairs", "chat"}
    assert len(epoch) > 20 and all(batch.packs == 1 and not batch.faults for batch in epoch)


def test_batches_hold_what_token_files_and_shards_hold(made_folder: Path, epoch: list[PackedBatch]) -> None:
    recipe = recipe_of(made_folder)
    assert recipe.pack is not None
    tokenizer = load_tokenizer(recipe.pack.tokenizer)
    shards = {name: vd.open_shards(made_folder / "run" / "shards" / name) for name in ("docs", "pairs", "chat")}
    store = vd.core.store.Store(str(made_folder / "run"))  # type: ignore[attr-defined]
    tokens = {name: open_tokens(store, name, recipe.pack, tokenizer) for name in shards}
    samples = {sample.key: sample for reader in shards.values() for sample in reader}
    pictures = 0
    for batch in epoch:
        image = 0
        for number, (origin, (row, first, columns)) in enumerate(
            zip(batch.origins, batch.sample_spans.tolist(), strict=True)
        ):
            shard = int(origin.shard[-10:-4])
            expected = tokens[origin.set].sample(shard, origin.row)
            assert (expected.key, expected.record_id) == (origin.key, origin.record_id)
            ids, labels = [], []
            for one, label in zip(expected.ids.tolist(), expected.labels.tolist(), strict=True):
                times = PACK["tokens_per_image"] if one == IMAGE_ID else 1
                ids += [one] * times  # type: ignore[operator]
                labels += [label] * times  # type: ignore[operator]
            place = slice(first, first + columns)
            assert batch.ids[row, place].tolist() == ids and batch.labels[row, place].tolist() == labels
            assert batch.positions[row, place].tolist() == list(range(columns))
            assert len(set(batch.segments[row, place].tolist())) == 1
            members = samples[origin.key].members
            for name in expected.images.tolist():
                at_row, at, width, sample = batch.image_spans[image].tolist()
                assert (at_row, sample, width) == (row, number, 16)
                assert (batch.ids[row, at : at + width] == IMAGE_ID).all()
                pixels = np.empty((32, 32, 3), np.uint8)
                decode_into(members.get(f"{name}.jpg", members.get("jpg", b"")), ImageOptions(**IMAGE), pixels)
                assert np.array_equal(batch.pixels[image].permute(1, 2, 0).numpy(), pixels)
                image += 1
        pictures += image
        assert image == len(batch.pixels) == int((batch.ids == IMAGE_ID).sum()) // 16
        padding = batch.segments == 0
        assert (batch.ids[padding] == tokenizer.pad_id).all() and (batch.labels[padding] == IGNORED).all()
        bounds = batch.cu_seqlens.tolist()
        assert bounds[0] == 0 and bounds[-1] == 512 and batch.max_seqlen == int(np.diff(bounds).max())
        assert set(bounds) >= {first for _, first, _ in batch.sample_spans.tolist()}
    assert pictures > 100


@pytest.mark.parametrize(("workers", "prefetch_mb"), [(1, 512), (2, 512), (3, 0)])
def test_batches_are_the_same_under_any_number_of_workers(
    made_folder: Path, epoch: list[PackedBatch], workers: int, prefetch_mb: int
) -> None:
    with opened(made_folder, num_workers=workers, prefetch_mb=prefetch_mb) as loader:
        found = list(loader)
    assert len(found) == len(epoch)
    assert all(same(one, other) for one, other in zip(found, epoch, strict=True))


@given(
    worlds=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_worlds_may_change_at_any_step(
    made_folder: Path, epoch: list[PackedBatch], worlds: list[tuple[int, int, int]]
) -> None:
    """Each world takes some steps and hands its state to the next; the last one goes to the end."""
    state, found = opened(made_folder).state_dict(), []
    for number, (world, batch_size, stop) in enumerate(worlds):
        loaders = [opened(made_folder, rank=rank, world_size=world, batch_size=batch_size) for rank in range(world)]
        for loader in loaders:
            loader.load_state_dict(json.loads(json.dumps(state)))
        for step, batches in enumerate(zip(*loaders, strict=True), 1):
            found += [row for batch in batches for row in rows_of(batch)]
            if step == stop and number < len(worlds) - 1:
                break
        states = [loader.state_dict() for loader in loaders]
        assert all(one == states[0] for one in states)
        state = states[0]
        for loader in loaders:
            loader.close()
        if state["epoch"]:
            break
    assert state["epoch"] == 1
    assert found == [row for batch in epoch for row in rows_of(batch)]


def test_epochs_follow_one_another_in_other_orders(made_folder: Path, epoch: list[PackedBatch]) -> None:
    loader = opened(made_folder)
    first, second = ([row for batch in loader for row in rows_of(batch)] for _ in range(2))
    assert loader.epoch == 2 and loader.state_dict()["packs"] == 0
    assert first == [row for batch in epoch for row in rows_of(batch)]

    def keys(rows: list[Any]) -> list[str]:
        return [origin.key for _, origins in rows for origin in origins]

    assert sorted(keys(first)) == sorted(keys(second)) and keys(first) != keys(second)
    loader.set_epoch(1)
    assert [row for batch in loader for row in rows_of(batch)] == second


def test_steps_are_counted_from_where_the_loader_is(made_folder: Path, epoch: list[PackedBatch]) -> None:
    loader = opened(made_folder, world_size=3, rank=1, batch_size=2)
    assert loader.steps() == -(-len(epoch) // 6)
    batches = iter(loader)
    next(batches)
    assert loader.steps() == -(-len(epoch) // 6) - 1
    assert len(list(batches)) == -(-len(epoch) // 6) - 1


def test_a_state_of_something_else_is_refused_with_what_differs(made_folder: Path, tmp_path: Path) -> None:
    state = opened(made_folder).state_dict()
    assert len(json.dumps(state)) < 1_000
    path = tmp_path / "recipe.yaml"
    heavier = {**BLEND, "sources": [{**BLEND["sources"][0], "weight": 5}, *BLEND["sources"][1:]]}  # type: ignore[index]
    fewer = {**BLEND, "sources": BLEND["sources"][:2]}  # type: ignore[index]
    for change, said in (
        ({"seed": 5}, "seed: the state has 17, this loader has 5"),
        ({"blend": heavier}, "blend: the state has"),
        ({"blend": fewer}, "set 'chat' is not in this stream"),
    ):
        loader = opened(made_folder, recipe_of(path, **change))  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=said):
            loader.load_state_dict(state)
    loader = opened(made_folder)
    for broken, said in (
        ({}, "version must be 2, found None"),
        (None, "expected the mapping returned by state_dict\\(\\), found NoneType"),
        ({**state, "plan": "{"}, "damaged"),
        ({**state, "plan": "5"}, "damaged"),
        ({**state, "packs": -5}, "damaged"),
        ({**state, "packs": 3.5}, "damaged"),
        ({**state, "shards": '{"docs": "x"}'}, "damaged"),
        ({**state, "version": 99}, "99"),
    ):
        with pytest.raises(UsageError, match=said):
            loader.load_state_dict(broken)  # type: ignore[arg-type]


def test_batches_stay_valid_while_they_are_held_and_slots_go_round_when_not(made_folder: Path) -> None:
    with opened(made_folder, num_workers=1, prefetch_mb=0) as loader:
        held = [batch.ids for batch in loader]
    fresh = [batch.ids for batch in opened(made_folder)]
    assert all(torch.equal(one, other) for one, other in zip(held, fresh, strict=True))
    with opened(made_folder, num_workers=1, prefetch_mb=0) as loader:
        places = set()
        for batch in loader:
            places.add(batch.ids.data_ptr())
            del batch
        assert 1 <= len(places) <= 3


def test_a_data_loader_with_workers_around_it_is_refused(made_folder: Path) -> None:
    loader = opened(made_folder)
    assert sum(1 for _ in DataLoader(loader, batch_size=None)) == loader.metrics().batches
    with pytest.raises(UsageError, match="num_workers=0"):
        next(iter(DataLoader(opened(made_folder), batch_size=None, num_workers=1)))


def test_workers_import_no_torch() -> None:
    probe = (
        "import sys, vila_data.loader.worker; "
        "print(sorted({'torch', 'ray', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_what_makes_no_sense_is_refused(made_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="size_pixels"):
        opened(made_folder, image={"size_pixels": 3})
    for wrong in ({"num_workers": -1}, {"prefetch_mb": -1}, {"epoch": -1}, {"batch_size": 0}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))}"):
            opened(made_folder, **wrong)
    with pytest.raises(UsageError, match="rank and world_size must be passed together"):
        opened(made_folder, world_size=None)
    with pytest.raises(UsageError, match="no token files of tokenizer"):
        opened(made_folder, recipe_of(tmp_path / "recipe.yaml", pack={"tokens_per_image": 17}))
    with pytest.raises(UsageError, match=r"is not a run \(it has no recipe.lock.yaml\)"):
        vd.stream(made_folder / "recipe.yaml", tmp_path)
    (tmp_path / "recipe.lock.yaml").write_bytes((made_folder / "run" / "recipe.lock.yaml").read_bytes())
    with pytest.raises(UsageError, match="is missing: set 'docs' is not finished"):
        vd.stream(made_folder / "recipe.yaml", tmp_path)


def test_taking_just_the_steps_there_are_goes_from_epoch_to_epoch(made_folder: Path) -> None:
    """A state behind the last batch is that of the next epoch; nobody has to exhaust the iterator."""
    loader = opened(made_folder, world_size=2, rank=0)
    for epoch in range(3):
        batches = list(itertools.islice(loader, loader.steps()))
        assert {batch.epoch for batch in batches} == {epoch} and len(batches) > 10
        state = loader.state_dict()
        assert (state["epoch"], state["packs"]) == (epoch + 1, 0)
    resumed = opened(made_folder, world_size=3, rank=1)
    resumed.load_state_dict(state)
    assert next(iter(resumed)).epoch == 3


def test_two_loaders_of_a_process_and_copies_of_one(made_folder: Path) -> None:
    loader = opened(made_folder)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    twin = pickle.loads(pickle.dumps(loader))
    assert twin.state_dict() == loader.state_dict()
    assert all(same(*pair) for pair in zip(batches, twin, strict=True))
    registry = CollectorRegistry()
    for name in ("train", "validation"):
        opened(made_folder).prometheus(loader=name).register(registry)
    assert 'vila_data_samples_total{loader="validation",rank="0"} 0.0' in generate_latest(registry).decode()


def test_a_break_counts_what_was_given_alone(made_folder: Path) -> None:
    loader = opened(made_folder, num_workers=1)
    for _ in range(3):
        for number, _ in enumerate(loader, 1):
            if number == 5:
                break
    assert loader.metrics().packs == 15 == loader.state_dict()["packs"]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_device_is_fed_one_batch_ahead_and_the_state_is_of_what_was_given(
    made_folder: Path, epoch: list[PackedBatch], workers: int
) -> None:
    """On the meta device, which takes the way of a GPU without its copies."""
    loader = opened(made_folder, num_workers=workers, device="meta")
    given = []
    for number, batch in enumerate(loader, 1):
        assert batch.ids.is_meta and batch.ids.shape == (1, 512)
        given.append(batch.origins)
        last = number == len(epoch)
        assert (loader.state_dict()["epoch"], loader.state_dict()["packs"]) == ((1, 0) if last else (0, number))
    assert given == [batch.origins for batch in epoch]
    assert loader.metrics().batches == len(epoch)
