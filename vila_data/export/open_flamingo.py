"""OpenFlamingo's tars: `<uuid>.json`, an MMC4 line with the images in it as base64 (docs/sources.md); vila_pickle.py writes the same lines.

OpenFlamingo reads every `<image>` of a sentence as an image token, so one that is text becomes `<IMAGE>`."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from vila_data.core.receipts import Outputs
from vila_data.core.records import IMAGE_MARK, canonical_json
from vila_data.export.format import Content, Part, Picture, Tally, Whole, cut_as_shards, tar_file
from vila_data.shard.config import View

NOT_KNOWN: Final = -1.0
"""In a similarity matrix, of pairs that the set has no similarity for: cosine's least value, so that none is assigned."""
PLACED: Final = 1.0
"""The similarity of a picture to its own sentence where the run does not score: its place is published."""


@dataclass(frozen=True)
class Mmc4Document:
    """`value`: the line; `adapted`: what was done to make it one."""

    value: dict[str, Any]
    adapted: tuple[str, ...]


def mmc4_document(content: Content) -> Mmc4Document | None:
    """A document as an MMC4 line with `image_info[i]["image_base64"]`; None where it has no picture.

    Pictures stand in their published order. A picture behind the last text gets an empty sentence of its own, since
    a matched_text_index names one. The matrix has a row a picture and a column a sentence.
    """
    if not content.pictures:
        return None
    texts, adapted = list(content.texts), []
    if any(picture.text_index >= len(texts) for picture in content.pictures):
        texts.append("")
        adapted.append("empty_sentence_added")
    if any(picture.similarity is None for picture in content.pictures):
        adapted.append("not_scored")
    pictures = sorted(content.pictures, key=lambda picture: picture.image_index)
    value = {
        "text_list": texts,
        "url": content.source_url,
        "image_info": [_image_info(picture) for picture in pictures],
        "similarity_matrix": [_row(picture, len(texts)) for picture in pictures],
        "sample_id": content.key,
        "record_id": content.record_id,
    }
    return Mmc4Document(value, tuple(adapted))


def base64_text(jpeg: bytes) -> str:
    """True base64, no repr of bytes around it."""
    return base64.b64encode(jpeg).decode("ascii")


def _image_info(picture: Picture) -> dict[str, Any]:
    return {
        "image_name": picture.member,
        "raw_url": picture.url,
        "matched_text_index": picture.text_index,
        "matched_sim": picture.similarity,
        "image_base64": base64_text(picture.jpeg),
    }


def _row(picture: Picture, texts: int) -> list[float]:
    row = [NOT_KNOWN] * texts
    row[picture.text_index] = PLACED if picture.similarity is None else picture.similarity
    return row


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
    found = any(IMAGE_MARK in text for text in texts)
    texts[:] = [text.replace(IMAGE_MARK, IMAGE_MARK.upper()) for text in texts]
    return found
