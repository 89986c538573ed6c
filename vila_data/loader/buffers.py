"""Memory of batches: shared buffers between a worker and the trainer's process, and the messages that pass them.

A slot is anonymous memory (memfd_create): it has no name, so a killed process leaves nothing behind, and the size of
/dev/shm does not matter. The worker creates slots and fills them; the trainer maps them and returns each when the last
tensor over it is gone. Each message is one datagram, a letter and its fields:

    worker   B request, step, slot, bytes, header bytes   a batch (with the slot's descriptor if it is new or has grown)
             W                                            all slots are filled or borrowed, the worker waits
             E request                                    the request's epoch is over
             X failure (JSON)                             the request failed
             D slot, slot, …                              these slots were deleted
    trainer  R slot                                       the slot is free again
             G                                            one more slot may be created
             P requests                                   what to make next

A request's number is in everything that is sent for it. So batches that were under way when the trainer went elsewhere
are recognized, and their memory is returned.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import select
import socket
import struct
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from vila_data.loader.arrays import BatchArrays, BatchSize
from vila_data.loader.faults import too_many_files
from vila_data.mix.rank_share import Position

MAX_MESSAGE: Final = 60_000
_BATCH: Final = struct.Struct("<cqqiqq")
_SLOT: Final = struct.Struct("<ci")
_END: Final = struct.Struct("<cq")
_DELETED_PER_MESSAGE: Final = (MAX_MESSAGE - 1) // 4
_MIN_SLOTS, _MAX_SLOTS = 2, 4
_HEADER: Final = 1 << 16
_SLOT_STEP: Final = 1 << 20
_PARENT_CHECK_MS: Final = 2_000
_REUSED_STEP: Final = 1 << 21
_REUSED_BUFFERS: Final = 2


class PeerDisconnected(Exception):
    """The other side is gone."""


class Cancelled(Exception):
    """A later request cancels the current one."""


@dataclass(frozen=True)
class Request:
    """The batches of an epoch after `start`, from the worker's step `first_step` on.

    number: its own; cancels: earlier requests are dropped, otherwise they are finished first.
    """

    number: int
    epoch: int
    start: Position
    first_step: int
    cancels: bool = False


def request_message(requests: Sequence[Request]) -> bytes | None:
    """The datagram with these requests; None if it would be too long."""
    message = b"P" + pickle.dumps(tuple(requests), pickle.HIGHEST_PROTOCOL)
    return message if len(message) <= MAX_MESSAGE else None


def ended_request(message: bytes) -> int:
    """The number in an E message."""
    return int(_END.unpack(message)[1])


def deleted_slots(message: bytes) -> tuple[int, ...]:
    """The slots in a D message."""
    return struct.unpack(f"<{(len(message) - 1) // 4}i", message[1:])


@dataclass(frozen=True)
class WorkerFailure:
    """Why a worker failed. kind: the name of an error of core.errors, empty for others; text: its message, or a
    traceback; request: number of the request."""

    kind: str
    text: str
    request: int = 0

    def message(self) -> bytes:
        """The X message; the beginning of a long text is cut off."""
        value = asdict(self)
        while len(data := json.dumps(value).encode()) > MAX_MESSAGE - 1:
            value["text"] = value["text"][len(value["text"]) // 4 + 1 :]
        return b"X" + data

    @staticmethod
    def of_message(message: bytes) -> WorkerFailure:
        """The failure in an X message."""
        return WorkerFailure(**json.loads(message[1:]))


@dataclass
class _Slot:
    """sent_size: its size when its descriptor was last sent; memory: None while it is empty."""

    number: int
    fd: int
    memory: mmap.mmap | None = None
    sent_size: int = 0

    @property
    def capacity(self) -> int:
        return 0 if self.memory is None else len(self.memory)

    def resize(self, size: int) -> None:
        """Resize to `size` bytes; 0 frees the memory."""
        self.memory = None
        os.ftruncate(self.fd, size)
        if size:
            self.memory = mmap.mmap(self.fd, size)


class BufferWriter:
    """The worker's side: receives requests, fills slots and sends them.

    limit_bytes: limit of all slots together, though two are created in any case and four at most: more would wait
    longer, not arrive sooner. blocked: a context entered while waiting for the other side. requests: the first ones.
    """

    def __init__(
        self,
        connection: socket.socket,
        limit_bytes: int,
        blocked: Callable[[], Any],
        requests: Iterable[Request] = (),
    ) -> None:
        self._connection, self._limit, self._blocked = connection, limit_bytes, blocked
        self._requests = deque(requests)
        self._cancelled = False
        self._slots: dict[int, _Slot] = {}
        self._free: list[int] = []
        self._granted = self._created = self._request = 0
        self._filling: _Slot | None = None
        self._filled = 0
        self._parent = os.getppid()
        self._ready = select.poll()
        self._ready.register(connection, select.POLLIN)

    @property
    def slots(self) -> int:
        """Slots that exist."""
        return len(self._slots)

    @property
    def used(self) -> int:
        """Slots with a batch that the other side has, or that is being made."""
        return len(self._slots) - len(self._free)

    @property
    def nbytes(self) -> int:
        """Memory of all slots."""
        return sum(slot.capacity for slot in self._slots.values())

    def next_request(self) -> Request:
        """The next request; waits until there is one.

        Raises:
            PeerDisconnected: the other side is gone.
        """
        if self._filling is not None:  # allocated, and abandoned before it was sent
            self._free.append(self._filling.number)
            self._filling = None
        self._receive(wait=False)
        self._delete_extra_slots()
        if not self._requests:
            with self._blocked():
                while not self._requests:
                    self._receive(wait=True)
        self._cancelled = False
        request = self._requests.popleft()
        self._request = request.number
        return request

    def allocate(self, size: BatchSize) -> BatchArrays:
        """Arrays in a free slot; waits for one if necessary.

        Raises:
            PeerDisconnected: the other side is gone.
            Cancelled: the batch is no longer needed.
        """
        self._receive_or_cancel(wait=False)
        need = size.nbytes
        while not self._free and not self._may_create(need):
            self._send(b"W")
            with self._blocked():
                self._receive_or_cancel(wait=True)
        slot = self._slots[self._free.pop()] if self._free else self._create()
        if slot.capacity < need:
            self._empty_free_slots(_slot_bytes(need) - slot.capacity)
            slot.resize(_slot_bytes(need))
        self._filling, self._filled = slot, need
        return size.arrays_in(slot.memory)

    def send(self, step: int, header: object) -> None:
        """Send the slot that was allocated last, with a header."""
        slot = self._filling
        assert slot is not None
        data = pickle.dumps(header, pickle.HIGHEST_PROTOCOL)
        os.pwrite(slot.fd, data, self._filled)
        size = max(slot.capacity, self._filled + len(data))
        message = _BATCH.pack(b"B", self._request, step, slot.number, self._filled, len(data))
        self._send(message, [slot.fd] if size > slot.sent_size else [])
        slot.sent_size = max(slot.sent_size, size)
        self._filling = None

    def send_end(self) -> None:
        """Report that the request's epoch is over."""
        self._send(_END.pack(b"E", self._request))

    def send_failure(self, kind: str, text: str) -> None:
        """Report why the rest of the request cannot be made."""
        self._send(WorkerFailure(kind, text, self._request).message())

    def _send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        try:
            socket.send_fds(self._connection, [message], list(fds))
        except ConnectionError as error:
            raise PeerDisconnected from error

    def _receive_or_cancel(self, *, wait: bool) -> None:
        self._receive(wait=wait)
        if self._cancelled:
            raise Cancelled

    def _receive(self, *, wait: bool) -> None:
        """Read the other side's messages; `wait`: at least one."""
        self._check_parent()
        while wait and not self._ready.poll(_PARENT_CHECK_MS):
            self._check_parent()
        while True:
            try:
                message = self._connection.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise PeerDisconnected from error
            kind = message[:1]
            if kind == b"P":
                for request in pickle.loads(message[1:]):  # written by our own trainer
                    if request.cancels:
                        self._requests.clear()
                        self._cancelled = True
                    self._requests.append(request)
            elif kind == b"G":
                self._granted += 1
            elif kind == b"R":
                self._free.append(_SLOT.unpack(message)[1])
            else:
                raise PeerDisconnected

    def _check_parent(self) -> None:
        """A process that the trainer forked may keep the connection open after the trainer's end."""
        if os.getppid() != self._parent:
            raise PeerDisconnected

    def _may_create(self, need: int) -> bool:
        if len(self._slots) < _MIN_SLOTS:
            return True
        if self._granted:
            self._granted -= 1
            return True
        return len(self._slots) < _MAX_SLOTS and self.nbytes + _slot_bytes(need) <= self._limit

    def _create(self) -> _Slot:
        number, self._created = self._created, self._created + 1
        self._slots[number] = _Slot(number, os.memfd_create(f"vila-data-slot-{number}"))
        return self._slots[number]

    def _empty_free_slots(self, more: int) -> None:
        """Free the memory of unused slots while `more` bytes would exceed the limit."""
        for number in self._free:
            if self.nbytes + more > self._limit:
                self._slots[number].resize(0)

    def _delete_extra_slots(self) -> None:
        """Delete unused slots that needed a grant: the other side held many batches and has released them."""
        deleted = []
        while self._free and len(self._slots) > _MIN_SLOTS:
            if len(self._slots) <= _MAX_SLOTS and self.nbytes <= self._limit:
                break
            slot = self._slots.pop(self._free.pop())
            slot.resize(0)
            os.close(slot.fd)
            deleted.append(slot.number)
        for first in range(0, len(deleted), _DELETED_PER_MESSAGE):
            some = deleted[first : first + _DELETED_PER_MESSAGE]
            self._send(b"D" + struct.pack(f"<{len(some)}i", *some))


class BorrowedBatch(NamedTuple):
    """A received batch. request, step: which one it is; buffer: its memory; header: its metadata."""

    request: int
    step: int
    buffer: Any
    header: Any


class BorrowedBuffers:
    """The trainer's side: maps a worker's slots, and returns each when its batch is gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._process = os.getpid()
        self._maps: dict[int, mmap.mmap] = {}
        self._borrowed: set[int] = set()
        self._returned: deque[int] = deque()

    @property
    def borrowed(self) -> int:
        """How many slots the worker regards as borrowed."""
        return len(self._borrowed)

    @property
    def exhausted(self) -> bool:
        """Whether the worker regards all slots as borrowed."""
        return len(self._borrowed) == len(self._maps)

    def borrow(self, message: bytes, fds: list[int]) -> BorrowedBatch:
        """The batch of a B message; its slot is returned when nothing refers to `buffer` any more.

        Raises:
            RunError: the process cannot open more files.
        """
        _, request, step, number, size, header_size = _BATCH.unpack(message)
        for fd in fds:
            try:
                self._maps[number] = mmap.mmap(fd, 0)
            except OSError as error:
                raise too_many_files(len(self._borrowed)) from error
            finally:
                os.close(fd)
        memory = self._maps.get(number)
        if memory is None or len(memory) < size + header_size:  # the kernel had no descriptor for us
            raise too_many_files(len(self._borrowed))
        header = pickle.loads(memory[size : size + header_size])  # written by our own worker
        buffer = np.frombuffer(memory, np.uint8, size)
        self._borrowed.add(number)
        weakref.finalize(buffer, self._give_back, number).atexit = False
        return BorrowedBatch(request, step, buffer, header)

    def forget(self, numbers: Iterable[int]) -> None:
        """Unmap slots that the worker has deleted."""
        for number in numbers:
            self._maps.pop(number, None)

    def flush(self) -> None:
        """Tell the worker about slots that were returned while its socket was full."""
        while self._returned:
            number = self._returned.popleft()
            try:
                self._connection.send(_SLOT.pack(b"R", number), socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._returned.appendleft(number)
                return
            except OSError:
                return  # the worker is gone, and its slots with it
            self._borrowed.discard(number)

    def _give_back(self, number: int) -> None:
        """Runs wherever the last view dies: in any thread, inside any other call, in a forked process too."""
        if os.getpid() == self._process:
            self._returned.append(number)
            self.flush()

    def close(self) -> None:
        """Forget the slots; borrowed memory stays mapped until its views are gone."""
        self._maps = {}


class ReusedMemory:
    """Memory for batches made in the trainer's own process, reused because new pages cost a tenth of the decoding."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def allocate(self, size: BatchSize) -> BatchArrays:
        """Arrays of this size, which are not cleared."""
        need = size.nbytes
        memory = self._free.pop() if self._free else None
        if memory is None or len(memory) < need:
            length = -(-need // _REUSED_STEP) * _REUSED_STEP
            memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):  # a kernel without large pages
                memory.madvise(mmap.MADV_HUGEPAGE)
        buffer = np.frombuffer(memory, np.uint8, need)
        weakref.finalize(buffer, self._take_back, memory).atexit = False
        return size.arrays_in(buffer)

    def _take_back(self, memory: mmap.mmap) -> None:
        if len(self._free) < _REUSED_BUFFERS:
            self._free.append(memory)


def _slot_bytes(size: int) -> int:
    """Bytes of a slot for arrays of `size` bytes and a usual header."""
    return -(-(size + _HEADER) // _SLOT_STEP) * _SLOT_STEP
