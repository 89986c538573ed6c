"""The metadata files of a finished set: manifest.json, wids-meta.json, and Megatron-Energon's `.nv-meta/` and `.tar.idx`.

With these Energon 7 reads a set as it is. `energon prepare` may be run over it, and is needed only for access by key
(`.nv-meta/index.sqlite`, an auxiliary dataset of a metadataset).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from vila_data.core.errors import DataError
from vila_data.core.layout import shard_stem
from vila_data.core.receipts import Receipt
from vila_data.core.store import Store
from vila_data.core.tables import SCHEMA_VERSION, check_version
from vila_data.shard.config import ShardSet, View

_SAMPLE_LOADER = '''"""How Megatron-Energon makes an InterleavedSample: texts and images in reading order."""


def sample_loader(raw: dict) -> dict:
    document = raw["json"]
    return {
        "sequence": [
            text if image is None else raw[image.split(".", 1)[1]]
            for text, image in zip(document["texts"], document["images"])
        ]
    }


def part_filter(part: str) -> bool:
    return part == "json" or part.endswith(".jpg")
'''

_DATASETS: dict[View, dict[str, Any]] = {
    "pairs": {
        "sample_type": {"__module__": "megatron.energon", "__class__": "CaptioningSample"},
        "field_map": {"image": "jpg", "caption": "txt"},
    },
    "interleaved": {
        "sample_type": {"__module__": "megatron.energon", "__class__": "InterleavedSample"},
        "sample_loader": "sample_loader.py:sample_loader",
        "part_filter": "sample_loader.py:part_filter",
    },
    "conversations": {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"},  # for the user's own cooker
}


def write_metadata(store: Store, directory: str, view: View, shards: Sequence[tuple[str, int]]) -> None:
    """Write `.nv-meta/` for shards given as (tar name, samples): all of them are the split `train`."""
    for name, data in metadata_files(view, shards).items():
        store.commit_bytes(data, f"{directory}/.nv-meta/{name}".lstrip("/"))


def metadata_files(view: View, shards: Sequence[tuple[str, int]]) -> dict[str, bytes]:
    """{name: content} of `.nv-meta/`, the sqlite index aside."""
    names = [name for name, _ in shards]
    files = {
        "dataset.yaml": _yaml(_DATASETS[view]),
        "split.yaml": _yaml({"split_parts": {"train": names, "val": [], "test": []}, "exclude": []}),
        ".info.json": json.dumps({"shard_counts": dict(shards)}, indent=2).encode() + b"\n",
    }
    if view == "interleaved":
        files["sample_loader.py"] = _SAMPLE_LOADER.encode()
    return files


def tar_index(starts: Sequence[int], end: int) -> bytes:
    """A `.tar.idx`: where each sample's first header is, then where the last sample ends; uint64 each."""
    return struct.pack(f"<{len(starts) + 1}Q", *starts, end)


def _yaml(value: dict[str, Any]) -> bytes:
    return yaml.safe_dump(value, sort_keys=False).encode()


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
    """Path of a set's manifest in a run."""
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
    _remove_stale_shards(store, name, len(shards))
    directory = f"shards/{name}"
    store.commit_bytes(wids_meta(manifest), f"{directory}/wids-meta.json")
    write_metadata(store, directory, config.view, [(shard.name, shard.samples) for shard in shards])
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


def _remove_stale_shards(store: Store, name: str, shards: int) -> None:
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
