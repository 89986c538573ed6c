"""JPEG bytes -> RGB pixels [size, size, 3] uint8, the ways that loaders' users take. Needs Pillow, OpenCV, simplejpeg."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

cv2.setNumThreads(1)


def by_pillow(jpeg: bytes, size: int) -> Any:
    """As documented by most: Pillow's decode and its own resize, which is bicubic with antialiasing."""
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("RGB").resize((size, size)))


def by_simplejpeg(jpeg: bytes, size: int) -> Any:
    """A good decoder by hand: libjpeg-turbo, at the power of two above the size (other scales are slow), then resized."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    scale = next(scale for scale in (8, 4, 2, 1) if scale == 1 or min(height, width) // scale >= size)
    pixels = simplejpeg.decode_jpeg(
        jpeg, "RGB", fastupsample=True, min_height=height // scale, min_width=width // scale, min_factor=scale
    )
    method = cv2.INTER_AREA if max(pixels.shape[:2]) > 2 * size else cv2.INTER_LINEAR
    return cv2.resize(pixels, (size, size), interpolation=method)


def by_opencv(jpeg: bytes, size: int) -> Any:
    """OpenCV alone, with an area resize."""
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), (size, size), interpolation=cv2.INTER_AREA)


def reference(jpeg: bytes, size: int) -> Any:
    """Full decode and an antialiased resize, whose output others are compared with."""
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, reducing_gap=None))


DECODERS = {"pillow": by_pillow, "simplejpeg": by_simplejpeg, "opencv": by_opencv}
