"""Training sequences of records that a preview shows: found by key, cut into what is trained and what is not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vila_data.core.errors import VilaDataError
from vila_data.core.layout import record_key, shard_stem, tokens_folder
from vila_data.core.tables import IGNORED, IMAGE_ID, parsing, read_arrow
from vila_data.encode.token_set import TokenSample, TokenSet, read_token_manifest
from vila_data.encode.tokenizer import TextTokenizer
from vila_data.encode.tokens import encoding_fingerprint
from vila_data.explore.preview.faults import DAMAGE, TokenFaults
from vila_data.explore.preview.source import Place
from vila_data.explore.preview.values import ShownTokens, TokenPiece
from vila_data.runs.run import Run
from vila_data.shard.read import read_index

_IDS_SHOWN: Final = 2_000
_FILES: Final = 4


class TokenFiles:
    """The token files of a run's sets, for its recipe's tokenizer; none where there are none or it cannot be loaded.

    faults: those that cannot be read; what they hold is not shown.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._store, self._recipe = run, run.store, run.recipe
        self.notes: tuple[str, ...] = ()
        self.faults = TokenFaults()
        self._tokenizer: TextTokenizer | None = None
        self._sets: dict[str, TokenSet] = {}
        self._facts = lru_cache(maxsize=_FILES)(self._read_facts)
        pack, store = run.recipe.pack, run.store
        if pack is None or not store.exists("tokens"):
            return
        try:
            self._tokenizer = run.tokenizer
        except VilaDataError as error:
            self.notes = (f"Tokens are not shown: {error}",)
            return
        encoding = encoding_fingerprint(pack, self._tokenizer)
        for name in run.recipe.shards:
            folder = tokens_folder(self._tokenizer.fingerprint, name, encoding)
            try:
                manifest = read_token_manifest(store, folder)
                if manifest is not None and run.manifest(name) is not None:
                    self._sets[name] = TokenSet(store, manifest, folder)
            except DAMAGE as error:
                self.faults.add(store.location(f"{folder}/manifest.json"), error)

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """The recipe's tokenizer, where there are token files and it can be loaded."""
        return self._tokenizer

    def find(self, places: Sequence[Place], corpora: Sequence[str]) -> dict[Place, ShownTokens]:
        """Sequences of records, by part and row of their corpora, from the set that holds them whole."""
        found: dict[Place, ShownTokens] = {}
        for number, corpus in enumerate(corpora):
            wanted = [place for place in dict.fromkeys(places) if place.corpus == number]
            name = self._set_of(corpus)
            if wanted and name is not None:
                keys = {self._key(name, place): place for place in wanted}
                for key, tokens in self._by_key(name, set(keys)):
                    if tokens is not None:
                        found[keys[key]] = tokens
        return found

    def of_set(self, name: str, places: Sequence[Place]) -> dict[Place, ShownTokens]:
        """Sequences of samples, by shard and row of a set."""
        if name not in self._sets:
            return {}
        found = {place: self._shown(name, place.part, place.row) for place in sorted(set(places))}
        return {place: tokens for place, tokens in found.items() if tokens is not None}

    def _set_of(self, corpus: str) -> str | None:
        sets = [name for name in self._sets if self._recipe.shards[name].corpus == corpus]
        kind = self._recipe.corpora[corpus].makes
        whole = [name for name in sets if kind == "pair" or self._recipe.shards[name].view != "pairs"]
        return next(iter(whole), None)

    def _key(self, name: str, place: Place) -> str:
        key = record_key(name, place.part, place.row)
        return f"{key}-000" if self._recipe.shards[name].view == "pairs" else key

    def _by_key(self, name: str, keys: set[str]) -> list[tuple[str, ShownTokens | None]]:
        """Those of the keys that the set has, None where they cannot be read; shards are read until all are found."""
        manifest = self._run.manifest(name)
        assert manifest is not None
        found: list[tuple[str, ShownTokens | None]] = []
        wanted = pa.array(sorted(keys), pa.string())
        for shard in range(len(manifest.shards)):
            index = f"{shard_stem(name, shard)}.parquet"
            try:
                column = read_index(self._store, index, ["key"]).column("key")
            except DAMAGE as error:
                self.faults.add(self._store.location(index), error)
                continue
            for row in np.flatnonzero(pc.is_in(column, value_set=wanted).to_numpy()).tolist():
                found.append((column[row].as_py(), self._shown(name, shard, row)))
            if len(found) == len(keys):
                break
        return found

    def _shown(self, name: str, shard: int, row: int) -> ShownTokens | None:
        """A sample's sequence; None, and a fault more, where its token file cannot be read."""
        try:
            return self._read(name, shard, row)
        except DAMAGE as error:
            self.faults.add(self._store.location(self._path(name, shard)), error, sequences=1)
            return None

    def _path(self, name: str, shard: int) -> str:
        return f"{self._sets[name].folder}/{name}-{shard:06d}.arrow"

    def _read(self, name: str, shard: int, row: int) -> ShownTokens:
        assert self._tokenizer is not None
        sample = self._sets[name].sample(shard, row)
        facts = self._facts(name, shard).slice(row, 1).to_pylist()[0]
        return ShownTokens(
            shard_set=name,
            pieces=tuple(pieces_of(sample, self._tokenizer, _IDS_SHOWN)),
            tokens=sample.tokens,
            trained=int(np.count_nonzero((sample.labels != IGNORED) & (sample.ids != IMAGE_ID))),
            images_left_out=facts["images_left_out"],
            cut=facts["tokens_cut"],
            more=max(0, len(sample.ids) - _IDS_SHOWN),
            fate=": ".join(filter(None, (facts["fate"], facts["detail"]))),
        )

    def _read_facts(self, name: str, shard: int) -> pa.Table:
        """What a token file says beside ids and places."""
        path = self._path(name, shard)
        where = self._store.location(path)
        with parsing(where, "a token file", "delete it and run the recipe again", OSError):
            if self._store.is_local:
                table = read_arrow(pa.memory_map(where))
            else:
                table = read_arrow(pa.py_buffer(self._store.read(path)))
        facts = table.select(["images_left_out", "tokens_cut", "fate", "detail"])
        facts.validate(full=True)  # a damaged text's end may lie outside the file
        return facts


def pieces_of(sample: TokenSample, tokenizer: TextTokenizer, limit: int) -> list[TokenPiece]:
    """The first `limit` ids of a sample as text, cut where training begins and ends, and its images."""
    ids = sample.ids[:limit]
    is_trained = np.zeros(len(ids), np.bool_)
    for first, stop in sample.trained.tolist():
        is_trained[first:stop] = True
    pieces: list[TokenPiece] = []
    marks = np.flatnonzero(ids == IMAGE_ID).tolist()
    for number, (first, stop) in enumerate(zip([0, *(mark + 1 for mark in marks)], [*marks, len(ids)], strict=True)):
        if number:
            pieces.append(TokenPiece("", image=int(sample.images[number - 1])))
        pieces += _texts(ids[first:stop].tolist(), is_trained[first:stop].tolist(), tokenizer)
    return pieces


def _texts(ids: list[int], trained: list[bool], tokenizer: TextTokenizer) -> list[TokenPiece]:
    """Ids without an image, decoded together, since spaces depend on what stands before; then cut."""
    cuts = [at for at in range(1, len(ids)) if trained[at] != trained[at - 1]]
    whole = tokenizer.decode(ids) if ids else ""
    pieces, done, start = [], 0, 0
    for stop in [*cuts, len(ids)]:
        end = len(whole) if stop == len(ids) else _shared(whole, tokenizer.decode(ids[:stop]))
        if end > done:
            pieces.append(TokenPiece(whole[done:end], trained=trained[start]))
        done, start = max(done, end), stop
    return pieces


def _shared(whole: str, head: str) -> int:
    """Characters at the beginning that both have: a cut inside a character's bytes decodes to another one."""
    return next((at for at, (a, b) in enumerate(zip(whole, head, strict=False)) if a != b), min(len(whole), len(head)))
