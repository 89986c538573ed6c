"""What is known of a part's records and images, in columns of machine numbers: a hundred bytes an image."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from typing import Final

from vila_data.core.fates import IMAGE_ERRORS
from vila_data.core.images import StoredImage

PROFILE_IGNORED: Final = "profile_ignored"
"""Detail of a stored picture whose color profile is broken or of another color space."""

_PENDING: Final = -2
_OK: Final = -1


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What became of one distinct image; sizes in pixels and bytes, `offset` in the spool of bodies.

    detail: more than the error's class: the name of a format that is not decoded, a limit; of a stored image
            PROFILE_IGNORED or None.
    """

    error: str | None
    http_code: int | None
    original_bytes: int | None
    sha256: str | None = None
    phash: str | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    size: int = 0
    offset: int = 0
    detail: str | None = None


class Results:
    """Distinct images by number; images with equal URLs share one."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._error = array("b")
        self._http_code = array("h")
        self._original_bytes = array("q")
        self._sides = array("i")  # width, height, original width, original height
        self._place = array("q")  # offset, size
        self._digests = bytearray()  # sha256, then phash: 40 bytes an image
        self._details: dict[int, str] = {}  # few images have one
        self.bytes_fetched = 0

    def __len__(self) -> int:
        return len(self._error)

    def number(self, url: bytes) -> tuple[int, bool]:
        """The number of a URL's image, and whether the URL is new."""
        digest = hashlib.blake2b(url, digest_size=16).digest()
        known = self._numbers.get(digest)
        if known is not None:
            return known, False
        self._numbers[digest] = number = self.add()
        return number, True

    def add(self) -> int:
        """The number of an image that shares no URL."""
        self._error.append(_PENDING)
        self._http_code.append(0)
        self._original_bytes.append(-1)
        self._sides.extend((0, 0, 0, 0))
        self._place.extend((0, 0))
        self._digests.extend(bytes(40))
        return len(self._error) - 1

    def fail(
        self,
        number: int,
        error: str,
        http_code: int | None = None,
        original_bytes: int | None = None,
        detail: str | None = None,
    ) -> None:
        """Note a failure; `original_bytes` where a whole body came."""
        if detail:
            self._details[number] = detail
        self._error[number] = IMAGE_ERRORS.index(error)
        self._http_code[number] = min(http_code or 0, 32_767)
        self._original_bytes[number] = -1 if original_bytes is None else original_bytes

    def store(
        self,
        number: int,
        image: StoredImage,
        sha256: bytes,
        offset: int,
        http_code: int | None,
        original_bytes: int | None,
    ) -> None:
        """Note a stored picture, `offset` being its place in the spool of bodies."""
        self.fail(number, IMAGE_ERRORS[0], http_code, original_bytes)
        self._error[number] = _OK
        if image.profile_ignored:
            self._details[number] = PROFILE_IGNORED
        sides = (image.width, image.height, image.original_width, image.original_height)
        self._sides[4 * number : 4 * number + 4] = array("i", sides)
        self._place[2 * number : 2 * number + 2] = array("q", (offset, len(image.jpeg)))
        self._digests[40 * number : 40 * number + 40] = sha256 + bytes.fromhex(image.phash)

    def get(self, number: int) -> ImageResult:
        """What became of an image.

        Raises:
            RuntimeError: nothing did: a programming error.
        """
        code = self._error[number]
        if code == _PENDING:
            raise RuntimeError(f"image {number} was never finished")
        original: int | None = self._original_bytes[number]
        original = None if original == -1 else original
        http_code = self._http_code[number] or None
        if code != _OK:
            return ImageResult(IMAGE_ERRORS[code], http_code, original, detail=self._details.get(number))
        width, height, original_width, original_height = self._sides[4 * number : 4 * number + 4]
        offset, size = self._place[2 * number : 2 * number + 2]
        digests = self._digests[40 * number : 40 * number + 40]
        return ImageResult(
            error=None,
            http_code=http_code,
            original_bytes=original,
            sha256=digests[:32].hex(),
            phash=digests[32:].hex(),
            width=width,
            height=height,
            original_width=original_width,
            original_height=original_height,
            size=size,
            offset=offset,
            detail=self._details.get(number),
        )
