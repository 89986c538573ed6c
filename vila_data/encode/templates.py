"""Conversations as text: what is said around the turns, and which characters are trained.

A template gives pieces; joined they are the prompt. Trained are the answers and what
ends them, as spans of characters: no prefix is ever tokenised to find out how long it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from vila_data.core.errors import UsageError
from vila_data.encode.config import PackConfig, Template
from vila_data.encode.tokenizer import TextTokenizer

IMAGE = "<image>"
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system prompt of vicuna v1 (docs/sources.md)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of a prompt. trained: its tokens are labels; special: it is a special token's spelling."""

    text: str
    trained: bool = False
    special: bool = False


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation: (question, answer) exchanges in order; the last answer may be None.

    system: None: the template's own; "": none.
    """

    exchanges: tuple[tuple[str, str | None], ...]
    system: str | None = None


def pieces_of(template: Template, talk: Talk, tokenizer: TextTokenizer) -> list[Piece]:
    """A conversation written by a template, without the sequence's first token.

    Raises:
        UsageError: the tokenizer lacks what the template needs, or its own template loses or repeats turns.
    """
    return list(_WRITERS[template](talk, tokenizer))


def check_template(config: PackConfig, tokenizer: TextTokenizer) -> None:
    """Assert that a tokenizer can write a recipe's sequences.

    Raises:
        UsageError: it lacks a token or the template that the recipe asks for.
    """
    if config.faithful and tokenizer.bos_id is None:
        raise UsageError(
            f"tokenizer {tokenizer.name}: has no beginning-of-sequence token, with which VILA begins each sample: "
            "choose pack.semantics: improved, or another tokenizer"
        )
    pieces_of(config.template, Talk((("question", "answer"),)), tokenizer)


def _plain(talk: Talk, tokenizer: TextTokenizer) -> Iterator[Piece]:
    """Images, then the caption: the words of the question are left out."""
    for question, answer in talk.exchanges:
        yield Piece(IMAGE * question.count(IMAGE))
        if answer is not None:
            yield Piece(answer, trained=True)
            yield Piece(tokenizer.eos, trained=True, special=True)


def _vicuna_v1(talk: Talk, tokenizer: TextTokenizer) -> Iterator[Piece]:
    system = VICUNA_SYSTEM if talk.system is None else talk.system
    yield Piece(f"{system} ")  # the space stays where there is no system prompt, as published
    for question, answer in talk.exchanges:
        yield Piece("USER: ")
        yield Piece(f"{question} ")
        if answer is not None:
            yield Piece("ASSISTANT: ")
            yield Piece(answer, trained=True)
            yield Piece(tokenizer.eos, trained=True, special=True)


def _llama_2(talk: Talk, tokenizer: TextTokenizer) -> Iterator[Piece]:
    if tokenizer.bos is None:
        raise UsageError(
            f"tokenizer {tokenizer.name}: has no beginning-of-sequence token, which template llama_2 puts "
            "before each exchange: choose another template"
        )
    for index, (question, answer) in enumerate(talk.exchanges):
        if index:
            yield Piece(tokenizer.bos, special=True)
        yield Piece("[INST] ")
        if index == 0 and talk.system:
            yield Piece(f"<<SYS>>\n{talk.system}\n<</SYS>>\n\n")
        yield Piece(question)
        yield Piece(" [/INST]")
        if answer is not None:
            yield Piece(" ")
            yield Piece(answer, trained=True)
            yield Piece(" ", trained=True)
            yield Piece(tokenizer.eos, trained=True, special=True)


def _chat(talk: Talk, tokenizer: TextTokenizer) -> Iterator[Piece]:
    """The tokenizer's own template, filled in; its first token is in it if it writes one."""
    turns: list[tuple[str, str | None]] = [("system", talk.system)] if talk.system else []
    for question, answer in talk.exchanges:
        turns += [("user", question), ("assistant", answer)]
    said = [(role, text) for role, text in turns if text is not None]
    skeleton = _skeleton(tokenizer, tuple(role for role, _ in said))
    after_answer = False
    for (role, text), (before, trims) in zip(said, skeleton, strict=False):
        yield from _around(before, after_answer, tokenizer)
        yield Piece(text.strip() if trims else text, trained=role == "assistant")
        after_answer = role == "assistant"
    yield from _around(skeleton[-1][0], after_answer, tokenizer)


@lru_cache(maxsize=1024)
def _skeleton(tokenizer: TextTokenizer, roles: tuple[str, ...]) -> tuple[tuple[str, bool], ...]:
    """What the template writes before each turn and whether it trims the turn; last, what it writes at the end."""
    marks = [f"\u2983{index}\u2984" for index in range(len(roles))]
    text = tokenizer.render([{"role": role, "content": f"\t{mark}\t"} for role, mark in zip(roles, marks, strict=True)])
    parts: list[tuple[str, bool]] = []
    for mark in marks:
        if text.count(mark) != 1:
            raise UsageError(f"tokenizer {tokenizer.name}: its chat template leaves out a turn or writes it twice")
        trims = f"\t{mark}\t" not in text
        before, text = text.split(mark if trims else f"\t{mark}\t")
        parts.append((before, trims))
    return (*parts, (text, False))


def _around(text: str, after_answer: bool, tokenizer: TextTokenizer) -> Iterator[Piece]:
    """A template's own words between two turns; what ends an answer, spaces before it too, is trained with it."""
    while text:
        start, stop = tokenizer.find_special(text) or (len(text), len(text))
        ends = after_answer and stop > start and not text[:start].strip()
        if start:
            yield Piece(text[:start], trained=ends)
        if stop > start:
            yield Piece(text[start:stop], trained=ends, special=True)
        after_answer = False
        text = text[stop:]


_WRITERS: dict[Template, Callable[[Talk, TextTokenizer], Iterator[Piece]]] = {
    "plain": _plain,
    "vicuna_v1": _vicuna_v1,
    "llama_2": _llama_2,
    "chat": _chat,
}


def exchanges_of(conversation: Sequence[dict[str, str]]) -> tuple[tuple[str, str | None], ...]:
    """(question, answer) pairs of a sample's alternating turns, human first."""
    values = [turn["value"] for turn in conversation]
    return tuple(
        (values[index], values[index + 1] if index + 1 < len(values) else None) for index in range(0, len(values), 2)
    )
