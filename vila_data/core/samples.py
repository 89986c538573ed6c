"""Samples: the one codec of their members and JSON, in the layouts of shards/FORMAT.md.

A sample's key has no dot; its members are adjacent in the tar; its JSON comes first, so that a reader of one member
knows what follows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final, Literal, NamedTuple

from vila_data.core.errors import DataError
from vila_data.core.records import CHAT_KEYS, IMAGE_PLACEHOLDER, Message, Record, Role, canonical_json, chat_keys

SAMPLE_SCHEMA: Final = 1
"""`schema` of a sample's JSON: raised when a field changes its meaning or goes away."""

View = Literal["interleaved", "pairs", "conversations"]
Members = list[tuple[str, bytes]]
"""(name in the tar, bytes) of a sample's members, in the tar's order."""

_IMAGE_SUFFIXES: Final = ("jpg", "jpeg", "png", "webp")
"""Of the image of a pair that others wrote."""


@dataclass(frozen=True, slots=True)
class KeptImage:
    """An image that goes into a sample: its JPEG bytes and what is known of it; width and height in pixels."""

    image_index: int
    text_index: int
    similarity: float | None
    sha256: str
    width: int
    height: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class SampleImage:
    """An image of a sample, as the sample's JSON describes it.

    member:        its name in the tar.
    width, height: pixels; similarity: cosine to its text, None if it is not scored.
    text_index:    the text that it comes before; the number of texts if it comes after the last one.
    image_index:   its place among the record's images as published.

    What is not known of an image that others wrote is 0, or empty.
    """

    member: str
    url: str
    width: int
    height: int
    sha256: str
    similarity: float | None
    text_index: int
    image_index: int


class SampleContent(NamedTuple):
    """What a sample's JSON says.

    entries:  texts (str) and numbers of images (int) in reading order. A conversation has its turns alone: its images
              are at their `<image>` placeholders.
    roles:    of each turn of a conversation; system: its system prompt (None: the template's own, "": none).
    messages, tools, verbatim: as in core.records.Record.
    """

    view: View
    key: str
    entries: tuple[str | int, ...]
    images: tuple[SampleImage, ...]
    corpus: str
    record_id: str
    source_url: str | None
    roles: tuple[Role, ...] = ()
    system: str | None = None
    messages: tuple[Message, ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    verbatim: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """The caption, the sentences or the turns."""
        return tuple([entry for entry in self.entries if isinstance(entry, str)])

    @property
    def sides(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each image, pixels."""
        return tuple([(image.width, image.height) for image in self.images])


def encode_sample(view: View, key: str, corpus: str, record: Record, images: Sequence[KeptImage]) -> Members:
    """The members of a record's sample, its JSON first.

    images: in reading order; those of a conversation in the order of their placeholders; exactly one of a pair, whose
    caption is the sentence that it comes before (the last one if it comes after all).

    Raises:
        DataError: a conversation's placeholders are not those of its images.
    """
    source = {"corpus": corpus, "record_id": record.record_id, "url": record.source_url}
    sample: dict[str, Any] = {"sample_id": key, "source": source, "schema": SAMPLE_SCHEMA}
    if view == "pairs":
        (image,) = images
        caption = record.text_of(image.text_index)
        text = caption.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
        data = canonical_json(sample | _facts(image, record) | {"caption": caption})
        return [(f"{key}.json", data), (f"{key}.jpg", image.jpeg), (f"{key}.txt", text)]
    pictures = [(f"{key}.{number}.jpg", image.jpeg) for number, image in enumerate(images)]
    names = [name for name, _ in pictures]
    sample |= _turns(key, record, images, names) if view == "conversations" else _sentences(record, images, names)
    sample["image_info"] = [_facts(image, record) for image in images]
    return [(f"{key}.json", canonical_json(sample, CHAT_KEYS)), *pictures]


def _facts(image: KeptImage, record: Record) -> dict[str, Any]:
    return {
        "url": record.images[image.image_index].url,
        "width": image.width,
        "height": image.height,
        "sha256": image.sha256,
        "similarity": image.similarity,
        "matched_text_index": image.text_index,
        "image_index": image.image_index,
    }


def _sentences(record: Record, images: Sequence[KeptImage], names: Sequence[str]) -> dict[str, Any]:
    """Each image before its sentence, or after the last one."""
    texts: list[str | None] = []
    places: list[str | None] = []
    at = 0
    for index, text in enumerate((*record.texts, None)):
        while at < len(images) and (text is None or images[at].text_index == index):
            texts.append(None)
            places.append(names[at])
            at += 1
        if text is not None:
            texts.append(text)
            places.append(None)
    return {"texts": texts, "images": places}


def _turns(key: str, record: Record, images: Sequence[KeptImage], names: Sequence[str]) -> dict[str, Any]:
    """Turns as LLaVA has them; a record without images may have placeholders in its words."""
    marks = [turn for turn, text in enumerate(record.texts) for _ in range(text.count(IMAGE_PLACEHOLDER))]
    if (record.images or images) and marks != [image.text_index for image in images]:
        raise DataError(
            f"{key}: record {record.record_id} has {len(marks)} {IMAGE_PLACEHOLDER} placeholders, but {len(images)} images"
        )
    turns = [{"from": role, "value": text} for role, text in zip(record.roles, record.texts, strict=True)]
    return {"conversations": turns, "system": record.system, "images": names, **chat_keys(record)}


def decode_sample(data: bytes, where: str) -> SampleContent:
    """A sample from its JSON. where: the shard and the key, for the message.

    Raises:
        DataError: it is not of one of the layouts, or of another schema.
    """
    try:
        return _decoded(json.loads(data.decode()))
    except _FAULTS as error:
        raise _fault(where, error) from error


def _decoded(value: Mapping[str, Any]) -> SampleContent:
    if value["schema"] != SAMPLE_SCHEMA:
        raise ValueError(f"schema {value['schema']!r}; this version reads {SAMPLE_SCHEMA}")
    if "caption" in value:
        return _content(value, "pairs", (0, _text(value["caption"])), [_image(f"{value['sample_id']}.jpg", value)])
    names = [name for name in value["images"] if name is not None]
    images = [_image(name, info) for name, info in zip(names, value["image_info"], strict=True)]
    if "conversations" in value:
        turns = [_text(turn["value"]) for turn in value["conversations"]]
        _check_places(turns, value.get("messages"), len(images))
        return _content(value, "conversations", turns, images)
    texts = [None if text is None else _text(text) for text in value["texts"]]
    if any((text is None) == (name is None) for text, name in zip(texts, value["images"], strict=True)):
        raise ValueError("not exactly one of texts and images has a value at each place")
    return _content(value, "interleaved", _reading_order(texts, value["images"]), images)


def decode_foreign(key: str, suffixes: Collection[str], read: Callable[[str], bytes], where: str) -> SampleContent:
    """A sample that others wrote, as far as it has what the layouts have; what has no texts in its JSON is a pair.

    suffixes: of the sample's members; read: gives the bytes of its `json` or `txt`; where: as in `decode_sample`.

    Raises:
        DataError: its JSON cannot be read, or its texts and images do not fit together.
    """
    try:
        value = json.loads(read("json")) if "json" in suffixes else {}
        if not isinstance(value, dict):
            raise TypeError("not an object")
        return _unlisted(key, suffixes, read, value)
    except _FAULTS as error:
        raise _fault(where, error) from error


def _unlisted(
    key: str, suffixes: Collection[str], read: Callable[[str], bytes], value: dict[str, Any]
) -> SampleContent:
    infos = value.get("image_info") or []
    places: list[int] = []
    if "conversations" in value:
        view: View = "conversations"
        entries: list[str | int] = [str(turn["value"]) for turn in value["conversations"]]
        names = list(value.get("images") or [])
        places = [int(info["matched_text_index"]) for info in infos if info.get("matched_text_index") is not None]
        if len(places) != len(names):
            places = [turn for turn, said in enumerate(entries) for _ in range(str(said).count(IMAGE_PLACEHOLDER))]
    elif "texts" in value and "images" in value:
        view = "interleaved"
        texts = [None if text is None else str(text) for text in value["texts"]]
        entries = _reading_order(texts, value["images"])
        names = [name for name in value["images"] if name is not None]
        for at, entry in enumerate(entries):
            places += [at - len(places)] if isinstance(entry, int) else []
    else:
        view = "pairs"
        caption = value.get("caption")
        if caption is None and "txt" in suffixes:
            caption = read("txt").decode("utf-8", "replace")
        names = [f"{key}.{suffix}" for suffix in _IMAGE_SUFFIXES if suffix in suffixes][:1]
        entries = [*range(len(names)), *([] if caption is None else [str(caption)])]
        infos, places = [value], [0]
    count = sum(isinstance(entry, str) for entry in entries)
    images = [
        _foreign_image(number, str(name), infos[number] if number < len(infos) else {}, place)
        for number, (name, place) in enumerate(zip_longest(names, places[: len(names)], fillvalue=count))
    ]
    return _content(_completed(value, key), view, entries, images)


_FAULTS: Final = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
"""Whatever a JSON value that is not a sample's leads to."""


def _fault(where: str, error: Exception) -> DataError:
    return DataError(f"{where}: not a sample of shards/FORMAT.md: {error!r}; run check on it")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is {value!r}")
    return value


def _check_places(turns: Sequence[str], messages: Sequence[Message] | None, images: int) -> None:
    """Assert that a conversation has a place for each image; in one without images, placeholders in turns are text."""
    marks = sum([turn.count(IMAGE_PLACEHOLDER) for turn in turns])
    if images and marks != images:
        raise ValueError(f"{marks} {IMAGE_PLACEHOLDER} placeholders, but {images} images")
    if messages is not None:
        contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
        entries = sum(entry["type"] == "image" for content in contents for entry in content)
        if entries != images:
            raise ValueError(f"{entries} image entries in messages for {images} images")


def _content(
    value: Mapping[str, Any], view: View, entries: Sequence[str | int], images: Sequence[SampleImage]
) -> SampleContent:
    source, messages, tools = value["source"], value.get("messages"), value.get("tools")
    is_chat = view == "conversations"
    return SampleContent(
        view,
        value["sample_id"],
        tuple(entries),
        tuple(images),
        source["corpus"],
        source["record_id"],
        source["url"],
        tuple([turn["from"] for turn in value["conversations"]]) if is_chat else (),
        value["system"] if is_chat else None,
        None if messages is None else tuple(messages),
        None if tools is None else tuple(tools),
        value.get("verbatim", False),
    )


def _image(member: str, facts: Mapping[str, Any]) -> SampleImage:
    return SampleImage(
        member,
        facts["url"],
        facts["width"],
        facts["height"],
        facts["sha256"],
        facts["similarity"],
        facts["matched_text_index"],
        facts["image_index"],
    )


def _reading_order(texts: Sequence[str | None], images: Sequence[Any]) -> list[str | int]:
    """The texts, and the numbers of the images, each in its place of the two lists."""
    entries: list[str | int] = []
    count = 0
    for text, image in zip(texts, images, strict=True):
        if image is not None:
            entries.append(count)
            count += 1
        if text is not None:
            entries.append(text)
    return entries


def _completed(value: dict[str, Any], key: str) -> dict[str, Any]:
    """The JSON of a sample that others wrote with the fields that every sample has."""
    source = value.get("source")
    source = source if isinstance(source, dict) else {}
    url, system = source.get("url"), value.get("system")
    return {
        "sample_id": key,
        "source": {
            "corpus": str(source.get("corpus") or ""),
            "record_id": str(source.get("record_id") or key),
            "url": None if url is None else str(url),
        },
        "system": None if system is None else str(system),
        "conversations": [{"from": str(turn.get("from", ""))} for turn in value.get("conversations", ())],
    }


def _foreign_image(number: int, member: str, facts: Mapping[str, Any], text_index: int) -> SampleImage:
    width, height, similarity = facts.get("width"), facts.get("height"), facts.get("similarity")
    is_number = isinstance(similarity, int | float) and math.isfinite(similarity)
    return SampleImage(
        member,
        str(facts.get("url") or ""),
        width if isinstance(width, int) else 0,
        height if isinstance(height, int) else 0,
        str(facts.get("sha256") or ""),
        similarity if is_number else None,
        text_index,
        facts.get("image_index", number),
    )
