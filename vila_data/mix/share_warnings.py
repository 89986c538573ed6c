"""Sources whose share of an epoch is not the recipe's: by how much, why, and which keys change it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from vila_data.mix.blend_report import BlendReport, SourceShare
from vila_data.mix.config import BlendConfig
from vila_data.mix.events import BlendEvent
from vila_data.mix.recipe_shares import blend_of

TOLERANCE: Final = 0.1
"""Of the recipe's share: a difference beyond it is warned of."""
Reason = Literal["exhausted", "others_exhausted", "ended_early", "left_out", "too_few_samples"]


@dataclass(frozen=True)
class ShareWarning:
    """A source's share over the epoch and the recipe's differ by more than TOLERANCE of the latter.

    of: label of the blend of which they are shares, "" for the whole blend; recipe, target, actual: as in
    SourceShare (target is its `asked`, actual its `realised`); pack: of `packs`, where the source or the first of the
    others was exhausted, else None; change: the recipe's keys that change it; text: all of it in a sentence or two.
    """

    source: str
    path: str
    unit: str
    of: str
    recipe: float
    target: float
    actual: float
    reason: Reason
    pack: int | None
    packs: int
    change: tuple[str, ...]
    text: str

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self) | {"change": list(self.change)}


def share_warnings(
    report: BlendReport, blend: BlendConfig, subsets: Mapping[str, str], *, released: bool = False
) -> list[ShareWarning]:
    """Warnings of a whole epoch, in the recipe's order.

    A source is compared in the blend that it is in, so that what changes an inner blend's share is said once, of that
    blend. Shard sets whose differences add up to more, blend by blend, are compared in the whole blend.
    subsets: {a source's place: what its subset takes, in words}. released: the order is that of VILA v1.0.
    """
    sources = {source.path: source for source in report.sources}
    left = {event.source: event for event in reversed(report.events) if event.kind == "left"}
    short = {event.source: event for event in report.events if event.kind == "short"}
    known = _Known(report, blend, subsets, left, short if released else None)
    found: list[ShareWarning] = []
    told: set[str] = set()
    for path, source in sources.items():
        if _differs(source.recipe, source.realised):
            around = sources.get(blend_of(path))
            found.append(known.warning(source, source, around.label if around else ""))
            told.add(path)
    for path, source in sources.items():
        chain = [sources[place] for place in _chain(path)]
        whole = source.of_whole
        if source.passes is None or told & {each.path for each in chain} or not _differs(whole.recipe, whole.actual):
            continue
        found.append(known.warning(source, max(chain, key=_difference), "", whole=True))
    return sorted(found, key=lambda warning: list(sources).index(warning.path))


def _differs(recipe: float, actual: float) -> bool:
    return abs(actual - recipe) > TOLERANCE * recipe + 1e-12


def _difference(source: SourceShare) -> float:
    return abs(source.realised / source.recipe - 1) if source.recipe else 0.0


def _chain(path: str) -> list[str]:
    """A source's place and those of the blends that it is in."""
    found = [path]
    while blend_of(found[-1]):
        found.append(blend_of(found[-1]))
    return found


@dataclass(frozen=True)
class _Known:
    """What reasons are found in. left: the first event of each source that was exhausted; short: of each source whose
    samples v1.0's order leaves out, None for other orders."""

    report: BlendReport
    blend: BlendConfig
    subsets: Mapping[str, str]
    left: Mapping[str, BlendEvent]
    short: Mapping[str, BlendEvent] | None

    def warning(self, source: SourceShare, cause: SourceShare, of: str, *, whole: bool = False) -> ShareWarning:
        """cause: the source in whose blend the reason is: `source`, or a blend that it is in."""
        shares = (source.recipe, source.asked, source.realised)
        if whole:
            shares = (source.of_whole.recipe, source.of_whole.target, source.of_whole.actual)
        reason, pack, because, keys = self._reason(cause)
        change = tuple(f"blend.{key}" if not key.startswith(("pack.", "blend.")) else key for key in keys)
        unit = "the whole blend" if whole else f"the {source.unit}" + f" of {of}" * bool(of)
        recipe, _, actual = (percent(share) for share in shares)
        text = (
            f"{source.label} is {actual} of {unit}, not {recipe} as the recipe says: {because}. "
            f"To change it: {', or '.join(_short(keys))}."
        )
        packs = self.report.packs.packs
        return ShareWarning(
            source.label, source.path, source.unit, of, *shares, reason, pack, packs, change=change, text=text
        )

    def _reason(self, source: SourceShare) -> tuple[Reason, int | None, str, tuple[str, ...]]:
        packs = self.report.packs.packs
        if self.short is not None:
            words = [f"{label}: {event.followed}" for label, event in self.short.items()]
            own = self.short.get(source.label)
            why = own.followed if own else "; ".join(words)
            return (
                "left_out",
                None,
                f"semantics released_code leaves samples out: {why}",
                ("pack.micro_batch", "pack.semantics"),
            )
        subset = f"; {self.subsets[source.path]}" if source.path in self.subsets else ""
        subset_key = (f"{source.path}.subset",) if subset else ()
        if abs(source.asked - source.recipe) >= abs(source.realised - source.asked):
            own = self.left.get(source.label)
            if own is not None and source.asked < source.recipe:
                why = f"exhausted at pack {own.pack:,} of {packs:,}, after {_passes(own, source)}{subset}"
                return "exhausted", own.pack, why, (*_keys(source), *subset_key, "blend.total_packs")
            others = self._others(source)
            if others:
                return self._taken_over(others, packs)
            if self.blend.changes():
                ended = self.report.events[-1].followed if self.report.events else "it is over"
                total = self.blend.total_packs or packs
                why = f"the epoch ends at pack {packs:,} of total_packs {total:,}, before all weights are in effect: {ended}"
                if packs >= total:
                    why = f"weights change between blocks of samples, of which an epoch of {packs:,} packs has few"
                return "ended_early", None, why, ("blend.total_packs", *_keys(source)[:1])
        few = f"too few samples: the epoch has {source.samples:,} of {source.label} in {packs:,} packs{subset}"
        return "too_few_samples", None, few, (*_keys(source)[::2], *subset_key, "blend.total_packs")

    def _others(self, source: SourceShare) -> list[tuple[SourceShare, BlendEvent]]:
        """Exhausted sources of the same blend, the first of them first."""
        found = [
            (other, self.left[other.label])
            for other in self.report.sources
            if other.path != source.path
            and blend_of(other.path) == blend_of(source.path)
            and other.label in self.left
            and self.left[other.label].pack < self.report.packs.packs
        ]
        return sorted(found, key=lambda entry: entry[1].sample)

    def _taken_over(
        self, others: Sequence[tuple[SourceShare, BlendEvent]], packs: int
    ) -> tuple[Reason, int | None, str, tuple[str, ...]]:
        words = [f"{other.label} at pack {event.pack:,}" for other, event in others]
        were, shares = ("were", "their share") if len(others) > 1 else ("was", "its share")
        why = f"{_listed(words, 'and')} of {packs:,} {were} exhausted, and the other sources took {shares}"
        keys = [key for other, _ in others for key in _keys(other)]
        return "others_exhausted", others[0][1].pack, why, (*keys, "blend.total_packs")


def percent(share: float) -> str:
    """A share with enough digits to compare it with another."""
    return f"{share:.1%}" if share >= 0.1 or not share else f"{share:.2%}"


def _keys(source: SourceShare) -> tuple[str, ...]:
    return tuple(f"{source.path}.{key}" for key in ("repeat", "at_exhaustion", "weight"))


def _short(keys: Sequence[str]) -> list[str]:
    """Keys by their source: `repeat, at_exhaustion or weight of blend.sources.1`."""
    named: dict[str, list[str]] = {}
    for key in keys:
        place, _, name = key.rpartition(".")
        named.setdefault(place, []).append(name)
    groups: dict[tuple[str, ...], list[str]] = {}
    for place, names in named.items():
        groups.setdefault(tuple(names), []).append(place)
    words = []
    for each, places in groups.items():
        if places[0] in ("blend", "pack"):
            words += [f"{places[0]}.{name}" for name in each]
        else:
            words.append(f"{_listed(each, 'or')} of {_listed([f'blend.{place}' for place in places], 'or')}")
    return words


def _listed(words: Sequence[str], last: str) -> str:
    return ", ".join(words[:-1]) + f" {last} " * (len(words) > 1) + words[-1]


def _passes(event: BlendEvent, source: SourceShare) -> str:
    passes = f"{event.passes:,} pass" + "es" * (event.passes != 1)
    return f"{passes} over {round(source.samples / source.passes):,} samples" if source.passes else passes
