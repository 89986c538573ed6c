"""The funnel as a flow: from the metadata down to the shard sets, with a branch for what left at each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from vila_data.core.readable import cut, many, plain, share, short
from vila_data.explore.charts import WIDTH, figure, svg

_BAND: Final = 150
_LIST: Final = 188
_BAR: Final = 9
_LINE: Final = 15
_SHOWN: Final = 6
_FITS: Final = 26
_NAMES: Final = {"select": "selected", "download": "downloaded", "filter": "kept"}


@dataclass(frozen=True)
class Stage:
    """What entered a stage, and what became of it.

    left: {fate: count} of what did not go on; a fate is ``dropped:<rule>`` or ``failed:<error>``.
    """

    name: str
    entered: int
    went_on: int
    left: Mapping[str, int]


def stages(funnel: Mapping[str, Mapping[str, Mapping[str, int]]], unit: str) -> list[Stage]:
    """The stages of one corpus's funnel (run.json) that count `unit`, in order."""
    found = []
    for name, units in funnel.items():
        fates = units.get(unit)
        if fates is not None:
            left = {fate: count for fate, count in fates.items() if fate != "kept" and count}
            found.append(Stage(name, sum(fates.values()), fates.get("kept", 0), left))
    return found


def flow(
    found: Sequence[Stage], *, title: str, unit: str, sets: Sequence[tuple[str, int, int]] = (), made: str = "samples"
) -> Markup:
    """A flow down through the stages; widths are counts, and the numbers beside it sum.

    sets: (name, items of `unit` in it, samples made of them) of the shard sets at its end.
    made: what a set's line under the picture counts where `unit` is records.
    """
    entered = found[0].entered if found else 0
    parts, y = [_node(0, entered, entered, "in the metadata", unit)], 26.0
    for stage in found:
        if stage.name == "select" and not stage.left:
            continue
        gone = sorted(stage.left.items(), key=lambda entry: (-entry[1], entry[0]))
        height = max(58.0, 26.0 + _LINE * min(len(gone), _SHOWN + 1))
        parts.append(_ribbon(y, height, stage, entered))
        parts.append(_branches(y + 14, gone, stage.entered))
        y += height
        parts.append(_node(y, stage.went_on, entered, _NAMES.get(stage.name, stage.name), unit))
        y += 26
    if sets:
        ends = [
            (name, many(*((count, unit) if unit == "images" else (samples, made)))) for name, count, samples in sets
        ]
        parts.append(_sets(y, found[-1].went_on if found else 0, entered, ends))
        y += 20 + _LINE * len(sets)
    rows = _rows(found)
    rows += [(f"set {name}", many(samples, made), f"{count:,}", "") for name, count, samples in sets]
    last = found[-1].went_on if found else 0
    said = f"{title}: of {entered:,} {unit}, {last:,} were kept" + (f" ({share(last, entered)})" if entered else "")
    return figure(title, svg(y + 6, said, parts), ("stage", "fate", unit, "share of stage"), rows)


def _rows(found: Sequence[Stage]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for stage in found:
        fates = [("kept", stage.went_on), *sorted(stage.left.items(), key=lambda entry: (-entry[1], entry[0]))]
        for fate, count in fates:
            rows.append((stage.name, fate.replace(":", ": ", 1), f"{count:,}", share(count, stage.entered)))
    return rows


def _node(y: float, count: int, whole: int, name: str, unit: str) -> Markup:
    of_all = f" · {share(count, whole)}" if whole and count != whole else ""
    figure_text, _, noun = many(count, unit).partition(" ")
    return Markup(
        '<text class="strong" x="0" y="{}">{}<tspan class="soft">{}</tspan></text>'
        '<rect class="groove" x="0" y="{}" width="{}" height="{}" rx="2"/>'
        '<rect class="f0" x="0" y="{}" width="{}" height="{}" rx="2"/>'
    ).format(
        *(y + 11, figure_text + " ", plain(f"{noun} {name}{of_all}")),
        *(y + 16, _BAND, _BAR, y + 16, _width(count, whole), _BAR),
    )


def _ribbon(y: float, height: float, stage: Stage, whole: int) -> Markup:
    """What goes on straight down, what leaves to the right: as wide as their counts."""
    on, off = _width(stage.went_on, whole), _width(stage.entered, whole)
    parts = []
    top, bottom = y, y + height + 15
    if on:
        parts.append(Markup('<path class="on f0" d="M0 {}H{}V{}H0Z"/>').format(top, on, bottom))
    failed = sum(count for fate, count in stage.left.items() if fate.startswith("failed"))
    edge = on
    for tone, count in (("failed-fill", failed), ("dropped-fill", sum(stage.left.values()) - failed)):
        if count:
            wide = max(1.5, (off - on) * count / sum(stage.left.values()))
            thick = min(wide, height - 26)
            parts.append(_branch(edge, wide, y, thick, tone))
            edge += wide
    return Markup("").join(parts)


def _branch(x: float, wide: float, y: float, thick: float, tone: str) -> Markup:
    """A turn to the right: from `wide` units of the bar above to `thick` units at the list."""
    end, low = _LIST - 8.0, y + 8.0
    right = round(min(x + wide, end), 2)
    return Markup('<path class="off {}" d="M{} {}C{} {} {} {} {} {}V{}C{} {} {} {} {} {}Z"/>').format(
        *(tone, round(x, 2), y, round(x, 2), round(low + thick, 2), round(x, 2), round(low + thick, 2)),
        *(end, round(low + thick, 2), low, right, low, right, low, right, y),
    )


def _branches(y: float, gone: Sequence[tuple[str, int]], entered: int) -> Markup:
    shown, more = list(gone[:_SHOWN]), gone[_SHOWN:]
    lines = [(fate.partition(":")[0], fate.partition(":")[2], count) for fate, count in shown]
    if more:
        lines.append(("", f"and {len(more)} more", sum(count for _, count in more)))
    return Markup("").join(
        Markup('<text class="{}-text" x="{}" y="{}">{}</text><text x="{}" y="{}" text-anchor="end">{}</text>').format(
            *(kind or "soft", _LIST, y + _LINE * index + 4, cut(name, 18)),
            *(WIDTH, y + _LINE * index + 4, _amount(name, count, entered)),
        )
        for index, (kind, name, count) in enumerate(lines)
    )


def _amount(name: str, count: int, entered: int) -> str:
    """Count and share, in as many words as fit beside the name."""
    words = f"{count:,} · {share(count, entered)}"
    return words if len(words) + min(len(name), 18) <= _FITS else short(count)


def _sets(y: float, kept: int, whole: int, sets: Sequence[tuple[str, str]]) -> Markup:
    parts = [Markup('<path class="on f0" d="M0 {}H{}V{}H0Z"/>').format(y, _width(kept, whole), y + 8)]
    for index, (name, held) in enumerate(sets):
        figure_text, _, noun = held.partition(" ")
        at = y + 22 + _LINE * index
        parts.append(
            Markup('<text x="0" y="{}"><tspan class="strong">{}</tspan> {}</text>').format(
                at, figure_text, plain(f"{noun} in set {cut(name, 32)}")
            )
        )
    return Markup("").join(parts)


def _width(count: int, whole: int) -> float:
    return round(max(1.0, _BAND * count / whole), 2) if count and whole else 0.0
