"""What a worker is told to make: stretches of epochs, one after another, the next one before it is asked for.

A stretch's number stands in all that is sent of it, so that what was on its way when the trainer went elsewhere is told
apart, and its memory given back.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vila_data.loader.arrays import BatchArrays
from vila_data.loader.layout import BatchSize
from vila_data.loader.slots import LEAST_SLOTS, LONGEST_MESSAGE, MOST_SLOTS, SlotWriter, WorkerFailure
from vila_data.mix.rank_share import Position

END: Final = struct.Struct("<cq")
DROPPED: Final = b"D"
_NUMBERS: Final = (LONGEST_MESSAGE - 1) // 4


@dataclass(frozen=True)
class Order:
    """The batches of an epoch behind `start`, from the worker's step `first_step` on.

    stretch: its number. at_once: what was ordered before is no longer wanted; else it is made before this.
    """

    stretch: int
    epoch: int
    start: Position
    first_step: int
    at_once: bool = False


def orders_message(orders: Sequence[Order]) -> bytes | None:
    """The datagram that says them, in turn; None where it would be too long for one."""
    found = b"P" + pickle.dumps(tuple(orders), pickle.HIGHEST_PROTOCOL)
    return found if len(found) <= LONGEST_MESSAGE else None


class Overtaken(Exception):
    """What is being made is no longer wanted."""


class OrderedSlots(SlotWriter):
    """A SlotWriter whose other side says what is to be made. orders: the first ones."""

    def __init__(
        self, connection: Any, limit_bytes: int, blocked: Callable[[], Any], orders: Sequence[Order] = ()
    ) -> None:
        super().__init__(connection, limit_bytes, blocked)
        self._orders = deque(orders)
        self._overtaken = self._allocating = False

    def next_order(self) -> Order:
        """What is to be made now, waiting until there is something.

        Raises:
            HungUp: the other side is gone.
        """
        if self._filling is not None:  # allocated, and given up before it was sent
            self._free.append(self._filling.number)
            self._filling = None
        self._listen(wait=False)
        self._shrink()
        if not self._orders:
            with self._blocked():
                while not self._orders:
                    self._listen(wait=True)
        self._overtaken = False
        order = self._orders.popleft()
        self._stretch = order.stretch
        return order

    def allocate(self, size: BatchSize) -> BatchArrays:
        """Arrays in a slot, waiting for one if need be.

        Raises:
            HungUp: the other side is gone.
            Overtaken: the batch is no longer wanted.
        """
        self._allocating = True
        try:
            return super().allocate(size)
        finally:
            self._allocating = False

    @property
    def used(self) -> int:
        """Slots that hold a batch which the other side has, or which is being made."""
        return len(self._slots) - len(self._free)

    def say_end(self) -> None:
        """Say that the stretch's epoch is over."""
        self._say(END.pack(b"E", self._stretch))

    def say_failure(self, kind: str, text: str) -> None:
        """Say why the rest of the stretch will not come."""
        self._say(WorkerFailure(kind, text, self._stretch).message())

    def _heard(self, message: bytes) -> None:
        if message[:1] != b"P":
            super()._heard(message)
            return
        orders: tuple[Order, ...] = pickle.loads(message[1:])  # written by our own trainer
        for order in orders:
            if order.at_once:
                self._orders.clear()
                self._overtaken = True
            self._orders.append(order)

    def _listen(self, *, wait: bool) -> None:
        super()._listen(wait=wait)
        if self._allocating and self._overtaken:
            raise Overtaken

    def _shrink(self) -> None:
        """Give up slots beyond those that are made without a grant: the other side held many batches, and let them go."""
        dropped = []
        while self._free and len(self._slots) > LEAST_SLOTS:
            if len(self._slots) <= MOST_SLOTS and self._held() <= self._limit:
                break
            slot = self._slots.pop(self._free.pop())
            slot.resize(0)
            os.close(slot.fd)
            dropped.append(slot.number)
        for first in range(0, len(dropped), _NUMBERS):
            some = dropped[first : first + _NUMBERS]
            self._say(DROPPED + struct.pack(f"<{len(some)}i", *some))


def dropped_slots(message: bytes) -> tuple[int, ...]:
    """Numbers of the slots that a message says are no more."""
    return struct.unpack(f"<{(len(message) - 1) // 4}i", message[1:])
