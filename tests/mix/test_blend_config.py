"""Blends as recipes give them: what is right is read, what is wrong is one clear error at its line."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.mix.made_lengths import blend
from vila_data.core.errors import RecipeError
from vila_data.mix.config import BlendConfig
from vila_data.recipe.yaml_lines import ValueWithLines, validate

TWO = [{"shards": "a", "weight": 1}, {"shards": "b", "weight": 2}]


def test_a_full_blend_is_read() -> None:
    text = """
weight_counts: images
at_exhaustion: stop
total_packs: 1000
sources:
  - {shards: docs, weight: 1, repeat: [1, 3]}
  - {shards: pairs, weight: {0.0: 1, 0.6: 3}}
  - {weight: 2, at_exhaustion: repeat, blend: {weight_counts: samples, at_exhaustion: renormalise, sources: [
      {shards: chat, weight: 1, repeat: 2}, {shards: text, weight: 1, subset: {where: "n_images >= 2"}}]}}
  - {shards: flan, weight: 0.5, subset: {ids: keep.txt}}
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
    assert flan.subset is not None and flan.subset.ids == "keep.txt"
    assert BlendConfig.model_validate_json(config.model_dump_json()) == config


def test_one_source_needs_no_rule() -> None:
    config = blend(weight_counts="samples", sources=[{"shards": "a", "weight": 1}])
    assert config.rule(config.sources[0]) == "stop"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 0}, "not above 0"),
        ({"weight": -1}, "not above 0"),
        ({"weight": True}, "a weight is a number"),
        ({"weight": "2"}, "a weight is a number"),
        ({"weight": {}}, "begin at 0.0"),
        ({"weight": {"0.5": 1}}, "begin at 0.0"),
        ({"weight": {"0.0": 1, "1.0": 2}}, "below 1"),
        ({"weight": {"0.0": 1, "half": 2}}, "found 'half'"),
        ({"weight": {"0.0": 1, "0.5": 2, "0.4": 1}}, "ascend"),
        ({"weight": {"0.0": 1, "0.5": -2}}, "0 or above"),
        ({"weight": {"0.0": 0, "0.5": 0}}, "every weight is 0"),
        ({"weight": {"0.0": 1, "0.5": 2}}, "total_packs is required"),
        ({"repeat": 0}, "passes from 1"),
        ({"repeat": [3, 2]}, "least <= most"),
        ({"repeat": [0, 2]}, "least <= most"),
        ({"repeat": 1.5}, "passes from 1"),
        ({"repeat": [1, None]}, "no bound"),
        ({"repeat": [1, 2], "at_exhaustion": "repeat"}, "bounded"),
        ({"shards": None}, "found neither"),
        ({"blend": {"weight_counts": "samples", "sources": TWO[:1]}}, "found both"),
        ({"shards": None, "blend": {"weight_counts": "samples", "sources": TWO[:1]}, "subset": {"ids": "x"}}, "shard"),
        ({"subset": {}}, "found none"),
        ({"subset": {"ids": "a", "where": "images > 1"}}, "ids and where"),
        ({"subset": {"where": "pictures > 1"}}, "no column 'pictures'; there are key, record_id, n_images"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        blend(weight_counts="samples", at_exhaustion="stop", sources=[TWO[0] | change, TWO[1]])
    assert caught.value.error_count() == 1
    assert message in str(caught.value)


def test_an_epoch_stops_where_nothing_else_is_said() -> None:
    silent = blend(weight_counts="samples", sources=TWO)
    assert {silent.rule(source) for source in silent.sources} == {"stop"}
    each = [TWO[0] | {"at_exhaustion": "renormalise"}, TWO[1] | {"at_exhaustion": "repeat"}]
    said = blend(weight_counts="samples", sources=each)
    assert [said.rule(source) for source in said.sources] == ["renormalise", "repeat"]


def test_a_time_without_weights() -> None:
    sources = [
        {"shards": "a", "weight": {"0.0": 1, "0.5": 0}},
        {"shards": "b", "weight": {"0.0": 1, "0.25": 0, "0.75": 1}},
    ]
    with pytest.raises(ValidationError, match=r"from share 0\.5"):
        blend(weight_counts="samples", at_exhaustion="stop", total_packs=9, sources=sources)


@pytest.mark.parametrize(
    ("line", "where", "message"),
    [
        ("- {shards: a, weight: 0}", "r.yaml:4 sources.0.weight", "not above 0"),
        ("- {shards: a, weight: {0.0: 1, 2.0: 1}}", "r.yaml:4 sources.0.weight", "below 1"),
        ("- {shards: a, weight: 1, repeat: [2, 1]}", "r.yaml:4 sources.0.repeat", "least <= most"),
        ("- {shards: a, wieght: 1}", "r.yaml:4 sources.0.wieght", "did you mean weight"),
        ("- {shards: a, weight: 1, at_exhaustion: halt}", "r.yaml:4 sources.0.at_exhaustion", "found 'halt'"),
        (
            "- {weight: 1, blend: {weight_counts: rows, sources: [{shards: a, weight: 1}]}}",
            "r.yaml:4 sources.0.blend.weight_counts",
            "one of: samples, images, tokens",
        ),
        (
            "- {weight: 1, blend: {weight_counts: samples, total_packs: 3, sources: [{shards: a, weight: 1}]}}",
            "r.yaml:4 sources.0.blend.total_packs",
            "unknown key 'total_packs'",
        ),
    ],
)
def test_errors_stand_at_their_line(line: str, where: str, message: str) -> None:
    text = f"weight_counts: samples\nat_exhaustion: stop\nsources:\n  {line}\n  - {{shards: b, weight: 1}}\n"
    with pytest.raises(RecipeError) as caught:
        validate(ValueWithLines("r.yaml", text), BlendConfig)
    assert caught.value.where == where
    assert message in caught.value.problem
