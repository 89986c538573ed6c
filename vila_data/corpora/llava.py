"""LLaVA: conversations with images named by path or URL, or in the row; text-only ones among them.

Row formats: docs/sources.md. The published `id` is not unique in mix665k, so a record is
named by its file and row.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from vila_data.core.records import Record
from vila_data.corpora.config import LlavaConfig
from vila_data.corpora.conversation import RowImages, conversation, exchanges, read_chat
from vila_data.corpora.images import as_list, named_image
from vila_data.corpora.rows import ReadRow, Row, missing, text_field
from vila_data.corpora.source import RowProblem

_OTHER_MEDIA: Final = ("video", "videos", "audio", "audios")


def llava_rows(config: LlavaConfig) -> ReadRow:
    """Reads `{image | images}` next to `conversations`, `messages`, `instruction, output` or the_cauldron's `texts`."""
    read_image = partial(named_image, image_root=config.image_root)

    def read(record_id: str, row: Row) -> Record:
        for key in _OTHER_MEDIA:
            if row.get(key):
                raise RowProblem("wrong_type", f"the row has {key}; kind llava reads texts and images")
        given = row.get("image") if row.get("image") is not None else row.get("images")
        images = [read_image(value) for value in as_list(given)]
        found = read_chat(record_id, row, RowImages(images, read_image))
        if found is not None:
            return found
        if row.get("instruction") is not None:
            pairs = [(text_field(row, "instruction"), text_field(row, "output"))]
        elif row.get("texts") is not None:
            pairs = _pairs(row["texts"])
        else:
            raise missing("no conversations", row)
        return conversation(record_id, exchanges(pairs, len(images)), images)

    return read


def _pairs(texts: Any) -> list[tuple[str, str]]:
    """The questions and answers of the_cauldron."""
    if not isinstance(texts, list):
        raise RowProblem("wrong_type", f"texts must be a list of {{user, assistant}}, found a {type(texts).__name__}")
    for number, entry in enumerate(texts):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("user", "assistant")):
            raise RowProblem("wrong_type", f"texts: entry {number} must be {{user: string, assistant: string}}")
    return [(entry["user"], entry["assistant"]) for entry in texts]
