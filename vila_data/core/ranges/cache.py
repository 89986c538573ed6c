"""A bounded directory on a local disk for what was read from a remote store, shared by all processes of a machine.

Entries are plain files that appear by a rename. How many bytes a directory holds is kept in one of its files, under a
lock that the kernel gives back when its holder dies, and is counted again when the directory is full. (The library
`diskcache` was measured and left: no release since 2023, entries that its database marks as pickles are loaded
as such, CVE-2025-69872, and writers of all processes wait for one database.)
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final

from vila_data.core.errors import StorageError
from vila_data.core.scratch_locks import locked_file

_LOG = logging.getLogger(__name__)
_DIRECTORIES: Final = 64
_LOCKS: Final = 256
_CHECK: Final = 4
"""Bytes of the CRC-32 after a range's own bytes."""
_KEPT_WHEN_FULL: Final = 0.9
_PAUSE: Final = 1000
"""Entries not stored after a write failed."""
_TOTAL: Final = ".total"
_PART: Final = ".part"
GRACE_S: Final = 60.0
"""A whole file is not evicted this soon after it was requested: its reader must have time to open it."""
_DEAD_PART_S: Final = 86_400.0


def digest(*parts: object) -> str:
    """32 hex digits of a cache key."""
    return blake2b("\0".join(map(str, parts)).encode(), digest_size=16).hexdigest()


class RangeCache:
    """Byte strings by key, `bound` bytes at most in all, the least recently used given up first."""

    def __init__(self, directory: Path, bound: int) -> None:
        self._directories = [
            _BoundedDirectory(directory / f"{index:02x}", bound // _DIRECTORIES) for index in range(_DIRECTORIES)
        ]
        self._pause = 0
        self._warned = False

    def get(self, key: str, size: int) -> memoryview | None:
        """The bytes stored under a key (of `digest`), `size` of them; None where they are not, or not whole."""
        path = self._home(key).path / key
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            data = os.read(descriptor, size + _CHECK + 1)
            with suppress(PermissionError):
                os.utime(descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        view = memoryview(data)
        if len(data) == size + _CHECK and zlib.crc32(view[:size]).to_bytes(_CHECK, "little") == view[size:]:
            return view[:size]
        with suppress(OSError):
            path.unlink()
        return None

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Store bytes under a key; if the disk refuses them, warn once and continue without the cache."""
        if self._pause:
            self._pause -= 1
            return
        home = self._home(key)
        if len(data) + _CHECK > home.bound:
            return
        try:
            home.write(key, data, zlib.crc32(data).to_bytes(_CHECK, "little"))
        except OSError as error:
            self._pause = _PAUSE
            if not self._warned:
                self._warned = True
                _LOG.warning(
                    "%s: the cache cannot be written (%s): every range is read from the store", home.path, error
                )

    def _home(self, key: str) -> _BoundedDirectory:
        return self._directories[int(key[:2], 16) % _DIRECTORIES]


class FileCache:
    """Whole files by key, `bound` bytes in all, besides those requested in the last minute.

    A file that is evicted while a process maps it stays readable there.
    """

    def __init__(self, directory: Path, bound: int) -> None:
        self._files = _BoundedDirectory(directory, bound, grace_s=GRACE_S, dead_part_s=_DEAD_PART_S)

    def get(self, key: str, name: str, fetch: Callable[[int], None]) -> Path:
        """The file stored under a key (of `digest`) and a readable name.

        fetch: writes the file's bytes to an open descriptor; called by one of the processes that ask for the
        same file, while the others wait.

        Raises:
            OSError: the file cannot be written; what `fetch` raises.
        """
        path = self._files.path / f"{key}-{name}"
        if _is_used(path):
            return path
        with locked_file(self._files.path / f".lock-{int(key[:2], 16) % _LOCKS:02x}"):
            if _is_used(path):
                return path
            part = path.with_name(path.name + _PART)
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                fetch(descriptor)
                self._files.adopt(part, path.name)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        return path


class _BoundedDirectory:
    """Files of one directory, whose sizes in whole disk blocks stay within a bound, regardless of which process writes there.

    grace_s: a file used so recently is not evicted. dead_part_s: a part not written for so long has no writer;
    0 where parts are written under the directory's lock, so that one found by its holder never has.
    """

    def __init__(self, path: Path, bound: int, *, grace_s: float = 0.0, dead_part_s: float = 0.0) -> None:
        self.path = path
        self.bound = bound
        self._grace_s = grace_s
        self._dead_part_s = dead_part_s
        path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write a small file, under the lock, unless it is there."""
        target, part = self.path / name, self.path / (name + _PART)
        with locked_file(self.path / _TOTAL) as total:
            if target.exists():
                return
            self._make_room(total, _on_disk(sum(map(len, pieces))))
            try:
                with open(part, "wb", buffering=0) as stream:
                    for piece in pieces:
                        if stream.write(piece) != len(piece):
                            raise OSError("no space left on the disk")
                os.replace(part, target)
            except OSError:
                part.unlink(missing_ok=True)
                raise

    def adopt(self, part: Path, name: str) -> None:
        """Give a finished file of this directory its name; it is kept even where it alone exceeds the bound."""
        with locked_file(self.path / _TOTAL) as total:
            self._make_room(total, _on_disk(part.stat().st_size))
            os.replace(part, self.path / name)

    def _make_room(self, total: int, size: int) -> None:
        """Count `size` bytes more, before they are written: a process killed in between leaves the count too high,
        and a full directory is counted again.
        """
        held = int.from_bytes(os.pread(total, 8, 0), "little")
        if held + size > self.bound:
            held = self._evict(max(0, int(self.bound * _KEPT_WHEN_FULL) - size))
        os.pwrite(total, (held + size).to_bytes(8, "little"), 0)

    def _evict(self, keep: int) -> int:
        """Delete the least recently used files until `keep` bytes are left, and what dead writers left; bytes left."""
        now = time.time()
        found: list[tuple[float, int, str]] = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    with suppress(FileNotFoundError):
                        about = entry.stat()
                        found.append((about.st_mtime, _on_disk(about.st_size), entry.name))
        held = sum(size for _, size, name in found if not name.endswith(_PART))
        for used, size, name in sorted(found):
            if name.endswith(_PART):
                if used <= now - self._dead_part_s:
                    (self.path / name).unlink(missing_ok=True)
            elif held > keep and used <= now - self._grace_s:
                (self.path / name).unlink(missing_ok=True)
                held -= size
        return held


def cache_directory(path: str) -> Path:
    """The directory of `path` that holds this version's entries.

    Raises:
        StorageError: it cannot be made or written.
    """
    directory = Path(path).expanduser().absolute() / "vila-data-1"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{directory}: cannot be used as cache_dir: {error.strerror}; name another directory"
        ) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise StorageError(f"{directory}: cannot be used as cache_dir: it is not writable; name another directory")
    return directory


def _is_used(path: Path) -> bool:
    """Whether a file is there; if so it is the most recently used one."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except PermissionError:
        pass  # another user's file, or a read-only disk: it can be read all the same
    return True


def _on_disk(size: int) -> int:
    return -(-size // 4096) * 4096
