"""Turns and images to a conversation: the rules that hold whatever a corpus calls its fields."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from vila_data.core.records import IMAGE_MARK, MARK_IN_WORDS, ImageRef, Message, Record, Role
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
    """A conversation; each image belongs to the turn that holds its mark. Without images, marks are plain text.

    Raises:
        RowProblem: empty_conversation, turn_order or image_count.
    """
    if not any(role == "gpt" and text.strip() for role, text in turns):
        raise RowProblem("empty_conversation", "every answer is empty" if turns else "it has no turns")
    for number, (before, after) in enumerate(itertools.pairwise(turns), 1):
        if before[0] == after[0]:
            raise RowProblem("turn_order", f"turns {number - 1} and {number} are both from {after[0]}; turns alternate")
    holders = [number for number, (_, text) in enumerate(turns) for _ in range(text.count(IMAGE_MARK))]
    if images and len(holders) != len(images):
        raise RowProblem("image_count", f"{len(holders)} {IMAGE_MARK} placeholders, but {len(images)} images")
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
    """Questions and answers about a row's images: where no question has a mark, all images are before the first one."""
    if images and pairs and not any(IMAGE_MARK in question for question, _ in pairs):
        pairs = [(question, in_words(answer)) for question, answer in pairs]
        pairs[0] = (f"{IMAGE_MARK}\n" * images + pairs[0][0], pairs[0][1])
    return [turn for question, answer in pairs for turn in (("human", question), ("gpt", answer))]


def in_words(text: str) -> str:
    """The text with marks that are plain text, as a conversation with images spells them."""
    return text.replace(IMAGE_MARK, MARK_IN_WORDS)


def read_turns(turns: Any) -> tuple[list[Turn], str | None]:
    """(turns, system prompt) of a published list of {from, value}; the prompt may be its first entry.

    Answers of tools in a row are one turn, each on a line of its own.

    Raises:
        RowProblem: an entry is no turn, or its speaker is not known.
    """
    if not isinstance(turns, list):
        raise RowProblem("wrong_type", f"the turns are a {type(turns).__name__}, not a list")
    found: list[Turn] = []
    system = None
    before = ""
    for number, turn in enumerate(turns):
        if (
            not isinstance(turn, dict)
            or not isinstance(turn.get("from"), str)
            or not isinstance(turn.get("value"), str)
        ):
            raise RowProblem("wrong_type", f"turn {number} is no {{from: text, value: text}}")
        speaker = turn["from"].lower()
        if speaker in SYSTEM and number == 0:
            system = turn["value"]
        elif speaker in _TOOLS and before in _TOOLS:
            found[-1] = ("human", f"{found[-1][1]}\n{turn['value']}")
        elif speaker in SPEAKERS:
            found.append((SPEAKERS[speaker], turn["value"]))
        else:
            raise RowProblem("wrong_type", f"turn {number} is from {turn['from']!r}; known are {', '.join(SPEAKERS)}")
        before = speaker
    return found, system


def joined_system(*pieces: str | None) -> str | None:
    """The pieces that are there, a blank line between; None where none is."""
    there = [piece for piece in pieces if piece is not None]
    return "\n\n".join(piece for piece in there if piece) if there else None
