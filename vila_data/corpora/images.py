"""Images as metadata rows name them: URLs, files below an `image_root`, bytes, base64."""

from __future__ import annotations

import base64
import binascii
import errno
import os
import posixpath
import stat
from dataclasses import replace
from typing import Any, Final

import fsspec

from vila_data.core.errors import StorageError
from vila_data.core.image_formats import ImageError
from vila_data.core.records import ImageRef
from vila_data.corpora.source import RowProblem

_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".gif", ".webp")
PATH_KEYS: Final = ("url", "path")
ENCODED_KEYS: Final = ("bytes", "base64", "data")
"""Keys of an object that is an image: its URL or path, its bytes or base64."""
_LEAST_BASE64: Final = 64
"""Characters of a text that may be an image in base64; the smallest PNG has 92."""
_MAGIC: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
"""First bytes of the formats that are decoded; AVIF has its own at byte 4."""
_NOT_THERE: Final = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def as_list(value: Any) -> list[Any]:
    """The images of a row, of which there may be none, one, or a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def named_image(value: Any, image_root: str | None) -> ImageRef:
    """An image given as a URL, a path below `image_root`, bytes, base64, a `data:` URL or an object of these.

    Raises:
        RowProblem: it is none of these.
    """
    if isinstance(value, dict):
        name = next((value[key] for key in PATH_KEYS if value.get(key) is not None), None)
        encoded = next((value[key] for key in ENCODED_KEYS if value.get(key) is not None), None)
        if encoded is not None:
            return replace(encoded_image(encoded), url=name if isinstance(name, str) else "")
        value = name
    if isinstance(value, bytes):
        return ImageRef(url="", data=value)
    if not isinstance(value, str):
        raise RowProblem("wrong_type", f"an image must be a path, found a {type(value).__name__}")
    if is_data_url(value):
        return encoded_image(value)
    data = _base64_image(value)
    return _named(value.removeprefix("file://"), image_root) if data is None else ImageRef(url="", data=data)


def _named(name: str, image_root: str | None) -> ImageRef:
    if image_root is None or name.lower().startswith(("http://", "https://")):
        return ImageRef(url=name)
    file = below(image_root, name)
    return ImageRef(url=name, error="bad_url") if file is None else ImageRef(url=name, file=file)


def encoded_image(value: Any) -> ImageRef:
    """An image given as bytes, as base64 or as a `data:` URL; broken base64 is an image that fails.

    Raises:
        RowProblem: it is none of these.
    """
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return ImageRef(url="", data=value)
    if not isinstance(value, str):
        raise RowProblem("wrong_type", f"an image must be base64, found a {type(value).__name__}")
    text = value.strip()
    if is_data_url(text):
        text = text.partition(",")[2]
    try:
        return ImageRef(url="", data=base64.b64decode(_bare(text), validate=True))
    except (binascii.Error, ValueError):
        return ImageRef(url="", error="not_an_image")


def is_data_url(text: str) -> bool:
    """Whether the text is an image's bytes, and not where it is."""
    return text.lstrip()[:5].lower() == "data:"


def _bare(text: str) -> str:
    """Base64 on one line, without the repr of bytes that some writers put around it (docs/sources.md)."""
    text = text.strip()
    return "".join((text[2:-1] if text.startswith(("b'", 'b"')) else text).split())


def _base64_image(text: str) -> bytes | None:
    """The bytes of a text that is an image in base64; None where it is not, and so names one."""
    if len(text) < _LEAST_BASE64:
        return None
    text = _bare(text)
    try:
        head = base64.b64decode(text[:16], validate=True)
        if not head.startswith(_MAGIC) and head[4:8] != b"ftyp":
            return None
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def below(image_root: str, path: str) -> str | None:
    """`path` under `image_root`, both without `..`; None where it would leave it. Symbolic links are followed and not checked."""
    scheme, mark, directory = image_root.rpartition("://")
    directory = posixpath.normpath(directory)
    full = posixpath.normpath(posixpath.join(directory, path))
    inside = full.startswith(directory.rstrip("/") + "/") and "\0" not in full
    return f"{scheme}{mark}{full}" if inside else None


def read_image(file: str, max_bytes: int) -> bytes:
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
