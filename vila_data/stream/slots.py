"""Shared memory between a worker and the trainer's process: buffers that are filled, lent and used again.

A slot is anonymous memory (memfd_create): it has no name, so nothing is left behind whoever is killed, and the size of
/dev/shm does not matter. The worker makes slots and fills them; the other side maps them once and gives each back when
the last tensor over it is gone. Messages are single datagrams: a letter, and what belongs to it.

    worker   B step, slot, bytes, header bytes (with the slot's descriptor when it is new)   a batch is there
             W                                       every slot is filled or lent: it waits
             E                                       the epoch is over
             X text                                  it failed
    trainer  R slot                                  the slot is free again
             G                                       one more slot may be made
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vila_data.stream.arrays import BatchArrays
from vila_data.stream.layout import BatchSize

BATCH: Final = struct.Struct("<cqiqq")
SLOT: Final = struct.Struct("<ci")
LONGEST_MESSAGE: Final = 60_000
_ROUND: Final = 1 << 20
_HEADER: Final = 1 << 16
_LEAST_SLOTS, _MOST_SLOTS = 2, 4


class HungUp(Exception):
    """The other side is gone."""


@dataclass
class _Slot:
    number: int
    fd: int
    memory: mmap.mmap
    sent: bool = False

    @property
    def capacity(self) -> int:
        return len(self.memory)


class SlotWriter:
    """The worker's side. limit_bytes: slots may take as much together, though two are made in any case and four at most:
    more would wait longer, not come sooner.

    blocked: called with the seconds spent waiting for the other side.
    """

    def __init__(self, connection: socket.socket, limit_bytes: int, blocked: Callable[[], Any]) -> None:
        self._connection, self._limit, self._blocked = connection, limit_bytes, blocked
        self._slots: dict[int, _Slot] = {}
        self._free: list[int] = []
        self._granted = 0
        self._filling: _Slot | None = None
        self._filled = 0

    def allocate(self, size: BatchSize) -> BatchArrays:
        """Arrays in a slot, waiting for one if need be.

        Raises:
            HungUp: the other side is gone.
        """
        self._listen(wait=False)
        need = size.nbytes
        while not self._free and not self._may_make(need):
            self._say(b"W")
            with self._blocked():
                self._listen(wait=True)
        slot = self._slots[self._free.pop()] if self._free else self._make(need)
        if slot.capacity < need:
            os.ftruncate(slot.fd, max(_rounded(need), os.fstat(slot.fd).st_size))
            slot.memory = mmap.mmap(slot.fd, 0)
        self._filling, self._filled = slot, need
        return size.arrays_in(slot.memory)

    def send(self, step: int, header: object) -> None:
        """Lend the slot that was allocated last, with a header, to the other side."""
        slot = self._filling
        assert slot is not None
        data = pickle.dumps(header, pickle.HIGHEST_PROTOCOL)
        os.pwrite(slot.fd, data, self._filled)
        message = BATCH.pack(b"B", step, slot.number, self._filled, len(data))
        self._say(message, [] if slot.sent else [slot.fd])
        slot.sent = True
        self._filling = None

    def finish(self, message: bytes) -> None:
        """Send a last message, and wait for the other side to hang up: lent slots stay valid until then."""
        self._say(message)
        while True:
            self._listen(wait=True)

    def _say(self, message: bytes, fds: Sequence[int] = ()) -> None:
        try:
            socket.send_fds(self._connection, [message], list(fds))
        except ConnectionError as error:
            raise HungUp from error

    def _may_make(self, need: int) -> bool:
        if len(self._slots) < _LEAST_SLOTS:
            return True
        if self._granted:
            self._granted -= 1
            return True
        return (
            len(self._slots) < _MOST_SLOTS
            and sum(slot.capacity for slot in self._slots.values()) + _rounded(need) <= self._limit
        )

    def _make(self, need: int) -> _Slot:
        number = len(self._slots)
        fd = os.memfd_create(f"vila-data-slot-{number}")
        os.ftruncate(fd, _rounded(need))
        self._slots[number] = _Slot(number, fd, mmap.mmap(fd, _rounded(need)))
        return self._slots[number]

    def _listen(self, *, wait: bool) -> None:
        """Take what the other side said; `wait`: at least one message."""
        flags = 0 if wait else socket.MSG_DONTWAIT
        while True:
            try:
                message = self._connection.recv(SLOT.size, flags)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise HungUp from error
            if not message:
                raise HungUp
            if message[:1] == b"G":
                self._granted += 1
            else:
                self._free.append(SLOT.unpack(message)[1])
            flags = socket.MSG_DONTWAIT


def _rounded(size: int) -> int:
    """Bytes of a slot for arrays of `size` bytes and a usual header."""
    return -(-(size + _HEADER) // _ROUND) * _ROUND
