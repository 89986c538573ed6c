"""The loader: yields one rank's packed batches in the global order and resumes from any saved state."""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any, Final

import torch
from torch.utils.data import IterableDataset, get_worker_info

from vila_data.core.errors import UsageError
from vila_data.loader.batch import PackedBatch
from vila_data.loader.device import DeviceCopies
from vila_data.loader.faults import FaultBudget, FaultLog
from vila_data.loader.metrics import MetricsCollector, PrometheusMetrics, StreamMetrics
from vila_data.loader.pool import InlinePool, Timeout, WorkerPool
from vila_data.loader.producer import BatchHeader, StreamSpec
from vila_data.loader.ranks import Ranks, refuse_prepared
from vila_data.loader.state import StreamIdentity, from_state, to_state
from vila_data.mix.lengths import Lengths
from vila_data.mix.rank_share import Position
from vila_data.mix.released import ReleasedBlend

log = logging.getLogger("vila_data.loader")


@dataclass(frozen=True)
class LoaderOptions:
    """How a loader runs; nothing here changes what its batches hold.

    num_workers: processes; 0: batches are made in the caller's thread. device: where batches are, None: the CPU.
    report_every_s: seconds between two lines of metrics in the log `vila_data.loader`, at INFO. ranks: rank and world
    size and where they come from; None: those of the spec's share, without a comparison with torch.distributed.
    restart: every iteration begins at the beginning of the same epoch.
    """

    num_workers: int
    device: torch.device | None = None
    fault_budget: FaultBudget = field(default_factory=FaultBudget)
    timeout: Timeout = field(default_factory=Timeout)
    report_every_s: float = 60.0
    ranks: Ranks | None = None
    restart: bool = False


class _Iteration:
    """The current iteration. It does not own its generator, so that dropping the iterator ends the workers at once."""

    def __init__(self) -> None:
        self.stopped = False  # the iteration ends at its next step
        self._batches: weakref.ref[Generator[PackedBatch]] | None = None

    def begin(self, batches: Generator[PackedBatch]) -> None:
        """Watch this generator."""
        self._batches = weakref.ref(batches)

    @property
    def _generator(self) -> Any:
        return self._batches() if self._batches is not None else None

    @property
    def is_running(self) -> bool:
        """Whether it is inside a step: in another thread, or below a signal handler."""
        generator = self._generator
        return generator is not None and bool(generator.gi_running)

    @property
    def is_open(self) -> bool:
        """Whether it may yield more batches."""
        generator = self._generator
        return generator is not None and generator.gi_frame is not None

    def end(self) -> bool:
        """End it; False if it is inside a step, and will end after that."""
        self.stopped = True
        while (generator := self._generator) is not None:
            try:
                generator.close()
                break
            except ValueError:  # Python's own: it is inside a step
                if generator.gi_running:
                    return False
        self._batches = None
        return True


_ITERATED: weakref.WeakSet[StreamLoader] = weakref.WeakSet()
_EXIT_WAIT_S: Final = 5.0


@atexit.register
def _close_all() -> None:
    """End all iterations while the interpreter is still whole, so that a process that holds an iterator ends silently.

    Other threads still run: wait for the one that makes a batch, since it must not be stopped inside a decoder.
    """
    deadline = time.monotonic() + _EXIT_WAIT_S
    for loader in list(_ITERATED):
        loader._exiting = True
        loader.close()
    for loader in list(_ITERATED):
        while loader._iteration.is_running and time.monotonic() < deadline:
            time.sleep(0.005)


class StreamLoader(IterableDataset[PackedBatch]):
    """Packed batches of one rank. Made by `vila_data.stream`.

    Iterating yields the rest of the current epoch; the next iteration starts the next epoch. All ranks have the same
    number of steps: in the last one, rows may be padding alone (`PackedBatch.packs` counts the others).
    Workers stay from one epoch to the next, whose beginning they make in advance; `close`, or dropping the loader, ends
    them. `state_dict` may be called between any two batches, and its state loaded under another world size, batch size
    and number of workers: the loader then yields exactly the packs that no rank has returned yet. After an epoch's last
    batch it is the state of the next epoch's beginning. Under semantics `released_code`, micro-batches take the place of
    packs, and an epoch keeps to its end the order for the number of ranks that began it.

    When an iteration begins, its rank and world size are compared with those of torch.distributed, or taken from there
    if the loader was given none. With `restart` every iteration begins at the same batch, as a validation needs it.
    """

    def __init__(
        self, spec: StreamSpec, lengths: list[Lengths], identity: StreamIdentity, options: LoaderOptions
    ) -> None:
        self._spec, self._lengths, self._identity, self._options = spec, lengths, identity, options
        self._epoch = self._first_epoch = spec.epoch
        self._position = Position()
        self._ranks = options.ranks
        self._warned = self._exiting = False
        self._faults = FaultLog(options.fault_budget)
        self._metrics = MetricsCollector([opened.name for opened in spec.sets])
        self._logged = time.monotonic()
        self._replaced = 0
        self._iteration = _Iteration()
        self._pool: WorkerPool | None = None

    def __iter__(self) -> Iterator[PackedBatch]:
        if get_worker_info() is not None:
            raise UsageError(
                "stream: the loader starts its own workers; set num_workers=0 on the DataLoader that wraps it"
            )
        refuse_prepared()
        self._iteration.end()
        self._go_to_start()
        self._iteration = _Iteration()
        batches = self._batches(self._iteration)
        self._iteration.begin(batches)
        _ITERATED.add(self)
        return batches

    def state_dict(self) -> dict[str, Any]:
        """The position after the last returned batch: a JSON-compatible dict of a few hundred bytes, the same on all
        ranks."""
        return to_state(self._identity, self._epoch, self._position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a saved state at the next iteration, whatever world size, batch size and number of workers it was
        saved with.

        With `restart` the state is checked, and the next iteration begins where all do.

        Raises:
            UsageError: it is damaged, or of other shards, another recipe or seed; the message says what differs.
        """
        epoch, position = from_state(self._identity, state)
        self._iteration.end()
        self._epoch, self._position = epoch, position

    @property
    def epoch(self) -> int:
        """Number of the current epoch."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; does nothing if the loader is already in it.

        Raises:
            UsageError: the epoch is not a non-negative integer.
        """
        if not hasattr(epoch, "__index__") or epoch < 0:
            raise UsageError(f"set_epoch: epoch must be a non-negative integer, found {epoch!r}")
        epoch = index(epoch)
        if epoch != self._epoch:
            self._iteration.end()
            self._epoch, self._position = epoch, Position()
        self._first_epoch = epoch

    def steps(self) -> int:
        """Remaining steps of the epoch; with `restart` all of them. Plans them, about 100,000 samples per second.

        Raises:
            UsageError: as the beginning of an iteration.
        """
        if not self._iteration.is_open:
            self._go_to_start()
        packs = self._position.packs
        for planned in self._spec_here().sequence(self._lengths):
            packs = max(packs, planned.first_pack + len(planned))
        return -(-(packs - self._position.packs) // self._spec.share.step_packs)

    def metrics(self) -> StreamMetrics:
        """Totals since the loader was made."""
        return self._metrics.totals(self._faults.counts, self._replaced)

    def prometheus(self, **labels: str) -> PrometheusMetrics:
        """The same for prometheus_client: `loader.prometheus().register()`. labels: in addition to the rank, to
        distinguish the loaders of a process."""
        return PrometheusMetrics(self.metrics, {"rank": str(self._spec.share.rank), **labels})

    def close(self) -> None:
        """End the iteration and the workers; the state stays. Returned batches stay valid.

        It may be called while a batch is being waited for, from a signal handler or another thread: the iteration then
        ends without that batch, and so do its workers.
        """
        if self._iteration.end():
            self._close_pool()
        elif self._pool is not None:
            self._pool.interrupt()

    def __enter__(self) -> StreamLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_iteration": _Iteration(), "_pool": None}

    def _go_to_start(self) -> None:
        """Take the rank that this process has now, and with `restart` the first batch.

        Raises:
            UsageError: the loader was given another rank.
        """
        if self._ranks is not None:
            self._ranks = ranks = self._ranks.current()
            share = replace(self._spec.share, rank=ranks.rank, world_size=ranks.world_size)
            if share != self._spec.share:
                self._close_pool()
                blend = self._spec.blend
                if isinstance(blend, ReleasedBlend):  # its order depends on the ranks that begin an epoch
                    blend = blend.model_copy(update={"ranks": share.world_size})
                self._spec = replace(self._spec, share=share, blend=blend)
            if not self._warned and (warning := ranks.warning(os.environ)):
                self._warned = True
                log.warning("%s", warning)
        if self._options.restart:
            self._epoch, self._position = self._first_epoch, Position()

    def _spec_here(self) -> StreamSpec:
        return replace(self._spec, epoch=self._epoch, start=self._position)

    def _batches(self, iteration: _Iteration) -> Generator[PackedBatch]:
        """The rest of the epoch; on a device, one batch more than was returned is under way."""
        device = self._options.device or torch.device("cpu")
        copies, depth = DeviceCopies(device), int(device.type != "cpu")
        staged: deque[tuple[int, BatchHeader]] = deque()
        epoch, step = self._epoch, self._position.packs // self._spec.share.step_packs
        more, owner = True, os.getpid()
        pool: WorkerPool | InlinePool | None = None
        if self._exiting:
            return
        try:
            pool = self._open_pool()
            requested = time.perf_counter()
            while more or staged:
                if os.getpid() != owner:
                    raise UsageError(
                        f"stream: this iteration belongs to process {owner}, and process {os.getpid()} was forked from "
                        "it; start a new one there with iter(loader)"
                    )
                if more and len(staged) <= depth:
                    worker = pool.step % max(1, self._options.num_workers)
                    made = None if iteration.stopped else pool.get()
                    if made is None or iteration.stopped:
                        break  # nothing was left when the iteration began, or `close` came in between
                    arrays, header, memory = made
                    layout = self._spec.layout
                    copies.stage(
                        PackedBatch.of(
                            arrays,
                            origins=header.origins,
                            faults=header.faults,
                            packs=header.packs,
                            epoch=epoch,
                            step=step,
                            tokens_per_image=layout.tokens_per_image,
                            trains_first_label=layout.trains_first_label,
                            cuts_images=layout.cuts_images,
                            normalization=layout.normalization,
                            keep=memory,
                        )
                    )
                    staged.append((worker, header))
                    step, more = step + 1, not header.last
                    del made, arrays, memory
                    continue
                for dead in pool.replaced:
                    self._metrics.end_worker(dead)
                    self._replaced += 1
                pool.replaced.clear()
                batch = copies.take()
                self._count(*staged.popleft(), time.perf_counter() - requested)
                yield batch
                del batch
                requested = time.perf_counter()
        except GeneratorExit:  # left half-way: the workers wait for what comes next
            if self._pool is not None and not self._pool.usable:
                self._close_pool()
            raise
        except BaseException:
            self._close_pool()
            raise
        finally:
            if os.getpid() == owner:
                copies.close()
                if isinstance(pool, InlinePool):
                    pool.close()
        if iteration.stopped:
            self._close_pool()
        elif self._epoch == epoch:  # nothing was left of it
            self._go_past(epoch)

    def _open_pool(self) -> WorkerPool | InlinePool:
        """A pool for the batches after the position: the running workers, or new ones."""
        spec, options = self._spec_here(), self._options
        if self._pool is not None and self._pool.usable:
            if self._pool.go_to(spec.epoch, spec.start):
                self._metrics.end_workers()
            return self._pool
        self._close_pool()
        self._metrics.end_workers()
        if not options.num_workers:
            return InlinePool(spec, self._lengths)
        self._pool = WorkerPool(spec, self._lengths, options.num_workers, options.timeout, repeats=options.restart)
        return self._pool

    def _close_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _go_past(self, epoch: int) -> None:
        """Go to where the loader is after an epoch."""
        self._epoch, self._position = self._first_epoch if self._options.restart else epoch + 1, Position()

    def _count(self, worker: int, header: BatchHeader, waited_s: float) -> None:
        """Add a batch that is about to be returned to the state and the totals."""
        if header.last:
            self._go_past(self._epoch)
        else:
            self._position = header.after
        self._metrics.add_wait(waited_s)
        self._metrics.add(header, worker)
        if time.monotonic() - self._logged >= self._options.report_every_s:
            self._logged = time.monotonic()
            log.info("rank %d: %s", self._spec.share.rank, self.metrics().line())
        self._faults.add(header.faults, len(header.origins))
