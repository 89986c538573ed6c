"""Turns and images to a conversation: the rules that hold whatever a corpus calls its fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from vila_data.core.records import IMAGE_MARK, ImageRef, Record, Role
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

Turn = tuple[Role, str]


def conversation(
    record_id: str, turns: Sequence[Turn], images: Sequence[ImageRef] = (), system: str | None = None
) -> Record:
    """A conversation; each image belongs to the turn that holds its mark.

    Raises:
        RowProblem: empty_conversation, turn_order or image_count.
    """
    if not any(role == "gpt" and text.strip() for role, text in turns):
        raise RowProblem("empty_conversation", "no answer has words in it" if turns else "it has no turns")
    for number, (role, _) in enumerate(turns):
        if role != ("human", "gpt")[number % 2]:
            raise RowProblem("turn_order", f"turn {number} is from {role}; turns alternate and begin with human")
    holders = [number for number, (_, text) in enumerate(turns) for _ in range(text.count(IMAGE_MARK))]
    if len(holders) != len(images):
        raise RowProblem("image_count", f"{len(holders)} {IMAGE_MARK} marks for {len(images)} images")
    return Record(
        record_id=record_id,
        kind="conversation",
        texts=tuple(text for _, text in turns),
        images=tuple(replace(image, matched_text_index=at) for image, at in zip(images, holders, strict=True)),
        roles=tuple(role for role, _ in turns),
        system=system,
    )


def read_turns(turns: Any, who: str, says: str) -> tuple[list[Turn], str | None]:
    """(turns, system prompt) of a published list of {who: …, says: …}; the prompt may be its first entry.

    Raises:
        RowProblem: an entry is no turn, or its speaker is not known.
    """
    if not isinstance(turns, list):
        raise RowProblem("wrong_type", f"the turns are a {type(turns).__name__}, not a list")
    found: list[Turn] = []
    system = None
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get(who), str) or not isinstance(turn.get(says), str):
            raise RowProblem("wrong_type", f"turn {number} is no {{{who}: text, {says}: text}}")
        speaker = turn[who].lower()
        if speaker == "system" and number == 0:
            system = turn[says]
        elif speaker in SPEAKERS:
            found.append((SPEAKERS[speaker], turn[says]))
        else:
            raise RowProblem("wrong_type", f"turn {number} is from {turn[who]!r}; known are {', '.join(SPEAKERS)}")
    return found, system


def joined_system(*pieces: str | None) -> str | None:
    """The pieces that are there, a blank line between; None where none is."""
    there = [piece for piece in pieces if piece is not None]
    return "\n\n".join(piece for piece in there if piece) if there else None
