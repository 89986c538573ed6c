"""Text-only instructions in the forms in which they are published; a row says by its keys which form it has.

prompt, completion | inputs, targets | input, output         one exchange
instruction, input, output (history, system)                 Alpaca
conversations [{from, value}] | messages [{role, content}]   ShareGPT (system, tools)
"""

from __future__ import annotations

import json
from typing import Any, Final

from vila_data.core.records import Record
from vila_data.corpora.config import TextConfig
from vila_data.corpora.conversation import Turn, conversation, joined_system, read_turns
from vila_data.corpora.rows import ReadRow, Row, text_field
from vila_data.corpora.source import RowProblem

_EXCHANGES: Final = (("prompt", "completion"), ("inputs", "targets"), ("input", "output"))


def text_rows(config: TextConfig) -> ReadRow:
    """Reads a row of any of the forms; a row's own system prompt goes before the recipe's."""

    def read(record_id: str, row: Row) -> Record:
        turns, own = _turns(row)
        tools = row.get("tools")
        if tools and not isinstance(tools, str):
            tools = json.dumps(tools, ensure_ascii=False)
        system = joined_system(config.system if own is None else own, tools or None)
        return conversation(record_id, turns, system=system)

    return read


def _turns(row: Row) -> tuple[list[Turn], str | None]:
    if row.get("conversations") is not None:
        turns, system = read_turns(row["conversations"], "from", "value")
        return turns, _system(row) if system is None else system
    if row.get("messages") is not None:
        turns, system = read_turns(row["messages"], "role", "content")
        return turns, _system(row) if system is None else system
    if row.get("instruction") is not None:
        return [*_history(row.get("history")), *_alpaca(row)], _system(row)
    for question, answer in _EXCHANGES:
        if row.get(question) is not None and answer in row:
            return [("human", text_field(row, question)), ("gpt", text_field(row, answer))], _system(row)
    known = "; ".join(", ".join(pair) for pair in _EXCHANGES)
    raise RowProblem(
        "missing_field",
        f"no form that is known (conversations; messages; instruction, output; {known}); "
        f"the row has {', '.join(map(str, row)) or 'no keys'}",
    )


def _alpaca(row: Row) -> list[Turn]:
    question = text_field(row, "instruction")
    if row.get("input"):
        question = f"{question}\n{text_field(row, 'input')}"
    return [("human", question), ("gpt", text_field(row, "output"))]


def _history(value: Any) -> list[Turn]:
    turns: list[Turn] = []
    if value and not isinstance(value, list):
        raise RowProblem("wrong_type", f"history is a {type(value).__name__}, not a list of [question, answer]")
    for entry in value or []:
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(text, str) for text in entry):
            raise RowProblem("wrong_type", "history is no list of [question, answer]")
        turns += [("human", entry[0]), ("gpt", entry[1])]
    return turns


def _system(row: Row) -> str | None:
    return None if row.get("system") is None else text_field(row, "system")
