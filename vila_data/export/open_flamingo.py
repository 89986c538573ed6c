"""OpenFlamingo's tars: `<uuid>.json`, an MMC4 line with the images in it as base64 (docs/sources.md); vila_pickle.py writes the same lines.

OpenFlamingo reads every `<image>` of a sentence as an image token, so one that is text becomes `<IMAGE>`."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from vila_data.core.receipts import Outputs
from vila_data.core.records import IMAGE_PLACEHOLDER, canonical_json
from vila_data.export.format import Content, ExportCounts, ExportedSet, JpegImage, Part, cut_as_shards, tar_file
from vila_data.shard.config import View

NOT_KNOWN: Final = -1.0
"""In a similarity matrix, of pairs that the set has no similarity for: cosine's least value, so that none is assigned."""
PLACED: Final = 1.0
"""The similarity of an image to its own sentence where the run does not score: its place is published."""


@dataclass(frozen=True)
class Mmc4Document:
    """`value`: the line; `adapted`: what was done to make it one."""

    value: dict[str, Any]
    adapted: tuple[str, ...]


def mmc4_document(content: Content) -> Mmc4Document | None:
    """A document as an MMC4 line with `image_info[i]["image_base64"]`; None where it has no image.

    Images are in their published order. An image after the last text gets an empty sentence of its own, since
    a matched_text_index names one. The matrix has a row per image and a column per sentence.
    """
    if not content.images:
        return None
    texts, adapted = list(content.texts), []
    if any(image.text_index >= len(texts) for image in content.images):
        texts.append("")
        adapted.append("empty_sentence_added")
    if any(image.similarity is None for image in content.images):
        adapted.append("not_scored")
    images = sorted(content.images, key=lambda image: image.image_index)
    value = {
        "text_list": texts,
        "url": content.source_url,
        "image_info": [_image_info(image) for image in images],
        "similarity_matrix": [_row(image, len(texts)) for image in images],
        "sample_id": content.key,
        "record_id": content.record_id,
    }
    return Mmc4Document(value, tuple(adapted))


def base64_text(jpeg: bytes) -> str:
    """True base64, no repr of bytes around it."""
    return base64.b64encode(jpeg).decode("ascii")


def _image_info(image: JpegImage) -> dict[str, Any]:
    return {
        "image_name": image.member,
        "raw_url": image.url,
        "matched_text_index": image.text_index,
        "matched_sim": image.similarity,
        "image_base64": base64_text(image.jpeg),
    }


def _row(image: JpegImage, texts: int) -> list[float]:
    row = [NOT_KNOWN] * texts
    row[image.text_index] = PLACED if image.similarity is None else image.similarity
    return row


class OpenFlamingo:
    """See the module. A document's uuid is a function of its key (RFC 4122, version 5)."""

    name: ClassVar[str] = "open-flamingo"
    views: ClassVar[tuple[View, ...]] = ("interleaved",)
    revision: ClassVar[int] = 2

    def __init__(self, view: View) -> None:
        del view

    def cut(self, set_name: str, samples: Sequence[int], shards: int | None) -> list[Part]:
        """One tar per shard, or as many as requested."""
        return cut_as_shards(set_name, samples, shards)

    def write_part(self, part: Part, contents: Iterator[Content], files: Outputs) -> ExportCounts:
        """One tar, named as OpenFlamingo's own converter does: nine digits."""
        counts = ExportCounts()
        with tar_file(files.path(part.file(f"{part.index:09d}.tar"))) as tar:
            for content in contents:
                document = mmc4_document(content)
                if document is None:
                    counts.left_out["no_image"] += 1
                    continue
                if _spell_marks(document.value["text_list"]):
                    counts.adapted["image_placeholder_in_text"] += 1
                tar.add(f"{uuid.uuid5(uuid.NAMESPACE_OID, content.key).hex}.json", canonical_json(document.value))
                counts.adapted.update(document.adapted)
                counts.add(content)
        return counts

    def finish(self, exported: ExportedSet, files: Outputs) -> None:
        """Nothing: the tars are the dataset."""


def _spell_marks(texts: list[str]) -> bool:
    """Write each `<image>` as `<IMAGE>`, in place; whether there was one."""
    found = any(IMAGE_PLACEHOLDER in text for text in texts)
    texts[:] = [text.replace(IMAGE_PLACEHOLDER, IMAGE_PLACEHOLDER.upper()) for text in texts]
    return found
