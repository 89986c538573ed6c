from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_data.core.errors import DataError
from vila_data.core.tarcodec import (
    BLOCK,
    Member,
    TarFault,
    TarWriter,
    header,
    member_bytes,
    walk_block,
    walk_file,
    walk_foreign,
)

NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=100).filter(
    lambda name: len(name.encode()) <= 100 and not name.endswith("/")  # a slash at the end is a directory to tarfile
)
CONTENTS = st.one_of(
    st.binary(max_size=2000), st.integers(0, 3).map(lambda n: bytes(n * BLOCK)), st.just(b"\xff" * (BLOCK - 1))
)


def tar_of(members: list[tuple[str, bytes]]) -> tuple[bytes, list[Member]]:
    stream = io.BytesIO()
    writer = TarWriter(stream)
    placed = [writer.add(name, content) for name, content in members]
    writer.finish()
    assert writer.position == len(stream.getvalue())
    return stream.getvalue(), placed


SAMPLE = [("a.json", b"{}"), ("a.0.jpg", b"\xff\xd8" + bytes(600)), ("b.json", b""), ("b.0.jpg", bytes(BLOCK))]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(NAMES, CONTENTS), max_size=6))
def test_round_trip(members: list[tuple[str, bytes]]) -> None:
    data, placed = tar_of(members)
    walked = list(walk_file(io.BytesIO(data), "tar"))
    assert walked == placed
    assert [(one.name, data[one.offset : one.offset + one.size]) for one in walked] == members
    assert len(data) == sum(member_bytes(len(content)) for _, content in members) + 2 * BLOCK
    assert [(name, bytes(content)) for name, content in walk_block(data[: -2 * BLOCK])] == members
    with tarfile.open(fileobj=io.BytesIO(data), format=tarfile.USTAR_FORMAT) as tar:
        assert [info.name for info in tar] == [name for name, _ in members]


def test_tarfile_reads_every_member_and_its_facts() -> None:
    data, placed = tar_of(SAMPLE)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = tar.getmembers()
        assert [(info.name, tar.extractfile(info).read()) for info in infos] == SAMPLE  # type: ignore[union-attr]
        assert [(info.offset_data, info.size) for info in infos] == [(one.offset, one.size) for one in placed]
        assert all(info.isreg() and info.type == tarfile.REGTYPE for info in infos)
        assert {(info.mode, info.uid, info.gid, info.mtime, info.uname) for info in infos} == {(0o644, 0, 0, 0, "")}


def test_bytes_depend_on_names_and_contents_alone() -> None:
    first, _ = tar_of(SAMPLE)
    again, _ = tar_of([(name, memoryview(content)) for name, content in SAMPLE])  # type: ignore[misc]
    other, _ = tar_of([*SAMPLE[:-1], ("b.0.jpg", b"\1" + bytes(BLOCK - 1))])
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", ["", "n" * 101, "ż" * 51])
def test_a_name_that_the_format_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 100 bytes"):
        header(name, 0)


def test_a_size_that_the_format_cannot_hold_is_refused() -> None:
    assert len(header("x" * 100, 8**11 - 1)) == BLOCK
    with pytest.raises(ValueError, match="the format allows at most"):
        header("x", 8**11)


def cut_points() -> list[int]:
    data, placed = tar_of(SAMPLE)
    boundaries = [one.offset - BLOCK for one in placed]
    return [*boundaries, *(at + 100 for at in boundaries), placed[1].offset + 5, len(data) - 2 * BLOCK, len(data) - 1]


@pytest.mark.parametrize("at", cut_points())
def test_a_cut_tar_is_an_error(at: int) -> None:
    data, _ = tar_of(SAMPLE)
    with pytest.raises(DataError, match="truncated"):
        list(walk_file(io.BytesIO(data[:at]), "the tar"))


def walked(data: bytes) -> tuple[list[Member], list[TarFault]]:
    """What of a tar of others is read, and its faults."""
    found = list(walk_foreign(io.BytesIO(data), "the tar"))
    return [one for one in found if isinstance(one, Member)], [one for one in found if isinstance(one, TarFault)]


@pytest.mark.parametrize("at", cut_points())
def test_a_tar_of_others_that_is_cut_gives_what_is_before_and_one_fault(at: int) -> None:
    data, placed = tar_of(SAMPLE)
    members, faults = walked(data[:at])
    assert members == [one for one in placed if one.offset + one.size <= at]
    assert len(faults) == 1 and "the tar: " in faults[0].text and "truncated" in faults[0].text


@given(
    st.lists(st.tuples(NAMES, CONTENTS), min_size=2, max_size=6),
    st.integers(0, 200),
    st.integers(0, 344),
    st.integers(1, 255),
)
def test_a_broken_header_costs_its_own_member_alone(
    members: list[tuple[str, bytes]], which: int, at: int, change: int
) -> None:
    data, placed = tar_of(members)
    lost = 1 + which % (len(placed) - 1)
    broken = bytearray(data)
    broken[placed[lost].offset - BLOCK + at] ^= change
    found, faults = walked(bytes(broken))
    if not faults:  # a digit of the checksum may be written otherwise
        assert found == placed and 148 <= at < 156
        return
    assert found == placed[:lost] + placed[lost + 1 :]
    ((start, text),) = ((one.at, one.text) for one in faults)
    assert start == placed[lost].offset - BLOCK and f"at byte {start}" in text
    assert f"the {member_bytes(placed[lost].size) if lost < len(placed) - 1 else len(data) - start} bytes" in text


def test_a_zeroed_header_is_no_end_and_names_may_be_any_bytes() -> None:
    data, placed = tar_of([("a.txt", b"a" * 600), ("b.txt", b"b" * 600), ("c.txt", b"c")])
    zeroed = bytearray(data)
    zeroed[placed[1].offset - BLOCK : placed[1].offset] = bytes(BLOCK)
    assert walked(bytes(zeroed))[0] == [placed[0], placed[2]] and len(walked(bytes(zeroed))[1]) == 1
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        for name in ("\xe4.jpg", "\xf6.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    members, faults = walked(stream.getvalue())
    assert [one.name for one in members] == ["\\xe4.jpg", "\\xf6.jpg"] and not faults


def test_a_size_below_nothing_is_a_broken_header() -> None:
    data, placed = tar_of(SAMPLE)
    head = bytearray(header("a.0.jpg", 1024))
    head[124:136] = b"-0000001000\0"
    head[148:156] = b"%06o\0 " % (sum(head) - sum(head[148:156]) + 8 * 32)
    at = placed[1].offset - BLOCK
    found, faults = walked(data[:at] + bytes(head) + data[at + BLOCK :])
    assert found == [placed[0], *placed[2:]] and len(faults) == 1


def test_what_does_not_begin_as_a_tar_is_an_error_of_others_too() -> None:
    for data in (b"not a tar " * 100, b"\0" * BLOCK + b"x" * BLOCK):
        with pytest.raises(DataError, match="the tar: no tar header at byte 0"):
            walked(data)
    assert [one.at for one in walked(b"")[1]] == [0] and not walked(bytes(2 * BLOCK))[1]


@pytest.mark.parametrize("at", range(0, 345, 7))
def test_a_flipped_byte_in_a_header_is_an_error(at: int) -> None:
    data, placed = tar_of(SAMPLE)
    broken = bytearray(data)
    broken[placed[1].offset - BLOCK + at] ^= 0x41
    with pytest.raises(DataError, match="the tar: "):
        list(walk_file(io.BytesIO(broken), "the tar"))


def foreign() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("folder/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        long = tarfile.TarInfo("a.txt")
        long.size = 3
        long.pax_headers = {"comment": "of someone else"}
        tar.addfile(long, io.BytesIO(b"abc"))
    return stream.getvalue()


def test_directories_and_pax_headers_are_skipped_where_others_wrote() -> None:
    data = foreign()
    members, faults = walked(data)
    assert [(one.name, data[one.offset : one.offset + one.size]) for one in members] == [
        ("a.txt", b"abc")
    ] and not faults


def test_directories_are_errors_in_ours() -> None:
    with pytest.raises(DataError, match="not a regular file"):
        list(walk_file(io.BytesIO(foreign()), "tar"))


def test_what_is_no_tar_is_an_error() -> None:
    with pytest.raises(DataError, match="no tar header at byte 0"):
        list(walk_file(io.BytesIO(b"not a tar " * 100), "tar"))
    with pytest.raises(DataError, match="truncated"):
        list(walk_file(io.BytesIO(b""), "tar"))
