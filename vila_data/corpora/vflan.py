"""VFLAN: a question, an answer, and pictures inside the row (docs/sources.md)."""

from __future__ import annotations

from typing import Final

from vila_data.core.records import IMAGE_MARK, Record
from vila_data.corpora.config import VflanConfig
from vila_data.corpora.conversation import conversation
from vila_data.corpora.pictures import as_list, encoded_picture
from vila_data.corpora.rows import ReadRow, Row, text_field
from vila_data.corpora.source import RowProblem

MAX_IMAGES: Final = 8


def vflan_rows(config: VflanConfig) -> ReadRow:
    """Reads `{question, answer, image}`: the pictures stand before the question, marks in its words are taken out."""

    def read(record_id: str, row: Row) -> Record:
        question, answer = text_field(row, "question"), text_field(row, "answer")
        values = as_list(row.get("image"))
        if len(values) > MAX_IMAGES:
            raise RowProblem("image_count", f"{len(values)} images; at most {MAX_IMAGES}")
        images = [encoded_picture(value) for value in values]
        text = f"{IMAGE_MARK}\n" * len(images) + without_marks(question)
        return conversation(record_id, [("human", text), ("gpt", answer)], images, config.system)

    return read


def without_marks(text: str) -> str:
    """The text without image marks, nor any that taking them out would join."""
    while IMAGE_MARK in text:
        text = text.replace(IMAGE_MARK, "")
    return text
