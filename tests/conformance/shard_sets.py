"""The shard sets that the suite reads, and what is in them by our own reader."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vila_data.shard.manifest import Manifest
from vila_data.shard.read import Sample, open_shards

VIEWS = {
    "made": {"docs": "interleaved", "docs_pairs": "pairs", "pairs": "pairs", "chat": "conversations"},
    "sample": {
        "docs": "interleaved",
        "docs_pairs": "pairs",
        "pairs": "pairs",
        "chat": "conversations",
        "text": "conversations",
    },
    "real": {
        "gimp": "interleaved",
        "gimp_pairs": "pairs",
        "flickr": "pairs",
        "chats": "conversations",
        "talks": "conversations",
    },
}
"""By input: made (tests/made_run.py), sample (recipes/sample.yaml), real (gimp-help, Flickr8k, chats): each set's view."""

MARKS = {"made": [], "sample": [pytest.mark.slow], "real": [pytest.mark.slow, pytest.mark.realdata]}


@dataclass(frozen=True)
class Case:
    """A set of one of the inputs."""

    source: str
    name: str
    view: str


@dataclass(frozen=True)
class OpenedSet:
    """A finished set on disk."""

    case: Case
    run: Path

    @property
    def folder(self) -> Path:
        """shards/<set>."""
        return self.run / "shards" / self.case.name

    @cached_property
    def ours(self) -> list[Sample]:
        """Every sample by `open_shards`."""
        return list(open_shards(self.folder))

    @cached_property
    def manifest(self) -> Manifest:
        """The set's own account."""
        return open_shards(self.folder).manifest

    @property
    def tars(self) -> list[str]:
        """Paths of its shards, in order."""
        return [str(self.folder / shard.name) for shard in self.manifest.shards]


def cases(*views: str, sources: tuple[str, ...] = ("made", "sample", "real"), names: tuple[str, ...] = ()) -> list[Any]:
    """Parameters of the fixture `opened`: sets of these views, or of these names; of all where none is given."""
    return [
        pytest.param(Case(source, name, view), id=f"{source}-{name}", marks=MARKS[source])
        for source in sources
        for name, view in VIEWS[source].items()
        if (not views or view in views) and (not names or name in names)
    ]


def runs(*sources: str) -> list[Any]:
    """Parameters of the fixture `run`: whole inputs."""
    return [pytest.param(source, id=source, marks=MARKS[source]) for source in sources]


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


def digests(sample: Sample) -> list[Any]:
    """[key, {suffix: sha256}]: a sample's identity, whoever reads it."""
    return [sample.key, {suffix: sha256(data) for suffix, data in sample.members.items()}]


def jpegs(sample: Sample) -> list[bytes]:
    """A sample's images in order."""
    names = sample.json.get("images")
    if names is None:
        return [sample.members["jpg"]]
    return [sample.members[name.removeprefix(f"{sample.key}.")] for name in names if name is not None]


def decoded(jpeg: bytes) -> tuple[int, int]:
    """(width, height), after all of it is decoded."""
    image = Image.open(io.BytesIO(jpeg))
    image.load()
    return image.size


def sizes_of(value: dict[str, Any]) -> list[tuple[int, int]]:
    """(width, height) of a sample's images, as its JSON has them."""
    return [(one["width"], one["height"]) for one in value.get("image_info", [value])]
