"""Published turns and chat messages to a conversation: [{from, value}], [{role, content}], and the normal form of both.

A content is a text, a list of entries, or null. Entries of images are written `{"type": "image"}`; their images come
from the entries themselves, or from the row's column of images, in order or by an entry's `index`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from vila_data.core.records import IMAGE_PLACEHOLDER, PLACEHOLDER_AS_TEXT, ImageRef, Message, Record, Role
from vila_data.corpora.rows import Row, text_field
from vila_data.corpora.source import RowProblem

SPEAKERS: Final[dict[str, Role]] = {
    "human": "human",
    "user": "human",
    "observation": "human",
    "tool": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "model": "gpt",
    "chatgpt": "gpt",
    "bard": "gpt",
    "bing": "gpt",
    "claude": "gpt",
    "function_call": "gpt",
}
"""Who published turns say that they are from; a tool's answer is told to the model, a call is said by it."""
SYSTEM: Final = ("system", "developer")
"""Who gives the system prompt."""
_TOOLS: Final = ("observation", "tool")

Turn = tuple[Role, str]


def conversation(
    record_id: str,
    turns: Sequence[Turn],
    images: Sequence[ImageRef] = (),
    system: str | None = None,
    messages: tuple[Message, ...] | None = None,
    tools: tuple[dict[str, Any], ...] | None = None,
) -> Record:
    """A conversation; each image belongs to the turn that has its placeholder. Without images, placeholders are plain text.

    Raises:
        RowProblem: empty_conversation, turn_order or image_count.
    """
    if not any(role == "gpt" and text.strip() for role, text in turns):
        raise RowProblem("empty_conversation", "every answer is empty" if turns else "it has no turns")
    for number, (before, after) in enumerate(itertools.pairwise(turns), 1):
        if before[0] == after[0]:
            raise RowProblem(
                "turn_order", f"turns {number - 1} and {number} are both from {after[0]}; turns must alternate"
            )
    holders = [number for number, (_, text) in enumerate(turns) for _ in range(text.count(IMAGE_PLACEHOLDER))]
    if images and len(holders) != len(images):
        raise RowProblem("image_count", f"{len(holders)} {IMAGE_PLACEHOLDER} placeholders, but {len(images)} images")
    return Record(
        record_id=record_id,
        kind="conversation",
        texts=tuple(text for _, text in turns),
        images=tuple(replace(image, matched_text_index=at) for image, at in zip(images, holders, strict=False)),
        roles=tuple(role for role, _ in turns),
        system=system,
        messages=messages,
        tools=tools,
    )


def exchanges(pairs: Sequence[tuple[str, str]], images: int) -> list[Turn]:
    """Questions and answers about a row's images: where no question has a placeholder, all images are before the first one."""
    if images and pairs and not any(IMAGE_PLACEHOLDER in question for question, _ in pairs):
        pairs = [(question, in_words(answer)) for question, answer in pairs]
        pairs[0] = (f"{IMAGE_PLACEHOLDER}\n" * images + pairs[0][0], pairs[0][1])
    return [turn for question, answer in pairs for turn in (("human", question), ("gpt", answer))]


def in_words(text: str) -> str:
    """The text with plain-text placeholders spelled as in a conversation with images."""
    return text.replace(IMAGE_PLACEHOLDER, PLACEHOLDER_AS_TEXT)


def read_turns(turns: Any) -> tuple[list[Turn], str | None]:
    """(turns, system prompt) of a published list of {from, value}; the prompt may be its first entry.

    Answers of tools in a row are one turn, each on a line of its own.

    Raises:
        RowProblem: an entry is not a turn, or its speaker is unknown.
    """
    if not isinstance(turns, list):
        raise RowProblem("wrong_type", f"turns must be a list, found a {type(turns).__name__}")
    found: list[Turn] = []
    system = None
    before = ""
    for number, turn in enumerate(turns):
        if (
            not isinstance(turn, dict)
            or not isinstance(turn.get("from"), str)
            or not isinstance(turn.get("value"), str)
        ):
            raise RowProblem("wrong_type", f"turn {number} must be {{from: string, value: string}}")
        speaker = turn["from"].lower()
        if speaker in SYSTEM and number == 0:
            system = turn["value"]
        elif speaker in _TOOLS and before in _TOOLS:
            found[-1] = ("human", f"{found[-1][1]}\n{turn['value']}")
        elif speaker in SPEAKERS:
            found.append((SPEAKERS[speaker], turn["value"]))
        else:
            raise RowProblem(
                "wrong_type", f"turn {number} is from {turn['from']!r}; must be one of {', '.join(SPEAKERS)}"
            )
        before = speaker
    return found, system


def joined_system(*pieces: str | None) -> str | None:
    """The pieces that are there, a blank line between; None where none is."""
    there = [piece for piece in pieces if piece is not None]
    return "\n\n".join(piece for piece in there if piece) if there else None


ROLES: Final = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "claude": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
"""Roles as published, and in normal form."""
_TEXTS: Final = ("text", "input_text", "output_text")
_IMAGES: Final = ("image", "image_url", "input_image")
_IMAGE_KEYS: Final = ("image", "image_url", "url", "path", "bytes", "base64", "source")
"""Keys under which an entry has its image itself."""
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")
_MAX_DEPTH: Final = 64
NO_IMAGES: Final = "kind text has no images; use kind llava"


@dataclass(frozen=True, slots=True)
class RowImages:
    """A row's images outside its messages, and how an image inside an entry is read; None: images are not allowed."""

    column: Sequence[ImageRef] = ()
    read: Callable[[Any], ImageRef] | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """An entry without an image of its own; index: which of the column's it names."""

    index: int | None


def chat(record_id: str, entries: Any, images: RowImages, system: str | None = None, tools: Any = None) -> Record:
    """The conversation of a list of {role, content}. system: the prompt of messages that have none.

    Raises:
        RowProblem: wrong_type, image_count or empty_conversation; its words name the message.
    """
    messages, pictures = _normal(entries)
    if pictures and images.read is None:
        raise RowProblem("image_count", f"messages: {len(pictures)} image entries; {NO_IMAGES}")
    offered = _tools(tools)
    if not messages or messages[0]["role"] not in SYSTEM:
        messages = messages if system is None else [{"role": "system", "content": system}, *messages]
    if not offered and _is_plain(messages):
        first = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        turns: list[Turn] = [(_speaker(one), one["content"]) for one in messages if one["role"] != "system"]
        return conversation(record_id, turns, images.column, first)
    if not any(one["role"] == "assistant" and _answers(one) for one in messages):
        raise RowProblem("empty_conversation", "messages: every answer is empty")
    if images.column and not pictures:
        messages, pictures = _marks_to_entries(messages)
    found = _found(pictures, images)
    flat, turns = _flattened(messages, bool(found))
    shown = None if not offered else tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
    return conversation(record_id, turns, found, joined_system(flat, shown), tuple(messages), offered or None)


def _normal(entries: Any) -> tuple[list[Message], list[Any]]:
    """The messages in normal form, and for each entry of an image its image as published, or its _Place."""
    if not isinstance(entries, list):
        raise RowProblem("wrong_type", f"messages must be a list, found a {type(entries).__name__}")
    messages: list[Message] = []
    pictures: list[Any] = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("role"), str):
            raise RowProblem("wrong_type", f"messages: message {number} must be {{role: string, content: …}}")
        role = ROLES.get(entry["role"].lower())
        if role is None:
            raise RowProblem(
                "wrong_type", f"messages: message {number} is from {entry['role']!r}; must be one of {', '.join(ROLES)}"
            )
        message = {key: value for key, value in entry.items() if value is not None} | {"role": role}
        if "content" in message:
            message["content"] = _content(message["content"], number, pictures)
        for key in _REASONING:
            if not isinstance(message.get(key, ""), str):
                found = type(message[key]).__name__
                raise RowProblem("wrong_type", f"messages: {key} of message {number} must be a string, found a {found}")
        _normal_calls(message, number)
        if not _is_json(message):
            raise RowProblem(
                "wrong_type", f"messages: message {number} is not JSON, or nested deeper than {_MAX_DEPTH} levels"
            )
        if role in SYSTEM and _has_images(message):
            raise RowProblem("wrong_type", f"messages: message {number} is from {role} and has an image")
        messages.append(message)
    return messages, pictures


def _content(content: Any, number: int, pictures: list[Any]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowProblem(
            "wrong_type",
            f"messages: the content of message {number} must be a string, a list or null, found a {type(content).__name__}",
        )
    return [_entry(entry, f"entry {at} of message {number}", pictures) for at, entry in enumerate(content)]


def _entry(entry: Any, where: str, pictures: list[Any]) -> dict[str, Any]:
    """A content's entry in normal form; its image goes to `images`."""
    if isinstance(entry, str):
        return {"type": "text", "text": entry}
    if not isinstance(entry, dict):
        raise RowProblem(
            "wrong_type", f"messages: {where} must be an object with a type, found a {type(entry).__name__}"
        )
    own = next((entry[key] for key in _IMAGE_KEYS if entry.get(key) is not None), None)
    kind = entry.get("type")
    if kind is None:
        kind = "text" if entry.get("text") is not None else "image" if own is not None else None
    if kind in _TEXTS:
        if not isinstance(entry.get("text"), str):
            raise RowProblem("wrong_type", f"messages: {where} has type {kind} but no text")
        return {"type": "text", "text": entry["text"]}
    if kind in _IMAGES:
        index = entry.get("index")
        pictures.append(_Place(index if isinstance(index, int) else None) if own is None else own)
        return {"type": "image"}
    raise RowProblem(
        "wrong_type", f"messages: {where} has type {kind!r}; must be one of {', '.join((*_TEXTS, *_IMAGES))}"
    )


def _normal_calls(message: Message, number: int) -> None:
    """Tool calls as a list of objects, arguments as objects where they are the JSON of one; an old call as a list."""
    if isinstance(message.get("function_call"), dict):
        message["tool_calls"] = [{"type": "function", "function": message.pop("function_call")}]
    if "tool_calls" not in message:
        return
    calls = message.pop("tool_calls")
    found = [] if calls == "" else _objects(calls)
    if found == []:
        return
    if found is None or not all(isinstance(_function(call).get("name"), str) for call in found):
        raise RowProblem(
            "wrong_type", f"messages: tool_calls of message {number} must be a list of {{name, arguments}}"
        )
    message["tool_calls"] = [_with_arguments(call) for call in found]


def _function(call: dict[str, Any]) -> dict[str, Any]:
    """Name and arguments of a call, flat or under `function`."""
    return call["function"] if isinstance(call.get("function"), dict) else call


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    if _function(call) is not call:
        return call | {"function": _with_arguments(call["function"])}
    arguments = _parsed(call.get("arguments"))
    return call | {"arguments": arguments} if isinstance(arguments, dict) and _is_json(arguments) else call


def _objects(value: Any) -> list[dict[str, Any]] | None:
    """A list of objects, which may be JSON themselves, as may the list; None if it is not such a list."""
    value = _parsed(value)
    found = [_parsed(entry) for entry in value] if isinstance(value, list) else None
    return found if found is not None and all(isinstance(entry, dict) for entry in found) else None


def _parsed(value: Any) -> Any:
    """The value that a text is the JSON of; the value itself if it is not a text, or not JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _tools(tools: Any) -> tuple[dict[str, Any], ...]:
    if tools is None or tools == "":
        return ()
    found = _objects(tools)
    if found is None or not _is_json(found):
        raise RowProblem("wrong_type", "tools must be a list of objects, or the JSON of one")
    return tuple(found)


def _is_json(value: Any, depth: int = 0) -> bool:
    """Whether the value is the same after a way through JSON, and not nested beyond reason."""
    if isinstance(value, dict):
        pieces = list(value.values()) if all(isinstance(key, str) for key in value) else [b""]
    elif isinstance(value, list):
        pieces = value
    else:
        return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return depth < _MAX_DEPTH and all(_is_json(piece, depth + 1) for piece in pieces)


def _is_plain(messages: Sequence[Message]) -> bool:
    """Whether turns of text say all of it: a system prompt or none, then user and assistant in turn."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if any(message.keys() != {"role", "content"} or not isinstance(message["content"], str) for message in messages):
        return False
    roles = [message["role"] for message in turns]
    return {"user", "assistant"} >= set(roles) and all(one != other for one, other in itertools.pairwise(roles))


def _speaker(message: Message) -> Role:
    return "gpt" if message["role"] == "assistant" else "human"


def _has_images(message: Message) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(entry["type"] == "image" for entry in content)


def _answers(message: Message) -> bool:
    content = message.get("content", "")
    said = content if isinstance(content, str) else "".join(entry.get("text", IMAGE_PLACEHOLDER) for entry in content)
    return bool(said.strip()) or "tool_calls" in message


def _marks_to_entries(messages: Sequence[Message]) -> tuple[list[Message], list[Any]]:
    """Marks in the texts as entries of images, for a row that has images and no such entries."""
    found: list[Message] = []
    places: list[Any] = []
    for message in messages:
        content = message.get("content", "")
        texts = [content] if isinstance(content, str) else [entry["text"] for entry in content]
        if message["role"] in SYSTEM or not any(IMAGE_PLACEHOLDER in text for text in texts):
            found.append(message)
            continue
        entries: list[dict[str, Any]] = []
        for text in texts:
            for at, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
                if at:
                    entries.append({"type": "image"})
                    places.append(_Place(None))
                if piece:
                    entries.append({"type": "text", "text": piece})
        found.append(message | {"content": entries})
    return found, places


def _found(pictures: Sequence[Any], images: RowImages) -> list[ImageRef]:
    """The image of each place: its own, or the column's that is next or that it names. None of the column is left."""
    column = images.column
    rest = iter(range(len(column)))
    found: list[ImageRef] = []
    used: set[int] = set()
    for picture in pictures:
        if not isinstance(picture, _Place):
            assert images.read is not None
            found.append(images.read(picture))
            continue
        at = next(rest, -1) if picture.index is None else picture.index
        if not 0 <= at < len(column):
            named = "" if picture.index is None else f" (index {picture.index})"
            raise RowProblem(
                "image_count", f"messages: {len(pictures)} image entries{named}, but the row has {len(column)} images"
            )
        found.append(column[at])
        used.add(at)
    if len(used) != len(column):
        raise RowProblem(
            "image_count", f"messages: {len(pictures)} image entries, but the row has {len(column)} images"
        )
    return found


def _flattened(messages: Sequence[Message], has_images: bool) -> tuple[str | None, list[Turn]]:
    """(system prompt, alternating turns): neighbors of one speaker are one turn, each on a line of its own."""
    system: list[str] = []
    turns: list[tuple[Role, list[str]]] = []
    for message in messages:
        if message["role"] in SYSTEM and not turns:
            system.append(_said(message, has_images=False))
            continue
        if not turns or turns[-1][0] != _speaker(message):
            turns.append((_speaker(message), []))
        turns[-1][1].append(_said(message, has_images))
    return joined_system(*system), [(role, "\n".join(text for text in texts if text)) for role, texts in turns]


def _said(message: Message, has_images: bool) -> str:
    """Reasoning, content and tool calls of a message as one text."""
    words = in_words if has_images else str
    reasoning = next((message[key] for key in _REASONING if isinstance(message.get(key), str) and message[key]), None)
    thought = "" if reasoning is None else f"<think>\n{words(reasoning)}\n</think>\n\n"
    calls = [
        words(json.dumps({"name": one["name"], "arguments": one.get("arguments", {})}, ensure_ascii=False))
        for one in map(_function, message.get("tool_calls", ()))
    ]
    content = "".join(_texts(message, has_images))
    return thought + "\n".join([content] * bool(content) + calls)


def _texts(message: Message, has_images: bool) -> Iterator[str]:
    """The pieces of a content: texts, neighbors joined, and placeholders. A placeholder inside a text is spelled differently from an image's."""
    content = message.get("content", "")
    entries = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = ""
    for entry in entries:
        if entry["type"] == "text":
            text += entry["text"]
            continue
        yield in_words(text)
        yield IMAGE_PLACEHOLDER
        text = ""
    yield in_words(text) if has_images else text


def read_chat(record_id: str, row: Row, images: RowImages, default_system: str | None = None) -> Record | None:
    """The conversation under `conversations` or `messages`, or of a list `prompt` and a list `completion`; None: none.

    A row's own system prompt takes the place of `default_system`. In the form [{from, value}], `tools` are below it.

    Raises:
        RowProblem: the turns or images are not a conversation.
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
            raise RowProblem("wrong_type", f"tools cannot be written as JSON: {error}") from None
    return tools or None


def _turns(row: Row) -> tuple[str, Any]:
    """The key that says which form a row has, and its turns; None: none."""
    for key in ("conversations", "messages"):
        if row.get(key) is not None:
            return key, row[key]
    prompt, completion = row.get("prompt"), row.get("completion")
    return "prompt", prompt + completion if isinstance(prompt, list) and isinstance(completion, list) else None
