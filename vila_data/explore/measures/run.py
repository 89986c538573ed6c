"""The measures of a run, for run.json, report.html, card.md and `inspect`: one pass over columns, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from vila_data.core.layout import Part, tokens_folder
from vila_data.core.receipts import Receipt, fingerprint
from vila_data.core.store import Store
from vila_data.explore.measures.corpus import CorpusMeasures
from vila_data.explore.measures.counts import Binned
from vila_data.explore.measures.language import identifier_version, languages
from vila_data.recipe.recipe import Recipe
from vila_data.shard.manifest import Manifest

VERSION: Final = 1
"""Raised when the same columns would give other measures."""
_TOKEN_COLUMNS: Final = 32
_ROWS_A_BATCH: Final = 1 << 18

Corpora = Mapping[str, tuple[Sequence[Part], Sequence[Receipt]]]
"""Parts and filter receipts of each corpus whose fates are decided."""


def measure(
    store: Store,
    recipe: Recipe,
    corpora: Corpora,
    sets: Mapping[str, Manifest],
    tokens: Mapping[str, Mapping[str, Any]],
    earlier: Mapping[str, Any] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """JSON of the measures: {"inputs", "corpora": {name: ...}, "sets": {name: ...}, "languages": {set: ...}}.

    tokens:  the sets' entries of run.json: tokenizer, encoding, counts.
    earlier: measures of an earlier launch; taken as they are where they were made from the same files.
    advance: told of each part that is read.
    """
    inputs = _inputs(recipe, corpora, sets, tokens)
    if earlier is not None and earlier.get("inputs") == inputs:
        for parts, _ in corpora.values():
            for _ in parts:
                advance()
        return dict(earlier)
    found: dict[str, Any] = {"inputs": inputs, "corpora": {}, "sets": {}, "languages": {}}
    similarity = recipe.scores().similarity
    for name, (parts, _) in corpora.items():
        measured = CorpusMeasures(recipe.rules_for(name))
        for part in parts:
            measured.add(store, part, similarity)
            advance()
        found["corpora"][name] = measured.value()
    for name, counts in tokens.items():
        found["sets"][name] = _tokens(store, recipe, name, counts)
    for name in _first_of_each_corpus(sets):
        found["languages"][name] = languages(store, sets[name], recipe.seed)
    return found


def parts_to_measure(corpora: Corpora) -> int:
    """How often `measure` calls `advance`."""
    return sum(len(parts) for parts, _ in corpora.values())


def _inputs(recipe: Recipe, corpora: Corpora, sets: Mapping[str, Manifest], tokens: Mapping[str, Any]) -> str:
    return fingerprint(
        [
            VERSION,
            {
                name: [[receipt.inputs, receipt.fingerprint()] for receipt in receipts]
                for name, (_, receipts) in corpora.items()
            },
            {name: recipe.rules_for(name).model_dump(mode="json") for name in corpora},
            {name: manifest.inputs for name, manifest in sets.items()},
            {name: [counts["tokenizer"], counts["encoding"]] for name, counts in tokens.items()},
            [recipe.seed, identifier_version()],
        ]
    )


def _first_of_each_corpus(sets: Mapping[str, Manifest]) -> list[str]:
    """One set a corpus: two views of it hold the same texts."""
    first: dict[str, str] = {}
    for name, manifest in sets.items():
        first.setdefault(manifest.corpus, name)
    return list(first.values())


def _tokens(store: Store, recipe: Recipe, name: str, counts: Mapping[str, Any]) -> dict[str, Any]:
    """Lengths of a set's sequences, images expanded."""
    assert recipe.pack is not None
    length = recipe.pack.sequence_length
    binned = Binned(np.unique(np.linspace(0, length, _TOKEN_COLUMNS + 1).round()))
    path = f"{tokens_folder(counts['tokenizer'], name, counts['encoding'])}/lengths.parquet"
    with store.open_read(path) as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
        for batch in file.iter_batches(_ROWS_A_BATCH, columns=["tokens"], use_threads=False):
            values = batch.column(0).to_numpy().astype(np.float64)
            values = values[values > 0]
            binned.add(values, np.ones(len(values), bool))
    return {"tokens": binned.value("tokens of a sequence", "sequences", [("sequence_length", float(length))])}
