"""The loader: an epoch's packed batches for one rank, in the one order, from wherever it was left."""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any, Final

import torch
from torch.utils.data import IterableDataset, get_worker_info

from vila_data.core.errors import UsageError, VilaDataError
from vila_data.loader.arrays import BatchArrays
from vila_data.loader.assemble import Rows
from vila_data.loader.descriptors import is_out_of_descriptors, out_of_descriptors
from vila_data.loader.device import DeviceCopies
from vila_data.loader.faults import FaultBudget, FaultLog
from vila_data.loader.feed import BatchHeader, Feed, FeedSpec, StageClock
from vila_data.loader.memory import ReusedMemory
from vila_data.loader.meters import Meter, PrometheusMetrics, StreamMetrics
from vila_data.loader.packed import PackedBatch
from vila_data.loader.pool import Patience, WorkerPool
from vila_data.loader.ranks import Ranks, refuse_prepared
from vila_data.loader.state import StreamIdentity, from_state, to_state
from vila_data.mix.lengths import Lengths
from vila_data.mix.rank_share import Position
from vila_data.mix.released import ReleasedBlend
from vila_data.mix.sequence import PackSequence

log = logging.getLogger("vila_data.loader")


@dataclass(frozen=True)
class LoaderOptions:
    """How a loader runs; nothing here changes what its batches hold.

    num_workers: processes; 0: batches are made in the caller's thread. device: where batches are, None: the CPU.
    report_every_s: seconds between two lines of metrics in the log `vila_data.loader`, at INFO. ranks: rank and world
    size with who said them; None: those of the spec's share, whatever torch.distributed says. restart: every iteration
    begins at the beginning of the same epoch.
    """

    num_workers: int
    device: torch.device | None = None
    fault_budget: FaultBudget = field(default_factory=FaultBudget)
    patience: Patience = field(default_factory=Patience)
    report_every_s: float = 60.0
    ranks: Ranks | None = None
    restart: bool = False


_ITERATED: weakref.WeakSet[StreamLoader] = weakref.WeakSet()
_ENDING_S: Final = 5.0


@atexit.register
def _close_all() -> None:
    """End all iterations while the interpreter is still whole, so that a process that holds an iterator ends in silence.

    Other threads still run: the one that makes a batch is awaited, since it may not be stopped inside a decoder.
    """
    deadline = time.monotonic() + _ENDING_S
    for loader in list(_ITERATED):
        loader._ends = True
        loader.close()
    for loader in list(_ITERATED):
        while loader._is_at_work() and time.monotonic() < deadline:
            time.sleep(0.005)


class StreamLoader(IterableDataset[PackedBatch]):
    """Packed batches of one rank. Made by `vila_data.stream`.

    Iterating gives what is left of the current epoch; when it is over, the next iteration gives the next epoch. All
    ranks have equally many steps: in the last one, rows may be padding alone (`PackedBatch.packs` counts the others).
    Workers stay from one epoch to the next, whose beginning they make ahead; `close`, or dropping the loader, ends them.
    `state_dict` may be taken between any two batches and loaded under another world size, batch size and number of
    workers: what comes then are exactly the packs that were not given out before, by any rank. Behind an epoch's last
    batch it is that of the next epoch's beginning. Under semantics `released_code`, micro-batches take the place of
    packs, and an epoch keeps to its end the order for the number of ranks that began it.

    When an iteration begins, its rank and world size are compared with those of torch.distributed, and taken from there
    where the loader was told none. With `restart` every iteration begins at the same batch, as a validation needs it.
    """

    def __init__(
        self, spec: FeedSpec, lengths: list[Lengths], identity: StreamIdentity, options: LoaderOptions
    ) -> None:
        self._spec, self._lengths, self._identity, self._options = spec, lengths, identity, options
        self._epoch = self._first_epoch = spec.epoch
        self._position = Position()
        self._ranks = options.ranks
        self._doubted = self._ends = False
        self._faults = FaultLog(options.fault_budget)
        self._meter = Meter([found.name for found in spec.sets])
        self._said = time.monotonic()
        self._replaced = 0
        self._running: weakref.ref[Any] | None = None
        self._stop = _Stop()
        self._pool: WorkerPool | None = None

    def __iter__(self) -> Iterator[PackedBatch]:
        if get_worker_info() is not None:
            raise UsageError(
                "stream: the loader has workers of its own: give num_workers=0 to the DataLoader around it"
            )
        refuse_prepared()
        self._end_iteration()
        self._take_place()
        if self._options.restart:
            self._epoch, self._position = self._first_epoch, Position()
        self._stop = _Stop()
        batches = self._batches(self._stop)
        self._running = weakref.ref(batches)  # who iterates holds it: dropping both ends the workers at once
        _ITERATED.add(self)
        return batches

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, behind the batch that was given out last: JSON of some hundred bytes, equal on all ranks."""
        return to_state(self._identity, self._epoch, self._position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state at the next iteration, whatever world size, batch size and workers it was taken under.

        With `restart` the state is checked, and the next iteration begins where all do.

        Raises:
            UsageError: it is damaged, or of other shards, another recipe or seed; the message says what differs.
        """
        epoch, position = from_state(self._identity, state)
        self._end_iteration()
        self._epoch, self._position = epoch, position

    @property
    def epoch(self) -> int:
        """Number of the epoch that an iteration gives."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; nothing happens if the loader is in it already.

        Raises:
            UsageError: the epoch is not a whole number from 0 on.
        """
        if not hasattr(epoch, "__index__") or epoch < 0:
            raise UsageError(f"set_epoch: {epoch!r}: give a whole number from 0 on")
        epoch = index(epoch)
        if epoch != self._epoch:
            self._end_iteration()
            self._epoch, self._position = epoch, Position()
        self._first_epoch = epoch

    def steps(self) -> int:
        """Steps that are left of the epoch; with `restart` all of them. Plans them, at some 100,000 samples per second.

        Raises:
            UsageError: as the beginning of an iteration.
        """
        if not self._is_iterated():
            self._take_place()
            if self._options.restart:
                self._epoch, self._position = self._first_epoch, Position()
        packs = self._position.packs
        for planned in self._sequence():
            packs = max(packs, planned.first_pack + len(planned))
        return -(-(packs - self._position.packs) // self._spec.share.step_packs)

    def metrics(self) -> StreamMetrics:
        """Totals since the loader was made."""
        return self._meter.read(self._faults.counts, self._replaced)

    def prometheus(self, **labels: str) -> PrometheusMetrics:
        """The same for prometheus_client: `loader.prometheus().register()`. labels: beside the rank, to tell a
        process's loaders apart."""
        return PrometheusMetrics(self.metrics, {"rank": str(self._spec.share.rank), **labels})

    def close(self) -> None:
        """End the iteration and the workers; the state stays. Batches that were given out stay valid.

        It may be called while a batch is waited for, from a signal's handler or another thread: then the iteration
        stops there, without that batch, and its workers end.
        """
        if self._end_iteration():
            self._end_pool()
        elif self._pool is not None:
            self._pool.interrupt()

    def _end_iteration(self) -> bool:
        """End it; False where it is at work just now, and will end itself."""
        self._stop.asked = True
        running: Any = self._running() if self._running is not None else None
        while running is not None:
            try:
                running.close()
                running = None
            except ValueError:  # Python's own: it is at work
                if running.gi_running:
                    return False
        self._running = None
        return True

    def _is_at_work(self) -> bool:
        running: Any = self._running() if self._running is not None else None
        return running is not None and bool(running.gi_running)

    def _is_iterated(self) -> bool:
        running: Any = self._running() if self._running is not None else None
        return running is not None and running.gi_frame is not None

    def _take_place(self) -> None:
        """Read for the rank that this process is now.

        Raises:
            UsageError: the loader was told another one.
        """
        if self._ranks is None:
            return
        self._ranks = ranks = self._ranks.current()
        share = replace(self._spec.share, rank=ranks.rank, world_size=ranks.world_size)
        if share != self._spec.share:
            self._end_pool()
            blend = self._spec.blend
            if isinstance(blend, ReleasedBlend):  # its order depends on the ranks that begin an epoch
                blend = blend.model_copy(update={"ranks": share.world_size})
            self._spec = replace(self._spec, share=share, blend=blend)
        if not self._doubted and (doubt := ranks.doubt(os.environ)):
            self._doubted = True
            log.warning("%s", doubt)

    def _after(self, epoch: int) -> tuple[int, Position]:
        """Where the loader is when an epoch is over."""
        return (self._first_epoch if self._options.restart else epoch + 1), Position()

    def _end_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_running": None, "_pool": None}

    def __enter__(self) -> StreamLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sequence(self) -> PackSequence:
        sequence = PackSequence(
            self._spec.blend, self._spec.pack, self._lengths, seed=self._spec.seed, epoch=self._epoch
        )
        if self._position.plan is not None:
            sequence.restore(self._position.plan)
        return sequence

    def _batches(self, stop: _Stop) -> Iterator[PackedBatch]:
        """The epoch's batches; one more than was given out is on its way where there is a device."""
        device = self._options.device or torch.device("cpu")
        copies, depth = DeviceCopies(device), int(device.type != "cpu")
        ahead: deque[tuple[int, BatchHeader]] = deque()
        epoch, number = self._epoch, self._position.packs // self._spec.share.step_packs
        more, owner = True, os.getpid()
        maker: WorkerPool | _Inline | None = None
        if self._ends:
            return
        try:
            maker = self._maker()
            asked = time.perf_counter()
            while more or ahead:
                if os.getpid() != owner:
                    raise UsageError(
                        f"stream: this iteration was begun by process {owner}, and process {os.getpid()} was forked from "
                        "it: begin one there with iter(loader)"
                    )
                if more and len(ahead) <= depth:
                    feed = maker.step % max(1, self._options.num_workers)
                    found = None if stop.asked else maker.get()
                    if found is None or stop.asked:
                        break  # nothing was left when the iteration began, or `close` came in between
                    copies.stage(_batch(found, self._spec.rows, epoch, number))
                    ahead.append((feed, found[1]))
                    number, more = number + 1, not found[1].last
                    del found
                    continue
                for dead in maker.replaced:
                    self._meter.end_feed(dead)
                    self._replaced += 1
                maker.replaced.clear()
                batch = copies.take()
                self._count(*ahead.popleft(), time.perf_counter() - asked)
                yield batch
                del batch
                asked = time.perf_counter()
        except GeneratorExit:  # left half-way: the workers wait for what comes next
            if self._pool is not None and not self._pool.usable:
                self._end_pool()
            raise
        except BaseException:
            self._end_pool()
            raise
        finally:
            if os.getpid() == owner:
                copies.close()
                if isinstance(maker, _Inline):
                    maker.close()
        if stop.asked:
            self._end_pool()
        elif self._epoch == epoch:  # there was nothing left of it
            self._epoch, self._position = self._after(epoch)

    def _maker(self) -> WorkerPool | _Inline:
        """What makes the batches behind the position: the workers that there are, else new ones."""
        spec = replace(self._spec, epoch=self._epoch, start=self._position)
        if self._pool is not None and self._pool.usable:
            if self._pool.go_to(spec.epoch, spec.start):
                self._meter.end_feeds()
            return self._pool
        self._end_pool()
        self._meter.end_feeds()
        if not self._options.num_workers:
            return _Inline(spec, self._lengths)
        options = self._options
        self._pool = WorkerPool(spec, self._lengths, options.num_workers, options.patience, repeats=options.restart)
        return self._pool

    def _count(self, feed: int, header: BatchHeader, waited_s: float) -> None:
        """Take a batch that is given out now into the state and the totals."""
        if header.last:
            self._epoch, self._position = self._after(self._epoch)
        else:
            self._position = header.after
        self._meter.waited(waited_s)
        self._meter.add(header, feed)
        self._report()
        self._faults.add(header.faults, len(header.origins))

    def _report(self) -> None:
        if time.monotonic() - self._said >= self._options.report_every_s:
            self._said = time.monotonic()
            log.info("rank %d: %s", self._spec.share.rank, self.metrics().line())


def _batch(found: tuple[BatchArrays, BatchHeader, Any], rows: Rows, epoch: int, step: int) -> PackedBatch:
    arrays, header, memory = found
    return PackedBatch.of(
        arrays,
        origins=header.origins,
        faults=header.faults,
        packs=header.packs,
        epoch=epoch,
        step=step,
        tokens_per_image=rows.tokens_per_image,
        trains_first_label=rows.trains_first_label,
        cuts_images=rows.cuts_images,
        normalization=rows.normalization,
        keep=memory,
    )


@dataclass
class _Stop:
    """Whether an iteration is to end at its next step. A value of its own, so that an iterator does not hold itself."""

    asked: bool = False


class _Inline:
    """Makes batches in the caller's thread; used as a WorkerPool is."""

    def __init__(self, spec: FeedSpec, lengths: list[Lengths]) -> None:
        self._feed = Feed(spec, lengths, StageClock())
        self._batches = self._feed.batches(ReusedMemory().allocate)
        self.step = 0
        self.replaced: list[int] = []

    def get(self) -> tuple[BatchArrays, BatchHeader, Any] | None:
        """The next batch, None when the epoch is over."""
        try:
            found = next(self._batches, None)
        except (VilaDataError, OSError) as error:
            raise (out_of_descriptors(0) if is_out_of_descriptors(error) else error) from error
        if found is None:
            return None
        _, arrays, header = found
        return arrays, header, arrays

    def close(self) -> None:
        """Give up files."""
        self._feed.close()
