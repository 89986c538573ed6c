"""What one request brings: a body, bounded, decompressed and on disk where memory is scarce; a redirect; or a failure."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import pyarrow as pa

from vila_data.core.fates import IMAGE_ERRORS
from vila_data.download.urls import WebURL

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
    """The memory that all bodies of a task share; what is beyond `budget` bytes goes to files in `folder`."""

    def __init__(self, folder: Path, budget: int = 64 << 20) -> None:
        self.folder = folder
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
            self._file = tempfile.TemporaryFile(dir=self._memory.folder)  # noqa: SIM115 (closed by discard)
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

    Names that are no coding (``none``, ``utf-8``, ``image/jpeg``, ``aws-chunked``) mean the bytes as they are.
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
