"""What sources are called: by what they hold, shortly, and no two alike; the plan does not depend on it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mix.made_lengths import blend, lengths
from vila_data.explore.rows import named_sources
from vila_data.mix import tree as tree_module
from vila_data.mix.labels import labels
from vila_data.mix.planner import BlendPlanner

SETS = st.sampled_from(["docs", "pairs", "a" * 48, "chat-2", "x_y"])


def source(inside: Any) -> dict[str, Any]:
    if isinstance(inside, str):
        return {"shards": inside, "weight": 1}
    return {"weight": 1, "blend": {"weight_counts": "samples", "sources": [source(one) for one in inside]}}


def named(*inside: Any) -> dict[str, str]:
    return labels(blend(weight_counts="samples", sources=[source(one) for one in inside]))


def test_a_blend_is_called_by_the_sets_in_it() -> None:
    assert list(named("text", ["docs", "pairs"]).values()) == ["text", "docs + pairs", "docs", "pairs"]
    nested = named([["docs", "pairs"], "chat"])
    assert nested["sources.0"] == "docs + pairs + chat" and nested["sources.0.blend.sources.0"] == "docs + pairs"


def test_a_long_one_is_cut_and_says_so() -> None:
    sets = [f"set-number-{number}" for number in range(20)]
    assert named(sets)["sources.0"] == "set-number-0 + set-number-1 + set-number-2 and 17 more"


def test_what_is_there_twice_is_told_by_its_place() -> None:
    found = named(["docs", "pairs"], ["docs", "pairs"], "docs")
    assert found["sources.0"] == "docs + pairs (sources.0)" and found["sources.1"] == "docs + pairs (sources.1)"
    assert found["sources.2"] == "docs (sources.2)"


def test_a_set_keeps_its_name_beside_a_blend_of_it_alone() -> None:
    assert named(["docs"]) == {"sources.0": "docs (sources.0)", "sources.0.blend.sources.0": "docs"}


@given(st.lists(st.recursive(SETS, lambda inner: st.lists(inner, min_size=1, max_size=4), max_leaves=8), min_size=1))
def test_labels_are_short_and_different(inside: list[Any]) -> None:
    found = named(*inside)
    assert len(set(found.values())) == len(found)
    for path, label in found.items():
        assert len(label.removesuffix(f" ({path})")) <= 60 and label == label.strip()


def test_no_plan_or_state_depends_on_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state taken when inner blends were called by their places is gone on from."""
    config = blend(weight_counts="samples", at_exhaustion="renormalise", sources=[source(["x", "y"]), source("z")])
    held = [lengths(300, seed=1), lengths(500, seed=2), lengths(400, seed=3)]

    def planner() -> BlendPlanner:
        return BlendPlanner(config, held, seed=3, epoch=0, capacity=4096, block_samples=200, block_packs=40)

    with monkeypatch.context() as before:
        before.setattr(tree_module, "labels", lambda config: {path: path for path in labels(config)})
        earlier = planner()
        first, state = earlier.next_block(), earlier.state()
        expected = earlier.next_block()
    now = planner()
    assert now.fingerprint == earlier.fingerprint and first is not None and expected is not None
    now.restore(state)
    found = now.next_block()
    assert found is not None and found.asked == expected.asked
    assert found.run.row.tolist() == expected.run.row.tolist()
    assert found.run.source.tolist() == expected.run.source.tolist() and now.state() == earlier.state()


def test_a_run_of_before_is_shown_by_the_sets_too() -> None:
    """Its inner blends are called by their places in run.json."""
    sources = [
        ("sources.0", "sources.0"),
        ("docs", "sources.0.blend.sources.0"),
        ("pairs", "sources.0.blend.sources.1"),
    ]
    told = {"sources": [{"label": label, "path": path} for label, path in sources]}
    assert [name for name, _ in named_sources(told)] == ["docs + pairs", "docs", "pairs"]
