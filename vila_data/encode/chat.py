"""Conversations written by a tokenizer's own chat template, for the real messages: its text, its images, its answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date as Date
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import jinja2

from vila_data.core.errors import UsageError
from vila_data.encode.chat_answers import (
    ANSWER,
    IMAGE_NOT_PLACED,
    MARK_ORIGIN,
    QUESTION,
    TEMPLATE_REFUSED,
    Answers,
    Message,
    Span,
    Unwritable,
    blank,
    marked,
    normal,
    part,
    parted,
    parts_of,
    probe,
    said,
)
from vila_data.encode.rendering import REFUSALS, Rendering, compiled, render
from vila_data.encode.templates import IMAGE, Conversation, Piece
from vila_data.encode.tokenizer import TextTokenizer
from vila_data.encode.traced_text import TracedText

_MOST_WORDS: Final = 200
_DUMPED: Final = re.compile(r"""['"]type['"]""")
"""In what a template writes of a list that it takes for a text."""


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """The output of a template.

    text:    the whole of it; trained: (start, stop) characters of the answers, in order.
    images:  (start, stop) characters that stand for the images, in order.
    pieces:  the same text in pieces, where some text only spells a special token; None: all spellings are tokens.
    """

    text: str
    trained: tuple[Span, ...]
    images: tuple[Span, ...]
    pieces: tuple[Piece, ...] | None


class ChatTemplate:
    """A tokenizer's chat template, and what it takes.

    takes_text:  messages whose content is a text; takes_parts: those whose content is a list of parts; takes_images:
                 a part {"type": "image"} is written.
    placeholder: what stands for an image; `<image>` where the template does not write any itself.

    Raises:
        UsageError: the tokenizer has none, or it cannot write a question and an answer.
    """

    def __init__(self, tokenizer: TextTokenizer, date: Date | None = None, *, with_tools: bool = False) -> None:
        source = tokenizer.chat_template(with_tools=with_tools)
        if source is None:
            raise UsageError(
                f"tokenizer {tokenizer.name}: has no chat template: choose pack.template plain, vicuna_v1 or llama_2"
            )
        self._tokenizer, self._source, self._date = tokenizer, source, date
        try:
            compiled(source)
        except jinja2.TemplateError as error:
            raise UsageError(f"tokenizer {tokenizer.name}: its chat template is broken: {error}") from error
        self._answers = Answers(source, tokenizer.templates.get("training"), tokenizer, self._render, self._in_form)
        asked = probe(QUESTION, ANSWER)
        text, words = self._probed(asked)
        self.takes_text = text is not None and self._reads(asked, text)
        in_parts = [parted(message) for message in asked]
        parts, more_words = self._probed(in_parts)
        self.takes_parts = parts is not None and not _DUMPED.search(parts) and self._reads(in_parts, parts)
        if not self.takes_text and not self.takes_parts:
            what = words or more_words or "it leaves them out"
            raise UsageError(
                f"tokenizer {tokenizer.name}: its chat template cannot write a question and an answer: {what}"
            )
        self.placeholder, self.takes_images, self._why_no_images = IMAGE, False, ""
        if self.takes_parts and parts is not None:
            shown = [{"role": "user", "content": [{"type": "image"}, part(QUESTION)]}, in_parts[1]]
            with_image, _ = self._probed(shown)
            if with_image is not None and with_image != parts and not _DUMPED.search(with_image):
                self.takes_images = True
                self.placeholder = self._placeholder_in(with_image, parts)

    def _reads(self, asked: list[Message], text: str) -> bool:
        """Whether what the template writes depends on what each message of a probe says."""
        others = [[*asked[:at], {**asked[at], "content": asked[1 - at]["content"]}, *asked[at + 1 :]] for at in (0, 1)]
        return all(self._probed(other)[0] != text for other in others)

    def _probed(self, messages: list[Message]) -> tuple[str | None, str]:
        try:
            return self._render(messages).text, ""
        except REFUSALS as error:
            return None, _words(error)

    def _placeholder_in(self, with_image: str, without: str) -> str:
        named = self._tokenizer.tokens.get("image_token")
        if named is not None and with_image.count(named) > without.count(named):
            return named
        new = [text for text in self._tokenizer.added if with_image.count(text) > without.count(text)]
        if len(new) > 1:
            new = [text for text in new if re.search("image|img", text, re.IGNORECASE)]
        if len(new) > 1:
            new = [text for text in new if not re.search("begin|start|end", text, re.IGNORECASE)]
        if len(new) == 1:
            return new[0]
        if not new and with_image.count(IMAGE) > without.count(IMAGE):
            return IMAGE
        self._why_no_images = (
            f"it is not clear which token of the template is the image placeholder ({', '.join(new) or 'none'}): name it as "
            "image_token in tokenizer_config.json"
        )
        return IMAGE

    def _render(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, source: str | None = None, prompt: bool = False
    ) -> Rendering:
        return render(
            self._source if source is None else source,
            messages,
            tools=tools,
            variables=self._tokenizer.tokens,
            date=self._date,
            generation_prompt=prompt,
        )

    def write(self, conversation: Conversation) -> RenderedChat:
        """A conversation as the template writes it.

        Raises:
            Unwritable: the template refuses it, or an answer or an image is not found in what it writes.
        """
        messages = self.messages(conversation)
        try:
            found = self._render(messages, conversation.tools)
            spans = self._answers.spans(found, messages, conversation.tools)
        except REFUSALS as error:
            raise Unwritable(TEMPLATE_REFUSED, _words(error)) from error
        images = self._images(found, conversation)
        return RenderedChat(
            found.text, tuple(spans), tuple(images), self._pieces(found, messages, conversation.tools, spans, images)
        )

    def messages(self, conversation: Conversation) -> list[Message]:
        """The messages that the template is given: the conversation's own, or made from its turns."""
        if conversation.messages is not None:
            return [self._in_form(normal(message)) for message in conversation.messages]
        made: list[Message] = []
        if conversation.system is not None:
            made.append(said("system", conversation.system))
        for role, text in conversation.turns:
            made.append(self._turn("assistant" if role == "gpt" else "user", text, conversation.images > 0))
        return [self._in_form(message) for message in made]

    def _turn(self, role: str, text: str, has_images: bool) -> Message:
        if not has_images or IMAGE not in text:
            return said(role, text)
        if self.takes_images:
            return {"role": role, "content": list(parts_of(text))}
        first, *others = text.split(IMAGE)
        return {"role": role, "content": marked([first, *(part for text in others for part in (None, text))])}

    def _in_form(self, message: Message) -> Message:
        """The message with its content in a form that the template takes."""
        content = message.get("content")
        if isinstance(content, str) and not self.takes_text:
            return parted(message)
        if not isinstance(content, list):
            return message
        has_image = any(part.get("type") == "image" for part in content)
        if self.takes_images or (self.takes_parts and not has_image):
            return message
        parts = [None if part.get("type") == "image" else part.get("text", "") for part in content]
        return {**message, "content": marked(parts)}

    # Where images are.

    def _images(self, found: Rendering, conversation: Conversation) -> list[Span]:
        if conversation.images and self._why_no_images:
            raise Unwritable(IMAGE_NOT_PLACED, self._why_no_images)
        if self.takes_images:
            places = [match.span() for match in re.finditer(re.escape(self.placeholder), found.text)]
            places = [place for place in places if found.is_own(*place)]
        else:
            places = [(start, stop) for start, stop, origin in found.runs if origin >= MARK_ORIGIN]
            places = [(at, at + len(IMAGE)) for start, stop in places for at in range(start, stop, len(IMAGE))]
        if len(places) != conversation.images:
            raise Unwritable(
                IMAGE_NOT_PLACED, f"the template writes {len(places)} placeholders for {conversation.images} images"
            )
        return places

    # What only spells a special token.

    def _pieces(
        self, found: Rendering, messages: Sequence[Message], tools: Any, spans: Sequence[Span], images: Sequence[Span]
    ) -> tuple[Piece, ...] | None:
        special = self._tokenizer.special_spans(found.text)
        text = self._only_spelled(found, special, messages, tools)
        if not text:
            return None
        kinds = {place: place in images for place in [*(place for place in special if place not in text), *images]}
        cuts = sorted({0, len(found.text), *(at for place in (*kinds, *spans) for at in place)})
        starts = {start: (stop, kind) for (start, stop), kind in kinds.items()}
        trained = sorted(spans)
        made: list[Piece] = []
        span, until, kind = 0, 0, False
        for start, stop in pairwise(cuts):
            if start in starts:
                until, kind = starts[start]
            while span < len(trained) and trained[span][1] <= start:
                span += 1
            is_trained = span < len(trained) and trained[span][0] <= start
            is_token = start < until
            made.append(
                Piece(found.text[start:stop], is_trained, special=is_token and not kind, image=is_token and kind)
            )
        return tuple(made)

    def _only_spelled(
        self, found: Rendering, special: Sequence[Span], messages: Sequence[Message], tools: Any
    ) -> set[Span]:
        """The spellings of special tokens that came from messages.

        Where a template hides where a text came from, writing the same messages with those spellings blanked shows it.
        """
        text = {place for place in special if not found.is_own(*place)}
        blanked = [blank(message, self._tokenizer.special_spans) for message in messages]
        if special and blanked != list(messages):
            other = self._render(blanked, tools).text
            if len(other) == len(found.text):
                text |= {place for place in special if other[slice(*place)] != found.text[slice(*place)]}
        return text


def _words(error: Exception) -> str:
    """A refusal in the template's own words, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.replace(f"{TracedText.__module__}.{TracedText.__qualname__}", "str")
    return text if len(text) <= _MOST_WORDS else text[: _MOST_WORDS - 1] + "…"


def reads_the_date(tokenizer: TextTokenizer) -> bool:
    """Whether a chat template of the tokenizer writes the date."""
    return any("strftime_now" in source for source in tokenizer.templates.values())


@lru_cache(maxsize=16)
def chat_template(tokenizer: TextTokenizer, date: Date | None, with_tools: bool) -> ChatTemplate:
    """The chat template of a tokenizer, examined once per process."""
    return ChatTemplate(tokenizer, date, with_tools=with_tools)
