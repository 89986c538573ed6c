"""Served bytes of many kinds become one kind of JPEG, or a named failure."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vila_data.core.images import ImageError, decode_rgb, normalize_image, perceptual_hash, target_size

LIMIT = 89_478_485


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth, so that JPEG keeps it; with a gradient, so that turning it shows."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 200, (6, 8, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int32)
    pixels[:, :, 0] += np.linspace(0, 55, width).astype(np.int32)[None, :]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def saved(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(np.float64)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, float(np.mean((a - b) ** 2)))))


def stored(data: bytes, side: int | None = 336, **options: object):
    return normalize_image(data, **{"max_pixels": LIMIT, "shorter_side_px": side, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "size", [(640, 480), (1280, 960), (500, 375), (480, 1000), (337, 337), (3000, 400), (2700, 2690)]
)
def test_the_shorter_side_becomes_336_and_the_picture_stays(size: tuple[int, int]) -> None:
    source = picture(*size)
    image = stored(saved(source, quality=95))
    assert (image.width, image.height) == target_size(*size, 336, True)
    assert min(image.width, image.height) == 336
    assert (image.original_width, image.original_height) == size
    reference = source.resize((image.width, image.height), Image.Resampling.BICUBIC)
    assert psnr(pixels(image.jpeg), np.asarray(reference).astype(np.float64)) > 36


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1000))
def test_sizes_follow_the_paper(width: int, height: int, side: int) -> None:
    short, long = sorted((width, height))
    out = sorted(target_size(width, height, side, True))
    assert out == ([side, side * long // short] if short > side else [short, long])
    assert (target_size(width, height, side, True)[0] <= target_size(width, height, side, True)[1]) or width >= height


def test_a_plain_small_jpeg_keeps_its_bytes() -> None:
    for options in ({}, {"progressive": True}, {"quality": 30}):
        data = saved(picture(400, 300), **options)
        assert stored(data).jpeg == data
    gray = saved(picture(200, 100).convert("L"))
    assert stored(gray).jpeg == gray
    assert stored(saved(picture(900, 700)), side=None).width == 900


def test_small_pictures_grow_only_when_asked() -> None:
    data = saved(picture(100, 50))
    assert (stored(data).width, stored(data).height) == (100, 50)
    grown = stored(data, only_if_larger=False)
    assert (grown.width, grown.height) == (672, 336)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(300, 200), (1200, 800)])
def test_exif_orientation_is_applied_once(orientation: int, size: tuple[int, int]) -> None:
    source = picture(*size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright_data = saved(Image.open(io.BytesIO(saved(source, "PNG"))), quality=95)
    data = saved(source, exif=exif, quality=95)
    image = stored(data)
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (image.original_width, image.original_height) == upright.size
    reference = np.asarray(upright.resize((image.width, image.height), Image.Resampling.BICUBIC)).astype(np.float64)
    assert psnr(pixels(image.jpeg), reference) > 34
    assert Image.open(io.BytesIO(image.jpeg)).getexif().get(0x0112, 1) == (1 if orientation != 1 else orientation)
    assert (image.phash == stored(upright_data).phash) == (orientation == 1)


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGB", "PNG"), ("RGBA", "PNG"),
        ("RGB", "WEBP"), ("RGBA", "WEBP"), ("RGB", "BMP"), ("RGB", "TIFF"), ("CMYK", "TIFF"), ("CMYK", "JPEG"),
        ("I;16", "PNG"), ("I;16", "TIFF"), ("F", "TIFF"), ("L", "JPEG"), ("YCbCr", "JPEG"),
    ],
)  # fmt: skip
def test_every_mode_becomes_rgb(mode: str, form: str) -> None:
    source = picture(500, 400)
    if mode == "I;16":
        converted = Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257)
    else:
        converted = source.convert(mode)
    image = stored(saved(converted, form))
    with Image.open(io.BytesIO(image.jpeg)) as result:
        assert result.format == "JPEG"
        assert result.mode in ("RGB", "L")
    assert (image.width, image.height) == (420, 336)
    gray = np.asarray(source.convert("L").resize((420, 336), Image.Resampling.BICUBIC)).astype(np.float64)
    if mode != "1":  # dithered
        found = np.asarray(Image.open(io.BytesIO(image.jpeg)).convert("L")).astype(np.float64)
        assert psnr(found, gray) > 24


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert pixels(stored(saved(clear, "PNG")).jpeg).min() > 250
    palette = Image.new("P", (40, 40), 0)
    assert pixels(stored(saved(palette, "PNG", transparency=0)).jpeg).min() > 250


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (50, 40), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        data = saved(frames[0], form, save_all=True, append_images=frames[1:])
        red, _, blue = pixels(stored(data).jpeg).mean(axis=(0, 1))
        assert red > 200 and blue < 60, form


@pytest.mark.parametrize(
    "data",
    [b"", b"<html><body>not found</body></html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4",
     b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 1000, b"GIF", b"RIFF\0\0\0\0WAVEfmt "],
)  # fmt: skip
def test_what_is_no_picture_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        stored(data)
    assert caught.value.error_class == "not_an_image"


def png_header(width: int, height: int, body: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + idat + chunk(b"IEND", b"")


def test_too_many_pixels_are_refused_from_the_header_and_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (png_header(50_000, 50_000), png_header(9_500, 9_500)):
            with pytest.raises(ImageError) as caught:
                stored(data)
            assert caught.value.error_class == "too_many_pixels"
    data = saved(picture(400, 300))
    with pytest.raises(ImageError) as caught:
        stored(data, max_pixels=400 * 300 - 1)
    assert caught.value.error_class == "too_many_pixels"
    assert stored(data, max_pixels=400 * 300).jpeg == data


def test_a_text_chunk_bomb_is_bounded() -> None:
    content = b"Comment\0\0" + zlib.compress(bytes(50_000_000))
    bomb = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    assert stored(png_header(10, 10, bomb)).width == 10


def test_a_progressive_file_of_endless_scans_is_refused() -> None:
    data = saved(picture(4000, 3000), progressive=True)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError) as caught:
        stored(data[:-2] + data[scan:-2] * 400 + b"\xff\xd9")
    assert caught.value.error_class == "too_large"


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("form", "size"),
    [("JPEG", (300, 200)), ("JPEG", (900, 700)), ("PNG", (300, 200)), ("WEBP", (300, 200)), ("GIF", (300, 200))],
)
def test_cut_pictures_fail(form: str, size: tuple[int, int], share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    data = saved(noise, form)
    with pytest.raises(ImageError) as caught:
        stored(data[: int(len(data) * share)])
    assert caught.value.error_class in ("truncated_image", "undecodable_image")
    if form == "JPEG":
        assert caught.value.error_class == "truncated_image"


def test_harmless_warnings_pass() -> None:
    data = saved(picture(300, 200))
    assert stored(data + b"trailing bytes").width == 300
    odd = data[:2] + b"\xff\xfe\x00\x04ab" + data[2:]
    assert stored(odd).width == 300


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_never_raises_anything_else(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]))
    content = bytearray(saved(picture(80, 60), form))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = normalize_image(bytes(content), max_pixels=1_000_000, shorter_side_px=48)
    except ImageError:
        return
    assert decode_rgb(image.jpeg).shape == (image.height, image.width, 3)


def test_decoding_keeps_the_side_asked_for() -> None:
    data = saved(picture(1000, 800))
    assert decode_rgb(data).shape == (800, 1000, 3)
    assert decode_rgb(data, 336).shape == (400, 500, 3)
    assert decode_rgb(data, 401).shape == (800, 1000, 3)
    assert decode_rgb(data, 100).shape == (100, 125, 3)
    assert decode_rgb(saved(picture(64, 48).convert("L"))).shape == (48, 64, 3)
    assert decode_rgb(saved(picture(64, 48).convert("CMYK"))).shape == (48, 64, 3)
    with pytest.raises(ImageError):
        decode_rgb(data[: len(data) // 2])


def test_decoded_pixels_are_the_callers_own() -> None:
    first = decode_rgb(saved(picture(64, 48, 1)))
    copy = first.copy()
    decode_rgb(saved(picture(64, 48, 2)))
    stored(saved(picture(900, 700)))
    assert np.array_equal(first, copy)


def test_near_pictures_have_near_hashes() -> None:
    def distance(a: str, b: str) -> int:
        return bin(int(a, 16) ^ int(b, 16)).count("1")

    source = picture(800, 600, 3)
    base = stored(saved(source, quality=95)).phash
    assert len(base) == 16
    assert distance(base, stored(saved(source.resize((500, 375)), quality=60)).phash) <= 4
    assert distance(base, stored(saved(source.resize((300, 225)))).phash) <= 4
    assert min(distance(base, stored(saved(picture(800, 600, seed))).phash) for seed in range(10, 20)) > 10


def test_the_hash_is_the_same_everywhere() -> None:
    ramp = (np.arange(64)[:, None] * 3 + np.arange(64)[None, :] ** 2 // 32).astype(np.uint8)
    assert perceptual_hash(ramp) == perceptual_hash(ramp.copy())
    assert perceptual_hash(np.zeros((40, 40), np.uint8)) == perceptual_hash(np.zeros((300, 200), np.uint8))


def test_big_cmyk_and_adobe_inversion_agree_with_pillow() -> None:
    source = picture(1500, 1000).convert("CMYK")
    image = stored(saved(source, quality=95))
    reference = source.convert("RGB").resize((image.width, image.height), Image.Resampling.BICUBIC)
    assert psnr(pixels(image.jpeg), np.asarray(reference).astype(np.float64)) > 30
    assert simplejpeg.decode_jpeg_header(image.jpeg)[2] == "YCbCr"
