"""A worker process: makes its share of a rank's batches in shared memory. It imports no torch.

`loader.pool` starts it with the trainer's import path and the numbers of four file descriptors: CONNECTION SPEC LENGTHS
STATUS. It ends when the other side disconnects.
"""

from __future__ import annotations

import mmap
import os
import pickle
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from vila_data.core.errors import VilaDataError
from vila_data.loader.assemble import STATUS_BYTES, StageClock
from vila_data.loader.buffers import BufferWriter, Cancelled, PeerDisconnected, Request
from vila_data.loader.faults import is_too_many_files, too_many_files
from vila_data.loader.producer import BatchProducer, StreamSpec
from vila_data.mix.lengths import Lengths

_ALIGNMENT: Final = 64


class Worker:
    """Serves requests, one after another, until the other side disconnects.

    Its files stay open from one epoch to the next. When a request cancels others they are opened anew, which also cancels
    reads that are no longer needed.
    """

    def __init__(
        self,
        connection: socket.socket,
        spec: StreamSpec,
        requests: Iterable[Request],
        lengths: list[Lengths],
        status: Any,
    ) -> None:
        self._spec, self._lengths, self._status = spec, lengths, status
        self._clock = StageClock(status)
        self._buffers = BufferWriter(connection, spec.limit_bytes, lambda: self._clock.blocked(), requests)
        self._producer: BatchProducer | None = None

    def run(self) -> None:
        """Work; returns when the other side disconnects."""
        try:
            while True:
                self._serve(self._buffers.next_request())
        except PeerDisconnected:
            return
        finally:
            self._close_producer()  # deletes the copies of token files that no other process uses

    def _serve(self, request: Request) -> None:
        """Send a request's batches, then that its epoch is over, or why it failed."""
        if request.cancels:
            self._close_producer()
        try:
            if self._producer is None:
                self._clock = StageClock(self._status)  # counts from 0, as the producer's reader does
                self._producer = BatchProducer(self._spec, self._lengths, self._clock)
            self._producer.go_to(request.epoch, request.start, request.first_step)
            for step, arrays, header in self._producer.batches(self._buffers.allocate):
                del arrays
                self._buffers.send(step, header)
            self._buffers.send_end()
        except Cancelled:
            return
        except PeerDisconnected:
            raise
        except Exception as error:  # noqa: BLE001 - sent to the trainer's process, which raises it
            self._close_producer()
            failure: Exception = error
            if is_too_many_files(error):
                failure = too_many_files(self._buffers.used, "a loader worker", "the trainer")
            expected = isinstance(failure, VilaDataError)
            kind, text = (type(failure).__name__, str(failure)) if expected else ("", traceback.format_exc())
            self._buffers.send_failure(kind, text)

    def _close_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close()


def share_lengths(lengths: Iterable[Lengths]) -> int:
    """A descriptor of memory with the lengths of all sources; `shared_lengths` reads it without a copy."""
    lengths = list(lengths)
    fd = os.memfd_create("vila-data-lengths")
    head = _padded(pickle.dumps([(len(one.tokens), len(one.ends)) for one in lengths]))
    parts = [_padded(np.asarray([len(head)], np.int64).tobytes()), head]
    for one in lengths:
        for values, kind in ((one.tokens, "<i4"), (one.images, "<i4"), (one.ends, "<i8")):
            parts.append(_padded(np.ascontiguousarray(values, kind).tobytes()))
    with os.fdopen(os.dup(fd), "wb") as stream:
        stream.writelines(parts)
    return fd


def shared_lengths(fd: int) -> list[Lengths]:
    """The lengths that `share_lengths` wrote, as views of the memory."""
    memory = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    (head,) = np.frombuffer(memory, np.int64, 1)
    shapes = pickle.loads(memory[_ALIGNMENT : _ALIGNMENT + head])
    offset, found = _ALIGNMENT + int(head), []
    for samples, shards in shapes:
        arrays: list[Any] = []
        for kind, count in ((np.int32, samples), (np.int32, samples), (np.int64, shards)):
            arrays.append(np.frombuffer(memory, kind, count, offset))
            offset += -(-count * np.dtype(kind).itemsize // _ALIGNMENT) * _ALIGNMENT
        found.append(Lengths(*arrays))
    return found


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // _ALIGNMENT) * _ALIGNMENT, b"\0")


def main() -> None:
    """Run as the module's docstring says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer's process decides
    connection_fd, spec_fd, lengths_fd, status_fd = map(int, sys.argv[-4:])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a block of samples touches about a thousand shards
    with os.fdopen(spec_fd, "rb") as stream:
        stream.seek(0)
        spec, requests = pickle.load(stream)
    connection = socket.socket(fileno=connection_fd)
    Worker(connection, spec, requests, shared_lengths(lengths_fd), mmap.mmap(status_fd, STATUS_BYTES)).run()
    os._exit(0)  # there is nothing to flush, and threads of a store's client must not delay the exit
