"""The plan of a blend: whole passes, bounds, shares, events, and the same blocks after any restore."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.mix.made_lengths import CAPACITY, blend, blocks, cases, lengths, listed
from vila_data.core.errors import DataError, UsageError
from vila_data.mix.config import BlendConfig
from vila_data.mix.lengths import Lengths
from vila_data.mix.plan import BlendEvent, Block, Edge, EventLog
from vila_data.mix.planner import BlendPlanner


def planner(
    config: BlendConfig, held: list[Lengths], *, seed: int = 0, epoch: int = 0, block: int = 16
) -> BlendPlanner:
    return BlendPlanner(config, held, seed=seed, epoch=epoch, capacity=CAPACITY, block_samples=block, block_packs=block)


def two(rule: str, sizes: tuple[int, int] = (200, 20), **more: Any) -> tuple[BlendConfig, list[Lengths]]:
    sources = [{"shards": "large", "weight": 1}, {"shards": "small", "weight": 1}]
    config = blend(**({"weight_unit": "samples", "on_exhaustion": rule, "sources": sources} | more))
    return config, [lengths(size, seed=index) for index, size in enumerate(sizes)]


def kinds(plan: BlendPlanner) -> list[tuple[str, str]]:
    return [(event.kind, event.source) for event in plan.events.events]


@given(cases())
@settings(max_examples=80, deadline=None)
def test_passes_are_whole_and_none_is_beyond_the_bounds(case: tuple[BlendConfig, list[Lengths]]) -> None:
    config, held = case
    plan = planner(config, held)
    found = listed(blocks(plan))
    assert found and len(set(found)) == len(found), "a sample came twice in a pass"
    assert plan.events.events[-1].kind == "ended" and plan.next_block() is None
    for number, entry in enumerate(held):
        order = [pass_ for source, pass_, _, _ in found if source == number]
        assert order == sorted(order)
        top = next(edge.top for edge in plan.edges if edge.leaf == number)
        for pass_ in set(order[: order.index(order[-1])]) if order else ():  # a blend inside may cut a pass short
            assert order.count(pass_) == entry.totals.samples or not top, "a pass lost samples"


@given(cases(nested=False))
@settings(max_examples=80, deadline=None)
def test_minimums_and_maximums_of_passes_are_met_or_the_miss_is_reported(
    case: tuple[BlendConfig, list[Lengths]],
) -> None:
    config, held = case
    plan = planner(config, held)
    found = listed(blocks(plan))
    short = {event.source for event in plan.events.events if event.kind == "minimum_missed"}
    for number, source in enumerate(config.sources):
        least, most = config.passes(source)
        passes = sum(entry[0] == number for entry in found) / held[number].totals.samples
        assert most is None or passes <= most
        assert (passes < least) == (source.shards in short)


@given(cases(), st.integers(5, 40))
@settings(max_examples=80, deadline=None)
def test_shares_hold_over_every_stretch_without_a_change(case: tuple[BlendConfig, list[Lengths]], block: int) -> None:
    config, held = case
    plan = planner(config, held, block=block)
    found = blocks(plan)
    for index, edge in enumerate(plan.edges):
        for stretch in _stretches(found):
            given_, total = _units(stretch, edge)
            lag = np.cumsum(given_ - stretch[0].targets[index] * total)
            siblings = len({other.path for other in plan.edges if other.siblings == edge.siblings})
            assert np.ptp(np.concatenate([[0.0], lag])) <= (1 + siblings) * total.max(initial=0) + 1e-6


@given(cases(), st.integers(0, 3), st.data())
@settings(max_examples=80, deadline=None)
def test_blocks_after_a_restore_are_those_of_an_undisturbed_run(
    case: tuple[BlendConfig, list[Lengths]], seed: int, data: st.DataObject
) -> None:
    config, held = case
    plan, states, found = planner(config, held, seed=seed), [], []
    while True:
        states.append(json.dumps(plan.state()))
        block = plan.next_block()
        if block is None:
            break
        plan.packed(1 + len(block.samples) // 3)
        found.append(block)
    at = data.draw(st.integers(0, len(states) - 1))
    other = planner(config, held, seed=seed)
    other.restore(json.loads(states[at]))
    for expected in found[at:]:
        block = other.next_block()
        assert block is not None and block.index == expected.index and block.targets == expected.targets
        assert all(map(np.array_equal, block.samples.columns(), expected.samples.columns()))
        other.packed(1 + len(block.samples) // 3)
    assert other.next_block() is None and other.state() == plan.state()


def test_stop_ends_the_epoch_after_the_last_sample_of_the_exhausted_source() -> None:
    plan = planner(*two("stop"))
    found = listed(blocks(plan))
    assert found[-1][0] == 1 and sum(source == 1 for source, *_ in found) == 20
    assert sum(source == 0 for source, *_ in found) in (19, 20, 21)
    assert kinds(plan) == [("stopped", "small"), ("minimum_missed", "large"), ("ended", "")]
    assert plan.events.events[0].sample == len(found)


def test_renormalize_removes_a_source_and_redistributes_its_weight() -> None:
    plan = planner(*two("renormalize"))
    found = blocks(plan)
    assert len(listed(found)) == 220
    assert list(dict.fromkeys(block.targets for block in found)) == [(0.5, 0.5), (1.0, 0.0)]
    assert kinds(plan) == [("removed", "small"), ("removed", "large"), ("ended", "")]
    assert plan.events.events[0].followed == "its weight is redistributed to large"


def test_repeat_continues_until_every_source_has_completed_its_minimum() -> None:
    plan = planner(*two("repeat"))
    found = listed(blocks(plan))
    assert sum(source == 0 for source, *_ in found) == 200
    assert abs(sum(source == 1 for source, *_ in found) - 200) <= 1
    assert kinds(plan)[:2] == [("repeats", "small"), ("minimum_reached", "small")] and kinds(plan)[-1] == ("ended", "")
    passes = [pass_ for source, pass_, *_ in found if source == 1]
    assert {passes.count(pass_) for pass_ in range(9)} == {20}


def test_a_repeating_source_beside_one_that_stops() -> None:
    sources = [
        {"shards": "large", "weight": 1, "on_exhaustion": "stop"},
        {"shards": "small", "weight": 3, "on_exhaustion": "repeat", "repeat": [2, None]},
    ]
    plan = planner(*two("stop", sources=sources))
    found = listed(blocks(plan))
    assert sum(source == 0 for source, *_ in found) == 200 and abs(len(found) - 800) <= 4
    assert ("stopped", "large") in kinds(plan) and ("minimum_missed", "small") not in kinds(plan)


def test_a_source_completes_its_maximum_of_passes_before_it_is_removed() -> None:
    sources = [{"shards": "large", "weight": 1}, {"shards": "small", "weight": 1, "repeat": [1, 3]}]
    plan = planner(*two("renormalize", sources=sources))
    found = listed(blocks(plan))
    assert sum(source == 1 for source, *_ in found) == 60 and len(found) == 260
    assert [event.passes for event in plan.events.events if event.kind == "removed"] == [3, 1]


def test_a_nested_blend_gets_its_number_of_passes() -> None:
    inner = {"weight_unit": "tokens", "on_exhaustion": "renormalize"}
    inner["sources"] = [{"shards": "x", "weight": 1}, {"shards": "y", "weight": 5}]
    sources = [{"blend": inner, "weight": 1, "repeat": 2}, {"shards": "z", "weight": 1}]
    config = blend(weight_unit="samples", on_exhaustion="renormalize", sources=sources)
    held = [lengths(30, seed=1), lengths(50, seed=2), lengths(40, seed=3)]
    plan = planner(config, held)
    found = listed(blocks(plan))
    assert [sum(source == number for source, *_ in found) for number in range(3)] == [60, 100, 40]
    assert abs(sum(source == 2 for source, *_ in found[:40]) - 20) <= 1
    assert [edge.label for edge in plan.edges] == ["x + y", "x", "y", "z"]


def test_a_repeating_nested_source_continues_across_the_epochs_of_its_blend() -> None:
    inner = {"weight_unit": "samples", "on_exhaustion": "repeat"}
    inner["sources"] = [{"shards": "x", "weight": 3}, {"shards": "y", "weight": 1}]
    config = blend(weight_unit="samples", sources=[{"blend": inner, "weight": 1, "repeat": 5}])
    plan = planner(config, [lengths(20, seed=1), lengths(12, seed=2)])
    found = listed(blocks(plan))
    assert sum(source == 1 for source, *_ in found) == 5 * 12
    seen = [row for source, _, _, row in found if source == 0]
    counts = np.bincount(seen)
    assert len(counts) == 20 and counts.max() - counts.min() <= 1


def test_weights_change_at_their_share_of_the_packs() -> None:
    sources = [{"shards": "large", "weight": {"0.0": 1, "0.5": 3}}, {"shards": "small", "weight": 1}]
    config, held = two("repeat", sources=sources, total_packs=400)
    plan = BlendPlanner(config, held, seed=0, epoch=0, capacity=CAPACITY, samples_per_pack=1)
    counts: list[tuple[int, tuple[float, ...]]] = []
    packs = 0
    while (block := plan.next_block()) is not None:
        packs += len(block.samples)
        plan.packed(len(block.samples))
        counts.append((packs, block.targets))
    before = max(count for count, target in counts if target == (0.5, 0.5))
    assert 200 <= before <= 216 and 400 <= packs <= 416 and counts[-1][1] == (0.75, 0.25)
    events = {event.kind: event for event in plan.events.events}
    assert events["weights"].pack == before and events["ended"].followed == "total_packs 400"
    assert not any(event.kind == "minimum_reached" for event in plan.events.events)


def test_the_epoch_ends_when_no_remaining_source_has_weight() -> None:
    sources = [{"shards": "large", "weight": {"0.0": 0, "0.9": 1}}, {"shards": "small", "weight": {"0.0": 1, "0.9": 0}}]
    plan = planner(*two("renormalize", sources=sources, total_packs=400))
    assert len(listed(blocks(plan))) == 20
    assert plan.events.events[-1].followed == "no remaining source has a weight above 0"


def test_the_same_inputs_give_the_same_blocks_and_another_seed_or_epoch_others() -> None:
    config, _ = two("repeat")
    held = [lengths(200, shards=20), lengths(90, shards=9)]
    first, again = (listed(blocks(planner(config, held))) for _ in range(2))
    others = [listed(blocks(planner(config, held, seed=1))), listed(blocks(planner(config, held, epoch=1)))]
    assert first == again
    assert first != others[0] != others[1] != first


def test_the_state_is_small() -> None:
    sources = [{"shards": name, "weight": 1 / 3} for name in "abcd"]
    config = blend(weight_unit="tokens", on_exhaustion="repeat", sources=sources)
    plan = planner(config, [lengths(1000, shards=100, seed=index) for index in range(4)])
    blocks(plan)
    assert len(json.dumps(plan.state())) < 500


def test_bad_states() -> None:
    config, held = two("stop")
    plan = planner(config, held)
    state = plan.state()
    for change, message in [
        ({"version": 0}, "version 0"),
        ({"fingerprint": "x"}, "seed or the epoch differ"),
        ({"sources": [[0]]}, "damaged"),
        ({"block": None}, "damaged"),
    ]:
        with pytest.raises(UsageError, match=message):
            plan.restore(state | change)
    with pytest.raises(UsageError, match="differ"):
        planner(config, held, seed=5).restore(state)
    with pytest.raises(UsageError, match="differ"):
        planner(config, [held[0], lengths(21, seed=1)]).restore(state)


def test_lengths_that_cannot_be_blended() -> None:
    config, held = two("stop", weight_unit="images")
    text = Lengths(held[1].tokens, np.zeros(20, np.int32), held[1].ends)
    with pytest.raises(
        UsageError, match=r"sources\.1 \(small\).*use weight_unit: samples or tokens, or move the source"
    ):
        planner(config, [held[0], text])
    with pytest.raises(
        UsageError,
        match=r"set small contributes no samples \(its shards have 20\): .*pack.sequence_length, or remove the set",
    ):
        planner(config, [held[0], held[1].only(np.zeros(20, np.bool_))])
    with pytest.raises(
        UsageError, match=r"shards have 0\): every .* was dropped or failed; relax .*vila-data preview RUN"
    ):
        planner(config, [held[0], lengths(0)])
    with pytest.raises(UsageError, match="lengths of 2 shard sets, found 1"):
        planner(config, held[:1])
    long = held[1].tokens.copy()
    long[7] = CAPACITY + 1
    with pytest.raises(DataError, match="small, shard 0, row 7: 65 tokens"):
        planner(config, [held[0], Lengths(long, held[1].images, held[1].ends)])


def _stretches(found: list[Block]) -> list[list[Block]]:
    """Runs of blocks in which no target changes."""
    stretches: list[list[Block]] = []
    for block in found:
        if not stretches or stretches[-1][-1].targets != block.targets:
            stretches.append([])
        stretches[-1].append(block)
    return stretches


def _units(stretch: list[Block], edge: Edge) -> tuple[np.ndarray, np.ndarray]:
    """What each sample gives of an edge, and of the blend above it."""
    values = np.concatenate([block.samples.units(edge.unit) for block in stretch])
    source = np.concatenate([block.samples.source for block in stretch])
    return values * np.isin(source, edge.leaves), values * np.isin(source, edge.siblings)


def test_events_beyond_the_listed_are_counted() -> None:
    log = EventLog()
    for block in range(30):
        log.add(BlendEvent("repeats", "chat", block, block, 10 * block, 2 * block, "it continues from its start"))
    log.add(BlendEvent("ended", "", 0, 30, 300, 60, "total_packs 60"))
    listed = [event for event in log.events if event.kind == "repeats"]
    assert [event.block for event in listed] == list(range(len(listed)))
    assert len(listed) + log.unlisted()["repeats chat"] == 30 and list(log.unlisted()) == ["repeats chat"]
    assert log.events[-1].followed == "total_packs 60"
