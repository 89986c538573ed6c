"""A loopback origin that behaves as told: raw sockets, many host names, one port."""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from vila_data.core.layout import Part
from vila_data.core.records import ImageRef, Record

Handler = Callable[["Request"], Awaitable[None]]


@dataclass
class Request:
    host: str
    path: str
    headers: dict[str, str]
    writer: asyncio.StreamWriter
    count: int  # of requests for this host and path so far, this one included

    async def send(self, body: bytes = b"", status: int = 200, headers: dict[str, str] | None = None) -> None:
        lines = {"Content-Length": str(len(body)), **(headers or {})}
        await self.raw(head(status, lines) + body)

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()


def head(status: int, headers: dict[str, str]) -> bytes:
    return f"HTTP/1.1 {status} X\r\n{''.join(f'{k}: {v}' + chr(13) + chr(10) for k, v in headers.items())}\r\n".encode()


@dataclass
class Origin:
    """Serves in a thread of its own; `routes` by host name, then by path, "*" for any other."""

    tls: ssl.SSLContext | None = None
    routes: dict[str, dict[str, Handler]] = field(default_factory=dict)
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    agents: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)  # first lines of requests, a character per byte
    active: Counter[str] = field(default_factory=Counter)
    most_active: Counter[str] = field(default_factory=Counter)
    port: int = 0

    def __enter__(self) -> Origin:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=self.tls, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._end.wait()
        server.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = text.rstrip().split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
                host, path = headers["host"].rpartition(":")[0] or headers["host"], first.split(" ")[1]
                self.agents.add(headers.get("user-agent", ""))
                self.lines.append(first)
                self.seen[host, path] += 1
                await self._answer(Request(host, path, headers, writer, self.seen[host, path]))
                if headers.get("connection", "").lower() == "close":
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: Request) -> None:
        routes = self.routes.get(request.host, {})
        handler = routes.get(request.path) or (missing if request.path == "/robots.txt" else routes.get("*", missing))
        self.active[request.host] += 1
        self.most_active[request.host] = max(self.most_active[request.host], self.active[request.host])
        try:
            await handler(request)
        finally:
            self.active[request.host] -= 1


async def missing(request: Request) -> None:
    await request.send(b"no", 404)


def answers(body: bytes, status: int = 200, **headers: str) -> Handler:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def handler(request: Request) -> None:
        await request.send(body, status, named)

    return handler


def in_turn(*handlers: Handler) -> Handler:
    """The n-th request gets the n-th handler, later ones the last."""

    async def handler(request: Request) -> None:
        await handlers[min(request.count, len(handlers)) - 1](request)

    return handler


def jpeg(width: int = 400, height: int = 300, seed: int = 0, quality: int = 90) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def pair(number: int, url: str, **more: object) -> Record:
    return Record(f"r{number}", "pair", (f"caption {number}",), (ImageRef(url, 0, **more),))  # type: ignore[arg-type]


def part(records: int) -> Part:
    return Part("c", 3, "meta.jsonl", "meta", 0, records, records, "inputs")
