"""VILA v1.0's order against a plain reading of its rule: single items, evenly interleaved, alike on all ranks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.mix.made_lengths import CAPACITY, blend, lengths
from vila_data.core.errors import UsageError
from vila_data.encode.config import PackConfig
from vila_data.mix.config import BlendConfig
from vila_data.mix.lengths import Lengths, Samples
from vila_data.mix.rank_share import Position, RankShare, rank_batches
from vila_data.mix.released import (
    ReleasedPlanner,
    interleave,
    packed_micro_batches,
    released_blend,
    rows_at_most,
)
from vila_data.mix.sequence import PackSequence, PlannedPacks

Sample = tuple[int, int, int, int]
"""Source, pass, shard, row."""


def released(repeats: list[int], **more: Any) -> BlendConfig:
    sources = [{"shards": f"set{index}", "weight": 1, "repeat": repeat} for index, repeat in enumerate(repeats)]
    return blend(**({"weight_unit": "samples", "on_exhaustion": "stop", "sources": sources} | more))


def pack(micro_batch: int | None = None) -> PackConfig:
    return PackConfig(
        tokenizer="none",
        sequence_length=CAPACITY,
        tokens_per_image=9,
        semantics="released_code",
        micro_batch=micro_batch,
    )


# The rule, read plainly: slow, of lists, and of nothing that the planner uses.


def plain_items(held: Lengths, each: int) -> list[list[tuple[int, int]]]:
    """A set's items: `each` samples that follow one another, as (shard, row)."""
    rows = []
    first = 0
    for shard, end in enumerate(held.ends.tolist()):
        rows += [(shard, place - first) for place in range(first, end) if held.tokens[place] > 0]
        first = end
    return [rows[at : at + each] for at in range(0, len(rows) - each + 1, each)]


def plain_slots(sizes: list[int]) -> list[tuple[int, int]]:
    """(set, how many of it came before) of each position of a rank: the largest set first takes places evenly."""
    slots: list[tuple[int, int] | None] = [None] * sum(sizes)
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        free = [at for at, slot in enumerate(slots) if slot is None]
        for item in range(sizes[number]):
            slots[free[item * len(free) // sizes[number]]] = (number, item)
    return [slot for slot in slots if slot is not None]


def plain_rank(
    items: list[list[list[tuple[int, int]]]], rank: int, ranks: int, batch: int
) -> tuple[list[int], list[list[list[tuple[int, int]]]]]:
    """The set at each position of a rank, and the rank's stretch of each set's items."""
    shares = [len(found) // (ranks * batch) * batch for found in items]
    stretches = [found[rank * share : (rank + 1) * share] for found, share in zip(items, shares, strict=True)]
    return [number for number, _ in plain_slots(shares)], stretches


def plain_packs(tokens: list[int]) -> list[list[int]]:
    """A micro-batch's packs: the longest first, next-fit up to the longest."""
    order = sorted(range(len(tokens)), key=lambda at: (-tokens[at], at))
    packs: list[list[int]] = []
    for at in order:
        if not packs or sum(tokens[one] for one in packs[-1]) + tokens[at] > tokens[order[0]]:
            packs.append([])
        packs[-1].append(at)
    return packs


# What was planned, as lists.


def samples_of(run: Samples) -> list[Sample]:
    columns = (run.source, run.pass_, run.shard, run.row)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def micro_batches_of(plan: ReleasedPlanner) -> list[list[Sample]]:
    found = []
    while (block := plan.next_block()) is not None:
        samples, ends = samples_of(block.samples), block.micro_batches
        assert ends is not None and ends[-1] == len(samples)
        found += [samples[first:last] for first, last in zip([0, *ends.tolist()], ends.tolist(), strict=False)]
    return found


def items_of(samples: list[Sample], each: list[int]) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """(source, pass, its samples) of consecutive items."""
    found, at = [], 0
    while at < len(samples):
        source, pass_ = samples[at][:2]
        taken = samples[at : at + each[source]]
        assert all(sample[:2] == (source, pass_) for sample in taken)
        found.append((source, pass_, [sample[2:] for sample in taken]))
        at += each[source]
    return found


@given(
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from([1, 4]), st.integers(1, 2)), min_size=1, max_size=4),
    st.sampled_from([1, 2, 8]),
    st.integers(1, 8),
    st.sampled_from([40, 65_536]),
    st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=120, deadline=None)
def test_the_order_is_that_of_the_rule(
    sets: list[tuple[int, int, int]], ranks: int, batch: int, block: int, absent: float
) -> None:
    sets = [(max(1, samples), each, repeat) for samples, each, repeat in sets]
    held = [lengths(samples, shards=3, seed=at, absent=absent) for at, (samples, _, _) in enumerate(sets)]
    each = [entry[1] for entry in sets]
    visits = [(source, pass_) for source, (_, _, repeat) in enumerate(sets) for pass_ in range(repeat)]
    items = [plain_items(held[source], each[source]) for source, _ in visits]

    def plan() -> ReleasedPlanner:
        config = released([repeat for _, _, repeat in sets])
        of: dict[str, Any] = {"micro_batch": batch, "ranks": ranks, "item_samples": each, "block_samples": block}
        return ReleasedPlanner(config, held, seed=3, epoch=1, capacity=CAPACITY, **of)

    if not plain_rank(items, 0, ranks, batch)[0]:
        with pytest.raises(UsageError, match="no source has a micro-batch"):
            plan()
        return
    planner = plan()
    found = micro_batches_of(planner)
    assert len(found) % ranks == 0
    shuffles = []
    for rank in range(ranks):
        of_rank = [items_of(one, each) for one in found[rank::ranks]]
        assert all(len(one) == batch for one in of_rank)
        taken = [item for one in of_rank for item in one]
        sources, stretches = plain_rank(items, rank, ranks, batch)
        assert [visits.index((source, pass_)) for source, pass_, _ in taken] == sources
        shuffled = []
        for number, visit in enumerate(visits):
            mine = [item for source, pass_, item in taken if (source, pass_) == visit]
            assert sorted(mine) == stretches[number]
            shuffled.append([stretches[number].index(item) for item in mine])
        shuffles.append(shuffled)
    assert all(shuffled == shuffles[0] for shuffled in shuffles), "ranks shuffle their stretches alike"

    left_out = {event.source: event.followed for event in planner.events.events if event.kind == "omitted"}
    expected = {}
    for source, (entry, one) in enumerate(zip(held, each, strict=True)):
        rest = int((entry.tokens > 0).sum()) - len(plain_items(entry, one)) // (ranks * batch) * batch * ranks * one
        if rest:
            expected[f"set{source}"] = rest
    assert {label: int(text.split()[0]) for label, text in left_out.items()} == expected


@pytest.mark.parametrize(("ranks", "steps"), [(1, 62), (2, 30), (8, 6)])
def test_documents_and_pairs(ranks: int, steps: int) -> None:
    """250 documents and 1,000 pairs are 250 items each: every step has four of both on every rank."""
    config = released_blend(released([1, 1]), pack(), ["interleaved", "pairs"], ranks)
    held = [lengths(250, seed=1), lengths(1_000, seed=2, shards=2)]
    sequence = PackSequence(config, pack(), held, seed=0, epoch=0)
    blocks = list(sequence)
    for rank in range(ranks):
        plans = list(rank_batches(blocks, RankShare(rank, ranks, 1), Position()))
        assert len(plans) == steps
        assert all(np.bincount(plan.samples.source).tolist() == [4, 16] for plan in plans)
    report = sequence.report()
    assert [source.samples for source in report.sources] == [steps * 4 * ranks, steps * 16 * ranks]
    assert [source.target for source in report.sources] == pytest.approx([0.2, 0.8])
    assert [event.kind for event in report.events] == ["omitted", "omitted", "ended"]


def test_two_equal_sets_take_turns_on_every_rank() -> None:
    planner = ReleasedPlanner(
        released([1, 1]), [lengths(128)] * 2, seed=0, epoch=0, capacity=CAPACITY, micro_batch=8, ranks=2
    )
    found = micro_batches_of(planner)
    assert len(found) == 32 and all([sample[0] for sample in one] == [0, 1] * 4 for one in found)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_interleaving_by_arithmetic_equals_interleaving_by_lists(sizes: list[int]) -> None:
    sizes = sorted(sizes, reverse=True)
    which, item = interleave(np.asarray(sizes, np.int64), np.arange(sum(sizes)))
    assert list(zip(which.tolist(), item.tolist(), strict=True)) == plain_slots(sizes)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_micro_batches_of_any_size_are_packed_by_themselves(tokens: list[list[int]]) -> None:
    flat = np.asarray([one for batch in tokens for one in batch], np.int32)
    zeros = np.zeros(len(flat), np.int32)
    ends = np.cumsum([len(batch) for batch in tokens])
    packs, packs_to = packed_micro_batches(Samples(zeros.astype(np.int16), zeros, zeros, zeros, flat, zeros), ends)
    expected, counts = [], []
    for batch, end in zip(tokens, ends.tolist(), strict=True):
        found = plain_packs(batch)
        expected += [[at + end - len(batch) for at in one] for one in found]
        counts.append(len(found))
    members, bounds = packs.members.tolist(), packs.ends.tolist()
    assert [members[first:last] for first, last in zip([0, *bounds], bounds, strict=False)] == expected
    assert packs_to.tolist() == np.cumsum(counts).tolist()


def sequence_of(ranks: int, state: dict[str, Any] | None = None) -> list[PlannedPacks]:
    """Several blocks of three sets, read by some ranks from the beginning, or from a state on."""
    held = [lengths(40_000, seed=1), lengths(110_000, seed=2, shards=3), lengths(3_000, seed=3)]
    config = released_blend(released([1, 1, 2]), pack(), ["interleaved", "pairs", "conversations"], ranks)
    sequence = PackSequence(config, pack(), held, seed=0, epoch=0)
    if state is not None:
        sequence.restore(json.loads(json.dumps(state)))
    return list(sequence)


def taken(blocks: list[PlannedPacks], world: tuple[int, int], start: Position) -> list[list[Any]]:
    return [list(rank_batches(blocks, RankShare(rank, *world), start)) for rank in range(world[0])]


def consumed(ranks: list[list[Any]]) -> list[Sample]:
    return [sample for plans in ranks for plan in plans for sample in samples_of(plan.samples)]


@pytest.mark.parametrize(("world", "after"), [((2, 3), (2, 3)), ((2, 3), (8, 1)), ((8, 2), (3, 2))])
def test_a_stop_and_another_world_lose_nothing_and_repeat_nothing(
    world: tuple[int, int], after: tuple[int, int]
) -> None:
    blocks = sequence_of(world[0])
    assert len(blocks) > 2
    whole = taken(blocks, world, Position())
    assert len({len(plans) for plans in whole}) == 1
    assert all(step[0].after == other.after for step in zip(*whole, strict=True) for other in step)
    for stop in (1, len(whole[0]) // 2, len(whole[0]) - 1):
        place = whole[0][stop - 1].after
        rest = taken(sequence_of(after[0], place.plan), after, place)
        assert len({len(plans) for plans in rest}) == 1
        before = [plans[:stop] for plans in whole]
        assert sorted(consumed(before) + consumed(rest)) == sorted(consumed(whole))
        if after == world:
            for plans, others in zip(whole, rest, strict=True):
                assert samples_of(plans[stop].samples) == samples_of(others[0].samples)


def test_all_ranks_meet_the_same_sources_at_every_step() -> None:
    for ranks in (1, 2, 8):
        for step in zip(*taken(sequence_of(ranks), (ranks, 1), Position()), strict=True):
            counts = [np.bincount(plan.samples.source, minlength=3).tolist() for plan in step]
            assert counts == counts[:1] * ranks
            sequences = [sorted(samples_of(plan.samples)) for plan in step]
            assert len({sample for one in sequences for sample in one}) == sum(map(len, sequences))


def test_an_epoch_has_its_own_shuffle_of_the_same_items() -> None:
    plans = [
        ReleasedPlanner(released([1]), [lengths(500)], seed=0, epoch=epoch, capacity=CAPACITY, micro_batch=8)
        for epoch in (0, 0, 1)
    ]
    one, again, other = ([sample for found in micro_batches_of(plan) for sample in found] for plan in plans)
    assert one == again != other and sorted(one) == sorted(other)


def test_states_of_another_plan_and_of_an_older_order_are_refused() -> None:
    def plan(seed: int) -> ReleasedPlanner:
        return ReleasedPlanner(released([1]), [lengths(50)], seed=seed, epoch=0, capacity=CAPACITY, micro_batch=4)

    state = plan(0).state()
    for change, said in (
        ({"version": 2}, "version 2, but this version of vila-data reads 4"),
        ({"fingerprint": "x"}, "differ"),
        ({"ranks": "many"}, "damaged"),
    ):
        with pytest.raises(UsageError, match=said):
            plan(0).restore(state | change)
    with pytest.raises(UsageError, match="differ"):
        plan(1).restore(state)


def test_what_the_order_needs_to_know_goes_with_the_blend_of_released_code_alone() -> None:
    config = released([1, 1])
    found = released_blend(config, pack(4), ["pairs", "conversations"], 8)
    assert (found.model_dump(exclude={"ranks", "item_samples"}), type(config)) == (config.model_dump(), BlendConfig)
    assert rows_at_most(found, pack(4), 2) == 2 * 4 * 4
    improved = PackConfig(tokenizer="none", sequence_length=CAPACITY, tokens_per_image=9)
    assert released_blend(config, improved, ["pairs", "conversations"], 8) is config
    assert rows_at_most(config, improved, 2) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_unit": "images"}, "weight_unit must be samples, found images"),
        ({"total_packs": 9}, "remove total_packs"),
        ({"sources": [{"shards": "a", "weight": 2}]}, "weight of a must be 1, found 2.0"),
        ({"sources": [{"shards": "a", "weight": 1, "repeat": [1, 2]}]}, "set repeat of a to one number"),
        ({"sources": [{"shards": "a", "weight": 1}], "on_exhaustion": "repeat"}, "set repeat of a to one number"),
        (
            {
                "sources": [
                    {"weight": 1, "blend": {"weight_unit": "samples", "sources": [{"shards": "a", "weight": 1}]}}
                ]
            },
            "nested blends",
        ),
    ],
)
def test_unsupported_blends_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ReleasedPlanner(released([1], **change), [lengths(50)], seed=0, epoch=0, capacity=CAPACITY, micro_batch=4)


def test_a_set_of_less_than_a_micro_batch_for_each_rank_is_left_out_and_counted() -> None:
    planner = ReleasedPlanner(
        released([1, 1]), [lengths(31), lengths(64)], seed=0, epoch=0, capacity=CAPACITY, micro_batch=8, ranks=4
    )
    assert {sample[0] for one in micro_batches_of(planner) for sample in one} == {1}
    (event,) = (event for event in planner.events.events if event.kind == "omitted")
    assert (event.source, event.followed) == (
        "set0",
        "31 samples per pass do not fill a micro-batch of 8 items for every rank at world size 4",
    )
    with pytest.raises(
        UsageError, match="no source has a micro-batch of 4 items for every rank at world size 1; the largest has 3"
    ):
        ReleasedPlanner(released([1]), [lengths(3)], seed=0, epoch=0, capacity=CAPACITY, micro_batch=4)
