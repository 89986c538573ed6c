"""What a finished set says of itself: manifest.json, wids-meta.json, .nv-meta/."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vila_data.core.errors import DataError
from vila_data.core.layout import shard_stem
from vila_data.core.receipts import Receipt
from vila_data.core.store import Store
from vila_data.core.tables import SCHEMA_VERSION, check_version
from vila_data.shard import energon
from vila_data.shard.config import ShardSet


@dataclass(frozen=True)
class ShardFacts:
    """A shard as the manifest has it; sizes in bytes, sha256 in hex."""

    name: str
    samples: int
    images: int
    bytes: int
    sha256: str
    index_bytes: int
    index_sha256: str


@dataclass(frozen=True)
class Manifest:
    """A set's manifest.json."""

    name: str
    corpus: str
    view: str
    recipe: str
    inputs: str
    shards: tuple[ShardFacts, ...]
    schema: int = SCHEMA_VERSION

    @property
    def samples(self) -> int:
        """Samples of the set."""
        return sum(shard.samples for shard in self.shards)

    @property
    def images(self) -> int:
        """Images of the set."""
        return sum(shard.images for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of the set's tars."""
        return sum(shard.bytes for shard in self.shards)


def manifest_path(name: str) -> str:
    """Where a set's manifest lies in a run."""
    return f"shards/{name}/manifest.json"


def parse_manifest(data: bytes, where: str) -> Manifest:
    """A manifest from its JSON.

    Raises:
        DataError: it is none, or of a schema that this version does not read.
    """
    try:
        value = json.loads(data)
        check_version(where, "schema", value["schema"], SCHEMA_VERSION)
        shards = tuple(
            ShardFacts(**{key: shard[key] for key in ShardFacts.__annotations__}) for shard in value["shards"]
        )
        return Manifest(value["set"], value["corpus"], value["view"], value["recipe"], value["inputs"], shards)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a manifest: {error!r}") from error


def read_manifest(store: Store, name: str) -> Manifest | None:
    """The manifest of a finished set, or None."""
    path = manifest_path(name)
    if store.size(path) is None:
        return None
    return parse_manifest(store.read(path), store.location(path))


def finish_set(
    store: Store, name: str, config: ShardSet, receipts: Sequence[Receipt], recipe: str, inputs: str
) -> Manifest:
    """Write what makes a set readable, the manifest last, and delete shards of an earlier layout."""
    shards = tuple(_facts(name, index, receipt) for index, receipt in enumerate(receipts))
    manifest = Manifest(name, config.corpus, config.view, recipe, inputs, shards)
    _remove_strangers(store, name, len(shards))
    folder = f"shards/{name}"
    store.commit_bytes(wids_meta(manifest), f"{folder}/wids-meta.json")
    energon.write_metadata(store, folder, config.view, [(shard.name, shard.samples) for shard in shards])
    store.commit_bytes(_json(_manifest_json(manifest)), manifest_path(name))
    return manifest


def _facts(name: str, index: int, receipt: Receipt) -> ShardFacts:
    stem = shard_stem(name, index)
    tar, table = receipt.outputs[f"{stem}.tar"], receipt.outputs[f"{stem}.parquet"]
    return ShardFacts(
        name=f"{name}-{index:06d}.tar",
        samples=receipt.counts["samples"],
        images=receipt.counts["images"],
        bytes=tar["bytes"],
        sha256=tar["sha256"],
        index_bytes=table["bytes"],
        index_sha256=table["sha256"],
    )


def _manifest_json(manifest: Manifest) -> dict[str, Any]:
    return {
        "schema": manifest.schema,
        "set": manifest.name,
        "corpus": manifest.corpus,
        "view": manifest.view,
        "recipe": manifest.recipe,
        "inputs": manifest.inputs,
        "samples": manifest.samples,
        "images": manifest.images,
        "bytes": manifest.bytes,
        "shards": [{key: getattr(shard, key) for key in ShardFacts.__annotations__} for shard in manifest.shards],
    }


def wids_meta(manifest: Manifest) -> bytes:
    """What wids and VILA's own loader read (docs/sources.md)."""
    value = {
        "name": manifest.name,
        "__kind__": "VILA-WebDataset",
        "wids_version": 1,
        "shardlist": [
            {"url": shard.name, "nsamples": shard.samples, "filesize": shard.bytes} for shard in manifest.shards
        ],
    }
    return _json(value)


def _remove_strangers(store: Store, name: str, shards: int) -> None:
    stems = {shard_stem(name, index) for index in range(shards)}
    for path in store.files(f"shards/{name}"):
        stem = path.replace("/.receipts/", "/").removesuffix(".idx").rsplit(".", 1)[0]
        if path.endswith((".tar", ".tar.idx", ".parquet")) or "/.receipts/" in path:
            if stem not in stems:
                store.remove(path)
        elif "/.nv-meta/" in path:
            store.remove(path)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"
