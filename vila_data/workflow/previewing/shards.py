"""Records of a shard set, or of one shard, of a run or copied alone: samples, all of them kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa

from vila_data.core.errors import DataError, UsageError
from vila_data.core.store import Store
from vila_data.core.tables import read_parquet
from vila_data.core.tarcodec import BLOCK, Member, walk_file
from vila_data.shard.manifest import parse_manifest
from vila_data.view.preview.values import ShownImage, ShownRecord, ShownTokens
from vila_data.workflow.lock import LOCK
from vila_data.workflow.previewing.run import recipe_of
from vila_data.workflow.previewing.source import Asked, Columns, Place, bounds_of, clipped, finite
from vila_data.workflow.previewing.tokens import TokenFiles

_SHARDS: Final = 4
_ROLES: Final = ("human", "gpt")

Members = Mapping[str, Member]
"""A sample's members by suffix."""


class SetSource:
    """The samples of a set, through the indexes of its shards; the thresholds and tokens are its run's, if it is in one."""

    def __init__(self, path: str) -> None:
        self._store = Store(path)
        self._manifest = parse_manifest(self._store.read("manifest.json"), self._store.location("manifest.json"))
        self.corpora = (self._manifest.corpus,)
        self.title = self._manifest.name
        self.thresholds: dict[str, float] = {}
        self.notes: Sequence[str] = ()
        self._tokens: TokenFiles | None = None
        self._index = lru_cache(maxsize=_SHARDS)(self._read_index)
        above = self._store.url.rstrip("/").rsplit("/", 2)
        run = Store(above[0]) if len(above) == 3 and above[1] == "shards" else None
        if run is not None and run.size(LOCK) is not None:
            recipe = recipe_of(run)
            self._tokens = TokenFiles(run, recipe)
            self.notes = self._tokens.notes
            if self._manifest.corpus in recipe.corpora:
                limit = recipe.rules_for(self._manifest.corpus).images.min_similarity
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

    def words(self, place: Place) -> Sequence[str]:
        """See `Source`."""
        record = self.record(place, Asked(), None)
        return record.texts if record.system is None else (record.system, *record.texts)

    def tokens(self, places: Sequence[Place]) -> dict[Place, ShownTokens]:
        """See `Source`."""
        return {} if self._tokens is None else self._tokens.of_set(self._manifest.name, places)

    def record(self, place: Place, asked: Asked, tokens: ShownTokens | None) -> ShownRecord:
        """See `Source`."""
        row = self._index(place.part).slice(place.row, 1).to_pylist()[0]
        name = self._manifest.shards[place.part].name
        prefix = len(row["key"]) + 1
        members = {
            member[prefix:]: Member(member, offset, size)
            for member, offset, size in zip(row["members"], row["offsets"], row["sizes"], strict=True)
        }
        return _record(self._store, name, row["key"], members, asked, tokens)

    def _read_index(self, shard: int) -> pa.Table:
        path = self._manifest.shards[shard].name.replace(".tar", ".parquet")
        columns = ["key", "record_id", "members", "offsets", "sizes", "similarities"]
        try:
            with self._store.open_read(path) as stream:
                return read_parquet(stream, columns=columns)
        except pa.ArrowException as error:
            raise DataError(f"{self._store.location(path)}: not an index: {error}; run check on the set") from error


class TarSource:
    """The samples of one tar alone; whoever wrote it, as far as its members are named as webdataset's are."""

    def __init__(self, path: str) -> None:
        folder, self._name = os.path.split(path)
        self._store = Store(folder or ".")
        self.title = self._name
        self.thresholds: dict[str, float] = {}
        self.notes: Sequence[str] = ()
        self._samples: list[tuple[str, dict[str, Member]]] = []
        if self._store.size(self._name) is None:
            raise UsageError(f"{path}: no such file")
        with self._store.open_read(self._name) as stream:
            for member in walk_file(stream, path, strict=False):
                folder, base = os.path.split(member.name)
                stem, _, suffix = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not self._samples or self._samples[-1][0] != key:
                    self._samples.append((key, {}))
                self._samples[-1][1][suffix] = member
            if not _ends(stream):
                self.notes = ("The tar ends without an end mark: it may have been cut short.",)
        if not self._samples:
            raise DataError(f"{path}: no sample in it: is it a tar, and whole?")
        self.corpora = (self._name.removesuffix(".tar"),)
        self.corpora = (self.record(Place(0, 0, 0), Asked(), None).corpus,)

    def parts(self, corpus: int) -> Sequence[int]:
        """See `Source`."""
        return (0,)

    def columns(self, corpus: int, part: int, fate: str | None, reason: str | None) -> Columns:
        """See `Source`."""
        _only_kept(self._store.location(self._name), fate, reason)
        scores = [
            [image.similarity for image in self.record(Place(0, 0, row), Asked(), None).images]
            for row in range(len(self._samples))
        ]
        owner = np.repeat(np.arange(len(scores)), [len(entry) for entry in scores])
        values = np.array([np.nan if value is None else value for entry in scores for value in entry], np.float64)
        return Columns(np.ones(len(scores), np.bool_), *bounds_of(owner, values, len(scores)))

    def record_ids(self, corpus: int, part: int) -> pa.ChunkedArray:
        """See `Source`."""
        ids = [self.record(Place(0, 0, row), Asked(), None).record_id for row in range(len(self._samples))]
        return pa.chunked_array([pa.array([one.encode("utf-8", "replace").decode() for one in ids], pa.string())])

    def words(self, place: Place) -> Sequence[str]:
        """See `Source`."""
        record = self.record(place, Asked(), None)
        return record.texts if record.system is None else (record.system, *record.texts)

    def tokens(self, places: Sequence[Place]) -> dict[Place, ShownTokens]:
        """See `Source`."""
        return {}

    def record(self, place: Place, asked: Asked, tokens: ShownTokens | None) -> ShownRecord:
        """See `Source`."""
        key, members = self._samples[place.row]
        found = _record(self._store, self._name, key, members, asked, tokens)
        return found if found.corpus else replace(found, corpus=self.corpora[0])


def _ends(stream: BinaryIO) -> bool:
    """Whether a tar's last block is zeros, as that of a whole one is."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - BLOCK))
    return size % BLOCK == 0 and not any(stream.read(BLOCK))


def _only_kept(where: str, fate: str | None, reason: str | None) -> None:
    if fate not in (None, "kept") or reason is not None:
        raise UsageError(f"{where}: a shard holds what was kept; give the run's folder to see what was not")


def _record(
    store: Store, name: str, key: str, members: Members, asked: Asked, tokens: ShownTokens | None
) -> ShownRecord:
    """A sample in one of the layouts of shards/FORMAT.md; a picture with a .txt, or a .json with a caption, is a pair."""
    where = f"{store.location(name)}: {key}"
    value: dict[str, Any] = {}
    try:
        if "json" in members:
            value = json.loads(_read(store, name, members["json"]))
        if not isinstance(value, dict):
            raise TypeError("no object")
        if "conversations" in value:
            return _conversation(store, name, key, members, value, asked, tokens)
        if "texts" in value and "images" in value:
            return _document(store, name, key, members, value, asked, tokens)
        return _pair(store, name, key, members, value, asked, tokens)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: not a sample of shards/FORMAT.md: {error!r}; run check on it") from error


def _document(
    store: Store, name: str, key: str, members: Members, value: Any, asked: Asked, tokens: ShownTokens | None
) -> ShownRecord:
    texts: list[str] = []
    images: list[ShownImage] = []
    info = value.get("image_info") or []
    for text, image in zip(value["texts"], value["images"], strict=True):
        if image is not None:
            facts = info[len(images)] if len(images) < len(info) else {}
            picture = _picture(store, name, members.get(str(image).removeprefix(f"{key}.")))
            images.append(_image(len(images), picture, facts, len(texts), asked))
        if text is not None:
            texts.append(str(text))
    return _made(key, "document", value, texts, images, (), asked, tokens)


def _conversation(
    store: Store, name: str, key: str, members: Members, value: Any, asked: Asked, tokens: ShownTokens | None
) -> ShownRecord:
    turns = value["conversations"]
    names = value.get("images") or []
    info = value.get("image_info") or []
    images = []
    for index, image in enumerate(names):
        facts = info[index] if index < len(info) else {}
        picture = _picture(store, name, members.get(str(image).removeprefix(f"{key}.")))
        images.append(_image(index, picture, facts, facts.get("matched_text_index"), asked))
    roles = tuple(str(turn.get("from", "")) for turn in turns)
    return _made(key, "conversation", value, [str(turn["value"]) for turn in turns], images, roles, asked, tokens)


def _pair(
    store: Store, name: str, key: str, members: Members, value: Any, asked: Asked, tokens: ShownTokens | None
) -> ShownRecord:
    caption = value.get("caption")
    if caption is None and "txt" in members:
        caption = _read(store, name, members["txt"]).decode("utf-8", "replace")
    picture = next((members[suffix] for suffix in ("jpg", "jpeg", "png", "webp") if suffix in members), None)
    images = [] if picture is None else [_image(0, _picture(store, name, picture), value, 0, asked)]
    return _made(key, "pair", value, [] if caption is None else [str(caption)], images, (), asked, tokens)


def _made(
    key: str,
    kind: str,
    value: Any,
    texts: Sequence[str],
    images: Sequence[ShownImage],
    roles: tuple[str, ...],
    asked: Asked,
    tokens: ShownTokens | None,
) -> ShownRecord:
    source = value.get("source")
    source = source if isinstance(source, dict) else {}
    system = value.get("system")
    beginnings, lengths = clipped(texts)
    url = source.get("url")
    return ShownRecord(
        corpus=str(source.get("corpus") or ""),
        record_id=str(source.get("record_id") or key),
        kind=kind,
        note=asked.note,
        source_url=None if url is None else str(url),
        texts=beginnings,
        lengths=lengths,
        roles=roles,
        system=None if system is None else str(system),
        images=tuple(images),
        tokens=tokens,
    )


def _image(index: int, jpeg: Any, facts: Any, text_index: Any, asked: Asked) -> ShownImage:
    similarity = finite(facts.get("similarity"))
    number = facts.get("image_index", index)
    return ShownImage(
        index=index,
        jpeg=jpeg,
        text_index=None if text_index is None else int(text_index),
        similarity=similarity,
        width=_size(facts.get("width")),
        height=_size(facts.get("height")),
        url=str(facts.get("url") or ""),
        asked=asked.image_index is not None and number == asked.image_index,
    )


def _size(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _picture(store: Store, name: str, member: Member | None) -> Any:
    return partial(_read_or_none, store, name, member)


def _read_or_none(store: Store, name: str, member: Member | None) -> bytes | None:
    return None if member is None else _read(store, name, member)


def _read(store: Store, name: str, member: Member) -> bytes:
    return store.read_range(name, member.offset, member.size)
