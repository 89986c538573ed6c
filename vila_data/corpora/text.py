"""Text-only instructions in the forms in which they are published; a row says by its keys which form it has.

prompt, completion | inputs, targets | input, output         one exchange
instruction, input, output (history, system)                 Alpaca
conversations [{from, value}] | messages [{role, content}]   ShareGPT (system, tools); chat messages
"""

from __future__ import annotations

from typing import Any, Final

from vila_data.core.records import Record
from vila_data.corpora.config import TextConfig
from vila_data.corpora.conversation import (
    NO_IMAGES,
    RowImages,
    Turn,
    conversation,
    joined_system,
    read_chat,
    tools_text,
)
from vila_data.corpora.images import as_list
from vila_data.corpora.rows import ReadRow, Row, text_field, unreadable
from vila_data.corpora.source import RowProblem

_EXCHANGES: Final = (("prompt", "completion"), ("inputs", "targets"), ("input", "output"))
_FLAN: Final = "inputs"


def text_rows(config: TextConfig) -> ReadRow:
    """Reads a row of any of the forms; a row's own system prompt goes before the recipe's."""

    def read(record_id: str, row: Row) -> Record:
        for key in ("image", "images"):
            if any(as_list(row.get(key))):
                raise RowProblem("image_count", f"the row has {key}; {NO_IMAGES}")
        found = read_chat(record_id, row, RowImages(), config.system)
        if found is not None:
            return found
        own = None if row.get("system") is None else text_field(row, "system")
        system = joined_system(config.system if own is None else own, tools_text(row))
        return conversation(record_id, _turns(row), system=system)

    return read


def _turns(row: Row) -> list[Turn]:
    if row.get("instruction") is not None:
        question = text_field(row, "instruction")
        if row.get("input"):
            question = f"{question}\n{text_field(row, 'input')}"
        return [*_history(row.get("history")), ("human", question), ("gpt", text_field(row, "output"))]
    for asked, answered in _EXCHANGES:
        if row.get(asked) is not None and answered in row:
            question, answer = text_field(row, asked), text_field(row, answered)
            if asked == _FLAN:  # as VILA v1.0 reads its FLAN (docs/sources.md)
                question, answer = question.rstrip(), answer.rstrip()
            return [("human", question), ("gpt", answer)]
    known = "; ".join(", ".join(pair) for pair in _EXCHANGES)
    raise RowProblem(
        "missing_field",
        f"unknown row format (known: conversations; messages; instruction, output; {known}); "
        f"the row has {'the keys ' + ', '.join(map(str, row)) if row else 'no keys'}",
    )


def _history(value: Any) -> list[Turn]:
    turns: list[Turn] = []
    if value and not isinstance(value, list):
        raise RowProblem("wrong_type", f"history must be a list of [question, answer], found a {type(value).__name__}")
    for entry in value or []:
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(text, str) for text in entry):
            raise RowProblem("wrong_type", "history must be a list of [question, answer]")
        turns += [("human", entry[0]), ("gpt", entry[1])]
    return turns


class NoDataFiles(Exception):
    """A dataset whose files cannot be determined; the message says why and what to do."""


def data_files(config: TextConfig) -> tuple[str, ...]:
    """Paths or `hf://` URLs of a dataset's files for `config.split`, as `datasets` finds them; nothing is downloaded.

    `skip(n)` of a streamed dataset reads all rows before the n-th, so parts read slices of files instead.

    Raises:
        NoDataFiles: no such dataset, configuration or split, or files that are not rows.
    """
    import datasets

    assert config.dataset is not None
    try:
        builder = datasets.load_dataset_builder(config.dataset, config.config, revision=config.revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise NoDataFiles(f"datasets cannot open {config.dataset!r}: {error}") from error
    found = builder.config.data_files or {}
    if config.split not in found:
        raise NoDataFiles(f"{config.dataset!r} has no split {config.split!r}; it has {', '.join(map(str, found))}")
    files = tuple(map(str, found[config.split]))
    problem = next((problem for problem in map(unreadable, files) if problem is not None), None)
    if problem is not None or getattr(builder.config, "field", None) is not None:
        raise NoDataFiles(
            f"{config.dataset!r} is not a dataset of plain rows ({files[0]}); {problem or 'name its files'}"
        )
    return files
