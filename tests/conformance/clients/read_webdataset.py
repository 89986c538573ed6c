"""Read a set with webdataset: as bytes, and decoded.

    python read_webdataset.py OUT TAR ...

Writes JSON: the version; each sample as [key, {suffix: sha256}]; each again as [key, {suffix: [height, width] or text}].
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.metadata import version
from typing import Any

import webdataset


def members(sample: dict[str, Any]) -> dict[str, Any]:
    return {suffix: value for suffix, value in sample.items() if not suffix.startswith("__")}


def shown(value: Any) -> Any:
    """Pixels as their size, the rest as it is."""
    return list(value.shape[:2]) if hasattr(value, "shape") else value


def read(tars: list[str]) -> dict[str, Any]:
    raw = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    as_bytes = [
        [one["__key__"], {suffix: hashlib.sha256(data).hexdigest() for suffix, data in members(one).items()}]
        for one in raw
    ]
    decoded = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("rgb8")
    as_values = [[one["__key__"], {suffix: shown(value) for suffix, value in members(one).items()}] for one in decoded]
    return {"version": version("webdataset"), "bytes": as_bytes, "values": as_values}


if __name__ == "__main__":
    with open(sys.argv[1], "w") as stream:
        json.dump(read(sys.argv[2:]), stream)
