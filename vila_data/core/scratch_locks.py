"""Scratch directories locked by a running process. Directories left by dead processes are deleted.

The lock is the kernel's (flock), on a file, for a directory on one in it, so that it ends with its process however that ends.
Where a file system has no such locks, everybody gets a directory and nothing is deleted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_OWNER: Final = ".owner"
_TRIES: Final = 100
_TEMPORARY: Final = "vila-data-held-"


def lock_directory(directory: Path, *, wait: bool = False) -> int | None:
    """Make a directory and lock it until the returned descriptor is closed; None: another process holds it.

    wait: for the process that holds it, for example one that is deleting it.

    Raises:
        OSError: it cannot be made.
    """
    for left in reversed(range(_TRIES)):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            return _held(directory, wait)
        except FileNotFoundError:
            if not left:
                raise
    raise AssertionError


def delete_locked(directory: Path, owner: int) -> None:
    """Delete a locked directory and release its lock."""
    shutil.rmtree(directory, ignore_errors=True)
    os.close(owner)


def delete_unlocked(base: Path) -> None:
    """Delete the unlocked contents of a directory, then the directory if it is empty; what cannot be deleted stays."""
    with suppress(OSError):
        for path in list(base.iterdir()):
            with suppress(OSError):
                _delete_unlocked(path)
        base.rmdir()


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A new locked directory for temporary files, deleted afterwards; those of killed processes are deleted first."""
    for left in Path(tempfile.gettempdir()).glob(_TEMPORARY + "*"):
        with suppress(OSError):
            _delete_unlocked(left)
    owner = None
    while owner is None:
        directory = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
        with suppress(FileNotFoundError):
            owner = _held(directory, wait=True)
    try:
        yield directory
    finally:
        delete_locked(directory, owner)


@contextmanager
def locked_file(path: Path) -> Iterator[int]:
    """Hold the lock of a file, which is made where it is missing; its descriptor.

    Raises:
        OSError: it cannot be made, or the file system has no locks.
    """
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _delete_unlocked(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    owner = _open(path / _OWNER)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.stat(path / _OWNER), os.fstat(owner)):  # else another process made the directory anew
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(owner)


def _held(directory: Path, wait: bool) -> int | None:
    """The descriptor that locks a directory; None: another process holds it.

    Raises:
        FileNotFoundError: it was deleted before it was locked.
    """
    owner = _open(directory / _OWNER)
    if not _lock(owner, wait):
        os.close(owner)
        return None
    try:
        if os.path.samestat(os.stat(directory / _OWNER), os.fstat(owner)):
            return owner
        raise FileNotFoundError(errno.ENOENT, "others keep deleting it", str(directory))
    except FileNotFoundError:
        os.close(owner)
        raise


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _lock(owner: int, wait: bool) -> bool:
    try:
        fcntl.flock(owner, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return True
