"""Text from the web as something that can stand in a page: nothing in it acts, nothing in it hides.

Escaping makes markup harmless. What is left are characters that cannot be seen, or that change how what stands beside
them is seen: controls, bidirectional overrides, zero-width characters, lone surrogates, towers of combining marks,
megabytes without a space. They are named in place (`U+202E`), and what is too long is cut, with a note of how much.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from markupsafe import Markup, escape

from vila_data.explore.page import web_address

NOTE_BYTES: Final = 160
"""Room for the note of a cut."""
_MOST_MARKS: Final = 6  # combining marks on one character; what is written in earnest has up to four
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
"""Whatever may need a look; the rest, which is most of most texts, is passed over at the speed of `re`."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A text for a page, escaped; `cut`: characters of it that are not shown."""

    markup: Markup
    cut: int

    def __html__(self) -> str:
        return str(self.markup)


def shown(text: str, max_bytes: int, length: int | None = None) -> Shown:
    """A text as markup of at most `max_bytes` bytes of UTF-8, and a note where it is cut.

    length: of the whole text in characters, where `text` is only its beginning.
    """
    length = len(text) if length is None else length
    pieces: list[str] = []
    room, read = max_bytes, 0
    for raw, markup in _markups(text):
        size = len(markup.encode())
        if size > room:
            head, kept = _head(raw, markup, room)
            pieces.append(head)
            read += kept
            break
        pieces.append(markup)
        room -= size
        read += len(raw)
    cut = length - read
    if cut:
        pieces.append(f'<span class="cut"> … {cut:,} of {length:,} characters not shown</span>')
    return Shown(Markup("".join(pieces)), cut)


def plain(text: str, max_chars: int) -> str:
    """A text of at most about `max_chars` characters for an attribute or a title: one line, unescaped."""
    pieces: list[str] = []
    room = max_chars
    for raw, label in _pieces(text[: 4 * max_chars + 1]):
        piece = (f"[{label}]" if label else raw).translate(_ONE_LINE)
        if len(piece) > room:
            return "".join([*pieces, piece[:room] if not label else "", "…"])
        pieces.append(piece)
        room -= len(piece)
    return "".join(pieces) + ("…" if len(text) > 4 * max_chars + 1 else "")


def link(url: str | None) -> str | None:
    """The address where it may become a link: http or https, a host, no user name, in visible ASCII alone; else None."""
    if url is None or len(url) > _LINK_CHARS or not _LINK.fullmatch(url) or web_address(url) is None:
        return None
    parts = urlsplit(url)
    try:
        parts.port  # noqa: B018  raises where it is none
    except ValueError:
        return None
    return None if "@" in parts.netloc else url


def _markups(text: str) -> Iterator[tuple[str, str]]:
    """(characters, their markup), in order."""
    for raw, label in _pieces(text):
        if not label:
            yield raw, str(escape(raw))
        else:
            yield raw, f'<span class="odd">{label}</span>'


def _head(raw: str, markup: str, room: int) -> tuple[str, int]:
    """As much of plain characters as there is room for, and how many they are; nothing of a label."""
    if markup.startswith("<span"):
        return "", 0
    low, high = 0, min(len(raw), room)
    while low < high:
        middle = (low + high + 1) // 2
        if len(escape(raw[:middle]).encode()) <= room:
            low = middle
        else:
            high = middle - 1
    return str(escape(raw[:low])), low


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """(characters, the label they are shown as; "" where they are shown as they are), in order; all of the text."""
    at = done = 0
    while found := _PLAIN.search(text, at):
        place = found.start()
        stop, label = _odd(text, place)
        if label:
            yield from _calm(text[done:place])
            yield text[place:stop], label
            done = stop
        at = stop
    yield from _calm(text[done:])


def _calm(text: str) -> Iterator[tuple[str, str]]:
    """Visible characters; more line breaks than a reader needs are named."""
    at = 0
    for found in _BREAKS.finditer(text):
        breaks = found.group().count("\n")
        if breaks > _MOST_BREAKS:
            yield text[at : found.start() + 1], ""
            yield text[found.start() + 1 : found.end()], f"line break x{breaks - 1}"
            at = found.end()
    if at < len(text):
        yield text[at:], ""


def _odd(text: str, at: int) -> tuple[int, str]:
    """Where what stands at `at` ends, and its label if it is not to be shown as it is."""
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
    """Whether a joiner stands where writing needs it: inside an emoji, or a script that joins its letters."""
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
