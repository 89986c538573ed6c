"""robots.txt (RFC 9309): fetched once per origin and task, parsed for this agent; its rules are kept on disk.

Parsed, 60 rules take 19 kB: 190 MB for 10,000 origins. So only `_PARSED_BYTES` of text are kept parsed; the text of one
origin may have 500 KiB, so it is not kept in memory either.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Final

from vila_data.download.config import DownloadConfig
from vila_data.download.fetch import PRODUCT, Fetched, Fetcher, FetchError
from vila_data.download.pending import ScratchFile
from vila_data.download.urls import WebURL, without_dots

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


_LIMIT: Final = 500 * 1024  # RFC 9309 section 2.5
_MAX_REDIRECTS: Final = 5
_PARSED_BYTES: Final = 4 << 20

_Where = tuple[int, int]  # offset and size of the rules in the spool; size 0: everything is allowed


class Robots:
    """Whether URLs may be fetched, by their origins' robots.txt.

    4xx allows everything. 5xx, a timeout, a connection that breaks off and a redirect to where we may not go forbid
    everything, after as many further attempts as for an image. Where no connection was made, images get that error.
    """

    def __init__(self, fetcher: Fetcher, scratch: ScratchFile, config: DownloadConfig, backoff_s: float) -> None:
        self._fetcher = fetcher
        self._scratch = scratch
        self._timeout_s = config.timeout_s
        self._retries = config.retries
        self._backoff_s = backoff_s
        self._origins: dict[str, asyncio.Future[_Where | str]] = {}
        self._parsed: OrderedDict[_Where, Rules] = OrderedDict()
        self._parsed_bytes = 0

    async def refusal(self, url: WebURL) -> str | None:
        """The error class with which `url` is not fetched, None where it may be; an origin's first URL asks for its rules."""
        future = self._origins.get(url.origin)
        if future is None:
            future = asyncio.ensure_future(self._load(WebURL(url.scheme, url.host, url.port, "/robots.txt")))
            self._origins[url.origin] = future
        where = future.result() if future.done() else await asyncio.shield(future)
        if isinstance(where, str):
            return where
        return None if where[1] == 0 or self._rules(where).allow(url.target) else "robots_txt"

    async def _load(self, url: WebURL) -> _Where | str:
        """Where the rules are, or the error class of all of the origin's URLs."""
        attempt = 0
        while True:
            try:
                return await self._ask(url)
            except FetchError as error:
                if not error.retryable or attempt >= self._retries:
                    return "robots_txt" if error.connected else error.error_class
            await asyncio.sleep(self._backoff_s * 2**attempt)
            attempt += 1

    async def _ask(self, url: WebURL) -> _Where:
        """Where the rules are that one attempt brought.

        Raises:
            FetchError: everything is forbidden.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        target = url
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                outcome = await self._fetcher.request(target, deadline - loop.time(), limit=_LIMIT, cut=True)
            except FetchError as error:
                if error.error_class == "http_status" and (error.http_code or 0) < 500:
                    return (0, 0)
                error.connected = error.connected or target != url
                raise
            if isinstance(outcome, Fetched):
                return self._keep(outcome)
            if outcome.url is None:
                return (0, 0)
            target = outcome.url
        return (0, 0)

    def _keep(self, outcome: Fetched) -> _Where:
        rules = own_rules(text_of(outcome.body.take(), _LIMIT), PRODUCT).encode("ascii")
        return (self._scratch.append(rules), len(rules)) if rules else (0, 0)

    def _rules(self, where: _Where) -> Rules:
        rules = self._parsed.get(where)
        if rules is not None:
            self._parsed.move_to_end(where)
            return rules
        rules = Rules(self._scratch.read(*where).decode("ascii"))
        self._parsed[where] = rules
        self._parsed_bytes += where[1]
        while self._parsed_bytes > _PARSED_BYTES and len(self._parsed) > 1:
            (_, size), _ = self._parsed.popitem(last=False)
            self._parsed_bytes -= size
        return rules
