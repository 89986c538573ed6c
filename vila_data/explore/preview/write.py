"""Writing a preview page: as large as its pictures may be under a limit of bytes, whole or not at all."""

from __future__ import annotations

import itertools
import os
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from vila_data.core.errors import DataError, StorageError, UsageError
from vila_data.core.store import Store
from vila_data.explore.preview.draw import draw
from vila_data.explore.preview.values import ROOMS, PreviewPage, Room, Tally
from vila_data.explore.thumbnail import data_uri

_TRIED: Final = 16
"""Pictures made small to guess what all of them take."""
_SURE: Final = 0.95
"""A room is tried where the guess is so much of what is too large."""
_SMALL_PX: Final = 200
"""Below this the page says that its pictures are small."""


@dataclass(frozen=True, slots=True)
class Written:
    """A page that was written: how much room it took, and all that it says beside its records."""

    bytes: int
    notes: tuple[str, ...]
    room: Room
    tally: Tally


def check_target(target: str) -> None:
    """Assert that a page can be written there.

    Raises:
        UsageError: its folder is not there, or it is a folder itself.
    """
    if "://" in target:
        return
    path = Path(target)
    if path.is_dir():
        raise UsageError(f"--out {target}: is a folder; give a file, such as {path / 'page.html'}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--out {target}: there is no folder {path.parent}: make it first")


def write_page(target: str, page: PreviewPage, max_bytes: int, advance: Callable[[], None]) -> Written:
    """Write the page with the largest pictures that fit, atomically; smaller and smaller until it fits.

    advance: is called as records are drawn, once for each.
    """
    furthest = _Furthest(advance)
    with _target(target) as scratch:
        for room in ROOMS[_guess(page, max_bytes) :]:
            with open(scratch, "wb") as stream:
                tally = Tally()
                noted = _noted(page, room, max_bytes)
                pieces = draw(noted, room, tally, furthest.attempt())
                size = _fill(stream, pieces, None if room is ROOMS[-1] else max_bytes)
            if size is not None:
                return Written(size, noted.notes, room, tally)
    raise AssertionError("the last room takes any page")


class _Furthest:
    """Counts records over several attempts: those that an earlier one came to are not told again."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self._advance, self._told = advance, 0

    def attempt(self) -> Callable[[], None]:
        """For `draw`, from the first record."""
        drawn = itertools.count(1)

        def tick() -> None:
            number = next(drawn)
            if number > self._told:
                self._told = number
                self._advance()

        return tick


def _fill(stream: BinaryIO, pieces: Iterator[str], max_bytes: int | None) -> int | None:
    """The page's bytes; None as soon as it passes the limit."""
    size = 0
    for piece in pieces:
        data = piece.encode()
        size += len(data)
        if max_bytes is not None and size > max_bytes:
            return None
        stream.write(data)
    stream.flush()
    os.fsync(stream.fileno())
    return size


def _noted(page: PreviewPage, room: Room, max_bytes: int) -> PreviewPage:
    if room.side_px >= _SMALL_PX:
        return page
    limit = f"so that the page stays below {max_bytes / 1e6:,.0f} MB; ask for fewer records to see more"
    note = f"Pictures are at most {room.side_px} pixels wide and high, {limit}."
    return replace(page, notes=(*page.notes, note if room.side_px else f"Pictures are left out, {limit}."))


def _guess(page: PreviewPage, max_bytes: int) -> int:
    """The number of the first room worth trying: what some pictures take, beside the page without any."""
    images = [image.jpeg for record in page.records for image in record.images if image.fate != "failed"]
    tried = [jpeg for read in images[:: max(1, len(images) // _TRIED)] if (jpeg := read()) is not None]
    words: dict[Room, int] = {}

    def fits(room: Room) -> bool:
        bare = replace(room, side_px=0, quality=0)
        if bare not in words:
            words[bare] = sum(len(piece.encode()) for piece in draw(page, bare, Tally()))
        shown = sum(min(room.images, len(record.images)) for record in page.records)
        taken = [size for jpeg in tried if (size := _size(jpeg, room)) is not None] if room.side_px else []
        return words[bare] + sum(taken) / max(1, len(taken)) * shown * _SURE <= max_bytes

    return bisect_left(ROOMS, True, hi=len(ROOMS) - 1, key=fits)


def _size(jpeg: bytes, room: Room) -> int | None:
    try:
        return len(data_uri(jpeg, room.side_px, room.quality).uri)
    except DataError:
        return None


@contextmanager
def _target(target: str) -> Iterator[Path]:
    """A file to write to; it is put under its name if all goes well, and is gone if not."""
    if "://" in target:
        folder, _, name = target.rpartition("/")
        store = Store(folder)
        with store.scratch() as scratch:
            yield scratch / "page"
            store.commit_file(scratch / "page", name)
        return
    path = Path(target)
    scratch_file = path.with_name(f".{uuid.uuid4().hex}.html")
    try:
        yield scratch_file
        os.replace(scratch_file, path)
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror or error}") from error
    finally:
        scratch_file.unlink(missing_ok=True)
