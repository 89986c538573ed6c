"""Images as metadata rows name them: addresses, files below an `image_root`, bytes, base64."""

from __future__ import annotations

import base64
import binascii
import errno
import os
import posixpath
import stat
from typing import Any, Final

import fsspec

from vila_data.core.errors import StorageError
from vila_data.core.image_formats import ImageError
from vila_data.core.records import ImageRef
from vila_data.corpora.source import RowProblem

_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".gif", ".webp")
_NOT_THERE: Final = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def as_list(value: Any) -> list[Any]:
    """The images of a row, of which there may be none, one, or a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def named_picture(value: Any, image_root: str | None) -> ImageRef:
    """An image given as an address, a path below `image_root`, or {bytes, path}.

    Raises:
        RowProblem: it is none of these.
    """
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        path = value.get("path")
        return ImageRef(url=path if isinstance(path, str) else "", data=value["bytes"])
    if isinstance(value, dict):
        value = value.get("path")
    if not isinstance(value, str):
        raise RowProblem("wrong_type", f"an image is a {type(value).__name__}, not a path")
    if image_root is None or value.lower().startswith(("http://", "https://")):
        return ImageRef(url=value)
    file = below(image_root, value)
    return ImageRef(url=value, error="bad_url") if file is None else ImageRef(url=value, file=file)


def encoded_picture(value: Any) -> ImageRef:
    """An image given as bytes, as base64 or as a `data:` address; broken base64 is an image that fails.

    Raises:
        RowProblem: it is none of these.
    """
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return ImageRef(url="", data=value)
    if not isinstance(value, str):
        raise RowProblem("wrong_type", f"an image is a {type(value).__name__}, not base64")
    text = value.strip()
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if text.startswith(("b'", 'b"')):  # some writers put the repr of bytes (docs/sources.md)
        text = text[2:-1]
    try:
        return ImageRef(url="", data=base64.b64decode("".join(text.split()), validate=True))
    except (binascii.Error, ValueError):
        return ImageRef(url="", error="not_an_image")


def below(image_root: str, path: str) -> str | None:
    """`path` under `image_root`, both without `..`; None where it would leave it. Links are followed, not judged."""
    scheme, mark, folder = image_root.rpartition("://")
    folder = posixpath.normpath(folder)
    full = posixpath.normpath(posixpath.join(folder, path))
    inside = full.startswith(folder.rstrip("/") + "/") and "\0" not in full
    return f"{scheme}{mark}{full}" if inside else None


def read_picture(file: str, max_bytes: int) -> bytes:
    """The bytes of a local image, or of one with its name and another suffix where it is not there.

    Raises:
        ImageError: no_file: neither is there; too_large.
        StorageError: the disk or store fails.
    """
    stem, suffix = posixpath.splitext(file)
    others = [stem + other for other in _SUFFIXES if other != suffix] if suffix.lower() in _SUFFIXES else []
    for candidate in (file, *others):
        try:
            return _read(candidate, max_bytes)
        except ValueError:  # no file can have this name
            continue
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and error.errno not in _NOT_THERE:
                raise StorageError(f"{candidate}: cannot be read: {error.strerror or error}") from error
    raise ImageError("no_file", file)


def _read(file: str, max_bytes: int) -> bytes:
    if "://" in file:
        fs, path = fsspec.core.url_to_fs(file)
        data: bytes = fs.cat_file(path, start=0, end=max_bytes + 1)
    else:
        with open(file, "rb", opener=_no_device) as stream:
            data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ImageError("too_large", file)
    return data


def _no_device(file: str, flags: int) -> int:
    """Open a regular file; what is none (a pipe would wait for a writer) is not there."""
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise FileNotFoundError(file)
    return os.open(file, flags)
