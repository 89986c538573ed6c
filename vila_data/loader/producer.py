"""The loop that makes a rank's batches from a run: the same in a worker process and, without workers, in the trainer's."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.ranges.prefetch import RangeCounters
from vila_data.core.ranges.reader import RangeReader, ReadOptions, open_ranges
from vila_data.core.store import Store
from vila_data.encode.config import PackConfig
from vila_data.encode.token_set import TokenSet
from vila_data.loader.arrays import BatchArrays, BatchSize, Fault, Origin
from vila_data.loader.assemble import Allocate, Assembler, PendingBatch, RowLayout, SampleSource, StageClock
from vila_data.loader.pixels import ImageOptions
from vila_data.mix.config import BlendConfig
from vila_data.mix.lengths import Lengths
from vila_data.mix.rank_share import Position, RankShare, rank_batches
from vila_data.mix.sequence import PackSequence
from vila_data.mix.shard_sets import OpenedSet

_PREFETCH: Final = 2
_PREFETCH_REMOTE: Final = 6
_SAMPLES_PER_RELEASE: Final = 1_024


@dataclass(frozen=True)
class StreamSpec:
    """All that decides a rank's batches, and how they are read. It is sent to workers.

    store: the run's URL; sets: one for each leaf of the blend; start: where the iteration begins; first_step, stride:
    which of its steps are made here; limit_bytes: of finished batches that wait.
    """

    store: str
    blend: BlendConfig
    pack: PackConfig
    sets: tuple[OpenedSet, ...]
    seed: int
    epoch: int
    share: RankShare
    layout: RowLayout
    image: ImageOptions
    read: ReadOptions
    limit_bytes: int
    start: Position = field(default_factory=Position)
    first_step: int = 0
    stride: int = 1

    def sequence(self, lengths: Sequence[Lengths]) -> PackSequence:
        """The epoch's packs from `start` on, or from at most one block before it."""
        sequence = PackSequence(self.blend, self.pack, lengths, seed=self.seed, epoch=self.epoch)
        if self.start.plan is not None:
            sequence.restore(self.start.plan)
        return sequence


@dataclass(frozen=True)
class BatchHeader:
    """A batch's metadata.

    packs: rows that are real packs; after: the position after the step; last: no step follows; sources int64[sources,
    3]: samples, images and tokens of each source of the blend; stage_s: seconds by stage since the producer was made;
    read: what its reader has done, likewise.
    """

    size: BatchSize
    origins: tuple[Origin, ...]
    faults: tuple[Fault, ...]
    packs: int
    after: Position
    last: bool
    sources: NDArray[np.int64]
    stage_s: dict[str, float]
    read: RangeCounters


class BatchProducer:
    """Makes a rank's batches; close it when done."""

    def __init__(self, spec: StreamSpec, lengths: Sequence[Lengths], clock: StageClock) -> None:
        self._spec, self._lengths, self._clock = spec, lengths, clock
        self._store = Store(spec.store)
        self._samples = 0
        self._ranges: RangeReader = open_ranges(self._store, spec.read, _version_of(spec.sets))
        local = None if self._store.is_local else self._ranges.local_copy
        self._tokens = {
            opened.name: TokenSet(self._store, opened.tokens, opened.token_directory, local_copy=local)
            for opened in spec.sets
        }
        sources = [SampleSource(opened.name, opened.shards.corpus, self._tokens[opened.name]) for opened in spec.sets]
        self._assembler = Assembler(self._store, sources, spec.layout, spec.image, self._ranges, clock)

    def go_to(self, epoch: int, start: Position, first_step: int) -> None:
        """Have `batches` begin there; call it between two iterations only."""
        self._spec = replace(self._spec, epoch=epoch, start=start, first_step=first_step)

    def batches(self, allocate: Allocate) -> Iterator[tuple[int, BatchArrays, BatchHeader]]:
        """(step, arrays, header) of the spec's steps, in order, to the end of the epoch."""
        spec, sequence = self._spec, self._spec.sequence(self._lengths)
        plans = rank_batches(sequence, spec.share, spec.start, first_step=spec.first_step, stride=spec.stride)
        pending: deque[PendingBatch] = deque()
        depth = _PREFETCH if self._store.is_local else _PREFETCH_REMOTE
        more = True
        while more or pending:
            while more and len(pending) < depth:
                began = time.perf_counter()
                self._clock.doing("planning")
                plan = next(plans, None)
                self._clock.spent("plan", time.perf_counter() - began)
                more = plan is not None
                if plan is not None:
                    pending.append(self._assembler.prepare(plan))
            if pending:
                batch = pending.popleft()
                arrays = self._assembler.build(batch, allocate)
                self._release_pages(len(batch.samples))
                yield batch.plan.step, arrays, self._header(batch, arrays)

    def close(self) -> None:
        """Close files and cancel requests."""
        self._ranges.close()

    def _release_pages(self, samples: int) -> None:
        """Release mapped pages now and then, so that memory does not grow with what was read."""
        self._samples += samples
        if self._samples >= _SAMPLES_PER_RELEASE:
            self._samples = 0
            for tokens in self._tokens.values():
                tokens.let_pages_go()

    def _header(self, batch: PendingBatch, arrays: BatchArrays) -> BatchHeader:
        plan, samples = batch.plan, batch.plan.samples
        rows, length = arrays.ids_BL.shape
        images, segments = len(arrays.pixels_NHWC), len(arrays.cu_seqlens) - 1
        counts = [
            np.bincount(samples.source, weights=weights, minlength=len(self._spec.sets)).astype(np.int64)
            for weights in (None, samples.images, samples.tokens)
        ]
        return BatchHeader(
            size=BatchSize(rows, length, images, len(batch.samples), segments, self._spec.image.size_px),
            origins=tuple(batch.origins),
            faults=tuple(batch.faults),
            packs=len(plan.ends),
            after=plan.after,
            last=plan.last,
            sources=np.stack(counts, axis=1),
            stage_s=dict(self._clock.seconds),
            read=replace(self._ranges.counters),
        )


def _version_of(sets: Sequence[OpenedSet]) -> Callable[[str], str]:
    """Function of a path: the sha256 of a shard, or the inputs of a token file's encoding, which change with its bytes."""
    shards = {f"shards/{opened.name}/{shard.name}": shard.sha256 for opened in sets for shard in opened.shards.shards}
    encodings = {opened.token_directory: opened.tokens.inputs for opened in sets}
    return lambda path: shards.get(path) or encodings.get(path.rsplit("/", 1)[0], "")
