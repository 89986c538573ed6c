"""Training sequences and packs of a run, from its token files: found by key, decoded, split by what counts in the loss."""

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
from vila_data.explore.preview.records import (
    DamagedTokenFiles,
    PackedSample,
    PreviewPack,
    RecordLocation,
    TokenPiece,
    TrainingSequence,
)
from vila_data.loader.assemble import Expansion
from vila_data.mix.released import released_blend
from vila_data.mix.sequence import PackSequence, PlannedPacks
from vila_data.mix.shard_sets import BlendedSets, read_blended_sets
from vila_data.runs.run import Run
from vila_data.shard.read import read_index

_IDS_SHOWN: Final = 2_000
_FILES: Final = 4
_DAMAGE: Final = (VilaDataError, pa.ArrowException, ValueError, LookupError, OverflowError, TypeError)
"""What reading a token file raises if it is missing, cut short or has other bytes."""


class TokenFiles:
    """The token files of a run's sets for its recipe's tokenizer; none if there are none or it cannot be loaded.

    notes: why tokens are not shown. damaged: files that could not be read.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._store, self._recipe = run, run.store, run.recipe
        self.notes: tuple[str, ...] = ()
        self.damaged = DamagedTokenFiles()
        self._tokenizer: TextTokenizer | None = None
        self._sets: dict[str, TokenSet] = {}
        self._columns = lru_cache(maxsize=_FILES)(self._read_columns)
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
            directory = tokens_folder(self._tokenizer.fingerprint, name, encoding)
            try:
                manifest = read_token_manifest(store, directory)
                if manifest is not None and run.manifest(name) is not None:
                    self._sets[name] = TokenSet(store, manifest, directory)
            except _DAMAGE as error:
                self.damaged.add(store.location(f"{directory}/manifest.json"), error)

    def of_run(
        self, locations: Sequence[RecordLocation], corpora: Sequence[str]
    ) -> dict[RecordLocation, TrainingSequence]:
        """Sequences of records by part and row of their corpora, each from the set that has the whole record."""
        found: dict[RecordLocation, TrainingSequence] = {}
        for number, corpus in enumerate(corpora):
            wanted = [location for location in dict.fromkeys(locations) if location.corpus == number]
            name = self._set_of(corpus)
            if wanted and name is not None:
                found |= self._by_key(name, {self._key(name, location): location for location in wanted})
        return found

    def of_set(self, name: str, locations: Sequence[RecordLocation]) -> dict[RecordLocation, TrainingSequence]:
        """Sequences of samples by shard and row of a set."""
        if name not in self._sets:
            return {}
        found = {location: self._sequence(name, location.part, location.row) for location in sorted(set(locations))}
        return {location: sequence for location, sequence in found.items() if sequence is not None}

    def packs(self, count: int) -> tuple[tuple[PreviewPack, ...], tuple[str, ...], str]:
        """The first `count` packs of the first epoch, the names of their sets, and, if there are none, why.

        A pack whose token files cannot be read is omitted and counted in `damaged`.
        """
        blend, pack = self._recipe.blend, self._recipe.pack
        if blend is None or pack is None:
            return (), (), "Packs are not shown because the run has no blend."
        if self._tokenizer is None:
            return (), (), "Packs are not shown because the run's token files or tokenizer are not available."
        try:
            sets = read_blended_sets(self._store, blend, pack, self._tokenizer)
            released = released_blend(blend, pack, [opened.shards.view for opened in sets.sets])
            sequence = PackSequence(released, pack, sets.lengths, seed=self._recipe.seed, epoch=0)
        except _DAMAGE as error:
            return (), (), f"Packs are not shown: {error}"
        packs: list[PreviewPack | None] = []
        for planned in sequence:
            for index in range(min(len(planned.ends), count - len(packs))):
                packs.append(self._pack(sets, planned, index, len(packs) + 1))
            if len(packs) >= count:
                break
        return tuple(pack for pack in packs if pack is not None), tuple(opened.name for opened in sets.sets), ""

    def _pack(self, sets: BlendedSets, planned: PlannedPacks, index: int, number: int) -> PreviewPack | None:
        """One of the planned packs; None if a token file of it cannot be read. number: on the page."""
        pack = self._recipe.pack
        assert pack is not None
        plan = planned.samples
        first, stop = int(planned.ends[index - 1]) if index else 0, int(planned.ends[index])
        samples = []
        for at in range(first, stop):
            source, shard, tokens = int(plan.source[at]), int(plan.shard[at]), int(plan.tokens[at])
            opened = sets.sets[source]
            try:
                sample = TokenSet(self._store, opened.tokens, opened.token_directory).sample(shard, int(plan.row[at]))
                expansion = Expansion.of(sample, pack.images, tokens=tokens, images=int(plan.images[at]))
                samples.append(_packed_sample(expansion, source, tokens))
            except _DAMAGE as error:
                self.damaged.add(
                    self._store.location(f"{opened.token_directory}/{opened.name}-{shard:06d}.arrow"), error, packs=1
                )
                return None
        return PreviewPack(number, pack.sequence_length, tuple(samples))

    def _set_of(self, corpus: str) -> str | None:
        """The set of a corpus that has whole records, not one image each."""
        is_pair = self._recipe.corpora[corpus].makes == "pair"
        for name in self._sets:
            shards = self._recipe.shards[name]
            if shards.corpus == corpus and (is_pair or shards.view != "pairs"):
                return name
        return None

    def _key(self, name: str, location: RecordLocation) -> str:
        key = record_key(name, location.part, location.row)
        return f"{key}-000" if self._recipe.shards[name].view == "pairs" else key

    def _by_key(self, name: str, wanted: dict[str, RecordLocation]) -> dict[RecordLocation, TrainingSequence]:
        """Sequences of a set's samples by key; its shards are read until all are found."""
        manifest = self._run.manifest(name)
        assert manifest is not None
        found: dict[RecordLocation, TrainingSequence] = {}
        keys = pa.array(sorted(wanted), pa.string())
        seen = 0
        for shard in range(len(manifest.shards)):
            index = f"{shard_stem(name, shard)}.parquet"
            try:
                column = read_index(self._store, index, ["key"]).column("key")
            except _DAMAGE as error:
                self.damaged.add(self._store.location(index), error)
                continue
            for row in np.flatnonzero(pc.is_in(column, value_set=keys).to_numpy()).tolist():
                seen += 1
                sequence = self._sequence(name, shard, row)
                if sequence is not None:
                    found[wanted[column[row].as_py()]] = sequence
            if seen == len(wanted):
                break
        return found

    def _sequence(self, name: str, shard: int, row: int) -> TrainingSequence | None:
        """A sample's sequence; None if its token file cannot be read, which is counted."""
        path = f"{self._sets[name].folder}/{name}-{shard:06d}.arrow"
        try:
            sample = self._sets[name].sample(shard, row)
            columns = self._columns(path).slice(row, 1).to_pylist()[0]
            assert self._tokenizer is not None
            pieces = _pieces(sample, self._tokenizer)
        except _DAMAGE as error:
            self.damaged.add(self._store.location(path), error, sequences=1)
            return None
        return TrainingSequence(
            shard_set=name,
            pieces=tuple(pieces),
            tokens=sample.tokens,
            trained=int(np.count_nonzero((sample.labels != IGNORED) & (sample.ids != IMAGE_ID))),
            images_omitted=columns["images_left_out"],
            truncated=columns["tokens_cut"],
            more=max(0, len(sample.ids) - _IDS_SHOWN),
            fate=": ".join(filter(None, (columns["fate"], columns["detail"]))),
        )

    def _read_columns(self, path: str) -> pa.Table:
        """The columns of a token file that are neither ids nor spans."""
        where = self._store.location(path)
        with parsing(where, "a token file", "delete it and run the recipe again", OSError):
            if self._store.is_local:
                table = read_arrow(pa.memory_map(where))
            else:
                table = read_arrow(pa.py_buffer(self._store.read(path)))
        columns = table.select(["images_left_out", "tokens_cut", "fate", "detail"])
        columns.validate(full=True)  # a damaged text's end may lie outside the file
        return columns


def _packed_sample(expansion: Expansion, source: int, tokens: int) -> PackedSample:
    ids, labels = np.zeros(tokens, np.int64), np.zeros(tokens, np.int64)
    images = expansion.write(ids, labels)
    edges = np.flatnonzero(np.diff(np.r_[False, labels != IGNORED, False])).tolist()
    return PackedSample(
        source=source,
        record_id=expansion.sample.record_id,
        tokens=tokens,
        images=tuple((start, start + size) for start, size in images),
        trained=tuple(zip(edges[::2], edges[1::2], strict=True)),
    )


def _pieces(sample: TokenSample, tokenizer: TextTokenizer) -> list[TokenPiece]:
    """The first ids of a sample as texts, split where the loss begins and ends, and its images."""
    ids = sample.ids[:_IDS_SHOWN]
    is_trained = np.zeros(len(ids), np.bool_)
    for first, stop in sample.trained.tolist():
        is_trained[first:stop] = True
    pieces: list[TokenPiece] = []
    images = np.flatnonzero(ids == IMAGE_ID).tolist()
    for number, (first, stop) in enumerate(zip([0, *(at + 1 for at in images)], [*images, len(ids)], strict=True)):
        if number:
            pieces.append(TokenPiece("", image=int(sample.images[number - 1])))
        pieces += _text_pieces(ids[first:stop].tolist(), is_trained[first:stop].tolist(), tokenizer)
    return pieces


def _text_pieces(ids: list[int], trained: list[bool], tokenizer: TextTokenizer) -> list[TokenPiece]:
    """Ids without an image, decoded together because spaces depend on what comes before, then split."""
    changes = [at for at in range(1, len(ids)) if trained[at] != trained[at - 1]]
    whole = tokenizer.decode(ids) if ids else ""
    pieces, done, start = [], 0, 0
    for stop in [*changes, len(ids)]:
        end = len(whole) if stop == len(ids) else _common_prefix(whole, tokenizer.decode(ids[:stop]))
        if end > done:
            pieces.append(TokenPiece(whole[done:end], trained=trained[start]))
        done, start = max(done, end), stop
    return pieces


def _common_prefix(whole: str, head: str) -> int:
    """Characters that both begin with: a split inside a character's bytes decodes to another one."""
    return next((at for at, (a, b) in enumerate(zip(whole, head, strict=False)) if a != b), min(len(whole), len(head)))
