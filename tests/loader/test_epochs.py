"""Workers that stay over epochs: the same batches and states as without workers, wherever the consumer goes."""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.loader.made_stream import opened
from tests.loader.test_loader import same
from tests.loader.test_loader_faults import damaged, overwrite, workers_of
from vila_data.core.errors import UsageError
from vila_data.loader.loader import StreamLoader
from vila_data.loader.pool import Timeout, WorkerPool
from vila_data.mix.rank_share import Position

__all__ = ["damaged"]
SHARE = {"world_size": 2, "rank": 1, "batch_size": 3}


def pids() -> set[int]:
    return {worker.pid for worker in workers_of()}


def taken(loader: StreamLoader, count: int | None) -> list[Any]:
    """Some batches of one iteration, or all."""
    found = []
    for batch in loader:
        found.append(batch)
        if len(found) == count:
            break
    return found


ACTIONS = st.one_of(
    st.tuples(st.just("take"), st.one_of(st.none(), st.integers(1, 6))),
    st.tuples(st.just("epoch"), st.integers(0, 3)),
    st.tuples(st.just("save"), st.just(0)),
    st.tuples(st.just("load"), st.just(0)),
)


def test_wherever_it_goes_the_workers_are_the_same_and_so_are_the_batches(made_folder: Path) -> None:
    inline, started = opened(made_folder, **SHARE), set()
    with opened(made_folder, num_workers=2, **SHARE) as staying:

        @given(actions=st.lists(ACTIONS, min_size=2, max_size=8))
        @settings(max_examples=8, deadline=None)
        def check(actions: list[tuple[str, Any]]) -> None:
            saved = inline.state_dict()
            for action, number in actions:
                if action == "take":
                    ours, theirs = taken(staying, number), taken(inline, number)
                    assert len(ours) == len(theirs) and all(same(*both) for both in zip(ours, theirs, strict=True))
                    assert [batch.step for batch in ours] == [batch.step for batch in theirs]
                    started.update(pids())
                for loader in (staying, inline):
                    if action == "epoch":
                        loader.set_epoch(number)
                    elif action == "load":
                        loader.load_state_dict(saved)
                if action == "save":
                    saved = inline.state_dict()
                assert staying.state_dict() == inline.state_dict()

        check()
        assert staying.metrics().reads == inline.metrics().reads
    assert len(started) == 2


def test_epochs_follow_one_another_where_a_device_is_fed_ahead(made_folder: Path) -> None:
    inline = opened(made_folder)
    with opened(made_folder, num_workers=1, device="meta") as loader:
        started: set[int] = set()
        for _ in range(3):
            expected = taken(inline, None)
            found = taken(loader, None)
            started |= pids()
            assert [batch.origins for batch in found] == [batch.origins for batch in expected]
            assert {batch.epoch for batch in found} == {expected[0].epoch}
        assert len(started) == 1 and loader.state_dict() == inline.state_dict()
        ours, theirs = loader.metrics(), inline.metrics()
        assert (ours.reads, ours.batches, ours.tokens) == (theirs.reads, theirs.batches, theirs.tokens)
    assert not workers_of()


def test_what_is_read_is_counted_once_wherever_it_goes(made_folder: Path) -> None:
    with opened(made_folder, num_workers=1, prefetch_mb=0) as loader:
        pictures = 0
        for epoch in (0, 3, 1):
            loader.set_epoch(epoch)
            pictures += sum(len(batch.pixels) for batch in loader)
        assert loader.metrics().reads == pictures
        assert len(pids()) == 1


def test_a_worker_killed_between_two_iterations_is_named_and_replaced(
    made_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inline, victims = opened(made_folder), []

    def went(loader: StreamLoader, count: int | None) -> list[Any]:
        """What some batches hold, none of them kept: so no more than four wait, and a dead worker is found out."""
        return [batch.origins for batch in itertools.islice(loader, count)]

    with opened(made_folder, num_workers=1) as loader:
        for count in (None, 12):  # an epoch, and a part of the next
            assert went(loader, count) == went(inline, count)
            victims += workers_of()
            victims[-1].kill()
        assert went(loader, None) == went(inline, None)
        assert loader.metrics().replaced_workers == 2 and loader.state_dict() == inline.state_dict()
    for victim in victims:
        assert any(f"(pid {victim.pid}) was killed by SIGKILL" in line for line in caplog.messages)


def test_neither_descriptors_nor_slots_grow_with_the_epochs(made_folder: Path) -> None:
    process = psutil.Process()
    at_first = process.num_fds()
    with opened(made_folder, num_workers=1) as loader:
        taken(loader, None)
        held = taken(loader, None)
        assert len(held) > 20
        peak = process.num_fds()
        del held
        counts = []
        for _ in range(3):
            for batch in loader:
                del batch
            counts.append(process.num_fds())
        (worker,) = workers_of()
        assert peak > at_first + 20 and max(counts[1:]) <= at_first + 12
        assert worker.num_fds() < peak - 10
    assert process.num_fds() == at_first and not workers_of()


def test_an_order_that_cannot_be_told_goes_to_a_new_worker(made_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline = opened(made_folder)
    with opened(made_folder, num_workers=1) as loader:
        taken(loader, 3)
        before = pids()
        monkeypatch.setattr("vila_data.loader.pool.request_message", lambda orders: None)
        for some in (loader, inline):
            some.set_epoch(2)
        found, expected = taken(loader, None), taken(inline, None)
        assert len(found) == len(expected) and all(same(*both) for both in zip(found, expected, strict=True))
        assert len(pids()) == 1 and not pids() & before


def test_what_fails_where_nobody_goes_any_more_is_not_raised(made_folder: Path) -> None:
    loader = opened(made_folder)
    pool = WorkerPool(loader._spec, loader._lengths, 1, Timeout())
    nowhere = Position(5, {"packs": 5, "plan": {"version": "none"}})
    assert pool.go_to(0, nowhere)
    with pytest.raises(UsageError):
        pool.get()
    assert pool.go_to(1, nowhere) and pool.go_to(0, Position())
    found = pool.get()
    assert found is not None and found[1].origins == next(iter(loader)).origins
    pool.close()


def test_a_place_at_the_end_can_be_asked_for_again_and_again(made_folder: Path) -> None:
    """A state that stands behind an epoch's last pack, as one of another world size may."""
    loader = opened(made_folder, num_workers=1)
    packs = loader.steps()
    pool = WorkerPool(loader._spec, loader._lengths, 1, Timeout(warn_s=1, fail_s=20))
    for _ in range(3):
        pool.go_to(0, Position(packs))
        assert pool.get() is None
    assert not pool.go_to(1, Position())
    assert pool.get() is not None
    pool.close()


def test_a_forked_process_has_workers_of_its_own(made_folder: Path) -> None:
    expected = taken(opened(made_folder), 8)
    with opened(made_folder, num_workers=1) as loader:
        found = taken(loader, 2)
        child = os.fork()
        if not child:
            there = taken(loader, 2)
            loader.close()
            os._exit(0 if all(same(*both) for both in zip(there, expected[2:4], strict=True)) else 3)
        assert os.waitpid(child, 0)[1] == 0
        found += taken(loader, 6)
    assert all(same(*both) for both in zip(found, expected, strict=True))


class Once(logging.Handler):
    """Sends this process a signal at the first warning of the loader."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger("vila_data.loader").removeHandler(self)
        os.kill(os.getpid(), signal.SIGUSR1)


@pytest.fixture
def closing() -> Iterator[Callable[[StreamLoader], None]]:
    """Has a loader closed by a signal's handler; the signal is sent at the next warning, which is in the midst of `next`."""
    closed: list[StreamLoader] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: closed[0].close())
    once, log = Once(logging.WARNING), logging.getLogger("vila_data.loader")

    def arm(loader: StreamLoader) -> None:
        closed.append(loader)
        log.addHandler(once)

    yield arm
    log.removeHandler(once)
    signal.signal(signal.SIGUSR1, before)


def test_closing_in_a_signals_handler_ends_the_waiting(
    made_folder: Path, closing: Callable[[StreamLoader], None]
) -> None:
    expected = taken(opened(made_folder), 9)
    loader = opened(made_folder, num_workers=1, prefetch_mb=0, timeout=Timeout(warn_s=0.05, fail_s=60))
    found = []
    for batch in loader:
        found.append(batch)
        if len(found) == 2:
            workers_of()[0].suspend()  # what it has sent already comes, then nothing
            closing(loader)
    assert 2 <= len(found) < 9 and loader.state_dict()["packs"] == len(found)
    assert not workers_of()
    found += taken(loader, 9 - len(found))
    loader.close()
    assert all(same(*both) for both in zip(found, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_closing_in_a_signals_handler_in_the_midst_of_a_step_ends_at_the_next(
    damaged: Path, workers: int, closing: Callable[[StreamLoader], None]
) -> None:
    overwrite(damaged, "docs", 4)
    plain = opened(damaged, fault_budget={"count": 9})
    loader = opened(damaged, num_workers=workers, fault_budget={"count": 9})
    closing(loader)
    found = taken(loader, None)
    assert found[-1].faults and loader.state_dict()["packs"] == len(found) and not workers_of()
    found += taken(loader, None)
    loader.close()
    expected = taken(plain, None)
    assert len(found) == len(expected) and all(same(*both) for both in zip(found, expected, strict=True))
