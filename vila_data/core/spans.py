"""Byte ranges of files, and the requests that fetch neighbouring ones together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """`size` bytes from `offset` of a file; `path` is relative to its store."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """`size` bytes from `offset` of a file, which hold these spans."""

    path: str
    offset: int
    size: int
    spans: tuple[Span, ...]


def merged(spans: Iterable[Span], gap: int, largest: int) -> list[Request]:
    """Requests that hold these spans, in the order of the first span of each.

    gap:     bytes between two spans that are fetched along with them rather than asked for apart.
    largest: bytes of a request, unless one span alone is larger.
    """
    order = {span: number for number, span in reversed(list(enumerate(spans)))}
    requests: list[Request] = []
    held: list[Span] = []
    stop = 0

    def finish() -> None:
        if held:
            requests.append(Request(held[0].path, held[0].offset, stop - held[0].offset, tuple(held)))

    for span in sorted(order):
        end = span.offset + span.size
        if (
            held
            and span.path == held[0].path
            and span.offset - stop <= gap
            and max(stop, end) - held[0].offset <= largest
        ):
            held.append(span)
            stop = max(stop, end)
        else:
            finish()
            held, stop = [span], end
    finish()
    return sorted(requests, key=lambda request: min(order[span] for span in request.spans))
