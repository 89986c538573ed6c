"""Images of any accepted format -> RGB pixels, by Pillow and OpenCV; and names of the formats that are not accepted.

Pillow's plugins are called directly: `Image.open` would try every format and warn by
a process-wide setting, where the pixel limit here is the caller's.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Final, NamedTuple, cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from vila_data.core.fates import ImageError
from vila_data.core.image_containers import (
    BITS_PER_SAMPLE,
    PHOTOMETRIC,
    PNG_START,
    SAMPLE_FORMAT,
    Still,
    check_scans,
    clean_jpeg,
    gif_still,
    jpeg_facts,
    png_depth,
    png_still,
    tiff_numbers,
    webp_size,
    webp_still,
)
from vila_data.core.image_pixels import Raster, array_raster, image_raster, orientation_of, rgb_pixels

__all__ = ["DECODED", "ImageError", "ImageFacts", "open_pixels"]

Pixels = npt.NDArray[np.uint8]

cv2.utils.logging.setLogLevel(
    cv2.utils.logging.LOG_LEVEL_SILENT
)  # a broken image is a row of the table, not a line of the log

DECODED: Final = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
"""The formats that are decoded."""

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
    cv2.error,
    Image.DecompressionBombError,
    MemoryError,
)
_TRUNCATED: Final = ("truncated", "premature end", "unexpected end", "end of file", "not enough data")
_REDUCED_FROM: Final = 1 << 22  # pixels from which an image is averaged down while it becomes RGB
_RLE: Final = (1, 2)  # compressions of a BMP that OpenCV reads: Pillow does it in Python
_WHITE_IS_ZERO: Final = 0
_SIGNED: Final = 2


class ImageFacts(NamedTuple):
    """Of an image as in the file: size, EXIF orientation, and whether its profile was ignored as broken."""

    width: int
    height: int
    orientation: int
    profile_ignored: bool = False


class _Opened(NamedTuple):
    """An image whose header is read.

    load: decodes it, given the smallest shorter side that will do (None: all pixels).
    """

    width: int
    height: int
    load: Callable[[int | None], Raster]
    profile: bytes | None
    orientation: int


def open_pixels(data: bytes, max_pixels: int | None, min_side: int | None) -> tuple[Pixels, ImageFacts]:
    """RGB pixels [H, W, 3] uint8 in sRGB of the first frame, and what the file says of it.

    The pixels are not yet turned upright, and may be smaller than width x height by
    a power of two where the shorter side stays >= `min_side`.

    Raises:
        ImageError: not_an_image, unsupported_format, too_many_pixels, too_large, truncated_image or undecodable_image.
    """
    try:
        opened = _open(data)
        width, height = opened.width, opened.height
        if width < 1 or height < 1:
            raise ImageError("undecodable_image", "no pixels")
        if max_pixels is not None and width * height > max_pixels:
            raise ImageError("too_many_pixels", f"{width} x {height}")
        raster = opened.load(min_side)
        if raster.width * raster.height > max(width * height, 1):
            raise ImageError("undecodable_image", "larger than its header says")
        if min(raster.width, raster.height) == min(width, height) and raster.width != width:
            width, height = height, width  # TIFF's plugin has turned the pixels already
        pixels, ignored = rgb_pixels(raster, opened.profile or None, _reduction(raster, min_side))
        return pixels, ImageFacts(width, height, opened.orientation, ignored or opened.profile == b"")
    except _BROKEN as error:
        raise _verdict(data, str(error)) from error


def _reduction(raster: Raster, min_side: int | None) -> int:
    """log2 of the factor by which a large image is averaged down."""
    scale = 0
    if min_side is not None and raster.width * raster.height > _REDUCED_FROM:
        while min(raster.width, raster.height) >> scale + 1 >= min_side:
            scale += 1
    return scale


def _open(data: bytes) -> _Opened:
    name = _decoded_format(data)
    if name is None:
        other = _other_format(data)
        raise ImageError("not_an_image") if other is None else ImageError("unsupported_format", other)
    return _OPENERS[name](data)


def _decoded_format(data: bytes) -> str | None:
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == PNG_START:
        return "PNG"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and len(data) > 18 and data[14] in (12, 16, 40, 52, 56, 64, 108, 124):
        return "BMP"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data[4:8] == b"ftyp" and _brands(data) & {b"avif", b"avis"}:
        return "AVIF"
    return None


def _brands(data: bytes) -> set[bytes]:
    """Major and compatible brands of an ISO media file."""
    end = min(int.from_bytes(data[:4], "big"), len(data), 4096)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}


_MAGIC: Final = (
    (b"\xff\x0a", "jpeg-xl"), (b"\0\0\0\x0cJXL \r\n\x87\n", "jpeg-xl"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jpeg-2000"), (b"\xff\x4f\xff\x51", "jpeg-2000"),
    (b"II\xbc", "jpeg-xr"), (b"8BPS", "psd"), (b"qoif", "qoi"), (b"DDS ", "dds"), (b"\x76\x2f\x31\x01", "exr"),
    (b"#?RADIANCE", "hdr"), (b"#?RGBE", "hdr"), (b"SIMPLE  =", "fits"), (b"\x59\xa6\x6a\x95", "sun-raster"),
    (b"icns", "icns"), (b"FLIF", "flif"), (b"BPG\xfb", "bpg"), (b"\x8aMNG\r\n\x1a\n", "mng"), (b"\x8bJNG\r\n\x1a\n", "jng"),
    (b"AT&TFORM", "djvu"), (b"/* XPM */", "xpm"), (b"farbfeld", "farbfeld"), (b"\xd7\xcd\xc6\x9a", "wmf"),
    (b"FUJIFILMCCD-RAW", "raw"), (b"gimp xcf", "xcf"), (b"\xabKTX ", "ktx"), (b"#define ", "xbm"),
)  # fmt: skip
_HEIF: Final = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}


def _other_format(data: bytes) -> str | None:
    """The name of an image format that is not decoded; None where the bytes are of none that is known."""
    head = data[:16]
    for magic, name in _MAGIC:
        if head.startswith(magic[:16]):
            return None if name == "xbm" and b"_width" not in data[:256] else name
    if head[4:8] == b"ftyp":
        brands = _brands(data)
        return "heic" if brands & _HEIF else "raw" if b"crx " in brands else None
    if len(data) >= 22 and head[:4] in (b"\0\0\1\0", b"\0\0\2\0") and head[4] and not head[5] and not data[9]:
        return "ico" if head[2] == 1 else "cur"
    if head[:1] == b"P" and head[1:2] in b"1234567Ff" and head[2:3].isspace():
        return "ppm" if head[1:2] != b"7" else "pam"
    if head[:2] == b"\x0a\x05" and head[2:3] == b"\x01" and head[3:4] in (b"\1", b"\2", b"\4", b"\x08"):
        return "pcx"
    if head[:2] == b"\x01\xda" and head[2:3] in (b"\0", b"\1") and head[3:4] in (b"\1", b"\2"):
        return "sgi"
    if data[128:132] == b"DICM":
        return "dicom"
    return "tga" if data[-18:] == b"TRUEVISION-XFILE.\0" else None


def _plugin(name: str, data: bytes) -> Image.Image:
    """A file opened by one of Pillow's plugins."""
    Image.preinit()
    if name not in Image.OPEN:
        Image.init()
    if name not in Image.OPEN:  # AVIF is optional in Pillow
        raise ImageError("unsupported_format", name.lower())
    factory, accept = Image.OPEN[name]
    if accept is not None and accept(data[:16]) is not True:
        raise ImageError("undecodable_image", f"does not start like a {name}")
    image: Image.Image = factory(io.BytesIO(data), "")
    return image


def _loaded(image: Image.Image) -> Image.Image:
    """Decode; the file and the decoder are let go, since both may hold as much as the pixels."""
    image.load()
    image.fp = None  # type: ignore[attr-defined]
    if hasattr(image, "_decoder"):
        image._decoder = None
    return image


def _open_jpeg(data: bytes) -> _Opened:
    facts = jpeg_facts(data)
    image = _plugin("JPEG", clean_jpeg(data, facts))
    width, height = image.size

    def load(min_side: int | None) -> Raster:
        check_scans(data, facts, width * height)
        if min_side is not None:
            factor = min_side / min(width, height)
            image.draft(None, (max(1, int(width * factor) + 1), max(1, int(height * factor) + 1)))
        return image_raster(_loaded(image))

    profile = b"" if facts.profile_broken else facts.profile
    return _Opened(width, height, load, profile, facts.orientation)


def _open_png(data: bytes) -> _Opened:
    still = png_still(data)
    image = _plugin("PNG", still.data)
    depth = png_depth(still.data)

    def load(_: int | None) -> Raster:
        loaded = _loaded(image)
        key = loaded.info.get("transparency")
        if loaded.mode == "P" or isinstance(key, bytes):
            key = None  # the palette's own
        elif loaded.mode == "L" and isinstance(key, int) and depth < 8:
            key = key * 255 // ((1 << depth) - 1)
        elif loaded.mode == "1" and isinstance(key, int):
            key = 255 if key else 0
        elif isinstance(key, tuple) and depth == 16:
            return array_raster(_deep_by_opencv(still.data))  # Pillow has dropped the bits that tell the key apart
        return image_raster(loaded, key)

    return _Opened(*image.size, load, still.profile, orientation_of(still.exif, still.xmp))


def _open_gif(data: bytes) -> _Opened:
    image = _plugin("GIF", gif_still(data).data)

    def load(_: int | None) -> Raster:
        loaded = _loaded(image)
        return image_raster(loaded, loaded.info.get("transparency") if loaded.mode == "L" else None)

    return _Opened(*image.size, load, None, 1)


def _open_webp(data: bytes) -> _Opened:
    still = webp_still(data)

    def load(_: int | None) -> Raster:
        pixels = _by_opencv(still.data)
        if still.canvas is not None:
            pixels = _placed(pixels, still)
        return array_raster(pixels)

    return _Opened(*webp_size(still), load, still.profile, orientation_of(still.exif, still.xmp))


def _placed(frame: Pixels, still: Still) -> Pixels:
    """A frame on its transparent canvas."""
    (width, height), (left, top) = cast(tuple[int, int], still.canvas), still.place
    if (left, top) == (0, 0) and frame.shape[:2] == (height, width):
        return frame
    if left + frame.shape[1] > width or top + frame.shape[0] > height:
        raise ImageError("undecodable_image", "a frame outside its canvas")
    canvas = np.zeros((height, width, 4), np.uint8)
    place = canvas[top : top + frame.shape[0], left : left + frame.shape[1]]
    place[:, :, :3] = frame[:, :, :3]
    place[:, :, 3] = frame[:, :, 3] if frame.shape[2] == 4 else 255
    return canvas


def _open_bmp(data: bytes) -> _Opened:
    image = _plugin("BMP", data)
    by_opencv = data[14] >= 40 and int.from_bytes(data[30:34], "little") in _RLE

    def load(_: int | None) -> Raster:
        return array_raster(_by_opencv(data)) if by_opencv else image_raster(_loaded(image))

    return _Opened(*image.size, load, None, 1)


def _open_tiff(data: bytes) -> _Opened:
    numbers, data = tiff_numbers(data)
    image = _plugin("TIFF", data)

    def load(_: int | None) -> Raster:
        negate = numbers.get(PHOTOMETRIC) == _WHITE_IS_ZERO
        signed = numbers.get(SAMPLE_FORMAT) == _SIGNED
        return image_raster(_loaded(image), negate=negate, bits=numbers.get(BITS_PER_SAMPLE, 0), signed=signed)

    return _Opened(*image.size, load, image.info.get("icc_profile"), 1)


def _open_avif(data: bytes) -> _Opened:
    image = _plugin("AVIF", data)

    def load(_: int | None) -> Raster:
        return image_raster(_loaded(image))

    orientation = orientation_of(image.info.get("exif"), image.info.get("xmp"))
    return _Opened(*image.size, load, image.info.get("icc_profile"), orientation)


_OPENERS: Final[dict[str, Callable[[bytes], _Opened]]] = {
    "JPEG": _open_jpeg,
    "PNG": _open_png,
    "GIF": _open_gif,
    "WEBP": _open_webp,
    "BMP": _open_bmp,
    "TIFF": _open_tiff,
    "AVIF": _open_avif,
}


def _by_opencv(data: bytes) -> Pixels:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint8:
        raise ValueError("OpenCV cannot decode it")
    return cast(Pixels, pixels)


def _deep_by_opencv(data: bytes) -> Pixels:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise ValueError("OpenCV cannot decode it")
    return cast(Pixels, np.right_shift(cast("npt.NDArray[np.uint16]", pixels), 8).astype(np.uint8))


def _verdict(data: bytes, message: str) -> ImageError:
    """The class of a decoder's complaint."""
    riff_cut = data[:4] == b"RIFF" and len(data) >= 8 and len(data) < 8 + int.from_bytes(data[4:8], "little")
    jpeg_cut = data[:2] == b"\xff\xd8" and b"\xff\xda" not in data
    if riff_cut or jpeg_cut or any(word in message.lower() for word in _TRUNCATED):
        return ImageError("truncated_image", message)
    return ImageError("undecodable_image", message)
