"""Decoded pixels to upright sRGB: EXIF orientation, ICC profiles (by LittleCMS), and the modes that Pillow decodes to."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

Pixels = npt.NDArray[np.uint8]

_SPACES: Final = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}
_CLASSES: Final = (b"scnr", b"mntr", b"prtr", b"spac")
_MOST_BYTES: Final = 8 << 20
_CACHED: Final = 8  # profiles that a thread remembers
_SAME: Final = 2  # levels that a profile may move a color and still be sRGB
_STRIP: Final = 1 << 20  # pixels that are converted at once
_thread = threading.local()
_RASTER_STRIP: Final = 1 << 19  # pixels at once
_DEEP: Final = ("I", "F")
_BRIGHTEST: Final = 8.0
"""Of floats whose white is 1: renderers go beyond it."""
_WITH_ALPHA: Final = ("RGBA", "LA", "PA", "La", "RGBa")

_TAG: Final = 0x0112
_PREFIX: Final = b"Exif\0\0"
_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">"}
_WHOLE: Final = {3: "H", 4: "I", 8: "h", 9: "i"}  # SHORT, LONG, SSHORT, SLONG
_XMP: Final = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation_of(exif: bytes | None, xmp: bytes | None) -> int:
    """The EXIF orientation, 1 to 8, of an image with these metadata; 1 where they say nothing that can be read."""
    found = None if exif is None else _exif_orientation(exif)
    if found is None and xmp is not None:
        named = _XMP.search(xmp)
        found = int(named[1]) if named else None
    return found if found is not None and 1 <= found <= 8 else 1


def _exif_orientation(exif: bytes) -> int | None:
    """The tag's value in the first directory; None without such a tag."""
    while exif.startswith(_PREFIX):
        exif = exif[len(_PREFIX) :]
    order = _ORDERS.get(exif[:4])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", exif, entry)
            if tag == _TAG:
                return _value(exif, order, kind, values, entry + 8)
    except struct.error:
        return None  # cut or wrong: no orientation, as other readers do
    return None


def _value(exif: bytes, order: str, kind: int, values: int, at: int) -> int:
    """The first value of an entry; 0 where it is not a whole number."""
    code = _WHOLE.get(kind)
    if code is None or values < 1:
        return 0
    if values * struct.calcsize(code) > 4:
        (at,) = struct.unpack_from(order + "I", exif, at)
    (value,) = struct.unpack_from(order + code, exif, at)
    return int(value)


class BrokenProfile(Exception):
    """Bytes that are not an ICC profile, or a profile that does not fit the image."""


class ToSrgb:
    """Colors of one profile to sRGB. `mode`: what `image` takes: L, RGB or CMYK."""

    def __init__(self, transform: Any, mode: str) -> None:
        self._transform = transform
        self.mode = mode

    def image(self, image: Image.Image) -> Image.Image:
        """An image of `mode`, as sRGB."""
        converted: Image.Image = self._transform.apply(image)
        return converted

    def pixels(self, rgb: Pixels) -> Pixels:
        """Pixels [H, W, 3] (of gray profiles with three equal channels) as sRGB, in new memory."""
        out = np.empty_like(rgb)
        step = max(1, _STRIP // max(1, rgb.shape[1]))
        for top in range(0, rgb.shape[0], step):
            strip = rgb[top : top + step]
            image = Image.fromarray(np.ascontiguousarray(strip[:, :, 0] if self.mode == "L" else strip))
            out[top : top + step] = np.asarray(self.image(image))
        return out


def to_srgb(profile: bytes, mode: str) -> ToSrgb | None:
    """The conversion of an image whose colors are L, RGB or CMYK; None where the profile changes nothing.

    A gray image may have an RGB profile: its levels are equal channels then, and `ToSrgb.mode` is RGB.

    Raises:
        BrokenProfile: it cannot be read, is of another kind, or of another color space.
    """
    known: OrderedDict[bytes, ToSrgb | BrokenProfile | None] | None = getattr(_thread, "profiles", None)
    if known is None:
        known = _thread.profiles = OrderedDict()
    key = hashlib.blake2b(profile, digest_size=16).digest() + mode.encode()
    if key not in known:
        try:
            known[key] = _conversion(profile, mode)
        except BrokenProfile as error:
            known[key] = error
        if len(known) > _CACHED:
            known.popitem(last=False)
    known.move_to_end(key)
    found = known[key]
    if isinstance(found, BrokenProfile):
        raise BrokenProfile(str(found))
    return found


def _conversion(profile: bytes, mode: str) -> ToSrgb | None:
    own = _SPACES.get(profile[16:20])
    if not 132 <= len(profile) <= _MOST_BYTES or profile[36:40] != b"acsp" or profile[12:16] not in _CLASSES:
        raise BrokenProfile("not an image profile")
    if own is None or not (own == mode or (own == "RGB" and mode == "L")):
        raise BrokenProfile(f"a profile of {profile[16:20]!r} for an image of {mode}")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, _srgb(), own, "RGB", ImageCms.Intent.PERCEPTUAL)
        conversion = ToSrgb(transform, own)
        changes = any(_moved(conversion, probe) for probe in _probes(own))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, MemoryError) as error:
        raise BrokenProfile(str(error)) from error
    return conversion if changes else None


def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


def _probes(mode: str) -> Iterator[Image.Image]:
    """Colors that show whether a profile is sRGB."""
    ramp = np.arange(256, dtype=np.uint8)
    if mode == "L":
        yield Image.fromarray(ramp[None, :])
    elif mode == "RGB":
        yield Image.fromarray(np.repeat(ramp[None, :, None], 3, axis=2))
        steps = np.linspace(0, 255, 9).astype(np.uint8)
        yield Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(9, 81, 3))
    else:
        yield Image.new(mode, (1, 1))  # ink is never sRGB


def _moved(conversion: ToSrgb, probe: Image.Image) -> bool:
    if probe.mode == "CMYK":
        return True
    before = np.asarray(probe.convert("RGB")).astype(np.int16)
    return bool(np.abs(np.asarray(conversion.image(probe)).astype(np.int16) - before).max() > _SAME)


@dataclass(frozen=True, slots=True)
class Raster:
    """What a decoder gave.

    strip:  the rows from one to before another, as an image of `mode`.
    key:    the value of a sample (of three) that is transparent, as `strip` has it; None where none is.
    levels: (lowest, highest) of the samples, asked for modes of 16 bits and more.
    negate: the lowest value of a deep gray sample is white.
    bits, signed: of a deep sample as stored; 0: as `mode` says.
    """

    width: int
    height: int
    mode: str
    strip: Callable[[int, int], Image.Image]
    key: int | tuple[int, ...] | None = None
    levels: Callable[[], Any] | None = None
    negate: bool = False
    bits: int = 0
    signed: bool = False


def image_raster(
    image: Image.Image,
    key: int | tuple[int, ...] | None = None,
    negate: bool = False,
    bits: int = 0,
    signed: bool = False,
) -> Raster:
    """The raster of a loaded image; palettes and alpha are its own, `key` as in Raster."""
    width, height = image.size

    def strip(top: int, bottom: int) -> Image.Image:
        return image.crop((0, top, width, bottom))

    return Raster(width, height, image.mode, strip, key, image.getextrema, negate, bits, signed)


def array_raster(bgr: Pixels) -> Raster:
    """The raster of what OpenCV decoded: [H, W], BGR [H, W, 3] or BGRA [H, W, 4]."""
    mode: Literal["L", "RGB", "RGBA"] = "L" if bgr.ndim == 2 else "RGB" if bgr.shape[2] == 3 else "RGBA"
    code = {"RGB": cv2.COLOR_BGR2RGB, "RGBA": cv2.COLOR_BGRA2RGBA}

    def strip(top: int, bottom: int) -> Image.Image:
        rows = np.ascontiguousarray(bgr[top:bottom])
        return Image.fromarray(rows if mode == "L" else cv2.cvtColor(rows, code[mode]))

    return Raster(bgr.shape[1], bgr.shape[0], mode, strip)


def rgb_pixels(raster: Raster, profile: bytes | None, scale: int) -> tuple[Pixels, bool]:
    """RGB [ceil(H / 2**scale), ceil(W / 2**scale), 3] uint8 in sRGB, and whether the profile was ignored as broken."""
    eight = _eight_bits(raster)
    space = _space(raster.mode)
    convert: ToSrgb | None = None
    ignored = False
    if profile is not None:
        try:
            convert = to_srgb(profile, space)
        except BrokenProfile:
            ignored = True
    factor = 1 << scale
    width, height = -(-raster.width // factor), -(-raster.height // factor)
    out = np.empty((height, width, 3), np.uint8)
    rows = max(1, _RASTER_STRIP // (raster.width * factor))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = raster.strip(top * factor, min(bottom * factor, raster.height))
        rgb = np.asarray(_strip_rgb(strip, raster, eight, convert))
        out[top:bottom] = _averaged(rgb, factor)
    return out, ignored


def _space(mode: str) -> str:
    if mode in ("1", "L", "LA", "La", *_DEEP) or mode.startswith("I;16"):
        return "L"
    return "CMYK" if mode == "CMYK" else "Lab" if mode == "LAB" else "RGB"


def _strip_rgb(
    strip: Image.Image, raster: Raster, eight: Callable[[Any], Pixels] | None, convert: ToSrgb | None
) -> Image.Image:
    alpha: Image.Image | None = None
    if raster.key is not None:
        alpha = _keyed(strip, raster.key)
    if eight is not None:
        strip = Image.fromarray(eight(np.asarray(strip)))
    elif strip.mode in _WITH_ALPHA or (strip.mode == "P" and "transparency" in strip.info):
        if strip.mode == "La":
            strip = strip.convert("LA")
        rgba = strip.convert("RGBA")
        alpha = rgba.getchannel("A")
        strip = strip.convert("L") if strip.mode == "LA" else rgba.convert("RGB")
    elif strip.mode == "1":
        strip = strip.convert("L")
    strip.info.pop("transparency", None)
    if convert is None:
        rgb = strip if strip.mode == "RGB" else strip.convert("RGB")
    else:
        rgb = convert.image(strip if strip.mode == convert.mode else strip.convert(convert.mode))
    if alpha is None:
        return rgb
    white = Image.new("RGB", rgb.size, (255, 255, 255))
    white.paste(rgb, mask=alpha)
    return white


def _keyed(strip: Image.Image, key: int | tuple[int, ...]) -> Image.Image:
    """The alpha of a strip in which one color is transparent."""
    values = np.asarray(strip.convert("L") if strip.mode == "1" else strip)
    clear = values == key if isinstance(key, int) else (values[:, :, :3] == np.asarray(key)).all(axis=2)
    return Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))


def _averaged(rgb: Pixels, factor: int) -> Pixels:
    """Means of factor x factor pixels; what is missing at the right and at the bottom is repeated."""
    if factor == 1:
        return rgb
    height, width = rgb.shape[:2]
    down, right = -height % factor, -width % factor
    if down or right:
        rgb = cast(Pixels, cv2.copyMakeBorder(rgb, 0, down, 0, right, cv2.BORDER_REPLICATE))
    size = (rgb.shape[1] // factor, rgb.shape[0] // factor)
    return cast(Pixels, cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)).reshape(size[1], size[0], 3)


def _eight_bits(raster: Raster) -> Callable[[Any], Pixels] | None:
    """Deep gray samples -> 0..255; None for modes of 8 bits.

    Samples of up to 16 bits have the range of their bits, whatever the values. Samples of 32 bits are taken as 8, 16 or
    all their bits: the least that holds the highest of them. Floats are 0..1, of which some may be brighter than white, or
    0..255.
    """
    wide = raster.mode.startswith("I;16")
    if not wide and raster.mode not in _DEEP:
        return None
    wraps = raster.mode == "I" and raster.bits == 32 and not raster.signed  # Pillow has such samples signed
    if wide or 0 < raster.bits <= 16:
        high = 2.0 ** ((raster.bits or 16) - raster.signed) - 1
    else:
        lowest, highest = raster.levels() if raster.levels else (0, 255)
        if raster.mode == "F":
            high = 1.0 if not highest > _BRIGHTEST else 255.0
        else:
            most = 2.0**32 - 1 if wraps else 2.0**31 - 1
            high = most if wraps and lowest < 0 else next(top for top in (255.0, 65_535.0, most) if highest <= top)
    negate = raster.negate

    def eight(values: Any) -> Pixels:
        floats = np.nan_to_num(np.asarray(values, np.float64), nan=0.0, posinf=high, neginf=0.0)
        if wraps:
            floats = np.where(floats < 0, floats + 2.0**32, floats)
        floats *= 255.0 / high
        levels: Pixels = np.clip(np.rint(floats), 0, 255).astype(np.uint8)
        return 255 - levels if negate else levels

    return eight
