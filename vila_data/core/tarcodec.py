"""Tar archives whose bytes depend on names and contents alone, and a strict walk over them; and
a walk over those of others, which reports what is broken and continues.

The writer needs no seek and knows every offset, so that members can be read back
by range. Format: POSIX ustar (IEEE Std 1003.1), fixed mode, owner and time; a name
above 100 bytes is refused, since no pax headers are written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, Final

from vila_data.core.errors import DataError

BLOCK: Final = 512
_END: Final = bytes(2 * BLOCK)
_MAX_SIZE: Final = 8**11 - 1
_NUL: Final = bytes(1)
_SEARCHED: Final = 1 << 20  # bytes of one read where a header is looked for; whole blocks


@dataclass(frozen=True, slots=True)
class Member:
    """A tar member: `offset` and `size`, in bytes, of its content."""

    name: str
    offset: int
    size: int


def member_bytes(size: int) -> int:
    """Bytes that a member of `size` bytes takes in a tar: header, content, padding."""
    return BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK


def header(name: str, size: int) -> bytes:
    """The 512-byte ustar header of a regular file.

    Raises:
        ValueError: name empty or above 100 bytes, or size above 8 GiB.
    """
    encoded = name.encode()
    if not 0 < len(encoded) <= 100:
        raise ValueError(f"tar member name must have 1 to 100 bytes: {name!r}")
    if size > _MAX_SIZE:
        raise ValueError(f"tar member {name!r} has {size} bytes; the format allows at most {_MAX_SIZE}")
    head = b"".join(
        (
            encoded.ljust(100, _NUL),
            _octal(0o644, 8) + _octal(0, 8) + _octal(0, 8),  # mode, uid, gid
            _octal(size, 12) + _octal(0, 12),  # size, mtime
            b" " * 8,  # checksum, as spaces while it is computed
            b"0" + bytes(100),  # regular file, no link
            b"ustar" + _NUL + b"00",
            bytes(32 + 32),  # owner names
            _octal(0, 8) + _octal(0, 8),  # device
            bytes(155 + 12),
        )
    )
    return head[:148] + _octal(sum(head), 7) + b" " + head[156:]


def _octal(value: int, width: int) -> bytes:
    return (b"%0*o" % (width - 1, value)) + _NUL


class TarWriter:
    """Append members to a binary stream; `position` is the offset of the next header."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.position = 0

    def add(self, name: str, content: bytes | memoryview) -> Member:
        """Write one member and return where its content is."""
        size = len(content)
        self._stream.write(header(name, size))
        self._stream.write(content)
        if size % BLOCK:
            self._stream.write(bytes(BLOCK - size % BLOCK))
        member = Member(name, self.position + BLOCK, size)
        self.position += member_bytes(size)
        return member

    def finish(self) -> None:
        """Write the two zero blocks that end an archive: without them it is truncated."""
        self._stream.write(_END)
        self.position += len(_END)


@dataclass(frozen=True, slots=True)
class TarFault:
    """Where a tar of another tool is broken: `at`, in bytes; `text` names the tar, the place and what is lost."""

    at: int
    text: str


def walk_file(stream: BinaryIO, what: str) -> Iterator[Member]:
    """Members of a tar in a seekable stream, reading headers only.

    Raises:
        DataError: no end marker (cut at a member boundary), content past the end, a wrong
            header checksum, a member that is not a regular file. `what` names the tar.
    """
    stream.seek(0, 2)
    end = stream.tell()
    at = 0
    while True:
        stream.seek(at)
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise DataError(f"{what}: ends at byte {end} without the end-of-archive marker: truncated")
        if block == _END[:BLOCK]:
            if stream.read(BLOCK) != _END[:BLOCK]:
                raise DataError(f"{what}: end-of-archive marker is cut short at byte {at}: truncated")
            return
        member, regular = _parse_header(block, at, what)
        if not regular:
            raise DataError(f"{what}: member {member.name!r} is not a regular file")
        if member.offset + member.size > end:
            raise DataError(f"{what}: member {member.name!r} runs past the end: truncated")
        yield member
        at += member_bytes(member.size)


def walk_foreign(stream: BinaryIO, what: str) -> Iterator[Member | TarFault]:
    """Members of a tar of another tool, and each fault in its place: after a broken header the next one is looked for.

    Members that are not regular files (directories, pax headers) are skipped. Where the tar is cut, what is before
    the break comes, then one fault. tarfile, and with it webdataset, ends silently at a broken header: of 6 members
    it gave the 2 before it (tests/corpora/test_pipes.py), so neither reads other tools' tars here.

    Raises:
        DataError: it does not begin with a header: no tar, or nothing in it can be trusted.
    """
    end = stream.seek(0, 2)
    at = 0
    while True:
        stream.seek(at)
        block = stream.read(2 * BLOCK)
        if block == _END:
            return
        if len(block) < BLOCK or (not any(block) and at + len(block) == end):
            yield TarFault(at, f"{what}: ends at byte {end} without the end-of-archive marker: truncated")
            return
        try:
            member, regular = _parse_header(block[:BLOCK], at, what, "backslashreplace")
        except DataError as error:
            if not at:
                raise
            found = _next_header(stream, at + BLOCK)
            extent = "to the end" if found is None else "to the next header"
            yield TarFault(at, f"{error}; the {(found or end) - at} bytes {extent} are lost")
            if found is None:
                return
            at = found
            continue
        if member.offset + member.size > end:
            yield TarFault(at, f"{what}: member {member.name!r} at byte {at} runs past the end: truncated")
            return
        if regular:
            yield member
        at += member_bytes(member.size)


def sample_key(member: str) -> tuple[str, str]:
    """A member's key and suffix, as WebDataset splits names: at the first dot after the last slash.

    Importing webdataset for its own takes 1.8 s of CPU, since it imports torch; a test holds the two to each other.
    """
    directory, base = os.path.split(member)
    stem, _, suffix = base.partition(".")
    return f"{directory}/{stem}" if directory else stem, suffix


def _next_header(stream: BinaryIO, at: int) -> int | None:
    """The first block from `at` on that is a ustar header."""
    stream.seek(at)
    while chunk := stream.read(_SEARCHED):
        for first in range(0, len(chunk) - BLOCK + 1, BLOCK):
            if chunk[first + 257 : first + 262] == b"ustar":
                with suppress(DataError):
                    _parse_header(chunk[first : first + BLOCK], at + first, "", "backslashreplace")
                    return at + first
        at += len(chunk)
    return None


def walk_block(data: bytes | memoryview) -> Iterator[tuple[str, memoryview]]:
    """(name, content) of the members in a slice of a tar that starts at a header."""
    view = memoryview(data)
    at = 0
    while at < len(view):
        member, _ = _parse_header(bytes(view[at : at + BLOCK]), at, "record block")
        yield member.name, view[member.offset : member.offset + member.size]
        at += member_bytes(member.size)


def _parse_header(block: bytes, at: int, what: str, errors: str = "strict") -> tuple[Member, bool]:
    """errors: how to treat a name that is not UTF-8, as bytes.decode takes it."""
    try:
        stored = int(block[148:156].rstrip(b"\0 "), 8)
        size = int(block[124:136].rstrip(b"\0 "), 8)
        name = block[:100].rstrip(b"\0").decode(errors=errors)
        if size < 0:
            raise ValueError(size)
    except ValueError as error:
        raise DataError(f"{what}: no tar header at byte {at}") from error
    if stored != sum(block) - sum(block[148:156]) + 8 * 32:
        raise DataError(f"{what}: header checksum is wrong at byte {at}")
    return Member(name, at + BLOCK, size), block[156:157] in (b"0", _NUL)
