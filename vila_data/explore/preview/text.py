"""Make untrusted text safe and visible in HTML: escape markup and show invisible characters.

Escaping makes markup harmless. What remains are characters that are invisible or change how their neighbors look:
controls, bidirectional overrides, zero-width characters, lone surrogates, stacks of combining marks. They are shown by
code point (`U+202E`). Long texts are cut, with a note of how much is missing.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from markupsafe import Markup, escape

from vila_data.explore.page import web_address

NOTE_BYTES: Final = 160
"""At most this long is the note of a cut."""
_MOST_MARKS: Final = 6  # combining marks per character; real text has up to four
_MOST_BREAKS: Final = 3
_BREAKS: Final = re.compile(r"\n[\n \t]{3,}")
_LINK_CHARS: Final = 2_000
_LINK: Final = re.compile(r"[!-~]+")
_JOINERS: Final = "\u200c\u200d"
_SELECTORS: Final = "\ufe0e\ufe0f"  # text and emoji style
_ODD: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_JOINED: Final = frozenset({"So", "Sk", "Lo", "Mn", "Mc"})
_INVISIBLE: Final = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u2065\ufffe\uffff"  # without a shape
_ONE_LINE: Final = str.maketrans("\n\t\r", "   ")
_PLAIN: Final = re.compile(r"[^\x20-\x7e\n\u00a1-\u00ac\u00ae-\u02ff\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff]")
"""Characters to examine; the others, which are most of most texts, are skipped at the speed of `re`."""


@dataclass(frozen=True, slots=True)
class SafeText:
    """A text for a page, escaped. cut: number of its characters that are not shown."""

    markup: Markup
    cut: int

    def __html__(self) -> str:
        return str(self.markup)


def safe_text(text: str, max_bytes: int) -> SafeText:
    """A text as markup of at most `max_bytes` bytes of UTF-8, with a note if it is cut."""
    markups: list[str] = []
    free, read = max_bytes, 0
    for raw, label in _pieces(text):
        markup = f'<span class="odd">{label}</span>' if label else str(escape(raw))
        size = len(markup.encode())
        if size > free:
            kept = 0 if label else _fitting(raw, free)
            markups.append(str(escape(raw[:kept])))
            read += kept
            break
        markups.append(markup)
        free -= size
        read += len(raw)
    cut = len(text) - read
    if cut:
        markups.append(f'<span class="cut"> … {cut:,} of {len(text):,} characters not shown</span>')
    return SafeText(Markup("".join(markups)), cut)


def _fitting(raw: str, max_bytes: int) -> int:
    """How many characters fit, escaped."""
    return bisect_right(range(1, min(len(raw), max_bytes) + 1), max_bytes, key=lambda n: len(escape(raw[:n]).encode()))


def one_line(text: str, max_chars: int) -> str:
    """A text of about `max_chars` characters at most for an attribute or a title: one line, not escaped."""
    pieces: list[str] = []
    free = max_chars
    for raw, label in _pieces(text[: 4 * max_chars + 1]):
        piece = (f"[{label}]" if label else raw).translate(_ONE_LINE)
        if len(piece) > free:
            return "".join([*pieces, piece[:free] if not label else "", "…"])
        pieces.append(piece)
        free -= len(piece)
    return "".join(pieces) + ("…" if len(text) > 4 * max_chars + 1 else "")


def safe_link(url: str | None) -> str | None:
    """The URL if it can become a link: http or https, a host, no user name, visible ASCII only; else None."""
    if url is None or len(url) > _LINK_CHARS or not _LINK.fullmatch(url) or web_address(url) is None:
        return None
    parts = urlsplit(url)
    try:
        parts.port  # noqa: B018  raises if it is invalid
    except ValueError:
        return None
    return None if "@" in parts.netloc else url


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """(characters, the label shown in their place or ""), in order; covers the whole text."""
    at = done = 0
    while found := _PLAIN.search(text, at):
        start = found.start()
        stop, label = _label_at(text, start)
        if label:
            yield from _visible(text[done:start])
            yield text[start:stop], label
            done = stop
        at = stop
    yield from _visible(text[done:])


def _visible(text: str) -> Iterator[tuple[str, str]]:
    """Visible characters; long runs of line breaks get a label."""
    at = 0
    for found in _BREAKS.finditer(text):
        breaks = found.group().count("\n")
        if breaks > _MOST_BREAKS:
            yield text[at : found.start() + 1], ""
            yield text[found.start() + 1 : found.end()], f"line break x{breaks - 1}"
            at = found.end()
    if at < len(text):
        yield text[at:], ""


def _label_at(text: str, at: int) -> tuple[int, str]:
    """The end of the character or run that begins at `at`, and its label if it must not be shown as it is."""
    char = text[at]
    if text.startswith("\r\n", at):
        return at + 1, "" if at + 1 < len(text) else "U+000D"
    if char == "\t" or char in _SELECTORS or (char in _JOINERS and _joins(text, at)):
        stop = _run(text, at, char)
        return (stop, "") if stop - at <= 8 or char == "\t" else (stop, _label(char, stop - at))
    category = _category(char)
    if (
        category in _ODD
        or char in _INVISIBLE
        or 0xE0000 <= ord(char) < 0xE1000
        or (category == "Zs" and char not in " \u00a0\u3000")
    ):
        stop = _run(text, at, char)
        return stop, _label(char, stop - at)
    if category in ("Mn", "Me"):
        stop = at
        while stop < len(text) and _category(text[stop]) in ("Mn", "Me"):
            stop += 1
        return (stop, "") if stop - at <= _MOST_MARKS else (stop, f"{stop - at:,} combining marks")
    return at + 1, ""


def _joins(text: str, at: int) -> bool:
    """Whether a joiner is where writing needs it: inside an emoji, or in a script that joins its letters."""
    if not 0 < at < len(text) - 1:
        return False
    before, after = text[at - 1], text[at + 1]
    return (before in _SELECTORS or _category(before) in _JOINED) and _category(after) in _JOINED


def _run(text: str, at: int, char: str) -> int:
    stop = at + 1
    while stop < len(text) and text[stop] == char:
        stop += 1
    return stop


def _label(char: str, count: int) -> str:
    return f"U+{ord(char):04X}" + (f" x{count:,}" if count > 1 else "")


@lru_cache(maxsize=4096)
def _category(char: str) -> str:
    return unicodedata.category(char)
