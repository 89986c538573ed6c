"""A row's conversation in either of the forms that turns have: [{from, value}] and [{role, content}]."""

from __future__ import annotations

import json
from typing import Any

from vila_data.core.records import Record
from vila_data.corpora.conversation import conversation, joined_system, read_turns
from vila_data.corpora.messages import RowImages, chat
from vila_data.corpora.rows import Row, text_field
from vila_data.corpora.source import RowProblem


def read_chat(record_id: str, row: Row, images: RowImages, default_system: str | None = None) -> Record | None:
    """The conversation under `conversations` or `messages`, or of a list `prompt` and a list `completion`; None: none.

    A row's own system prompt takes the place of `default_system`. In the form [{from, value}], `tools` are below it.

    Raises:
        RowProblem: the turns or images are no conversation.
    """
    form, turns = _turns(row)
    if turns is None:
        return None
    row_system = None if row.get("system") is None else text_field(row, "system")
    row_system = default_system if row_system is None else row_system
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
    if "role" in first or (form != "conversations" and "from" not in first):
        return chat(record_id, turns, images, row_system, row.get("tools"))
    found, system = read_turns(turns)
    system = joined_system(row_system if system is None else system, tools_text(row))
    return conversation(record_id, found, images.column, system)


def tools_text(row: Row) -> str | None:
    """A row's tools as a system prompt says them; None where it has none, or a list of none."""
    tools = row.get("tools")
    if tools == "[]":
        return None
    if tools and not isinstance(tools, str):
        try:
            return json.dumps(tools, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RowProblem("wrong_type", f"tools has no form in JSON: {error}") from None
    return tools or None


def _turns(row: Row) -> tuple[str, Any]:
    """The key that says which form a row has, and its turns; None: none."""
    for key in ("conversations", "messages"):
        if row.get(key) is not None:
            return key, row[key]
    prompt, completion = row.get("prompt"), row.get("completion")
    return "prompt", prompt + completion if isinstance(prompt, list) and isinstance(completion, list) else None
