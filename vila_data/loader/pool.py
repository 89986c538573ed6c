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
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from vila_data.batch.arrays import BatchArrays
from vila_data.batch.layout import BatchSize
from vila_data.blend import Lengths
from vila_data.core import errors
from vila_data.core.errors import RunError
from vila_data.loader.feed import BatchHeader, FeedSpec
from vila_data.loader.lease import SlotLender
from vila_data.loader.slots import LONGEST_MESSAGE, WorkerFailure
from vila_data.loader.worker import STATUS_BYTES, share_lengths
from vila_data.order.share import Position

log = logging.getLogger("vila_data.loader")

_PARTING_S: Final = 1.0
_REPLACEMENTS: Final = 3
"""Workers replaced without a batch in between: then the run ends, since what kills them is in the data or the machine."""
_START: Final = "import sys; sys.path[:] = sys.argv[1].split('\\n'); from vila_data.loader.worker import main; main()"
"""Modules are looked for where the trainer finds them, and nowhere before."""


@dataclass(frozen=True)
class Patience:
    """Seconds that a batch is waited for before it is said (`say_s`, and each time again) and before the run ends."""

    say_s: float = 30.0
    end_s: float = 1_800.0


class _Process:
    """One worker: its process, the connection to it and what it says of itself."""

    def __init__(self, number: int, spec: FeedSpec, lengths_fd: int) -> None:
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
                pickle.dump(spec, stream)
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

    def grant(self) -> None:
        """Let it make one more buffer."""
        with suppress(ConnectionError):  # its end is the next that is heard of it
            self.connection.send(b"G")

    def obituary(self) -> str:
        """How it ended."""
        code = self.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"loader worker {self.number} (pid {self.process.pid}) {how} while {self.doing}"

    def hang_up(self) -> None:
        """Tell it to end; a process that was forked in between may hold the connection, so closing is not enough."""
        if os.getpid() == self._owner:
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
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
    """Batches of a spec's steps, made by `count` processes; worker k makes steps k, k + count, …

    replaced: numbers of workers that died and whose place was taken, until somebody takes them out.
    """

    def __init__(self, spec: FeedSpec, lengths: Sequence[Lengths], count: int, patience: Patience) -> None:
        self._spec, self._count, self._patience = spec, count, patience
        self._after = spec.start
        self._deaths = 0
        self.replaced: list[int] = []
        self._workers: list[_Process] = []
        self._lengths_fd = share_lengths(list(lengths))
        try:
            for number in range(count):
                self._workers.append(self._start(number, number))
        except BaseException:
            self.close()
            raise

    def get(self, step: int) -> tuple[BatchArrays, BatchHeader, Any] | None:
        """(arrays, header, owner of their memory) of the next step; None when the epoch is over.

        Raises:
            RunError: a worker dies again and again, or gives nothing for `patience.end_s`.
            VilaDataError: what a worker has raised.
        """
        worker = self._workers[step % self._count]
        began = time.monotonic()
        while True:
            worker.lender.flush()
            received = worker.receive(self._patience.say_s)
            if received is None:
                self._complain(worker, step, time.monotonic() - began)
                continue
            message, fds = received
            kind = message[:1]
            if kind == b"B":
                return self._taken(worker, message, fds, step)
            if kind == b"E":
                return None
            if kind == b"W":
                worker.lender.flush()
                if worker.lender.exhausted:
                    worker.grant()
            elif kind == b"X":
                self._failed(worker, WorkerFailure.of_message(message))
            elif not kind:
                worker = self._replace(worker, step)

    def close(self) -> None:
        """End the workers; batches that were given out stay valid."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.hang_up()
        deadline = time.monotonic() + _PARTING_S
        for worker in workers:
            worker.end(deadline)
        if self._lengths_fd >= 0:
            os.close(self._lengths_fd)
            self._lengths_fd = -1

    def _taken(
        self, worker: _Process, message: bytes, fds: list[int], step: int
    ) -> tuple[BatchArrays, BatchHeader, Any]:
        found, buffer, header = worker.lender.take(message, fds)
        if found != step:
            raise RunError(f"loader worker {worker.number}: sent step {found} where {step} was due; please report this")
        self._after, self._deaths = header.after, 0
        return BatchSize(*header.size).arrays_in(buffer), header, buffer

    def _start(self, number: int, first_step: int) -> _Process:
        start = Position(self._spec.start.packs, self._after.plan)
        limit = self._spec.limit_bytes // self._count
        spec = replace(self._spec, start=start, first_step=first_step, stride=self._count, limit_bytes=limit)
        return _Process(number, spec, self._lengths_fd)

    def _replace(self, worker: _Process, step: int) -> _Process:
        """Take a dead worker's place: what it had not delivered is made again, the same."""
        self._deaths += 1
        story = worker.obituary()
        worker.hang_up()
        if self._deaths > _REPLACEMENTS:
            why = "is there memory enough?" if "SIGKILL" in story else "standard error has what it said"
            raise RunError(f"{story}, the {self._deaths}th in a row: no more are started; {why}")
        log.warning("%s; its place is taken and step %d made again", story, step)
        self.replaced.append(worker.number)
        self._workers[worker.number] = self._start(worker.number, step)
        return self._workers[worker.number]

    def _failed(self, worker: _Process, failure: WorkerFailure) -> None:
        """Raise what a worker has raised, of the same class where it is meant for users."""
        if failure.kind:
            kind = getattr(errors, failure.kind, RunError)
            raise kind(failure.text)
        raise RuntimeError(f"loader worker {worker.number} failed:\n{failure.text}")

    def _complain(self, worker: _Process, step: int, waited_s: float) -> None:
        who = f"loader worker {worker.number} (pid {worker.process.pid})"
        what = f"step {step} has been waited for for {waited_s:.0f} s: {who} is {worker.doing}"
        if waited_s >= self._patience.end_s:
            raise RunError(f"{what}; that is longer than patience.end_s allows")
        log.warning("%s", what)


def _environment() -> dict[str, str]:
    """The trainer's environment, with one thread a worker."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
