"""VILA's wds: tars of KEY.jpg, KEY.txt and KEY.json (with `url`), and wids-meta.json over them (docs/sources.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import ClassVar

from vila_data.core.receipts import Outputs
from vila_data.export.format import Content, ExportCounts, ExportedSet, Part, cut_as_shards, tar_file
from vila_data.shard.config import View


class Wids:
    """See the module. The tars have no directory members, and names that no other set of the export has."""

    name: ClassVar[str] = "wids"
    views: ClassVar[tuple[View, ...]] = ("pairs",)
    revision: ClassVar[int] = 1

    def __init__(self, view: View) -> None:
        del view

    def cut(self, set_name: str, samples: Sequence[int], shards: int | None) -> list[Part]:
        """One tar per shard, or as many as requested."""
        return cut_as_shards(set_name, samples, shards)

    def write_part(self, part: Part, contents: Iterator[Content], files: Outputs) -> ExportCounts:
        """One tar: the members as they are, the image first."""
        counts = ExportCounts()
        with tar_file(files.path(_tar(part))) as tar:
            for content in contents:
                for suffix in ("jpg", "txt", "json"):
                    name = f"{content.key}.{suffix}"
                    tar.add(name, content.members[name])
                counts.add(content)
        return counts

    def finish(self, exported: ExportedSet, files: Outputs) -> None:
        """wids-meta.json, by whose `__kind__` VILA knows the directory; its tars are named relative to it."""
        shards = [
            {
                "url": _tar(done.part).rsplit("/", 1)[1],
                "nsamples": done.counts["exported"],
                "filesize": done.sizes[_tar(done.part)],
            }
            for done in exported.parts
        ]
        value = {"name": exported.set_name, "__kind__": "VILA-WebDataset", "wids_version": 1, "shardlist": shards}
        files.path(f"{exported.set_name}/wids-meta.json").write_text(json.dumps(value, indent=1) + "\n")


def _tar(part: Part) -> str:
    return part.file(f"{part.set_name}-{part.index:06d}.tar")
