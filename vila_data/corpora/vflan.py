"""VFLAN: a question, an answer, and images inside the row, as VILA v1.0 reads them (docs/sources.md)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from vila_data.core.records import IMAGE_PLACEHOLDER, ImageRef, Record
from vila_data.corpora.config import VflanConfig
from vila_data.corpora.conversation import Turn, conversation, exchanges, in_words
from vila_data.corpora.images import as_list, encoded_image, is_data_url, named_image
from vila_data.corpora.rows import ReadRow, Row, text_field
from vila_data.corpora.source import RowProblem

MAX_IMAGES: Final = 8
_DIALOG: Final = "Image Descriptions"
_QUESTION: Final = "\nQuestion: "
_ANSWER: Final = "\nAnswer: "
_PATHS: Final = (".jpg", ".jpeg", ".png", ".gif", ".webp")


def vflan_rows(config: VflanConfig) -> ReadRow:
    """Reads `{question, answer, image}`: the images come before the question, placeholders in its text are removed."""

    def read(record_id: str, row: Row) -> Record:
        question = text_field(row, "question").rstrip()
        answer = text_field(row, _key(row, "answer")).rstrip()
        values = as_list(row.get(_key(row, "image")))
        if len(values) > MAX_IMAGES:
            raise RowProblem("image_count", f"{len(values)} images; at most {MAX_IMAGES}")
        images = [_picture(value, config.image_root) for value in values]
        record = conversation(record_id, _turns(question, answer, len(images)), images, config.system)
        return replace(record, verbatim=bool(images))

    return read


def _key(row: Row, name: str) -> str:
    """The key of a field, which some of the published files end with a colon."""
    return f"{name}:" if row.get(f"{name}:") is not None else name


def _picture(value: Any, image_root: str | None) -> ImageRef:
    """A text is a path or a URL by its suffix or prefix, else base64."""
    if isinstance(value, str) and not is_data_url(value):
        name = value.lower()
        if name.endswith(_PATHS) or name.startswith(("http://", "https://")):
            return named_image(value, image_root)
    return encoded_image(value)


def _turns(question: str, answer: str, images: int) -> list[Turn]:
    if _DIALOG not in question or _QUESTION not in question:
        return exchanges([(without_placeholders(question), answer)], images)
    if images > 1:
        raise RowProblem("image_count", f"a visual dialog ({_DIALOG!r}) must have one image, found {images}")
    asked = [entry.split(_ANSWER) for entry in question.split(_QUESTION)[1:]]
    if len(asked[-1]) != 1 or any(len(entry) != 2 for entry in asked[:-1]):
        raise RowProblem("turn_order", f"questions and answers of a visual dialog ({_DIALOG!r}) must alternate")
    asked[-1].append(answer)
    questions = [without_placeholders(entry[0]) for entry in asked]
    questions[0] = f"{IMAGE_PLACEHOLDER}\n{questions[0]}"  # without an image it is plain text, as there
    questions[-1] = questions[-1].replace("\n", "")
    answers = [in_words(entry[1]) if images else entry[1] for entry in asked]
    return exchanges(list(zip(questions, answers, strict=True)), images)


def without_placeholders(text: str) -> str:
    """The text without image placeholders and their line breaks, also those that removing others would create."""
    for placeholder in (f"{IMAGE_PLACEHOLDER}\n", f"\n{IMAGE_PLACEHOLDER}", IMAGE_PLACEHOLDER):
        text = text.replace(placeholder, "")
    while IMAGE_PLACEHOLDER in text:
        text = text.replace(IMAGE_PLACEHOLDER, "")
    return text
