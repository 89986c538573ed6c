"""VILA v1.0's order: whole micro-batches of one source, evenly in the ratio of rows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.blend.made_lengths import CAPACITY, blend, lengths
from vila_data.blend import BlendConfig
from vila_data.core.errors import UsageError
from vila_data.encode.config import PackConfig
from vila_data.order import PackSequence
from vila_data.order.released import ReleasedPlanner


def released(repeats: list[int], **more: Any) -> BlendConfig:
    sources = [{"shards": f"set{index}", "weight": 1, "repeat": repeat} for index, repeat in enumerate(repeats)]
    return blend(**({"weight_counts": "samples", "at_exhaustion": "stop", "sources": sources} | more))


@given(
    st.lists(st.tuples(st.integers(8, 150), st.integers(1, 3)), min_size=1, max_size=4),
    st.integers(1, 8),
    st.sampled_from([40, 65_536]),
)
@settings(max_examples=80, deadline=None)
def test_micro_batches_are_of_one_source_and_evenly_spread(
    sets: list[tuple[int, int]], micro_batch: int, block: int
) -> None:
    held = [lengths(samples, shards=3, seed=index) for index, (samples, _) in enumerate(sets)]
    config = released([repeat for _, repeat in sets])
    plan = ReleasedPlanner(
        config, held, seed=0, epoch=0, capacity=CAPACITY, micro_batch=micro_batch, block_samples=block
    )
    found = []
    while (made := plan.next_block()) is not None:
        found.append(made.run)
    source = np.concatenate([run.source for run in found]).reshape(-1, micro_batch)
    assert (source == source[:, :1]).all()
    order = source[:, 0]
    expected = [samples // micro_batch * repeat for samples, repeat in sets]
    assert np.bincount(order, minlength=len(sets)).tolist() == expected
    for number, count in enumerate(expected):
        running = np.cumsum(order == number)
        even = (np.arange(len(order)) + 1) * count / len(order)
        assert np.abs(running - even).max() <= 1 + len(sets) / 2
    places = {
        entry
        for run in found
        for entry in zip(run.source.tolist(), run.pass_.tolist(), run.shard.tolist(), run.row.tolist(), strict=True)
    }
    assert len(places) == source.size
    short = {event.source for event in plan.events.events if event.kind == "short"}
    assert short == {f"set{index}" for index, (samples, _) in enumerate(sets) if samples % micro_batch}


def test_it_goes_on_after_a_restore() -> None:
    held = [lengths(700, seed=1), lengths(90, seed=2)]
    plans = [
        ReleasedPlanner(released([1, 2]), held, seed=0, epoch=0, capacity=CAPACITY, micro_batch=8, block_samples=100)
        for _ in range(2)
    ]
    for _ in range(3):
        plans[0].next_block()
    plans[1].restore(json.loads(json.dumps(plans[0].state())))
    while (block := plans[0].next_block()) is not None:
        other = plans[1].next_block()
        assert other is not None and all(map(np.array_equal, block.run.columns(), other.run.columns()))
    assert plans[1].next_block() is None
    with pytest.raises(UsageError, match="differ"):
        plans[1].restore({"version": 1, "fingerprint": "x"})


def test_a_sequence_of_it() -> None:
    pack = PackConfig(
        tokenizer="none", sequence_length=CAPACITY, tokens_per_image=9, semantics="released_code", micro_batch=4
    )
    sequence = PackSequence(released([1, 1]), pack, [lengths(402, seed=1), lengths(99, seed=2)], seed=0, epoch=0)
    for planned in sequence:
        first = np.concatenate([[0], planned.ends[:-1]])
        assert (np.maximum.reduceat(planned.samples.source, first) == planned.samples.source[first]).all()
    report = sequence.report()
    assert [source.samples for source in report.sources] == [400, 96]
    assert [source.asked for source in report.sources] == pytest.approx([100 / 124, 24 / 124])
    assert [event.kind for event in report.events] == ["short", "short", "ended"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_counts": "images"}, "weight_counts is images"),
        ({"sources": [{"shards": "a", "weight": 2}]}, "a has weight 2.0; give 1"),
        ({"sources": [{"shards": "a", "weight": 1, "repeat": [1, 2]}]}, "give repeat: n"),
        ({"sources": [{"shards": "a", "weight": 1}], "at_exhaustion": "repeat"}, "give repeat: n"),
        (
            {
                "sources": [
                    {"weight": 1, "blend": {"weight_counts": "samples", "sources": [{"shards": "a", "weight": 1}]}}
                ]
            },
            "no blend inside",
        ),
    ],
)
def test_what_it_cannot_do_is_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ReleasedPlanner(released([1], **change), [lengths(50)], seed=0, epoch=0, capacity=CAPACITY, micro_batch=4)


def test_less_than_one_micro_batch() -> None:
    with pytest.raises(UsageError, match="set0 has 3 samples, less than a micro-batch"):
        ReleasedPlanner(released([1]), [lengths(3)], seed=0, epoch=0, capacity=CAPACITY, micro_batch=4)
