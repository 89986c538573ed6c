"""Shares by the weights as written: nested ones multiplied, those that change averaged over the steps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from tests.mix.made_lengths import blend, cases
from vila_data.mix.recipe_shares import blend_of, recipe_shares


def source(shards: str, weight: Any) -> dict[str, Any]:
    return {"shards": shards, "weight": weight}


def shares(**values: Any) -> dict[str, tuple[float, float]]:
    found = recipe_shares(blend(weight_counts="samples", **values))
    return {path: (share.of_blend, share.of_whole) for path, share in found.items()}


def test_nested_shares_are_multiplied() -> None:
    inner = {"weight": 3, "blend": {"weight_counts": "images", "sources": [source("a", 2), source("b", 1)]}}
    found = shares(sources=[inner, source("c", 1), source("d", 1)])
    assert found["sources.0"] == pytest.approx((0.6, 0.6))
    assert found["sources.0.blend.sources.0"] == pytest.approx((2 / 3, 0.4))
    assert found["sources.0.blend.sources.1"] == pytest.approx((1 / 3, 0.2))
    assert found["sources.1"] == found["sources.2"] == pytest.approx((0.2, 0.2))


def test_weights_that_change_are_averaged() -> None:
    found = shares(sources=[source("a", {0.0: 3, 0.8: 1}), source("b", 1)], total_packs=10)
    assert found["sources.0"] == pytest.approx((0.8 * 0.75 + 0.2 * 0.5,) * 2)


def test_steps_in_which_a_blend_has_no_weight_do_not_count_inside_it() -> None:
    inside = [source("a", {0.0: 1, 0.5: 0}), source("b", 1)]
    inner = {"weight": {0.0: 0, 0.5: 1}, "blend": {"weight_counts": "samples", "sources": inside}}
    found = shares(sources=[inner, source("c", 1)], total_packs=10)
    assert found["sources.0"] == pytest.approx((0.25, 0.25))
    assert found["sources.0.blend.sources.0"] == (0, 0)
    assert found["sources.0.blend.sources.1"] == pytest.approx((1, 0.25))


@given(cases())
def test_sources_of_a_blend_add_up_to_it(case: Any) -> None:
    found = recipe_shares(case[0])
    for path in {blend_of(path) for path in found}:
        whole = found[path].of_whole if path else 1.0
        inside = [share for place, share in found.items() if blend_of(place) == path]
        assert sum(share.of_whole for share in inside) == pytest.approx(whole)
        assert sum(share.of_blend for share in inside) == pytest.approx(1.0 if whole else 0.0)
