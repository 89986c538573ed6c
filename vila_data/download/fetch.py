"""One guarded HTTP request: addresses judged, time and size bounded, redirects handed back to the caller."""

from __future__ import annotations

import asyncio
import email.utils
import errno
import importlib.metadata
import re
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL as AnyURL

from vila_data.core.errors import RunError
from vila_data.download.addresses import (
    AddressPolicy,
    AddressRefused,
    GuardedResolver,
    Lookup,
    system_lookup,
)
from vila_data.download.body import Body, BodyMemory, Fetched, FetchError, Redirected
from vila_data.download.config import DownloadConfig
from vila_data.download.replies import MAX_HEADER_LINE, Connector
from vila_data.download.urls import WebURL, literal_address, parse_url

PRODUCT: Final = "vila-data"
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_KEEPALIVE_S: Final = 15.0
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)
_VALUED_DIRECTIVES: Final = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_CRAWLER: Final = re.compile(
    "bot(?![a-z])|crawl|spider|agent|google|bing|yahoo|slurp|yandex|baidu|duckduck|facebook|meta-|apple|gpt|openai|anthropic|claude|perplexity|vila-data"
)
"""In the names of crawlers; what else stands before a colon is taken for everyone's."""
_AGENT: Final = re.compile(r"([\w*.-]+)(?:/[\w.-]*)?\s*:")


@dataclass(frozen=True)
class Network:
    """How the outside is reached; tests and private networks replace parts of it.

    lookup:      name and port -> numeric addresses, called in a thread.
    ssl_context: what certificates are verified against; None: the system's authorities.
    backoff_s:   the first pause before another attempt, doubled for each further one.
    """

    lookup: Lookup = system_lookup
    ssl_context: ssl.SSLContext | None = None
    backoff_s: float = 0.5


def user_agent(contact: str | None) -> str:
    """``vila-data/<version>``, with the contact in brackets."""
    try:
        version = importlib.metadata.version(PRODUCT)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return f"{PRODUCT}/{version} (+{contact})" if contact else f"{PRODUCT}/{version}"


class Fetcher:
    """Requests with one connection pool; use as an async context manager."""

    def __init__(self, config: DownloadConfig, network: Network, memory: BodyMemory) -> None:
        self._config = config
        self._policy = AddressPolicy(config.allow_private_hosts)
        self._resolver = GuardedResolver(self._policy, network.lookup)
        self._memory = memory
        self._opt_out = frozenset(directive.lower() for directive in config.opt_out)
        self._session = aiohttp.ClientSession(
            connector=Connector(
                limit=0,  # the schedule limits
                ssl=network.ssl_context or True,
                resolver=self._resolver,
                use_dns_cache=False,  # the resolver's own keeps failures too
                keepalive_timeout=_KEEPALIVE_S,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            max_line_size=MAX_HEADER_LINE,
            max_field_size=MAX_HEADER_LINE,
            headers={"User-Agent": user_agent(config.contact), "Accept-Encoding": "identity"},
        )

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._resolver.close()

    async def request(
        self, url: WebURL, total_s: float, *, limit: int, close: bool = False, cut: bool = False
    ) -> Fetched | Redirected:
        """Get a URL within `total_s` seconds and `limit` bytes.

        close: nothing else is expected from this host, give the connection back.
        cut:   a longer body is cut at the limit instead of failing, and opt-outs do not count (robots.txt).

        Raises:
            FetchError: whatever else became of it.
            RunError: this machine is out of file descriptors.
        """
        self._judge_literal(url)
        exact = AnyURL.build(scheme=url.scheme, authority=url.authority, path=url.target, encoded=True)
        timeout = aiohttp.ClientTimeout(
            total=max(total_s, 0.001), sock_connect=self._config.idle_timeout_s, sock_read=self._config.idle_timeout_s
        )
        headers = {"Connection": "close"} if close else None
        code: int | None = None
        try:
            async with self._session.get(exact, timeout=timeout, allow_redirects=False, headers=headers) as response:
                code = response.status
                if code in _REDIRECTS and "Location" in response.headers:
                    return Redirected(parse_url(response.headers["Location"], url), code)
                if code != 200:
                    raise _status_error(code, response.headers.get("Retry-After"))
                if not cut and opted_out(response.headers.getall("X-Robots-Tag", ()), self._opt_out):
                    raise FetchError("opted_out")
                return Fetched(await self._body(response, limit, cut), code)
        except FetchError as error:
            error.http_code = error.http_code or code
            raise
        except (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError, ssl.SSLError, UnicodeError) as error:
            raise _classified(error, code) from error

    async def _body(self, response: aiohttp.ClientResponse, limit: int, cut: bool) -> Body:
        if not cut and (response.content_length or 0) > limit:
            raise FetchError("too_large")
        encoding = ",".join(response.headers.getall("Content-Encoding", ()))
        body = self._memory.body(limit, encoding, cut)
        try:
            async for chunk in response.content.iter_any():
                body.add(chunk)
                if body.full:
                    response.close()
                    break
            body.finish()
        except BaseException:  # cancellation too: the shared memory is given back, the error goes on
            body.discard()
            raise
        return body

    def _judge_literal(self, url: WebURL) -> None:
        """Judge a URL whose host is an address, which the resolver never sees.

        Raises:
            FetchError: the address is not public.
        """
        if literal_address(url.host) is not None and not self._policy.permits(url.host, url.port, [url.host]):
            raise FetchError("address_refused", connected=False)


def _classified(error: Exception, code: int | None) -> FetchError:
    """The error class of what the client raised.

    Raises:
        RunError: it is this machine's fault.
    """
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and cause.errno in _OUT_OF_DESCRIPTORS:
        raise RunError("download: out of file descriptors; raise `ulimit -n` or lower download.concurrency") from error
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return FetchError("address_refused" if isinstance(cause, AddressRefused) else "dns", code, connected=False)
    if isinstance(error, (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch, ssl.SSLError)):
        return FetchError("tls", code, connected=False)
    if isinstance(error, asyncio.TimeoutError):
        connected = not isinstance(error, aiohttp.ConnectionTimeoutError)
        return FetchError("timeout", code, retryable=True, connected=connected)
    if isinstance(error, aiohttp.ClientConnectorError):
        reset = isinstance(cause, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError))
        return FetchError("connection_lost" if reset else "connect", code, retryable=reset, connected=False)
    if isinstance(error, (aiohttp.InvalidURL, UnicodeError)):
        return FetchError("bad_url", code)
    if isinstance(error, aiohttp.ClientResponseError):
        return FetchError("bad_response", code)
    return FetchError("connection_lost", code, retryable=True)


def _status_error(code: int, retry_after: str | None) -> FetchError:
    retryable = code == 429 or code >= 500
    return FetchError("http_status", code, retryable, parse_retry_after(retry_after) if retryable else None)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds to wait from a Retry-After header, given in seconds or as an HTTP date; None where it says neither."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = email.utils.parsedate_to_datetime(text)
        return max(0.0, when.timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def opted_out(headers: Iterable[str], directives: frozenset[str]) -> bool:
    """Whether X-Robots-Tag headers carry one of `directives` (lower case) for everyone or for this agent.

    In a header, ``agent:`` limits the directives after it to that agent; an unknown name that is not a crawler's limits
    nothing. ``none`` means noindex and nofollow.
    """
    for header in headers:
        applies = True
        for token in header.lower().replace(";", ",").split(","):
            text = token.strip()
            agent = _AGENT.match(text)
            if agent is not None and agent[1] not in _VALUED_DIRECTIVES:
                applies = agent[1] == PRODUCT or _CRAWLER.search(agent[1]) is None
                text = text[agent.end() :]
            words = set() if text.lstrip().startswith(_VALUED_DIRECTIVES) else set(text.split())
            if "none" in words:
                words |= {"noindex", "nofollow"}
            if applies and not words.isdisjoint(directives):
                return True
    return False
