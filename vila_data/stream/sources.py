"""A blend's shard sets as they lie in a run: what each sample costs, and which take part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vila_data.blend.columns import subset_columns
from vila_data.blend.config import BlendConfig, Subset
from vila_data.blend.lengths import Lengths
from vila_data.blend.subset import SubsetFilter
from vila_data.core.errors import UsageError
from vila_data.core.layout import shard_stem
from vila_data.core.store import Store
from vila_data.core.tables import read_parquet
from vila_data.encode.config import PackConfig
from vila_data.encode.tokenizer import TextTokenizer
from vila_data.encode.tokens import TokenSet, open_tokens
from vila_data.shard.manifest import Manifest, manifest_path, read_manifest


@dataclass(frozen=True)
class SubsetCounts:
    """What a subset took of a set: samples that were asked about, those kept, and listed ids that no sample has."""

    name: str
    samples: int
    kept: int
    ids_not_met: int


@dataclass(frozen=True)
class BlendedSets:
    """lengths: of each of a blend's `leaves()`, in their order, subsets taken; subsets: a line for each of these."""

    lengths: list[Lengths]
    subsets: list[SubsetCounts]


def read_blended_sets(store: Store, blend: BlendConfig, pack: PackConfig, tokenizer: TextTokenizer) -> BlendedSets:
    """What the blend of a run's shard sets is planned from.

    Raises:
        UsageError: a shard set is not there, is not encoded as `pack` says, or a subset leaves nothing of it.
        DataError:  a file of it is damaged.
    """
    opened: dict[str, tuple[Manifest, TokenSet, pa.Table]] = {}
    found = BlendedSets([], [])
    for leaf in blend.leaves():
        name = leaf.source.name
        if name not in opened:
            manifest = read_manifest(store, name)
            if manifest is None:
                raise UsageError(f"{store.location(manifest_path(name))}: missing: set {name!r} is not finished")
            tokens = open_tokens(store, name, pack, tokenizer)
            opened[name] = (manifest, tokens, tokens.lengths())
        manifest, _, table = opened[name]
        lengths = Lengths.of_table(table, len(manifest.shards))
        if leaf.source.subset is not None:
            kept, counts = _kept(store, manifest, table, leaf.source.subset, lengths.ends)
            lengths = lengths.only(kept)
            found.subsets.append(counts)
        found.lengths.append(lengths)
    return found


def _kept(
    store: Store, manifest: Manifest, lengths: pa.Table, subset: Subset, ends: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], SubsetCounts]:
    """bool[samples of the set]: those of the subset; and its counts."""
    chosen = SubsetFilter(subset)
    kept = [np.zeros(0, np.bool_)]
    for shard, end in enumerate(ends.tolist()):
        start = int(ends[shard - 1]) if shard else 0
        with store.open_read(f"{shard_stem(manifest.name, shard)}.parquet") as stream:
            index = read_parquet(stream)
        kept.append(chosen.keep(subset_columns(index, lengths.slice(start, end - start), chosen.columns)))
    result = np.concatenate(kept)
    if not result.any():
        asked = subset.where or subset.ids or f"all but {subset.without_ids}"
        raise UsageError(f"blend: subset {asked!r} leaves no sample of set {manifest.name!r}")
    if subset.without_ids is not None and chosen.unmatched_ids() == chosen.listed:
        raise UsageError(
            f"blend: {subset.without_ids}: none of its {chosen.listed:,} ids is a record_id of set {manifest.name!r}, so "
            "it leaves nothing out; a record_id is <file's name>-<row> (vila-data inspect of a shard shows some)"
        )
    return result, SubsetCounts(manifest.name, chosen.samples, chosen.kept, chosen.unmatched_ids())
