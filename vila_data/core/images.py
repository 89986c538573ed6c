"""Any served bytes -> one verified sRGB JPEG of bounded size, its perceptual hash, and pixels again.

JPEG, the common case, is decoded by libjpeg-turbo at the power of two just above the
target (1/1, 1/2, 1/4, 1/8 are the scales with SIMD code) and resized from there;
whatever that path does not take (other formats, CMYK, damaged files) goes through
core.image_formats, whose word is final.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Final, cast

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from vila_data.core.image_containers import JpegFacts, check_scans, clean_jpeg, jpeg_facts, worth_keeping
from vila_data.core.image_formats import ImageError, open_pixels
from vila_data.core.image_pixels import BrokenProfile, ToSrgb, to_srgb

__all__ = [
    "ImageError",
    "StoredImage",
    "covering_scale",
    "decode_rgb",
    "decode_scaled",
    "normalize_image",
    "perceptual_hash",
    "pixels_to_store",
    "plain_size",
    "target_size",
]

Pixels = npt.NDArray[np.uint8]

_JPEG_START: Final = b"\xff\xd8\xff"
_PLAIN: Final = ("YCbCr", "RGB", "Gray")
_SCALES: Final = (3, 2, 1, 0)  # log2 of the scaled decoder's denominators
_HASH_SIDE: Final = 32
_KEPT_BUFFER: Final = 32 << 20  # bytes of decoding buffer that a thread keeps
_LINEAR_RATIO: Final = 2.0  # bilinear sampling skips source pixels above this ratio

cv2.setNumThreads(1)
_thread = threading.local()


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as it is stored: sizes in pixels, `phash` 16 hex digits.

    original_width, original_height: as served, orientation applied.
    profile_ignored: it came with a color profile that is broken, or of another color space.
    """

    jpeg: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    phash: str
    profile_ignored: bool = False


def normalize_image(
    data: bytes,
    *,
    max_pixels: int,
    shorter_side_px: int | None = 336,
    only_if_larger: bool = True,
    jpeg_quality: int = 90,
) -> StoredImage:
    """Verify served bytes and make them the JPEG that is stored.

    The shorter side becomes `shorter_side_px` and the other floor(N * long / short)
    (None: the size stays). A plain sRGB JPEG that needs no change keeps its tables and
    scans, to the byte, after a full entropy decode; metadata and what follows the image
    are left out. Colors are converted to sRGB, orientation is applied, transparency laid
    on white, the first frame of an animation taken.

    Raises:
        ImageError: not_an_image, unsupported_format, too_many_pixels (from the header, before decoding),
            too_large (it would take far more than its pixels do), truncated_image or undecodable_image.
    """
    plan = _Plan(max_pixels, shorter_side_px, only_if_larger, jpeg_quality)
    ready = _prepared(data, plan)
    if isinstance(ready, StoredImage):
        return ready
    height, width = ready.pixels.shape[:2]
    jpeg: bytes = simplejpeg.encode_jpeg(ready.pixels, jpeg_quality, "RGB", "420")
    gray = cast(Pixels, cv2.cvtColor(ready.pixels, cv2.COLOR_RGB2GRAY))
    phash = perceptual_hash(gray)
    return StoredImage(jpeg, width, height, ready.original_width, ready.original_height, phash, ready.profile_ignored)


def pixels_to_store(
    data: bytes, *, max_pixels: int, shorter_side_px: int | None = 336, only_if_larger: bool = True
) -> Pixels:
    """Pixels [H, W, 3] uint8 RGB that `normalize_image` encodes; of a JPEG whose bytes it keeps, what they decode to.

    Raises:
        ImageError: as `normalize_image`.
    """
    ready = _prepared(data, _Plan(max_pixels, shorter_side_px, only_if_larger, 90))
    return decode_rgb(ready.jpeg) if isinstance(ready, StoredImage) else ready.pixels


def decode_rgb(jpeg: bytes, min_side: int | None = None) -> Pixels:
    """Pixels [H, W, 3] uint8 RGB of a JPEG, decoded at 1/2, 1/4 or 1/8 where the shorter side stays >= `min_side`.

    Raises:
        ImageError: the bytes cannot be decoded.
    """
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(jpeg)
        if colors in _PLAIN:
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
        height, width, colors, _ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError:
        return None
    return (height, width) if colors in _PLAIN else None


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


@dataclass(frozen=True, slots=True)
class _Ready:
    """An image before encoding: its pixels upright, resized and in sRGB."""

    pixels: Pixels
    original_width: int
    original_height: int
    profile_ignored: bool


def _prepared(data: bytes, plan: _Plan) -> _Ready | StoredImage:
    """The image before encoding, or as it is stored where its bytes are kept."""
    if data[:3] == _JPEG_START:
        try:
            found = _prepare_jpeg(data, plan)
        except ValueError:  # the strict decoder's warning: Pillow decides whether it matters
            found = None
        if found is not None:
            return found
    rgb, facts = open_pixels(data, max_pixels=plan.max_pixels, min_side=plan.shorter_side_px)
    return _upright_at_size(rgb, facts.width, facts.height, facts.orientation, plan, facts.profile_ignored)


def _prepare_jpeg(data: bytes, plan: _Plan) -> _Ready | StoredImage | None:
    """The fast path; None where Pillow is needed. ValueError: the strict decoder found something odd."""
    facts = jpeg_facts(data)
    if facts.profile_broken:  # the strict decoder would complain of it
        data = clean_jpeg(data, facts)
        facts = replace(jpeg_facts(data), orientation=facts.orientation, profile_broken=True)
    height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    if height * width > plan.max_pixels:
        raise ImageError("too_many_pixels", f"{width} x {height}")
    if colors not in _PLAIN:
        return None
    check_scans(data, facts, width * height)
    convert, ignored = _conversion(facts, colors)
    target = plan.size(width, height)
    if target == (width, height) and facts.orientation == 1 and convert is None:
        jpeg = clean_jpeg(data, facts)
        if worth_keeping(jpeg, facts, width * height):
            scale = covering_scale(height, width, 2 * _HASH_SIDE, 2 * _HASH_SIDE)
            phash = perceptual_hash(_decode(jpeg, height, width, scale, "GRAY")[:, :, 0])
            return StoredImage(jpeg, width, height, width, height, phash, ignored)
    scale = covering_scale(height, width, target[1], target[0])
    rgb = _decode(data, height, width, scale, "RGB", exact=scale == 0)
    if convert is not None:
        rgb = convert.pixels(rgb)
    return _upright_at_size(rgb, width, height, facts.orientation, plan, ignored)


def _conversion(facts: JpegFacts, colors: str) -> tuple[ToSrgb | None, bool]:
    """What makes a JPEG's colors sRGB, and whether its profile is ignored."""
    if facts.profile is None:
        return None, facts.profile_broken
    try:
        return to_srgb(facts.profile, "L" if colors == "Gray" else "RGB"), False
    except BrokenProfile:
        return None, True


def _upright_at_size(rgb: Pixels, width: int, height: int, orientation: int, plan: _Plan, ignored: bool) -> _Ready:
    """Resize decoded pixels of a `width` x `height` image and turn them upright."""
    upright = _upright(_resize(rgb, *plan.size(width, height)), orientation)
    if orientation >= 5:
        width, height = height, width
    if max(upright.shape[:2]) > 65_500:
        raise ImageError("too_many_pixels")  # JPEG cannot say it
    return _Ready(upright, width, height, ignored)


def _scaled(side: int, scale: int) -> int:
    return -(-side >> scale)


def _decode(
    data: bytes | memoryview,
    height: int,
    width: int,
    scale: int,
    colors: str,
    own: bool = False,
    exact: bool = False,
    into: Pixels | None = None,
) -> Pixels:
    """Strict decode at 1/2**scale: [H, W, 3] or [H, W, 1] uint8, in this thread's buffer unless `own` or `into`.

    exact: with smooth chroma, as the pixels are not resized.
    """
    out_height, out_width = _scaled(height, scale), _scaled(width, scale)
    size = out_height * out_width * (1 if colors == "GRAY" else 3)
    pixels: Pixels = simplejpeg.decode_jpeg(
        data,
        colors,
        min_height=out_height,
        min_width=out_width,
        min_factor=1,
        fastupsample=not own and not exact,  # as near to the reference once it is resized, and 5% faster
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
    """64 bits as 16 hex digits: which of the 8x8 lowest DCT terms of a gray [H, W] image exceed their median.

    Near images differ in few bits; compare by Hamming distance.
    """
    small = _resize(gray, _HASH_SIDE, _HASH_SIDE, cv2.INTER_AREA).astype(np.int64)
    terms = (_COSINES @ small @ _COSINES.T).ravel()
    ordered = np.sort(terms)
    above = 2 * terms > ordered[31] + ordered[32]
    return np.packbits(above).tobytes().hex()
