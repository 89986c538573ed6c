"""An HTTP proxy in front of an object store that spoils answers by a plan: which answer is spoilt, and how,
depends only on the seed, the request and how often it was made before.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

ERRORS = {
    "503": (503, "SlowDown"),
    "500": (500, "InternalError"),
    "403": (403, "AccessDenied"),
}
BODY_CUTS = ("cut", "short", "reset in the body")
TRANSIENT = ("503", "500", "reset", *BODY_CUTS)


class FaultyProxy:
    """Forwards to a server on loopback; `faults` counts what was done to answers (of HEAD: "HEAD " and the kind), `requests` what was asked.

    kinds: of ERRORS, BODY_CUTS, "reset" and "stall" (no answer at all). share: of a request's first `streak` askings that are
    spoilt; afterwards it is forwarded, so a client that asks more often gets its answer.
    """

    def __init__(
        self, host: str, port: int, *, kinds: Sequence[str] = TRANSIENT, share: float, streak: int = 3, seed: int = 0
    ) -> None:
        self.faults: Counter[str] = Counter()
        self.requests = 0
        self._upstream = (host, port)
        self.share = share
        self._plan = (tuple(kinds), streak, seed)
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fault(self, method: str, request: str) -> str | None:
        """What is done to an answer; an answer to HEAD has no body that could be cut."""
        kinds, streak, seed = self._plan
        request = f"{method} {request}"
        with self._lock:
            self.requests += 1
            asked = self._asked[request]
            self._asked[request] += 1
            random = Random(f"{seed} {request} {asked}")
            if asked >= streak or random.random() >= self.share:
                return None
            kind = random.choice(kinds)
            if method == "HEAD" and kind in BODY_CUTS:
                return None
            self.faults[kind if method == "GET" else f"HEAD {kind}"] += 1
            return kind

    def forward(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self._upstream)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            fault = proxy.fault(self.command, f"{self.path} {self.headers.get('Range')}")
            if fault == "stall":
                proxy.closing.wait(30)
                self.close_connection = True
            elif fault == "reset":
                self.reset()
            elif fault in ERRORS:
                status, code = ERRORS[fault]
                body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by plan</Message></Error>".encode()
                self.answer(status, [("Content-Type", "application/xml")], len(body), body)
            else:
                status, headers, body = proxy.forward(self.command, self.path, dict(self.headers))
                stated = next((int(value) for name, value in headers if name.lower() == "content-length"), len(body))
                half = body[: len(body) // 2]
                if fault == "short":
                    self.answer(status, headers, len(half), half)
                elif fault:
                    self.answer(status, headers, stated, half)
                    self.reset() if fault == "reset in the body" else None
                    self.close_connection = True
                else:
                    self.answer(status, headers, stated, body)

        do_HEAD = do_GET

        def answer(self, status: int, headers: list[tuple[str, str]], stated: int, body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(stated))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
                self.wfile.flush()

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def finish(self) -> None:
            with suppress(OSError, ValueError):  # the connection was reset, by plan or by a client that gave up
                super().finish()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
