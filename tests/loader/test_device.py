"""Copies to a device: passed through on the CPU; on cuda the order of waits and who is held how long.

cuda is acted here: streams, events and tensors write down what is asked of them. That shows that each copy is waited
for, on the right stream, and that memory is held until its copy is done. It does not show that copies run beside
other work, that pinning works, or that the allocator obeys record_stream: those want a GPU.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.loader.made_arrays import made_batch
from vila_data.loader.batch import PackedBatch
from vila_data.loader.device import DeviceCopies


def test_on_the_cpu_batches_pass_through() -> None:
    copies = DeviceCopies("cpu")
    first, second = made_batch(1), made_batch(2)
    copies.stage(first)
    copies.stage(second)
    assert len(copies) == 2
    assert copies.take() is first
    assert copies.take() is second
    with pytest.raises(IndexError):
        copies.take()


def test_to_another_device_without_streams() -> None:
    copies = DeviceCopies("meta")
    copies.stage(made_batch(1))
    assert copies.take().ids.is_meta


class Memory:
    """A worker's slot."""


class ActedCuda:
    """Stands in for torch.cuda; `log` has what happened, in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.running = "main"
        self.finished: set[int] = set()
        self.events = 0

    def Stream(self, device: Any) -> Any:
        return SimpleNamespace(name="side", synchronize=lambda: self.log.append(("synchronize", "side")))

    def Event(self) -> Any:
        self.events += 1
        number = self.events
        return SimpleNamespace(
            number=number,
            record=lambda stream: self.log.append(("record", stream.name, str(number))),
            query=lambda: number in self.finished,
        )

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.running = self.running, stream.name
        yield
        self.running = before

    def current_stream(self, device: Any) -> Any:
        return SimpleNamespace(
            name=self.running, wait_event=lambda event: self.log.append(("wait", self.running, str(event.number)))
        )


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> ActedCuda:
    acted = ActedCuda()
    for name in ("Stream", "Event", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(acted, name))

    def copied(batch: PackedBatch, device: Any, *, non_blocking: bool = False) -> PackedBatch:
        assert non_blocking
        acted.log.append(("copy", acted.running, str(batch.step)))
        return pickle_copy(batch)

    monkeypatch.setattr(PackedBatch, "to", copied)
    monkeypatch.setattr(PackedBatch, "pin", lambda batch: batch)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, stream: acted.log.append(("used by", stream.name))
    )
    return acted


def pickle_copy(batch: PackedBatch) -> PackedBatch:
    import pickle

    copied: PackedBatch = pickle.loads(pickle.dumps(batch))
    return copied


def test_a_copy_runs_on_the_side_and_is_waited_for(cuda: ActedCuda) -> None:
    copies = DeviceCopies("cuda")
    copies.stage(made_batch(1))
    copies.stage(made_batch(2))
    assert cuda.log == [("copy", "side", "7"), ("record", "side", "1"), ("copy", "side", "7"), ("record", "side", "2")]
    cuda.log.clear()
    taken = copies.take()
    assert torch.equal(taken.ids, made_batch(1).ids)
    assert cuda.log[0] == ("wait", "main", "1")  # its own copy, not that of the batch after it
    assert cuda.log[1:] == [("used by", "main")] * 8
    copies.close()
    assert cuda.log[-1] == ("synchronize", "side")
    assert len(copies) == 0


def test_memory_is_held_until_its_copy_is_done(cuda: ActedCuda) -> None:
    copies = DeviceCopies("cuda")
    slots = [Memory(), Memory()]
    dead = [weakref.ref(slot) for slot in slots]
    for seed in (0, 1):
        copies.stage(made_batch(seed, keep=slots[seed]))
    slots.clear()
    copies.take()
    gc.collect()
    assert [ref() is None for ref in dead] == [False, False]
    cuda.finished.add(1)
    copies.take()
    gc.collect()
    assert [ref() is None for ref in dead] == [True, False]
    copies.close()
    gc.collect()
    assert dead[1]() is None
