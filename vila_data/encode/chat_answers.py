"""Where the answers are in what a chat template wrote, and with them the tokens that are trained.

`{% generation %}`, or a template called `training` that writes the same text, says it. Elsewhere an answer's turn is what
the template writes in its pass of the loop over the messages, without the header that a generation prompt would give; where a
template has no such loop, the characters that came from the answer say where it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from typing import Any, Final, Protocol

from vila_data.core.records import IMAGE_PLACEHOLDER
from vila_data.encode.rendering import NAMES, REFUSALS, Rendering
from vila_data.encode.tokenizer import TextTokenizer
from vila_data.encode.traced_text import TracedText, joined

Message = dict[str, Any]

QUESTION, ANSWER, OTHER_ANSWER = "Qzjv7", "Wxkp3", "Yhmb8"
"""Texts of the messages that probe a template."""
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


def marked(parts: Sequence[str | None]) -> TracedText:
    """Texts and, for None, placeholders that are known to stand for an image."""
    return joined(TracedText.whole(IMAGE_PLACEHOLDER, MARK_ORIGIN) if part is None else part for part in parts)


def parts_of(text: str) -> Iterator[dict[str, str]]:
    """Text and images of a turn in order; a placeholder takes the line break with it that LLaVA's rows have next to it."""
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


_RESULT: Final = re.compile(r"<[^<>]*(?:response|result|output|observation)[^<>]*>", re.IGNORECASE)
"""Start of a tool's result, if a template writes it inside an answer's turn."""


class Unwritable(Exception):
    """A conversation that its template cannot write; `reason` is a fate, the message is the template's own text."""

    def __init__(self, reason: str, words: str) -> None:
        self.reason = reason
        super().__init__(words)


@dataclass(frozen=True)
class _MessageSpans:
    """The output of a template, by message.

    turns: its turns; runs: the characters that came from it, in order. begins: the message whose turn begins at a place.
    answers: messages that are answers.
    """

    turns: dict[int, list[Span]]
    runs: dict[int, list[Span]]
    begins: dict[int, int]
    answers: frozenset[int]

    @staticmethod
    def of(found: Rendering, answers: Collection[int]) -> _MessageSpans:
        turns: dict[int, list[Span]] = {}
        runs: dict[int, list[Span]] = {}
        for number, start, stop in found.turns:
            turns.setdefault(number, []).append((start, stop))
        for start, stop, origin in found.runs:
            runs.setdefault(origin, []).append((start, stop))
        begins = {start: number for number, start, _ in found.turns}
        return _MessageSpans(turns, runs, begins, frozenset(answers))

    def own(self, number: int, start: int, stop: int) -> list[Span]:
        """The message's characters between two places."""
        return [run for run in self.runs.get(number, ()) if start <= run[0] and run[1] <= stop]


class TemplateFunction(Protocol):
    """A chat template: messages to what it writes of them."""

    def __call__(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, source: str | None = None, prompt: bool = False
    ) -> Rendering:
        """Render with the template, or with another `source`; prompt: with a generation prompt at the end."""


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
        render: TemplateFunction,
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
        written = _MessageSpans.of(found, answers)
        spans: list[Span] = []
        before = 0
        for number in answers:
            span = self._turn_span(found, written, number, messages) or self._traced_span(
                found, written, number, before
            )
            if span is None:
                raise Unwritable(
                    ANSWER_NOT_FOUND, f"message {number}: this answer was not found in the template's output"
                )
            if span[1] > span[0]:
                spans.append(span)
            before = max(before, span[1])
        spans.sort()
        if any(one[1] > other[0] for one, other in pairwise(spans)):
            raise Unwritable(ANSWER_NOT_FOUND, "the template's text has answers inside one another")
        if answers and answers[-1] == len(messages) - 1 and self._is_ending(found.text[before:]):
            spans.append((before, len(found.text)))
        return [part for span in spans for part in self._without_others(found, span, written.answers)]

    def _is_ending(self, text: str) -> bool:
        """Whether the text after the last answer, after the loop, is special tokens alone."""
        special = self._tokenizer.special_spans(text)
        edges = [0, *(at for place in special for at in place), len(text)]
        return bool(special) and not any(
            text[start:stop].strip() for start, stop in zip(edges[::2], edges[1::2], strict=True)
        )

    def _turn_span(self, found: Rendering, written: _MessageSpans, number: int, messages: list[Message]) -> Span | None:
        """The answer's turn without its header; None where the template does not write one turn after another."""
        turns = written.turns.get(number, [])
        if len(turns) > 1:
            turns = [turn for turn in turns if written.own(number, *turn)]
        if len(turns) > 1:  # the template repeats what was said: the turn is where it has its header
            turns = [turn for turn in turns if self._header.strip() and found.text.startswith(self._header, turn[0])]
        if len(turns) != 1:
            return None
        start, stop = turns[0]
        own = written.own(number, start, stop)
        if not own and written.runs.get(number):
            return None
        begin = self._after_header(found.text, start, own[0][0] if own else stop, stop)
        if begin is None:
            return None
        if own:
            return begin, self._with_end(found, written, own[-1][1], stop)
        if has_text(messages[number]) and not self._depends_on(found, number, messages):
            return None
        bare = found.text[begin:stop].rstrip(" ")
        return begin, begin + len(bare) if self._ending and bare.endswith(self._ending) else stop

    def _with_end(self, found: Rendering, written: _MessageSpans, own: int, stop: int) -> int:
        """Where an answer ends whose own characters end at `own` and whose turn ends at `stop`.

        That is with its turn; or with what the template puts after a last answer, where more follows in the turn; or
        with the token that begins the next turn, where no token ends this one.
        """
        ending = self._ending
        if ending and own + len(ending) <= stop and found.text.startswith(ending, own):
            return own + len(ending)
        asks_next = stop in written.begins and written.begins[stop] not in written.answers
        if asks_next and not self._tokenizer.special_spans(found.text[own:stop]):
            return self._tokenizer.special_at(found.text, stop) or stop
        return stop

    def _after_header(self, text: str, start: int, first: int, stop: int) -> int | None:
        """Where an answer begins in its turn: after what a generation prompt would have given."""
        header = self._header
        same = len(header) if text.startswith(header, start, stop) else 0
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
        """The header before an answer: the generation prompt, up to a block of thoughts that it opens.

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
        one, other = (_turn_of_answer(self._render(messages)) for messages in probes)
        return one[: _shared(one, other)].rstrip(" ")

    @cached_property
    def _ending(self) -> str:
        """The text that the template puts after a last answer in its turn, without trailing spaces."""
        found = self._render([self._in_form(message) for message in probe(QUESTION, ANSWER)])
        own = max([stop for _, stop, origin in found.runs if origin == 1], default=None)
        if own is None:
            return ""
        stop = next((stop for message, _, stop in found.turns if message == 1 and stop >= own), len(found.text))
        ending = found.text[own:stop]
        asked = min([start for start, _, origin in found.runs if origin == 0], default=0)
        return self._without_header(ending, found.text[:asked]).rstrip(" ")

    def _without_header(self, ending: str, before_question: str) -> str:
        """An ending without the next question's header, where the template writes it with the answer."""
        at = len(ending) - _shared(ending[::-1], before_question[::-1])
        special = self._tokenizer.special_spans(ending)
        at = next((stop for start, stop in special if start < at < stop), at)
        is_edge = at == 0 or ending[at - 1].isspace() or any(at in place for place in special)
        return ending[:at] if is_edge and ending[at:].strip() else ending

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

    def _traced_span(self, found: Rendering, written: _MessageSpans, number: int, before: int) -> Span | None:
        """The characters that came from the answer, the space before them, and the token that ends them.

        None where there are none, or others' between them.
        """
        own = written.runs.get(number)
        if not own:
            return None
        start, stop = own[0][0], own[-1][1]
        if any(run[2] != number and run[2] < MARK_ORIGIN for run in found.runs_in(start, stop)):
            return None
        at = found.text.rfind(self._header, before, start) if self._header else -1
        if at >= 0 and found.is_own(at, start):
            start = at + len(self._header)
        elif start > before and found.text[start - 1] == " ":
            start -= 1
        if self._ending and found.text.startswith(self._ending, stop):
            return start, stop + len(self._ending)
        behind = stop
        while behind < len(found.text) and found.text[behind].isspace():
            behind += 1
        return start, self._tokenizer.special_at(found.text, behind) or stop

    def _without_others(self, found: Rendering, span: Span, answers: Collection[int]) -> Iterator[Span]:
        """A span without what came from messages that are no answers, such as a tool's result in an answer's turn."""
        start, stop = span
        inside = found.runs_in(start, stop)
        others = [run for run in inside if run[2] not in answers and run[2] < MARK_ORIGIN]
        if not others:
            yield span
            return
        for first, last, _ in others:
            own = [run[1] for run in inside if run[2] in answers and run[1] <= first and run[1] > start]
            if own:
                result = _RESULT.search(found.text, own[-1], first)
                yield start, result.start() if result is not None else own[-1]
            following = [run[0] for run in inside if run[2] in answers and run[0] >= last]
            start = following[0] if following else last
        if start < stop and any(run[2] in answers and run[1] > start for run in inside):
            yield start, stop


def _turn_of_answer(found: Rendering) -> str:
    """The turn of the second message, or all that comes after the first one's text."""
    turns = [found.text[start:stop] for number, start, stop in found.turns if number == 1]
    return turns[0] if turns else found.text[max([stop for _, stop, origin in found.runs if origin == 0], default=0) :]


def _checked(spans: Sequence[Span], answers: Sequence[int]) -> list[Span]:
    if answers and not spans:
        raise Unwritable(ANSWER_NOT_FOUND, "the template marks nothing as {% generation %}")
    return [span for span in spans if span[1] > span[0]]


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (here, there) in pairs if here != there), min(len(one), len(other)))
