"""A sample as formats see it: texts and pictures, whatever its view, each picture checked against its sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vila_data.core.errors import DataError
from vila_data.core.records import Role
from vila_data.shard.config import View
from vila_data.shard.read import Sample


@dataclass(frozen=True, slots=True)
class Picture:
    """A JPEG of a sample, and what the sample's JSON says of it.

    width, height: pixels; similarity: cosine to its text, None where the run does not score.
    text_index:    the text that it stands before; the number of texts where it stands behind the last one.
    image_index:   its place among the record's images as published.
    """

    member: str
    url: str
    width: int
    height: int
    sha256: str
    similarity: float | None
    text_index: int
    image_index: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Content:
    """A sample: a pair has one text and one picture; a conversation has a role for each text.

    pictures: in reading order.
    members:  {name in the tar: bytes}, in the tar's order.
    """

    key: str
    corpus: str
    record_id: str
    source_url: str | None
    texts: tuple[str, ...]
    pictures: tuple[Picture, ...]
    roles: tuple[Role, ...]
    system: str | None
    members: dict[str, bytes]

    def reading(self) -> Iterator[str | Picture]:
        """Texts and pictures in reading order: each picture before its text, or behind the last one."""
        at = 0
        for index, text in enumerate(self.texts):
            while at < len(self.pictures) and self.pictures[at].text_index <= index:
                yield self.pictures[at]
                at += 1
            yield text
        yield from self.pictures[at:]


def read_content(sample: Sample, view: View) -> Content:
    """What a sample holds.

    Raises:
        DataError: its JSON is not of the view's layout, or a picture is not the one that it names.
    """
    try:
        return _content(sample, sample.json, view)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{sample.shard}: {sample.key}.json: not a sample of view {view}: {error!r}; run check on the set"
        ) from error


def _content(sample: Sample, value: dict[str, Any], view: View) -> Content:
    if view == "pairs":
        texts, infos, suffixes = [value["caption"]], [value], ["jpg"]
    else:
        infos = value["image_info"]
        suffixes = [f"{index}.jpg" for index in range(len(infos))]
        turns = value.get("conversations", ()) if view == "conversations" else ()
        texts = [turn["value"] for turn in turns] if turns else [text for text in value["texts"] if text is not None]
    source = value["source"]
    return Content(
        key=sample.key,
        corpus=source["corpus"],
        record_id=source["record_id"],
        source_url=source["url"],
        texts=tuple(texts),
        pictures=tuple(_picture(sample, suffix, info) for suffix, info in zip(suffixes, infos, strict=True)),
        roles=tuple(turn["from"] for turn in value["conversations"]) if view == "conversations" else (),
        system=value["system"] if view == "conversations" else None,
        members={f"{sample.key}.{suffix}": data for suffix, data in sample.members.items()},
    )


def _picture(sample: Sample, suffix: str, info: dict[str, Any]) -> Picture:
    jpeg = sample.members[suffix]
    if hashlib.sha256(jpeg).hexdigest() != info["sha256"]:
        raise DataError(
            f"{sample.shard}: {sample.key}.{suffix}: not the picture that its JSON names; run check on the set"
        )
    return Picture(
        member=f"{sample.key}.{suffix}",
        url=info["url"],
        width=info["width"],
        height=info["height"],
        sha256=info["sha256"],
        similarity=info["similarity"],
        text_index=info["matched_text_index"],
        image_index=info["image_index"],
        jpeg=jpeg,
    )
