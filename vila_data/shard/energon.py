"""What Megatron-Energon 7 reads beside the tars: `.nv-meta/` and a `.tar.idx` for each tar.

With these a set is read as it lies. `energon prepare` may be run over it, and is needed
only for access by key (`.nv-meta/index.sqlite`, an auxiliary dataset of a metadataset).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import yaml

from vila_data.core.store import Store
from vila_data.shard.config import View

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


def write_metadata(store: Store, folder: str, view: View, shards: Sequence[tuple[str, int]]) -> None:
    """Write `.nv-meta/` for shards given as (tar name, samples): all of them are the split `train`."""
    for name, data in metadata_files(view, shards).items():
        store.commit_bytes(data, f"{folder}/.nv-meta/{name}".lstrip("/"))


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
    """A `.tar.idx`: where each sample's first header stands, then where the last sample ends; uint64 each."""
    return struct.pack(f"<{len(starts) + 1}Q", *starts, end)


def _yaml(value: dict[str, Any]) -> bytes:
    return yaml.safe_dump(value, sort_keys=False).encode()
