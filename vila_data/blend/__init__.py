"""Lengths to an order of samples: which come next, from which shard set, so that shares are what the recipe asks."""

from vila_data.blend.config import BlendConfig, BlendLeaf, BlendSource, InnerBlend, Subset, Unit
from vila_data.blend.events import BlendEvent
from vila_data.blend.lengths import Lengths, SourceReader
from vila_data.blend.planner import BlendPlanner, Block
from vila_data.blend.recipe_shares import RecipeShare, recipe_shares
from vila_data.blend.subset import SubsetFilter
from vila_data.blend.tree import Edge

__all__ = [
    "BlendConfig",
    "BlendEvent",
    "BlendLeaf",
    "BlendPlanner",
    "BlendSource",
    "Block",
    "Edge",
    "InnerBlend",
    "Lengths",
    "RecipeShare",
    "SourceReader",
    "Subset",
    "SubsetFilter",
    "Unit",
    "recipe_shares",
]
