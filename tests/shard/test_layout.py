from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.made_run import (
    CHAT_RULES,
    MAX_BYTES,
    SEED,
    SETS,
    TEXTS,
    Item,
    MadeRun,
    drawn,
    filtered_parts,
    item,
    jobs_of,
    make_set,
)
from vila_data.core.store import Store
from vila_data.core.tarcodec import BLOCK, member_bytes, walk_file
from vila_data.shard.config import View
from vila_data.shard.write import SampleRefs, even_cuts, plan_shards, shuffle, write_shard


def laid(made: MadeRun, name: str, *, seed: int = SEED, max_bytes: int = MAX_BYTES) -> list[SampleRefs]:
    config = SETS[name]
    return plan_shards(made.store, made.parts[config.corpus], config.view, name, seed, max_bytes)


def order(shards: list[SampleRefs]) -> list[tuple[int, int, tuple[int, ...]]]:
    """(part, row, images) of every sample, over all shards."""
    return [
        (int(refs.part[i]), int(refs.row[i]), tuple(refs.image_index[refs.images_of(i)].tolist()))
        for refs in shards
        for i in range(len(refs))
    ]


def kept_rows(made: MadeRun) -> list[tuple[int, int, Item]]:
    """(part, row, document) of the documents that the rules keep; row 5 of part 0 is no record."""
    rows = [*made.documents[:5], None, *made.documents[5:]]
    return [(n // 15, n % 15, one) for n, one in enumerate(rows) if one is not None and one.whole]


def test_every_kept_record_stands_exactly_once(made: MadeRun) -> None:
    found = order(laid(made, "docs"))
    assert sorted((part, row) for part, row, _ in found) == [(part, row) for part, row, _ in kept_rows(made)]
    assert len(found) == 37
    images = {(part, row): sorted(images) for part, row, images in found}
    assert images == {(part, row): list(range(len(one.jpegs))) for part, row, one in kept_rows(made)}


def test_every_kept_image_is_a_pair_exactly_once(made: MadeRun) -> None:
    found = order(laid(made, "docs_pairs"))
    wanted = [(part, row, (i,)) for part, row, one in kept_rows(made) for i in range(len(one.jpegs))]
    assert sorted(found) == wanted
    assert len(found) == 114


def test_images_are_in_reading_order_and_those_of_one_sentence_in_their_own(made: MadeRun) -> None:
    items = {(part, row): one for part, row, one in kept_rows(made)}
    shared = 0
    for part, row, images in order(laid(made, "docs")):
        matched = [ref.matched_text_index for ref in items[part, row].record.images]
        assert list(images) == sorted(range(len(matched)), key=lambda i: (matched[i], i))
        shared += len(set(matched)) < len(matched)
    assert shared > 5


def test_the_order_is_shuffled_over_parts(made: MadeRun) -> None:
    parts = [part for part, _, _ in order(laid(made, "docs"))]
    assert parts != sorted(parts)
    assert {*parts[:12]} == {0, 1, 2}


def test_the_order_is_of_seed_and_set_name_and_not_of_the_cut(made: MadeRun) -> None:
    first = order(laid(made, "docs"))
    assert order(laid(made, "docs")) == first
    assert order(laid(made, "docs", max_bytes=2 * MAX_BYTES)) == first
    assert order(laid(made, "docs", seed=SEED + 1)) != first
    other = plan_shards(made.store, made.parts["web"], "interleaved", "other", SEED, MAX_BYTES)
    assert order(other) != first
    assert sorted(order(other)) == sorted(first)


def test_the_order_is_not_of_how_the_corpus_was_parted(made: MadeRun, tmp_path: Path) -> None:
    def names(part_size: int) -> list[str]:
        store = Store(str(tmp_path / str(part_size)))
        parts = filtered_parts(store, "web", made.documents, part_size)
        found = order(plan_shards(store, parts, "interleaved", "docs", SEED, MAX_BYTES))
        return [made.documents[part * part_size + row].record.record_id for part, row, _ in found]

    assert names(7) == names(40)


@given(st.integers(0, 300), st.integers(0, 2**63), st.text(max_size=10))
def test_shuffle_is_a_permutation(count: int, seed: int, name: str) -> None:
    found = shuffle(count, seed, name)
    assert sorted(found.tolist()) == list(range(count))
    assert found.tolist() == shuffle(count, seed, name).tolist()


def test_shuffle_stays_what_it_was() -> None:
    """Runs of earlier versions can be resumed: the permutation is part of the format."""
    assert shuffle(10, 17, "docs").tolist() == [5, 4, 8, 7, 3, 0, 6, 9, 1, 2]


SIZES = st.lists(st.one_of(st.integers(0, 3000), st.integers(0, 20_000)), min_size=1, max_size=80)


@settings(max_examples=300, deadline=None)
@given(SIZES, st.integers(1, 15_000))
def test_cuts_cover_all_and_stay_within_the_limit(sizes: list[int], limit: int) -> None:
    cuts = even_cuts(np.array(sizes, np.int64), limit + 2 * BLOCK)
    assert cuts[0] == 0 and cuts[-1] == len(sizes)
    assert cuts == sorted(set(cuts))
    runs = [sizes[first:last] for first, last in itertools.pairwise(cuts)]
    assert all(sum(run) <= limit or len(run) == 1 for run in runs)
    assert len(runs) == fewest(sizes, limit)


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(20_000, 60_000))
def test_the_largest_run_is_as_small_as_can_be(sizes: list[int], limit: int) -> None:
    cuts = even_cuts(np.array(sizes, np.int64), limit + 2 * BLOCK)
    runs = [sizes[first:last] for first, last in itertools.pairwise(cuts)]
    largest = max(map(sum, runs))
    if largest > max(sizes):
        assert fewest(sizes, largest - 1) > len(runs)


def fewest(sizes: list[int], limit: int) -> int:
    """Runs that are needed: each is filled before the next is begun."""
    runs, room = 0, -1
    for size in sizes:
        if not runs or size > room:
            runs, room = runs + 1, limit
        room -= size
    return runs


def test_a_run_may_be_exactly_as_large_as_the_limit() -> None:
    assert even_cuts(np.full(4, 500), 1000 + 2 * BLOCK) == [0, 2, 4]
    assert even_cuts(np.full(4, 500), 999 + 2 * BLOCK) == [0, 1, 2, 3, 4]


def test_some_huge_samples_do_not_cut_up_the_rest() -> None:
    sizes = np.random.default_rng(0).integers(1000, 9000, 20_000)
    sizes[[50, 7000, 7001, 19_999]] = 3_000_000
    cuts = even_cuts(sizes, 1_000_000)
    assert len(cuts) - 1 <= sizes[sizes < 10_000].sum() / 990_000 + 8


@pytest.mark.parametrize("name", list(SETS))
@pytest.mark.parametrize("max_bytes", [20_000, MAX_BYTES, 10**9])
def test_no_shard_is_larger_than_its_limit(made: MadeRun, name: str, max_bytes: int) -> None:
    shards = laid(made, name, max_bytes=max_bytes)
    for job in jobs_of(name, SETS[name], made.parts[SETS[name].corpus], shards):
        receipt = write_shard(made.store, replace(job, name=f"{name}-{max_bytes}"))
        size = next(facts["bytes"] for path, facts in receipt.outputs.items() if path.endswith(".tar"))
        assert size <= max_bytes or len(job.samples) == 1
        assert size <= int(job.samples.size_bound.sum()) + 2 * BLOCK
    assert (len(shards) == 1) == (max_bytes == 10**9)


WORST = [
    *TEXTS,
    "\x01" * 500,
    '"' * 500,
    "\\" * 500,
    "\ud800" * 200,
    "\U0001f6f6" * 300,
    "\u2028" * 300,
    *[""] * 40,
]


@pytest.mark.parametrize("view", ["interleaved", "pairs"])
def test_size_bound_holds_for_each_sample(view: View, tmp_path: Path) -> None:
    """Texts that grow by escaping, many empty ones, many images, no texts but one, long names."""
    store = Store(str(tmp_path))
    corpus, name = "c" * 42, "n" * 48
    items = [item(f"doc-{i}", [text], [0], i) for i, text in enumerate(WORST)]
    items += [item("all", WORST, [i % len(WORST) for i in range(60)], 900)]
    items += [item("images", ["."], [0] * 30, 901), item("last", [*[""] * 3000, "."], [3000], 902)]
    parts = filtered_parts(store, corpus, items, len(items))
    shards = plan_shards(store, parts, view, name, SEED, 10**9)
    assert len(shards) == 1
    (job,) = jobs_of(name, SETS["docs" if view == "interleaved" else "pairs"].model_copy(), parts, shards)
    write_shard(store, job)
    sizes: dict[str, int] = {}
    for member in walk_file(io.BytesIO(store.read(f"shards/{name}/{name}-000000.tar")), "tar"):
        key = member.name.split(".")[0]
        sizes[key] = sizes.get(key, 0) + member_bytes(member.size)
    bounds = job.samples.size_bound.tolist()
    assert len(sizes) == len(bounds) == (len(items) if view == "interleaved" else len(WORST) + 91)
    assert all(size <= bound for size, bound in zip(sizes.values(), bounds, strict=True))


def test_size_bound_holds_for_each_conversation(tmp_path: Path) -> None:
    """Many turns, empty ones, turns that grow by escaping, many images with long names."""
    store = Store(str(tmp_path))
    corpus, name = "c" * 42, "n" * 48
    items = []
    for i, texts in enumerate([*([text, "."] for text in WORST), [*WORST, ""][: 2 * (len(WORST) // 2)], [""] * 4000]):
        texts = [*texts[:-1], texts[-1] + "<image>" * 30] if i % 2 else texts
        made = item(f"chat-{i}", texts, [len(texts) - 1] * 30 if i % 2 else [], i)
        record = replace(
            made.record, kind="conversation", roles=("human", "gpt") * (len(texts) // 2), system=WORST[i % 8]
        )
        items.append(replace(made, record=record))
    parts = filtered_parts(store, corpus, items, len(items), rules=CHAT_RULES)
    (job,) = jobs_of(name, SETS["chat"], parts, plan_shards(store, parts, "conversations", name, SEED, 10**9))
    write_shard(store, job)
    sizes: dict[str, int] = {}
    for member in walk_file(io.BytesIO(store.read(f"shards/{name}/{name}-000000.tar")), "tar"):
        key = member.name.split(".")[0]
        sizes[key] = sizes.get(key, 0) + member_bytes(member.size)
    bounds = job.samples.size_bound.tolist()
    assert len(sizes) == len(bounds) == len(items)
    assert all(size <= bound for size, bound in zip(sizes.values(), bounds, strict=True))


def test_nothing_kept_is_no_shard(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    items = [item("a", ["one"], [0], 1, missing=True), None]
    parts = filtered_parts(store, "web", items, 2)
    for view in ("interleaved", "pairs"):
        assert plan_shards(store, parts, view, "docs", SEED, MAX_BYTES) == []
    assert make_set(store, parts, "docs", SETS["docs"]).samples == 0


def test_pictures_of_the_made_run_differ() -> None:
    assert len({drawn(seed) for seed in range(50)}) == 50
