"""The distinct items of a part: digest -> slot, at 24 bytes a place, so that a part's texts fit in little memory."""

from __future__ import annotations

from array import array
from typing import Final

DIGEST: Final = 16
_EMPTY: Final = -2
UNUSED: Final = -1
"""Slot of an item that was seen but has no vector."""


class Slots:
    """A map from 16-byte digests to slots; `len` counts the digests seen.

    Open addressing over flat arrays: the digests are uniform, so their first bytes are the hash.
    """

    def __init__(self) -> None:
        self._resize(1 << 10)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, digest: bytes) -> int | None:
        """The slot of a digest, UNUSED if it was only seen, None if it never was."""
        slot = self._slots[self._place(digest)]
        return None if slot == _EMPTY else slot

    def set(self, digest: bytes, slot: int) -> None:
        """Give a digest its slot."""
        place = self._place(digest)
        if self._slots[place] == _EMPTY:
            self._digests[place * DIGEST : (place + 1) * DIGEST] = digest
            self._count += 1
        self._slots[place] = slot
        if self._count * 3 > (self._mask + 1) * 2:
            self._grow()

    def _place(self, digest: bytes) -> int:
        place = int.from_bytes(digest[:8], "little") & self._mask
        slots, digests = self._slots, self._digests
        while slots[place] != _EMPTY and digests[place * DIGEST : (place + 1) * DIGEST] != digest:
            place = (place + 1) & self._mask
        return place

    def _resize(self, size: int) -> None:
        self._mask = size - 1
        self._slots = array("i", [_EMPTY]) * size
        self._digests = bytearray(size * DIGEST)

    def _grow(self) -> None:
        slots, digests = self._slots, self._digests
        self._resize(2 * len(slots))
        for place, slot in enumerate(slots):
            if slot != _EMPTY:
                digest = bytes(digests[place * DIGEST : (place + 1) * DIGEST])
                new = self._place(digest)
                self._slots[new] = slot
                self._digests[new * DIGEST : (new + 1) * DIGEST] = digest
