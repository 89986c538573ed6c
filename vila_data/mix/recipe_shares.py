"""The shares that a blend's weights give as the recipe has them, before anything is exhausted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from vila_data.mix.config import InnerBlend


@dataclass(frozen=True)
class RecipeShare:
    """of_blend: share of the blend that the source is in; of_whole: the same times the shares of all blends around it."""

    of_blend: float
    of_whole: float


def recipe_shares(blend: InnerBlend) -> dict[str, RecipeShare]:
    """{a source's place, as ``sources.0.blend.sources.1``: its shares}, in the recipe's order.

    Weights that change are averaged over the epoch's steps. The share of a source in an inner blend counts the steps as
    much as that blend weighs in them.
    """
    found: dict[str, float] = {}
    for start, end in pairwise((0.0, *blend.changes(), 1.0)):
        for path, share in _at(blend, start, "", 1.0):
            found[path] = found.get(path, 0.0) + (end - start) * share
    return {path: RecipeShare(_ratio(whole, found.get(blend_of(path), 1.0)), whole) for path, whole in found.items()}


def blend_of(path: str) -> str:
    """The place of the source that holds a source: ``sources.0`` for ``sources.0.blend.sources.1``; "" at the top."""
    return path.rpartition(".blend.")[0]


def _at(blend: InnerBlend, step_share: float, place: str, whole: float) -> Iterator[tuple[str, float]]:
    weights = [source.weight_at(step_share) for source in blend.sources]
    for index, (source, weight) in enumerate(zip(blend.sources, weights, strict=True)):
        path, share = f"{place}sources.{index}", whole * weight / sum(weights)
        yield path, share
        if source.blend is not None:
            yield from _at(source.blend, step_share, f"{path}.blend.", share)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
