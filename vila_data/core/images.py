"""Any served bytes -> one verified sRGB JPEG of bounded size, its perceptual hash, and pixels again.

JPEG, the common case, is decoded by libjpeg-turbo at the power of two just above the
target (1/1, 1/2, 1/4, 1/8 are the scales with SIMD code) and resized from there;
whatever that path does not take (other formats, CMYK, damaged files) goes through
Pillow, whose word is final.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final, cast

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from vila_data.core.image_formats import ImageError, jpeg_facts, open_pixels

__all__ = [
    "ImageError",
    "StoredImage",
    "covering_scale",
    "decode_rgb",
    "decode_scaled",
    "normalise",
    "perceptual_hash",
    "plain_size",
    "target_size",
]

Pixels = npt.NDArray[np.uint8]

_JPEG_START: Final = b"\xff\xd8\xff"
_PLAIN: Final = ("YCbCr", "RGB", "Gray")
_SCALES: Final = (3, 2, 1, 0)  # log2 of the scaled decoder's denominators
_HASH_SIDE: Final = 32
_SCAN_WORK: Final = 4_000_000_000  # scans x pixels; a progressive file of thousands of scans is an attack
_KEPT_BUFFER: Final = 32 << 20  # bytes of decoding buffer that a thread keeps
_LINEAR_RATIO: Final = 2.0  # bilinear sampling skips source pixels above this ratio

cv2.setNumThreads(1)
_thread = threading.local()


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture as it is stored: sizes in pixels, `phash` 16 hex digits.

    original_width, original_height: as served, EXIF orientation applied.
    """

    jpeg: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    phash: str


def normalise(
    data: bytes,
    *,
    max_pixels: int,
    shorter_side_px: int | None = 336,
    only_if_larger: bool = True,
    jpeg_quality: int = 90,
) -> StoredImage:
    """Verify served bytes and make them the JPEG that is stored.

    The shorter side becomes `shorter_side_px` and the other floor(N * long / short)
    (None: the size stays). A plain JPEG that needs no change keeps its bytes, after a
    full entropy decode. Orientation is applied, transparency laid on white, the first
    frame of an animation taken.

    Raises:
        ImageError: not_an_image, too_many_pixels (from the header, before decoding),
            truncated_image or undecodable_image.
    """
    plan = _Plan(max_pixels, shorter_side_px, only_if_larger, jpeg_quality)
    if data[:3] == _JPEG_START:
        try:
            stored = _normalise_jpeg(data, plan)
        except ValueError:  # the strict decoder's warning: Pillow decides whether it matters
            stored = None
        if stored is not None:
            return stored
    return _normalise_any(data, plan)


def decode_rgb(jpeg: bytes, min_side: int | None = None) -> Pixels:
    """Pixels [H, W, 3] uint8 RGB of a JPEG, decoded at 1/2, 1/4 or 1/8 where the shorter side stays >= `min_side`.

    Raises:
        ImageError: the bytes cannot be decoded.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(jpeg)
        if colours in _PLAIN:
            limit = min_side or min(height, width)
            scale = next(s for s in _SCALES if s == 0 or min(_scaled(height, s), _scaled(width, s)) >= limit)
            return _decode(jpeg, height, width, scale, "RGB", own=True)
    except ValueError:
        pass  # Pillow decides
    rgb, _ = open_pixels(jpeg, max_pixels=None, min_side=min_side)
    return rgb


def plain_size(jpeg: bytes | memoryview) -> tuple[int, int] | None:
    """(height, width) of a JPEG that `decode_scaled` takes; None where only `decode_rgb` can tell.

    Reads the header alone, in about 2 us.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError:
        return None
    return (height, width) if colours in _PLAIN else None


def covering_scale(height: int, width: int, min_height: int, min_width: int) -> int:
    """The largest log2 scale whose decoded size still covers min_height x min_width; 0 where none does."""
    for scale in _SCALES[:-1]:
        if _scaled(height, scale) >= min_height and _scaled(width, scale) >= min_width:
            return scale
    return 0


def decode_scaled(
    jpeg: bytes | memoryview, height: int, width: int, scale: int, into: Pixels | None = None
) -> Pixels | None:
    """RGB [ceil(height / 2**scale), ceil(width / 2**scale), 3] uint8 of a JPEG of `plain_size` height x width.

    Args:
        into: contiguous memory of that size at least; None: this thread's buffer, overwritten by its next call.

    Returns:
        The pixels, or None where the strict decoder found something odd: `decode_rgb` decides what it is.
    """
    try:
        return _decode(jpeg, height, width, scale, "RGB", into=into)
    except ValueError:
        return None


def target_size(width: int, height: int, shorter_side_px: int | None, only_if_larger: bool) -> tuple[int, int]:
    """(width, height) after resizing: the shorter side N, the other floor(N * long / short)."""
    short, long = min(width, height), max(width, height)
    if shorter_side_px is None or short == shorter_side_px or (only_if_larger and short < shorter_side_px):
        return width, height
    other = min(65_500, shorter_side_px * long // short)
    return (shorter_side_px, other) if width <= height else (other, shorter_side_px)


@dataclass(frozen=True, slots=True)
class _Plan:
    max_pixels: int
    shorter_side_px: int | None
    only_if_larger: bool
    jpeg_quality: int

    def size(self, width: int, height: int) -> tuple[int, int]:
        return target_size(width, height, self.shorter_side_px, self.only_if_larger)


def _normalise_jpeg(data: bytes, plan: _Plan) -> StoredImage | None:
    """The fast path; None where Pillow is needed. ValueError: the strict decoder found something odd."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if height * width > plan.max_pixels:
        raise ImageError("too_many_pixels")
    if colours not in _PLAIN:
        return None
    facts = jpeg_facts(data)
    if facts.many_scans and data.count(b"\xff\xda") * height * width > _SCAN_WORK:
        raise ImageError("undecodable_image")
    orientation = facts.orientation
    target = plan.size(width, height)
    if target == (width, height) and orientation == 1:
        gray = _decode(data, height, width, covering_scale(height, width, 2 * _HASH_SIDE, 2 * _HASH_SIDE), "GRAY")
        return StoredImage(data, width, height, width, height, perceptual_hash(gray[:, :, 0]))
    scale = covering_scale(height, width, target[1], target[0])
    rgb = _decode(data, height, width, scale, "RGB")
    return _store(rgb, width, height, orientation, plan)


def _normalise_any(data: bytes, plan: _Plan) -> StoredImage:
    rgb, (width, height, orientation) = open_pixels(data, max_pixels=plan.max_pixels, min_side=plan.shorter_side_px)
    return _store(rgb, width, height, orientation, plan)


def _store(rgb: Pixels, width: int, height: int, orientation: int, plan: _Plan) -> StoredImage:
    """Resize decoded pixels of a `width` x `height` picture, turn them upright and encode them."""
    upright = _upright(_resize(rgb, *plan.size(width, height)), orientation)
    if orientation >= 5:
        width, height = height, width
    out_height, out_width = upright.shape[:2]
    if max(out_height, out_width) > 65_500:
        raise ImageError("too_many_pixels")  # JPEG cannot say it
    jpeg: bytes = simplejpeg.encode_jpeg(upright, plan.jpeg_quality, "RGB", "420")
    gray = cv2.cvtColor(upright, cv2.COLOR_RGB2GRAY)
    return StoredImage(jpeg, out_width, out_height, width, height, perceptual_hash(cast(Pixels, gray)))


def _scaled(side: int, scale: int) -> int:
    return -(-side >> scale)


def _decode(
    data: bytes | memoryview,
    height: int,
    width: int,
    scale: int,
    colours: str,
    own: bool = False,
    into: Pixels | None = None,
) -> Pixels:
    """Strict decode at 1/2**scale: [H, W, 3] or [H, W, 1] uint8, in this thread's buffer unless `own` or `into`."""
    out_height, out_width = _scaled(height, scale), _scaled(width, scale)
    size = out_height * out_width * (1 if colours == "GRAY" else 3)
    pixels: Pixels = simplejpeg.decode_jpeg(
        data,
        colours,
        min_height=out_height,
        min_width=out_width,
        min_factor=1,
        fastupsample=not own,  # as near to the reference once it is resized, and 5% faster
        buffer=into if into is not None else None if own or size > _KEPT_BUFFER else _buffer(size),
    )
    if pixels.shape[:2] != (out_height, out_width):
        raise ValueError(f"decoder chose {pixels.shape[:2]} for 1/{2**scale} of {height} x {width}")
    return pixels


def _buffer(size: int) -> bytearray:
    """This thread's buffer of at least `size` bytes: fresh pages would cost as much as decoding."""
    buffer: bytearray | None = getattr(_thread, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = bytearray(size)
        _thread.buffer = buffer
    return buffer


def _resize(pixels: Pixels, width: int, height: int, method: int | None = None) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    ratio = max(pixels.shape[0] / height, pixels.shape[1] / width)
    if method is None:
        method = cv2.INTER_AREA if ratio > _LINEAR_RATIO else cv2.INTER_LINEAR if ratio > 1 else cv2.INTER_CUBIC
    return cast(Pixels, cv2.resize(pixels, (width, height), interpolation=method))


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation, 1 to 8."""
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _cosines() -> npt.NDArray[np.int64]:
    """First 8 rows of the 32-point DCT-II, in 1/4096: integers, so that every machine gets the same hash."""
    rows, columns = np.arange(8)[:, None], np.arange(_HASH_SIDE)[None, :]
    cosines = np.cos(np.pi * (2 * columns + 1) * rows / (2 * _HASH_SIDE))
    whole: npt.NDArray[np.int64] = np.rint(cosines * 4096).astype(np.int64)
    return whole


_COSINES: Final = _cosines()


def perceptual_hash(gray: Pixels) -> str:
    """64 bits as 16 hex digits: which of the 8x8 lowest DCT terms of a gray [H, W] picture exceed their median.

    Near pictures differ in few bits; compare by Hamming distance.
    """
    small = _resize(gray, _HASH_SIDE, _HASH_SIDE, cv2.INTER_AREA).astype(np.int64)
    terms = (_COSINES @ small @ _COSINES.T).ravel()
    ordered = np.sort(terms)
    above = 2 * terms > ordered[31] + ordered[32]
    return np.packbits(above).tobytes().hex()
