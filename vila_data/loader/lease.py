"""The trainer's side of slots: a batch's memory, mapped, and given back when the last view of it is gone."""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from vila_data.loader.descriptors import out_of_descriptors
from vila_data.loader.slots import BATCH, SLOT


class Lent(NamedTuple):
    """A batch. stretch, step: which one it is; buffer: its memory; header: what goes with it."""

    stretch: int
    step: int
    buffer: Any
    header: Any


class SlotLender:
    """Maps the slots that a worker sends, and lends them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._process = os.getpid()
        self._maps: dict[int, mmap.mmap] = {}
        self._lent: set[int] = set()
        self._returned: deque[int] = deque()

    @property
    def lent(self) -> int:
        """How many slots are lent."""
        return len(self._lent)

    @property
    def exhausted(self) -> bool:
        """Whether every slot that there is is lent, as far as the worker knows."""
        return len(self._lent) == len(self._maps)

    def take(self, message: bytes, fds: list[int]) -> Lent:
        """What a batch's message lends; the slot goes back when nothing refers to `buffer` any more.

        Raises:
            RunError: the process may open no more files.
        """
        _, stretch, step, number, size, header_size = BATCH.unpack(message)
        for fd in fds:
            try:
                self._maps[number] = mmap.mmap(fd, 0)
            except OSError as error:
                raise out_of_descriptors(len(self._lent)) from error
            finally:
                os.close(fd)
        memory = self._maps.get(number)
        if memory is None or len(memory) < size + header_size:
            raise out_of_descriptors(len(self._lent))
        header = pickle.loads(memory[size : size + header_size])  # written by our own worker
        buffer = np.frombuffer(memory, np.uint8, size)
        self._lent.add(number)
        weakref.finalize(buffer, self._give_back, number).atexit = False
        return Lent(stretch, step, buffer, header)

    def forget(self, numbers: Iterable[int]) -> None:
        """Unmap slots that the worker has given up."""
        for number in numbers:
            self._maps.pop(number, None)

    def flush(self) -> None:
        """Tell the worker of slots that came back while it did not listen."""
        while self._returned:
            number = self._returned.popleft()
            try:
                self._connection.send(SLOT.pack(b"R", number), socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._returned.appendleft(number)
                return
            except OSError:
                return  # the worker is gone, and its slots with it
            self._lent.discard(number)

    def _give_back(self, number: int) -> None:
        """Runs wherever the last view dies: in any thread, inside any other call, in a forked process too."""
        if os.getpid() == self._process:
            self._returned.append(number)
            self.flush()

    def close(self) -> None:
        """Forget the slots; memory that is still lent stays mapped until its views are gone."""
        self._maps = {}
