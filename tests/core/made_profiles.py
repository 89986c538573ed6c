"""ICC profiles made from their definitions: matrix, gray and ink, as bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
D65 = (0.3127, 0.3290)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
PRIMARIES = {
    "srgb": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65),
    "display-p3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
    "adobe-rgb": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65),
    "prophoto": ((0.734699, 0.265301), (0.159597, 0.840403), (0.036598, 0.000105), (0.3457, 0.3585)),
}


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _colorants(name: str) -> np.ndarray:
    """[3, 3]: the primaries' XYZ in columns, adapted to D50."""
    *primaries, white_xy = PRIMARIES[name]
    white = _xyz(*white_xy)
    columns = np.stack([_xyz(*xy) for xy in primaries], axis=1)
    columns = columns * np.linalg.solve(columns, white)
    cones = np.diag((_BRADFORD @ D50) / (_BRADFORD @ white))
    return np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ columns


def _curve(decode: Callable[[np.ndarray], np.ndarray]) -> bytes:
    values = np.rint(decode(np.linspace(0, 1, 1024)) * 65_535).astype(">u2")
    return b"curv" + bytes(4) + struct.pack(">I", len(values)) + values.tobytes()


def srgb_decoded(levels: np.ndarray) -> np.ndarray:
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65_536))


def _point(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(_number(float(value)) for value in values)


def _profile(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"made"
    description = b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(78)
    tags = {b"desc": description, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": _point(D50), **tags}
    table, body, at = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, kind, space, pcs)
    head += struct.pack(">6H", 2026, 11, 1, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(map(_number, D50))
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


@cache
def rgb_profile(name: str) -> bytes:
    """One of PRIMARIES."""
    gamma = {"adobe-rgb": 563 / 256, "prophoto": 1.8}.get(name)
    curve = _curve(srgb_decoded if gamma is None else lambda levels: levels**gamma)
    columns = _colorants(name)
    tags = {key: _point(columns[:, at]) for at, key in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


@cache
def gray_profile(gamma: float | None) -> bytes:
    """None: the curve of sRGB."""
    curve = _curve(srgb_decoded if gamma is None else lambda levels: levels**gamma)
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


@cache
def ink_profile() -> bytes:
    """CMYK to Lab by a table: inks that are less pure than their complements."""
    grid = 6
    steps = np.linspace(0, 1, grid)
    inks = np.stack(np.meshgrid(steps, steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 4)
    amounts = inks**0.8  # dot gain
    paper = np.array([0.93, 0.92, 0.88])
    colors = np.array([[0.05, 0.35, 0.60], [0.50, 0.04, 0.25], [0.90, 0.80, 0.05], [0.03, 0.03, 0.03]])
    linear = paper * np.prod(1 - amounts[:, :, None] * (1 - colors[None]), axis=1)
    xyz = linear @ _colorants("srgb").T / D50
    cubes = np.where(xyz > 216 / 24_389, np.cbrt(xyz), (24_389 / 27 * xyz + 16) / 116)
    lightness = 116 * cubes[:, 1] - 16
    a, b = 500 * (cubes[:, 0] - cubes[:, 1]), 200 * (cubes[:, 1] - cubes[:, 2])
    lab = np.stack([lightness * 2.55, a + 128, b + 128], axis=1)
    identity = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes((4, 3, grid, 0))
    table += b"".join(_number(float(value)) for value in np.eye(3).ravel())
    table += identity * 4 + np.clip(np.rint(lab), 0, 255).astype(np.uint8).tobytes() + identity * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})
