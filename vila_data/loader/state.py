"""A loader's saved state: flat, a few hundred bytes, the same on every rank."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Final

from vila_data.core.errors import UsageError
from vila_data.core.receipts import fingerprint
from vila_data.encode.config import PackConfig
from vila_data.mix.config import BlendConfig
from vila_data.mix.lengths import Lengths
from vila_data.mix.rank_share import Position
from vila_data.mix.shard_sets import OpenedSet

STATE_VERSION: Final = 2
"""Increase it when the same recipe, shards, seed and epoch give another sequence."""
_IDENTITY: Final = ("seed", "blend", "pack", "tokenizer", "shards")


@dataclass(frozen=True)
class StreamIdentity:
    """What the sequence of packs depends on apart from the epoch: the seed, and fingerprints of 16 hex digits.

    shards: JSON, by source.
    """

    seed: int
    blend: str
    pack: str
    tokenizer: str
    shards: str

    @staticmethod
    def of(
        blend: BlendConfig, pack: PackConfig, seed: int, sets: Sequence[OpenedSet], lengths: Sequence[Lengths]
    ) -> StreamIdentity:
        """The identity of a recipe's sections and the shard sets that were opened for them."""
        shards = {
            f"{number}:{found.name}": fingerprint([found.tokens.inputs, held.fingerprint])
            for number, (found, held) in enumerate(zip(sets, lengths, strict=True))
        }
        return StreamIdentity(
            seed,
            fingerprint(blend.model_dump(mode="json")),
            fingerprint(pack.model_dump(mode="json", exclude={"tokenizer"})),
            sets[0].tokens.tokenizer,
            json.dumps(shards),
        )

    def differences(self, state: Mapping[str, Any]) -> list[str]:
        """How a state's identity differs, as phrases."""
        found = [
            f"{name}: the state has {state.get(name)!r}, this loader has {getattr(self, name)!r}"
            for name in _IDENTITY
            if name != "shards" and state.get(name) != getattr(self, name)
        ]
        theirs, ours = json.loads(state.get("shards") or "{}"), json.loads(self.shards)
        for label in sorted({*theirs, *ours}):
            if theirs.get(label) != ours.get(label):
                name = label.split(":", 1)[1]
                there = (
                    "is not in this stream"
                    if label not in ours
                    else "is new"
                    if label not in theirs
                    else "has other samples"
                )
                found.append(f"shards: set {name!r} {there}")
        return found


def to_state(identity: StreamIdentity, epoch: int, position: Position) -> dict[str, Any]:
    """A flat dict of numbers and strings with fixed keys, which any checkpoint library can save."""
    fixed = {name: getattr(identity, name) for name in _IDENTITY}
    plan = json.dumps(position.plan, separators=(",", ":"))
    return {"version": STATE_VERSION, "epoch": epoch, "packs": position.packs, "plan": plan, **fixed}


def from_state(identity: StreamIdentity, state: Mapping[str, Any]) -> tuple[int, Position]:
    """(epoch, position) of a saved state.

    Raises:
        UsageError: it is not a state, of another version, or of another sequence; the message says what differs.
    """
    if not isinstance(state, Mapping):
        raise UsageError(f"stream state: expected the mapping returned by state_dict(), found {type(state).__name__}")
    if state.get("version") != STATE_VERSION:
        found = state.get("version")
        raise UsageError(f"stream state: its version must be {STATE_VERSION}, found {found!r}")
    try:
        differences = identity.differences(state)
        epoch, packs, plan = index(state["epoch"]), index(state["packs"]), json.loads(state["plan"])
        if epoch < 0 or packs < 0 or not isinstance(plan, dict | None):
            raise ValueError(f"epoch {epoch}, packs {packs}, plan {plan!r}")
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"stream state: it is damaged: {error!r}") from error
    if differences:
        advice = "load it with the same recipe, seed and run, or start without a saved state"
        raise UsageError(f"stream state: it was saved by a different stream: {'; '.join(differences)}; {advice}")
    return epoch, Position(packs, plan)
