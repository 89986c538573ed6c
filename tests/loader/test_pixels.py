"""JPEG to pixels in place: as near to an antialiased resize as the scaled decoder allows, whatever the picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tests.core.test_images import picture, psnr, saved
from vila_data.core.images import ImageError, decode_rgb, decode_scaled, plain_size
from vila_data.loader.pixels import ImageOptions, decode_into, fill_background

FITS = ("pad", "resize", "crop")
SIZES = [(640, 480), (500, 375), (375, 500), (333, 500), (336, 448), (448, 336), (336, 336), (672, 504), (2000, 1501)]
ODD = [(1, 1), (1, 700), (700, 1), (3, 5000), (5000, 3), (1900, 100), (17, 23), (3001, 2999), (4000, 337)]


def decoded(jpeg: bytes, fit: str, side: int) -> np.ndarray:
    """Into the middle of something larger, whose rest must stay."""
    around = np.full((3, side, side, 3), 77, np.uint8)
    decode_into(jpeg, ImageOptions(size_px=side, fit=fit), around[1])  # type: ignore[arg-type]
    assert (around[[0, 2]] == 77).all()
    return around[1]


def with_sides(jpeg: bytes, side: int) -> bytes:
    """A damaged header: it says that the picture is side x side."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + side.to_bytes(2, "big") * 2 + jpeg[at + 4 :]


def reference(jpeg: bytes, fit: str, side: int) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Pillow's full decode and antialiased bicubic; and where in the square the picture is."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    width, height = image.size
    whole = (slice(0, side), slice(0, side))
    if fit == "resize":
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)), whole
    if fit == "crop":
        short = min(width, height)
        wide, tall = side * width // short, side * height // short
        left, top = (wide - side) // 2, (tall - side) // 2
        image = image.resize((wide, tall), Image.Resampling.BICUBIC)
        return np.asarray(image.crop((left, top, left + side, top + side))), whole
    long = max(width, height)
    wide, tall = max(1, round(width * side / long)), max(1, round(height * side / long))
    left, top = (side - wide) // 2, (side - tall) // 2
    square = np.empty((side, side, 3), np.uint8)
    square[:] = ImageOptions().background
    place = (slice(top, top + tall), slice(left, left + wide))
    square[place] = np.asarray(image.resize((wide, tall), Image.Resampling.BICUBIC))
    return square, place


@pytest.mark.parametrize("side", [336, 224])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_a_picture_is_where_the_reference_has_it(size: tuple[int, int], fit: str, side: int) -> None:
    jpeg = saved(picture(*size), quality=95)
    pixels = decoded(jpeg, fit, side)
    expected, place = reference(jpeg, fit, side)
    assert psnr(pixels[place].astype(float), expected[place].astype(float)) > 36
    padding = np.ones((side, side), bool)
    padding[place] = False
    assert (pixels[padding] == ImageOptions().background).all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", ODD)
def test_odd_sizes(size: tuple[int, int], fit: str) -> None:
    jpeg = saved(picture(*size), quality=95, subsampling=0)
    pixels = decoded(jpeg, fit, 48)
    assert pixels[24, 24].max() > 0
    if fit != "crop" or max(size) < 100 * min(size):  # Pillow would resize all of what is cut
        expected, place = reference(jpeg, fit, 48)
        least = 28 if min(size) != 3 else 20  # three pixels decoded as one
        assert psnr(pixels[place].astype(float), expected[place].astype(float)) > least


@pytest.mark.parametrize("fit", FITS)
def test_a_fine_pattern_does_not_move(fit: str) -> None:
    """A shift of half a pixel would cost most of this: odd sides at every scale of the decoder."""
    rng = np.random.default_rng(3)
    for width, height in [(337, 451), (501, 675), (447, 445), (999, 1333), (1333, 999), (1999, 1503)]:
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        jpeg = saved(coarse.resize((width, height), Image.Resampling.BICUBIC), quality=98, subsampling=0)
        for side in (64, 100, 112, 224):  # 447 / 4 and 445 / 4 are decoded as 112, but are not
            expected, place = reference(jpeg, fit, side)
            pixels, right = decoded(jpeg, fit, side)[place].astype(float), expected[place].astype(float)
            moved = (right[1:, 1:] + right[:-1, :-1]) / 2  # by half a pixel
            assert psnr(pixels, right) > max(38, 6 + psnr(moved, right[1:, 1:])), (width, height, side)


def test_kinds_of_jpeg() -> None:
    image = picture(420, 315)
    plain = decoded(saved(image, quality=95), "pad", 96).astype(float)
    for options in ({"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 90, "optimize": True}):
        assert psnr(decoded(saved(image, **{"quality": 95, **options}), "pad", 96).astype(float), plain) > 36
    assert psnr(decoded(saved(image.convert("CMYK"), quality=95), "pad", 96).astype(float), plain) > 30
    gray = decoded(saved(image.convert("L")), "resize", 96)
    assert (np.ptp(gray, axis=2) == 0).all()
    assert psnr(gray.astype(float), np.asarray(image.convert("L").convert("RGB").resize((96, 96))).astype(float)) > 36


def test_memory_of_a_map_is_read_and_written_in_place() -> None:
    jpeg = saved(picture(336, 252))
    batch = np.zeros((4, 336, 336, 3), np.uint8)
    decode_into(memoryview(bytearray(b"xx" + jpeg))[2:], ImageOptions(), batch[2])
    assert (batch[[0, 1, 3]] == 0).all()
    expected = decode_scaled(jpeg, 252, 336, 0)
    assert expected is not None
    assert np.array_equal(batch[2][42:294], expected)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda jpeg: jpeg[: len(jpeg) // 2], "truncated_image"),
        (lambda jpeg: jpeg[:20], "truncated_image"),
        (lambda jpeg: with_sides(jpeg, 65000), "too_many_pixels"),
        (lambda jpeg: b"<html>no picture</html>", "not_an_image"),
        (lambda jpeg: b"", "not_an_image"),
    ],
)
def test_a_broken_picture_is_named(damage, error: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ImageError) as caught:
        decoded(damage(saved(picture(500, 375))), "pad", 96)
    assert caught.value.error_class == error


def test_the_scaled_decoder_says_what_it_does_not_take() -> None:
    assert plain_size(saved(picture(50, 30))) == (30, 50)
    assert plain_size(saved(picture(50, 30).convert("CMYK"))) is None
    assert plain_size(b"\xff\xd8\xff") is None
    whole = saved(picture(50, 30))
    assert decode_scaled(whole[:-200], 30, 50, 0) is None
    small = decode_scaled(whole, 30, 50, 1)
    assert small is not None
    assert small.shape == (15, 25, 3)
    assert decode_rgb(whole).shape == (30, 50, 3)


def test_background() -> None:
    out = np.zeros((20, 20, 3), np.uint8)
    fill_background(ImageOptions(size_px=20, background=(1, 2, 3)), out)
    assert (out == (1, 2, 3)).all()
    for wrong in ({"size_px": 0}, {"fit": "stretch"}, {"background": (1, 2, 300)}):
        with pytest.raises(ValidationError):
            ImageOptions(**wrong)


@pytest.mark.realdata
@pytest.mark.parametrize("side", [336, 224])
@pytest.mark.parametrize("fit", FITS)
def test_photographs(fit: str, side: int, shared: Path) -> None:
    files = sorted((shared / "realdata/flickr8k/images").glob("*.jpg"))[:40]
    assert len(files) == 40
    values = []
    for file in files:
        jpeg = file.read_bytes()
        expected, place = reference(jpeg, fit, side)
        values.append(psnr(decoded(jpeg, fit, side)[place].astype(float), expected[place].astype(float)))
    assert np.median(values) >= 33
