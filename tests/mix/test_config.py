"""Blends as recipes give them: read or refused with one clear error at its line; labels; shares by the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.mix.made_lengths import blend, cases, lengths
from vila_data.core.errors import RecipeError
from vila_data.explore.rows import named_sources
from vila_data.mix import tree as tree_module
from vila_data.mix.config import BlendConfig, parent_path, recipe_shares, source_labels
from vila_data.mix.planner import BlendPlanner
from vila_data.recipe.yaml_lines import ValueWithLines, validate

TWO = [{"shards": "a", "weight": 1}, {"shards": "b", "weight": 2}]


def test_a_full_blend_is_read() -> None:
    text = """
weight_unit: images
on_exhaustion: stop
total_packs: 1000
sources:
  - {shards: docs, weight: 1, repeat: [1, 3]}
  - {shards: pairs, weight: {0.0: 1, 0.6: 3}}
  - {weight: 2, on_exhaustion: repeat, blend: {weight_unit: samples, on_exhaustion: renormalize, sources: [
      {shards: chat, weight: 1, repeat: 2}, {shards: text, weight: 1, subset: {where: "n_images >= 2"}}]}}
  - {shards: flan, weight: 0.5, subset: {include_ids: keep.txt}}
"""
    config = validate(ValueWithLines("blend.yaml", text), BlendConfig)
    docs, pairs, inner, flan = config.sources
    assert [config.passes(source) for source in config.sources] == [(1, 3), (1, 1), (1, None), (1, 1)]
    assert [config.rule(source) for source in config.sources] == ["stop", "stop", "repeat", "stop"]
    assert [pairs.weight_at(share) for share in (0.0, 0.59, 0.6, 0.99)] == [1, 1, 3, 3]
    assert docs.weight_at(0.7) == 1 and config.changes() == (0.6,)
    assert inner.blend is not None and inner.blend.passes(inner.blend.sources[0]) == (2, 2)
    assert [leaf.source.shards for leaf in config.leaves()] == ["docs", "pairs", "chat", "text", "flan"]
    assert [leaf.location for leaf in config.leaves()][2] == ("sources", 2, "blend", "sources", 0)
    assert flan.subset is not None and flan.subset.include_ids == "keep.txt"
    assert BlendConfig.model_validate_json(config.model_dump_json()) == config


def test_the_old_names_of_keys_are_still_read() -> None:
    text = """
weight_counts: images
at_exhaustion: renormalise
sources:
  - {shards: docs, weight: 1, at_exhaustion: stop, subset: {ids: keep.txt}}
  - {shards: pairs, weight: 2, subset: {without_ids: leave.txt}}
"""
    new = text.replace("weight_counts", "weight_unit").replace("at_exhaustion", "on_exhaustion")
    new = (
        new.replace("renormalise", "renormalize").replace("without_ids", "exclude_ids").replace("{ids", "{include_ids")
    )
    old, expected = (validate(ValueWithLines("r.yaml", one), BlendConfig) for one in (text, new))
    assert old == expected and expected.on_exhaustion == "renormalize"
    assert "weight_counts" not in old.model_dump() and old.model_dump() == expected.model_dump()
    with pytest.raises(RecipeError, match=r"r.yaml:2 weight_counts: found 'rows'; one of: samples, images, tokens"):
        validate(ValueWithLines("r.yaml", text.replace("images", "rows", 1)), BlendConfig)
    both = text.replace("at_exhaustion: renormalise", "at_exhaustion: stop\non_exhaustion: stop")
    with pytest.raises(
        RecipeError, match=r"r.yaml:3 at_exhaustion: unknown key 'at_exhaustion'; did you mean on_exhaustion"
    ):
        validate(ValueWithLines("r.yaml", both), BlendConfig)


def test_one_source_needs_no_rule() -> None:
    config = blend(weight_unit="samples", sources=[{"shards": "a", "weight": 1}])
    assert config.rule(config.sources[0]) == "stop"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 0}, "greater than 0, found 0"),
        ({"weight": -1}, "greater than 0, found -1"),
        ({"weight": True}, "weight must be a number"),
        ({"weight": "2"}, "weight must be a number"),
        ({"weight": {}}, "must start at fraction 0.0"),
        ({"weight": {"0.5": 1}}, "must start at fraction 0.0"),
        ({"weight": {"0.0": 1, "1.0": 2}}, "below 1"),
        ({"weight": {"0.0": 1, "half": 2}}, "found 'half'"),
        ({"weight": {"0.0": 1, "0.5": 2, "0.4": 1}}, "must increase; '0.4' follows 0.5"),
        ({"weight": {"0.0": 1, "0.5": -2}}, "0 or more"),
        ({"weight": {"0.0": 0, "0.5": 0}}, "all weights are 0"),
        ({"weight": {"0.0": 1, "0.5": 2}}, "total_packs is required"),
        ({"repeat": 0}, "passes (1 or more)"),
        ({"repeat": [3, 2]}, "1 <= min <= max"),
        ({"repeat": [0, 2]}, "1 <= min <= max"),
        ({"repeat": 1.5}, "passes (1 or more)"),
        ({"repeat": [1, None]}, "repeat [1, null] has no maximum"),
        ({"repeat": [1, 2], "on_exhaustion": "repeat"}, "repeat [1, 2] has a maximum"),
        ({"shards": None}, "found neither"),
        ({"blend": {"weight_unit": "samples", "sources": TWO[:1]}}, "found both"),
        (
            {"shards": None, "blend": {"weight_unit": "samples", "sources": TWO[:1]}, "subset": {"include_ids": "x"}},
            "shard",
        ),
        ({"subset": {}}, "exactly one of include_ids, exclude_ids and where; found none"),
        ({"subset": {"include_ids": "a", "where": "images > 1"}}, "include_ids and where"),
        ({"subset": {"where": "pictures > 1"}}, "no column 'pictures'; there are key, record_id, n_images"),
    ],
)
def test_each_mistake_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        blend(weight_unit="samples", on_exhaustion="stop", sources=[TWO[0] | change, TWO[1]])
    assert caught.value.error_count() == 1
    assert message in str(caught.value)


def test_stop_is_the_default_on_exhaustion() -> None:
    silent = blend(weight_unit="samples", sources=TWO)
    assert {silent.rule(source) for source in silent.sources} == {"stop"}
    each = [TWO[0] | {"on_exhaustion": "renormalize"}, TWO[1] | {"on_exhaustion": "repeat"}]
    said = blend(weight_unit="samples", sources=each)
    assert [said.rule(source) for source in said.sources] == ["renormalize", "repeat"]


def test_some_source_must_have_weight_at_any_time() -> None:
    sources = [
        {"shards": "a", "weight": {"0.0": 1, "0.5": 0}},
        {"shards": "b", "weight": {"0.0": 1, "0.25": 0, "0.75": 1}},
    ]
    with pytest.raises(ValidationError, match=r"every source has weight 0 from fraction 0\.5"):
        blend(weight_unit="samples", on_exhaustion="stop", total_packs=9, sources=sources)


@pytest.mark.parametrize(
    ("line", "where", "message"),
    [
        ("- {shards: a, weight: 0}", "r.yaml:4 sources.0.weight", "greater than 0"),
        ("- {shards: a, weight: {0.0: 1, 2.0: 1}}", "r.yaml:4 sources.0.weight", "below 1"),
        ("- {shards: a, weight: 1, repeat: [2, 1]}", "r.yaml:4 sources.0.repeat", "1 <= min <= max"),
        ("- {shards: a, wieght: 1}", "r.yaml:4 sources.0.wieght", "did you mean weight"),
        ("- {shards: a, weight: 1, on_exhaustion: halt}", "r.yaml:4 sources.0.on_exhaustion", "found 'halt'"),
        (
            "- {weight: 1, blend: {weight_unit: rows, sources: [{shards: a, weight: 1}]}}",
            "r.yaml:4 sources.0.blend.weight_unit",
            "one of: samples, images, tokens",
        ),
        (
            "- {weight: 1, blend: {weight_unit: samples, total_packs: 3, sources: [{shards: a, weight: 1}]}}",
            "r.yaml:4 sources.0.blend.total_packs",
            "unknown key 'total_packs'",
        ),
    ],
)
def test_errors_name_their_line(line: str, where: str, message: str) -> None:
    text = f"weight_unit: samples\non_exhaustion: stop\nsources:\n  {line}\n  - {{shards: b, weight: 1}}\n"
    with pytest.raises(RecipeError) as caught:
        validate(ValueWithLines("r.yaml", text), BlendConfig)
    assert caught.value.where == where
    assert message in caught.value.problem


SETS = st.sampled_from(["docs", "pairs", "a" * 48, "chat-2", "x_y"])


def source(inside: Any) -> dict[str, Any]:
    if isinstance(inside, str):
        return {"shards": inside, "weight": 1}
    return {"weight": 1, "blend": {"weight_unit": "samples", "sources": [source(one) for one in inside]}}


def named(*inside: Any) -> dict[str, str]:
    return source_labels(blend(weight_unit="samples", sources=[source(one) for one in inside]))


def test_a_blend_is_called_by_the_sets_in_it() -> None:
    assert list(named("text", ["docs", "pairs"]).values()) == ["text", "docs + pairs", "docs", "pairs"]
    nested = named([["docs", "pairs"], "chat"])
    assert nested["sources.0"] == "docs + pairs + chat" and nested["sources.0.blend.sources.0"] == "docs + pairs"


def test_a_long_label_is_shortened() -> None:
    sets = [f"set-number-{number}" for number in range(20)]
    assert named(sets)["sources.0"] == "set-number-0 + set-number-1 + set-number-2 and 17 more"


def test_duplicates_are_distinguished_by_their_paths() -> None:
    found = named(["docs", "pairs"], ["docs", "pairs"], "docs")
    assert found["sources.0"] == "docs + pairs (sources.0)" and found["sources.1"] == "docs + pairs (sources.1)"
    assert found["sources.2"] == "docs (sources.2)"


def test_a_set_keeps_its_name_next_to_a_blend_of_it_alone() -> None:
    assert named(["docs"]) == {"sources.0": "docs (sources.0)", "sources.0.blend.sources.0": "docs"}


@given(st.lists(st.recursive(SETS, lambda inner: st.lists(inner, min_size=1, max_size=4), max_leaves=8), min_size=1))
def test_labels_are_short_and_different(inside: list[Any]) -> None:
    found = named(*inside)
    assert len(set(found.values())) == len(found)
    for path, label in found.items():
        assert len(label.removesuffix(f" ({path})")) <= 60 and label == label.strip()


def test_no_plan_or_state_depends_on_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state can be restored after labels have changed."""
    config = blend(weight_unit="samples", on_exhaustion="renormalize", sources=[source(["x", "y"]), source("z")])
    held = [lengths(300, seed=1), lengths(500, seed=2), lengths(400, seed=3)]

    def planner() -> BlendPlanner:
        return BlendPlanner(config, held, seed=3, epoch=0, capacity=4096, block_samples=200, block_packs=40)

    with monkeypatch.context() as before:
        before.setattr(tree_module, "source_labels", lambda config: {path: path for path in source_labels(config)})
        earlier = planner()
        first, state = earlier.next_block(), earlier.state()
        expected = earlier.next_block()
    now = planner()
    assert now.fingerprint == earlier.fingerprint and first is not None and expected is not None
    now.restore(state)
    found = now.next_block()
    assert found is not None and found.targets == expected.targets
    assert all(map(np.array_equal, found.samples.columns(), expected.samples.columns()))
    assert now.state() == earlier.state()


def test_nested_blends_of_an_older_run_are_labeled_by_their_sets_too() -> None:
    """Its inner blends are called by their places in run.json."""
    sources = [
        ("sources.0", "sources.0"),
        ("docs", "sources.0.blend.sources.0"),
        ("pairs", "sources.0.blend.sources.1"),
    ]
    told = {"sources": [{"label": label, "path": path} for label, path in sources]}
    assert [name for name, _ in named_sources(told)] == ["docs + pairs", "docs", "pairs"]


def weighted(shards: str, weight: Any) -> dict[str, Any]:
    return {"shards": shards, "weight": weight}


def shares(**values: Any) -> dict[str, tuple[float, float]]:
    found = recipe_shares(blend(weight_unit="samples", **values))
    return {path: (share.of_blend, share.of_whole) for path, share in found.items()}


def test_nested_shares_are_multiplied() -> None:
    inner = {"weight": 3, "blend": {"weight_unit": "images", "sources": [weighted("a", 2), weighted("b", 1)]}}
    found = shares(sources=[inner, weighted("c", 1), weighted("d", 1)])
    assert found["sources.0"] == pytest.approx((0.6, 0.6))
    assert found["sources.0.blend.sources.0"] == pytest.approx((2 / 3, 0.4))
    assert found["sources.0.blend.sources.1"] == pytest.approx((1 / 3, 0.2))
    assert found["sources.1"] == found["sources.2"] == pytest.approx((0.2, 0.2))


def test_weights_that_change_are_averaged() -> None:
    found = shares(sources=[weighted("a", {0.0: 3, 0.8: 1}), weighted("b", 1)], total_packs=10)
    assert found["sources.0"] == pytest.approx((0.8 * 0.75 + 0.2 * 0.5,) * 2)


def test_steps_in_which_a_blend_has_no_weight_do_not_count_inside_it() -> None:
    inside = [weighted("a", {0.0: 1, 0.5: 0}), weighted("b", 1)]
    inner = {"weight": {0.0: 0, 0.5: 1}, "blend": {"weight_unit": "samples", "sources": inside}}
    found = shares(sources=[inner, weighted("c", 1)], total_packs=10)
    assert found["sources.0"] == pytest.approx((0.25, 0.25))
    assert found["sources.0.blend.sources.0"] == (0, 0)
    assert found["sources.0.blend.sources.1"] == pytest.approx((1, 0.25))


@given(cases())
def test_sources_of_a_blend_add_up_to_it(case: Any) -> None:
    found = recipe_shares(case[0])
    for path in {parent_path(path) for path in found}:
        whole = found[path].of_whole if path else 1.0
        inside = [share for place, share in found.items() if parent_path(place) == path]
        assert sum(share.of_whole for share in inside) == pytest.approx(whole)
        assert sum(share.of_blend for share in inside) == pytest.approx(1.0 if whole else 0.0)
