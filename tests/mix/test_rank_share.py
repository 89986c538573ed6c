"""Which packs a rank takes: each pack of an epoch once, in one order, for any number of ranks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.mix.made_lengths import CAPACITY, blend, cases
from tests.mix.test_sequence import pack
from vila_data.core.errors import UsageError
from vila_data.mix.config import BlendConfig
from vila_data.mix.lengths import Lengths
from vila_data.mix.rank_share import BatchPlan, Position, RankShare, rank_batches
from vila_data.mix.sequence import PackSequence, PlannedPacks

Case = tuple[BlendConfig, list[Lengths]]
Pack = tuple[tuple[int, ...], ...]


def sequence(case: Case, start: Position = Position()) -> PackSequence:  # noqa: B008 - it is frozen
    made = PackSequence(*case[:1], pack(), case[1], seed=3, epoch=1)
    if start.plan is not None:
        made.restore(start.plan)
    return made


def packs_of(plan: BatchPlan | Any) -> list[Pack]:
    samples = list(zip(*(column.tolist() for column in plan.samples.columns()), strict=True))
    ends = plan.ends.tolist()
    return [tuple(samples[first:last]) for first, last in zip([0, *ends], ends, strict=False)]


def packs_in(blocks: list[PlannedPacks]) -> list[Pack]:
    return [one for planned in blocks for one in packs_of(planned)]


def from_place(case: Case, blocks: list[PlannedPacks], place: Position) -> list[PlannedPacks]:
    """The epoch's blocks from a position on, as they are planned when it is restored."""
    if place.plan is None:
        return blocks
    (number,) = (number for number, planned in enumerate(blocks) if planned.first_pack == place.plan["packs"])
    again = next(iter(sequence(case, place)))
    assert (again.first_pack, packs_of(again)) == (blocks[number].first_pack, packs_of(blocks[number]))
    return blocks[number:]


def steps_of(
    blocks: list[PlannedPacks], world: tuple[int, int], start: Position, workers: int
) -> list[list[BatchPlan]]:
    """For each rank of (world size, batch size), its batches in order, made by `workers` that take turns."""
    ranks = []
    for rank in range(world[0]):
        share = RankShare(rank, *world)
        turns = [
            list(rank_batches(blocks, share, start, first_step=number, stride=workers)) for number in range(workers)
        ]
        ranks.append(sorted((plan for turn in turns for plan in turn), key=lambda plan: plan.step))
    return ranks


def consumed(ranks: list[list[BatchPlan]], steps: int) -> list[Pack]:
    return [one for step in range(steps) for plans in ranks for one in packs_of(plans[step])]


worlds = st.tuples(st.integers(1, 9), st.integers(1, 4))


@given(cases(), worlds, worlds, st.integers(1, 4), st.integers(1, 4), st.data())
@settings(max_examples=20, deadline=None)
def test_a_stop_at_any_step_and_another_world_lose_nothing_and_repeat_nothing(
    case: Case, before: tuple[int, int], after: tuple[int, int], workers: int, others: int, data: st.DataObject
) -> None:
    blocks = list(sequence(case))
    packs = packs_in(blocks)
    ranks = steps_of(blocks, before, Position(), workers)
    steps = -(-len(packs) // (before[0] * before[1]))
    assert [len(plans) for plans in ranks] == [steps] * before[0]
    assert all(plan.step == number for plans in ranks for number, plan in enumerate(plans))
    assert consumed(ranks, steps) == packs

    stop = data.draw(st.integers(1, steps), label="stop")
    places = [plans[stop - 1].after for plans in ranks]
    assert all(place == places[0] for place in places)
    place = Position(places[0].packs, json.loads(json.dumps(places[0].plan)))
    rest = steps_of(from_place(case, blocks, place), after, place, others)
    left = max(0, len(packs) - place.packs)
    assert [len(plans) for plans in rest] == [-(-left // (after[0] * after[1]))] * after[0]
    assert consumed(ranks, stop) + consumed(rest, len(rest[0])) == packs


@given(cases(), st.integers(1, 200))
@settings(max_examples=30, deadline=None)
def test_fewer_packs_than_ranks_give_every_rank_the_same_steps(case: Case, more: int) -> None:
    blocks = list(sequence(case))
    packs = packs_in(blocks)
    world = len(packs) + more
    ranks = [list(rank_batches(blocks, RankShare(rank, world, 1), Position())) for rank in (0, world - 1)]
    assert [len(plans) for plans in ranks] == [1, 1]
    assert len(ranks[0][0].ends) == 1 and len(ranks[1][0].ends) == 0
    assert packs_of(ranks[0][0]) == packs[:1]


def test_a_rank_outside_the_world_is_refused() -> None:
    for rank, world, batch, said in (
        (2, 2, 1, "rank 2"),
        (-1, 2, 1, "rank -1"),
        (0, 0, 1, "world_size 0"),
        (0, 1, 0, "batch"),
    ):
        with pytest.raises(UsageError, match=said):
            RankShare(rank, world, batch)


def test_a_state_has_the_boundary_of_the_block_in_which_its_step_begins() -> None:
    from tests.mix.test_sequence import corpora

    sources = [{"shards": name, "weight": 1} for name in "abc"]
    case = (blend(weight_unit="tokens", on_exhaustion="renormalize", sources=sources), corpora(CAPACITY))
    blocks = list(sequence(case))
    assert len(blocks) > 2
    borders = [planned.first_pack for planned in blocks]
    for stop in (1, borders[1] // 6, borders[1] // 6 + 1, borders[2] // 6 + 1):
        plans = steps_of(blocks, (3, 2), Position(), 2)
        place = plans[0][stop - 1].after
        assert place.plan is not None
        assert place.plan["packs"] == max(border for border in borders if border <= (stop - 1) * 6)
        rest = steps_of(from_place(case, blocks, place), (2, 2), place, 1)
        assert consumed(plans, stop) + consumed(rest, len(rest[0])) == packs_in(blocks)
