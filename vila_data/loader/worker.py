"""A worker process: makes its share of a rank's batches in shared memory. It imports no torch.

`loader.pool` starts it with the trainer's import path and the numbers of four descriptors: CONNECTION SPEC LENGTHS
STATUS. It ends when the other side hangs up.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from vila_data.core.errors import VilaDataError
from vila_data.loader.assemble import STAGES
from vila_data.loader.descriptors import is_out_of_descriptors, out_of_descriptors
from vila_data.loader.feed import Feed, FeedSpec
from vila_data.loader.orders import Order, OrderedSlots, Overtaken
from vila_data.loader.slots import HungUp
from vila_data.mix.lengths import Lengths

STATUS_BYTES: Final = 1024


class StatusClock:
    """A stage clock that the other process can read while this one is busy or stuck."""

    def __init__(self, memory: Any) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._memory = memory

    def spent(self, stage: str, seconds: float) -> None:
        """Add some."""
        self.seconds[stage] += seconds

    def doing(self, what: str) -> None:
        """Write down what comes now."""
        self._memory[:STATUS_BYTES] = what.encode()[: STATUS_BYTES - 1].ljust(STATUS_BYTES, b"\0")

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Count the time inside as waiting for the trainer."""
        self.doing("waiting for the trainer")
        began = time.perf_counter()
        yield
        self.seconds["blocked"] += time.perf_counter() - began


def share_lengths(lengths: list[Lengths]) -> int:
    """A descriptor of memory that holds the lengths of all sources; `shared_lengths` reads it without a copy."""
    fd = os.memfd_create("vila-data-lengths")
    head = pickle.dumps([(len(one.tokens), len(one.ends)) for one in lengths])
    head = head.ljust(-(-len(head) // 64) * 64, b"\0")
    parts = [np.asarray([len(head)], np.int64).tobytes().ljust(64, b"\0"), head]
    for one in lengths:
        parts += [_padded(one.tokens, "<i4"), _padded(one.images, "<i4"), _padded(one.ends, "<i8")]
    with os.fdopen(os.dup(fd), "wb") as stream:
        stream.writelines(parts)
    return fd


def shared_lengths(fd: int) -> list[Lengths]:
    """The lengths that `share_lengths` laid down, as views of the memory."""
    memory = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    (head,) = np.frombuffer(memory, np.int64, 1)
    shapes = pickle.loads(memory[64 : 64 + head])
    at, found = 64 + int(head), []
    for samples, shards in shapes:
        arrays: list[Any] = []
        for kind, count in ((np.int32, samples), (np.int32, samples), (np.int64, shards)):
            arrays.append(np.frombuffer(memory, kind, count, at))
            at += -(-count * np.dtype(kind).itemsize // 64) * 64
        found.append(Lengths(*arrays))
    return found


def _padded(values: Any, kind: str) -> bytes:
    data = np.ascontiguousarray(values, kind).tobytes()
    return data.ljust(-(-len(data) // 64) * 64, b"\0")


class Worker:
    """Makes what it is ordered to, one order after another, until the other side hangs up.

    Its files stay open from one epoch to the next. Where an order overtakes another they are opened anew: requests for
    what is no longer wanted go with them.
    """

    def __init__(
        self, connection: socket.socket, spec: FeedSpec, orders: Sequence[Order], lengths: list[Lengths], status: Any
    ) -> None:
        self._spec, self._lengths, self._status = spec, lengths, status
        self._clock = StatusClock(status)
        self._slots = OrderedSlots(connection, spec.limit_bytes, lambda: self._clock.blocked(), orders)
        self._feed: Feed | None = None

    def run(self) -> None:
        """Work; returns when the other side hangs up."""
        try:
            while True:
                self._fill(self._slots.next_order())
        except HungUp:
            return
        finally:
            self._end_feed()  # copies of token files that nobody else uses go with it

    def _fill(self, order: Order) -> None:
        """Send an order's batches, then that its epoch is over, or what went wrong."""
        if order.at_once:
            self._end_feed()
        try:
            if self._feed is None:
                self._clock = StatusClock(self._status)  # counts from nothing, as the feed's counters do
                self._feed = Feed(self._spec, self._lengths, self._clock)
            self._feed.go_to(order.epoch, order.start, order.first_step)
            for step, arrays, header in self._feed.batches(self._slots.allocate):
                del arrays
                self._slots.send(step, header)
            self._slots.say_end()
        except Overtaken:
            return
        except HungUp:
            raise
        except Exception as error:  # noqa: BLE001 - told to the trainer's process, which raises it
            self._end_feed()
            told: Exception = error
            if is_out_of_descriptors(error):
                told = out_of_descriptors(self._slots.used, "a loader worker", "the trainer")
            expected = isinstance(told, VilaDataError)
            kind, text = (type(told).__name__, str(told)) if expected else ("", traceback.format_exc())
            self._slots.say_failure(kind, text)

    def _end_feed(self) -> None:
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.close()


def main() -> None:
    """Run as the module's docstring says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer's process decides
    connection_fd, spec_fd, lengths_fd, status_fd = map(int, sys.argv[-4:])
    _raise_limit()
    with os.fdopen(spec_fd, "rb") as stream:
        stream.seek(0)
        spec, orders = pickle.load(stream)
    connection = socket.socket(fileno=connection_fd)
    Worker(connection, spec, orders, shared_lengths(lengths_fd), mmap.mmap(status_fd, STATUS_BYTES)).run()
    os._exit(0)  # nothing is kept; threads of a store's client must not hold the process


def _raise_limit() -> None:
    """Take as many open files as the system allows: a block of samples touches about a thousand shards."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
