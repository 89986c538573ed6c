"""robots.txt (RFC 9309): fetched once per origin and task; its rules are kept on disk.

Parsed, 60 rules take 19 kB: 190 MB for 10,000 origins. So only `_PARSED_BYTES` of text are kept parsed; the text of one
origin may have 500 KiB, so it is not kept in memory either.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from vila_data.download.body import Fetched, FetchError
from vila_data.download.config import DownloadConfig
from vila_data.download.fetch import PRODUCT, Fetcher
from vila_data.download.pending import Spool
from vila_data.download.rules import Rules, own_rules, text_of
from vila_data.download.urls import WebURL

_LIMIT: Final = 500 * 1024  # RFC 9309 section 2.5
_MAX_REDIRECTS: Final = 5
_PARSED_BYTES: Final = 4 << 20

_Where = tuple[int, int]  # offset and size of the rules in the spool; size 0: everything is allowed


class Robots:
    """Whether URLs may be fetched, by their origins' robots.txt.

    4xx allows everything. 5xx, a timeout, a connection that breaks off and a redirect to where we may not go forbid
    everything, after as many further attempts as for an image. Where no connection was made, images get that error.
    """

    def __init__(self, fetcher: Fetcher, spool: Spool, config: DownloadConfig, backoff_s: float) -> None:
        self._fetcher = fetcher
        self._spool = spool
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
        return (self._spool.append(rules), len(rules)) if rules else (0, 0)

    def _rules(self, where: _Where) -> Rules:
        rules = self._parsed.get(where)
        if rules is not None:
            self._parsed.move_to_end(where)
            return rules
        rules = Rules(self._spool.read(*where).decode("ascii"))
        self._parsed[where] = rules
        self._parsed_bytes += where[1]
        while self._parsed_bytes > _PARSED_BYTES and len(self._parsed) > 1:
            (_, size), _ = self._parsed.popitem(last=False)
            self._parsed_bytes -= size
        return rules
