"""Worker processes of one rank: starts them, reads their messages, replaces dead ones and logs long waits.

Without workers, an InlinePool takes the place of a WorkerPool.
"""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from io import FileIO
from typing import Annotated, Any, Final

from pydantic import Field

from vila_data.core import errors
from vila_data.core.config import StrictModel
from vila_data.core.errors import RunError, VilaDataError
from vila_data.loader.arrays import BatchArrays
from vila_data.loader.assemble import STATUS_BYTES, StageClock
from vila_data.loader.buffers import (
    MAX_MESSAGE,
    BorrowedBatch,
    BorrowedBuffers,
    Request,
    ReusedMemory,
    WorkerFailure,
    deleted_slots,
    ended_request,
    request_message,
)
from vila_data.loader.faults import is_too_many_files, too_many_files
from vila_data.loader.producer import BatchHeader, BatchProducer, StreamSpec
from vila_data.loader.worker import share_lengths
from vila_data.mix.lengths import Lengths
from vila_data.mix.rank_share import Position

log = logging.getLogger("vila_data.loader")

_EXIT_WAIT_S: Final = 1.0
_MAX_FAILURES_IN_A_ROW: Final = 3
"""Workers replaced without a batch in between; after that the run ends, since the cause is the data or the machine."""
_START: Final = "import sys; sys.path[:] = sys.argv[1].split('\\n'); from vila_data.loader.worker import main; main()"
"""Modules are imported from where the trainer finds them, and from nowhere else."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=True)]
"""May be infinite: never."""


class Timeout(StrictModel):
    """Seconds of waiting for one batch until a warning is logged (`warn_s`, and each time again) and until the run ends
    (`fail_s`)."""

    warn_s: Seconds = 30.0
    fail_s: Seconds = 1_800.0


class WorkerProcess:
    """One worker: its process, the connection to it and what it is doing."""

    def __init__(self, number: int, spec: StreamSpec, requests: Sequence[Request], lengths_fd: int) -> None:
        self.number = number
        self._owner = os.getpid()
        with ExitStack() as opened, ExitStack() as ours_if_failed:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours_if_failed.callback(ours.close)
            opened.callback(theirs.close)
            spec_fd, status_fd = os.memfd_create("vila-data-spec"), os.memfd_create("vila-data-status")
            opened.callback(os.close, spec_fd)
            opened.callback(os.close, status_fd)
            with os.fdopen(os.dup(spec_fd), "wb") as stream:
                pickle.dump((spec, tuple(requests)), stream)
            os.ftruncate(status_fd, STATUS_BYTES)
            self._status = mmap.mmap(status_fd, STATUS_BYTES)
            fds = (theirs.fileno(), spec_fd, lengths_fd, status_fd)
            command = [sys.executable, "-c", _START, "\n".join(sys.path), *map(str, fds)]
            one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                command, pass_fds=fds, env=os.environ | one_thread, stdin=subprocess.DEVNULL
            )
            ours_if_failed.pop_all()
        self._connection = ours
        self._ready = select.poll()
        self._ready.register(ours, select.POLLIN)
        self.buffers = BorrowedBuffers(ours)

    def __str__(self) -> str:
        return f"loader worker {self.number} (pid {self.process.pid})"

    @property
    def doing(self) -> str:
        """What it is, or was, doing."""
        return bytes(self._status).rstrip(b"\0").decode(errors="replace") or "starting"

    def receive(self, within_s: float) -> tuple[bytes, list[int]] | None:
        """Its next message and descriptors; an empty message if it is gone; None if none came in time."""
        if not self._ready.poll(within_s * 1000):
            return None
        try:
            message, fds, _, _ = socket.recv_fds(self._connection, MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return b"", []
        return message, list(fds)

    def send(self, message: bytes) -> bool:
        """Send it a message; False if its socket is full. If it is gone, `receive` says so."""
        try:
            with suppress(ConnectionError):
                self._connection.send(message, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def shutdown(self) -> None:
        """Shut the connection down, which wakes both sides."""
        if os.getpid() == self._owner:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def disconnect(self) -> None:
        """Have it end; a process that was forked in between may hold the connection, so closing is not enough."""
        self.shutdown()
        self._connection.close()
        self.buffers.close()

    def join(self, deadline: float) -> None:
        """Wait for its end, and kill it at the deadline (time.monotonic)."""
        if os.getpid() != self._owner:
            return
        try:
            self.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def how_it_ended(self) -> str:
        """A sentence for messages; waits for its end."""
        code = self.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"{self} {how} while {self.doing}"


class WorkerPool:
    """Batches from one position in an epoch on, made by `count` processes: worker k makes steps k, k + count, …

    It begins where the spec says. The processes stay until `close`: while an epoch is consumed, the beginning of the
    next one is already requested, and `go_to` finds it ready.
    step: of the next batch, counted from where the pool went last. replaced: numbers of workers that died and were
    replaced, for the caller to clear. repeats: after an epoch comes the same epoch again.
    """

    def __init__(
        self, spec: StreamSpec, lengths: Sequence[Lengths], count: int, timeout: Timeout, *, repeats: bool = False
    ) -> None:
        self._spec = replace(spec, stride=count, limit_bytes=spec.limit_bytes // count)
        self._count, self._timeout, self._epoch_step = count, timeout, 0 if repeats else 1
        self._owner = os.getpid()
        self._interrupted = False
        self._failures = 0
        self.replaced: list[int] = []
        self.step, self._ended = 0, False
        self._begin(Request(0, spec.epoch, spec.start, 0))
        self.workers: list[WorkerProcess] = []
        try:
            self._lengths = FileIO(share_lengths(lengths))
        except OSError as error:
            raise (too_many_files(0) if is_too_many_files(error) else error) from error
        self._finalizer = weakref.finalize(self, _end_workers, self.workers, self._lengths)
        self._finalizer.atexit = False  # the loader closes it, before a thread that iterates is stopped
        try:
            for number in range(count):
                self.workers.append(self._start(number, number))
        except BaseException:
            self.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether `get` may be called: not after `close` or `interrupt`, nor in a forked process."""
        return self._finalizer.alive and not self._interrupted and os.getpid() == self._owner

    def go_to(self, epoch: int, start: Position) -> bool:
        """Have `get` continue from `start` of an epoch; returns whether the workers, and so their counters, begin anew.

        They do not if they are there already: after the last batch, or, if that was the epoch's last one, at the
        beginning of the next epoch.
        """
        now, packs = self._now, self._now.start.packs + self.step * self._spec.share.step_packs
        if not self._ended and (epoch, start.packs) == (now.epoch, packs):
            return False
        if self._ended and (epoch, start.packs) == (self._next.epoch, 0):
            self._begin(self._next)
            self._send_requests(self._next)
            return False
        self._begin(Request(self._next.number + 1, epoch, start, 0, cancels=True))
        self._send_requests(self._now, self._next)
        return True

    def get(self) -> tuple[BatchArrays, BatchHeader, Any] | None:
        """(arrays, header, owner of their memory) of the next step; None after the epoch's end or `interrupt`.

        Raises:
            RunError: workers die again and again, or send nothing for `timeout.fail_s`.
            VilaDataError: what a worker has raised.
        """
        worker = self.workers[self.step % self._count]
        began = time.monotonic()
        while not self._interrupted:
            worker.buffers.flush()
            received = worker.receive(self._timeout.warn_s)
            if received is None:
                self._warn_or_fail(worker, time.monotonic() - began)
                continue
            message, fds = received
            kind = message[:1]
            if kind == b"B":
                batch = worker.buffers.borrow(message, fds)
                if batch.request == self._now.number:
                    return self._accept(worker, batch)
                del batch  # of a cancelled request: its memory is returned
            elif kind == b"E" and ended_request(message) == self._now.number:
                self._ended = True
                return None
            elif kind == b"W":
                worker.buffers.flush()
                if worker.buffers.exhausted:
                    worker.send(b"G")
            elif kind == b"D":
                worker.buffers.forget(deleted_slots(message))
            elif kind == b"X":
                self._raise(worker, WorkerFailure.of_message(message))
            elif not kind and not self._interrupted:
                worker = self._replace_dead(worker)
        return None

    def interrupt(self) -> None:
        """Have a waiting `get` return None, from a signal handler or another thread. Then call `close`."""
        self._interrupted = True
        for worker in self.workers:
            worker.shutdown()

    def close(self) -> None:
        """End the workers, as dropping the pool does; returned batches stay valid."""
        self._finalizer()

    def _accept(self, worker: WorkerProcess, batch: BorrowedBatch) -> tuple[BatchArrays, BatchHeader, Any]:
        if batch.step != self.step:
            raise RunError(f"{worker}: sent step {batch.step} instead of {self.step}; please report this")
        header: BatchHeader = batch.header
        self._after, self._failures = header.after, 0
        self._ended = header.last
        self.step += 1
        return header.size.arrays_in(batch.buffer), header, batch.buffer

    def _begin(self, request: Request) -> None:
        """Have `get` return the batches of a request from now on."""
        self._now, self._next = request, Request(request.number + 1, request.epoch + self._epoch_step, Position(), 0)
        self._after, self.step, self._ended = request.start, 0, False

    def _send_requests(self, *requests: Request) -> None:
        """Send them to the workers; one that cannot take them is replaced."""
        for number, worker in enumerate(self.workers):
            message = request_message([replace(request, first_step=number) for request in requests])
            if message is None or not worker.send(message):
                log.warning("%s does not accept requests; a new worker takes over", worker)
                self.replaced.append(number)
                worker.disconnect()
                worker.join(time.monotonic())
                self.workers[number] = self._start(number, number)

    def _start(self, number: int, first_step: int) -> WorkerProcess:
        """A worker that makes the rest of the current request from a step on, and then the next one."""
        start = Position(self._now.start.packs, self._after.plan)
        now = replace(self._now, start=start, first_step=first_step)
        requests = (now, replace(self._next, first_step=number))
        try:
            return WorkerProcess(number, self._spec, requests, self._lengths.fileno())
        except OSError as error:
            if not is_too_many_files(error):
                raise
            raise too_many_files(sum(worker.buffers.borrowed for worker in self.workers)) from error

    def _replace_dead(self, worker: WorkerProcess) -> WorkerProcess:
        """Replace a dead worker: the new one makes the same batches from the next step on."""
        self._failures += 1
        ended = worker.how_it_ended()
        worker.disconnect()
        if self._failures > _MAX_FAILURES_IN_A_ROW:
            why = "the machine may be out of memory" if "SIGKILL" in ended else "see standard error for its output"
            raise RunError(f"{ended}; giving up after {self._failures} failures in a row; {why}")
        log.warning("%s; a new worker takes over and rebuilds step %d", ended, self.step)
        self.replaced.append(worker.number)
        self.workers[worker.number] = self._start(worker.number, self.step)
        return self.workers[worker.number]

    def _raise(self, worker: WorkerProcess, failure: WorkerFailure) -> None:
        """Raise what a worker has raised, as the same class if it is meant for users."""
        if failure.request != self._now.number:
            return  # of a cancelled request; the worker waits for the next one
        if failure.kind:
            kind = getattr(errors, failure.kind, RunError)
            raise kind(failure.text)
        raise RuntimeError(f"loader worker {worker.number} failed:\n{failure.text}")

    def _warn_or_fail(self, worker: WorkerProcess, waited_s: float) -> None:
        what = f"waited {waited_s:.0f} s for step {self.step}: {worker} is {worker.doing}"
        if waited_s >= self._timeout.fail_s:
            raise RunError(f"{what}; this exceeds timeout.fail_s")
        log.warning("%s", what)


class InlinePool:
    """Makes batches in the caller's thread, and is used as a WorkerPool is."""

    def __init__(self, spec: StreamSpec, lengths: Sequence[Lengths]) -> None:
        self._producer = BatchProducer(spec, lengths, StageClock())
        self._batches = self._producer.batches(ReusedMemory().allocate)
        self.step = 0
        self.replaced: list[int] = []

    def get(self) -> tuple[BatchArrays, BatchHeader, Any] | None:
        """The next batch; None after the epoch's end."""
        try:
            made = next(self._batches, None)
        except (VilaDataError, OSError) as error:
            raise (too_many_files(0) if is_too_many_files(error) else error) from error
        if made is None:
            return None
        _, arrays, header = made
        return arrays, header, arrays

    def close(self) -> None:
        """Close its files."""
        self._producer.close()


def _end_workers(workers: list[WorkerProcess], lengths: FileIO) -> None:
    """Disconnect all, then wait for them."""
    ended = workers[:]
    workers.clear()
    for worker in ended:
        worker.disconnect()
    deadline = time.monotonic() + _EXIT_WAIT_S
    for worker in ended:
        worker.join(deadline)
    lengths.close()
