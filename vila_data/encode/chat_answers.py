"""Where the answers are in what a chat template wrote, and with them the tokens that are trained.

`{% generation %}`, or a template called `training` that writes the same text, says it. Elsewhere an answer's turn is what
the template writes in its pass of the loop over the messages, without the header that a generation prompt would give; where a
template has no such loop, the characters that came from the answer say where it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any, Final, Protocol

from vila_data.encode.chat_messages import (
    ANSWER,
    MARK_ORIGIN,
    OTHER_ANSWER,
    QUESTION,
    Message,
    has_text,
    part,
    probe,
    said,
)
from vila_data.encode.rendering import REFUSALS, Rendering
from vila_data.encode.tokenizer import TextTokenizer

Span = tuple[int, int]

TEMPLATE_REFUSED: Final = "template_refused"
ANSWER_NOT_FOUND: Final = "answer_not_found"
IMAGE_NOT_PLACED: Final = "image_not_placed"

_THINK: Final = re.compile(r"<[^<>]*think[^<>]*>|\[THINK\]", re.IGNORECASE)
_TRAINED_HEADERS: Final = {
    "56a1447ad31926fd": "",  # DeepSeek-R1-Distill
    "563b1ce7d61d50a9": "",  # DeepSeek-V3
    "a4c9919cbbd4acdd": "",  # gpt-oss
    "cfc67e5f349f3769": "",  # Muse Glimmer
    "cd8e9439f0570856": "<|im_start|>assistant",  # Qwen2.5
}
"""sha256 of a template -> the part of an answer's header that is not trained, where the training variant that TRL
publishes for it (trl 1.16, chat_templates/) trains more of the header than the generation prompt leaves open."""


class Unwritable(Exception):
    """A conversation that its template cannot write; `reason` is a fate, the message the template's own words."""

    def __init__(self, reason: str, words: str) -> None:
        self.reason = reason
        super().__init__(words)


class Writes(Protocol):
    """A chat template: messages to what it writes of them."""

    def __call__(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, source: str | None = None, prompt: bool = False
    ) -> Rendering:
        """What the template, or another `source`, writes; prompt: with a generation prompt at the end."""


class Answers:
    """Finds the answers in what one template writes.

    render:   the template; in_form: a message as the template takes it.
    training: a template that marks its answers and may write the same text; None where there is none.
    """

    def __init__(
        self,
        source: str,
        training: str | None,
        tokenizer: TextTokenizer,
        render: Writes,
        in_form: Callable[[Message], Message],
    ) -> None:
        self._source, self._training, self._tokenizer = source, training, tokenizer
        self._render, self._in_form = render, in_form
        self._marks_answers = "endgeneration" in source

    def spans(self, found: Rendering, messages: list[Message], tools: Any) -> list[Span]:
        """(start, stop) characters that are trained, in order.

        Raises:
            Unwritable: an answer is not in what the template wrote.
            REFUSALS: the template refuses.
        """
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if self._marks_answers:
            return _checked(found.generations, answers)
        if self._training is not None:
            twin = self._render(messages, tools, self._training)
            if twin.text == found.text:
                return _checked(twin.generations, answers)
        spans: list[Span] = []
        before = 0
        for number in answers:
            span = self._turn_span(found, number, messages) or self._traced_span(found, number, before)
            if span is None or span[0] < before:
                raise Unwritable(ANSWER_NOT_FOUND, f"message {number}: the template does not write this answer")
            if span[1] > span[0]:
                spans.append(span)
            before = span[1]
        if answers and answers[-1] == len(messages) - 1 and found.text[before:].strip(" "):
            spans.append((before, len(found.text)))  # what the template puts behind the last answer
        return [part for span in spans for part in self._without_others(found, span, set(answers))]

    def _turn_span(self, found: Rendering, number: int, messages: list[Message]) -> Span | None:
        """The answer's turn without its header; None where the template does not write one turn after another."""
        turns = [(start, stop) for message, start, stop in found.turns if message == number]
        own = [(start, stop) for start, stop, origin in found.runs if origin == number]
        if len(turns) > 1:
            turns = [turn for turn in turns if own and turn[0] <= own[0][0] and own[-1][1] <= turn[1]]
        if len(turns) != 1:
            return None
        start, stop = turns[0]
        if own and not (start <= own[0][0] and own[-1][1] <= stop):
            return None
        begin = self._after_header(found.text, start, own[0][0] if own else stop, stop)
        if begin is None:
            return None
        if not own and has_text(messages[number]) and not self._depends_on(found, number, messages):
            return None
        return begin, self._with_end(found, own[-1][1] if own else begin, stop)

    def _with_end(self, found: Rendering, own: int, stop: int) -> int:
        """Where an answer ends whose own characters end at `own` and whose turn ends at `stop`.

        That is with its turn; or with what the template puts behind a last answer, where more follows in the turn; or
        with the token that begins the next turn, where no token ends this one.
        """
        ending = self._ending
        if ending and own + len(ending) <= stop and found.text.startswith(ending, own):
            return own + len(ending)
        if not self._tokenizer.special_spans(found.text[own:stop]):
            following = self._tokenizer.special_spans(found.text[stop:])
            if following and following[0][0] == 0:
                return stop + following[0][1]
        return stop

    def _after_header(self, text: str, start: int, first: int, stop: int) -> int | None:
        """Where an answer begins in its turn: behind what a generation prompt would have given."""
        header = self._header
        same = 0
        while same < len(header) and start + same < stop and text[start + same] == header[same]:
            same += 1
        if same == len(header) or start + same >= first:
            return min(start + same, first)
        at = text.rfind(header, start, first)
        if at >= 0:
            return at + len(header)
        return start + same if same else None

    @cached_property
    def _header(self) -> str:
        """What comes before an answer: the generation prompt, up to a block of thoughts that it opens.

        Where the template has no generation prompt: what two different answers begin with.
        """
        known = _TRAINED_HEADERS.get(sha256(self._source.encode()).hexdigest()[:16])
        if known is not None:
            return known
        header = self._generation_prompt() or self._common_beginning()
        thought = _THINK.search(header)
        return header[: thought.start()] if thought is not None else header

    def _generation_prompt(self) -> str:
        asked = [self._in_form(said("user", QUESTION))]
        try:
            prompted, bare = self._render(asked, prompt=True), self._render(asked)
        except REFUSALS:
            return ""
        ends = [stop for _, _, stop in prompted.turns]
        if ends and prompted.text[: ends[-1]] == bare.text[: ends[-1]]:
            return prompted.text[ends[-1] :] if prompted.text != bare.text else ""
        return prompted.text[_shared(prompted.text, bare.text) :]

    def _common_beginning(self) -> str:
        probes = [[self._in_form(message) for message in probe(QUESTION, text)] for text in (ANSWER, OTHER_ANSWER)]
        one, other = (self._render(messages) for messages in probes)
        start = next((start for message, start, _ in one.turns if message == 1), None)
        if start is None:
            start = max([stop for _, stop, origin in one.runs if origin == 0], default=0)
        return one.text[start : max(start, _shared(one.text, other.text))].rstrip(" ")

    @cached_property
    def _ending(self) -> str:
        """What the template puts behind a last answer in its turn; without spaces at its end."""
        found = self._render([self._in_form(message) for message in probe(QUESTION, ANSWER)])
        own = max([stop for _, stop, origin in found.runs if origin == 1], default=None)
        if own is None:
            return ""
        stop = next((stop for message, _, stop in found.turns if message == 1), len(found.text))
        return found.text[own:stop].rstrip(" ")

    def _depends_on(self, found: Rendering, number: int, messages: list[Message]) -> bool:
        """Whether the template would have written something else if the answer had said more."""

        def said_more(before: str, after: str) -> list[Message]:
            other = [dict(message) for message in messages]
            content = other[number].get("content")
            text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())
            more = f"{before}{text}{after}"
            other[number]["content"] = [part(more)] if isinstance(content, list) else more
            return other

        return any(self._render(said_more(*more)).text != found.text for more in (("", ANSWER), (ANSWER, "")))

    def _traced_span(self, found: Rendering, number: int, before: int) -> Span | None:
        """The characters that came from the answer, the space before them, and the token that ends them."""
        own = [(start, stop) for start, stop, origin in found.runs if origin == number]
        if not own:
            return None
        start, stop = own[0][0], own[-1][1]
        at = found.text.rfind(self._header, before, start) if self._header else -1
        if at >= 0 and found.is_own(at, start):
            start = at + len(self._header)
        elif start > before and found.text[start - 1] == " ":
            start -= 1
        if self._ending and found.text.startswith(self._ending, stop):
            return start, stop + len(self._ending)
        following = self._tokenizer.special_spans(found.text[stop:])
        if following and not found.text[stop : stop + following[0][0]].strip():
            stop += following[0][1]
        return start, stop

    def _without_others(self, found: Rendering, span: Span, answers: set[int]) -> Iterator[Span]:
        """A span without what came from messages that are no answers, such as a tool's result in an answer's turn."""
        start, stop = span
        inside = [run for run in found.runs if run[0] < stop and start < run[1]]
        others = [run for run in inside if run[2] not in answers and run[2] < MARK_ORIGIN]
        if not others:
            yield span
            return
        for first, last, _ in others:
            own = [run[1] for run in inside if run[2] in answers and run[1] <= first and run[1] > start]
            if own:
                yield start, own[-1]
            following = [run[0] for run in inside if run[2] in answers and run[0] >= last]
            start = following[0] if following else last
        if start < stop and any(run[2] in answers and run[1] > start for run in inside):
            yield start, stop


def _checked(spans: Sequence[Span], answers: Sequence[int]) -> list[Span]:
    if answers and not spans:
        raise Unwritable(ANSWER_NOT_FOUND, "the template marks nothing as {% generation %}")
    return [span for span in spans if span[1] > span[0]]


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (here, there) in pairs if here != there), min(len(one), len(other)))
