"""LLaVA: conversations with images named by path or address, and text-only ones between them.

Row formats: docs/sources.md. The published `id` is not unique in mix665k, so a record is
named by its file and row.
"""

from __future__ import annotations

from vila_data.core.records import IMAGE_MARK, ImageRef, Record
from vila_data.corpora.config import LlavaConfig
from vila_data.corpora.conversation import conversation, read_turns
from vila_data.corpora.pictures import as_list, named_picture
from vila_data.corpora.rows import ReadRow, Row, text_field
from vila_data.corpora.source import RowProblem


def llava_rows(config: LlavaConfig) -> ReadRow:
    """Reads `{image | images, conversations}`, `{images, messages}` and `{image, instruction, output}`."""

    def read(record_id: str, row: Row) -> Record:
        given = row.get("image") if row.get("image") is not None else row.get("images")
        images = [named_picture(value, config.image_root) for value in as_list(given)]
        if row.get("conversations") is not None:
            turns, system = read_turns(row["conversations"], "from", "value")
        elif row.get("messages") is not None:
            turns, system = read_turns(row["messages"], "role", "content")
        elif row.get("instruction") is not None:
            return _exchange(record_id, row, images)
        else:
            raise RowProblem("missing_field", f"no conversations; the row has {', '.join(map(str, row)) or 'no keys'}")
        if system is None and row.get("system") is not None:
            system = text_field(row, "system")
        return conversation(record_id, turns, images, system)

    return read


def _exchange(record_id: str, row: Row, images: list[ImageRef]) -> Record:
    question, answer = text_field(row, "instruction"), text_field(row, "output")
    if IMAGE_MARK not in question:
        question = f"{IMAGE_MARK}\n" * len(images) + question
    return conversation(record_id, [("human", question), ("gpt", answer)], images)
