"""The funnel as flow diagrams: one corpus stage by stage, and all corpora of a run in one drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

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

    def fates_by_count(self) -> list[tuple[str, int]]:
        """What left, the most frequent fate first."""
        return sorted(self.left.items(), key=lambda entry: (-entry[1], entry[0]))


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
    made: what a set's line under the drawing counts where `unit` is records.
    """
    entered = found[0].entered if found else 0
    parts, y = [_node(0, entered, entered, "in the metadata", unit)], 26.0
    for stage in found:
        if stage.name == "select" and not stage.left:
            continue
        gone = stage.fates_by_count()
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
        fates = [("kept", stage.went_on), *stage.fates_by_count()]
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
    right = min(x + wide, end)
    return _band(
        f"off {tone}",
        [(x, y), (x, low + thick), (x, low + thick), (end, low + thick)],
        [(end, low), (right, low), (right, low), (right, y)],
    )


def _band(classes: str, there: Sequence[tuple[float, float]], back: Sequence[tuple[float, float]]) -> Markup:
    """A filled band between two Bézier curves of four points each: along `there`, then along `back`."""
    a, b, c, d, e, f, g, h = (f"{round(x, 2)} {round(y, 2)}" for x, y in (*there, *back))
    return Markup('<path class="{}" d="M{}C{} {} {}L{}C{} {} {}Z"/>').format(classes, a, b, c, d, e, f, g, h)


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


_WIDE: Final = 1080
_COLUMNS: Final = (0, 360, 680, 900)
_LANE_BAR: Final = 12
_TOP: Final = 44
_TALL: Final = 280
_GAP: Final = 26
_LINES: Final = 4
_COLORS: Final = 8


@dataclass(frozen=True)
class _Lane:
    """One corpus: what was named, fetched and kept, and its sets."""

    name: str
    color: str
    stages: Sequence[Stage]
    sets: Sequence[tuple[str, int]]

    def heights(self) -> list[int]:
        """Counts at the columns: in the metadata, downloaded, kept."""
        return [self.stages[0].entered, *(stage.went_on for stage in self.stages)]


def overview(totals: Mapping[str, Any]) -> Markup | None:
    """The images of all corpora on their way, as one flow; None where none was decided on."""
    lanes = []
    for number, (name, funnel) in enumerate(totals["funnel"].items()):
        found = [stage for stage in stages(funnel, "images") if stage.name in ("download", "filter")]
        if len(found) == 2 and found[0].entered:
            sets = [(key, entry["images"]) for key, entry in totals["sets"].items() if entry["corpus"] == name]
            lanes.append(_Lane(name, f"f{number % _COLORS}", found, sets))
    if not lanes:
        return None
    made = [(key, count, lane) for lane in lanes for key, count in lane.sets]
    room = _TALL - _GAP * max(len(lanes), len(made))
    scale = max(40.0, room) / max(sum(lane.heights()[0] for lane in lanes), sum(count for _, count, _ in made))
    parts = [_headings(lanes)]
    tops = _tops([lane.heights()[0] * scale for lane in lanes])
    ends = dict(zip([key for key, _, _ in made], _tops([count * scale for _, count, _ in made]), strict=True))
    bottom = max(
        [top + lane.heights()[0] * scale for top, lane in zip(tops, lanes, strict=True)]
        + [ends[key] + count * scale for key, count, _ in made]
    )
    parts += [_sinks(lanes, tops, scale, bottom + 30)]
    for lane, top in zip(lanes, tops, strict=True):
        parts.append(_lane(lane, top, scale, ends))
    height = bottom + 62 + 15 * _LINES
    twice = [", ".join(key for key, _ in lane.sets) for lane in lanes if len(lane.sets) > 1]
    note = f"The same images are in {'; and in '.join(twice)}. " if twice else ""
    bare = sorted(set(totals["funnel"]) - {lane.name for lane in lanes})
    note += f"Without images: {', '.join(bare)}." if bare else ""
    return figure(
        "Images, all corpora", svg(height, _said_lanes(lanes), parts, _WIDE), _HEADINGS, _lane_rows(lanes), note
    )


_HEADINGS: Final = ("corpus", "in the metadata", "downloaded", "kept", "share", "sets")


def _lane_rows(lanes: Sequence[_Lane]) -> list[tuple[str, ...]]:
    return [
        (
            lane.name,
            *(f"{count:,}" for count in lane.heights()),
            share(lane.heights()[-1], lane.heights()[0]),
            ", ".join(f"{key} {count:,}" for key, count in lane.sets),
        )
        for lane in lanes
    ]


def _said_lanes(lanes: Sequence[_Lane]) -> str:
    entered, kept = (sum(lane.heights()[at] for lane in lanes) for at in (0, -1))
    each = "; ".join(f"{lane.name} {lane.heights()[-1]:,} of {lane.heights()[0]:,}" for lane in lanes)
    return f"Images, all corpora: {kept:,} of {entered:,} were kept ({share(kept, entered)}): {each}"


def _tops(heights: Sequence[float]) -> list[float]:
    """Where each bar of a column begins."""
    found, at = [], float(_TOP)
    for height in heights:
        at += _GAP - 8
        found.append(round(at, 2))
        at += height + 8
    return found


def _headings(lanes: Sequence[_Lane]) -> Markup:
    sums = [sum(lane.heights()[at] for lane in lanes) for at in range(3)]
    sums.append(sum(count for lane in lanes for _, count in lane.sets))
    parts = []
    for x, name, count in zip(_COLUMNS, ("in the metadata", "downloaded", "kept", "in shard sets"), sums, strict=True):
        of_all = f" · {share(count, sums[0])}" if 0 < x < _COLUMNS[3] else ""
        parts.append(
            Markup('<text class="big" x="{}" y="15">{}</text><text x="{}" y="31">{}</text>').format(
                x, f"{count:,}", x, f"images {name}{of_all}"
            )
        )
    return Markup("").join(parts)


def _lane(lane: _Lane, top: float, scale: float, ends: Mapping[str, float]) -> Markup:
    parts = []
    heights = [round(count * scale, 2) for count in lane.heights()]
    for at in range(2):
        parts.append(
            _ribbon_across(_COLUMNS[at] + _LANE_BAR, top, _COLUMNS[at + 1], top, heights[at + 1], f"on {lane.color}")
        )
    for key, count in lane.sets:
        tall = round(count * scale, 2)
        parts.append(
            _ribbon_across(
                _COLUMNS[2] + _LANE_BAR, top, _COLUMNS[3], ends[key], min(tall, heights[2]), f"on {lane.color}"
            )
        )
        parts.append(_bar(_COLUMNS[3], ends[key], tall, lane.color))
        parts.append(_label(_COLUMNS[3] + _LANE_BAR + 8, ends[key] + tall / 2 + 4, f"{count:,}", f"set {key}"))
    for at, tall in enumerate(heights):
        parts.append(_bar(_COLUMNS[at], top, tall, lane.color))
        parts.append(_label(_COLUMNS[at], top - 5, f"{lane.heights()[at]:,}", lane.name if at == 0 else ""))
    return Markup("").join(parts)


def _sinks(lanes: Sequence[_Lane], tops: Sequence[float], scale: float, y: float) -> Markup:
    """What left at each stage, bent down into one place, with its reasons."""
    parts = []
    for at, (kind, tone) in enumerate((("failed", "failed"), ("dropped", "dropped"))):
        left = _COLUMNS[at] + 210
        x = float(left)
        reasons: dict[str, int] = {}
        for lane, top in zip(lanes, tops, strict=True):
            stage = lane.stages[at]
            gone = sum(stage.left.values())
            for fate, count in stage.left.items():
                reasons[fate.partition(":")[2]] = reasons.get(fate.partition(":")[2], 0) + count
            if gone:
                wide = max(1.5, gone * scale)
                begin = round(top + stage.went_on * scale, 2)
                parts.append(_bend(_COLUMNS[at] + _LANE_BAR, begin, round(wide, 2), round(x, 2), y, tone))
                x += wide
        total = sum(reasons.values())
        if total:
            ordered = sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))
            parts.append(_label(left, y + 16, f"{total:,}", kind))
            parts += [_reasons(left, y + 31, ordered)]
    return Markup("").join(parts)


def _reasons(x: float, y: float, ordered: Sequence[tuple[str, int]]) -> Markup:
    """Reasons in two columns of lines."""
    shown = list(ordered[: 2 * _LINES])
    if len(ordered) > len(shown):
        more = ordered[len(shown) - 1 :]
        shown[-1] = (f"{len(more)} more", sum(count for _, count in more))
    return Markup("").join(
        Markup('<text x="{}" y="{}">{}</text>').format(
            x + 150 * (index // _LINES), y + 15 * (index % _LINES), f"{cut(name, 18)} {count:,}"
        )
        for index, (name, count) in enumerate(shown)
    )


def _bar(x: float, y: float, tall: float, tone: str) -> Markup:
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="1.5"/>').format(
        tone, x, y, _LANE_BAR, max(1.0, tall) if tall else 0
    )


def _label(x: float, y: float, figure_text: str, words: str) -> Markup:
    return Markup('<text x="{}" y="{}"><tspan class="strong">{}</tspan> {}</text>').format(
        x, round(y, 2), figure_text, plain(cut(words, 30))
    )


def _ribbon_across(x0: float, y0: float, x1: float, y1: float, tall: float, classes: str) -> Markup:
    """A ribbon from one column to the next."""
    middle = (x0 + x1) / 2
    there = [(x0, y0), (middle, y0), (middle, y1), (x1, y1)]
    return _band(classes, there, [(x, y + tall) for x, y in reversed(there)]) if tall else Markup("")


def _bend(x0: float, y0: float, wide: float, x1: float, y1: float, tone: str) -> Markup:
    """A ribbon that leaves to the right and turns down."""
    right, low = x1 + wide, y0 + wide
    return _band(
        f"off {tone}-fill",
        [(x0, y0), (right, y0), (right, y0), (right, y1)],
        [(x1, y1), (x1, low), (x1, low), (x0, low)],
    )
