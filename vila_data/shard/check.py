"""Verify a shard set against its manifest and check that every sample is complete.

Finds a missing or foreign shard, a wrong size, a flipped byte, a tar cut at a member
boundary, a wrong count, a duplicate key, members that are not adjacent, and an index or
a JSON that names what is not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final

from vila_data.core.checksums import crc32c
from vila_data.core.errors import DataError, StorageError
from vila_data.core.samples import decode_sample
from vila_data.core.store import Store
from vila_data.core.tables import read_table
from vila_data.core.tarcodec import BLOCK, member_bytes, walk_file
from vila_data.shard.manifest import Manifest, ShardFacts, parse_manifest, tar_index, wids_meta

_INDEX_CHECKED: Final = ["key", "n_images", "members", "offsets", "sizes", "crc32c", "widths", "heights"]


def check_set(store: Store, directory: str) -> Iterator[str]:
    """One sentence for each thing that is wrong with the set in `directory`; nothing if all is well."""
    path = f"{directory}/manifest.json".lstrip("/")
    if store.size(path) is None:
        yield f"{store.location(path)}: missing: the shard set is not finished, or this is not a shard set"
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
            yield f"{store.location(path)}: {name} is {total}, but its shards add up to {getattr(manifest, name)}"
    wids = f"{directory}/wids-meta.json".lstrip("/")
    if store.size(wids) is None or store.read(wids) != wids_meta(manifest):
        yield f"{store.location(wids)}: missing, or does not match the manifest"
    yield from _unlisted(store, directory, manifest)
    keys: dict[str, str] = {}
    for shard in manifest.shards:
        yield from _check_shard(store, f"{directory}/{shard.name}".lstrip("/"), shard, keys)


def check_tar(store: Store, path: str) -> Iterator[str]:
    """What is wrong with a single tar, of which no manifest is asked."""
    try:
        with store.open_read(path) as stream:
            samples = _samples(stream, store.location(path))
    except (DataError, StorageError) as error:
        yield str(error)
        return
    yield from _duplicates(samples, store.location(path), {})


def _unlisted(store: Store, directory: str, manifest: Manifest) -> Iterator[str]:
    known = {shard.name for shard in manifest.shards}
    for path in store.files(directory):
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
        yield f"{where}: {size} bytes, but the manifest says {shard.bytes}"
    changed = f"{where}: sha256 does not match the manifest: bytes have changed"
    sizes: dict[str, _Sizes] = {}
    try:
        with store.open_read(path) as stream:
            samples = _samples(stream, where)
            sha256, checksums = _digests(stream, samples)
            if size == shard.bytes and sha256 != shard.sha256:
                yield changed
            yield from _duplicates(samples, where, keys)
            yield from _broken_json(samples, stream, where, sizes)
    except (DataError, StorageError) as error:
        if size == shard.bytes and store.sha256(path) != shard.sha256:
            yield changed
        yield str(error)
        return
    if len(samples) != shard.samples:
        yield f"{where}: {len(samples)} samples, but the manifest says {shard.samples}"
    images = sum(map(_images, samples))
    if images != shard.images:
        yield f"{where}: {images} images, but the manifest says {shard.images}"
    yield from _check_index(store, path, shard, samples, checksums, sizes)
    yield from _check_tar_index(store, f"{path}.idx", samples)


_Samples = list[tuple[str, list[tuple[str, int, int]]]]
"""(key, its adjacent members as (name, offset, size)) in the tar's order."""


_Sizes = tuple[list[int], list[int]]
"""Widths and heights of a sample's images, as its JSON has them."""


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


def _digests(stream: Any, samples: _Samples) -> tuple[str, list[list[int]]]:
    """The sha256 of a whole tar, and the CRC-32C of each member by sample, from one pass."""
    sha256 = hashlib.sha256()
    checksums: list[list[int]] = []
    at = stream.seek(0)
    for _, members in samples:
        checksums.append([])
        for _, offset, size in members:
            sha256.update(stream.read(offset - at))
            data = stream.read(size)
            sha256.update(data)
            checksums[-1].append(crc32c(data))
            at = offset + size
    sha256.update(stream.read())
    return sha256.hexdigest(), checksums


def _duplicates(samples: _Samples, where: str, keys: dict[str, str]) -> Iterator[str]:
    for key, members in samples:
        if key in keys:
            yield f"{where}: duplicate key {key} (also in {keys[key]})"
        keys[key] = where
        names = [name for name, _, _ in members]
        if len(set(names)) != len(names):
            yield f"{where}: key {key}: duplicate member"


def _broken_json(samples: _Samples, stream: Any, where: str, sizes: dict[str, _Sizes]) -> Iterator[str]:
    """What is wrong with each sample's JSON; `sizes` is filled by key."""
    for key, members in samples:
        named = {name: (offset, size) for name, offset, size in members}
        if f"{key}.json" not in named:
            yield f"{where}: key {key}: {key}.json is missing"
            continue
        offset, size = named[f"{key}.json"]
        stream.seek(offset)
        try:
            content = decode_sample(stream.read(size), f"{where}: {key}.json")
        except DataError as error:
            yield str(error)
            continue
        wanted = sorted(image.member for image in content.images)
        present = sorted(name for name in named if name.endswith(".jpg"))
        if wanted != present:
            yield f"{where}: key {key}: its JSON names {len(wanted)} images, but the tar has {len(present)}"
        sizes[key] = [image.width for image in content.images], [image.height for image in content.images]


def _check_index(
    store: Store,
    tar: str,
    shard: ShardFacts,
    samples: _Samples,
    checksums: list[list[int]],
    sizes: dict[str, _Sizes],
) -> Iterator[str]:
    path = f"{tar.removesuffix('.tar')}.parquet"
    where = store.location(path)
    if store.size(path) is None:
        yield f"{where}: missing"
        return
    if store.sha256(path) != shard.index_sha256:
        yield f"{where}: sha256 does not match the manifest: bytes have changed"
        return
    try:
        advice = "restore it, or make the set again"
        rows = read_table(store, path, _INDEX_CHECKED, what="an index", advice=advice).to_pylist()
    except (DataError, StorageError) as error:
        yield str(error)
        return
    found = [(row["key"], list(zip(row["members"], row["offsets"], row["sizes"], strict=False))) for row in rows]
    counts = [(row["n_images"], len(row["crc32c"])) for row in rows]
    if found != samples or counts != [(_images(sample), len(sample[1])) for sample in samples]:
        yield f"{where}: does not match the members of its tar"
        return
    for row, (key, members), of_members in zip(rows, samples, checksums, strict=True):
        for (name, _, _), said, is_now in zip(members, row["crc32c"], of_members, strict=True):
            if said != is_now:
                yield f"{store.location(tar)}: {name}: crc32c does not match the index: bytes have changed"
        if key in sizes and sizes[key] != (row["widths"], row["heights"]):
            yield f"{where}: key {key}: widths and heights do not match the sample's JSON"


def _check_tar_index(store: Store, path: str, samples: _Samples) -> Iterator[str]:
    starts = [members[0][1] - BLOCK for _, members in samples]
    end = max((offset - BLOCK + member_bytes(size) for _, members in samples for _, offset, size in members), default=0)
    if store.size(path) is None:
        yield f"{store.location(path)}: missing"
    elif store.read(path) != tar_index(starts, end):
        yield f"{store.location(path)}: does not match the members of its tar"
