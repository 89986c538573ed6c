"""Thumbnails: small, never enlarged, the same each time."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vila_data.core.errors import DataError
from vila_data.explore.thumbnail import Thumbnail, data_uri


def jpeg(width: int, height: int, mode: str = "RGB") -> bytes:
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) % 256], axis=-1)
    stream = io.BytesIO()
    Image.fromarray(rgb.astype(np.uint8)).convert(mode).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def picture(thumbnail: Thumbnail) -> Image.Image:
    head, data = thumbnail.uri.split(",", 1)
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((640, 480), 256, (256, 192)),
        ((480, 640), 256, (192, 256)),
        ((100, 80), 256, (100, 80)),
        ((1, 1), 8, (1, 1)),
        ((336, 336), 336, (336, 336)),
        ((4000, 40), 200, (160, 40)),
        ((40, 4000), 200, (40, 160)),
        ((3, 900), 100, (3, 12)),
    ],
)
def test_size(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    found = data_uri(jpeg(*size), side)
    assert (found.width, found.height) == expected == picture(found).size


def test_it_shows_the_picture() -> None:
    found = np.asarray(picture(data_uri(jpeg(512, 512), 64, 90)), float)
    assert found[:, 5, 0].mean() + 120 < found[:, 58, 0].mean()  # red grows to the right
    assert found[5, :, 1].mean() + 120 < found[58, :, 1].mean()  # green grows downwards


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours(mode: str) -> None:
    assert picture(data_uri(jpeg(300, 200, mode), 100)).size == (100, 67)


def test_the_same_bytes_each_time_and_fewer_with_less_quality() -> None:
    one = jpeg(640, 480)
    assert data_uri(one, 256) == data_uri(one, 256)
    assert len(data_uri(one, 256, 30).uri) < len(data_uri(one, 256, 90).uri)
    assert len(data_uri(one, 96).uri) < len(data_uri(one, 256).uri)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"<svg onload=alert(1)>", jpeg(64, 64)[:200]])
def test_what_is_no_picture_is_an_error(data: bytes) -> None:
    with pytest.raises(DataError, match="cannot be decoded"):
        data_uri(data, 64)
