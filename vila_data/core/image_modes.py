"""Decoded pixels of any mode -> RGB: colors to sRGB, transparency on white, deep samples to 8 bits.

It goes strip by strip, and large pictures are averaged down on the way, so that the only
large thing in memory is what the decoder gave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from vila_data.core.color import BrokenProfile, ToSrgb, to_srgb

Pixels = npt.NDArray[np.uint8]

_STRIP: Final = 1 << 19  # pixels at once
_DEEP: Final = ("I", "F")
_BRIGHTEST: Final = 8.0
"""Of floats whose white is 1: renderers go beyond it."""
_WITH_ALPHA: Final = ("RGBA", "LA", "PA", "La", "RGBa")


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
    rows = max(1, _STRIP // (raster.width * factor))
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
