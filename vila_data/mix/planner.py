"""The blend's plan: blocks of samples in order, each cut where a share changes, resumable between any two."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import UsageError
from vila_data.mix.config import BlendConfig
from vila_data.mix.events import BlendEvent, EventKind, EventLog
from vila_data.mix.lengths import Lengths, Run
from vila_data.mix.merge import look, shares, take
from vila_data.mix.settle import note_short, settle
from vila_data.mix.state import MixState, begin_mix, from_json, to_json
from vila_data.mix.tree import Edge, edges, grow

STATE_VERSION: Final = 2
BLOCK_SAMPLES: Final = 65_536
BLOCK_PACKS: Final = 8_192
_LEAST_PACKS: Final = 16
"""Packs that a block before a change of weights is planned for at least: a change comes that much late at most."""
_SPARE: Final = 1.25
"""How far beyond a block's size a change is looked for, so that two even blocks come before it, not a large and a tiny
one."""


@dataclass(frozen=True)
class Block:
    """Some thousand samples in the blend's order.

    index: from 0; run: the samples; asked: the share asked for of each of the planner's edges, in force in the block;
    micro_batches int64[m]: number k is samples micro_batches[k - 1] (0 for the first) to micro_batches[k], in an order
    that stays; None: the samples are packed freely.
    """

    index: int
    run: Run
    asked: tuple[float, ...]
    micro_batches: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class _Progress:
    block: int
    samples: int
    tokens: int
    packs: int
    stage: int
    ended: str | None
    root: MixState


class BlendPlanner:
    """Plans an epoch's blocks from lengths alone; a pure function of (config, lengths, seed, epoch) and packs made.

    config, lengths: a blend and the lengths of each of its `leaves()`, in their order.
    capacity:        tokens of a pack; a pack holds at most `samples_a_pack` samples, if given.
    edges:           the sources, those of inner blends included, to which `Block.asked` refers.
    events:          what happened so far; nothing that changes shares is left out.
    After each block the caller says by `packed` how many packs it made: total_packs and weights that change count them.

    Raises:
        UsageError: a shard set has no sample in the stream, or nothing of what its weight counts.
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
        samples_a_pack: int | None = None,
        block_samples: int = BLOCK_SAMPLES,
        block_packs: int = BLOCK_PACKS,
    ) -> None:
        self._root = grow(config, lengths, seed=seed, epoch=epoch, capacity=capacity)
        self.edges: tuple[Edge, ...] = tuple(edges(self._root))
        self.events = EventLog()
        self._capacity, self._samples_a_pack = capacity, samples_a_pack
        self._block_samples, self._block_packs = block_samples, block_packs
        self._total = config.total_packs
        self._changes = config.changes()
        self._bounds = [math.ceil(change * (config.total_packs or 0)) for change in self._changes]
        self._progress = _Progress(0, 0, 0, 0, 0, None, begin_mix(self._root))
        self._unpacked = 0
        of = [config.model_dump(mode="json"), seed, epoch, capacity, samples_a_pack, block_samples, block_packs]
        held = [entry.fingerprint for entry in lengths]
        self.fingerprint = hashlib.sha256(json.dumps([of, held, STATE_VERSION]).encode()).hexdigest()[:16]

    def next_block(self) -> Block | None:
        """The next block; None when the epoch is over, for the reason in the last of `events`."""
        self._settle()
        now = self._progress
        if now.ended is not None:
            return None
        share = self._changes[now.stage - 1] if now.stage else 0.0
        samples, tokens = self._limits()
        want = min(samples, int(tokens / self._root.a_sample()[2]) + 1)
        ahead = look(self._root, now.root, share, int(want * _SPARE) + 1, self._total is not None)
        running = np.cumsum(ahead.run.tokens, dtype=np.int64)
        count = min(samples, int(np.searchsorted(running, tokens)) + 1, len(ahead.run))
        if ahead.change and count < len(ahead.run):
            count = min(count, -(-len(ahead.run) // 2))
        taken = int(running[count - 1])
        self._unpacked = max(1, -(-taken // self._capacity), -(-count // (self._samples_a_pack or count)))
        self._progress = replace(
            now,
            block=now.block + 1,
            samples=now.samples + count,
            tokens=now.tokens + taken,
            packs=now.packs + self._unpacked,
            root=take(self._root, now.root, ahead, share, count),
        )
        return Block(now.block, ahead.run.take(slice(count)), tuple(shares(self._root, now.root, share)))

    def packed(self, packs: int) -> None:
        """Say how many packs the last block made; until then it counts as those that its tokens fill."""
        self._progress = replace(self._progress, packs=self._progress.packs - self._unpacked + packs)
        self._unpacked = packs

    def state(self) -> dict[str, Any]:
        """Where the plan is, for JSON: after `restore` the blocks are those that would have come."""
        now = self._progress
        fields = {name: getattr(now, name) for name in ("block", "samples", "tokens", "packs", "stage", "ended")}
        return {"version": STATE_VERSION, "fingerprint": self.fingerprint, **fields, "sources": to_json(now.root)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken.

        Raises:
            UsageError: it is of another version, or of another recipe, seed, epoch or set of shards.
        """
        if state.get("version") != STATE_VERSION:
            raise UsageError(f"blend state: version {state.get('version')!r}; this version reads {STATE_VERSION}")
        if state.get("fingerprint") != self.fingerprint:
            raise UsageError(
                f"blend state: of plan {state.get('fingerprint')!r}, this is {self.fingerprint}: the recipe, the shards, "
                "the seed or the epoch differ"
            )
        try:
            counts = {name: int(state[name]) for name in ("block", "samples", "tokens", "packs", "stage")}
            root = from_json(self._root, state["sources"])
            self._progress = _Progress(**counts, ended=state["ended"], root=root)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise UsageError(f"blend state: damaged: {error!r}") from error
        self._unpacked = 0

    def _settle(self) -> None:
        now = self._progress
        if now.ended is not None:
            return
        if self._total is not None and now.packs >= self._total:
            root, reason = settle(self._root, now.root, 0.0, True, self._note)
            if reason is None:
                note_short(self._root, root, self._note)
            self._end(root, f"total_packs {self._total}")
            return
        stage = sum(bound <= now.packs for bound in self._bounds)
        share = self._changes[stage - 1] if stage else 0.0
        root, reason = settle(self._root, now.root, share, self._total is not None, self._note)
        if stage != now.stage:
            self._note("weights", "", 0, f"weights of share {share} of {self._total} packs")
        self._progress = replace(now, stage=stage, root=root)
        if reason is not None:
            self._end(root, reason)

    def _end(self, root: MixState, reason: str) -> None:
        self._progress = replace(self._progress, root=root, ended=reason)
        self._note("ended", "", 0, reason)

    def _note(self, kind: EventKind, source: str, passes: int, followed: str) -> None:
        now = self._progress
        self.events.add(BlendEvent(kind, source, passes, now.block, now.samples, now.packs, followed))

    def _limits(self) -> tuple[int, int]:
        """Samples and tokens of the next block at most; less before a pack at which something changes."""
        now = self._progress
        packs = self._block_packs
        bounds = [*self._bounds, *([] if self._total is None else [self._total])]
        ahead = [bound - now.packs for bound in bounds if bound > now.packs]
        if ahead:
            nearest = min(ahead)
            packs = min(packs, nearest if now.packs or nearest <= _LEAST_PACKS else -(-nearest // 2))
            packs = max(packs, min(_LEAST_PACKS, self._block_packs))
        samples = self._block_samples
        if self._samples_a_pack is not None:
            samples = min(samples, packs * self._samples_a_pack)
        tokens = packs * now.tokens // now.packs if now.packs else packs * self._capacity
        return max(1, samples), max(1, tokens)
