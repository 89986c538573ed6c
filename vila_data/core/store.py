"""Storage for a run: any fsspec URL, with range reads and atomic writes.

A file is either complete or absent. It is written to a temporary
file on the same file system and renamed, or, on an object store, uploaded in one
put, which is atomic there.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from vila_data.core.errors import StorageError, UsageError
from vila_data.core.scratch_locks import delete_locked, delete_unlocked, lock_directory, temporary_directory

SCRATCH_DIR = ".scratch"
_CHUNK = 4 << 20


class Store:
    """A directory tree at `url`; paths are relative, with forward slashes."""

    def __init__(self, url: str) -> None:
        self.url = url if "://" in url else os.path.abspath(url)
        try:
            fs, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise StorageError(f"{url}: cannot be opened as a store: {error}") from error
        self._fs: Any = fs
        self._root = str(root).rstrip("/")
        self.is_local = isinstance(fs, LocalFileSystem)
        if self.is_local:  # file://… too: its locations are paths
            self.url = str(root)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return (Store, (self.url,))

    def location(self, path: str) -> str:
        """Full URL or local path of `path`, for messages and for other programs."""
        return f"{self.url.rstrip('/')}/{path}" if path else self.url

    def exists(self, path: str) -> bool:
        """Whether a file or directory is there."""
        with self._failing(path):
            return bool(self._fs.exists(self._at(path)))

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is none."""
        with self._failing(path):
            try:
                return int(self._fs.info(self._at(path))["size"])
            except (FileNotFoundError, NotADirectoryError):
                return None

    def files(self, path: str) -> list[str]:
        """Relative paths of all files below a directory, sorted; empty where there is none."""
        with self._failing(path):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._at(path))
            except FileNotFoundError:
                return []
        prefix = len(self._root) + 1
        return sorted(name[prefix:] for name in found if not name[prefix:].startswith(SCRATCH_DIR + "/"))

    def read(self, path: str) -> bytes:
        """A whole file."""
        with self._failing(path):
            data: bytes = self._fs.cat_file(self._at(path))
            return data

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`.

        Raises:
            StorageError: the file is shorter than that, or cannot be read.
        """
        with self._failing(path):
            if self.is_local:
                with open(self._at(path), "rb", buffering=0) as stream:
                    data = os.pread(stream.fileno(), size, offset)
            else:
                data = self._fs.cat_file(self._at(path), start=offset, end=offset + size)
        if len(data) != size:
            raise StorageError(f"{self.location(path)}: short read at offset {offset}: got {len(data)} of {size} bytes")
        return data

    def sha256(self, path: str) -> str:
        """Hex sha256 of a file, read in pieces."""
        digest = hashlib.sha256()
        with self.open_read(path) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    @contextmanager
    def open_read(self, path: str) -> Iterator[Any]:
        """A seekable binary stream."""
        with self._failing(path), self._fs.open(self._at(path), "rb", block_size=4 << 20) as stream:
            yield stream

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new local directory for temporary files, deleted afterwards; no process's `clear_scratch` deletes it before.

        For a local store it is inside the store, so that a commit is a rename.
        """
        with ExitStack() as stack:
            with self._failing(""):
                if self.is_local:
                    directory = Path(self._root) / SCRATCH_DIR / uuid.uuid4().hex
                    owner = lock_directory(directory, wait=True)
                    assert owner is not None
                    stack.callback(delete_locked, directory, owner)
                else:
                    directory = stack.enter_context(temporary_directory())
            yield directory

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Keep other processes from doing `what` in a local store for the duration of the block; remote stores have no locks.

        Raises:
            UsageError: another process is doing it.
        """
        if not self.is_local:
            yield
            return
        directory = Path(self._root) / SCRATCH_DIR / what
        with self._failing(""):
            owner = lock_directory(directory)
        if owner is None:
            raise UsageError(
                f"{self.url}: another {what} is writing here; wait for it to finish, or choose another directory"
            )
        try:
            yield
        finally:
            delete_locked(directory, owner)
            with suppress(OSError):
                directory.parent.rmdir()

    def commit_file(self, local: Path, path: str) -> None:
        """Put a finished local file under its final name, atomically, replacing what was there."""
        with self._failing(path):
            if self.is_local:
                target = Path(self._at(path))
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(local, "rb+") as stream:
                    os.fsync(stream.fileno())
                os.replace(local, target)
            else:
                self._fs.makedirs(os.path.dirname(self._at(path)), exist_ok=True)
                self._fs.put_file(str(local), self._at(path))

    def commit_bytes(self, data: bytes, path: str) -> None:
        """Put a small file under its final name, atomically."""
        with self.scratch() as directory:
            local = directory / "file"
            with self._failing(path):
                local.write_bytes(data)
            self.commit_file(local, path)

    def remove(self, path: str) -> None:
        """Delete a file or directory; nothing happens where there is none."""
        with self._failing(path):
            try:
                self._fs.rm(self._at(path), recursive=True)
            except FileNotFoundError:
                return

    def clear_scratch(self) -> None:
        """Delete temporary files that killed processes left behind; those of living ones stay."""
        if self.is_local:
            delete_unlocked(Path(self._root) / SCRATCH_DIR)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    @contextmanager
    def _failing(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StorageError(f"{self.location(path)}: no such file") from error
        except (OSError, _boto_error()) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise StorageError(f"{self.location(path)}: {reason}") from error


def _boto_error() -> type[Exception]:
    """botocore's base error where s3fs is installed; it is not an OSError."""
    try:
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return OSError
    error: type[Exception] = BotoCoreError
    return error
