"""Open a blend's shard sets in a run: the lengths of their samples, with subsets applied."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vila_data.core.errors import UsageError
from vila_data.core.layout import shard_stem
from vila_data.core.store import Store
from vila_data.encode.config import PackConfig
from vila_data.encode.tokens import KnownTokenizer, TokenManifest, open_tokens
from vila_data.mix.config import BlendConfig
from vila_data.mix.lengths import Lengths
from vila_data.mix.subset import Subset, SubsetFilter, index_columns, subset_columns
from vila_data.shard.manifest import Manifest, manifest_path, read_manifest
from vila_data.shard.read import read_index

_COLUMNS: Final = ("shard", "row", "tokens", "images")
_READERS: Final = 16


@dataclass(frozen=True)
class SubsetCounts:
    """What a subset kept of a set: samples checked, samples kept, and listed ids that no sample has."""

    name: str
    samples: int
    kept: int
    ids_not_met: int


@dataclass(frozen=True)
class OpenedSet:
    """A shard set and its token files, opened by reading manifests alone.

    shards: its manifest; token_directory: of its token files in the store; tokens: their manifest.
    """

    name: str
    shards: Manifest
    token_directory: str
    tokens: TokenManifest


@dataclass(frozen=True)
class BlendedSets:
    """What a blend is planned and read from.

    lengths, sets: for each of the blend's `leaves()`, in their order, subsets applied; a set that is in the blend twice
    is listed twice. subsets: one entry per subset.
    """

    lengths: list[Lengths]
    subsets: list[SubsetCounts]
    sets: list[OpenedSet]


def read_blended_sets(store: Store, blend: BlendConfig, pack: PackConfig, tokenizer: KnownTokenizer) -> BlendedSets:
    """Open the shard sets of a run's blend.

    Reads two manifests and one table per set, and nothing of a shard unless a subset needs columns of its index.

    Raises:
        UsageError: a shard set is missing, is not encoded as `pack` says, or a subset keeps nothing of it.
        DataError:  one of its files is damaged.
    """
    opened: dict[str, tuple[OpenedSet, Lengths, pa.Table]] = {}
    found = BlendedSets([], [], [])
    with_subset = {leaf.source.name for leaf in blend.leaves() if leaf.source.subset is not None}
    for leaf in blend.leaves():
        name = leaf.source.name
        if name not in opened:
            opened[name] = _open(store, name, pack, tokenizer, name in with_subset)
        shard_set, lengths, table = opened[name]
        if leaf.source.subset is not None:
            kept, counts = _kept(store, name, lengths, table, leaf.source.subset)
            lengths = lengths.only(kept)
            found.subsets.append(counts)
        found.lengths.append(lengths)
        found.sets.append(shard_set)
    return found


def _open(
    store: Store, name: str, pack: PackConfig, tokenizer: KnownTokenizer, subset: bool
) -> tuple[OpenedSet, Lengths, pa.Table]:
    manifest = read_manifest(store, name)
    if manifest is None:
        raise UsageError(
            f"{store.location(manifest_path(name))} is missing: set {name!r} is not finished. If {store.location('')} is "
            "the run, finish it with vila-data run"
        )
    tokens = open_tokens(store, name, pack, tokenizer)
    table = tokens.lengths(_COLUMNS + ("text_tokens",) * subset)
    opened = OpenedSet(name, manifest, tokens.folder, tokens.manifest)
    return opened, Lengths.of_table(table, len(manifest.shards)), table


def _kept(
    store: Store, name: str, lengths: Lengths, table: pa.Table, subset: Subset
) -> tuple[NDArray[np.bool_], SubsetCounts]:
    """bool[samples of the set]: whether each is in the subset; and its counts."""
    chosen = SubsetFilter(subset)
    columns = index_columns(chosen.columns)
    kept = [np.zeros(0, np.bool_)]

    def index_of(shard: int) -> pa.Table:
        return read_index(store, f"{shard_stem(name, shard)}.parquet", columns)

    with ThreadPoolExecutor(_READERS) as pool:
        indexes = pool.map(index_of, range(len(lengths.ends))) if columns else None
        for end, size in zip(lengths.ends.tolist(), lengths.sizes.tolist(), strict=True):
            rows = table.slice(end - size, size)
            index = rows if indexes is None else next(indexes)
            kept.append(chosen.keep(subset_columns(index, rows, chosen.columns)))
    result = np.concatenate(kept)
    if not result.any():
        described = subset.where or subset.include_ids or f"exclude_ids: {subset.exclude_ids}"
        raise UsageError(f"blend: subset {described!r} keeps no sample of set {name!r}")
    if subset.exclude_ids is not None and chosen.unmatched_ids() == chosen.listed:
        raise UsageError(
            f"blend: {subset.exclude_ids}: none of its {chosen.listed:,} ids is a record_id in set {name!r}, so nothing "
            "would be excluded. A record_id is <file name>-<row>; `vila-data inspect` on a shard shows examples."
        )
    return result, SubsetCounts(name, chosen.samples, chosen.kept, chosen.unmatched_ids())
