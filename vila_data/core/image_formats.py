"""Pictures of any accepted format -> RGB pixels, by Pillow; and what a JPEG's headers say.

Pillow's plugins are called directly: `Image.open` would try every format and warn by
a process-wide setting, where the pixel limit here is the caller's.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from vila_data.core.fates import IMAGE_ERRORS

Pixels = npt.NDArray[np.uint8]

_FORMATS: Final = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")  # JPEG's plugin also opens MPO
_BROKEN: Final = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    EOFError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    MemoryError,
)
_TRUNCATED: Final = ("truncated", "premature end", "unexpected end", "end of file", "not enough data")
_ORIENTATION_TAG: Final = 0x0112


class ImageError(Exception):
    """Bytes that do not become a stored image; `error_class` is one of core.fates.IMAGE_ERRORS."""

    def __init__(self, error_class: str, detail: str = "") -> None:
        if error_class not in IMAGE_ERRORS:
            raise ValueError(f"no such image error: {error_class}")
        self.error_class = error_class
        super().__init__(f"{error_class}: {detail}" if detail else error_class)


def open_pixels(data: bytes, max_pixels: int | None, min_side: int | None) -> tuple[Pixels, tuple[int, int, int]]:
    """RGB pixels [H, W, 3] uint8 of the first frame, and (width, height, EXIF orientation) as stored in the file.

    The pixels are not yet turned upright, and may be smaller than width x height by
    1/2, 1/4 or 1/8 where the format can and the shorter side stays >= `min_side`.

    Raises:
        ImageError: not_an_image, too_many_pixels, truncated_image or undecodable_image.
    """
    image = _open(data)
    try:
        width, height = image.size
        if width < 1 or height < 1:
            raise ImageError("undecodable_image", "no pixels")
        if max_pixels is not None and width * height > max_pixels:
            raise ImageError("too_many_pixels", f"{width} x {height}")
        if image.format in ("JPEG", "MPO") and min_side is not None:
            factor = min_side / min(width, height)
            image.draft(None, (max(1, int(width * factor) + 1), max(1, int(height * factor) + 1)))
        image.load()
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        if image.format == "TIFF":  # its plugin has turned the pixels already
            width, height = image.size
        return _rgb(image), (width, height, orientation if orientation in range(1, 9) else 1)
    except _BROKEN as error:
        raise _verdict(data, str(error)) from error
    finally:
        image.close()


@dataclass(frozen=True, slots=True)
class JpegFacts:
    """EXIF orientation, 1 to 8 (1 where none can be read), and whether the picture comes in several scans."""

    orientation: int
    many_scans: bool


def jpeg_facts(jpeg: bytes) -> JpegFacts:
    """Read a JPEG's markers up to its first scan."""
    at, orientation, components, progressive = 2, 1, 0, False
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:
            return JpegFacts(orientation, progressive or jpeg[at + 4 : at + 5] != bytes((components,)))
        size = jpeg[at + 2] << 8 | jpeg[at + 3]
        if marker == 0xE1 and jpeg[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _tiff_orientation(jpeg[at + 10 : at + 2 + size])
        elif marker in (0xC0, 0xC1, 0xC2) and at + 9 < len(jpeg):
            components, progressive = jpeg[at + 9], marker == 0xC2
        at += 2 + size
    return JpegFacts(orientation, True)


def _tiff_orientation(tiff: bytes) -> int:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == _ORIENTATION_TAG:
                return int(value) if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        return 1  # cut or wrong: no orientation, as other readers do
    return 1


def _open(data: bytes) -> Image.Image:
    Image.preinit()
    if not set(_FORMATS) <= set(Image.OPEN):
        Image.init()
    prefix = data[:16]
    for name in _FORMATS:
        if name not in Image.OPEN:  # AVIF is optional in Pillow
            continue
        factory, accept = Image.OPEN[name]
        try:
            if accept is None or accept(prefix) is not True:
                continue
            image: Image.Image = factory(io.BytesIO(data), "")
            return image
        except _BROKEN as error:
            raise _verdict(data, str(error)) from error
    raise ImageError("not_an_image")


def _verdict(data: bytes, message: str) -> ImageError:
    """The class of a decoder's complaint."""
    riff_cut = data[:4] == b"RIFF" and len(data) >= 8 and len(data) < 8 + int.from_bytes(data[4:8], "little")
    jpeg_cut = data[:2] == b"\xff\xd8" and b"\xff\xda" not in data
    if riff_cut or jpeg_cut or any(word in message.lower() for word in _TRUNCATED):
        return ImageError("truncated_image", message)
    return ImageError("undecodable_image", message)


def _rgb(image: Image.Image) -> Pixels:
    """Any mode -> contiguous RGB, transparency on white, 16 bits and floats to 8."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return np.repeat(_eight_bits(np.asarray(image))[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return np.asarray(white)
    return np.asarray(image.convert("RGB"))


def _eight_bits(values: npt.NDArray[np.generic]) -> Pixels:
    """Gray of 16 bits, of 32 bits that hold 16, or floats of 0..1 or 0..255 -> 0..255."""
    if values.dtype.kind == "f":
        floats = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=255.0, neginf=0.0)
        scale = 255.0 if floats.size and float(floats.max()) <= 1.0 else 1.0
    else:
        floats = values.astype(np.float32)
        scale = 1 / 257 if floats.size and float(floats.max()) > 255 else 1.0
        if values.dtype == np.uint16:
            scale = 1 / 257
    whole: Pixels = np.clip(np.rint(floats * scale), 0, 255).astype(np.uint8)
    return whole
