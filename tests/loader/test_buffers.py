"""The protocol between a worker and the trainer's process, at the moments where it could lose something."""

from __future__ import annotations

import os
import pickle
import re
import resource
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests.loader.made_stream import opened
from tests.loader.test_loader import same
from tests.loader.test_loader_faults import workers_of
from vila_data.core.errors import DataError
from vila_data.loader.arrays import BatchSize
from vila_data.loader.buffers import BorrowedBuffers, BufferWriter, WorkerFailure

SIZE = BatchSize(1, 8, 1, 1, 1, 16)
MB = 1 << 20


def sides(limit_bytes: int = 64 * MB) -> tuple[BufferWriter, BorrowedBuffers, socket.socket]:
    """Both ends in this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return BufferWriter(theirs, limit_bytes, nullcontext), BorrowedBuffers(ours), ours


def passed(
    writer: BufferWriter, lender: BorrowedBuffers, ours: socket.socket, size: BatchSize, header: object
) -> object:
    """One batch through: what the other side finds. The slot stays lent as long as what is returned lives."""
    arrays = writer.allocate(size)
    arrays.pixels_NHWC[:] = 7
    del arrays
    writer.send(3, header)
    message, fds, _, _ = socket.recv_fds(ours, 1024, 1)
    lent = lender.borrow(message, list(fds))
    assert (lent.request, lent.step, lent.header) == (0, 3, header)
    assert (size.arrays_in(lent.buffer).pixels_NHWC == 7).all()
    return lent.buffer


def test_headers_and_batches_may_outgrow_their_slot() -> None:
    writer, lender, ours = sides()
    random = np.random.default_rng(3)
    for _ in range(40):
        size = SIZE._replace(images=int(random.integers(0, 4_000)), rows=int(random.integers(1, 50)))
        header = random.bytes(int(random.integers(0, 3 * MB)))
        passed(writer, lender, ours, size, header)
    assert writer.slots <= 4


def test_free_slots_shrink_where_a_large_batch_would_pass_the_limit() -> None:
    writer, lender, ours = sides(limit_bytes=8 * MB)
    held = [passed(writer, lender, ours, SIZE._replace(images=2_000), None) for _ in range(3)]
    del held
    for _ in range(6):
        passed(writer, lender, ours, SIZE._replace(images=9_000), None)
        assert writer.nbytes <= 8 * MB + 1


def test_slots_that_come_back_while_nobody_listens_are_not_lost() -> None:
    writer, lender, ours = sides()
    held = []
    for _ in range(700):
        ours.send(b"G")
        held.append(passed(writer, lender, ours, SIZE, None))
    assert lender.exhausted and writer.used == 700
    held.clear()
    assert lender.borrowed, "more than the socket takes at once"
    for _ in range(700):
        lender.flush()
        held.append(passed(writer, lender, ours, SIZE, None))
    assert writer.slots == writer.used == 700


def test_a_forked_process_gives_nothing_back(made_folder: Path) -> None:
    with opened(made_folder, num_workers=1, prefetch_mb=0) as loader:
        batches = iter(loader)
        batch = next(batches)
        before = batch.ids.clone()
        child = os.fork()
        if not child:
            del batch
            os._exit(0)
        os.waitpid(child, 0)
        for _, _ in zip(range(6), batches, strict=False):
            pass
        assert torch.equal(batch.ids, before)


def test_a_worker_that_dies_while_it_waits_is_replaced(made_folder: Path) -> None:
    expected = list(opened(made_folder))
    with opened(made_folder, num_workers=1, prefetch_mb=0) as loader:
        batches = iter(loader)
        found = [next(batches), next(batches)]
        (worker,) = workers_of()
        while "waiting for the trainer" not in worker_says(loader):
            pass
        os.kill(worker.pid, signal.SIGKILL)
        found += list(batches)
    assert len(found) == len(expected) and all(same(*pair) for pair in zip(found, expected, strict=True))
    assert loader.metrics().reads == sum(len(batch.pixels) for batch in expected)


def worker_says(loader: object) -> str:
    """What a loader's only worker is doing."""
    doing: str = loader._pool.workers[0].doing  # type: ignore[attr-defined]
    return doing


def test_what_a_worker_raises_arrives_as_it_was_raised(made_folder: Path, tmp_path: Path) -> None:
    loader = opened(made_folder, num_workers=1)
    loader._spec = pickle.loads(pickle.dumps(loader._spec))
    object.__setattr__(loader._spec.pack, "max_images_per_pack", 1)
    with pytest.raises(DataError, match=r"has a sample with 5 images, but pack\.max_images_per_pack is 1"):
        next(iter(loader))
    object.__setattr__(loader._spec.pack, "max_images_per_pack", 12)
    object.__setattr__(loader._spec, "layout", None)
    with pytest.raises(RuntimeError, match="loader worker 0 failed:\nTraceback"):
        next(iter(loader))


@pytest.mark.parametrize("text", ["short", "long " * 50_000, "ünïcödé 漢字 " * 9_000])
def test_a_failure_of_any_length_fits_a_message(text: str) -> None:
    message = WorkerFailure("DataError", text).message()
    assert len(message) <= 60_000 and message[:1] == b"X"
    found = WorkerFailure.of_message(message)
    assert found.kind == "DataError" and text.endswith(found.text)


HARD_LIMITS = """
import os, resource, sys
import vila_data as vd

for limit, workers in ((8, 1), (14, 1), (30, 1), (16, 2)):
    loader = vd.stream(sys.argv[1], sys.argv[2], rank=0, world_size=1, num_workers=workers, image={"size_px": 32})
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        try:
            list(loader)
        except vd.RunError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_hard_limit_of_descriptors_is_one_sentence(made_folder: Path) -> None:
    """At the start, in a worker's first batches, and when the trainer holds some."""
    told = [made_folder / "recipe.yaml", made_folder / "run"]
    done = subprocess.run([sys.executable, "-c", HARD_LIMITS, *map(str, told)], capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert len(said) == 4 and done.stderr == "", done.stdout + done.stderr[-2000:]
    for line in said:
        assert re.match(
            r"stream: .* has reached its open-file limit while (the trainer holds|holding) \d+ batch(es)?; .*raise `ulimit -n`",
            line,
        )
    assert "the process has" in said[0] and "a loader worker has" in said[2]


def test_too_few_descriptors_are_one_message(made_folder: Path) -> None:
    probe = (
        "import resource, sys, vila_data as vd\n"
        "loader = vd.stream(sys.argv[1], sys.argv[2], rank=0, world_size=1, num_workers=1, image={'size_px': 32})\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (30, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "try:\n    list(loader)\nexcept vd.RunError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", probe, str(made_folder / "recipe.yaml"), str(made_folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "the process has reached its open-file limit while holding" in done.stdout, done.stderr[-2000:]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 30


def test_modules_in_the_working_folder_are_not_taken_for_others(made_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "selectors.py").write_text("raise SystemExit('shadow')")
    script = tmp_path / "elsewhere" / "train.py"
    script.parent.mkdir()
    script.write_text(
        "import sys, vila_data as vd\n"
        "loader = vd.stream(sys.argv[1], sys.argv[2], rank=0, world_size=1, num_workers=1, image={'size_px': 32})\n"
        "print(sum(1 for _ in loader))\n"
    )
    command = [sys.executable, str(script), str(made_folder / "recipe.yaml"), str(made_folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert int(done.stdout) > 20, done.stderr[-2000:]


def test_a_loader_that_is_dropped_leaves_nothing(made_folder: Path) -> None:
    process = psutil.Process()
    assert not workers_of()
    descriptors = process.num_fds()
    for close in (True, False):
        loader = opened(made_folder, num_workers=2)
        batches = iter(loader)
        next(batches)
        assert len(workers_of()) == 2
        if close:
            loader.close()
        del loader, batches
        assert not workers_of() and process.num_fds() == descriptors


def test_closing_does_not_wait_for_forked_processes(made_folder: Path) -> None:
    loader = opened(made_folder, num_workers=2)
    next(iter(batches := iter(loader)))
    workers = workers_of()
    keeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    del batches
    loader.close()
    assert all(not worker.is_running() for worker in workers)
    assert keeper.stdin is not None
    keeper.stdin.close()
    keeper.wait()
