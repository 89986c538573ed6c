"""Chat messages as templates take them: texts or lists of parts, and placeholders that stand for images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from vila_data.core.records import IMAGE_PLACEHOLDER
from vila_data.encode.rendering import NAMES
from vila_data.encode.traced import Traced, joined

Message = dict[str, Any]

QUESTION, ANSWER, OTHER_ANSWER = "Qzjv7", "Wxkp3", "Yhmb8"
"""What probes of a template say."""
MARK_ORIGIN: Final = 1 << 30
"""Origins of characters from here on are placeholders of images, not text."""
_BLANK: Final = "\ue000"
_THOUGHT: Final = re.compile(r"<think>.*?</think>", re.DOTALL)


def said(role: str, text: str) -> Message:
    """A message that says a text."""
    return {"role": role, "content": text}


def probe(question: str, answer: str) -> list[Message]:
    """A question and an answer."""
    return [said("user", question), said("assistant", answer)]


def part(text: str) -> dict[str, str]:
    """A text as a part of a message."""
    return {"type": "text", "text": text}


def parted(message: Message) -> Message:
    """A message with its text as a list of one part."""
    return {**message, "content": [part(message["content"])]}


def marked(parts: Sequence[str | None]) -> Traced:
    """Texts and, for None, placeholders that are known to stand for an image."""
    return joined(Traced.whole(IMAGE_PLACEHOLDER, MARK_ORIGIN) if part is None else part for part in parts)


def parts_of(text: str) -> Iterator[dict[str, str]]:
    """Text and images of a turn in order; a placeholder takes the line break with it that LLaVA's rows have beside it."""
    for number, chunk in enumerate(text.split(IMAGE_PLACEHOLDER)):
        if number:
            yield {"type": "image"}
        if number:
            chunk = chunk.removeprefix("\n")
        if chunk and number < text.count(IMAGE_PLACEHOLDER):
            chunk = chunk.removesuffix("\n")
        if chunk:
            yield part(chunk)


def normal(message: Mapping[str, Any]) -> Message:
    """The message without what is null, its thoughts under each name that templates read."""
    made = {key: value for key, value in message.items() if value is not None}
    thoughts = next((made[key] for key in ("reasoning_content", "thinking", "reasoning") if key in made), None)
    return made if thoughts is None else {"thinking": thoughts, **made, "reasoning_content": thoughts}


def has_text(message: Mapping[str, Any]) -> bool:
    """Whether a message says anything besides thoughts."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content)
    return bool(_THOUGHT.sub("", content).strip())


def blank(value: Any, spans: Callable[[str], Sequence[tuple[int, int]]]) -> Any:
    """A message in which each stretch that `spans` finds in a text is characters that mean nothing; names are kept."""
    if isinstance(value, dict):
        return {key: item if key in NAMES else blank(item, spans) for key, item in value.items()}
    if isinstance(value, list):
        return [blank(item, spans) for item in value]
    if not isinstance(value, str):
        return value
    found = spans(value)
    if not found:
        return value
    edges = [0, *(at for place in found for at in place), len(value)]
    parts = [value[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    blanks = [_BLANK * (stop - start) for start, stop in found]
    return joined([part for pair in zip(parts, [*blanks, ""], strict=True) for part in pair])
