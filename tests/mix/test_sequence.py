"""The sequence of packs: every planned sample in one pack, shares over short windows, the same after any restore."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.mix.made_lengths import CAPACITY, blend, cases, lengths
from vila_data.core.errors import DataError, UsageError
from vila_data.encode.config import PackConfig
from vila_data.mix.config import BlendConfig
from vila_data.mix.lengths import Lengths
from vila_data.mix.planner import BlendPlanner
from vila_data.mix.sequence import PackSequence, PlannedPacks


def pack(**values: Any) -> PackConfig:
    return PackConfig(**({"tokenizer": "none", "sequence_length": CAPACITY, "tokens_per_image": 9} | values))


def corpora(capacity: int = 4096) -> list[Lengths]:
    """Documents of several images, pairs, conversations with and without images: some hundred tokens a sample."""
    rng = np.random.default_rng(5)
    made = []
    for samples, images, text in [(9000, (1, 6), 400), (20000, (1, 1), 25), (3000, (0, 2), 300)]:
        shown = rng.integers(images[0], images[1] + 1, samples).astype(np.int32)
        tokens = rng.lognormal(np.log(text), 0.7, samples) + shown * 144 + 2
        parts = zip(
            np.array_split(np.minimum(tokens, capacity).astype(np.int32), 9), np.array_split(shown, 9), strict=True
        )
        made.append(Lengths.of_shards(list(parts)))
    return made


def same(left: PlannedPacks, right: PlannedPacks) -> bool:
    arrays = zip((*left.samples.columns(), left.ends), (*right.samples.columns(), right.ends), strict=True)
    return left.first_pack == right.first_pack and all(np.array_equal(one, other) for one, other in arrays)


@given(cases(), st.sampled_from(["paper", "improved"]), st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_packs_hold_what_was_planned_within_the_capacity(
    case: tuple[BlendConfig, list[Lengths]], semantics: str, seed: int
) -> None:
    config, held = case
    sequence = PackSequence(config, pack(semantics=semantics), held, seed=seed, epoch=0)
    planner = BlendPlanner(
        config, held, seed=seed, epoch=0, capacity=CAPACITY, samples_per_pack=1 if semantics == "paper" else None
    )
    packs = samples = 0
    for planned in sequence:
        block = planner.next_block()
        assert block is not None and planned.first_pack == packs and len(planned)
        planner.packed(len(planned))
        packs += len(planned)
        samples += len(planned.samples)
        held_tokens = np.add.reduceat(planned.samples.tokens, np.concatenate([[0], planned.ends[:-1]]))
        assert (np.diff(planned.ends, prepend=0) > 0).all() and (held_tokens <= CAPACITY).all()
        found, expected = (
            sorted(zip(*(column.tolist() for column in run.columns()), strict=True))
            for run in (planned.samples, block.samples)
        )
        assert found == expected or (packs == config.total_packs and set(found) < set(expected))
    report = sequence.report()
    assert report.packs.packs == packs and report.packs.samples == samples
    assert config.total_packs is None or packs <= config.total_packs
    assert report.events[-1].kind == "ended"
    leaves = [source for source in report.sources if source.passes is not None]
    assert sum(source.samples for source in leaves) == samples
    assert json.loads(json.dumps(report.as_dict()))["packs"]["tokens"] == sum(source.tokens for source in leaves)


@pytest.mark.parametrize("semantics", ["paper", "improved"])
def test_the_order_never_changes(semantics: str) -> None:
    """States name packs by their numbers: where this fails, raise STATE_VERSION of planner and released."""
    config = blend(weight_unit="images", sources=[{"shards": "a", "weight": 2}, {"shards": "b", "weight": 1}])
    held = [lengths(3_000, shards=7, seed=1), lengths(900, shards=2, seed=2)]
    digest = hashlib.sha256()
    for planned in PackSequence(config, pack(semantics=semantics), held, seed=3, epoch=1):
        for column in (planned.ends, *planned.samples.columns()):
            digest.update(column.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == ORDERS[semantics]


ORDERS = {"paper": "c5b4d46e5fda6fad", "improved": "ac5ee501a765b7ea"}


@given(cases(), st.sampled_from(["paper", "improved"]), st.data())
@settings(max_examples=25, deadline=None)
def test_packs_after_a_restore_are_those_of_an_undisturbed_run(
    case: tuple[BlendConfig, list[Lengths]], semantics: str, data: st.DataObject
) -> None:
    config, held = case
    whole = list(PackSequence(config, pack(semantics=semantics), held, seed=1, epoch=2))
    at = data.draw(st.integers(0, len(whole) - 1))
    sequence = PackSequence(config, pack(semantics=semantics), held, seed=1, epoch=2)
    sequence.restore(json.loads(json.dumps(whole[at].before)))
    rest = list(sequence)
    assert len(rest) == len(whole) - at and all(map(same, rest, whole[at:]))


@pytest.mark.parametrize("unit", ["samples", "images", "tokens"])
@pytest.mark.parametrize("rule", ["repeat", "renormalize"])
def test_shares_hold_over_every_window_of_1000_packs(unit: str, rule: str) -> None:
    sources = [{"shards": name, "weight": weight} for name, weight in [("docs", 4), ("pairs", 3), ("chat", 2)]]
    sequence = PackSequence(
        blend(weight_unit=unit, on_exhaustion=rule, sources=sources),
        pack(sequence_length=4096, tokens_per_image=144),
        corpora(),
        seed=0,
        epoch=0,
    )
    held = [np.add.reduceat(_units(planned, unit), np.concatenate([[0], planned.ends[:-1]])) for planned in sequence]
    report = sequence.report()
    assert report.windows == sum(len(entry) for entry in held) - 999 > 1000
    assert report.worst_window <= 0.005
    assert report.worst_window == max(source.worst_window for source in report.sources)
    for source in report.sources:
        assert abs(source.actual - source.target) < 0.001
    if rule == "repeat":
        assert report.worst_window == pytest.approx(_worst(sequence, np.concatenate(held), unit), abs=1e-9)


def _units(planned: PlannedPacks, unit: str) -> np.ndarray:
    run = planned.samples
    values = {"samples": np.ones(len(run), np.int64), "images": run.images, "tokens": run.tokens}[unit]
    return np.stack([values * (run.source == number) for number in range(3)], axis=1).astype(np.int64)


def _worst(sequence: PackSequence, held: np.ndarray, unit: str) -> float:
    """The worst window, window by window."""
    target = np.asarray([4, 3, 2]) / 9
    sums = np.concatenate([np.zeros((1, 3)), np.cumsum(held, axis=0)])
    windows = sums[1000:] - sums[:-1000]
    return float(np.abs(windows / windows.sum(axis=1, keepdims=True) - target).max())


def test_a_blend_inside_and_weights_that_change() -> None:
    inner = {"weight_unit": "samples", "on_exhaustion": "repeat"}
    inner["sources"] = [{"shards": "pairs", "weight": 3}, {"shards": "chat", "weight": 1}]
    sources = [
        {"shards": "docs", "weight": {"0.0": 1, "0.5": 3}},
        {"blend": inner, "weight": 1, "on_exhaustion": "repeat"},
    ]
    config = blend(weight_unit="tokens", on_exhaustion="repeat", total_packs=4000, sources=sources)
    held = corpora()
    sequence = PackSequence(config, pack(sequence_length=4096, tokens_per_image=144), held, seed=0, epoch=0)
    assert sum(len(planned) for planned in sequence) == 4000
    report = sequence.report()
    assert report.worst_window <= 0.005 and max(source.worst_window for source in report.sources) <= 0.01
    docs, mixed, pairs, chat = report.sources
    assert docs.target == pytest.approx(0.625, abs=0.005) and mixed.passes is None
    assert pairs.actual == pytest.approx(0.75, abs=0.002) and pairs.unit == "samples"
    assert mixed.samples == pairs.samples + chat.samples
    (change,) = [event for event in report.events if event.kind == "weights"]
    assert 2000 <= change.pack <= 2020


def test_total_packs_cuts_the_last_block_and_says_how_much() -> None:
    held = [lengths(500, seed=1)]
    config = blend(weight_unit="samples", total_packs=40, sources=[{"shards": "a", "weight": 1}])
    sequence = PackSequence(config, pack(), held, seed=0, epoch=0)
    planned = list(sequence)
    report = sequence.report()
    assert sum(len(entry) for entry in planned) == report.packs.packs == 40
    assert report.events[-1].followed == "total_packs 40" and report.events[-1].pack == 40
    assert report.samples_left_out == report.events[-1].sample - sum(len(entry.samples) for entry in planned)


def test_packs_per_step_changes_the_measure_not_the_order() -> None:
    config = blend(
        weight_unit="images",
        on_exhaustion="repeat",
        sources=[{"shards": name, "weight": 1} for name in ("docs", "pairs", "chat")],
    )
    config_of_pack = pack(sequence_length=4096, tokens_per_image=144)
    one, four = (
        PackSequence(config, config_of_pack, corpora(), seed=0, epoch=0, packs_per_step=packs) for packs in (1, 4)
    )
    assert all(map(same, one, four))
    assert 0 < four.report().worst_window < one.report().worst_window
    assert four.report().windows == four.report().packs.packs // 4 - 999


def test_bad_input() -> None:
    config = blend(weight_unit="samples", sources=[{"shards": "a", "weight": 1}])
    with pytest.raises(DataError, match="a has a sample with 3 images, but pack"):
        PackSequence(config, pack(max_images_per_pack=2), [lengths(50)], seed=0, epoch=0)
    sequence = PackSequence(config, pack(), [lengths(50)], seed=0, epoch=0)
    with pytest.raises(UsageError, match="no packs and plan"):
        sequence.restore({})
    with pytest.raises(UsageError, match="differ"):
        sequence.restore(PackSequence(config, pack(), [lengths(50)], seed=1, epoch=0).state())
