"""LLaVA's JSON list next to a directory of images: conversations, and pairs in the form of its caption pre-training.

`<set>.json` is a list of `{id, image, conversations}`. `image` is a path below `images/`; it is a list of paths where
there are several images, and is absent where there is none. A pair is the turn `<image>` and the caption: in
pre-training, LLaVA removes any other text of the first turn (docs/sources.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from vila_data.core.receipts import Outputs
from vila_data.core.records import IMAGE_PLACEHOLDER, canonical_json
from vila_data.export.format import Content, ExportCounts, ExportedSet, Part, cut_as_shards
from vila_data.shard.config import View

_MARK_IN_WORDS = IMAGE_PLACEHOLDER.upper()


class Llava:
    """See the module."""

    name: ClassVar[str] = "llava"
    views: ClassVar[tuple[View, ...]] = ("conversations", "pairs")
    revision: ClassVar[int] = 2

    def __init__(self, view: View) -> None:
        self._pairs = view == "pairs"

    def cut(self, set_name: str, samples: Sequence[int], shards: int | None) -> list[Part]:
        """One directory of images per shard, or as many as requested."""
        return cut_as_shards(set_name, samples, shards)

    def write_part(self, part: Part, contents: Iterator[Content], files: Outputs) -> ExportCounts:
        """The part's images, in a directory of their own below `images/`, and its rows for the list."""
        counts = ExportCounts()
        directory = f"{part.index:05d}"
        with open(files.path(part.rows), "wb", buffering=1 << 20) as rows:
            for content in contents:
                paths = [f"{directory}/{image.member}" for image in content.images]
                for path, image in zip(paths, content.images, strict=True):
                    files.path(part.file(f"images/{path}")).write_bytes(image.jpeg)
                row: dict[str, Any] = {"id": content.key, "conversations": self._turns(content, counts)}
                if len(paths) == 1:
                    row["image"] = paths[0]
                elif paths:
                    row["image"] = paths
                    counts.adapted["several_images_as_a_list"] += 1
                if content.system is not None:
                    row["system"] = content.system
                    counts.adapted["system_prompt_in_separate_field"] += 1
                rows.write(canonical_json(row) + b"\n")
                counts.add(content)
        return counts

    def finish(self, exported: ExportedSet, files: Outputs) -> None:
        """`<set>.json`: all rows, one a line."""
        with open(files.path(f"{exported.set_name}/{exported.set_name}.json"), "wb", buffering=1 << 20) as stream:
            before = b"[\n"
            for _, row in exported.rows():
                stream.write(before + row)
                before = b",\n"
            stream.write(b"\n]\n" if before == b",\n" else b"[]\n")

    def _turns(self, content: Content, counts: ExportCounts) -> list[dict[str, str]]:
        """The turns. `<image>` that is text becomes `<IMAGE>`, because readers take it for an image that is not there."""
        texts = content.texts
        if (self._pairs or not content.images) and any(IMAGE_PLACEHOLDER in text for text in texts):
            texts = tuple(text.replace(IMAGE_PLACEHOLDER, _MARK_IN_WORDS) for text in texts)
            counts.adapted["image_placeholder_in_caption" if self._pairs else "image_placeholder_in_text"] += 1
        if self._pairs:
            return [{"from": "human", "value": IMAGE_PLACEHOLDER}, {"from": "gpt", "value": texts[0]}]
        return [{"from": role, "value": text} for role, text in zip(content.roles, texts, strict=True)]
