"""A rank's worker processes: started, listened to, replaced when they die, never waited for in silence."""

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
from vila_data.core.errors import RunError
from vila_data.loader.arrays import BatchArrays
from vila_data.loader.descriptors import is_out_of_descriptors, out_of_descriptors
from vila_data.loader.feed import BatchHeader, FeedSpec
from vila_data.loader.layout import BatchSize
from vila_data.loader.lease import Lent, SlotLender
from vila_data.loader.orders import DROPPED, END, Order, dropped_slots, orders_message
from vila_data.loader.slots import LONGEST_MESSAGE, WorkerFailure
from vila_data.loader.worker import STATUS_BYTES, share_lengths
from vila_data.mix.lengths import Lengths
from vila_data.mix.rank_share import Position

log = logging.getLogger("vila_data.loader")

_PARTING_S: Final = 1.0
_REPLACEMENTS: Final = 3
"""Workers replaced without a batch in between: then the run ends, since what kills them is in the data or the machine."""
_START: Final = "import sys; sys.path[:] = sys.argv[1].split('\\n'); from vila_data.loader.worker import main; main()"
"""Modules are looked for where the trainer finds them, and nowhere before."""


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=True)]
"""May be infinite: never."""


class Patience(StrictModel):
    """Seconds that a batch is waited for before it is said (`say_s`, and each time again) and before the run ends."""

    say_s: Seconds = 30.0
    end_s: Seconds = 1_800.0


class _Process:
    """One worker: its process, the connection to it and what it says of itself."""

    def __init__(self, number: int, spec: FeedSpec, orders: Sequence[Order], lengths_fd: int) -> None:
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
                pickle.dump((spec, tuple(orders)), stream)
            os.ftruncate(status_fd, STATUS_BYTES)
            self._status = mmap.mmap(status_fd, STATUS_BYTES)
            fds = (theirs.fileno(), spec_fd, lengths_fd, status_fd)
            command = [sys.executable, "-c", _START, "\n".join(sys.path), *map(str, fds)]
            self.process = subprocess.Popen(command, pass_fds=fds, env=_environment(), stdin=subprocess.DEVNULL)
            ours_if_failed.pop_all()
        self.connection = ours
        self._ready = select.poll()
        self._ready.register(ours, select.POLLIN)
        self.lender = SlotLender(ours)

    @property
    def doing(self) -> str:
        """What it is, or was, doing."""
        return bytes(self._status).rstrip(b"\0").decode(errors="replace") or "starting"

    def receive(self, within_s: float) -> tuple[bytes, list[int]] | None:
        """Its next message and descriptors; an empty message when it is gone; None where nothing came in time."""
        if not self._ready.poll(within_s * 1000):
            return None
        try:
            message, fds, _, _ = socket.recv_fds(self.connection, LONGEST_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return b"", []
        return message, list(fds)

    def send(self, message: bytes) -> bool:
        """Tell it something; False where it does not listen. If it is gone, that is the next that is heard of it."""
        try:
            with suppress(ConnectionError):
                self.connection.send(message, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def shut(self) -> None:
        """End the connection, so that whoever waits on it wakes up."""
        if os.getpid() == self._owner:
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def obituary(self) -> str:
        """How it ended."""
        code = self.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"loader worker {self.number} (pid {self.process.pid}) {how} while {self.doing}"

    def hang_up(self) -> None:
        """Tell it to end; a process that was forked in between may hold the connection, so closing is not enough."""
        self.shut()
        self.connection.close()
        self.lender.close()

    def end(self, deadline: float) -> None:
        """See it end, by force after the deadline (time.monotonic)."""
        if os.getpid() != self._owner:
            return
        try:
            self.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class WorkerPool:
    """Batches of one place in an epoch after another, made by `count` processes; worker k makes steps k, k + count, …

    It begins where the spec says. The processes stay until `close`: while an epoch is consumed, the beginning of the
    next one is ordered already, and `go_to` finds it made. step: of the batch that comes next, counted from where the
    pool went last. replaced: numbers of workers that died and whose place was taken, until somebody takes them out.
    repeats: the epoch after an epoch is that epoch again.
    """

    def __init__(
        self, spec: FeedSpec, lengths: Sequence[Lengths], count: int, patience: Patience, *, repeats: bool = False
    ) -> None:
        self._spec = replace(spec, stride=count, limit_bytes=spec.limit_bytes // count)
        self._count, self._patience, self._epochs_ahead = count, patience, 0 if repeats else 1
        self._owner = os.getpid()
        self._interrupted = False
        self._deaths = 0
        self.replaced: list[int] = []
        self.step, self._over = 0, False
        self._begin(Order(0, spec.epoch, spec.start, 0))
        self._workers: list[_Process] = []
        try:
            self._lengths = FileIO(share_lengths(list(lengths)))
        except OSError as error:
            raise (out_of_descriptors(0) if is_out_of_descriptors(error) else error) from error
        self._end = weakref.finalize(self, _end, self._workers, self._lengths)
        self._end.atexit = False  # the loader ends it, before a thread that iterates is stopped
        try:
            for number in range(count):
                self._workers.append(self._start(number, number))
        except BaseException:
            self.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether it can be asked: not in a process that was forked from its own, nor when it was interrupted."""
        return self._end.alive and not self._interrupted and os.getpid() == self._owner

    def go_to(self, epoch: int, start: Position) -> bool:
        """Have `get` give what follows `start` of an epoch; whether the workers begin anew, and so their counters.

        They do not where they are there already: behind the batch that was got last, or, where that was the epoch's
        last one, at the beginning of the next.
        """
        now, place = self._now, self._now.start.packs + self.step * self._spec.share.step_packs
        if not self._over and (epoch, start.packs) == (now.epoch, place):
            return False
        if self._over and (epoch, start.packs) == (self._next.epoch, 0):
            self._begin(self._next)
            self._order(self._next)
            return False
        self._begin(Order(self._next.stretch + 1, epoch, start, 0, at_once=True))
        self._order(self._now, self._next)
        return True

    def get(self) -> tuple[BatchArrays, BatchHeader, Any] | None:
        """(arrays, header, owner of their memory) of the next step; None when the epoch is over, or `interrupt` came.

        Raises:
            RunError: a worker dies again and again, or gives nothing for `patience.end_s`.
            VilaDataError: what a worker has raised.
        """
        worker = self._workers[self.step % self._count]
        began = time.monotonic()
        while not self._interrupted:
            worker.lender.flush()
            received = worker.receive(self._patience.say_s)
            if received is None:
                self._complain(worker, time.monotonic() - began)
                continue
            message, fds = received
            kind = message[:1]
            if kind == b"B":
                lent = worker.lender.take(message, fds)
                if lent.stretch == self._now.stretch:
                    return self._taken(worker, lent)
                del lent  # of a place that was left: its memory goes back
            elif kind == b"E" and END.unpack(message)[1] == self._now.stretch:
                self._over = True
                return None
            elif kind == b"W":
                worker.lender.flush()
                if worker.lender.exhausted:
                    worker.send(b"G")
            elif kind == DROPPED:
                worker.lender.forget(dropped_slots(message))
            elif kind == b"X":
                self._failed(worker, WorkerFailure.of_message(message))
            elif not kind and not self._interrupted:
                worker = self._replace(worker)
        return None

    def interrupt(self) -> None:
        """Have a `get` that waits give None: from a signal's handler, or another thread. Then `close` it."""
        self._interrupted = True
        for worker in self._workers:
            worker.shut()

    def close(self) -> None:
        """End the workers; batches that were given out stay valid. So does dropping the pool."""
        self._end()

    def _taken(self, worker: _Process, lent: Lent) -> tuple[BatchArrays, BatchHeader, Any]:
        if lent.step != self.step:
            raise RunError(
                f"loader worker {worker.number}: sent step {lent.step} where {self.step} was due; please report this"
            )
        header: BatchHeader = lent.header
        self._after, self._deaths = header.after, 0
        self._over = header.last
        self.step += 1
        return BatchSize(*header.size).arrays_in(lent.buffer), header, lent.buffer

    def _begin(self, order: Order) -> None:
        """Take an order for what `get` gives from now on."""
        self._now, self._next = order, Order(order.stretch + 1, order.epoch + self._epochs_ahead, Position(), 0)
        self._after, self.step, self._over = order.start, 0, False

    def _order(self, *orders: Order) -> None:
        """Tell the workers; one that cannot be told is ended, and another begins there."""
        for number, worker in enumerate(self._workers):
            message = orders_message([replace(order, first_step=number) for order in orders])
            if message is None or not worker.send(message):
                who = f"loader worker {number} (pid {worker.process.pid})"
                log.warning("%s cannot be told where to go on: its place is taken", who)
                self.replaced.append(number)
                worker.hang_up()
                worker.end(time.monotonic())
                self._workers[number] = self._start(number, number)

    def _start(self, number: int, first_step: int) -> _Process:
        """A worker that makes what is left from a step on, and then the beginning of the next epoch."""
        start = Position(self._now.start.packs, self._after.plan)
        now = replace(self._now, start=start, first_step=first_step)
        orders = (now, replace(self._next, first_step=number))
        try:
            return _Process(number, self._spec, orders, self._lengths.fileno())
        except OSError as error:
            if not is_out_of_descriptors(error):
                raise
            raise out_of_descriptors(sum(worker.lender.lent for worker in self._workers)) from error

    def _replace(self, worker: _Process) -> _Process:
        """Take a dead worker's place: what it had not delivered is made again, the same."""
        self._deaths += 1
        story = worker.obituary()
        worker.hang_up()
        if self._deaths > _REPLACEMENTS:
            why = "is there memory enough?" if "SIGKILL" in story else "standard error has what it said"
            raise RunError(f"{story}, the {self._deaths}th in a row: no more are started; {why}")
        log.warning("%s; its place is taken and step %d made again", story, self.step)
        self.replaced.append(worker.number)
        self._workers[worker.number] = self._start(worker.number, self.step)
        return self._workers[worker.number]

    def _failed(self, worker: _Process, failure: WorkerFailure) -> None:
        """Raise what a worker has raised, of the same class where it is meant for users."""
        if failure.stretch != self._now.stretch:
            return  # of a place that was left, and it waits for orders
        if failure.kind:
            kind = getattr(errors, failure.kind, RunError)
            raise kind(failure.text)
        raise RuntimeError(f"loader worker {worker.number} failed:\n{failure.text}")

    def _complain(self, worker: _Process, waited_s: float) -> None:
        who = f"loader worker {worker.number} (pid {worker.process.pid})"
        what = f"step {self.step} has been waited for for {waited_s:.0f} s: {who} is {worker.doing}"
        if waited_s >= self._patience.end_s:
            raise RunError(f"{what}; that is longer than patience.end_s allows")
        log.warning("%s", what)


def _end(workers: list[_Process], lengths: FileIO) -> None:
    """Hang up, see the processes end, and close what they read."""
    ended = workers[:]
    workers.clear()
    for worker in ended:
        worker.hang_up()
    deadline = time.monotonic() + _PARTING_S
    for worker in ended:
        worker.end(deadline)
    lengths.close()


def _environment() -> dict[str, str]:
    """The trainer's environment, with one thread a worker."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
