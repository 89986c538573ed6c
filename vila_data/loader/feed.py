"""A rank's batches from a run: what they are made of, said as a value, and the loop that makes them.

The loop is the same in a worker process and, without workers, in the trainer's own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

import numpy as np

from vila_data.core.ranges.reader import RangeCounters, RangeReader, ReadOptions, open_ranges
from vila_data.core.store import Store
from vila_data.encode.config import PackConfig
from vila_data.encode.token_set import TokenSet
from vila_data.loader.arrays import BatchArrays, Fault, Origin
from vila_data.loader.assemble import STAGES, Allocate, Assembler, Clock, Prepared, Rows, SampleSource
from vila_data.loader.pixels import ImageOptions
from vila_data.mix.config import BlendConfig
from vila_data.mix.lengths import Lengths
from vila_data.mix.rank_share import Position, RankShare, rank_batches
from vila_data.mix.sequence import PackSequence
from vila_data.mix.shard_sets import OpenedSet

_AHEAD: Final = 2
_AHEAD_REMOTE: Final = 6
_TIDY_SAMPLES: Final = 1_024
_COUNTERS: Final = tuple(one.name for one in fields(RangeCounters))


@dataclass(frozen=True)
class FeedSpec:
    """All that decides a rank's batches, and how they are read. It travels to workers.

    store: the run's URL; sets: one a leaf of the blend; start: where the iteration begins; first_step, stride: its
    steps that are made here; limit_bytes: of buffers that are filled and not used yet.
    """

    store: str
    blend: BlendConfig
    pack: PackConfig
    sets: tuple[OpenedSet, ...]
    seed: int
    epoch: int
    share: RankShare
    rows: Rows
    image: ImageOptions
    read: ReadOptions
    limit_bytes: int
    start: Position = field(default_factory=Position)
    first_step: int = 0
    stride: int = 1


@dataclass(frozen=True)
class BatchHeader:
    """What goes with a batch's arrays.

    size: as batch.layout.BatchSize; packs: rows that are real packs; after: the position behind the step; last: no
    step follows; sources int64[sources, 3]: samples, images and tokens of each source of the blend; spent: seconds by stage since the feed
    began; read: counters of core.ranges.prefetch.RangeCounters, likewise.
    """

    size: tuple[int, ...]
    origins: tuple[Origin, ...]
    faults: tuple[Fault, ...]
    packs: int
    after: Position
    last: bool
    sources: Any
    spent: dict[str, float]
    read: dict[str, Any]


class StageClock:
    """Seconds by stage, and what is being done."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.now = ""

    def spent(self, stage: str, seconds: float) -> None:
        """Add some."""
        self.seconds[stage] += seconds

    def doing(self, what: str) -> None:
        """Say what comes now."""
        self.now = what


class Feed:
    """Makes a rank's batches; close it when done."""

    def __init__(self, spec: FeedSpec, lengths: Sequence[Lengths], clock: StageClock | Clock) -> None:
        self._spec, self._lengths, self._clock = spec, lengths, clock
        self._store = Store(spec.store)
        self._read = 0
        self._ranges: RangeReader = open_ranges(self._store, spec.read, _versions(spec.sets))
        local = None if self._store.is_local else self._ranges.local_copy
        self._tokens = {
            found.name: TokenSet(self._store, found.tokens, found.token_directory, local_copy=local)
            for found in spec.sets
        }
        sources = [SampleSource(found.name, found.shards.corpus, self._tokens[found.name]) for found in spec.sets]
        self._assembler = Assembler(self._store, sources, spec.rows, spec.image, self._ranges, clock)

    def go_to(self, epoch: int, start: Position, first_step: int) -> None:
        """Have `batches` begin there; what they gave before must be over."""
        self._spec = replace(self._spec, epoch=epoch, start=start, first_step=first_step)

    def batches(self, allocate: Allocate) -> Iterator[tuple[int, BatchArrays, BatchHeader]]:
        """(step, arrays, header) of the spec's steps, in order, to the end of the epoch."""
        plans = rank_batches(
            self._sequence(),
            self._spec.share,
            self._spec.start,
            first_step=self._spec.first_step,
            stride=self._spec.stride,
        )
        ahead: deque[Prepared] = deque()
        depth = _AHEAD if self._store.is_local else _AHEAD_REMOTE
        more = True
        while more or ahead:
            while more and len(ahead) < depth:
                began = time.perf_counter()
                self._clock.doing("planning")
                plan = next(plans, None)
                self._clock.spent("plan", time.perf_counter() - began)
                more = plan is not None
                if plan is not None:
                    ahead.append(self._assembler.prepare(plan))
            if ahead:
                prepared = ahead.popleft()
                arrays = self._assembler.build(prepared, allocate)
                self._tidy(len(prepared.samples))
                yield prepared.plan.step, arrays, self._header(prepared, arrays)

    def _tidy(self, samples: int) -> None:
        """Let go of mapped pages now and then, so that memory does not grow with what was read."""
        self._read += samples
        if self._read >= _TIDY_SAMPLES:
            self._read = 0
            for tokens in self._tokens.values():
                tokens.let_pages_go()

    def close(self) -> None:
        """Give up files and requests."""
        self._ranges.close()

    def _sequence(self) -> PackSequence:
        spec = self._spec
        sequence = PackSequence(spec.blend, spec.pack, self._lengths, seed=spec.seed, epoch=spec.epoch)
        if spec.start.plan is not None:
            sequence.restore(spec.start.plan)
        return sequence

    def _header(self, prepared: Prepared, arrays: BatchArrays) -> BatchHeader:
        run, plan = prepared.plan.samples, prepared.plan
        counts = [
            np.bincount(run.source, weights=weights, minlength=len(self._spec.sets)).astype(np.int64)
            for weights in (None, run.images, run.tokens)
        ]
        seconds = dict(getattr(self._clock, "seconds", {}))
        counters = {name: getattr(self._ranges.counters, name) for name in _COUNTERS}
        size = (*arrays.ids_BL.shape, len(arrays.pixels_NHWC), len(arrays.sample_places), len(arrays.cu_seqlens) - 1)
        return BatchHeader(
            (*size, self._spec.image.size_px),
            tuple(prepared.origins),
            tuple(prepared.faults),
            len(plan.ends),
            plan.after,
            plan.last,
            np.stack(counts, axis=1),
            seconds,
            counters,
        )


def _versions(sets: Sequence[OpenedSet]) -> Any:
    """path -> what changes when a shard or token file is written again: its sha256, or the inputs of its encoding."""
    shards = {f"shards/{found.name}/{shard.name}": shard.sha256 for found in sets for shard in found.shards.shards}
    encodings = {found.token_directory: found.tokens.inputs for found in sets}
    return lambda path: shards.get(path) or encodings.get(path.rsplit("/", 1)[0], "")
