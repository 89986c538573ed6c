"""Files that cost a careless decoder far more than their pixels do, below the default limits of bytes and pixels."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO)]

from tests.core.made_pictures import chart, png_chunk, saved, segment, with_segments  # noqa: E402
from tests.core.made_profiles import ink_profile  # noqa: E402

SIDE = 9440  # its square is just below max_pixels


def progressive(mode: str, side: int, extra_scans: int) -> bytes:
    """A flat picture whose last scan comes again and again."""
    data = saved(Image.new(mode, (side, side), 0), "JPEG", progressive=True, quality=50)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * extra_scans + b"\xff\xd9"


def scans(mode: str, size: int, side: int) -> bytes:
    """As many scans as fit into `size` bytes."""
    one = progressive(mode, side, 1)
    return progressive(mode, side, (size - len(one)) // (len(one) - len(progressive(mode, side, 0))))


def plain_jpeg(side: int = 64) -> bytes:
    return saved(chart(side, side), "JPEG")


def restarts() -> bytes:
    return saved(Image.new("L", (SIDE, SIDE), 128), "JPEG", restart_marker_blocks=1)


def overlapping_exif(count: int, bytes_each: int) -> bytes:
    """An IFD whose `count` entries all name the same `bytes_each` bytes."""
    entries = b"".join(struct.pack("<HHII", 40_000 + at, 1, bytes_each, 0) for at in range(count))
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4)


def exif_bomb() -> bytes:
    exif = overlapping_exif(4000, 15_000_000)
    more = [segment(0xE1, b"Exif\0\0" + bytes(65_000)) for _ in range(290)]
    return with_segments(saved(chart().convert("CMYK"), "JPEG"), segment(0xE1, b"Exif\0\0" + exif), *more)


def png(color: int, depth: int, *chunks: bytes, adam7: bool = False, side: int = SIDE, over: int = 0) -> bytes:
    """A black PNG; `over`: bytes that are inflated beyond its pixels."""
    bits = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color] * depth
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    size = 0
    for left, top, across, down in passes if adam7 else [(0, 0, 1, 1)]:
        wide, high = -(-(side - left) // across), -(-(side - top) // down)
        size += high * (1 + (wide * bits + 7) // 8)
    header = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, int(adam7))
    deflate = zlib.compressobj(1)
    block = bytes(1 << 24)
    body = b"".join(
        deflate.compress(block[: min(len(block), size + over - at)]) for at in range(0, size + over, len(block))
    )
    body += deflate.flush()
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", body), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def zeros(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes << 20), 1)


def gif_with(block: bytes, side: int = 64) -> bytes:
    data = saved(chart(side, side).quantize(16), "GIF")
    table = 13 + (3 << ((data[10] & 7) + 1))
    return data[:table] + block + data[table:]


def gif_tiny_blocks() -> bytes:
    body = b"\1\0" * 9_000_000
    return (
        saved(chart(64, 64).quantize(16), "GIF")[:13]
        + bytes(48)
        + b","
        + struct.pack("<4HB", 0, 0, 64, 64, 0)
        + b"\4"
        + body
    )


def animation(form: str) -> bytes:
    """Hundreds of frames."""
    frames = [Image.new("RGB", (1500, 1500), (at % 256, at // 256, 0)) for at in range(120)]
    return saved(
        frames[0], form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {})
    )


def animated_canvas() -> bytes:
    """A WebP animation of tiny frames on the largest canvas."""
    data = bytearray(
        saved(Image.new("RGBA", (16, 16)), "WEBP", save_all=True, append_images=[Image.new("RGBA", (16, 16), "red")])
    )
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (16_382).to_bytes(3, "little") + (5_460).to_bytes(3, "little")
    return bytes(data)


def webp(mode: str, **options: Any) -> bytes:
    return saved(Image.new(mode, (16_383, 5_461)), "WEBP", method=0, **options)


def tiff(mode: str, compression: str, side: int = SIDE, **options: Any) -> bytes:
    return saved(Image.new(mode, (side, side)), "TIFF", compression=compression, **options)


def tiff_entries(entries: list[tuple[int, int, int, int]], body: bytes = b"", following: int = 0) -> bytes:
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", following) + body


def tiff_base(width: int, height: int) -> list[tuple[int, int, int, int]]:
    return [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]


def tiff_overlap() -> bytes:
    entries = [*tiff_base(64, 64), *((40_000 + at, 1, 15_000_000, 200) for at in range(4000))]
    return tiff_entries(entries, bytes(19_000_000))


def tiff_tile() -> bytes:
    entries = [*tiff_base(64, 64), (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 400), (325, 4, 1, 4_000_000)]
    return tiff_entries(entries, bytes(400) + zlib.compress(bytes(3 << 30), 1))


def tiff_deep() -> bytes:
    """Sixteen bits a sample in one strip of deflate."""
    body = zeros(6 * SIDE * SIDE >> 20)
    entries = [(258, 3, 1, 16), *(entry for entry in tiff_base(SIDE, SIDE) if entry[0] not in (258, 262, 277))]
    entries += [(262, 3, 1, 1), (277, 3, 1, 1), (273, 4, 1, 0), (278, 4, 1, SIDE), (279, 4, 1, len(body))]
    place = 8 + 2 + 12 * len(entries) + 4
    return tiff_entries([entry if entry[0] != 273 else (273, 4, 1, place) for entry in entries], body)


def tiff_chain() -> bytes:
    """A hundred thousand directories, one behind the other, the last naming the first."""
    first = saved(Image.new("L", (64, 64)), "TIFF")
    at = struct.unpack_from("<I", first, 4)[0]
    count = struct.unpack_from("<H", first, at)[0]
    directory = first[at : at + 2 + 12 * count]
    size, data = len(directory) + 4, bytearray(first)
    number = 100_000
    struct.pack_into("<I", data, at + 2 + 12 * count, len(first))
    chain = b"".join(
        directory + struct.pack("<I", len(first) + (step + 1) * size if step + 1 < number else at)
        for step in range(number)
    )
    return bytes(data) + chain


def bmp_rle(width: int, height: int, body: bytes, bits: int = 8) -> bytes:
    compression = 1 if bits == 8 else 2
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 256 if bits == 8 else 16, 0
    )
    palette = bytes(4 * (256 if bits == 8 else 16))
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + palette + body


def icc_jpeg(profile: bytes, mode: str, size: int = 64) -> bytes:
    pieces = [profile[at : at + 65_000] for at in range(0, len(profile), 65_000)][:255]
    segments = [
        segment(0xE2, b"ICC_PROFILE\0" + bytes((at, len(pieces))) + piece) for at, piece in enumerate(pieces, 1)
    ]
    return with_segments(saved(chart(size, size).convert(mode), "JPEG"), *segments)


def large(mode: str, **options: Any) -> bytes:
    return saved(Image.new(mode, (SIDE, SIDE), 0), "JPEG", quality=50, **options)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "JPEG gray progressive, 1.4 MB of scans": lambda: scans("L", 1_450_000, 4000),
    "JPEG RGB progressive, 1.4 MB of scans": lambda: scans("RGB", 1_450_000, 4000),
    "JPEG CMYK progressive, 1.4 MB of scans": lambda: scans("CMYK", 1_450_000, 4000),
    "JPEG RGB 16 x 16, 19 MB of scans": lambda: scans("RGB", 19_000_000, 16),
    "JPEG CMYK 16 x 16, 19 MB of scans": lambda: scans("CMYK", 19_000_000, 16),
    "JPEG RGB, most pixels, progressive": lambda: large("RGB", progressive=True),
    "JPEG CMYK, most pixels, progressive": lambda: large("CMYK", progressive=True),
    "JPEG gray, a restart every block": restarts,
    "JPEG five million comments": lambda: with_segments(plain_jpeg(), segment(0xFE, b"") * 4_800_000),
    "JPEG a hundred thousand tables": lambda: with_segments(plain_jpeg(), segment(0xDB, bytes(65)) * 100_000),
    "JPEG 19 MB of fill bytes": lambda: with_segments(plain_jpeg(), b"\xff" * 19_000_000),
    "JPEG 19 MB of EXIF, overlapping": exif_bomb,
    "JPEG 16 MB of ICC": lambda: icc_jpeg(bytes(16_000_000), "RGB"),
    "JPEG CMYK with an ink profile, most pixels": lambda: saved(
        Image.new("CMYK", (SIDE, SIDE)), "JPEG", icc_profile=ink_profile(), quality=50
    ),
    "PNG RGB, most pixels": lambda: png(2, 8),
    "PNG RGBA, most pixels": lambda: png(6, 8),
    "PNG RGBA 16 bits, most pixels": lambda: png(6, 16),
    "PNG gray 16 bits with tRNS, most pixels": lambda: png(0, 16, png_chunk(b"tRNS", b"\0\0")),
    "PNG RGB with tRNS, most pixels": lambda: png(2, 8, png_chunk(b"tRNS", bytes(6))),
    "PNG palette with tRNS, most pixels": lambda: png(3, 8, png_chunk(b"PLTE", bytes(768)), png_chunk(b"tRNS", bytes(256))),
    "PNG RGBA interlaced, most pixels": lambda: png(6, 8, adam7=True),
    "PNG 10 x 10, 4 GB of pixels behind them": lambda: png(2, 8, side=10, over=4 << 30),
    "PNG zTXt of 1 GB": lambda: png(2, 8, png_chunk(b"zTXt", b"a\0\0" + zeros(1024)), side=64),
    "PNG iCCP of 1 GB": lambda: png(2, 8, png_chunk(b"iCCP", b"a\0\0" + zeros(1024)), side=64),
    "PNG 1.5 million chunks": lambda: png(2, 8, png_chunk(b"teSt", b"") * 1_500_000, side=64),
    "PNG animated, 120 frames": lambda: animation("PNG"),
    "GIF most pixels": lambda: saved(Image.new("P", (SIDE, SIDE)), "GIF"),
    "GIF 19 MB of comment": lambda: gif_with(b"!\xfe" + (b"\xff" + b"c" * 255) * 74_000 + b"\0"),
    "GIF nine million blocks of a byte": gif_tiny_blocks,
    "GIF animated, 120 frames": lambda: animation("GIF"),
    "WebP RGBA lossless, most pixels": lambda: webp("RGBA", lossless=True),
    "WebP RGB lossy, most pixels": lambda: webp("RGB", quality=1),
    "WebP RGBA lossy, most pixels": lambda: webp("RGBA", quality=1),
    "WebP animated, 120 frames": lambda: animation("WEBP"),
    "WebP animated, tiny frames, largest canvas": animated_canvas,
    "TIFF RGB deflate, most pixels": lambda: tiff("RGB", "tiff_adobe_deflate"),
    "TIFF RGBA LZW, most pixels": lambda: tiff("RGBA", "tiff_lzw"),
    "TIFF CMYK deflate turned, most pixels": lambda: tiff("CMYK", "tiff_adobe_deflate", tiffinfo={274: 6}),
    "TIFF float deflate, most pixels": lambda: tiff("F", "tiff_adobe_deflate"),
    "TIFF 16 bits, one strip, most pixels": tiff_deep,
    "TIFF 15 MB tags that overlap": tiff_overlap,
    "TIFF a tile of 3.6 GB": tiff_tile,
    "TIFF a hundred thousand directories": tiff_chain,
    "BMP RLE8, most pixels, a delta": lambda: bmp_rle(SIDE, SIDE, b"\0\2\xff\xff" * 60 + b"\0\1"),
    "BMP RLE8, most pixels, runs of one": lambda: bmp_rle(SIDE, SIDE, b"\1\0" * 9_000_000 + b"\0\1"),
    "BMP RLE4, most pixels": lambda: bmp_rle(SIDE, SIDE, (b"\xff\0" * 37 + b"\0\0") * 9440 + b"\0\1", 4),
    "AVIF RGBA, most pixels": lambda: saved(Image.new("RGBA", (SIDE, SIDE)), "AVIF", quality=20, speed=10),
}  # fmt: skip
