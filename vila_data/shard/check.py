"""Are a set's bytes what its manifest says, and is each sample whole?

Finds a missing or foreign shard, a wrong size, a flipped byte, a tar cut at a member
boundary, a wrong count, a key twice, members that are not adjacent, and an index or
a JSON that names what is not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vila_data.core.errors import DataError, StorageError
from vila_data.core.records import IMAGE_MARK
from vila_data.core.store import Store
from vila_data.core.tables import read_table
from vila_data.core.tarcodec import BLOCK, member_bytes, walk_file
from vila_data.shard.energon import tar_index
from vila_data.shard.manifest import Manifest, ShardFacts, parse_manifest, wids_meta


def check_set(store: Store, folder: str) -> Iterator[str]:
    """One sentence for each thing that is wrong with the set in `folder`; nothing if all is well."""
    path = f"{folder}/manifest.json".lstrip("/")
    if store.size(path) is None:
        yield f"{store.location(path)}: missing: the set is not finished, or is none"
        return
    try:
        data = store.read(path)
        manifest = parse_manifest(data, store.location(path))
    except DataError as error:
        yield str(error)
        return
    totals = {name: json.loads(data).get(name) for name in ("samples", "images", "bytes")}
    for name, total in totals.items():
        if total != getattr(manifest, name):
            yield f"{store.location(path)}: {name} is {total}; its shards sum to {getattr(manifest, name)}"
    wids = f"{folder}/wids-meta.json".lstrip("/")
    if store.size(wids) is None or store.read(wids) != wids_meta(manifest):
        yield f"{store.location(wids)}: missing, or not what the manifest says"
    yield from _foreign(store, folder, manifest)
    keys: dict[str, str] = {}
    for shard in manifest.shards:
        yield from _check_shard(store, f"{folder}/{shard.name}".lstrip("/"), shard, keys)


def check_tar(store: Store, path: str) -> Iterator[str]:
    """What is wrong with a single tar, of which no manifest is asked."""
    try:
        with store.open_read(path) as stream:
            samples = _samples(stream, store.location(path))
    except (DataError, StorageError) as error:
        yield str(error)
        return
    yield from _twice(samples, store.location(path), {})


def _foreign(store: Store, folder: str, manifest: Manifest) -> Iterator[str]:
    known = {shard.name for shard in manifest.shards}
    for path in store.files(folder):
        name = path.rsplit("/", 1)[-1]
        if name.endswith(".tar") and name not in known:
            yield f"{store.location(path)}: not in the manifest"


def _check_shard(store: Store, path: str, shard: ShardFacts, keys: dict[str, str]) -> Iterator[str]:
    where = store.location(path)
    size = store.size(path)
    if size is None:
        yield f"{where}: missing"
        return
    if size != shard.bytes:
        yield f"{where}: {size} bytes; the manifest says {shard.bytes}"
    elif store.sha256(path) != shard.sha256:
        yield f"{where}: sha256 is not the manifest's: bytes have changed"
    try:
        with store.open_read(path) as stream:
            samples = _samples(stream, where)
            yield from _twice(samples, where, keys)
            yield from _broken_json(samples, stream, where)
    except (DataError, StorageError) as error:
        yield str(error)
        return
    if len(samples) != shard.samples:
        yield f"{where}: {len(samples)} samples; the manifest says {shard.samples}"
    images = sum(map(_images, samples))
    if images != shard.images:
        yield f"{where}: {images} images; the manifest says {shard.images}"
    yield from _check_index(store, f"{path.removesuffix('.tar')}.parquet", shard, samples)
    yield from _check_tar_index(store, f"{path}.idx", samples)


_Samples = list[tuple[str, list[tuple[str, int, int]]]]
"""(key, its adjacent members as (name, offset, size)) in the tar's order."""


def _images(sample: tuple[str, list[tuple[str, int, int]]]) -> int:
    return sum(name.endswith(".jpg") for name, _, _ in sample[1])


def _samples(stream: Any, where: str) -> _Samples:
    samples: _Samples = []
    for member in walk_file(stream, where):
        key = member.name.split(".", 1)[0]
        if not samples or samples[-1][0] != key:
            samples.append((key, []))
        samples[-1][1].append((member.name, member.offset, member.size))
    return samples


def _twice(samples: _Samples, where: str, keys: dict[str, str]) -> Iterator[str]:
    for key, members in samples:
        if key in keys:
            yield f"{where}: key {key} stands there twice (also in {keys[key]})"
        keys[key] = where
        names = [name for name, _, _ in members]
        if len(set(names)) != len(names):
            yield f"{where}: key {key}: a member stands there twice"


def _broken_json(samples: _Samples, stream: Any, where: str) -> Iterator[str]:
    for key, members in samples:
        named = {name: (offset, size) for name, offset, size in members}
        if f"{key}.json" not in named:
            yield f"{where}: key {key}: no {key}.json"
            continue
        offset, size = named[f"{key}.json"]
        stream.seek(offset)
        try:
            value = json.loads(stream.read(size))
            wanted = sorted(name for name in value.get("images", [f"{key}.jpg"]) if name is not None)
            places = _places(value)
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            yield f"{where}: {key}.json: {error}"
            continue
        pictures = sorted(name for name in named if name.endswith(".jpg"))
        if wanted != pictures:
            yield f"{where}: key {key}: its JSON names {len(wanted)} images, the tar has {len(pictures)}"
        for what, count in places:
            if count != len(wanted):
                yield f"{where}: key {key}: {count} {what} for {len(wanted)} images"


def _places(value: dict[str, Any]) -> list[tuple[str, int]]:
    """How many places for images a conversation has: marks in its turns, which are plain text where it never had
    images, and entries in its messages."""
    places = []
    if value.get("conversations") is not None:
        marks = sum(turn["value"].count(IMAGE_MARK) for turn in value["conversations"])
        if value.get("images") or value.get("image_info"):
            places.append((f"{IMAGE_MARK} marks", marks))
    if value.get("messages") is not None:
        contents = [message["content"] for message in value["messages"] if isinstance(message.get("content"), list)]
        entries = sum(entry["type"] == "image" for content in contents for entry in content)
        places.append(("image entries in messages", entries))
    return places


def _check_index(store: Store, path: str, shard: ShardFacts, samples: _Samples) -> Iterator[str]:
    where = store.location(path)
    if store.size(path) is None:
        yield f"{where}: missing"
        return
    if store.sha256(path) != shard.index_sha256:
        yield f"{where}: sha256 is not the manifest's: bytes have changed"
        return
    try:
        columns = ["key", "n_images", "members", "offsets", "sizes"]
        advice = "restore it, or make the set again"
        rows = read_table(store, path, columns, what="an index", advice=advice).to_pylist()
    except (DataError, StorageError) as error:
        yield str(error)
        return
    found = [(row["key"], list(zip(row["members"], row["offsets"], row["sizes"], strict=False))) for row in rows]
    if found != samples or [row["n_images"] for row in rows] != list(map(_images, samples)):
        yield f"{where}: does not describe the members of its tar"


def _check_tar_index(store: Store, path: str, samples: _Samples) -> Iterator[str]:
    starts = [members[0][1] - BLOCK for _, members in samples]
    end = max((offset - BLOCK + member_bytes(size) for _, members in samples for _, offset, size in members), default=0)
    if store.size(path) is None:
        yield f"{store.location(path)}: missing"
    elif store.read(path) != tar_index(starts, end):
        yield f"{store.location(path)}: does not describe the members of its tar"
