"""ICC profiles -> sRGB, by LittleCMS. A profile that is sRGB already costs a hash of it."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final

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


class BrokenProfile(Exception):
    """Bytes that are no ICC profile, or one that does not fit the picture."""


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
    """The conversion of a picture whose colors are L, RGB or CMYK; None where the profile changes nothing.

    A gray picture may have an RGB profile: its levels are equal channels then, and `ToSrgb.mode` is RGB.

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
        raise BrokenProfile("not the profile of a picture")
    if own is None or not (own == mode or (own == "RGB" and mode == "L")):
        raise BrokenProfile(f"a profile of {profile[16:20]!r} for a picture of {mode}")
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
