"""One picture in every format, mode, profile and orientation, and what an eye sees of it by an independent reading."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageOps

from tests.core.made_profiles import gray_profile, ink_profile, rgb_profile

RGB_PROFILES = ("srgb", "display-p3", "adobe-rgb", "prophoto")
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Case:
    """name: format, mode, profile, orientation; data: the file; seen: [H, W, 3] what an eye sees."""

    name: str
    data: bytes
    seen: np.ndarray


def chart(width: int = 240, height: int = 160) -> Image.Image:
    """Patches of pure and mixed colors, ramps and a disc; no two corners are alike."""
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    rng = np.random.default_rng(5)
    columns, rows = 12, 6
    for row in range(rows):
        for column in range(columns):
            color = tuple(int(value) for value in rng.choice([0, 32, 64, 128, 192, 224, 255], 3))
            left, top = column * width // columns, row * height // 8
            draw.rectangle((left, top, left + width // columns, top + height // 8), fill=color)
    for x in range(width):
        level = 255 * x // (width - 1)
        draw.line((x, height * 6 // 8, x, height * 7 // 8), fill=(level, level, level))
        draw.line((x, height * 7 // 8, x, height), fill=(255 - level, level, 128))
    draw.ellipse((width // 8, height // 6, width // 3, height // 2), fill=(250, 240, 20))
    return image


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **{key: value for key, value in options.items() if value is not None})
    return stream.getvalue()


def flat(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(np.int16)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, None].astype(np.float64) / 255
    return np.rint(rgb * share + 255 * (1 - share)).astype(np.int16)


def exif_of(orientation: int, kind: int = 3, big: bool = False) -> bytes:
    """A TIFF block with one orientation, as SHORT (3) or LONG (4)."""
    order = ">" if big else "<"
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *((orientation, 0) if kind == 3 else (orientation,)))
    head = b"MM\0*" if big else b"II*\0"
    return head + struct.pack(order + "IHHHI", 8, 1, ORIENTATION, kind, 1) + value + bytes(4)


def xmp_of(orientation: int) -> bytes:
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
    ) % orientation


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(values: np.ndarray, depth: int, color: int, *chunks: bytes) -> bytes:
    """A PNG of samples [H, W, C] of `depth` bits and of a color type."""
    height, width = values.shape[:2]
    if depth == 16:
        rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    elif depth == 8:
        rows = values.astype(np.uint8).reshape(height, -1)
    else:
        bits = ((values[:, :, 0, None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    body = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(body)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff_of(values: np.ndarray, big: bool, photometric: int, kind: int, extra: tuple[int, ...] = ()) -> bytes:
    """An uncompressed TIFF of [H, W, C] samples; kind: SampleFormat (1 whole, 2 signed, 3 float)."""
    order = ">" if big else "<"
    height, width, channels = values.shape
    bits = 8 * values.dtype.itemsize
    body = values.astype(values.dtype.newbyteorder(order)).tobytes()
    entries = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * channels), (259, 3, [1]), (262, 3, [photometric]),
        (273, 4, [8]), (277, 3, [channels]), (278, 4, [height]), (279, 4, [len(body)]), (339, 3, [kind] * channels),
    ]  # fmt: skip
    if extra:
        entries.insert(-1, (338, 3, list(extra)))
    start = 8 + len(body)
    tail = start + 2 + 12 * len(entries) + 4
    table, after = struct.pack(order + "H", len(entries)), b""
    for tag, code, numbers in entries:
        packed = struct.pack(order + f"{len(numbers)}{'H' if code == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            place = struct.pack(order + "I", tail + len(after))
            after += packed
        else:
            place = packed.ljust(4, b"\0")
        table += struct.pack(order + "HHI", tag, code, len(numbers)) + place
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "I", start)
    return head + body + table + bytes(4) + after


@cache
def _transform(profile: bytes, mode: str, back: bool) -> ImageCms.ImageCmsTransform:
    srgb, other = ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return (
        ImageCms.buildTransform(srgb, other, "RGB", mode) if back else ImageCms.buildTransform(other, srgb, mode, "RGB")
    )


def seen_with(image: Image.Image, profile: bytes | None) -> Image.Image:
    """L, RGB or CMYK under a profile, as sRGB, by ImageCms."""
    return image.convert("RGB") if profile is None else _transform(profile, image.mode, False).apply(image)


def reading(data: bytes, scale: int = 1) -> np.ndarray:
    """What Pillow, ImageCms and `exif_transpose` make of a file of 8 bits, transparency on white.

    scale: a JPEG is decoded at 1/scale (libjpeg's own scaling, as `Image.draft` asks for it).
    """
    image = Image.open(io.BytesIO(data))
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    image.load()
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    rgba = image.convert("RGBA") if image.mode in ("RGBA", "LA", "PA", "P") or "transparency" in image.info else None
    color = image.convert("L") if image.mode == "LA" else image if rgba is None else rgba.convert("RGB")
    rgb = np.asarray(seen_with(color if color.mode in ("L", "RGB", "CMYK") else color.convert("RGB"), profile))
    return rgb.astype(np.int16) if rgba is None else on_white(rgb, np.asarray(rgba.getchannel("A")))


def turned(seen: np.ndarray, orientation: int) -> np.ndarray:
    """The stored pixels of which `seen` is the upright picture."""
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }  # fmt: skip
    image = Image.fromarray(seen.astype(np.uint8))
    return np.asarray(image if orientation == 1 else image.transpose(methods[inverse]))


def cases(source: Image.Image) -> Iterator[Case]:
    """About 200: formats, modes, profiles, orientations; `seen` is known or read, never by vila_data."""
    yield from _profiled(source)
    yield from _turned(source)
    yield from _png_modes(source)
    yield from _tiff_modes(source)
    yield from _other_modes(source)


def _read(name: str, data: bytes) -> Case:
    return Case(name, data, reading(data))


def _profiled(source: Image.Image) -> Iterator[Case]:
    alpha = Image.linear_gradient("L").resize(source.size)
    for name in RGB_PROFILES:
        icc = rgb_profile(name)
        rgb = _transform(icc, "RGB", True).apply(source)
        rgba = rgb.copy()
        rgba.putalpha(alpha)
        yield _read(f"JPEG 4:2:0 {name} 1", saved(rgb, "JPEG", quality=95, icc_profile=icc))
        yield _read(f"JPEG 4:4:4 {name} 1", saved(rgb, "JPEG", quality=95, subsampling=0, icc_profile=icc))
        yield _read(f"JPEG progressive {name} 1", saved(rgb, "JPEG", quality=95, progressive=True, icc_profile=icc))
        yield _read(f"JPEG RGB {name} 1", saved(rgb, "JPEG", quality=95, keep_rgb=True, icc_profile=icc))
        plain = saved(source.convert("L"), "JPEG", quality=95)
        with_rgb_profile = with_segments(plain, segment(0xE2, b"ICC_PROFILE\0\1\1" + icc))
        gray_levels = Image.open(io.BytesIO(plain)).convert("RGB")
        yield Case(f"JPEG L {name} 1", with_rgb_profile, flat(seen_with(gray_levels, icc)))
        yield _read(f"PNG RGB {name} 1", saved(rgb, "PNG", icc_profile=icc))
        yield _read(f"PNG RGBA {name} 1", saved(rgba, "PNG", icc_profile=icc))
        yield _read(f"PNG P {name} 1", saved(rgb.quantize(256), "PNG", icc_profile=icc))
        yield _read(f"WEBP RGB {name} 1", saved(rgb, "WEBP", quality=95, icc_profile=icc))
        yield _read(f"WEBP lossless {name} 1", saved(rgb, "WEBP", lossless=True, icc_profile=icc))
        yield _read(f"WEBP RGBA {name} 1", saved(rgba, "WEBP", quality=95, icc_profile=icc))
        yield _read(f"AVIF RGB {name} 1", saved(rgb, "AVIF", quality=90, speed=9, icc_profile=icc))
        yield _read(f"AVIF RGBA {name} 1", saved(rgba, "AVIF", quality=90, speed=9, icc_profile=icc))
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate"):
            data = saved(rgb, "TIFF", compression=compression, icc_profile=icc)
            yield _read(f"TIFF RGB {compression} {name} 1", data)
        yield _read(f"TIFF RGBA {name} 1", saved(rgba, "TIFF", icc_profile=icc))
    gray = source.convert("L")
    for name, icc in (
        ("gray-1.8", gray_profile(1.8)),
        ("gray-2.2", gray_profile(2.2)),
        ("gray-srgb", gray_profile(None)),
    ):
        la = Image.merge("LA", (gray, alpha))
        yield _read(f"JPEG L {name} 1", saved(gray, "JPEG", quality=95, icc_profile=icc))
        yield _read(f"PNG L {name} 1", saved(gray, "PNG", icc_profile=icc))
        yield _read(f"PNG LA {name} 1", saved(la, "PNG", icc_profile=icc))
        yield _read(f"TIFF L {name} 1", saved(gray, "TIFF", icc_profile=icc))
        deep = np.asarray(gray).astype(np.uint16)[:, :, None] * 257
        chunk = png_chunk(b"iCCP", b"made\0\0" + zlib.compress(icc))
        yield Case(f"PNG I;16 {name} 1", png_of(deep, 16, 0, chunk), flat(seen_with(gray, icc)))
    cmyk = source.convert("CMYK")
    for name, icc in (("none", None), ("ink", ink_profile())):
        yield _read(f"JPEG CMYK {name} 1", saved(cmyk, "JPEG", quality=95, icc_profile=icc))
        yield _read(
            f"JPEG CMYK progressive {name} 1", saved(cmyk, "JPEG", quality=95, progressive=True, icc_profile=icc)
        )
        yield _read(f"TIFF CMYK {name} 1", saved(cmyk, "TIFF", icc_profile=icc))
        yield _read(f"TIFF CMYK lzw {name} 1", saved(cmyk, "TIFF", compression="tiff_lzw", icc_profile=icc))


def _turned(source: Image.Image) -> Iterator[Case]:
    seen = np.asarray(source)
    icc = rgb_profile("display-p3")
    for orientation in range(1, 9):
        stored = Image.fromarray(turned(seen, orientation))
        wide = _transform(icc, "RGB", True).apply(stored)
        exif = exif_of(orientation)
        yield _read(f"JPEG RGB none {orientation}", saved(stored, "JPEG", quality=95, exif=b"Exif\0\0" + exif))
        yield _read(
            f"JPEG RGB display-p3 {orientation}",
            saved(wide, "JPEG", quality=95, exif=b"Exif\0\0" + exif, icc_profile=icc),
        )
        jpeg = saved(stored, "JPEG", quality=95)
        long = with_segments(jpeg, segment(0xE1, b"Exif\0\0" + exif_of(orientation, 4, big=True)))
        yield _read(f"JPEG RGB EXIF-LONG {orientation}", long)
        xmp = with_segments(jpeg, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp_of(orientation)))
        yield _read(f"JPEG RGB XMP {orientation}", xmp)
        twice = [segment(0xE1, b"Exif\0\0" + exif_of(value)) for value in (orientation, 3)]
        yield _read(f"JPEG RGB EXIF-twice {orientation}", with_segments(jpeg, *twice))
        both = with_segments(long, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp_of(3)))
        yield _read(f"JPEG RGB EXIF+XMP {orientation}", both)
        yield _read(
            f"JPEG CMYK EXIF {orientation}", saved(stored.convert("CMYK"), "JPEG", quality=95, exif=b"Exif\0\0" + exif)
        )
        yield _read(f"PNG RGB eXIf {orientation}", saved(stored, "PNG", exif=exif))
        yield _read(f"PNG P eXIf {orientation}", saved(stored.quantize(256), "PNG", exif=exif))
        text = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_of(orientation))
        yield _read(f"PNG RGB XMP {orientation}", png_of(np.asarray(stored), 8, 2, text))
        yield _read(f"WEBP RGB EXIF {orientation}", saved(stored, "WEBP", lossless=True, exif=b"Exif\0\0" + exif))
        yield _read(f"WEBP RGB XMP {orientation}", saved(stored, "WEBP", lossless=True, xmp=xmp_of(orientation)))
        yield _read(f"AVIF RGB irot/imir {orientation}", saved(stored, "AVIF", quality=90, speed=9, exif=exif))
        tags = {ORIENTATION: orientation}
        yield _read(f"TIFF RGB tag {orientation}", saved(stored, "TIFF", tiffinfo=tags))
        yield _read(
            f"TIFF L tag lzw {orientation}", saved(stored.convert("L"), "TIFF", tiffinfo=tags, compression="tiff_lzw")
        )


def _png_modes(source: Image.Image) -> Iterator[Case]:
    gray = np.asarray(source.convert("L"))
    rgb = np.asarray(source)
    alpha = np.asarray(Image.linear_gradient("L").resize(source.size))
    three = np.repeat(gray[:, :, None], 3, axis=2)
    yield Case("PNG L none 1", png_of(gray[:, :, None], 8, 0), three)
    yield Case("PNG RGB none 1", png_of(rgb, 8, 2), rgb)
    yield Case("PNG RGB adam7 none 1", saved(source, "PNG"), rgb)
    yield Case("PNG LA none 1", png_of(np.dstack([gray, alpha]), 8, 4), on_white(three, alpha))
    yield Case("PNG RGBA none 1", png_of(np.dstack([rgb, alpha]), 8, 6), on_white(rgb, alpha))
    yield Case("PNG I;16 none 1", png_of(gray[:, :, None].astype(np.uint16) * 257, 16, 0), three)
    yield Case("PNG RGB;16 none 1", png_of(rgb.astype(np.uint16) * 257, 16, 2), rgb)
    yield Case(
        "PNG RGBA;16 none 1", png_of(np.dstack([rgb, alpha]).astype(np.uint16) * 257, 16, 6), on_white(rgb, alpha)
    )
    yield Case(
        "PNG LA;16 none 1", png_of(np.dstack([gray, alpha]).astype(np.uint16) * 257, 16, 4), on_white(three, alpha)
    )
    dark = gray[:, :, None].astype(np.uint16)  # 16 bits of which only the lowest are used: black
    yield Case("PNG I;16 dark none 1", png_of(dark, 16, 0), np.zeros_like(rgb))
    for depth in (1, 2, 4, 8, 16):
        top = (1 << depth) - 1
        samples = np.rint(gray[:, :, None] / 255 * top).astype(np.uint16)
        for name, key in (("darkest", 0), ("middle", int(np.median(samples))), ("lightest", top)):
            clear = np.where(samples == key, 0, 255)[:, :, 0]
            levels = np.repeat(np.rint(samples / top * 255), 3, axis=2)
            data = png_of(samples, depth, 0, png_chunk(b"tRNS", struct.pack(">H", key)))
            yield Case(f"PNG L;{depth} tRNS {name} none 1", data, on_white(levels, clear))
        yield Case(
            f"PNG L;{depth} none 1", png_of(samples, depth, 0), np.repeat(np.rint(samples / top * 255), 3, axis=2)
        )
    color = tuple(int(value) for value in rgb[2, 2])
    clear = np.where((rgb == color).all(axis=2), 0, 255)
    for depth, factor in ((8, 1), (16, 257)):
        chunk = png_chunk(b"tRNS", struct.pack(">HHH", *(factor * value for value in color)))
        data = png_of(rgb.astype(np.uint16) * factor, depth, 2, chunk)
        yield Case(f"PNG RGB;{depth} tRNS none 1", data, on_white(rgb, clear))
    palette = source.quantize(64)
    yield _read("PNG P none 1", saved(palette, "PNG"))
    yield _read("PNG P tRNS-index none 1", saved(palette, "PNG", transparency=3))
    yield _read("PNG P tRNS-list none 1", saved(palette, "PNG", transparency=bytes(range(0, 256, 4))))
    for bits in (1, 2, 4):
        yield _read(f"PNG P;{bits} none 1", saved(source.quantize(1 << bits), "PNG", bits=bits))
    yield _read("PNG 1 none 1", saved(source.convert("1"), "PNG"))


def _tiff_modes(source: Image.Image) -> Iterator[Case]:
    gray = np.asarray(source.convert("L"))[:, :, None]
    rgb = np.asarray(source)
    three = np.repeat(gray, 3, axis=2)
    dark = np.zeros_like(rgb)
    for end, big in (("LE", False), ("BE", True)):
        deep = gray.astype(np.uint16)
        yield Case(f"TIFF I;16 {end} none 1", tiff_of(deep * 257, big, 1, 1), three)
        yield Case(f"TIFF I;16 {end} dark none 1", tiff_of(deep, big, 1, 1), dark)
        yield Case(f"TIFF I;16 {end} white-is-zero none 1", tiff_of(65_535 - deep * 257, big, 0, 1), three)
        yield Case(f"TIFF L {end} white-is-zero none 1", tiff_of(255 - gray, big, 0, 1), three)
        yield Case(f"TIFF RGB;16 {end} none 1", tiff_of(rgb.astype(np.uint16) * 257, big, 2, 1), rgb)
        yield Case(f"TIFF F {end} 0..1 none 1", tiff_of((gray / 255).astype(np.float32), big, 1, 3), three)
        yield Case(f"TIFF F {end} 0..255 none 1", tiff_of(gray.astype(np.float32), big, 1, 3), three)
        yield Case(f"TIFF I {end} 16-bit none 1", tiff_of(gray.astype(np.int32) * 257, big, 1, 2), three)
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        image = source.convert(mode) if mode != "P" else source.quantize(64)
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
            if mode != "YCbCr" or compression == "raw":
                yield _read(f"TIFF {mode} {compression} none 1", saved(image, "TIFF", compression=compression))
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    yield Case("TIFF LAB none 1", saved(lab.apply(source), "TIFF"), flat(lab.apply(source).convert("RGB")))
    yield _read("TIFF RGB jpeg none 1", saved(source, "TIFF", compression="jpeg", quality=95))
    alpha = Image.linear_gradient("L").resize(source.size)
    yield _read("TIFF LA none 1", saved(Image.merge("LA", (source.convert("L"), alpha)), "TIFF"))


def _other_modes(source: Image.Image) -> Iterator[Case]:
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield _read(f"BMP {mode} none 1", saved(source.convert(mode) if mode != "P" else source.quantize(64), "BMP"))
    for mode in ("L", "P", "RGB"):
        yield _read(f"GIF {mode} none 1", saved(source.convert(mode) if mode != "P" else source.quantize(64), "GIF"))
    yield _read("GIF P clear none 1", saved(source.quantize(64), "GIF", transparency=5))
    yield _read(
        "GIF L clear none 1", saved(source.convert("L"), "GIF", transparency=int(np.asarray(source.convert("L"))[2, 2]))
    )
    other = ImageOps.invert(source)
    alpha = Image.linear_gradient("L").resize(source.size)
    clear = source.copy()
    clear.putalpha(alpha)
    for form in ("GIF", "WEBP", "PNG", "AVIF", "TIFF"):
        options = {"lossless": True} if form == "WEBP" else {"quality": 90, "speed": 9} if form == "AVIF" else {}
        data = saved(source, form, save_all=True, append_images=[other], **options)
        yield _read(f"{form} animated none 1", data)
    yield _read(
        "WEBP RGBA animated none 1",
        saved(clear, "WEBP", save_all=True, append_images=[other.convert("RGBA")], lossless=True),
    )
    yield _read("JPEG MPO none 1", saved(source, "MPO", save_all=True, append_images=[other], quality=95))
