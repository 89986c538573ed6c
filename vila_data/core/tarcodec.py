"""Tar archives whose bytes depend on names and contents alone, and a strict walk over them.

The writer needs no seek and knows every offset, so that members can be read back
by range. Format: POSIX ustar (IEEE Std 1003.1), fixed mode, owner and time; a name
above 100 bytes is refused, since no pax headers are written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from vila_data.core.errors import DataError

BLOCK: Final = 512
_END: Final = bytes(2 * BLOCK)
_MAX_SIZE: Final = 8**11 - 1
_NUL: Final = bytes(1)


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
        raise ValueError(f"tar member {name!r} has {size} bytes; the format ends at {_MAX_SIZE}")
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
        """Write one member and say where its content lies."""
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


def walk_file(stream: BinaryIO, what: str, strict: bool = True) -> Iterator[Member]:
    """Members of a tar in a seekable stream, reading headers only.

    strict: False skips members that are no regular file (directories, pax headers)
    and ends in silence where the archive does; for tars that others wrote.

    Raises:
        DataError: no end mark (cut at a member boundary), content past the end, a wrong
            header checksum, a member that is no regular file. `what` names the tar.
    """
    stream.seek(0, 2)
    end = stream.tell()
    at = 0
    while True:
        stream.seek(at)
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            if strict:
                raise DataError(f"{what}: ends at byte {end} without the end mark: truncated")
            return
        if block == _END[:BLOCK]:
            if strict and stream.read(BLOCK) != _END[:BLOCK]:
                raise DataError(f"{what}: end mark is cut short at byte {at}: truncated")
            return
        member, regular = _parse_header(block, at, what)
        whole = member.offset + member.size <= end
        if strict and not regular:
            raise DataError(f"{what}: member {member.name!r} is no regular file")
        if strict and not whole:
            raise DataError(f"{what}: member {member.name!r} runs past the end: truncated")
        if regular and whole:
            yield member
        at += member_bytes(member.size)


def walk_block(data: bytes | memoryview) -> Iterator[tuple[str, memoryview]]:
    """(name, content) of the members in a slice of a tar that starts at a header."""
    view = memoryview(data)
    at = 0
    while at < len(view):
        member, _ = _parse_header(bytes(view[at : at + BLOCK]), at, "record block")
        yield member.name, view[member.offset : member.offset + member.size]
        at += member_bytes(member.size)


def _parse_header(block: bytes, at: int, what: str) -> tuple[Member, bool]:
    try:
        stored = int(block[148:156].rstrip(b"\0 "), 8)
        size = int(block[124:136].rstrip(b"\0 "), 8)
        name = block[:100].rstrip(b"\0").decode()
    except ValueError as error:
        raise DataError(f"{what}: no tar header at byte {at}") from error
    if stored != sum(block) - sum(block[148:156]) + 8 * 32:
        raise DataError(f"{what}: header checksum is wrong at byte {at}")
    return Member(name, at + BLOCK, size), block[156:157] in (b"0", _NUL)
