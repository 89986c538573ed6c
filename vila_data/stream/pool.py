"""A rank's worker processes: started, listened to, replaced when they die, never waited for in silence."""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from vila_data.blend import Lengths
from vila_data.core.errors import RunError
from vila_data.stream.arrays import BatchArrays
from vila_data.stream.feed import BatchHeader, FeedSpec
from vila_data.stream.layout import BatchSize
from vila_data.stream.lease import SlotLender
from vila_data.stream.share import Position
from vila_data.stream.slots import LONGEST_MESSAGE
from vila_data.stream.worker import STATUS_BYTES, WorkerFailure, share_lengths

log = logging.getLogger("vila_data.stream")

_PARTING_S: Final = 1.0
_REPLACEMENTS: Final = 3
"""Workers replaced without a batch in between: then the run ends, since what kills them is in the data or the machine."""


@dataclass(frozen=True)
class Patience:
    """Seconds that a batch is waited for before it is said (`say_s`, and each time again) and before the run ends."""

    say_s: float = 30.0
    end_s: float = 1_800.0


class _Process:
    """One worker: its process, the connection to it and what it says of itself."""

    def __init__(self, number: int, spec: FeedSpec, lengths_fd: int) -> None:
        self.number = number
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        spec_fd, status_fd = os.memfd_create("vila-data-spec"), os.memfd_create("vila-data-status")
        os.write(spec_fd, pickle.dumps(spec))
        os.ftruncate(status_fd, STATUS_BYTES)
        self._status = mmap.mmap(status_fd, STATUS_BYTES)
        fds = (theirs.fileno(), spec_fd, lengths_fd, status_fd)
        command = [sys.executable, "-m", "vila_data.stream.worker", *map(str, fds)]
        self.process = subprocess.Popen(command, pass_fds=fds, env=_environment(), stdin=subprocess.DEVNULL)
        theirs.close()
        os.close(spec_fd)
        os.close(status_fd)
        self.connection = ours
        self.lender = SlotLender(ours)

    @property
    def doing(self) -> str:
        """What it is, or was, doing."""
        return bytes(self._status).rstrip(b"\0").decode(errors="replace") or "starting"

    def grant(self) -> None:
        """Let it make one more buffer."""
        self.connection.send(b"G")

    def obituary(self) -> str:
        """How it ended."""
        code = self.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"loader worker {self.number} (pid {self.process.pid}) {how} while {self.doing}"

    def stop(self) -> None:
        """End it."""
        self.connection.close()
        self.lender.close()
        try:
            self.process.wait(timeout=_PARTING_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class WorkerPool:
    """Batches of a spec's steps, made by `count` processes; worker k makes steps k, k + count, …

    replaced: workers that died and whose place was taken.
    """

    def __init__(self, spec: FeedSpec, lengths: Sequence[Lengths], count: int, patience: Patience) -> None:
        self._spec, self._count, self._patience = spec, count, patience
        self._lengths_fd = share_lengths(list(lengths))
        self._after = spec.start
        self._deaths = 0
        self.replaced = 0
        self._workers = [self._start(number, number) for number in range(count)]

    def get(self, step: int) -> tuple[BatchArrays, BatchHeader, Any] | None:
        """(arrays, header, owner of their memory) of the next step; None when the epoch is over.

        Raises:
            RunError: a worker failed, dies again and again, or gives nothing for `patience.end_s`.
        """
        worker = self._workers[step % self._count]
        began = time.monotonic()
        while True:
            worker.connection.settimeout(self._patience.say_s)
            try:
                message, fds, _, _ = socket.recv_fds(worker.connection, LONGEST_MESSAGE + 1024, 1)
            except TimeoutError:
                self._complain(worker, step, time.monotonic() - began)
                continue
            except ConnectionError:
                message, fds = b"", []
            kind = message[:1]
            if kind == b"B":
                return self._taken(worker, message, list(fds), step)
            if kind == b"E":
                return None
            if kind == b"W" and worker.lender.exhausted:
                worker.grant()
            elif kind == b"X":
                self._failed(worker, pickle.loads(message[1:]))
            elif not kind:
                worker = self._replace(worker, step)

    def close(self) -> None:
        """End the workers; batches that were given out stay valid."""
        for worker in self._workers:
            worker.stop()
        self._workers = []
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
        worker.stop()
        if self._deaths > _REPLACEMENTS:
            raise RunError(f"{story}, the {self._deaths}th in a row: no more are started; is there memory enough?")
        log.warning("%s; its place is taken and step %d made again", story, step)
        self.replaced += 1
        self._workers[worker.number] = self._start(worker.number, step)
        return self._workers[worker.number]

    def _failed(self, worker: _Process, failure: WorkerFailure) -> None:
        if failure.expected:
            raise RunError(failure.text)
        raise RuntimeError(f"loader worker {worker.number} failed:\n{failure.text}")

    def _complain(self, worker: _Process, step: int, waited_s: float) -> None:
        who = f"loader worker {worker.number} (pid {worker.process.pid})"
        what = f"step {step} has been waited for for {waited_s:.0f} s: {who} is {worker.doing}"
        if waited_s >= self._patience.end_s:
            raise RunError(f"{what}; that is longer than patience.end_s allows")
        log.warning("%s", what)


def _environment() -> dict[str, str]:
    """The trainer's environment, in which the package is found, and one thread a worker."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
