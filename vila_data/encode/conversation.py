"""A conversation as encoding takes it: turns of text, or chat messages where turns do not say it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vila_data.core.records import IMAGE_PLACEHOLDER, Role
from vila_data.core.samples import SampleContent

Turn = tuple[Role, str]
Sides = tuple[tuple[int, int], ...]
"""(width, height) of each image of a sample, pixels."""


class Conversation(NamedTuple):
    """Turns in order; they alternate, and may begin with gpt or end with human.

    system:   None: the template's own; "": none.
    images:   how many; 0: an `<image>` in a turn is text. Otherwise there is one `<image>` for each.
    messages: the same as chat messages, where a turn's text does not say it all (shards/FORMAT.md).
    tools:    JSON schemas of the tools that a chat template describes.
    verbatim: VILA v1.0 leaves its placeholders where they are (rows of VFLAN).
    sides:    (width, height) of each image, pixels.
    """

    turns: tuple[Turn, ...]
    system: str | None = None
    images: int = 0
    messages: tuple[Mapping[str, Any], ...] | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    verbatim: bool = False
    sides: Sides = ()

    @staticmethod
    def of(sample: SampleContent, sides: Sides) -> Conversation:
        """The conversation of a sample."""
        return Conversation(
            turns=tuple(zip(sample.roles, sample.texts, strict=True)),
            system=sample.system,
            images=len(sample.images),
            messages=sample.messages,
            tools=sample.tools,
            verbatim=sample.verbatim,
            sides=sides,
        )

    def exchanges(self) -> list[tuple[str, str | None]]:
        """(question, answer) in order; the last answer may be None. A first turn from gpt is left out, as VILA does."""
        said = [text for _, text in self.turns[self.turns[0][0] == "gpt" :]] if self.turns else []
        return [(said[at], said[at + 1] if at + 1 < len(said) else None) for at in range(0, len(said), 2)]

    def ends(self) -> list[int]:
        """Where the conversation may be cut, as counts of turns: after each answer, and at its end."""
        found = [at + 1 for at, (role, _) in enumerate(self.turns) if role == "gpt"]
        return found if found and found[-1] == len(self.turns) else [*found, len(self.turns)]

    def first(self, turns: int) -> Conversation:
        """The conversation that ends after so many turns."""
        kept = self.turns[:turns]
        images = sum(text.count(IMAGE_PLACEHOLDER) for _, text in kept) if self.images else 0
        messages = self.messages
        if messages is not None:
            messages = messages[: _messages_of_turns(messages, turns)]
        return self._replace(turns=kept, images=images, messages=messages)


def _messages_of_turns(messages: Sequence[Mapping[str, Any]], turns: int) -> int:
    """How many messages make the first `turns` turns: neighbors of one side are one turn, a system prompt in front none."""
    at = 0
    while at < len(messages) and messages[at]["role"] in ("system", "developer"):
        at += 1
    side: bool | None = None
    while at < len(messages):
        says = messages[at]["role"] == "assistant"
        if says is not side:
            if turns == 0:
                break
            side, turns = says, turns - 1
        at += 1
    return at
