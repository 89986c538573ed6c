"""Warnings about sources whose share of an epoch differs from the recipe's: by how much, why, and what to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple

from vila_data.mix.config import BlendConfig, parent_path
from vila_data.mix.epoch_report import EpochReport, SourceShare
from vila_data.mix.plan import BlendEvent

TOLERANCE: Final = 0.1
"""A larger difference, relative to the recipe's share, is warned about."""
Reason = Literal["exhausted", "others_exhausted", "ended_early", "left_out", "too_few_samples"]


@dataclass(frozen=True)
class ShareWarning:
    """A source's share over the epoch differs from the recipe's by more than TOLERANCE of it.

    of: label of the blend that the shares refer to, "" for the whole blend; recipe, target, actual: as in SourceShare;
    pack: of `packs`, where the source or the first of the others was exhausted, else None; change: the recipe's keys that
    change it; text: all of this in a sentence or two.
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


def share_warnings(report: EpochReport, blend: BlendConfig, subsets: Mapping[str, str]) -> list[ShareWarning]:
    """Warnings about a whole epoch, in the recipe's order.

    A source is compared within the blend that contains it, so the cause of a nested blend's deviation is reported once,
    for that blend. Shard sets whose deviations add up over several blends are compared within the whole blend.
    subsets: {path: what the source's subset keeps, as text}.
    """
    sources = {source.path: source for source in report.sources}
    explainer = _Explainer(report, blend, subsets)
    found: dict[str, ShareWarning] = {}
    for path, source in sources.items():
        if _differs(source.recipe, source.actual):
            around = sources.get(parent_path(path))
            found[path] = explainer.warning(source, source, around.label if around else "")
    reported = set(found)
    for path, source in sources.items():
        chain = [sources[one] for one in _chain(path)]
        whole = source.of_whole
        if source.passes is None or reported & set(_chain(path)) or not _differs(whole.recipe, whole.actual):
            continue
        found[path] = explainer.warning(source, max(chain, key=_deviation), "", whole=True)
    return [found[path] for path in sources if path in found]


def _differs(recipe: float, actual: float) -> bool:
    return abs(actual - recipe) > TOLERANCE * recipe + 1e-12


def _deviation(source: SourceShare) -> float:
    return abs(source.actual / source.recipe - 1) if source.recipe else 0.0


def _chain(path: str) -> list[str]:
    """A source's path and the paths of the blends around it."""
    found = [path]
    while parent_path(found[-1]):
        found.append(parent_path(found[-1]))
    return found


class _Cause(NamedTuple):
    reason: Reason
    pack: int | None
    text: str
    keys: tuple[str, ...]


class _Explainer:
    """Finds the causes of deviations in an epoch's report."""

    def __init__(self, report: EpochReport, blend: BlendConfig, subsets: Mapping[str, str]) -> None:
        self._report, self._blend, self._subsets = report, blend, subsets
        self._packs = report.packs.packs
        self._removed = {event.source: event for event in reversed(report.events) if event.kind == "removed"}
        self._omitted = {event.source: event for event in report.events if event.kind == "omitted"}

    def warning(self, source: SourceShare, deviating: SourceShare, of: str, *, whole: bool = False) -> ShareWarning:
        """deviating: the source whose own share explains it: `source`, or a blend around it."""
        shares = (source.recipe, source.target, source.actual)
        if whole:
            shares = (source.of_whole.recipe, source.of_whole.target, source.of_whole.actual)
        cause = self._cause(deviating)
        change = tuple(key if key.startswith(("pack.", "blend.")) else f"blend.{key}" for key in cause.keys)
        unit = "the whole blend" if whole else f"the {source.unit}" + f" of {of}" * bool(of)
        recipe, _, actual = (percent(share) for share in shares)
        text = (
            f"{source.label} is {actual} of {unit}; the recipe says {recipe}. Cause: {cause.text}. "
            f"To change this, set {', or '.join(_grouped(cause.keys))}."
        )
        return ShareWarning(
            source.label,
            source.path,
            source.unit,
            of,
            *shares,
            cause.reason,
            cause.pack,
            self._packs,
            change=change,
            text=text,
        )

    def _cause(self, source: SourceShare) -> _Cause:
        if self._omitted:
            own = self._omitted.get(source.label)
            every = "; ".join(f"{label}: {event.followed}" for label, event in self._omitted.items())
            text = f"semantics released_code omits samples: {own.followed if own else every}"
            return _Cause("left_out", None, text, ("pack.micro_batch", "pack.semantics"))
        subset = f"; {self._subsets[source.path]}" if source.path in self._subsets else ""
        subset_key = (f"{source.path}.subset",) if subset else ()
        if abs(source.target - source.recipe) >= abs(source.actual - source.target):
            removed = self._removed.get(source.label)
            if removed is not None and source.target < source.recipe:
                text = f"it was exhausted at pack {removed.pack:,} of {self._packs:,}, after {_passes(removed, source)}{subset}"
                return _Cause("exhausted", removed.pack, text, (*_keys(source), *subset_key, "blend.total_packs"))
            others = self._exhausted_siblings(source)
            if others:
                return self._taken_over(others)
            if self._blend.changes():
                return self._ended_early(source)
        text = f"too few samples: the epoch has {source.samples:,} of {source.label} in {self._packs:,} packs{subset}"
        return _Cause("too_few_samples", None, text, (*_keys(source)[::2], *subset_key, "blend.total_packs"))

    def _exhausted_siblings(self, source: SourceShare) -> list[tuple[SourceShare, BlendEvent]]:
        """Exhausted sources of the same blend, in the order in which they were."""
        found = [
            (other, self._removed[other.label])
            for other in self._report.sources
            if other.path != source.path
            and parent_path(other.path) == parent_path(source.path)
            and other.label in self._removed
            and self._removed[other.label].pack < self._packs
        ]
        return sorted(found, key=lambda entry: entry[1].sample)

    def _taken_over(self, others: Sequence[tuple[SourceShare, BlendEvent]]) -> _Cause:
        (first, event), *more = others
        words = [f"{first.label} was exhausted at pack {event.pack:,} of {self._packs:,}"]
        words += [f"{other.label} at pack {later.pack:,}" for other, later in more]
        text = f"{_listed(words, 'and')}; the other sources took {'their shares' if more else 'its share'}"
        keys = [key for other, _ in others for key in _keys(other)]
        return _Cause("others_exhausted", event.pack, text, (*keys, "blend.total_packs"))

    def _ended_early(self, source: SourceShare) -> _Cause:
        total = self._blend.total_packs or self._packs
        ended = self._report.events[-1].followed if self._report.events else "it is over"
        text = (
            f"the epoch ends at pack {self._packs:,} of total_packs {total:,}, before all weights apply: {ended}"
            if self._packs < total
            else f"weights change between blocks of samples, and an epoch of {self._packs:,} packs has few blocks"
        )
        return _Cause("ended_early", None, text, ("blend.total_packs", *_keys(source)[:1]))


def percent(share: float) -> str:
    """A share with enough digits to compare it with another."""
    return f"{share:.1%}" if share >= 0.1 or not share else f"{share:.2%}"


def _keys(source: SourceShare) -> tuple[str, ...]:
    return tuple(f"{source.path}.{key}" for key in ("repeat", "on_exhaustion", "weight"))


def _grouped(keys: Sequence[str]) -> list[str]:
    """Keys by their source: `repeat, on_exhaustion or weight of blend.sources.1`."""
    names_of: dict[str, list[str]] = {}
    for key in keys:
        path, _, name = key.rpartition(".")
        names_of.setdefault(path, []).append(name)
    paths_of: dict[tuple[str, ...], list[str]] = {}
    for path, names in names_of.items():
        paths_of.setdefault(tuple(names), []).append(path)
    words = []
    for group, paths in paths_of.items():
        if paths[0] in ("blend", "pack"):
            words += [f"{paths[0]}.{name}" for name in group]
        else:
            words.append(f"{_listed(group, 'or')} of {_listed([f'blend.{path}' for path in paths], 'or')}")
    return words


def _listed(words: Sequence[str], last: str) -> str:
    return ", ".join(words[:-1]) + f" {last} " * (len(words) > 1) + words[-1]


def _passes(event: BlendEvent, source: SourceShare) -> str:
    passes = f"{event.passes:,} pass" + "es" * (event.passes != 1)
    return f"{passes} over {round(source.samples / source.passes):,} samples" if source.passes else passes
