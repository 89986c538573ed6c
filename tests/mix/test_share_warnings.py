"""A share that is not the recipe's is reported with the recipe's, the reason and the keys that change it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.mix.made_lengths import blend
from vila_data.encode.config import PackConfig
from vila_data.mix.epoch_report import EpochReport
from vila_data.mix.lengths import Lengths
from vila_data.mix.released import released_blend
from vila_data.mix.sequence import PackSequence
from vila_data.mix.share_warnings import ShareWarning, share_warnings


def held(samples: int, tokens: int = 8, images: int = 1) -> Lengths:
    return Lengths.of_shards([(np.full(samples, tokens, np.int32), np.full(samples, images, np.int32))])


def source(shards: str, weight: Any = 1, **values: Any) -> dict[str, Any]:
    return {"shards": shards, "weight": weight, **values}


def epoch(
    lengths: list[Lengths], subsets: dict[str, str] | None = None, semantics: str = "improved", **values: Any
) -> tuple[EpochReport, list[ShareWarning]]:
    config = blend(**({"weight_unit": "samples", "on_exhaustion": "renormalize"} | values))
    pack = PackConfig(tokenizer="t", sequence_length=64, tokens_per_image=4, semantics=semantics)  # type: ignore[arg-type]
    sequence = PackSequence(released_blend(config, pack, ["x"] * len(lengths)), pack, lengths, seed=0, epoch=0)
    for _ in sequence:
        pass
    report = sequence.report()
    return report, share_warnings(report, config, subsets or {})


def test_a_recipe_of_16_1_percent_that_gives_71_1() -> None:
    """The finding: the report said a target of 71.11% that no recipe had."""
    sources = [source("big", 1), source("mid", 2.6), source("small", 2.6)]
    report, found = epoch([held(2844), held(800), held(356)], sources=sources)
    big = report.sources[0]
    assert (big.recipe, big.target, big.actual) == pytest.approx((1 / 6.2, 0.711, 0.711), abs=5e-4)
    assert big.of_whole.recipe == big.recipe and big.of_whole.target == big.target
    first, second, third = found
    assert (first.source, first.reason, first.of) == ("big", "others_exhausted", "")
    packs = report.packs.packs
    assert first.text == (
        f"big is 71.1% of the samples; the recipe says 16.1%. Cause: small was exhausted at pack {third.pack} of {packs} "
        f"and mid at pack {second.pack}; the other sources took their shares. To change this, set repeat, on_exhaustion "
        "or weight of blend.sources.2 or blend.sources.1, or blend.total_packs."
    )
    assert first.change[:3] == tuple(f"blend.sources.2.{key}" for key in ("repeat", "on_exhaustion", "weight"))
    assert first.change[-1] == "blend.total_packs" and len(first.change) == 7
    assert (third.reason, third.recipe, third.actual) == ("exhausted", pytest.approx(2.6 / 6.2), pytest.approx(0.089))
    assert f"it was exhausted at pack {third.pack} of {packs}, after 1 pass over 356 samples. To" in third.text
    assert set(first.as_dict()) >= {"source", "recipe", "target", "actual", "reason", "pack", "packs", "change", "text"}


def test_shares_within_tolerance_are_not_reported() -> None:
    report, found = epoch([held(3000), held(1000)], sources=[source("a", 3), source("b", 1)])
    assert found == [] and [share.of_whole.actual for share in report.sources] == pytest.approx([0.75, 0.25])
    _, found = epoch([held(3000), held(1050)], sources=[source("a", 3), source("b", 1)])
    assert found == []
    _, found = epoch([held(3000), held(100)], on_exhaustion="repeat", sources=[source("a", 1), source("b", 1)])
    assert found == []


def test_a_subset_is_a_reason() -> None:
    subset = {"where": "n_images > 3"}
    sources = [source("a"), source("b", subset=subset)]
    _, found = epoch([held(900), held(100)], {"sources.1": "its subset keeps 100 of 900 samples"}, sources=sources)
    (only,) = [warning for warning in found if warning.source == "b"]
    assert "after 1 pass over 100 samples; its subset keeps 100 of 900 samples." in only.text
    assert "blend.sources.1.subset" in only.change


def test_a_nested_blend_is_reported_once_and_its_sources_are_not() -> None:
    inner = {"weight": 1, "blend": {"weight_unit": "images", "sources": [source("a"), source("b")]}}
    report, found = epoch([held(100), held(100), held(2000)], sources=[inner, source("c")])
    assert [(warning.source, warning.of) for warning in found] == [("a + b", ""), ("c", "")]
    a = report.sources[1]
    assert a.recipe == 0.5 and a.actual == pytest.approx(0.5, abs=0.005)
    assert a.of_whole.recipe == 0.25 and a.of_whole.actual == report.sources[0].actual * a.actual


def test_a_cause_inside_a_nested_blend_is_reported_for_its_sources() -> None:
    inside = {"weight_unit": "images", "on_exhaustion": "renormalize", "sources": [source("a"), source("b")]}
    _, found = epoch([held(900), held(100), held(1000)], sources=[{"weight": 1, "blend": inside}, source("c")])
    assert [(warning.source, warning.of) for warning in found] == [("a", "a + b"), ("b", "a + b")]
    assert "b is 10.0% of the images of a + b; the recipe says 50.0%" in found[1].text
    assert "blend.sources.0.blend.sources.1.repeat" in found[1].change


def test_deviations_that_add_up_are_reported_for_the_whole_blend() -> None:
    inside = {"weight_unit": "images", "on_exhaustion": "renormalize", "sources": [source("a"), source("b")]}
    _, found = epoch([held(540), held(460), held(860)], sources=[{"weight": 1, "blend": inside}, source("c")])
    (only,) = found
    assert (
        only.source == "a"
        and "of the whole blend; the recipe says 25.0%" in only.text
        and only.reason == "others_exhausted"
    )


def test_an_epoch_that_ends_before_its_weights_change() -> None:
    sources = [source("a", {0.0: 1, 0.5: 9}, on_exhaustion="stop"), source("b")]
    report, found = epoch([held(200), held(9000)], sources=sources, total_packs=500)
    assert report.packs.packs < 100 and {warning.reason for warning in found} == {"ended_early"}
    assert re.search(r"the epoch ends at pack \d+ of total_packs 500, before all weights apply", found[0].text)


def test_too_few_samples() -> None:
    sources = [source("a", 99), source("b", 1)]
    _, found = epoch([held(20, tokens=30), held(20, tokens=60)], sources=sources, total_packs=5)
    (only,) = [warning for warning in found if warning.source == "b"]
    assert only.reason == "too_few_samples" and "too few samples: the epoch has " in only.text
    assert only.change[-1] == "blend.total_packs"


def test_samples_that_the_released_order_omits() -> None:
    sources = [source("a"), source("b"), source("c", repeat=2)]
    report, found = epoch([held(160), held(15), held(7)], semantics="released_code", sources=sources)
    assert [share.recipe for share in report.sources] == pytest.approx([160 / 189, 15 / 189, 14 / 189])
    assert [(warning.source, warning.reason) for warning in found] == [(name, "left_out") for name in "abc"]
    assert "b: 7 samples per pass" in found[0].text and "c: 7 samples per pass" in found[0].text
    assert found[2].actual == 0 and found[2].change == ("pack.micro_batch", "pack.semantics")
    assert "c is 0.0% of the samples; the recipe says 7.41%" in found[2].text
    assert "7 samples per pass do not fill a micro-batch of 8 items" in found[2].text
