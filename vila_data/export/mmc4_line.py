"""A document in MMC4's line format with the pictures inside, as VILA and OpenFlamingo take it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Final

from vila_data.export.content import Content, Picture

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
