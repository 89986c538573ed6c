"""Read the samples of a shard set or of one shard for a preview, in a run or copied alone: all of them are kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import tee
from typing import Final

import numpy as np
import pyarrow as pa

from vila_data.core.errors import DataError, UsageError
from vila_data.core.ranges.reader import Blocks, Span, read_spans
from vila_data.core.readable import many
from vila_data.core.samples import View, decode_foreign
from vila_data.core.store import Store
from vila_data.core.tarcodec import Member, TarFault, sample_key, walk_foreign
from vila_data.explore.preview.records import (
    Columns,
    DamagedTokenFiles,
    Highlight,
    PreviewImage,
    PreviewRecord,
    RecordLocation,
    TrainingSequence,
)
from vila_data.explore.preview.tokens import TokenFiles
from vila_data.runs.run import run_above
from vila_data.shard.manifest import parse_manifest
from vila_data.shard.read import read_index

_SHARDS: Final = 4
"""Shards whose indexes are in memory."""
_FAULTS_SHOWN: Final = 3
_KINDS: Final[dict[View, str]] = {"interleaved": "document", "pairs": "pair", "conversations": "conversation"}

Members = Mapping[str, Member]
"""A sample's members by suffix."""
Sample = tuple[str, Members]
"""Its key and members."""


class _Tar:
    """Decodes samples of one tar."""

    def __init__(self, store: Store, name: str, blocks: Blocks) -> None:
        self._store, self._name, self._blocks = store, name, blocks

    def record(
        self,
        sample: Sample,
        highlight: Highlight,
        sequence: TrainingSequence | None = None,
        held: Mapping[Member, bytes] | None = None,
    ) -> PreviewRecord:
        """A sample as a record. held: bytes of members that were read already.

        Raises:
            DataError: it is not a sample.
        """
        key, members = sample

        def read(suffix: str) -> bytes:
            member = members[suffix]
            if held and member in held:
                return held[member]
            return self._store.read_range(self._name, member.offset, member.size)

        found = decode_foreign(key, members, read, f"{self._store.location(self._name)}: {key}")
        images = [
            PreviewImage(
                index=index,
                jpeg=partial(self._image_bytes, members, image.member.removeprefix(f"{key}.")),
                text_index=image.text_index,
                similarity=image.similarity,
                width=image.width or None,
                height=image.height or None,
                url=image.url,
                highlighted=highlight.image_index is not None and image.image_index == highlight.image_index,
            )
            for index, image in enumerate(found.images)
        ]
        return PreviewRecord(
            corpus=found.corpus,
            record_id=found.record_id,
            kind=_KINDS[found.view],
            note=highlight.note,
            source_url=found.source_url,
            texts=tuple(found.texts),
            roles=found.roles,
            system=found.system,
            images=tuple(images),
            sequence=sequence,
        )

    def records(self, samples: Iterable[Sample]) -> Iterator[PreviewRecord | DataError]:
        """Samples in order, or why one cannot be decoded; from a remote store, their texts are read in large requests."""
        ahead, samples = tee(samples)
        found = read_spans(
            self._store,
            (Span(self._name, one.offset, one.size) for _, members in ahead for one in _text_members(members)),
        )
        for sample in samples:
            held = {member: next(found) for member in _text_members(sample[1])}
            try:
                yield self.record(sample, Highlight(), held=held)
            except DataError as error:
                yield error

    def texts(self, samples: Iterable[Sample]) -> Iterator[Sequence[str]]:
        """The texts of samples in order.

        Raises:
            DataError: one is not a sample.
        """
        for found in self.records(samples):
            if isinstance(found, DataError):
                raise found
            yield found.texts if found.system is None else (found.system, *found.texts)

    def _image_bytes(self, members: Members, suffix: str) -> bytes | None:
        """A member's bytes, read with its whole sample where that saves requests; None if there is no such member."""
        if suffix not in members:
            return None
        member = members[suffix]
        start = min(one.offset for one in members.values())
        stop = max(one.offset + one.size for one in members.values())
        return self._blocks.read(Span(self._name, member.offset, member.size), Span(self._name, start, stop - start))


def _text_members(members: Members) -> list[Member]:
    """The member that has a sample's texts, as far as this is known before it is read."""
    return [members[suffix] for suffix in ("json", "txt") if suffix in members][:1]


class SetSource:
    """The samples of a set, through the indexes of its shards. In a run, its thresholds and tokens are the run's."""

    def __init__(self, path: str) -> None:
        self._store = Store(path)
        self._manifest = parse_manifest(self._store.read("manifest.json"), self._store.location("manifest.json"))
        self.corpora = (self._manifest.corpus,)
        self.title = self._manifest.name
        self.thresholds: dict[str, float] = {}
        self.notes: Sequence[str] = ()
        self.damaged = DamagedTokenFiles()
        self._token_files: TokenFiles | None = None
        self._blocks = Blocks(self._store)
        self._index = lru_cache(maxsize=_SHARDS)(self._read_index)
        run = run_above(self._store)
        if run is not None and self._store.url.startswith(run.store.location("shards/")):
            self._token_files = TokenFiles(run)
            self.notes, self.damaged = self._token_files.notes, self._token_files.damaged
            if self._manifest.corpus in run.recipe.corpora:
                limit = run.recipe.rules_for(self._manifest.corpus).images.min_similarity
                self.thresholds = {} if limit is None else {self._manifest.corpus: limit}

    def parts(self, corpus: int) -> Sequence[int]:
        """See `Source`."""
        return range(len(self._manifest.shards))

    def columns(self, corpus: int, part: int, fate: str | None, reason: str | None) -> Columns:
        """See `Source`."""
        _check_kept(self._store.url, fate, reason)
        lists = self._index(part).column("similarities").combine_chunks()
        owner = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
        values = lists.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
        return Columns.of(np.ones(len(lists), np.bool_), owner, values)

    def record_ids(self, corpus: int, part: int) -> pa.ChunkedArray:
        """See `Source`."""
        return self._index(part).column("record_id")

    def texts(self, corpus: int, part: int, rows: Sequence[int]) -> Iterator[Sequence[str]]:
        """See `Source`."""
        return self._tar(part).texts(self._sample(part, row) for row in rows)

    def sequences(self, locations: Sequence[RecordLocation]) -> dict[RecordLocation, TrainingSequence]:
        """See `Source`."""
        return {} if self._token_files is None else self._token_files.of_set(self._manifest.name, locations)

    def record(
        self, location: RecordLocation, highlight: Highlight, sequence: TrainingSequence | None
    ) -> PreviewRecord:
        """See `Source`."""
        return self._tar(location.part).record(self._sample(location.part, location.row), highlight, sequence)

    def _tar(self, shard: int) -> _Tar:
        return _Tar(self._store, self._manifest.shards[shard].name, self._blocks)

    def _sample(self, shard: int, row: int) -> Sample:
        entry = self._index(shard).slice(row, 1).to_pylist()[0]
        prefix = len(entry["key"]) + 1
        members = zip(entry["members"], entry["offsets"], entry["sizes"], strict=True)
        return entry["key"], {name[prefix:]: Member(name, offset, size) for name, offset, size in members}

    def _read_index(self, shard: int) -> pa.Table:
        path = self._manifest.shards[shard].name.replace(".tar", ".parquet")
        return read_index(self._store, path, ["key", "record_id", "members", "offsets", "sizes", "similarities"])


class TarSource:
    """The samples of a single tar, by any writer, as far as its members are named as WebDataset's are.

    Broken members and groups of members that are not samples are skipped and counted in `notes`.
    """

    def __init__(self, path: str) -> None:
        directory, name = os.path.split(path)
        store = Store(directory or ".")
        self._location, self._tar = store.location(name), _Tar(store, name, Blocks(store))
        self.title = name
        self.thresholds: dict[str, float] = {}
        self.damaged = DamagedTokenFiles()
        if store.size(name) is None:
            raise UsageError(f"{path}: no such file")
        faults: list[str] = []
        samples: list[tuple[str, dict[str, Member]]] = []
        with store.open_read(name) as stream:
            for member in walk_foreign(stream, path):
                if isinstance(member, TarFault):
                    faults.append(member.text)
                    continue
                key, suffix = sample_key(member.name)
                if not samples or samples[-1][0] != key:
                    samples.append((key, {}))
                samples[-1][1][suffix] = member
        if not samples:
            raise DataError(f"{path}: contains no samples; check that it is a complete tar file")
        self._samples: list[Sample] = []
        self._similarities: list[list[float]] = []
        self._ids: list[str] = []
        self.corpora: tuple[str, ...] = ()
        for sample, found in zip(samples, self._tar.records(samples), strict=True):
            if isinstance(found, DataError):
                faults.append(str(found))
                continue
            self.corpora = self.corpora or (found.corpus or name.removesuffix(".tar"),)
            self._samples.append(sample)
            self._similarities.append(
                [np.nan if image.similarity is None else image.similarity for image in found.images]
            )
            self._ids.append(found.record_id.encode("utf-8", "replace").decode())
        if not self._samples:
            raise DataError(faults[-1])
        more = f"; and {len(faults) - _FAULTS_SHOWN:,} more" if len(faults) > _FAULTS_SHOWN else ""
        lost = many(len(faults), "damaged or invalid samples")
        note = f"{lost} not shown: {'; '.join(faults[:_FAULTS_SHOWN])}{more}"
        self.notes: Sequence[str] = (note,) if faults else ()

    def parts(self, corpus: int) -> Sequence[int]:
        """See `Source`."""
        return (0,)

    def columns(self, corpus: int, part: int, fate: str | None, reason: str | None) -> Columns:
        """See `Source`."""
        _check_kept(self._location, fate, reason)
        lists = self._similarities
        owner = np.repeat(np.arange(len(lists)), [len(values) for values in lists])
        return Columns.of(
            np.ones(len(lists), np.bool_), owner, np.array([value for values in lists for value in values], np.float64)
        )

    def record_ids(self, corpus: int, part: int) -> pa.ChunkedArray:
        """See `Source`."""
        return pa.chunked_array([pa.array(self._ids, pa.string())])

    def texts(self, corpus: int, part: int, rows: Sequence[int]) -> Iterator[Sequence[str]]:
        """See `Source`."""
        return self._tar.texts(self._samples[row] for row in rows)

    def sequences(self, locations: Sequence[RecordLocation]) -> dict[RecordLocation, TrainingSequence]:
        """See `Source`."""
        return {}

    def record(
        self, location: RecordLocation, highlight: Highlight, sequence: TrainingSequence | None
    ) -> PreviewRecord:
        """See `Source`."""
        found = self._tar.record(self._samples[location.row], highlight)
        return found if found.corpus else replace(found, corpus=self.corpora[0])


def _check_kept(where: str, fate: str | None, reason: str | None) -> None:
    if fate not in (None, "kept") or reason is not None:
        raise UsageError(
            f"{where}: a shard contains only kept records; pass the run's directory to see dropped and failed ones"
        )
