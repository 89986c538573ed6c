"""Lengths and blends that tests make."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import strategies as st

from vila_data.mix.config import BlendConfig
from vila_data.mix.lengths import Lengths
from vila_data.mix.plan import Block
from vila_data.mix.planner import BlendPlanner

CAPACITY = 64


def blend(**values: Any) -> BlendConfig:
    """A blend as a recipe gives it: strict, from JSON."""
    return BlendConfig.model_validate_json(json.dumps(values))


def lengths(samples: int, *, shards: int = 1, seed: int = 0, images: int = 3, absent: float = 0.0) -> Lengths:
    """`samples` rows in `shards` shards; each has an image at least (if `images`), some are not in the stream."""
    rng = np.random.default_rng([seed, samples, shards])
    made = []
    for rows in np.array_split(np.arange(samples), shards):
        tokens = rng.integers(1, CAPACITY // 2, len(rows)).astype(np.int32)
        tokens[rng.random(len(rows)) < absent] = 0
        made.append((tokens, rng.integers(min(images, 1), images + 1, len(rows)).astype(np.int32)))
    if not any(tokens.any() for tokens, _ in made):
        made[0][0][:1] = 1
    return Lengths.of_shards(made)


def blocks(planner: BlendPlanner, most: int = 10_000) -> list[Block]:
    """The rest of a plan; fails where it does not end."""
    found = []
    while (block := planner.next_block()) is not None:
        found.append(block)
        assert len(found) < most
    return found


def listed(found: list[Block]) -> list[tuple[int, ...]]:
    """(source, pass, shard, row) of every sample."""
    return [
        entry
        for block in found
        for entry in zip(
            *(
                column.tolist()
                for column in (block.samples.source, block.samples.pass_, block.samples.shard, block.samples.row)
            ),
            strict=True,
        )
    ]


@st.composite
def cases(draw: st.DrawFn, *, nested: bool = True) -> tuple[BlendConfig, list[Lengths]]:
    """A blend of any shape that ends, and its lengths."""
    total = draw(st.sampled_from([None, None, 7, 60]))
    made: list[Lengths] = []

    def source(depth: int, rule: str) -> dict[str, Any]:
        weights: list[Any] = [1, 2.5, 0.5]
        if total is not None:
            weights += [{"0.0": 1, "0.5": 3}, {"0.0": 2, "0.3": 0, "0.6": 1}]
        value: dict[str, Any] = {"weight": draw(st.sampled_from(weights))}
        own = draw(st.sampled_from([None, None, "stop", "renormalize", "repeat"]))
        if own is not None:
            value["on_exhaustion"] = own
        bounds: list[Any] = [None, [1, None], [2, None]] if (own or rule) == "repeat" else [None, 1, 2, [1, 3]]
        if (repeat := draw(st.sampled_from(bounds))) is not None:
            value["repeat"] = repeat
        if nested and depth < 2 and draw(st.integers(0, 3)) == 0:
            return value | {"blend": level(depth + 1)}
        made.append(lengths(draw(st.integers(4, 60)), shards=draw(st.integers(1, 4)), seed=len(made), absent=0.2))
        return value | {"shards": f"set{len(made)}"}

    def level(depth: int) -> dict[str, Any]:
        rule = draw(st.sampled_from(["stop", "renormalize", "repeat"]))
        found = [source(depth, rule) for _ in range(draw(st.integers(1, 3)))]
        if total is not None:
            found[0]["weight"] = 1
        unit = draw(st.sampled_from(["samples", "images", "tokens"]))
        return {"weight_unit": unit, "on_exhaustion": rule, "sources": found}

    return blend(**level(0), total_packs=total), made
