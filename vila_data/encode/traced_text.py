"""Texts that know where their characters came from, through what templates do to them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from operator import index
from typing import SupportsIndex

Run = tuple[int, int, int]
"""(start, stop, origin) characters of a text that come from one message."""


class TracedText(str):
    """A text that knows which of its characters came from which message.

    `_runs`: in order, without overlap; characters in none of them are the template's own.
    """

    __slots__ = ("_runs",)
    _runs: tuple[Run, ...]

    def __new__(cls, text: str, runs: Iterable[Run] = ()) -> TracedText:
        """A text with its runs."""
        made = super().__new__(cls, text)
        made._runs = tuple(runs)
        return made

    @classmethod
    def whole(cls, text: str, origin: int) -> TracedText:
        """A text that comes from one message."""
        return cls(text, [(0, len(text), origin)] if text else ())

    def _part(self, start: int, stop: int) -> TracedText:
        runs: list[Run] = []
        for at in range(max(0, bisect_right(self._runs, (start,)) - 1), len(self._runs)):
            first, last, origin = self._runs[at]
            if first >= stop:
                break
            if max(first, start) < min(last, stop):
                runs.append((max(first, start) - start, min(last, stop) - start, origin))
        return TracedText(str.__getitem__(self, slice(start, stop)), runs)

    def __str__(self) -> str:
        return self

    def __getnewargs__(self) -> tuple[str, tuple[Run, ...]]:  # type: ignore[override]
        return str.__str__(self), self._runs

    def __format__(self, spec: str) -> str:
        return self if not spec else str.__format__(self, spec)

    def __add__(self, other: str) -> TracedText:
        return joined([self, other]) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> TracedText:
        return joined([other, self]) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> TracedText:
        return joined([self] * int(count))

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> TracedText:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._part(start, max(start, stop))
            return joined([self._part(at, at + 1) for at in range(start, stop, step)])
        at = index(key)
        at += len(self) if at < 0 else 0
        if not 0 <= at < len(self):
            raise IndexError("string index out of range")
        return self._part(at, at + 1)

    def __iter__(self) -> Iterator[str]:
        return (self._part(at, at + 1) for at in range(len(self)))

    def strip(self, chars: str | None = None) -> TracedText:
        """As of str."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> TracedText:
        """As of str."""
        return self._part(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None) -> TracedText:
        """As of str."""
        return self._part(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> TracedText:
        """As of str."""
        return self._part(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> TracedText:
        """As of str."""
        return self._part(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As of str."""
        return self._located(str.split(self, sep, maxsplit))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As of str."""
        return self._located(str.rsplit(self, sep, maxsplit), backward=True)

    def splitlines(self, keepends: bool = False) -> list[str]:
        """As of str."""
        return self._located(str.splitlines(self, keepends))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """As of str."""
        before, found, after = str.partition(self, sep)
        return self._part(0, len(before)), TracedText(found), self._part(len(self) - len(after), len(self))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """As of str."""
        before, found, after = str.rpartition(self, sep)
        return self._part(0, len(before)), TracedText(found), self._part(len(self) - len(after), len(self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> TracedText:
        """As of str; what is put in comes from where the text that it replaces came from."""
        if not old:
            return self.like(str.replace(self, old, new, int(count)))
        made: list[str] = []
        at = 0
        for part in str.split(self, old, int(count)):
            if made:
                made.append(self._part(at, at + len(old)).like(new))
                at += len(old)
            made.append(self._part(at, at + len(part)))
            at += len(part)
        return joined(made)

    def like(self, text: str) -> TracedText:
        """Another text from where this one came from; the template's own if that is more than one place, or unclear."""
        origins = {origin for _, _, origin in self._runs}
        known = len(origins) == 1 and sum(last - first for first, last, _ in self._runs) == len(self)
        return (
            text
            if isinstance(text, TracedText)
            else TracedText.whole(text, origins.pop())
            if known
            else TracedText(text)
        )

    def join(self, parts: Iterable[str], /) -> TracedText:
        """As of str."""
        return join(self, parts)

    def _same_length(self, text: str) -> TracedText:
        return TracedText(text, self._runs if len(text) == len(self) else ())

    def lower(self) -> TracedText:
        """As of str."""
        return self._same_length(str.lower(self))

    def upper(self) -> TracedText:
        """As of str."""
        return self._same_length(str.upper(self))

    def capitalize(self) -> TracedText:
        """As of str."""
        return self._same_length(str.capitalize(self))

    def title(self) -> TracedText:
        """As of str."""
        return self._same_length(str.title(self))

    def swapcase(self) -> TracedText:
        """As of str."""
        return self._same_length(str.swapcase(self))

    def _located(self, parts: list[str], *, backward: bool = False) -> list[str]:
        """Substrings in order, none overlapping another, with the origins that they have in this text."""
        found: list[str] = []
        at, end = 0, len(self)
        for part in reversed(parts) if backward else parts:
            at = str.rindex(self, part, 0, end) if backward else str.index(self, part, at)
            found.append(self._part(at, at + len(part)))
            at, end = at + len(part), at
        return found[::-1] if backward else found


def joined(parts: Iterable[str]) -> TracedText:
    """Texts one after another, each with its origins; neighbors of one origin are one run."""
    runs: list[Run] = []
    texts: list[str] = []
    at = 0
    for part in parts:
        if isinstance(part, TracedText):
            for first, last, origin in part._runs:
                if runs and runs[-1][1] == first + at and runs[-1][2] == origin:
                    runs[-1] = (runs[-1][0], last + at, origin)
                else:
                    runs.append((first + at, last + at, origin))
        texts.append(part)
        at += len(part)
    return TracedText("".join(texts), runs)


def join(separator: str, parts: Iterable[str]) -> TracedText:
    """`separator.join(parts)`, each part with its origins."""
    given = list(parts)
    between = [part for text in given for part in (separator, text)][1:]
    return joined(between)


def origins_in(value: object) -> set[int]:
    """Origins of the texts in a value, however deep; -1 for text of no origin."""
    if isinstance(value, TracedText):
        return {origin for _, _, origin in value._runs} if value._runs or not value else {-1}
    if isinstance(value, dict):
        return set().union(*map(origins_in, value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*map(origins_in, value))
    return set()
