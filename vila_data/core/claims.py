"""Folders that a living process holds: nobody else gets one, and what the dead left is deleted without asking them.

The lock is the kernel's (flock), on a file in the folder, so that it ends with its process however that ends. Where a file
system has no such locks, everybody gets a folder and nothing is deleted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

_OWNER: Final = ".owner"
_TRIES: Final = 100


def claim(folder: Path, *, wait: bool = False) -> int | None:
    """Make a folder and hold it until the descriptor that comes back is closed; None: another one holds it.

    wait: for whoever holds it, such as one who deletes it just now.

    Raises:
        OSError: it cannot be made.
    """
    for left in reversed(range(_TRIES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            owner = _open(folder)
        except FileNotFoundError:  # deleted in between
            if not left:
                raise
            continue
        if not _lock(owner, wait):
            os.close(owner)
            return None
        if _is_there(folder, owner):
            return owner
        os.close(owner)
    raise OSError(errno.EBUSY, "others keep deleting it", str(folder))


def release(folder: Path, owner: int) -> None:
    """Delete a claimed folder and let go of it."""
    shutil.rmtree(folder, ignore_errors=True)
    os.close(owner)


def delete_unclaimed(base: Path) -> None:
    """Delete what lies in a folder and nobody holds, then the folder if it is empty; what cannot be deleted stays."""
    with suppress(OSError):
        for path in list(base.iterdir()):
            with suppress(OSError):
                _delete_unclaimed(path)
        base.rmdir()


def _delete_unclaimed(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    owner = _open(path)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(owner)


def _open(folder: Path) -> int:
    return os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _lock(owner: int, wait: bool) -> bool:
    try:
        fcntl.flock(owner, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return True


def _is_there(folder: Path, owner: int) -> bool:
    """Whether the locked file is still the folder's: another process may have deleted it before it was locked."""
    try:
        return os.path.samestat(os.stat(folder / _OWNER), os.fstat(owner))
    except FileNotFoundError:
        return False
