"""The order of VILA v1.0's samples (docs/sources.md): micro-batches of one source, sources evenly in the ratio of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.blend import BlendConfig, Block, Edge, Lengths
from vila_data.blend.events import BlendEvent, EventLog
from vila_data.blend.lengths import Run
from vila_data.blend.planner import BLOCK_SAMPLES
from vila_data.blend.tree import Leaf, edges, grow
from vila_data.core.errors import UsageError

STATE_VERSION: Final = 2


class ReleasedPlanner:
    """Plans an epoch as VILA v1.0 visited its data sets; used as a BlendPlanner is.

    Micro-batch j of a source's m is due at (j + 1/2) / m; of equal ones the smaller source's comes first. Samples of a
    pass that fill no micro-batch are left out, and an event says how many.

    Raises:
        UsageError: the blend has a weight other than 1, one that changes, a blend inside, passes without a number, or
            counts other than samples; or a source has less than one micro-batch.
    """

    def __init__(
        self,
        config: BlendConfig,
        lengths: Sequence[Lengths],
        *,
        seed: int,
        epoch: int,
        capacity: int,
        micro_batch: int,
        block_samples: int = BLOCK_SAMPLES,
    ) -> None:
        check_released(config)
        root = grow(config, lengths, seed=seed, epoch=epoch, capacity=capacity)
        self.edges: tuple[Edge, ...] = tuple(edges(root))
        self.events = EventLog()
        self._batch, self._total = micro_batch, config.total_packs
        self._readers = [child.node.reader for child in root.children if isinstance(child.node, Leaf)]
        self._a_pass = [reader.samples // micro_batch for reader in self._readers]
        self._counts = [count * (child.most or 1) for count, child in zip(self._a_pass, root.children, strict=True)]
        self._blocks = max(1, -(-sum(self._counts) * micro_batch // block_samples))
        self._block = self._samples = self._packs = 0
        self._ended = False
        of = [config.model_dump(mode="json"), seed, epoch, capacity, micro_batch, block_samples]
        held = [entry.fingerprint for entry in lengths]
        self.fingerprint = hashlib.sha256(json.dumps([of, held, STATE_VERSION]).encode()).hexdigest()[:16]
        for child, reader, count in zip(root.children, self._readers, self._a_pass, strict=True):
            rest = reader.samples - count * micro_batch
            if not count:
                raise UsageError(f"blend: {child.label} has {reader.samples} samples, less than a micro-batch")
            if rest:
                self.events.add(
                    BlendEvent("short", child.label, 0, 0, 0, 0, f"{rest} samples a pass fill no micro-batch")
                )

    def next_block(self) -> Block | None:
        """The next block; None when the epoch is over."""
        done = self._total is not None and self._packs >= self._total
        if done or self._block == self._blocks:
            if not self._ended:
                reason = f"total_packs {self._total}" if done else "every source has made its passes"
                self.events.add(BlendEvent("ended", "", 0, self._block, self._samples, self._packs, reason))
            self._ended = True
            return None
        run = self._run(self._block)
        self._block += 1
        self._samples += len(run)
        return Block(self._block - 1, run, tuple(count / sum(self._counts) for count in self._counts))

    def packed(self, packs: int) -> None:
        """Say how many packs the last block made."""
        self._packs += packs

    def state(self) -> dict[str, Any]:
        """Where the plan is, for JSON."""
        counts = {"block": self._block, "samples": self._samples, "packs": self._packs}
        return {"version": STATE_VERSION, "fingerprint": self.fingerprint, **counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken; UsageError where it is of another plan."""
        if state.get("version") != STATE_VERSION or state.get("fingerprint") != self.fingerprint:
            raise UsageError(
                f"blend state: of plan {state.get('fingerprint')!r}, this is {self.fingerprint}: the recipe, the shards, "
                "the seed or the epoch differ"
            )
        self._block, self._samples, self._packs = (int(state[name]) for name in ("block", "samples", "packs"))
        self._ended = False

    def _run(self, block: int) -> Run:
        by_size = sorted(range(len(self._counts)), key=lambda index: (self._counts[index], index))
        runs, due = [], []
        for index in by_size:
            first, last = (self._first(self._counts[index], edge) for edge in (block, block + 1))
            runs.append(self._read(index, first, last))
            due.append((np.arange(first, last) + 0.5) / self._counts[index])
        order: NDArray[np.int64] = np.argsort(np.concatenate(due), kind="stable")
        samples = (order[:, None] * self._batch + np.arange(self._batch)).reshape(-1)
        return Run.joined(runs).take(samples)

    def _first(self, count: int, block: int) -> int:
        """The first of a source's micro-batches that is due in a block or later."""
        return max(0, -((self._blocks - 2 * count * block) // (2 * self._blocks)))

    def _read(self, index: int, first: int, last: int) -> Run:
        a_pass, runs = self._a_pass[index], []
        while first < last:
            pass_, start = divmod(first, a_pass)
            taken = min(last - first, a_pass - start)
            runs.append(self._readers[index].read(pass_, start * self._batch, taken * self._batch))
            first += taken
        return Run.joined(runs)


def check_released(config: BlendConfig) -> None:
    """Raise UsageError unless VILA v1.0 could have made the blend: every row a whole number of times, nothing weighed."""
    where = "blend: semantics released_code takes sources in the ratio of their rows"
    if config.weight_counts != "samples":
        raise UsageError(f"{where}: weight_counts is {config.weight_counts}; give samples")
    for source in config.sources:
        if source.blend is not None:
            raise UsageError(f"{where}; it has no blend inside a blend")
        if source.weight != 1:
            raise UsageError(f"{where}: {source.name} has weight {source.weight}; give 1, and repeat for more of it")
        least, most = config.passes(source)
        if least != most:
            raise UsageError(f"{where}, each a number of times: {source.name} has no such number; give repeat: n")
