"""Pictures as files: a scene drawn and encoded as the plan says, and the files that are broken on purpose."""

from __future__ import annotations

import io
import struct
import zlib
from random import Random

from draw import draw_scene
from PIL import Image
from plan import SEED, Link, Picture

JPEG_QUALITY, LARGE_QUALITY, NEAR_COPY_QUALITY = 64, 50, 45
ORIENTATION_TAG, TURNED = 0x0112, 6  # shown after a quarter turn clockwise
BOMB_SIDE_PX = (12_000, 9_000)  # 108 megapixels in some kilobytes
HTML = b"<!doctype html><title>Sign in</title><p>Please sign in to see this picture.</p>\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="4" r="4" fill="#d62828"/></svg>\n'


def drawn(picture: Picture, seed_name: str | None = None) -> Image.Image:
    """The picture's pixels before any encoding; a re-encoded copy is drawn with its original's name."""
    rng = Random(f"{SEED} picture {seed_name or picture.name}")
    return draw_scene(picture.scene, picture.size, rng, transparent=picture.form == "png_alpha")


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _gray16(image: Image.Image) -> Image.Image:
    """16-bit gray whose values use the whole range, so that a careless cut to 8 bits turns it white."""
    gray = image.convert("L")
    return Image.frombytes("I;16", gray.size, bytes(byte for value in gray.tobytes() for byte in (value, value)))


def _animation(picture: Picture, first: Image.Image) -> bytes:
    frames = [first.copy() for _ in range(3)]
    for shift, frame in enumerate(frames[1:], start=1):
        frame.paste((40, 40, 40), (0, 0, picture.size[0], picture.size[1] * shift // 3))
    plain = [frame.quantize(48, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for frame in frames]
    return _save(plain[0], "GIF", save_all=True, append_images=plain[1:], duration=200, loop=0, optimize=False)


def encoded(picture: Picture, image: Image.Image, quality: int = JPEG_QUALITY) -> bytes:
    """`image` in the picture's file format."""
    form = picture.form
    if form == "png_alpha":
        return _save(image, "PNG")
    if form == "png_palette":
        return _save(image.quantize(48, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE), "PNG")
    if form == "png_gray16":
        return _save(_gray16(image), "PNG")
    if form == "gif_animated":
        return _animation(picture, image)
    if form == "webp":
        return _save(image, "WEBP", quality=quality)
    if form == "jpeg_cmyk":
        return _save(image.convert("CMYK"), "JPEG", quality=quality)
    if form == "jpeg_turned":
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = TURNED
        return _save(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=quality, exif=exif)
    return _save(image, "JPEG", quality=quality, progressive=form == "jpeg_progressive")


def picture_file(picture: Picture) -> bytes:
    """The file of a picture as it should be."""
    quality = LARGE_QUALITY if picture.size[0] >= 1024 else JPEG_QUALITY
    return encoded(picture, drawn(picture), quality)


def near_copy_file(picture: Picture, original: Picture) -> bytes:
    """The original again: the same drawing, a tenth smaller, encoded worse."""
    image = drawn(original).convert("RGB").resize(picture.size, Image.Resampling.BILINEAR)
    return encoded(picture, image, NEAR_COPY_QUALITY)


def bomb_file() -> bytes:
    """A valid one-bit PNG of more pixels than any limit should admit."""
    width, height = BOMB_SIDE_PX

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def served_file(link: Link) -> bytes | None:
    """The bytes that lie at a link's picture, broken where its behaviour says so; None where there is no file."""
    behaviour = link.behaviour
    if behaviour in ("missing", "gone_host", "redirect_loop", "huge", "copy", "near_copy"):
        return None
    fixed = {"html": HTML, "empty": b"", "drawing": SVG}
    if behaviour in fixed:
        return fixed[behaviour]
    if behaviour == "bomb":
        return bomb_file()
    if behaviour in ("forbidden", "broken_server"):
        return None
    whole = picture_file(link.picture)
    return whole[: len(whole) * 2 // 3] if behaviour == "truncated" else whole


def difference_hash(image: Image.Image) -> str:
    """64-bit difference hash as 16 hex digits, as COYO's image_phash column has them."""
    gray = image.convert("RGB").convert("L").resize((9, 8), Image.Resampling.BOX).tobytes()
    bits = "".join("1" if gray[9 * row + i] > gray[9 * row + i + 1] else "0" for row in range(8) for i in range(8))
    return f"{int(bits, 2):016x}"
