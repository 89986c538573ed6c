"""Render a chat template and know where each character came from.

A chat template (Jinja) may strip, cut, reorder or rewrite what a message says, so an answer cannot be searched for in
what it writes. Here the texts of messages carry their origin through the template, and each pass of a loop over the
messages is noted: what the template writes in the pass of an answer is that answer's turn.

Rules of the environment are those of transformers (utils/chat_template_utils.py): sandboxed, `trim_blocks`,
`lstrip_blocks`, loop controls, `raise_exception`, `strftime_now`, `tojson` without HTML escapes, `{% generation %}`.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import date as Date
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vila_data.encode.traced_text import Run, TracedText, join, joined, origins_in

REFUSALS: Final = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""Errors that a template raises when it refuses its messages."""


@dataclass(frozen=True)
class Rendering:
    """The output of a template.

    text:        the whole of it.
    runs:        characters that came from a message, in order: (start, stop, origin).
    turns:       (message, start, stop) characters that a pass of a loop over the messages wrote, in order.
    generations: (start, stop) characters inside `{% generation %}`.
    """

    text: str
    runs: tuple[Run, ...]
    turns: tuple[tuple[int, int, int], ...]
    generations: tuple[tuple[int, int], ...]

    def runs_in(self, start: int, stop: int) -> list[Run]:
        """The runs that have a character between two places, in order."""
        at = max(0, bisect_right(self.runs, (start,)) - 1)
        found: list[Run] = []
        while at < len(self.runs) and self.runs[at][0] < stop:
            if self.runs[at][1] > start:
                found.append(self.runs[at])
            at += 1
        return found

    def is_own(self, start: int, stop: int) -> bool:
        """Whether the template wrote these characters itself: none came from a message."""
        return not self.runs_in(start, stop)


@dataclass
class _Watch:
    """Positions recorded while a template is rendered."""

    messages: dict[int, int] = field(default_factory=dict)
    written: int = 0
    open: list[tuple[int, int, int]] = field(default_factory=list)
    turns: list[tuple[int, int, int]] = field(default_factory=list)
    generations: list[tuple[int, int]] = field(default_factory=list)


_watching: ContextVar[_Watch] = ContextVar("watch")
_ENTER, _LEAVE = "enter a pass", "leave a loop"
"""Names of filters that no template can spell; a filter is called without the sandbox's checks."""
_OF_DICTS: Final = frozenset(dir(dict))
_PLAIN: Final = frozenset((bool, int, str, TracedText))
NAMES: Final = frozenset(("role", "type", "name", "id", "tool_call_id"))
"""Keys whose texts are names: a template may repeat them in another message's turn."""


@jinja2.pass_context
def _enter(context: object, target: Any, loop: int) -> str:
    """Note that a pass of a loop begins; the pass before it, if any, ends here."""
    watch = _watching.get()
    if watch.open and watch.open[-1][1] == loop:
        message, _, start = watch.open.pop()
        _close(watch, message, start)
    watch.open.append((watch.messages.get(id(target), -1), loop, watch.written))
    return ""


@jinja2.pass_context  # a filter of the context is not computed when the template is compiled
def _leave(context: object, loop: int) -> str:
    """Note that a loop has ended."""
    watch = _watching.get()
    while watch.open and watch.open[-1][1] >= loop:
        message, _, start = watch.open.pop()
        _close(watch, message, start)
    return ""


def _close(watch: _Watch, message: int, start: int) -> None:
    if message >= 0 and watch.written > start:
        watch.turns.append((message, start, watch.written))


class _Loops(Extension):
    """Notes each pass of each loop that assigns one name."""

    def parse(self, parser: Any) -> nodes.Node:
        raise AssertionError("has no tags")

    def watch(self, template: nodes.Template) -> None:
        """Put the notes into a parsed template."""
        number = 0
        for parent in [template, *template.find_all(nodes.Node)]:
            for name in ("body", "else_"):
                body = getattr(parent, name, None)
                if not isinstance(body, list):
                    continue
                changed: list[nodes.Node] = []
                for node in body:
                    changed.append(node)
                    if isinstance(node, nodes.For) and isinstance(node.target, nodes.Name):
                        number += 1
                        loop = nodes.Const(number)
                        target = nodes.Name(node.target.name, "load")
                        node.body.insert(0, self._note(_ENTER, target, [loop], node.lineno))
                        changed.append(self._note(_LEAVE, loop, [], node.lineno))
                body[:] = changed

    def _note(self, name: str, value: nodes.Expr, arguments: list[nodes.Expr], line: int) -> nodes.Node:
        return nodes.ExprStmt(nodes.Filter(value, name, arguments, [], None, None)).set_lineno(line)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: what the model writes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_generated"), [], [], body).set_lineno(line)

    def _generated(self, caller: Callable[[], str]) -> str:
        text = caller()
        watch = _watching.get()
        watch.generations.append((watch.written, watch.written + len(text)))
        return text


class _Namespace(jinja2.utils.Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace may not have the attribute {name!r}")
        super().__setitem__(name, value)


class _Environment(ImmutableSandboxedEnvironment):
    concat = staticmethod(joined)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As in the sandbox; without its checks where a key, or a plain value of a loop or namespace, passes them."""
        kind = type(obj)
        if kind is dict and attribute not in _OF_DICTS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if (kind is LoopContext or kind is _Namespace) and not attribute.startswith("_"):
            value = getattr(obj, attribute, None)
            if type(value) in _PLAIN:
                return value
        return super().getattr(obj, attribute)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        self.extensions[_Loops.identifier].watch(template)  # type: ignore[attr-defined]
        return template


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    origins = origins_in(value)
    return TracedText.whole(text, origins.pop()) if len(origins) == 1 and origins != {-1} else text


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)


def _do_join(values: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        values = [value[attribute] for value in values]
    return join(str(d), [str(value) for value in values])


def _tracing(filtering: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose text comes from where the text that it was given came from."""

    at = int(hasattr(filtering, "jinja_pass_arg"))  # after the context that some filters are given

    @wraps(filtering)
    def traced(*values: Any, **named: Any) -> Any:
        found = filtering(*values, **named)
        given = values[at] if at < len(values) else None
        return given.like(found) if isinstance(given, TracedText) and type(found) is str else found

    return traced


def _do_replace(text: str, old: str, new: str, count: int | None = None) -> str:
    given = text if isinstance(text, TracedText) else TracedText(str(text))
    return given.replace(str(old), str(new), -1 if count is None else count)


def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Loops, _Generation, loopcontrols])
    environment.filters |= {name: _tracing(filtering) for name, filtering in environment.filters.items()}
    environment.filters |= {"tojson": _tojson, "join": _do_join, "replace": _do_replace, "string": str}
    environment.filters |= {_ENTER: _enter, _LEAVE: _leave}
    environment.globals |= {
        "raise_exception": _raise_exception,
        "dict": dict,
        "namespace": _Namespace,
    }
    return environment


@lru_cache(maxsize=16)
def compiled(source: str) -> jinja2.Template:
    """A chat template, ready to render.

    Raises:
        jinja2.TemplateSyntaxError: it is not one.
    """
    template = _environment().from_string(source)
    # `~` joins as text: with origins
    template.root_render_func.__globals__["str_join"] = lambda parts: joined([str(part) for part in parts])
    return template


def render(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any],
    date: Date | None = None,
    generation_prompt: bool = False,
) -> Rendering:
    """Messages as a chat template writes them.

    Args:
        messages: {"role", "content", …}; texts of the i-th message come out with origin i, but for its role and those
            that are TracedText already.
        variables: spelling of special tokens by name, and whatever else the template reads.
        date: what `strftime_now` gives; None: today.

    Raises:
        REFUSALS: the template is broken or refuses these messages.
    """
    template = compiled(source)
    given = [_traced_message(message, number) for number, message in enumerate(messages)]
    watch = _Watch({id(message): number for number, message in enumerate(given)})
    today = datetime.now() if date is None else datetime(date.year, date.month, date.day)
    values = {
        "messages": given,
        "tools": None if tools is None else [dict(tool) for tool in tools],
        "documents": None,
        "add_generation_prompt": generation_prompt,
        "strftime_now": today.strftime,
        **variables,
    }
    token = _watching.set(watch)
    pieces: list[str] = []
    try:
        for piece in template.root_render_func(template.new_context(values)):
            pieces.append(piece)
            watch.written += len(piece)
    finally:
        _watching.reset(token)
    whole = joined(pieces)
    runs = tuple(_merged(whole._runs))
    return Rendering(str.__str__(whole), runs, tuple(watch.turns), tuple(watch.generations))


def _traced_message(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {key: value if key in NAMES else _traced(value, number) for key, value in message.items()}


def _traced(value: Any, number: int) -> Any:
    if isinstance(value, TracedText):
        return value
    if isinstance(value, str):
        return TracedText.whole(value, number)
    if isinstance(value, Mapping):
        return {key: item if key in NAMES else _traced(item, number) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_traced(item, number) for item in value]
    return value


def _merged(runs: Iterable[Run]) -> Iterator[Run]:
    last: Run | None = None
    for run in runs:
        if last is not None and last[1] == run[0] and last[2] == run[2]:
            last = (last[0], run[1], run[2])
        else:
            if last is not None:
                yield last
            last = run
    if last is not None:
        yield last
