"""A JPEG's segments: what they say of the picture, and the same JPEG without those that no decoder needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from vila_data.core.fates import ImageError
from vila_data.core.orientation import orientation_of

_SOI: Final = b"\xff\xd8"
_EOI: Final = b"\xff\xd9"
_SOS: Final = 0xDA
_EXIF: Final = b"Exif\0\0"
_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"
_ICC: Final = b"ICC_PROFILE\0"
_TABLES: Final = {0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF}  # DHT, DAC, DQT, DNL, DRI, DHP, EXP
_FRAMES: Final = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_PROGRESSIVE: Final = {0xC2, 0xC6, 0xCA, 0xCE}
_JPEG_LS: Final = 0xF7
_HEADER_MARKER: Final = re.compile(rb"\xff[^\x00\xff]")
_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in a scan: neither a stuffed byte nor a restart
_MOST_SEGMENTS: Final = 4096
_MOST_SCANS: Final = 1000
_KEPT_SCANS: Final = 64  # more than these are not kept: each reader would pay for them again
_SCAN_WORK: Final = 2_000_000_000  # components x scans x pixels, whatever the size
_SCANS_PER_COMPONENT: Final = 10  # that any picture may have; encoders write 5 at most


@dataclass(frozen=True, slots=True)
class JpegFacts:
    """What a JPEG's segments say, up to its first scan.

    orientation:    1 to 8, by core.orientation.
    profile:        the ICC profile; None where there is none, or not the whole of it.
    profile_broken: there are pieces of a profile that do not make one.
    components:     of the frame.
    many_scans:     the picture comes in several scans.
    kept:           the segments that a decoder needs, joined.
    lean:           `kept` is all that there is before the first scan.
    scan:           offset of the first scan's marker; the length of the data where there is none.
    """

    orientation: int
    profile: bytes | None
    profile_broken: bool
    components: int
    many_scans: bool
    kept: bytes
    lean: bool
    scan: int


class _Metadata:
    """Segments APP0 to APP15 and COM: what is read of them, and which stay."""

    def __init__(self) -> None:
        self.jfif: bytes | None = None
        self.adobe: bytes | None = None
        self.exif: list[bytes] = []
        self.xmp: bytes | None = None
        self.icc: list[bytes] = []

    def add(self, marker: int, content: bytes) -> None:
        if marker == 0xE0 and self.jfif is None and content[:5] == b"JFIF\0" and len(content) >= 14:
            self.jfif = b"\xff\xe0\0\x10" + content[:12] + b"\0\0"  # without its thumbnail
        elif marker == 0xEE and content[:5] == b"Adobe" and len(content) >= 12:
            self.adobe = b"\xff\xee\0\x0e" + content[:12]
        elif marker == 0xE1 and content[:6] == _EXIF:
            self.exif.append(content[6:])
        elif marker == 0xE1 and content[:29] == _XMP:
            self.xmp = content[29:]
        elif marker == 0xE2 and content[:12] == _ICC and len(content) >= 14:
            self.icc.append(content)

    def profile(self) -> bytes | None:
        """The pieces in order; None where one is missing or there are too many."""
        pieces = sorted(self.icc, key=lambda piece: piece[12])
        total = len(pieces)
        if any(piece[12] != at or piece[13] != total for at, piece in enumerate(pieces, 1)):
            return None
        return b"".join(piece[14:] for piece in pieces) or None


def jpeg_facts(jpeg: bytes) -> JpegFacts:
    """Read a JPEG's segments up to its first scan.

    Raises:
        ImageError: unsupported_format (JPEG-LS), too_large (thousands of segments).
    """
    found = _Metadata()
    tables: list[bytes] = []
    at, components, progressive, bare = 2, 0, False, 2
    size_of_data, segments = len(jpeg), 0
    while at + 4 <= size_of_data:
        marker = jpeg[at + 1]
        if jpeg[at] != 0xFF or marker in (0xFF, 0x00):  # fill bytes, or rubbish that decoders pass over
            after = _HEADER_MARKER.search(jpeg, at)
            at = size_of_data if after is None else after.start()
            continue
        if marker in (_SOS, 0xD9):
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a content
            at += 2
            continue
        segments += 1
        if segments > _MOST_SEGMENTS:
            raise ImageError("too_large", "thousands of JPEG segments")
        stop = at + 2 + (jpeg[at + 2] << 8 | jpeg[at + 3])
        if 0xE0 <= marker <= 0xEF:
            found.add(marker, jpeg[at + 4 : stop])
        elif marker in _TABLES or marker in _FRAMES:
            tables.append(jpeg[at:stop])
            bare += stop - at
            if marker in _FRAMES:
                components, progressive = jpeg[at + 9] if at + 9 < size_of_data else 0, marker in _PROGRESSIVE
        elif marker == _JPEG_LS:
            raise ImageError("unsupported_format", "jpeg-ls")
        at = stop
    scan = min(at, size_of_data)
    adobe = found.adobe if found.jfif is None or components == 4 else None  # JFIF says YCbCr already
    head = [piece for piece in (found.jfif, adobe) if piece is not None]
    kept = b"".join(head + tables)
    profile = found.profile()
    return JpegFacts(
        orientation=orientation_of(b"".join(found.exif) if found.exif else None, found.xmp),
        profile=profile,
        profile_broken=bool(found.icc) and profile is None,
        components=components,
        many_scans=progressive or jpeg[scan + 4 : scan + 5] != bytes((components,)),
        kept=kept,
        lean=bare + sum(map(len, head)) == scan and jpeg.startswith(kept, 2),
        scan=scan,
    )


def check_scans(jpeg: bytes, facts: JpegFacts, pixels: int) -> None:
    """Refuse a picture whose scans would take far longer to decode than its pixels warrant.

    Raises:
        ImageError: too_large.
    """
    if not facts.many_scans:
        return
    components = max(1, facts.components)
    scans = jpeg.count(b"\xff\xda")  # at least as many as there are
    most = min(_MOST_SCANS, max(_SCANS_PER_COMPONENT * components, _SCAN_WORK // max(1, pixels * components)))
    if scans > most:
        scans = sum(marker == _SOS for marker, _, _ in _after_header(jpeg, facts.scan))
    if scans > most:
        raise ImageError("too_large", f"{scans} scans of {pixels} pixels")


def clean_jpeg(jpeg: bytes, facts: JpegFacts) -> bytes:
    """The JPEG without metadata and without what follows its end; tables and scans as they are, to the byte."""
    if not facts.many_scans:
        end = _end_of_image(jpeg, facts.scan)
        return jpeg if facts.lean and end == len(jpeg) else _SOI + facts.kept + jpeg[facts.scan : end]
    pieces = [_SOI, facts.kept]
    pieces += [
        jpeg[start:stop]
        for marker, start, stop in _after_header(jpeg, facts.scan)
        if marker in (_SOS, 0xD9) or marker in _TABLES
    ]
    return b"".join(pieces)


def _end_of_image(jpeg: bytes, at: int) -> int:
    """Behind the first EOI from `at`; the data's end where there is none. Seven times as fast as `bytes.find`."""
    values = np.frombuffer(jpeg, np.uint8)[at:]
    hits = values[1:] == _EOI[1]
    hits &= values[:-1] == _EOI[0]
    first = int(hits.argmax()) if hits.size else 0
    return at + first + 2 if hits.size and hits[first] else len(jpeg)


def worth_keeping(jpeg: bytes, facts: JpegFacts, pixels: int) -> bool:
    """Whether a cleaned JPEG is no larger, and no slower to decode, than a picture of so many pixels may be."""
    return len(jpeg) <= 4 * pixels + 16_384 and (not facts.many_scans or jpeg.count(b"\xff\xda") <= _KEPT_SCANS)


def _after_header(jpeg: bytes, at: int) -> list[tuple[int, int, int]]:
    """(marker, start, stop) of the segments from the first scan to the end of the image; scans with their data.

    Raises:
        ImageError: too_large: thousands of segments.
    """
    found: list[tuple[int, int, int]] = []
    while (mark := _MARKER.search(jpeg, at)) is not None:
        if len(found) == 4 * _MOST_SEGMENTS:
            raise ImageError("too_large", "thousands of JPEG segments")
        start, marker = mark.start(), jpeg[mark.start() + 1]
        if marker == 0xD9:
            found.append((marker, start, start + 2))
            break
        if start + 4 > len(jpeg):
            break
        stop = start + 2 + (jpeg[start + 2] << 8 | jpeg[start + 3])
        if marker == _SOS:
            after = _MARKER.search(jpeg, stop)
            stop = len(jpeg) if after is None else after.start()
        found.append((marker, start, min(stop, len(jpeg))))
        at = stop
    return found
