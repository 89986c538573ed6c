"""Serves the sample web on loopback: its files, its dead ends, its slow and its busy answers. Standard library only.

    python shards/sample/serve.py [--port 8765] [-- COMMAND ARGS...]

With a COMMAND it serves while the command runs and exits with its status; without
one it serves until interrupted. `site/behaviour.json` says what happens at which
path; a path that is busy the first time is so once per server, so every fresh
server behaves alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

SITE = Path(__file__).resolve().parent / "site"
DEFAULT_PORT = 8765
ADDRESS = "127.0.0.1"
LARGEST_HEAD_BYTES = 64 * 1024
CHUNK = bytes(64 * 1024)
TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass
class Answer:
    """One answer: `zeros` bytes of nothing follow the body."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    zeros: int = 0
    delay_s: float = 0.0


class Site:
    """The files of a folder, held in memory, and what happens at which path."""

    def __init__(self, folder: Path = SITE) -> None:
        self._behaviours: dict[str, dict[str, Any]] = json.loads((folder / "behaviour.json").read_text("utf-8"))
        self._files = {
            "/" + path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "behaviour.json"
        }
        self._seen: set[str] = set()

    def answer(self, target: str) -> Answer:
        """What a GET of `target` (path and query) gets now; the first time may differ from the next."""
        path = unquote(urlsplit(target).path)
        entry = self._behaviours.get(path, {})
        if "first" in entry and path not in self._seen:
            self._seen.add(path)
            entry = entry["first"]
        headers = dict(entry.get("headers", {}))
        if "location" in entry:
            headers["Location"] = entry["location"]
        status = entry.get("status", 200)
        file = entry.get("file", path)
        if status == 200 and file not in self._files and "zeros" not in entry:
            status = 404
        if status != 200:
            headers["Content-Type"] = "text/plain; charset=utf-8"
            return Answer(status, headers, f"{status} {HTTPStatus(status).phrase}\n".encode())
        kind = TYPES.get(Path(file).suffix, "application/octet-stream")
        headers["Content-Type"] = entry.get("type", kind)
        body, zeros = self._files.get(file, b""), entry.get("zeros", 0)
        return Answer(200, headers, body, zeros, entry.get("delay_s", 0.0))


async def _send(writer: asyncio.StreamWriter, answer: Answer, with_body: bool, keep: bool) -> None:
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    lines += [f"Content-Length: {len(answer.body) + answer.zeros}", f"Connection: {'keep-alive' if keep else 'close'}"]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    if answer.delay_s:
        await asyncio.sleep(answer.delay_s)
    writer.write(head + answer.body if with_body else head)
    left = answer.zeros if with_body else 0
    while left > 0:
        writer.write(CHUNK[:left])
        left -= len(CHUNK)
        await writer.drain()
    await writer.drain()


async def _converse(site: Site, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection, one after the other, until either side closes."""
    keep = True
    while keep:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *headers = head.rstrip().split("\r\n")
        method, target, version = request.split(" ", 2)
        closing = any(line.lower().replace(" ", "") == "connection:close" for line in headers)
        keep = version == "HTTP/1.1" and not closing
        if method in ("GET", "HEAD"):
            answer = site.answer(target)
        else:
            answer, keep = Answer(405, {"Allow": "GET, HEAD"}), False
        await _send(writer, answer, method != "HEAD", keep)


def _connection(site: Site) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A client that leaves, or says what is no HTTP, ends its own connection and nothing else.
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
                await _converse(site, reader, writer)
        except asyncio.CancelledError:
            pass  # the server is closing
        finally:
            writer.close()

    return connected


async def _serve(site: Site, port: int, started: Callable[[int, Callable[[], object]], None]) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    server = await asyncio.start_server(_connection(site), ADDRESS, port, limit=LARGEST_HEAD_BYTES, backlog=1024)
    started(server.sockets[0].getsockname()[1], partial(loop.call_soon_threadsafe, stop.set))
    await stop.wait()
    server.close()


@contextmanager
def serving(port: int = 0, folder: Path = SITE) -> Iterator[str]:
    """Serve a fresh site from a thread and give its base URL; port 0 takes a free one. OSError where it cannot."""
    ready = threading.Event()
    running: list[tuple[int, Callable[[], object]]] = []
    errors: list[OSError] = []

    def started(found: int, stop: Callable[[], object]) -> None:
        running.append((found, stop))
        ready.set()

    def work() -> None:
        try:
            asyncio.run(_serve(site, port, started))
        except OSError as error:
            errors.append(error)
        finally:
            ready.set()

    site = Site(folder)
    thread = threading.Thread(target=work, name="sample web", daemon=True)
    thread.start()
    ready.wait()
    if errors:
        thread.join()
        raise errors[0]
    bound, stop = running[0]
    try:
        yield f"http://{ADDRESS}:{bound}"
    finally:
        stop()
        thread.join()


def run_command(command: list[str]) -> int:
    """Run a command to its end; its exit status as a shell gives it."""
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        print(f"serve.py: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt:  # the command has it too, and decides when it ends
            continue
        return status if status >= 0 else 128 - status


def main(arguments: list[str]) -> int:
    """Serve; the exit status is the command's, or 2 where the port cannot be had."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    own, command = arguments[:split], arguments[split + 1 :]
    parser = argparse.ArgumentParser(usage="serve.py [--port PORT] [-- COMMAND ARGS...]", description=__doc__)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    port = parser.parse_args(own).port
    try:
        with serving(port) as base_url:
            if command:
                return run_command(command)
            ended = threading.Event()
            signal.signal(signal.SIGTERM, lambda *_: ended.set())  # a shell's background jobs don't hear SIGINT
            print(f"serving the sample web at {base_url} until interrupted", flush=True)
            with suppress(KeyboardInterrupt):
                ended.wait()
    except OSError as error:
        print(f"serve.py: cannot listen on {ADDRESS}:{port} ({error.strerror or error}); free it", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
