"""What flows through the pipeline: one record is one document, pair or conversation.

A record of any kind is texts plus images, each image tied to one text. A pair is
the record with one text and one image. Records travel as canonical JSON, so that
equal records have equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RecordKind = Literal["document", "pair"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image of a record, as the corpus's metadata names it.

    `data` and `upstream_error` are set by corpora that are downloaded already: the
    bytes, or why the earlier download has none. Neither is written to JSON.
    """

    url: str
    matched_text_index: int | None = None
    matched_sim: float | None = None
    name: str | None = None
    data: bytes | None = field(default=None, repr=False)
    upstream_error: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One document or pair. `record_id` is stable: it depends on the metadata alone."""

    record_id: str
    kind: RecordKind
    texts: tuple[str, ...]
    images: tuple[ImageRef, ...]
    source_url: str | None = None


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A metadata row that is no record: a fate of its own, never the end of a run.

    `reason` is one of `core.fates.RECORD_REASONS`; `detail` names file, line and problem.
    """

    record_id: str
    reason: str
    detail: str


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """UTF-8 JSON with a fixed spelling: equal values give equal bytes.

    Lone surrogates, which JSON can carry and UTF-8 cannot, become U+FFFD.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()


def record_to_json(record: Record) -> bytes:
    """Canonical JSON of a record, without the images' bytes."""
    return canonical_json(
        {
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
    )


def record_from_json(data: bytes) -> Record:
    """The inverse of `record_to_json`."""
    value = json.loads(data)
    return Record(
        record_id=value["record_id"],
        kind=value["kind"],
        texts=tuple(value["texts"]),
        images=tuple(ImageRef(**image) for image in value["images"]),
        source_url=value["source_url"],
    )
