"""A blend's shard sets as they lie in a run: what each sample costs, and which take part."""

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
from vila_data.mix.columns import index_columns, subset_columns
from vila_data.mix.config import BlendConfig, Subset
from vila_data.mix.lengths import Lengths
from vila_data.mix.subset import SubsetFilter
from vila_data.shard.manifest import Manifest, manifest_path, read_manifest
from vila_data.shard.read import read_index

_COLUMNS: Final = ("shard", "row", "tokens", "images")
_READERS: Final = 16


@dataclass(frozen=True)
class SubsetCounts:
    """What a subset took of a set: samples that were asked about, those kept, and listed ids that no sample has."""

    name: str
    samples: int
    kept: int
    ids_not_met: int


@dataclass(frozen=True)
class OpenedSet:
    """A shard set and its token files, as far as opening needs no more than manifests.

    shards: its manifest; folder: of its token files in the store; tokens: their manifest.
    """

    name: str
    shards: Manifest
    folder: str
    tokens: TokenManifest


@dataclass(frozen=True)
class BlendedSets:
    """What a blend is planned and read from.

    lengths, sets: for each of the blend's `leaves()`, in their order, subsets taken; a set that stands there twice is
    there twice. subsets: a line for each subset.
    """

    lengths: list[Lengths]
    subsets: list[SubsetCounts]
    sets: list[OpenedSet]


def read_blended_sets(store: Store, blend: BlendConfig, pack: PackConfig, tokenizer: KnownTokenizer) -> BlendedSets:
    """What the blend of a run's shard sets is planned from.

    Two manifests and one table a set are read, nothing of a shard unless a subset asks for columns of its index.

    Raises:
        UsageError: a shard set is not there, is not encoded as `pack` says, or a subset leaves nothing of it.
        DataError:  a file of it is damaged.
    """
    opened: dict[str, _Read] = {}
    found = BlendedSets([], [], [])
    asked = {leaf.source.name for leaf in blend.leaves() if leaf.source.subset is not None}
    for leaf in blend.leaves():
        name = leaf.source.name
        if name not in opened:
            opened[name] = _read(store, name, pack, tokenizer, name in asked)
        held = opened[name]
        lengths = held.lengths
        if leaf.source.subset is not None:
            kept, counts = _kept(store, held, leaf.source.subset)
            lengths = lengths.only(kept)
            found.subsets.append(counts)
        found.lengths.append(lengths)
        found.sets.append(held.opened)
    return found


@dataclass(frozen=True)
class _Read:
    opened: OpenedSet
    lengths: Lengths
    table: pa.Table


def _read(store: Store, name: str, pack: PackConfig, tokenizer: KnownTokenizer, subset: bool) -> _Read:
    manifest = read_manifest(store, name)
    if manifest is None:
        raise UsageError(
            f"{store.location(manifest_path(name))}: missing: set {name!r} is not finished; vila-data run finishes it, if {store.location('')} is the run"
        )
    tokens = open_tokens(store, name, pack, tokenizer)
    table = tokens.lengths(_COLUMNS + ("text_tokens",) * subset)
    opened = OpenedSet(name, manifest, tokens.folder, tokens.manifest)
    return _Read(opened, Lengths.of_table(table, len(manifest.shards)), table)


def _kept(store: Store, held: _Read, subset: Subset) -> tuple[NDArray[np.bool_], SubsetCounts]:
    """bool[samples of the set]: those of the subset; and its counts."""
    chosen = SubsetFilter(subset)
    name, columns = held.opened.name, index_columns(chosen.columns)
    kept = [np.zeros(0, np.bool_)]

    def index_of(shard: int) -> pa.Table:
        return read_index(store, f"{shard_stem(name, shard)}.parquet", columns)

    with ThreadPoolExecutor(_READERS) as pool:
        indexes = pool.map(index_of, range(len(held.lengths.ends))) if columns else None
        for end, size in zip(held.lengths.ends.tolist(), held.lengths.sizes.tolist(), strict=True):
            lengths = held.table.slice(end - size, size)
            index = lengths if indexes is None else next(indexes)
            kept.append(chosen.keep(subset_columns(index, lengths, chosen.columns)))
    result = np.concatenate(kept)
    if not result.any():
        asked = subset.where or subset.ids or f"all but {subset.without_ids}"
        raise UsageError(f"blend: subset {asked!r} leaves no sample of set {name!r}")
    if subset.without_ids is not None and chosen.unmatched_ids() == chosen.listed:
        raise UsageError(
            f"blend: {subset.without_ids}: none of its {chosen.listed:,} ids is a record_id of set {name!r}, so "
            "it leaves nothing out; a record_id is <file's name>-<row> (vila-data inspect of a shard shows some)"
        )
    return result, SubsetCounts(name, chosen.samples, chosen.kept, chosen.unmatched_ids())
