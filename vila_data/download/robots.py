"""robots.txt (RFC 9309): asked for once an origin and task, kept on disk, judged by protego."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from protego import Protego
from yarl import URL

from vila_data.download.body import Fetched
from vila_data.download.fetch import PRODUCT, Fetcher
from vila_data.download.outcome import FetchError
from vila_data.download.spool import Spool

_LIMIT: Final = 500 * 1024  # RFC 9309 section 2.5
_MAX_REDIRECTS: Final = 5
_PARSED: Final = 128
_MAX_WILDCARDS: Final = 8  # in one rule; more would cost the matcher polynomial time

_ALLOW_ALL: Final = (0, 0)
_DISALLOW_ALL: Final = (0, -1)


class Robots:
    """Whether URLs may be fetched, by their origins' robots.txt.

    4xx and an origin that cannot be reached allow everything, 5xx forbids everything.
    """

    def __init__(self, fetcher: Fetcher, spool: Spool, timeout_s: float) -> None:
        self._fetcher = fetcher
        self._spool = spool
        self._timeout_s = timeout_s
        self._origins: dict[str, asyncio.Future[tuple[int, int]]] = {}
        self._parsed: OrderedDict[tuple[int, int], Protego] = OrderedDict()

    def known(self, url: URL) -> bool:
        """Whether the origin's rules are here already."""
        future = self._origins.get(str(url.origin()))
        return future is not None and future.done()

    async def allows(self, url: URL) -> bool:
        """Whether robots.txt lets this agent fetch `url`; the first call for an origin fetches the rules."""
        origin = str(url.origin())
        future = self._origins.get(origin)
        if future is None:
            future = asyncio.ensure_future(self._load(URL(origin) / "robots.txt"))
            self._origins[origin] = future
        where = await asyncio.shield(future)
        if where[1] <= 0:
            return where == _ALLOW_ALL
        return bool(self._rules(where).can_fetch(str(url), PRODUCT))

    async def _load(self, url: URL) -> tuple[int, int]:
        """(offset, size) of the rules in the spool; size 0: all allowed, -1: nothing."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        target: URL | None = url
        for _ in range(_MAX_REDIRECTS + 1):
            if target is None:
                return _ALLOW_ALL
            try:
                outcome = await self._fetcher.request(target, deadline - loop.time(), limit=_LIMIT, cut=True)
            except FetchError as error:
                broken = error.error_class == "http_status" and (error.http_code or 0) >= 500
                return _DISALLOW_ALL if broken else _ALLOW_ALL
            if isinstance(outcome, Fetched):
                text = simplified(outcome.body.take())
                return (self._spool.append(text), len(text)) if text else _ALLOW_ALL
            target = outcome.url
        return _ALLOW_ALL

    def _rules(self, where: tuple[int, int]) -> Protego:
        rules = self._parsed.get(where)
        if rules is None:
            rules = Protego.parse(self._spool.read(*where).decode("utf-8", "replace"))
            self._parsed[where] = rules
            if len(self._parsed) > _PARSED:
                self._parsed.popitem(last=False)
        else:
            self._parsed.move_to_end(where)
        return rules


def simplified(content: bytes) -> bytes:
    """The lines of robots.txt that say who may fetch what; empty where nothing is forbidden."""
    kept, forbids = [], False
    for line in content.removeprefix(b"\xef\xbb\xbf").splitlines():
        text = line.split(b"#", 1)[0].strip()
        field, _, value = text.partition(b":")
        name = field.strip().lower()
        if name not in (b"user-agent", b"useragent", b"user agent", b"allow", b"disallow"):
            continue
        if value.count(b"*") > _MAX_WILDCARDS or len(value) > 2048:
            continue
        forbids = forbids or (name == b"disallow" and bool(value.strip()))
        kept.append(text)
    return b"\n".join(kept) if forbids else b""
