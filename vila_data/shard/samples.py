"""Members of one sample, in the layouts of shards/FORMAT.md.

A sample's key has no dot; its members are adjacent in the tar; its JSON comes
first, so that a reader of one member knows what follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import simplejpeg

from vila_data.core.errors import DataError
from vila_data.core.records import CHAT_KEYS, IMAGE_MARK, Record, canonical_json, chat_keys
from vila_data.core.schemas import SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class KeptImage:
    """An image that goes into a sample: its JPEG bytes and what is known of it."""

    image_index: int
    text_index: int
    similarity: float | None
    sha256: str
    jpeg: bytes

    def facts(self, record: Record) -> dict[str, Any]:
        """The image's entry in a sample's JSON; width and height in pixels, of the JPEG."""
        height, width, _, _ = simplejpeg.decode_jpeg_header(self.jpeg)
        return {
            "url": record.images[self.image_index].url,
            "width": width,
            "height": height,
            "sha256": self.sha256,
            "similarity": self.similarity,
            "matched_text_index": self.text_index,
            "image_index": self.image_index,
        }


Members = list[tuple[str, bytes]]


def interleaved(key: str, corpus: str, record: Record, images: list[KeptImage]) -> Members:
    """A document in reading order, each image before its sentence, or behind the last one.

    `images` are in that order already.
    """
    texts: list[str | None] = []
    names: list[str | None] = []
    at = 0
    for index, text in enumerate(record.texts):
        while at < len(images) and images[at].text_index == index:
            texts.append(None)
            names.append(f"{key}.{at}.jpg")
            at += 1
        texts.append(text)
        names.append(None)
    for last in range(at, len(images)):
        texts.append(None)
        names.append(f"{key}.{last}.jpg")
    sample = {
        "sample_id": key,
        "texts": texts,
        "images": names,
        "image_info": [image.facts(record) for image in images],
        "source": _source(corpus, record),
        "schema": SCHEMA_VERSION,
    }
    return [(f"{key}.json", canonical_json(sample)), *_pictures(key, images)]


def conversation(key: str, corpus: str, record: Record, images: list[KeptImage]) -> Members:
    """Turns as LLaVA has them; `images` are those of the marks, in order. A record without images may have marks in
    its words. Chat messages and tools are there where the record has them.

    Raises:
        DataError: marks and images differ.
    """
    marks = [turn for turn, text in enumerate(record.texts) for _ in range(text.count(IMAGE_MARK))]
    if (record.images or images) and marks != [image.text_index for image in images]:
        raise DataError(f"{key}: record {record.record_id} has {len(marks)} {IMAGE_MARK} marks, {len(images)} images")
    sample = {
        "sample_id": key,
        "conversations": [{"from": role, "value": text} for role, text in zip(record.roles, record.texts, strict=True)],
        "system": record.system,
        **chat_keys(record),
        "images": [name for name, _ in _pictures(key, images)],
        "image_info": [image.facts(record) for image in images],
        "source": _source(corpus, record),
        "schema": SCHEMA_VERSION,
    }
    return [(f"{key}.json", canonical_json(sample, CHAT_KEYS)), *_pictures(key, images)]


def pair(key: str, corpus: str, record: Record, image: KeptImage) -> Members:
    """One image with its caption: the sentence that it stands before (the last one where it stands behind all)."""
    caption = record.text_of(image.text_index)
    sample = {
        "sample_id": key,
        "caption": caption,
        **image.facts(record),
        "source": _source(corpus, record),
        "schema": SCHEMA_VERSION,
    }
    text = caption.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    return [(f"{key}.json", canonical_json(sample)), (f"{key}.jpg", image.jpeg), (f"{key}.txt", text)]


def _pictures(key: str, images: list[KeptImage]) -> Members:
    return [(f"{key}.{index}.jpg", image.jpeg) for index, image in enumerate(images)]


def _source(corpus: str, record: Record) -> dict[str, Any]:
    return {"corpus": corpus, "record_id": record.record_id, "url": record.source_url}
