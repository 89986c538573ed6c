"""What is stored is what an eye sees, and nothing else of the file; hostile files cost little."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tests.core.made_pictures import (
    Case,
    cases,
    chart,
    exif_of,
    flat,
    png_chunk,
    png_of,
    saved,
    seen_with,
    segment,
    with_segments,
    xmp_of,
)
from tests.core.made_profiles import gray_profile, ink_profile, rgb_profile
from vila_data.core.image_formats import ImageError
from vila_data.core.image_pixels import BrokenProfile, orientation_of, to_srgb
from vila_data.core.images import StoredImage, normalize_image, pixels_to_store

LIMIT = 89_478_485
CHART = chart()


def stored(data: bytes, side: int | None = 336) -> StoredImage:
    return normalize_image(data, max_pixels=LIMIT, shorter_side_px=side)


def error_of(data: bytes) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        stored(data)
    return caught.value.error_class, caught.value.detail


def assert_seen(case: Case, side: int | None = None) -> None:
    got = pixels_to_store(case.data, max_pixels=LIMIT, shorter_side_px=side).astype(np.int16)
    assert got.shape == case.seen.shape, case.name
    delta = np.abs(got - case.seen)
    assert delta.mean() <= 2 and np.percentile(delta, 99) <= 6, (case.name, delta.mean(), np.percentile(delta, 99))


def test_every_format_mode_profile_and_orientation_is_seen_as_it_is() -> None:
    names = set()
    for case in cases(chart(120, 80)):
        assert_seen(case)
        names.add(case.name)
    assert len(names) > 300


@pytest.mark.realdata
def test_photographs_are_seen_as_they_are(shared: Path) -> None:
    for path in sorted((shared / "realdata" / "flickr8k" / "images").iterdir())[:6]:
        with Image.open(path) as image:
            source = Image.fromarray(np.asarray(image.convert("RGB")))
        for case in cases(source):
            assert_seen(case)


# profiles


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_profile_that_is_srgb_changes_no_byte_of_the_picture(mode: str) -> None:
    icc = rgb_profile("srgb") if mode == "RGB" else gray_profile(None)
    plain = saved(CHART.convert(mode), "JPEG")
    assert stored(saved(CHART.convert(mode), "JPEG", icc_profile=icc)).jpeg == plain == stored(plain).jpeg
    assert to_srgb(icc, mode) is None


@pytest.mark.parametrize("name", ["display-p3", "adobe-rgb", "prophoto"])
def test_a_jpeg_of_another_profile_does_not_keep_its_bytes(name: str) -> None:
    data = saved(CHART, "JPEG", quality=95, subsampling=0, icc_profile=rgb_profile(name))
    image = stored(data)
    assert image.jpeg[:400] != data[:400] and not image.profile_ignored
    assert b"ICC_PROFILE" not in image.jpeg


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("broken", ["rubbish", "another space", "cut", "a device link"])
def test_a_broken_profile_is_ignored_and_counted(form: str, broken: str) -> None:
    good = rgb_profile("display-p3")
    icc = {
        "rubbish": b"no profile at all" * 20,
        "another space": ink_profile(),
        "cut": good[:200],
        "a device link": good[:12] + b"link" + good[16:],
    }[broken]
    options = {"lossless": True} if form == "WEBP" else {"quality": 95, "speed": 9} if form == "AVIF" else {}
    image = stored(saved(CHART, form, icc_profile=icc, **options))
    assert image.profile_ignored
    plain = stored(saved(CHART, form, **options))
    assert plain.jpeg == image.jpeg and not plain.profile_ignored
    with pytest.raises(BrokenProfile):
        to_srgb(icc, "RGB")


def test_a_profile_with_a_missing_piece_is_broken() -> None:
    icc = rgb_profile("adobe-rgb")
    halves = [segment(0xE2, b"ICC_PROFILE\0" + bytes((at, 2)) + icc[start:stop])
              for at, start, stop in ((1, 0, 500), (2, 500, len(icc)))]  # fmt: skip
    jpeg = saved(CHART, "JPEG")
    assert stored(with_segments(jpeg, halves[0])).profile_ignored
    assert stored(with_segments(jpeg, halves[0])).jpeg == jpeg
    whole = stored(with_segments(jpeg, *reversed(halves)))  # in any order
    assert not whole.profile_ignored and whole.jpeg != jpeg


def test_a_compressed_profile_that_grows_without_end_is_broken() -> None:
    bomb = png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(50_000_000)))
    data = png_of(np.asarray(CHART), 8, 2, bomb)
    assert stored(data).profile_ignored and stored(data).width == CHART.width


# what is kept of a JPEG


def test_metadata_and_what_follows_the_image_are_left_out_and_the_scan_stays() -> None:
    jpeg = saved(CHART, "JPEG", quality=90)
    metadata = [
        segment(0xE1, b"Exif\0\0" + exif_of(1)),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<x/>" * 1000),
        *(segment(0xE2, b"MPF\0" + bytes(65_000)) for _ in range(40)),
        segment(0xED, b"Photoshop 3.0\0" + bytes(5000)),
        segment(0xFE, b"a comment"),
        segment(0xE0, b"JFXX\0\x10" + bytes(3000)),
        segment(0xEE, b"Adobe\0d\0\0\0\0\1"),  # JFIF says YCbCr already
    ]
    for options in ({}, {"progressive": True}, {"optimize": True}):
        plain = saved(CHART, "JPEG", quality=90, **options)
        heavy = plain[:20] + b"".join(metadata) + plain[20:] + bytes(100_000) + jpeg
        assert len(heavy) > 2_600_000
        assert stored(heavy).jpeg == plain == stored(plain).jpeg
        before_tables = with_segments(plain, *metadata)
        assert stored(before_tables).jpeg == plain


def test_a_thumbnail_in_jfif_goes_and_adobe_stays_where_it_decides() -> None:
    plain = saved(CHART, "JPEG")
    thumbnail = plain[2:4] + struct.pack(">H", 16 + 300) + plain[6:18] + bytes((10, 10)) + bytes(300)
    assert stored(plain[:2] + thumbnail + plain[20:]).jpeg == plain
    rgb = saved(CHART, "JPEG", keep_rgb=True, quality=95)
    kept = stored(with_segments(rgb, segment(0xFE, b"x")))
    assert simplejpeg.decode_jpeg_header(kept.jpeg)[2] == "RGB"
    assert np.abs(flat(Image.open(io.BytesIO(kept.jpeg))) - flat(Image.open(io.BytesIO(rgb)))).max() == 0
    by_adobe = plain[:2] + segment(0xEE, b"Adobe\0d\0\0\0\0\0") + plain[20:]  # no JFIF, transform 0: RGB
    assert b"Adobe" in stored(by_adobe).jpeg
    assert np.array_equal(flat(Image.open(io.BytesIO(stored(by_adobe).jpeg))), flat(Image.open(io.BytesIO(by_adobe))))


def test_bytes_are_bounded_by_the_picture() -> None:
    plain = saved(CHART.resize((160, 112)), "JPEG")
    tables = with_segments(plain, segment(0xDB, bytes((0, *range(1, 65)))) * 3000)
    image = stored(tables)
    assert len(image.jpeg) < 40_000 and (image.width, image.height) == (160, 112)
    many = progressive("RGB", 64, 900)
    assert len(stored(many).jpeg) < 10_000


# orientation


@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("big", [False, True])
def test_orientation_is_read_as_short_and_long(kind: int, big: bool) -> None:
    for value in range(1, 9):
        assert orientation_of(exif_of(value, kind, big), None) == value
        assert orientation_of(b"Exif\0\0" * 2 + exif_of(value, kind, big), xmp_of(3)) == value


def test_orientation_from_odd_metadata() -> None:
    assert orientation_of(None, xmp_of(6)) == 6
    assert orientation_of(None, xmp_of(9)) == 1
    assert orientation_of(b"", xmp_of(8)) == 8
    assert orientation_of(b"II*\0\xff\xff\xff\xff", xmp_of(8)) == 8
    assert orientation_of(exif_of(9), xmp_of(8)) == 1  # EXIF has the tag, so XMP is not asked
    assert orientation_of(exif_of(6)[:-5], None) in (1, 6)
    assert orientation_of(None, None) == 1


# formats


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)),
        ("heic", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40)),
        ("jpeg-xl", b"\xff\x0a" + bytes(40)),
        ("jpeg-xl", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40)),
        ("jpeg-2000", saved(CHART, "JPEG2000")),
        ("jpeg-2000", b"\xff\x4f\xff\x51" + bytes(40)),
        ("jpeg-ls", b"\xff\xd8\xff\xf7\0\x0b\x08\0\x10\0\x10\1\1\x11\0" + bytes(40)),
        ("ico", saved(CHART, "ICO")), ("ppm", saved(CHART, "PPM")), ("ppm", b"P4\n# made\n8 1\n\0"),
        ("tga", saved(CHART, "TGA")), ("pcx", saved(CHART, "PCX")), ("sgi", saved(CHART, "SGI")),
        ("dds", saved(CHART, "DDS")), ("xbm", saved(CHART.convert("1"), "XBM")), ("qoi", saved(CHART, "QOI")),
        ("psd", b"8BPS\0\1" + bytes(40)), ("icns", b"icns" + bytes(40)), ("exr", b"v/1\1" + bytes(40)),
    ],
)  # fmt: skip
def test_formats_that_are_not_decoded_are_named(name: str, data: bytes) -> None:
    assert error_of(data) == ("unsupported_format", name)


# hostile files


def progressive(mode: str, side: int, extra: int) -> bytes:
    data = saved(Image.new(mode, (side, side), 0), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * extra + b"\xff\xd9"


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize(("side", "extra"), [(1500, 1000), (16, 3000)])
def test_endless_scans_are_refused_whatever_the_components(mode: str, side: int, extra: int) -> None:
    begun = time.process_time()
    assert error_of(progressive(mode, side, extra))[0] == "too_large"
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_honest_progressive_pictures_pass(mode: str) -> None:
    data = saved(Image.new(mode, (3000, 3000), 0), "JPEG", progressive=True)
    assert stored(data).original_width == 3000


def gif_with(block: bytes) -> bytes:
    data = saved(CHART.quantize(16), "GIF")
    table = 13 + (3 << ((data[10] & 7) + 1))
    return data[:table] + block + data[table:]


HOSTILE = {
    "comments": lambda: with_segments(saved(CHART, "JPEG"), segment(0xFE, b"") * 100_000),
    "fill bytes": lambda: with_segments(saved(CHART, "JPEG"), b"\xff" * 5_000_000),
    "tables": lambda: with_segments(saved(CHART, "JPEG"), segment(0xDB, bytes(65)) * 50_000),
    "png chunks": lambda: png_of(np.asarray(CHART), 8, 2, png_chunk(b"teSt", b"") * 200_000),
    "png text": lambda: png_of(np.asarray(CHART), 8, 2, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))),
    "gif comment": lambda: gif_with(b"!\xfe" + (b"\xff" + b"c" * 255) * 40_000 + b"\0"),
    "gif blocks": lambda: gif_with(b"!\xfe" + b"\1c" * 2_000_000 + b"\0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_beside_the_picture_costs_nothing(name: str) -> None:
    data = HOSTILE[name]()
    begun = time.process_time()
    try:
        assert stored(data).width == CHART.width
    except ImageError as error:
        assert error.error_class == "too_large"
    assert time.process_time() - begun < 1


def test_tiff_tags_that_overlap_and_tiles_beyond_the_picture_are_refused() -> None:
    base = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]

    def tiff(*more: tuple[int, int, int, int]) -> bytes:
        entries = sorted([*base, *more])
        table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4 + 200_000)

    assert error_of(tiff(*((40_000 + at, 1, 190_000, 500) for at in range(100))))[0] == "too_large"
    assert (
        error_of(tiff((322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 400), (325, 4, 1, 4000)))[0] == "too_large"
    )


def test_a_turned_gray_profile_is_seen() -> None:
    """Gray, a profile and an orientation at once, resized."""
    icc = gray_profile(1.8)
    gray = CHART.convert("L")
    data = saved(gray, "JPEG", quality=95, icc_profile=icc, exif=b"Exif\0\0" + exif_of(6))
    image = stored(data, side=80)
    assert (image.width, image.height) == (80, 120)
    seen = seen_with(Image.open(io.BytesIO(data)), icc).transpose(Image.Transpose.ROTATE_270).resize((80, 120))
    assert np.abs(flat(Image.open(io.BytesIO(image.jpeg))) - flat(seen)).mean() < 4


def tiff_of(samples: np.ndarray, sample_format: int) -> bytes:
    """An uncompressed gray TIFF, little-endian, one strip."""
    height, width = samples.shape
    data = samples.tobytes()
    fields = {256: width, 257: height, 258: samples.itemsize * 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: height}
    fields |= {279: len(data), 339: sample_format}
    fields[273] = 8 + 2 + 12 * len(fields) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + struct.pack("<I", 0) + data


RAMP = np.tile(np.linspace(0, 1, 256), (64, 1))


@pytest.mark.parametrize(
    ("samples", "sample_format"),
    [
        ((RAMP * 1.02).astype("<f4"), 3),
        (RAMP.astype("<f4"), 3),
        ((RAMP * 255).astype("<f4"), 3),
        ((RAMP * 32_767).astype("<i2"), 2),
        ((RAMP * 65_535).astype("<u2"), 1),
        ((RAMP * (2**32 - 1)).astype("<u4"), 1),
        ((RAMP * (2**31 - 1)).astype("<i4"), 2),
    ],
    ids=["float beyond white", "float", "float of levels", "signed 16", "16", "32", "signed 32"],
)
def test_deep_gray_has_its_whole_range(samples: np.ndarray, sample_format: int) -> None:
    got = pixels_to_store(tiff_of(samples, sample_format), max_pixels=LIMIT, shorter_side_px=None)
    assert np.abs(got[:, :, 0].astype(int) - np.clip(np.rint(RAMP * 255), 0, 255)).max() <= 5


def test_a_deep_png_is_transparent_where_all_its_bits_say_so() -> None:
    """(200, 200, 200) of 65,535 is not the transparent (0, 0, 0), though its upper bits are the same."""
    for color, seen in (((200, 200, 200), 0), ((0, 0, 0), 255)):
        rows = (b"\0" + struct.pack(">3H", *color) * 64) * 64
        chunks = [
            png_chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)),
            png_chunk(b"tRNS", bytes(6)),
            png_chunk(b"IDAT", zlib.compress(rows)),
            png_chunk(b"IEND", b""),
        ]
        data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
        got = pixels_to_store(data, max_pixels=LIMIT, shorter_side_px=None)
        assert got.min() == got.max() == seen


def test_the_last_adobe_segment_decides() -> None:
    """As libjpeg has it."""
    plain = saved(CHART, "JPEG", quality=90)
    at = plain.index(b"\xff\xdb")
    adobe = [segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform)) for transform in (1, 0)]
    for first, last in (adobe, adobe[::-1]):
        data = plain[:2] + first + last + plain[at:]
        kept = stored(data, None).jpeg
        assert np.array_equal(simplejpeg.decode_jpeg(kept), simplejpeg.decode_jpeg(data))


def test_a_webp_has_only_the_metadata_that_it_announces() -> None:
    data = saved(CHART, "WEBP", exif=exif_of(6))
    at = data.index(b"VP8X") + 8
    assert data[at] & 0x08
    silent = data[:at] + bytes([data[at] & ~0x08]) + data[at + 1 :]
    turned, still = (pixels_to_store(one, max_pixels=LIMIT, shorter_side_px=None).shape for one in (data, silent))
    assert turned[:2] == still[1::-1] == CHART.size
