"""The prompt formats of LLaVA: text around the turns, and which characters are trained.

A format gives pieces; joined they are the prompt. Trained are the answers, the space that a model must emit before
one, and the token that ends it, as spans of characters: no prefix is ever tokenized to find out how long it is.
Formats and their system prompts: docs/sources.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from vila_data.core.errors import UsageError
from vila_data.core.records import PLACEHOLDER_AS_TEXT
from vila_data.encode.config import PackConfig, Template
from vila_data.encode.conversation import Conversation
from vila_data.encode.tokenizer import TextTokenizer

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
            f"tokenizer {tokenizer.name}: has no beginning-of-sequence token, with which VILA begins each sample: "
            "choose pack.semantics: improved, or another tokenizer"
        )
    if config.template == "llama_2" and tokenizer.bos is None:
        raise UsageError(
            f"tokenizer {tokenizer.name}: has no beginning-of-sequence token, which template llama_2 puts "
            "before each exchange: choose another template"
        )


def _plain(conversation: Conversation, tokenizer: TextTokenizer) -> Iterator[Piece]:
    """Images, then the caption and a line break: the text of the question is left out."""
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
