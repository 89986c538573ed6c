"""A single guarded HTTP request: checks addresses, limits time and size, and returns redirects to the caller."""

from __future__ import annotations

import asyncio
import email.utils
import errno
import functools
import importlib.metadata
import re
import ssl
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import aiohttp
import pyarrow as pa
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL as AnyURL

from vila_data.core.errors import RunError
from vila_data.core.fates import IMAGE_ERRORS
from vila_data.download.addresses import (
    AddressPolicy,
    AddressRefused,
    GuardedResolver,
    Lookup,
    system_lookup,
)
from vila_data.download.config import DownloadConfig
from vila_data.download.urls import WebURL, literal_address, parse_url

_CHUNKED: Final = ("gzip", "x-gzip", "deflate")  # decoded as they arrive
_WHOLE: Final = {"br": "brotli", "zstd": "zstd"}  # decoded at their end; pyarrow's names
_PIECE: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Redirected:
    """An answer that names another URL; None where it cannot be read as one."""

    url: WebURL | None
    http_code: int


class FetchError(Exception):
    """A request that brought no body.

    error_class:   one of core.fates.IMAGE_ERRORS.
    retryable:     another attempt may succeed.
    retry_after_s: the server's wish, in seconds; None where it has none.
    connected:     a connection was made, as far as is known.
    """

    def __init__(
        self,
        error_class: str,
        http_code: int | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
        connected: bool = True,
    ) -> None:
        if error_class not in IMAGE_ERRORS:
            raise ValueError(f"no such image error: {error_class}")
        super().__init__(error_class)
        self.error_class = error_class
        self.http_code = http_code
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.connected = connected


class BodyMemory:
    """The memory that all bodies of a task share; what is beyond `budget` bytes goes to files in `directory`."""

    def __init__(self, directory: Path, budget: int = 64 << 20) -> None:
        self.directory = directory
        self.budget = budget
        self.used = 0

    def body(self, limit: int, encoding: str, cut: bool = False) -> Body:
        """An empty body of at most `limit` bytes, with the Content-Encoding `encoding`.

        cut: a longer body is cut at the limit instead of failing.
        """
        return Body(self, limit, encoding, cut)


class Body:
    """Bytes of one response. Call `take` once, or `discard`.

    full: it was cut at its limit; what is added further is ignored.
    """

    def __init__(self, memory: BodyMemory, limit: int, encoding: str, cut: bool = False) -> None:
        self._memory = memory
        self._limit = limit
        self._cut = cut
        coding = _coding(encoding)
        self._decoder = _Decoder(coding) if coding in _CHUNKED else None
        self._codec = _WHOLE.get(coding)
        self._chunks: list[bytes] = []
        self._held = 0
        self._file: IO[bytes] | None = None
        self.size = 0
        self.full = False

    def add(self, chunk: bytes) -> None:
        """Append received bytes.

        Raises:
            FetchError: too_large, or bad_response for broken compression.
            OSError: no space for the file.
        """
        if self.full:
            return
        if self._decoder is not None:
            chunk = self._decoder.decode(chunk, self._limit + 1 - self.size)
        if self._cut and self.size + len(chunk) > self._limit:
            chunk, self.full = chunk[: self._limit - self.size], True
        self.size += len(chunk)
        if self.size > self._limit:
            raise FetchError("too_large")
        self._hold(chunk)

    def _hold(self, chunk: bytes) -> None:
        if self._file is None and self._memory.used + len(chunk) <= self._memory.budget:
            self._chunks.append(chunk)
            self._held += len(chunk)
            self._memory.used += len(chunk)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._memory.directory)  # noqa: SIM115 (closed by discard)
            self._file.writelines(self._chunks)
            self._release()
        self._file.write(chunk)

    def finish(self) -> None:
        """Decode what can only be decoded whole, and check that compression ended well.

        Raises:
            FetchError: connection_lost, the compressed data is cut short; or as `add` does.
        """
        if self._decoder is not None and self.size and not self._decoder.ended and not self.full:
            raise FetchError("connection_lost", retryable=True)
        if self._codec is not None:
            data, codec = self.take(), self._codec
            self._codec, self.size, self.full = None, 0, False
            for chunk in _decompressed(data, codec):
                self.add(chunk)
                if self.full:
                    return

    def take(self) -> bytes:
        """The whole body, which gives its memory back."""
        if self._file is None:
            data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        else:
            self._file.seek(0)
            data = self._file.read()
        self.discard()
        return data

    def discard(self) -> None:
        """Give memory and file back."""
        self._release()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _release(self) -> None:
        self._memory.used -= self._held
        self._held = 0
        self._chunks = []


@dataclass(frozen=True, slots=True)
class Fetched:
    """A 200 with its whole body."""

    body: Body
    http_code: int


def _coding(encoding: str) -> str:
    """The one coding of a Content-Encoding that is to be undone, or an empty text.

    Names that are not a coding (``none``, ``utf-8``, ``image/jpeg``, ``aws-chunked``) mean the bytes as they are.
    """
    if not encoding:
        return ""
    names = [name.strip().lower() for name in encoding.split(",")]
    known = [name for name in names if name in _CHUNKED or name in _WHOLE]
    if len(known) > 1:
        raise FetchError("bad_response")
    return known[0] if known else ""


def _decompressed(data: bytes, codec: str) -> Iterator[bytes]:
    """Pieces of `data` decompressed; a caller that has enough stops."""
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), codec) as stream:
            while data and (piece := stream.read(_PIECE)):
                yield piece
    except OSError as error:
        if "truncated" in str(error).lower():
            raise FetchError("connection_lost", retryable=True) from error
        raise FetchError("bad_response") from error


class _Decoder:
    """gzip and deflate (with or without zlib's header), never more than asked for."""

    def __init__(self, encoding: str) -> None:
        self._inflate = zlib.decompressobj(15 if encoding == "deflate" else 31)
        self._may_be_raw = encoding == "deflate"
        self.ended = False

    def decode(self, chunk: bytes, limit: int) -> bytes:
        """At most `limit` bytes out of `chunk`; a caller that gets `limit` stops reading."""
        if self.ended:
            return b""
        try:
            decoded = self._inflate.decompress(chunk, limit)
        except zlib.error as error:
            if not self._may_be_raw:
                raise FetchError("bad_response") from error
            self._may_be_raw = False
            self._inflate = zlib.decompressobj(-15)
            return self.decode(chunk, limit)
        self._may_be_raw = False
        rest = self._inflate.unused_data
        if self._inflate.eof and rest[:2] == b"\x1f\x8b" and len(decoded) < limit:  # gzip may have several members
            self._inflate = zlib.decompressobj(31)
            return decoded + self.decode(rest, limit - len(decoded))
        self.ended = self._inflate.eof
        return decoded


MAX_HEADER_LINE: Final = 1 << 16  # bytes
_MAX_HEAD: Final = 1 << 18
_MOST_INTERIM: Final = 100
_VERSION: Final = b"HTTP/"
_END: Final = re.compile(rb"\r?\n\r?\n")
_LENGTH: Final = re.compile(rb"(?im)^content-length[ \t]*:([^\r\n]*)\r?\n")


class Connector(aiohttp.TCPConnector):
    """aiohttp's connector, with connections that read such heads."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        reply: type[ResponseHandler] = Reply
        self._factory = functools.partial(reply, loop=self._loop)


class Reply(ResponseHandler):
    """A connection that hands heads of responses to the parser whole, after `single_length`."""

    _head: bytearray | None = None  # what has come of the head; None: a body, or nothing, is awaited
    _interim = 0

    def set_response_params(self, **options: Any) -> None:
        """Await a response."""
        self._head, self._interim = bytearray(), 0
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a response."""
        if self._head is None or not data:
            super().data_received(data)
            return
        searched = max(0, len(self._head) - 3)
        self._head += data
        end = _END.search(self._head, searched)
        if end is not None:
            self._pass_on(bytes(self._head), end.end())
        elif not self._head.startswith(_VERSION[: len(self._head)]):
            head, self._head = bytes(self._head), None
            super().data_received(head)  # no HTTP: the parser says so
        elif len(self._head) > _MAX_HEAD:
            self._refuse(f"a head of more than {_MAX_HEAD} bytes")
        else:
            self.start_timeout()

    def _pass_on(self, data: bytes, end: int) -> None:
        """Hand on a head and what follows it: the body, or further heads where this one is interim (100 or 103)."""
        while data[9:10] == b"1" and data[9:12] != b"101":
            self._interim += 1
            if self._interim > _MOST_INTERIM:
                self._refuse(f"more than {_MOST_INTERIM} interim responses")
                return
            super().data_received(single_length(data[:end]))
            data = data[end:]
            following = _END.search(data)
            if following is None:
                self._head = bytearray()
                if data:
                    self.data_received(data)
                return
            end = following.end()
        self._head = None
        super().data_received(single_length(data[:end]) + data[end:])

    def _refuse(self, message: str) -> None:
        if self.transport is not None:
            self.transport.close()
        self.set_exception(HttpProcessingError(message=message))


def single_length(head: bytes) -> bytes:
    """A head with one Content-Length instead of several equal ones; differing ones are left for the parser to refuse."""
    found = list(_LENGTH.finditer(head))
    values = {value.strip() for line in found for value in line[1].split(b",")}
    if len(values) != 1 or (len(found) == 1 and b"," not in found[0][1]):
        return head
    first = found[0].start()
    rest = _LENGTH.sub(b"", head[first:])
    return head[:first] + b"Content-Length: " + values.pop() + b"\r\n" + rest


PRODUCT: Final = "vila-data"
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_KEEPALIVE_S: Final = 15.0
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)
_VALUED_DIRECTIVES: Final = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_CRAWLER: Final = re.compile(
    "bot(?![a-z])|crawl|spider|agent|google|bing|yahoo|slurp|yandex|baidu|duckduck|facebook|meta-|apple|gpt|openai|anthropic|claude|perplexity|vila-data"
)
"""In the names of crawlers; anything else before a colon is taken to apply to all agents."""
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
            FetchError: the request failed.
            RunError: this machine is out of file descriptors.
        """
        self._check_literal(url)
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
        except BaseException:  # cancellation too: the shared memory is given back, the error is raised again
            body.discard()
            raise
        return body

    def _check_literal(self, url: WebURL) -> None:
        """Check a URL whose host is an IP address, which the resolver never sees.

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
