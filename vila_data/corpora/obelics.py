"""OBELICS: texts and images in the order of a web page, which is kept (docs/sources.md)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from vila_data.core.records import ImageRef, Record
from vila_data.corpora.images import encoded_image
from vila_data.corpora.rows import Row, missing
from vila_data.corpora.source import RowProblem


def obelics_row(record_id: str, row: Row) -> Record:
    """Reads `{images: [url or null], texts: [text or null]}`: an image belongs to the next text, or comes last.

    Where the row has `pictures`, a list of the same length, an image's bytes are those of its entry.
    """
    urls, passages = _entries(row, "images"), _entries(row, "texts")
    pictures = row.get("pictures") if row.get("pictures") is not None else [None] * len(urls)
    if not isinstance(pictures, list) or not len(urls) == len(passages) == len(pictures):
        held = len(pictures) if isinstance(pictures, list) else f"a {type(pictures).__name__}"
        raise RowProblem("wrong_type", f"images has {len(urls)} entries, texts {len(passages)}, pictures {held}")
    texts: list[str] = []
    images: list[ImageRef] = []
    for place, (url, text) in enumerate(zip(urls, passages, strict=True)):
        if url is not None and text is not None:
            raise RowProblem("wrong_type", f"entry {place} has both an image and a text")
        if url is not None:
            image = ImageRef(url=url) if pictures[place] is None else encoded_image(pictures[place])
            images.append(replace(image, url=url, matched_text_index=len(texts)))
        elif text is not None:
            texts.append(text)
    if not texts:
        raise RowProblem("no_text", "texts has no text")
    return Record(record_id, "document", tuple(texts), tuple(images), _source_url(row))


def _entries(row: Row, key: str) -> list[str | None]:
    value = row.get(key)
    if value is None:
        raise missing(f"{key} is missing", row)
    if not isinstance(value, list) or not all(entry is None or isinstance(entry, str) for entry in value):
        raise RowProblem("wrong_type", f"{key} must be a list of strings and nulls")
    return value


def _source_url(row: Row) -> str | None:
    """The page's URL: a column of its own, or inside the JSON of the metadata columns."""
    if isinstance(row.get("url"), str):
        return str(row["url"])
    for column, key in (("general_metadata", "url"), ("metadata", "document_url")):
        for entry in _as_entries(row.get(column)):
            if isinstance(entry, dict) and isinstance(entry.get(key), str):
                return str(entry[key])
    return None


def _as_entries(value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return value if isinstance(value, list) else [value]
