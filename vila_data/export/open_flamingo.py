"""OpenFlamingo's tars: `<uuid>.json`, an MMC4 line with the images in it as base64 (docs/sources.md).

OpenFlamingo reads every `<image>` of a sentence as an image token, so one that is text becomes `<IMAGE>`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import ClassVar

from vila_data.core.receipts import Outputs
from vila_data.core.records import IMAGE_PLACEHOLDER, canonical_json
from vila_data.export.content import Content
from vila_data.export.format import Part, Tally, Whole, cut_as_shards, tar_file
from vila_data.export.mmc4_line import mmc4_document
from vila_data.shard.config import View


class OpenFlamingo:
    """See the module. A document's uuid is a function of its key (RFC 4122, version 5)."""

    name: ClassVar[str] = "open-flamingo"
    views: ClassVar[tuple[View, ...]] = ("interleaved",)
    revision: ClassVar[int] = 2

    def __init__(self, view: View) -> None:
        del view

    def cut(self, set_name: str, samples: Sequence[int], shards: int | None) -> list[Part]:
        """A tar a shard, or as many as are asked for."""
        return cut_as_shards(set_name, samples, shards)

    def write_part(self, part: Part, contents: Iterator[Content], files: Outputs) -> Tally:
        """One tar, named as OpenFlamingo's own converter does: nine digits."""
        tally = Tally()
        with tar_file(files.path(part.file(f"{part.index:09d}.tar"))) as tar:
            for content in contents:
                document = mmc4_document(content)
                if document is None:
                    tally.left_out["no_image"] += 1
                    continue
                if _spell_marks(document.value["text_list"]):
                    tally.adapted["image_mark_in_text"] += 1
                tar.add(f"{uuid.uuid5(uuid.NAMESPACE_OID, content.key).hex}.json", canonical_json(document.value))
                tally.adapted.update(document.adapted)
                tally.add(content)
        return tally

    def finish(self, whole: Whole, files: Outputs) -> None:
        """Nothing: the tars are the data set."""


def _spell_marks(texts: list[str]) -> bool:
    """Write each `<image>` as `<IMAGE>`, in place; whether there was one."""
    found = any(IMAGE_PLACEHOLDER in text for text in texts)
    texts[:] = [text.replace(IMAGE_PLACEHOLDER, IMAGE_PLACEHOLDER.upper()) for text in texts]
    return found
