"""The rules of a robots.txt for this agent, and what they say of a path (RFC 9309, sections 2.1 and 2.2)."""

from __future__ import annotations

import codecs
import re
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Final

from vila_data.download.urls import without_dots

_AGENT_FIELDS: Final = ("user-agent", "useragent", "user agent")
_FIELD: Final = re.compile(  # with common misspellings, and without the colon
    r"(user[- ]?agent|allow|dis+al+ow|diasllow|disallaw)\s*[:\s]\s*(.*)", re.IGNORECASE
)
_LINE_END: Final = re.compile(r"\r\n?|\n")
_TOKEN: Final = re.compile(r"\*|[A-Za-z_-]+")
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_GZIP: Final = b"\x1f\x8b\x08"
_OTHERS: Final = re.compile(r"[^A-Za-z0-9\-._~!&'()+,;=:@/?%]+")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_PLAIN: Final = frozenset(map(ord, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!&'()+,;=:@"))
_STAR: Final = ord("*")
_WORK: Final = 500_000_000  # characters of all patterns with wildcards, times those of a path


def text_of(content: bytes, limit: int) -> str:
    """The text of a robots.txt: UTF-8, UTF-16 or UTF-32, also in a gzip file; without the line that `limit` bytes cut."""
    if content.startswith(_GZIP):
        try:
            content = _unpacked(content, limit)
        except zlib.error:
            return ""
    text = _decoded(content)
    return text if len(content) < limit else text[: max(text.rfind("\n"), text.rfind("\r"), 0)]


def _unpacked(content: bytes, limit: int) -> bytes:
    """At most `limit` bytes of a gzip file, all its members."""
    found = b""
    while content.startswith(_GZIP) and len(found) < limit:
        inflate = zlib.decompressobj(31)
        found += inflate.decompress(content, limit - len(found))
        content = inflate.unused_data
    return found


def _decoded(content: bytes) -> str:
    for mark, encoding in _BOMS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, "replace")
    start = content[:64]
    if start.count(0) * 3 > len(start):  # ASCII in UTF-16 without a mark
        return content.decode("utf-16-be" if start[0] == 0 else "utf-16-le", "replace")
    return content.decode("utf-8", "surrogateescape")


def own_rules(text: str, agent: str) -> str:
    """The rules of `text` for `agent`, else those for everyone: a line each, ``+`` (allow) or ``-`` and the path.

    Empty where nothing is forbidden.
    """
    groups: dict[str, list[str]] = {agent: [], "*": []}
    named = False
    current: list[list[str]] = []
    in_agents = False
    for line in _LINE_END.split(text):
        found = _FIELD.fullmatch(line.partition("#")[0].strip())
        if found is None:
            continue
        field, value = found[1].lower(), found[2].strip()
        if field in _AGENT_FIELDS:
            token = _TOKEN.match(value)
            name = token[0].lower() if token else ""
            current = current if in_agents else []
            in_agents = True
            named = named or name == agent
            if name in groups:
                current.append(groups[name])
            continue
        in_agents = False
        if value:
            for rules in current:
                rules.append(("+" if field == "allow" else "-") + canonical(value, pattern=True))
    chosen = groups[agent] if named else groups["*"]
    return "\n".join(dict.fromkeys(chosen)) if any(rule[0] == "-" for rule in chosen) else ""


def canonical(text: str, pattern: bool = False) -> str:
    """A path with its query, or a rule's pattern, in the one spelling in which both are compared.

    Escapes of characters that need none are decoded, all others are upper-case; what needs an escape gets one.
    In a pattern ``*`` and a last ``$`` are kept, and several ``*`` are one.
    """
    anchor = ""
    if pattern:
        text = re.sub(r"^https?://[^/]*", "", text, flags=re.IGNORECASE)
        text = text if text.startswith(("/", "*")) else "/" + text
        if text.endswith("$"):
            text, anchor = text[:-1], "$"
    text = _OTHERS.sub(partial(_escape, pattern), text)
    text = _ESCAPE.sub(_unescape, text)
    return (re.sub(r"\*+", "*", text) if pattern else text) + anchor


def _escape(pattern: bool, found: re.Match[str]) -> str:
    content = found[0].encode("utf-8", "surrogateescape")
    return "".join("*" if pattern and byte == _STAR else f"%{byte:02X}" for byte in content)


def _unescape(found: re.Match[str]) -> str:
    byte = int(found[1], 16)
    return chr(byte) if byte in _PLAIN else found[0].upper()


@dataclass(frozen=True, slots=True)
class _Wildcard:
    """A pattern with ``*`` or a last ``$``: pieces that follow one another in the path."""

    rank: int
    pieces: tuple[str, ...]
    anchored: bool

    def matches(self, path: str) -> bool:
        first, *others = self.pieces
        if not others:
            return path == first if self.anchored else path.startswith(first)
        if not path.startswith(first):
            return False
        at = len(first)
        for piece in others[:-1]:
            at = path.find(piece, at)
            if at < 0:
                return False
            at += len(piece)
        last = others[-1]
        return path.endswith(last) and len(path) - len(last) >= at if self.anchored else path.find(last, at) >= 0


class Rules:
    """Rules as `own_rules` gives them. The longest pattern that matches decides, of equally long ones an allowing one."""

    def __init__(self, lines: str) -> None:
        self._prefixes: dict[str, bool] = {}
        self._lengths: list[int] = []
        self._wildcards: list[tuple[_Wildcard, bool]] = []
        for line in lines.split("\n"):
            allows, path = line[0] == "+", line[1:]
            if "*" in path or path.endswith("$"):
                anchored = path.endswith("$")
                pieces = tuple((path[:-1] if anchored else path).split("*"))
                self._wildcards.append((_Wildcard(len(path), pieces, anchored), allows))
            else:
                self._prefixes[path] = self._prefixes.get(path, False) or allows
        self._lengths = sorted(set(map(len, self._prefixes)), reverse=True)
        self._wildcard_chars = sum(wildcard.rank for wildcard, _ in self._wildcards)
        self._wildcards.sort(key=lambda rule: (rule[0].rank, rule[1]), reverse=True)

    def allow(self, target: str) -> bool:
        """Whether a URL's path and query may be fetched, as written and as servers resolve its dots."""
        path, mark, query = target.partition("?")
        resolved = without_dots(re.sub("%2e", ".", path, flags=re.IGNORECASE))
        return self._allow(canonical(target)) and (resolved == path or self._allow(canonical(resolved + mark + query)))

    def _allow(self, path: str) -> bool:
        """Whether a path in its canonical spelling may be fetched; not, where that would take too long to say."""
        if self._wildcard_chars * len(path) > _WORK:
            return False
        rank, allowed = -1, True
        for length in self._lengths:
            found = self._prefixes.get(path[:length]) if length <= len(path) else None
            if found is not None:
                rank, allowed = length, found
                break
        for wildcard, allows in self._wildcards:
            if wildcard.rank < rank or (wildcard.rank == rank and allowed):
                break
            if wildcard.matches(path):
                return allows
        return allowed
