"""Conversations, and the prompt formats of LLaVA: text around the turns, and which characters are trained.

A format gives pieces; joined they are the prompt. Trained are the answers, the space that a model must emit before
one, and the token that ends it, as spans of characters: no prefix is ever tokenized to find out how long it is.
Formats and their system prompts: docs/sources.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from vila_data.core.errors import UsageError
from vila_data.core.records import IMAGE_PLACEHOLDER, PLACEHOLDER_AS_TEXT, Role
from vila_data.core.samples import SampleContent
from vila_data.encode.config import PackConfig, Template
from vila_data.encode.tokenizer import TextTokenizer

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
        """(question, answer) in order; the last answer may be None. A first turn from gpt is omitted, as VILA does."""
        texts = [text for _, text in self.turns[self.turns[0][0] == "gpt" :]] if self.turns else []
        return [(texts[at], texts[at + 1] if at + 1 < len(texts) else None) for at in range(0, len(texts), 2)]

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


IMAGE: Final = "<image>"
VICUNA_SYSTEM: Final = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system prompt of vicuna v1 (docs/sources.md)."""
LLAMA_2_SYSTEM: Final = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
"""The system prompt of Llama 2's chat models, which VILA v1.0 puts into `llama_2` (docs/sources.md)."""


class Piece(NamedTuple):
    """Text of a prompt. trained: its tokens are labels; special: a special token's spelling; image: stands for one."""

    text: str
    trained: bool = False
    special: bool = False
    image: bool = False


def pieces_of(template: Template, conversation: Conversation, tokenizer: TextTokenizer) -> list[Piece]:
    """A conversation written in a format of LLaVA, without the sequence's first token.

    Raises:
        UsageError: the tokenizer lacks a token that the format needs.
    """
    return list(_WRITERS[template](conversation, tokenizer))


def check_tokenizer(config: PackConfig, tokenizer: TextTokenizer) -> None:
    """Assert that a tokenizer has the tokens for a recipe's sequences.

    Raises:
        UsageError: it lacks one.
    """
    if config.faithful and tokenizer.bos_id is None:
        raise UsageError(
            f"tokenizer {tokenizer.name}: has no beginning-of-sequence token, which VILA puts at the start of each sample: "
            "choose pack.semantics: improved, or another tokenizer"
        )
    if config.template == "llama_2" and tokenizer.bos is None:
        raise UsageError(
            f"tokenizer {tokenizer.name}: has no beginning-of-sequence token, which template llama_2 puts "
            "before each exchange: choose another template"
        )


def _plain(conversation: Conversation, tokenizer: TextTokenizer) -> Iterator[Piece]:
    """Images, then the caption and a line break: the text of the question is omitted."""
    for question, answer in conversation.exchanges():
        yield Piece(IMAGE * (question.count(IMAGE) if conversation.images else 0))
        if answer is not None:
            yield Piece(answer, trained=True)
            yield Piece("\n", trained=True)


def _vicuna_v1(conversation: Conversation, tokenizer: TextTokenizer) -> Iterator[Piece]:
    system = VICUNA_SYSTEM if conversation.system is None else _system(conversation)
    yield Piece(f"{system} ")  # the space stays where there is no system prompt, as published
    for question, answer in conversation.exchanges():
        yield Piece(f"USER: {question} " if question else "USER:")
        if answer is not None:
            yield Piece("ASSISTANT:")
        if answer:
            yield Piece(" ", trained=True)
            yield Piece(answer, trained=True)
            yield Piece(tokenizer.eos, trained=True, special=True)


def _llama_2(conversation: Conversation, tokenizer: TextTokenizer) -> Iterator[Piece]:
    for index, (question, answer) in enumerate(conversation.exchanges()):
        if index:
            yield Piece(tokenizer.bos or "", special=True)
        yield Piece("[INST] ")
        if index == 0 and conversation.system:
            yield Piece(f"<<SYS>>\n{_system(conversation)}\n<</SYS>>\n\n")
        yield Piece(question)
        yield Piece(" [/INST]")
        if answer is not None:
            yield Piece(" ", trained=True)
            yield Piece(answer, trained=True)
            yield Piece(" ", trained=True)
            yield Piece(tokenizer.eos, trained=True, special=True)


def _system(conversation: Conversation) -> str:
    """The system prompt, in which nothing stands for an image."""
    system = conversation.system or ""
    return system.replace(IMAGE, PLACEHOLDER_AS_TEXT) if conversation.images else system


_WRITERS: dict[Template, Callable[[Conversation, TextTokenizer], Iterator[Piece]]] = {
    "plain": _plain,
    "vicuna_v1": _vicuna_v1,
    "llama_2": _llama_2,
}
