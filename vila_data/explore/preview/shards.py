"""Records of a shard set, or of one shard, of a run or copied alone: samples, all of them kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import tee
from typing import Any, Final

import numpy as np
import pyarrow as pa

from vila_data.core.errors import DataError, UsageError
from vila_data.core.ranges.reader import Blocks, Span, read_spans
from vila_data.core.samples import SampleImage, View, decode_foreign
from vila_data.core.store import Store
from vila_data.core.tarcodec import Member, TarFault, sample_key, walk_foreign
from vila_data.explore.preview.faults import TokenFaults
from vila_data.explore.preview.source import Asked, Columns, Place, bounds_of, clipped
from vila_data.explore.preview.tokens import TokenFiles
from vila_data.explore.preview.values import ShownImage, ShownRecord, ShownTokens
from vila_data.runs.run import run_above
from vila_data.shard.manifest import parse_manifest
from vila_data.shard.read import read_index

_SHARDS: Final = 4
_FAULTS_SHOWN: Final = 3
_KINDS: Final[dict[View, str]] = {"interleaved": "document", "pairs": "pair", "conversations": "conversation"}

Members = Mapping[str, Member]
"""A sample's members by suffix."""


@dataclass(frozen=True)
class _Tar:
    """A tar, the blocks read of it, and what is held of its members already."""

    store: Store
    name: str
    blocks: Blocks
    held: Mapping[Member, bytes] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """For messages."""
        return self.store.location(self.name)

    def read(self, member: Member) -> bytes:
        """A member's bytes."""
        found = self.held.get(member)
        return self.store.read_range(self.name, member.offset, member.size) if found is None else found


class SetSource:
    """The samples of a set, through the indexes of its shards; the thresholds and tokens are its run's, if it is in one."""

    def __init__(self, path: str) -> None:
        self._store = Store(path)
        self._manifest = parse_manifest(self._store.read("manifest.json"), self._store.location("manifest.json"))
        self.corpora = (self._manifest.corpus,)
        self.title = self._manifest.name
        self.thresholds: dict[str, float] = {}
        self.notes: Sequence[str] = ()
        self.faults = TokenFaults()
        self._tokens: TokenFiles | None = None
        self._blocks = Blocks(self._store)
        self._index = lru_cache(maxsize=_SHARDS)(self._read_index)
        run = run_above(self._store)
        if run is not None and self._store.url.startswith(run.store.location("shards/")):
            self._tokens = TokenFiles(run)
            self.notes, self.faults = self._tokens.notes, self._tokens.faults
            if self._manifest.corpus in run.recipe.corpora:
                limit = run.recipe.rules_for(self._manifest.corpus).images.min_similarity
                self.thresholds = {} if limit is None else {self._manifest.corpus: limit}

    def parts(self, corpus: int) -> Sequence[int]:
        """See `Source`."""
        return range(len(self._manifest.shards))

    def columns(self, corpus: int, part: int, fate: str | None, reason: str | None) -> Columns:
        """See `Source`."""
        _only_kept(self._store.url, fate, reason)
        lists = self._index(part).column("similarities").combine_chunks()
        count = len(lists)
        owner = np.repeat(np.arange(count), np.diff(lists.offsets.to_numpy()))
        values = lists.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
        return Columns(np.ones(count, np.bool_), *bounds_of(owner, values, count))

    def record_ids(self, corpus: int, part: int) -> pa.ChunkedArray:
        """See `Source`."""
        return self._index(part).column("record_id")

    def words(self, corpus: int, part: int, rows: Sequence[int]) -> Iterator[Sequence[str]]:
        """See `Source`."""
        samples = (self._sample(part, row) for row in rows)
        return map(_words, _records(self._tar(part), samples))

    def tokens(self, places: Sequence[Place]) -> dict[Place, ShownTokens]:
        """See `Source`."""
        return {} if self._tokens is None else self._tokens.of_set(self._manifest.name, places)

    def record(self, place: Place, asked: Asked, tokens: ShownTokens | None) -> ShownRecord:
        """See `Source`."""
        return _record(self._tar(place.part), *self._sample(place.part, place.row), asked, tokens)

    def _tar(self, shard: int) -> _Tar:
        return _Tar(self._store, self._manifest.shards[shard].name, self._blocks)

    def _sample(self, shard: int, row: int) -> tuple[str, Members]:
        about = self._index(shard).slice(row, 1).to_pylist()[0]
        prefix = len(about["key"]) + 1
        return about["key"], {
            member[prefix:]: Member(member, offset, size)
            for member, offset, size in zip(about["members"], about["offsets"], about["sizes"], strict=True)
        }

    def _read_index(self, shard: int) -> pa.Table:
        path = self._manifest.shards[shard].name.replace(".tar", ".parquet")
        return read_index(self._store, path, ["key", "record_id", "members", "offsets", "sizes", "similarities"])


class TarSource:
    """The samples of one tar alone; whoever wrote it, as far as its members are named as webdataset's are."""

    def __init__(self, path: str) -> None:
        folder, name = os.path.split(path)
        store = Store(folder or ".")
        self._tar = _Tar(store, name, Blocks(store))
        self.title = name
        self.thresholds: dict[str, float] = {}
        self.notes: Sequence[str] = ()
        self.faults = TokenFaults()
        self._samples: list[tuple[str, dict[str, Member]]] = []
        self._scores: list[list[float | None]] = []
        samples: list[tuple[str, dict[str, Member]]] = []
        broken: list[str] = []
        if store.size(name) is None:
            raise UsageError(f"{path}: no such file")
        with store.open_read(name) as stream:
            for member in walk_foreign(stream, path):
                if isinstance(member, TarFault):
                    broken.append(member.text)
                    continue
                key, suffix = sample_key(member.name)
                if not samples or samples[-1][0] != key:
                    samples.append((key, {}))
                samples[-1][1][suffix] = member
        if not samples:
            raise DataError(f"{path}: no sample in it: is it a tar, and whole?")
        for sample, found in zip(samples, _tried(self._tar, samples), strict=True):
            if isinstance(found, DataError):
                broken.append(str(found))
                continue
            self._samples.append(sample)
            self._scores.append([image.similarity for image in found.images])
        if not self._samples:
            raise DataError(broken[-1])
        self.notes = _broken(broken)
        self.corpora = (name.removesuffix(".tar"),)
        self.corpora = (self.record(Place(0, 0, 0), Asked(), None).corpus,)

    def parts(self, corpus: int) -> Sequence[int]:
        """See `Source`."""
        return (0,)

    def columns(self, corpus: int, part: int, fate: str | None, reason: str | None) -> Columns:
        """See `Source`."""
        _only_kept(self._tar.location, fate, reason)
        scores = self._scores
        owner = np.repeat(np.arange(len(scores)), [len(entry) for entry in scores])
        values = np.array([np.nan if value is None else value for entry in scores for value in entry], np.float64)
        return Columns(np.ones(len(scores), np.bool_), *bounds_of(owner, values, len(scores)))

    def record_ids(self, corpus: int, part: int) -> pa.ChunkedArray:
        """See `Source`."""
        ids = [record.record_id for record in _records(self._tar, self._samples)]
        return pa.chunked_array([pa.array([one.encode("utf-8", "replace").decode() for one in ids], pa.string())])

    def words(self, corpus: int, part: int, rows: Sequence[int]) -> Iterator[Sequence[str]]:
        """See `Source`."""
        return map(_words, _records(self._tar, (self._samples[row] for row in rows)))

    def tokens(self, places: Sequence[Place]) -> dict[Place, ShownTokens]:
        """See `Source`."""
        return {}

    def record(self, place: Place, asked: Asked, tokens: ShownTokens | None) -> ShownRecord:
        """See `Source`."""
        key, members = self._samples[place.row]
        found = _record(self._tar, key, members, asked, tokens)
        return found if found.corpus else replace(found, corpus=self.corpora[0])


def _broken(faults: Sequence[str]) -> tuple[str, ...]:
    """How much of a tar is not shown, and where, as a note; none where all of it is."""
    if not faults:
        return ()
    more = f"; and {len(faults) - _FAULTS_SHOWN:,} more" if len(faults) > _FAULTS_SHOWN else ""
    return (f"{len(faults):,} of its places are broken and not shown: {'; '.join(faults[:_FAULTS_SHOWN])}{more}",)


def _only_kept(where: str, fate: str | None, reason: str | None) -> None:
    if fate not in (None, "kept") or reason is not None:
        raise UsageError(f"{where}: a shard holds what was kept; give the run's folder to see what was not")


def _records(tar: _Tar, samples: Iterable[tuple[str, Members]]) -> Iterator[ShownRecord]:
    """Samples one after the other.

    Raises:
        DataError: one is none.
    """
    for found in _tried(tar, samples):
        if isinstance(found, DataError):
            raise found
        yield found


def _tried(tar: _Tar, samples: Iterable[tuple[str, Members]]) -> Iterator[ShownRecord | DataError]:
    """Samples, or why one is none; their words are read in larger runs where reads are requests."""
    ahead, samples = tee(samples)
    spans = (Span(tar.name, member.offset, member.size) for _, members in ahead for member in _worded(members))
    found = read_spans(tar.store, spans)
    for key, members in samples:
        held = {member: next(found) for member in _worded(members)}
        try:
            yield _record(replace(tar, held=held), key, members, Asked(), None)
        except DataError as error:
            yield error


def _worded(members: Members) -> list[Member]:
    """The member that holds a sample's texts, as far as it is known before it is read."""
    return [members[suffix] for suffix in ("json", "txt") if suffix in members][:1]


def _words(record: ShownRecord) -> Sequence[str]:
    return record.texts if record.system is None else (record.system, *record.texts)


def _record(tar: _Tar, key: str, members: Members, asked: Asked, tokens: ShownTokens | None) -> ShownRecord:
    found = decode_foreign(key, members, lambda suffix: tar.read(members[suffix]), f"{tar.location}: {key}")
    beginnings, lengths = clipped(found.texts)
    return ShownRecord(
        corpus=found.corpus,
        record_id=found.record_id,
        kind=_KINDS[found.view],
        note=asked.note,
        source_url=found.source_url,
        texts=beginnings,
        lengths=lengths,
        roles=found.roles,
        system=found.system,
        images=tuple(_image(tar, key, members, at, image, asked) for at, image in enumerate(found.images)),
        tokens=tokens,
    )


def _image(tar: _Tar, key: str, members: Members, index: int, image: SampleImage, asked: Asked) -> ShownImage:
    return ShownImage(
        index=index,
        jpeg=_picture(tar, members, members.get(image.member.removeprefix(f"{key}."))),
        text_index=image.text_index,
        similarity=image.similarity,
        width=image.width or None,
        height=image.height or None,
        url=image.url,
        asked=asked.image_index is not None and image.image_index == asked.image_index,
    )


def _picture(tar: _Tar, members: Members, member: Member | None) -> Any:
    start = min((one.offset for one in members.values()), default=0)
    stop = max((one.offset + one.size for one in members.values()), default=0)
    return partial(_read_or_none, tar, Span(tar.name, start, stop - start), member)


def _read_or_none(tar: _Tar, block: Span, member: Member | None) -> bytes | None:
    return None if member is None else tar.blocks.read(Span(tar.name, member.offset, member.size), block)
