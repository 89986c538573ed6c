"""What flows through the pipeline: one record is one document, pair or conversation.

A record of any kind is texts plus images, each image tied to one text. A pair is
the record with one text and one image; a conversation's texts are its turns. Records
travel as canonical JSON, so that equal records have equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from vila_data.core.errors import DataError

RecordKind = Literal["document", "pair", "conversation"]
Role = Literal["human", "gpt"]

IMAGE_PLACEHOLDER: Final = "<image>"
"""The placeholder of an image in a turn of a conversation: one per image, in order. In a conversation without images
it is plain text."""

PLACEHOLDER_AS_TEXT: Final = "<IMAGE>"
"""How a turn spells a placeholder that is plain text, where the conversation has images."""

Message = dict[str, Any]
"""One chat message in normal form, JSON alone: {"role": str, "content": str or list, …}."""

CHAT_KEYS: Final = ("messages", "tools")
"""Keys of a record's and a sample's JSON whose objects keep the order of their keys."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image of a record, as the corpus's metadata names it.

    matched_text_index: the text that the image belongs to; the number of texts where it
                        comes after the last one.
    data, file, error:  of an image that needs no download: its bytes; the path or URL to
                        read it from; why there is none (core.fates.IMAGE_ERRORS). At most
                        one of them is set, and none is written to JSON.
    """

    url: str
    matched_text_index: int | None = None
    matched_sim: float | None = None
    name: str | None = None
    data: bytes | None = field(default=None, repr=False)
    file: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One document, pair or conversation.

    record_id: stable: it depends on the metadata alone.
    roles:     who speaks, one per text, alternating; conversations only. The first may be gpt, the last human.
    system:    a conversation's system prompt; None: the template's own, "": none.
    messages:  a conversation as chat messages, only where `texts`, `roles` and `system` do not say it all (tool calls,
               reasoning, images as entries …); they then say all of it, images and system prompt included. A content
               is a text, or a list of {"type": "text", "text": …} and {"type": "image"}, one per image, in order;
               without a content there is no such key. Other keys are as published.
    tools:     the tools offered in such a conversation, as published.
    verbatim:  VILA v1.0 leaves the conversation's placeholders where they are, as in rows of VFLAN; it moves those of others.
    """

    record_id: str
    kind: RecordKind
    texts: tuple[str, ...]
    images: tuple[ImageRef, ...]
    source_url: str | None = None
    roles: tuple[Role, ...] = ()
    system: str | None = None
    messages: tuple[Message, ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    verbatim: bool = False

    def text_of(self, matched_text_index: int) -> str:
        """The text that an image belongs to: an image after the last text belongs to that one."""
        return self.texts[min(matched_text_index, len(self.texts) - 1)]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A metadata row that is not a record. It gets a fate; it never ends a run.

    `reason` is one of `core.fates.RECORD_REASONS`; `detail` names file, line and problem.
    """

    record_id: str
    reason: str
    detail: str


def canonical_json(value: Mapping[str, Any], as_given: Collection[str] = ()) -> bytes:
    """UTF-8 JSON with a fixed spelling: equal values give equal bytes.

    Keys are sorted, except those of objects below the keys `as_given`: templates print them, so their order is data.
    Lone surrogates, which JSON can carry and UTF-8 cannot, become U+FFFD.
    """
    if not value.keys().isdisjoint(as_given):
        pieces = (f"{_json(key)}:{_json(value[key], sort_keys=key not in as_given)}" for key in sorted(value))
        text = "{" + ",".join(pieces) + "}"
    else:
        text = _json(value)
    return without_surrogates(text).encode()


def without_surrogates(text: str) -> str:
    """`text` as UTF-8 carries it: U+FFFD for each byte of a lone surrogate."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _json(value: Any, sort_keys: bool = True) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys)


def chat_keys(record: Record) -> dict[str, Any]:
    """`messages`, `tools` and `verbatim` of a record's JSON and of its sample's: those that it has."""
    there = {"messages": record.messages, "tools": record.tools}
    found: dict[str, Any] = {key: list(value) for key, value in there.items() if value is not None}
    return found | ({"verbatim": True} if record.verbatim else {})


def record_to_json(record: Record) -> bytes:
    """Canonical JSON of a record, without the images' bytes."""
    value: dict[str, Any] = {
        "record_id": record.record_id,
        "kind": record.kind,
        "texts": list(record.texts),
        "images": [
            {
                "url": image.url,
                "matched_text_index": image.matched_text_index,
                "matched_sim": image.matched_sim,
                "name": image.name,
            }
            for image in record.images
        ],
        "source_url": record.source_url,
    }
    if record.kind == "conversation":
        value |= {"roles": list(record.roles), "system": record.system} | chat_keys(record)
    return canonical_json(value, CHAT_KEYS)


def record_from_json(data: bytes, where: str) -> Record:
    """The inverse of `record_to_json`. where: the tar and the place in it, for the message.

    Raises:
        DataError: the bytes are not a record's.
    """
    try:
        return _record(json.loads(data))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a record: {error!r}; run check on the run") from error


def _record(value: dict[str, Any]) -> Record:
    return Record(
        record_id=value["record_id"],
        kind=value["kind"],
        texts=tuple(value["texts"]),
        images=tuple(ImageRef(**image) for image in value["images"]),
        source_url=value["source_url"],
        roles=tuple(value.get("roles", ())),
        system=value.get("system"),
        messages=_tuple(value.get("messages")),
        tools=_tuple(value.get("tools")),
        verbatim=value.get("verbatim", False),
    )


def _tuple(value: list[dict[str, Any]] | None) -> tuple[dict[str, Any], ...] | None:
    return None if value is None else tuple(value)
