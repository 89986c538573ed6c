"""`.nv-meta/`: what Megatron-Energon reads beside the tars."""

from __future__ import annotations

from collections.abc import Sequence

from vila_data.core.store import Store
from vila_data.shard.config import View


def write_metadata(store: Store, folder: str, view: View, shards: Sequence[tuple[str, int]]) -> None:
    """Write dataset.yaml, split.yaml and .info.json for shards given as (tar name, samples)."""
