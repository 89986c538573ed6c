"""The trainer's side of slots: a batch's memory, mapped, and given back when the last view of it is gone."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import socket
import weakref
from dataclasses import dataclass
from typing import Any

from vila_data.stream.slots import BATCH, SLOT


@dataclass
class _Mapped:
    fd: int
    memory: mmap.mmap


class SlotLender:
    """Maps the slots that a worker sends, and lends them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._slots: dict[int, _Mapped] = {}
        self._lent: set[int] = set()

    @property
    def exhausted(self) -> bool:
        """Whether every slot that there is is lent."""
        return len(self._lent) == len(self._slots)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of all slots."""
        return sum(len(slot.memory) for slot in self._slots.values())

    def take(self, message: bytes, fds: list[int]) -> tuple[int, Any, Any]:
        """(step, buffer, header) of a batch's message; the slot goes back when nothing refers to `buffer` any more."""
        _, step, number, size, header_size = BATCH.unpack(message)
        total = size + header_size
        if fds:
            self._slots[number] = _Mapped(fds[0], mmap.mmap(fds[0], 0))
        slot = self._slots[number]
        if len(slot.memory) < total:  # it has grown
            slot.memory = mmap.mmap(slot.fd, 0)
        header = pickle.loads(slot.memory[size:total])  # written by our own worker
        buffer = (ctypes.c_ubyte * size).from_buffer(slot.memory)
        self._lent.add(number)
        weakref.finalize(buffer, self._give_back, number).atexit = False
        return step, buffer, header

    def _give_back(self, number: int) -> None:
        self._lent.discard(number)
        try:
            self._connection.send(SLOT.pack(b"R", number), socket.MSG_DONTWAIT)
        except OSError:
            return  # the worker is gone, and its slots with it

    def close(self) -> None:
        """Close the slots' descriptors; memory that is still lent stays mapped until its views are gone."""
        for slot in self._slots.values():
            os.close(slot.fd)
        self._slots = {}
