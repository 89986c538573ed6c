"""Shared memory between a worker and the trainer's process: buffers that are filled, lent and used again.

A slot is anonymous memory (memfd_create): it has no name, so nothing is left behind whoever is killed, and the size of
/dev/shm does not matter. The worker makes slots and fills them; the other side maps them and gives each back when the
last tensor over it is gone. Messages are single datagrams: a letter, and what belongs to it.

    worker   B stretch, step, slot, bytes, header bytes (with the slot's descriptor when it is new or has grown)
                                                     a batch is there
             W                                       every slot is filled or lent: it waits
             E stretch                               its epoch is over
             X failure (JSON)                        it failed
             D slot, slot, …                         these slots are no more
    trainer  R slot                                  the slot is free again
             G                                       one more slot may be made
             P orders (loader.orders)                what is to be made next
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import select
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from vila_data.loader.arrays import BatchArrays
from vila_data.loader.layout import BatchSize

BATCH: Final = struct.Struct("<cqqiqq")
SLOT: Final = struct.Struct("<ci")
LONGEST_MESSAGE: Final = 60_000
_ROUND: Final = 1 << 20
_HEADER: Final = 1 << 16
LEAST_SLOTS, MOST_SLOTS = 2, 4
_LOOK_MS: Final = 2_000


class HungUp(Exception):
    """The other side is gone."""


@dataclass(frozen=True)
class WorkerFailure:
    """Why a worker gave up. kind: the name of an error of core.errors, empty for others; text: its sentence, else a
    traceback; stretch: number of what it was making."""

    kind: str
    text: str
    stretch: int = 0

    def message(self) -> bytes:
        """The datagram that says so; of a long text, the end."""
        value = asdict(self)
        while len(found := json.dumps(value).encode()) > LONGEST_MESSAGE - 1:
            value["text"] = value["text"][len(value["text"]) // 4 + 1 :]
        return b"X" + found

    @staticmethod
    def of_message(message: bytes) -> WorkerFailure:
        """The failure that a datagram says."""
        return WorkerFailure(**json.loads(message[1:]))


@dataclass
class _Slot:
    """told: its size when its descriptor was sent last; memory: None while it is empty."""

    number: int
    fd: int
    memory: mmap.mmap | None = None
    told: int = 0

    @property
    def capacity(self) -> int:
        return 0 if self.memory is None else len(self.memory)

    def resize(self, size: int) -> None:
        """Give it `size` bytes; 0 gives its memory back."""
        self.memory = None
        os.ftruncate(self.fd, size)
        if size:
            self.memory = mmap.mmap(self.fd, size)


class SlotWriter:
    """The worker's side. limit_bytes: slots may take as much together, though two are made in any case and four at most:
    more would wait longer, not come sooner. blocked: a context in which the time waiting for the other side passes.
    """

    def __init__(self, connection: socket.socket, limit_bytes: int, blocked: Callable[[], Any]) -> None:
        self._connection, self._limit, self._blocked = connection, limit_bytes, blocked
        self._slots: dict[int, _Slot] = {}
        self._free: list[int] = []
        self._granted = self._made = self._stretch = 0
        self._filling: _Slot | None = None
        self._filled = 0
        self._parent = os.getppid()
        self._ready = select.poll()
        self._ready.register(connection, select.POLLIN)

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
        slot = self._slots[self._free.pop()] if self._free else self._make()
        if slot.capacity < need:
            self._empty_others(_rounded(need) - slot.capacity)
            slot.resize(_rounded(need))
        self._filling, self._filled = slot, need
        return size.arrays_in(slot.memory)

    def send(self, step: int, header: object) -> None:
        """Lend the slot that was allocated last, with a header, to the other side."""
        slot = self._filling
        assert slot is not None
        data = pickle.dumps(header, pickle.HIGHEST_PROTOCOL)
        os.pwrite(slot.fd, data, self._filled)
        size = max(slot.capacity, self._filled + len(data))
        message = BATCH.pack(b"B", self._stretch, step, slot.number, self._filled, len(data))
        self._say(message, [slot.fd] if size > slot.told else [])
        slot.told = max(slot.told, size)
        self._filling = None

    def _say(self, message: bytes, fds: Sequence[int] = ()) -> None:
        try:
            socket.send_fds(self._connection, [message], list(fds))
        except ConnectionError as error:
            raise HungUp from error

    def _may_make(self, need: int) -> bool:
        if len(self._slots) < LEAST_SLOTS:
            return True
        if self._granted:
            self._granted -= 1
            return True
        return len(self._slots) < MOST_SLOTS and self._held() + _rounded(need) <= self._limit

    def _make(self) -> _Slot:
        number, self._made = self._made, self._made + 1
        self._slots[number] = _Slot(number, os.memfd_create(f"vila-data-slot-{number}"))
        return self._slots[number]

    def _held(self) -> int:
        return sum(slot.capacity for slot in self._slots.values())

    def _empty_others(self, more: int) -> None:
        """Give back the memory of free slots where `more` bytes would pass the limit."""
        for number in self._free:
            if self._held() + more > self._limit:
                self._slots[number].resize(0)

    def _listen(self, *, wait: bool) -> None:
        """Take what the other side said; `wait`: at least one message."""
        self._check_parent()
        while wait and not self._ready.poll(_LOOK_MS):
            self._check_parent()
        while True:
            try:
                message = self._connection.recv(LONGEST_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise HungUp from error
            if not message:
                raise HungUp
            self._heard(message)

    def _heard(self, message: bytes) -> None:
        """Do what a message says."""
        if message[:1] == b"G":
            self._granted += 1
        else:
            self._free.append(SLOT.unpack(message)[1])

    def _check_parent(self) -> None:
        """A process that the trainer forked may hold the connection open beyond the trainer's end."""
        if os.getppid() != self._parent:
            raise HungUp


def _rounded(size: int) -> int:
    """Bytes of a slot for arrays of `size` bytes and a usual header."""
    return -(-(size + _HEADER) // _ROUND) * _ROUND
