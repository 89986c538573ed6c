"""Which way up a picture is: one rule for all formats, the one of Pillow's `exif_transpose`.

EXIF's tag decides if it is there; else `tiff:Orientation` of XMP does; else the picture is upright.
"""

from __future__ import annotations

import re
import struct
from typing import Final

_TAG: Final = 0x0112
_PREFIX: Final = b"Exif\0\0"
_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">"}
_WHOLE: Final = {3: "H", 4: "I", 8: "h", 9: "i"}  # SHORT, LONG, SSHORT, SLONG
_XMP: Final = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation_of(exif: bytes | None, xmp: bytes | None) -> int:
    """The EXIF orientation, 1 to 8, of a picture with these metadata; 1 where they say nothing that can be read."""
    found = None if exif is None else _exif_orientation(exif)
    if found is None and xmp is not None:
        named = _XMP.search(xmp)
        found = int(named[1]) if named else None
    return found if found is not None and 1 <= found <= 8 else 1


def _exif_orientation(exif: bytes) -> int | None:
    """The tag's value in the first directory; None where there is no such tag."""
    while exif.startswith(_PREFIX):
        exif = exif[len(_PREFIX) :]
    order = _ORDERS.get(exif[:4])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", exif, entry)
            if tag == _TAG:
                return _value(exif, order, kind, values, entry + 8)
    except struct.error:
        return None  # cut or wrong: no orientation, as other readers do
    return None


def _value(exif: bytes, order: str, kind: int, values: int, at: int) -> int:
    """The first value of an entry; 0 where it is not a whole number."""
    code = _WHOLE.get(kind)
    if code is None or values < 1:
        return 0
    if values * struct.calcsize(code) > 4:
        (at,) = struct.unpack_from(order + "I", exif, at)
    (value,) = struct.unpack_from(order + code, exif, at)
    return int(value)
