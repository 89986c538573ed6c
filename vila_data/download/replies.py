"""Response heads that other clients read and aiohttp's parser refuses: the same Content-Length given more than once."""

from __future__ import annotations

import functools
import re
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

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
