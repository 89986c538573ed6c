"""Copy batches to a device, one step in advance."""

from __future__ import annotations

from collections import deque
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor

from vila_data.loader.batch import PackedBatch


class _Copy(NamedTuple):
    batch: PackedBatch
    done: torch.cuda.Event | None  # None: nothing was copied


class DeviceCopies:
    """Copies batches to a device in the order in which they are staged.

    On cuda the copies run on their own stream, from page-locked memory, while the training step computes; pixels stay
    uint8, a quarter of the size of floats (`PackedBatch.normalized` on the device makes them floats). On the CPU
    batches are passed through.

        copies.stage(first)
        for following in batches:
            copies.stage(following)
            train(copies.take())
        train(copies.take())
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call,unused-ignore]
        self._staged: deque[_Copy] = deque()
        self._sources: deque[_Copy] = deque()  # memory that a copy may still be reading

    def __len__(self) -> int:
        return len(self._staged)

    def stage(self, batch: PackedBatch) -> None:
        """Start copying `batch`; its memory is held until the copy is done."""
        self._release()
        if self._stream is None:
            self._staged.append(_Copy(batch if self._device.type == "cpu" else batch.to(self._device), None))
            return
        source = batch.pin()
        with torch.cuda.stream(self._stream):
            copied = source.to(self._device, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
            done.record(self._stream)
        self._staged.append(_Copy(copied, done))
        self._sources.append(_Copy(source, done))

    def take(self) -> PackedBatch:
        """The batch that was staged first. The current stream waits for its copy, the caller does not.

        Raises:
            IndexError: nothing is staged.
        """
        batch, done = self._staged.popleft()
        if done is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(done)
            for field in fields(batch):
                value = getattr(batch, field.name)
                if isinstance(value, Tensor) and value.is_cuda:
                    value.record_stream(current)  # allocated on the side stream: not to be used again before the step
        self._release()
        return batch

    def close(self) -> None:
        """Wait for running copies and release all batches."""
        if self._stream is not None:
            self._stream.synchronize()
        self._staged.clear()
        self._sources.clear()

    def _release(self) -> None:
        while self._sources and (done := self._sources[0].done) is not None and done.query():  # type: ignore[no-untyped-call,unused-ignore]
            self._sources.popleft()
