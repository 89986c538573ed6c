"""Plans the blocks of a blend's epoch from lengths alone; can be resumed between any two blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from vila_data.core.errors import UsageError
from vila_data.mix.config import BlendConfig
from vila_data.mix.lengths import Lengths
from vila_data.mix.plan import (
    BLOCK_SAMPLES,
    BlendEvent,
    Block,
    Edge,
    EventKind,
    EventLog,
    check_state,
    plan_fingerprint,
)
from vila_data.mix.tree import build_tree

STATE_VERSION: Final = 3
BLOCK_PACKS: Final = 8_192
_LEAST_PACKS: Final = 16
"""Minimum size of the block before a change of weights: a change is at most this many packs late."""
_MARGIN: Final = 1.25
"""How far past a block's size a change is looked for, so that it is preceded by two even blocks, not by a large and a
tiny one."""
_COUNTS: Final = ("block", "samples", "tokens", "packs", "stage")


class BlendPlanner:
    """Plans an epoch's blocks; a pure function of (config, lengths, seed, epoch) and the packs reported.

    config, lengths: a blend and the lengths of each of its `leaves()`, in their order.
    capacity:        tokens of a pack; a pack holds at most `samples_per_pack` samples, if given.
    edges:           the sources, including those of nested blends, that `Block.targets` refers to.
    events:          events so far; every change of shares is among them.
    A block ends where a target share changes. After each block the caller reports the number of packs with `packed`:
    total_packs and weight schedules count them.

    Raises:
        UsageError: a shard set has no sample in the stream, or nothing in the unit of its weight.
        DataError:  a sample is longer than a pack.
    """

    def __init__(
        self,
        config: BlendConfig,
        lengths: Sequence[Lengths],
        *,
        seed: int,
        epoch: int,
        capacity: int,
        samples_per_pack: int | None = None,
        block_samples: int = BLOCK_SAMPLES,
        block_packs: int = BLOCK_PACKS,
    ) -> None:
        self._root = build_tree(config, lengths, seed=seed, epoch=epoch, capacity=capacity)
        self.edges: tuple[Edge, ...] = tuple(self._root.edges())
        self.events = EventLog()
        self._capacity, self._samples_per_pack = capacity, samples_per_pack
        self._block_samples, self._block_packs = block_samples, block_packs
        self._total = config.total_packs
        self._changes = config.changes()
        self._bounds = [math.ceil(change * (config.total_packs or 0)) for change in self._changes]
        self._block = self._samples = self._tokens = self._packs = self._stage = 0
        self._ended: str | None = None
        self._assumed_packs = 0
        values = [config.model_dump(mode="json"), seed, epoch, capacity, samples_per_pack, block_samples, block_packs]
        self.fingerprint = plan_fingerprint(values, lengths, STATE_VERSION)

    def next_block(self) -> Block | None:
        """The next block; None at the end of the epoch, whose reason is the last of `events`."""
        self._apply_changes()
        if self._ended is not None:
            return None
        max_samples, max_tokens = self._limits()
        want = min(max_samples, int(max_tokens / self._root.per_sample("tokens")) + 1)
        fraction = self._fraction()
        lookahead = self._root.peek(fraction, int(want * _MARGIN) + 1, self._total is not None)
        running = np.cumsum(lookahead.samples.tokens, dtype=np.int64)
        known = len(lookahead.samples)
        count = min(max_samples, int(np.searchsorted(running, max_tokens)) + 1, known)
        if lookahead.changes and count < known:
            count = min(count, -(-known // 2))
        block = Block(self._block, lookahead.samples.take(slice(count)), tuple(self._root.target_shares(fraction)))
        self._root.advance(lookahead, fraction, count)
        tokens = int(running[count - 1])
        self._assumed_packs = max(1, -(-tokens // self._capacity), -(-count // (self._samples_per_pack or count)))
        self._block += 1
        self._samples += count
        self._tokens += tokens
        self._packs += self._assumed_packs
        return block

    def packed(self, packs: int) -> None:
        """Report the packs made from the last block; until then, as many are assumed as its tokens fill."""
        self._packs += packs - self._assumed_packs
        self._assumed_packs = packs

    def state(self) -> dict[str, Any]:
        """The position between two blocks, for JSON."""
        counts = {name: getattr(self, f"_{name}") for name in _COUNTS}
        values = {"version": STATE_VERSION, "fingerprint": self.fingerprint, **counts, "ended": self._ended}
        return values | {"sources": self._root.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from where `state` was taken.

        Raises:
            UsageError: it belongs to another version, recipe, seed, epoch or set of shards.
        """
        check_state(state, STATE_VERSION, self.fingerprint)
        before = self._root.state()
        try:
            self._root.restore(state["sources"])
            counts, ended = [int(state[name]) for name in _COUNTS], state["ended"]
        except (KeyError, ValueError, TypeError, IndexError) as error:
            self._root.restore(before)
            raise UsageError(f"blend state: damaged: {error!r}") from error
        self._block, self._samples, self._tokens, self._packs, self._stage = counts
        self._ended = ended
        self._assumed_packs = 0

    def _fraction(self) -> float:
        """The fraction of steps whose weights apply."""
        return self._changes[self._stage - 1] if self._stage else 0.0

    def _apply_changes(self) -> None:
        """Apply what happens before the next block: exhausted sources, a change of weights, the end of the epoch."""
        if self._ended is not None:
            return
        if self._total is not None and self._packs >= self._total:
            if self._root.apply_exhaustion(0.0, True, self._add_event) is None:
                self._root.add_missed_minimums(self._add_event)
            self._end(f"total_packs {self._total}")
            return
        stage = sum(bound <= self._packs for bound in self._bounds)
        changed, self._stage = stage != self._stage, stage
        reason = self._root.apply_exhaustion(self._fraction(), self._total is not None, self._add_event)
        if changed:
            self._add_event("weights", "", 0, f"weights from fraction {self._fraction()} of {self._total} packs apply")
        if reason is not None:
            self._end(reason)

    def _end(self, reason: str) -> None:
        self._ended = reason
        self._add_event("ended", "", 0, reason)

    def _add_event(self, kind: EventKind, source: str, passes: int, followed: str) -> None:
        self.events.add(BlendEvent(kind, source, passes, self._block, self._samples, self._packs, followed))

    def _limits(self) -> tuple[int, int]:
        """Maximum samples and tokens of the next block; less before a pack at which something changes."""
        packs = self._block_packs
        bounds = [*self._bounds, *([] if self._total is None else [self._total])]
        ahead = [bound - self._packs for bound in bounds if bound > self._packs]
        if ahead:
            nearest = min(ahead)
            packs = min(packs, nearest if self._packs or nearest <= _LEAST_PACKS else -(-nearest // 2))
            packs = max(packs, min(_LEAST_PACKS, self._block_packs))
        samples = self._block_samples
        if self._samples_per_pack is not None:
            samples = min(samples, packs * self._samples_per_pack)
        tokens = packs * self._tokens // self._packs if self._packs else packs * self._capacity
        return max(1, samples), max(1, tokens)
