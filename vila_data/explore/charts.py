"""Charts as SVG in HTML, drawn without a script: every value is escaped, every color is a class of charts.css.

A chart is a <figure>: its title, the drawing (role="img", with a sentence as its label), and the numbers as a table that
can be opened. Sizes are in SVG units, chosen so that the text is readable at a phone's width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from markupsafe import Markup

from vila_data.core.readable import cut, plain, share, short
from vila_data.explore.rows import SHARE_HEADINGS, SHARE_NOTE, ShareRow

WIDTH: Final = 360
_HEIGHT: Final = 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 26, 38
_PLOT_W, _PLOT_H = WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_ROW: Final = 34
_LABEL: Final = 40
_SERIES: Final = 8
_GLYPH: Final = 6.4


@dataclass(frozen=True)
class Marker:
    """A value to be drawn as a line across the chart, with its label, such as the current threshold."""

    label: str
    at: float


Markers = Marker | float | Sequence[Marker] | None
"""What may be marked: nothing, the current value, or named values."""


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    title: str,
    unit: str,
    marker: Markers = None,
    of: str = "count",
    note: str = "",
    kept: Sequence[int] | None = None,
) -> Markup:
    """Counts between `edges` (one more than counts, rising; the last may be infinite) as columns of equal width.

    unit: what the edges measure. of: what is counted. note: a sentence beneath.
    kept: how many of each count were kept; the others stand on them in the color of what was dropped.

    Raises:
        ValueError: the edges do not rise, or are not one more than the counts.
    """
    edges = [float(edge) for edge in edges]
    if len(edges) != len(counts) + 1 or not all(a < b for a, b in pairwise(edges)):
        raise ValueError(f"{title}: {len(counts)} counts between edges {edges}")
    total, top = sum(counts), above(max(counts, default=0), whole=True)
    width = _PLOT_W / max(1, len(counts))
    parts = [_y_axis(0.0, top, of, whole=True)]
    parts += _columns(edges, counts, kept, top)
    middle = 0.5 * width if _whole_numbers(edges) else 0.0
    places = [
        (_LEFT + _column_position(edges, at) * width + middle, short(at))
        for at in _edge_ticks(edges)
        if at < edges[-1] or not middle
    ]
    parts.append(_x_axis(places, unit))
    parts.append(_draw_markers(marker, lambda at: _LEFT + _column_position(edges, at) * width))
    if not total:
        parts.append(_nothing())
    said = f"{title}: {total:,} counted"
    if total:
        most = max(range(len(counts)), key=lambda index: counts[index])
        said += f"; most, {counts[most]:,}, at {_between(edges[most], edges[most + 1])} {unit}"
    rows = [
        (_between(edges[i], edges[i + 1]), f"{n:,}", *((f"{kept[i]:,}",) if kept is not None else ()), share(n, total))
        for i, n in enumerate(counts)
    ]
    headings = (unit, of, *(("kept",) if kept is not None else ()), "share")
    legend = (("kept-fill", "kept"), ("dropped-fill", "dropped")) if kept is not None else ()
    return figure(title, svg(_HEIGHT, said + _said_markers(marker), parts), headings, rows, note, legend)


def _columns(edges: Sequence[float], counts: Sequence[int], kept: Sequence[int] | None, top: float) -> Iterator[Markup]:
    """A rectangle per count; with `kept`, that many at its foot in the color of the kept."""
    total, width = sum(counts), _PLOT_W / max(1, len(counts))
    for index, count in enumerate(counts):
        tip = f"{_between(edges[index], edges[index + 1])}: {count:,}"
        tip += f", {kept[index]:,} kept" if kept is not None else f" ({share(count, total)})"
        under = 0.0
        for tone, upto in [("f0", count)] if kept is None else [("kept-fill", kept[index]), ("dropped-fill", count)]:
            high = max(1.0, _PLOT_H * upto / top) if upto else 0.0
            if high > under:
                yield Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                    *(tone, _n(_LEFT + index * width + 0.5), _n(_TOP + _PLOT_H - high)),
                    *(_n(max(0.5, width - 1)), _n(high - under), tip),
                )
            under = max(high, under)


def bars(
    rows: Sequence[tuple[str, int]], *, title: str, tone: str = "f0", of: str = "count", total: int | None = None
) -> Markup:
    """Counts by name as rows, in the order given.

    tone: class of the bars' color. total: what the shares are of; the rows' sum where it is None.
    """
    whole = sum(count for _, count in rows) if total is None else total
    most = max((count for _, count in rows), default=0) or 1
    parts = []
    for index, (name, count) in enumerate(rows):
        y, long = 4 + index * _ROW, max(1.0 if count else 0.0, WIDTH * count / most)
        value = f"{count:,}" + (f" · {share(count, whole)}" if whole else "")
        parts.append(
            Markup(
                '<g><title>{}</title><text x="0" y="{}">{}</text><text x="{}" y="{}" text-anchor="end">{}</text>'
                '<rect class="groove" x="0" y="{}" width="{}" height="8" rx="4"/>'
                '<rect class="{}" x="0" y="{}" width="{}" height="8" rx="{}"/></g>'
            ).format(
                plain(f"{name}: {value}"),
                *(_n(y + 12), cut(name, _LABEL), WIDTH, _n(y + 12), value),
                *(_n(y + 18), WIDTH, tone, _n(y + 18), _n(long), _n(min(4.0, long / 2))),
            )
        )
    said = f"{title}: " + (", ".join(f"{name} {count:,}" for name, count in rows[:8]) or "nothing counted")
    table = [(name, f"{count:,}", share(count, whole)) for name, count in rows]
    height = max(30, 6 + len(rows) * _ROW)
    return figure(title, svg(height, said, parts or [_nothing(18)]), ("", of, "share"), table)


def curve(
    xs: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    x_unit: str,
    y_unit: str,
    marker: Markers = None,
) -> Markup:
    """Lines over `xs`, one per series, from zero up; what is not finite is left out.

    marker: where the current value is on the x axis.

    Raises:
        ValueError: a line has not one value for each x.
    """
    known = [float(x) for x in xs if math.isfinite(x)]
    values = [float(y) for line in series.values() for y in line if math.isfinite(y)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    bottom = -above(-min(values, default=0.0)) if min(values, default=0.0) < 0 else 0.0
    top = above(max(values, default=0.0)) if max(values, default=0.0) > 0 or not bottom else 0.0
    span = high - low or 1.0

    def across(x: float) -> float:
        return _LEFT + _PLOT_W * min(1.0, max(0.0, (x - low) / span))

    parts = [_y_axis(bottom, top, y_unit), _x_axis([(across(at), short(at)) for at in ticks(low, high, 6)], x_unit)]
    for number, (name, line) in enumerate(series.items()):
        points = [
            (x, y, across(x), _TOP + _PLOT_H * (top - y) / (top - bottom))
            for x, y in zip(xs, line, strict=True)
            if math.isfinite(x) and math.isfinite(y)
        ]
        tone, drawn = f"s{number % _SERIES}", " ".join(f"{_n(px)},{_n(py)}" for _, _, px, py in points)
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(tone, drawn))
        for x, y, px, py in points if len(points) <= 60 else ():
            tip = plain(f"{name}: {_exact(y)} {y_unit} at {_exact(x)} {x_unit}")
            parts.append(
                Markup('<circle class="f{}" cx="{}" cy="{}" r="3"><title>{}</title></circle>').format(
                    number % _SERIES, _n(px), _n(py), tip
                )
            )
    parts.append(_draw_markers(marker, across))  # above the lines: its words are read
    if not values:
        parts.append(_nothing())
    said = f"{title}: {len(series)} lines over {len(known)} values of {x_unit}" + _said_markers(marker)
    rows = [(_exact(x), *(_exact(line[i]) for line in series.values())) for i, x in enumerate(xs)]
    legend = [(f"f{number % _SERIES}", name) for number, name in enumerate(series)]
    return figure(title, svg(_HEIGHT, said, parts), (x_unit, *series), rows, legend=legend)


def svg(height: float, said: str, parts: Sequence[Markup], width: int = WIDTH) -> Markup:
    """A drawing that a screen reader reads as one sentence."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, _n(height), plain(said), Markup("").join(parts)
    )


def figure(
    title: str,
    drawing: Markup,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    note: str = "",
    legend: Sequence[tuple[str, str]] = (),
) -> Markup:
    """A chart with its title, its key and its numbers. legend: class of the color, and what it stands for."""
    key = Markup("").join(
        Markup(
            '<li><svg class="swatch" viewBox="0 0 12 12" aria-hidden="true"><rect class="{}" width="12" height="12" '
            'rx="2"/></svg> <bdi>{}</bdi></li>'
        ).format(tone, plain(name))
        for tone, name in legend
    )
    return Markup('<figure class="chart"><figcaption>{}</figcaption>{}{}{}{}</figure>').format(
        plain(title),
        drawing,
        Markup('<ul class="legend">{}</ul>').format(key) if legend else "",
        Markup('<p class="soft">{}</p>').format(plain(note)) if note else "",
        numbers(headings, rows, title),
    )


def numbers(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> Markup:
    """The table beside a chart, closed: the first column names, the others are numbers."""
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(Markup(' class="n"') if index else "", plain(text))
        for index, text in enumerate(headings)
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup('<td class="n">{}</td>' if index else '<th scope="row"><bdi>{}</bdi></th>').format(plain(text))
                for index, text in enumerate(row)
            )
        )
        for row in rows
    )
    return Markup(
        '<details><summary>Numbers<span class="hidden-text">: {}</span></summary><div class="wide" tabindex="0" '
        'role="region" aria-label="{}"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div></details>'
    ).format(plain(title), plain(f"Numbers: {title}"), head, body)


def _y_axis(bottom: float, top: float, unit: str, *, whole: bool = False) -> Markup:
    parts = [Markup('<text class="unit" x="{}" y="12">{}</text>').format(_LEFT, cut(unit, _LABEL))]
    for at in ticks(bottom, top, 5, whole=whole):
        y = _TOP + _PLOT_H * (top - at) / (top - bottom)
        parts.append(
            Markup(
                '<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" text-anchor="end">{}</text>'
            ).format(
                "axis" if at == 0 else "grid", _LEFT, WIDTH - _RIGHT, _n(y), _n(y), _LEFT - 6, _n(y + 4), short(at)
            )
        )
    return Markup("").join(parts)


def _fits(x: float, text: str) -> bool:
    """Whether a text with its middle at `x` ends within the drawing."""
    return x + _GLYPH * len(text) / 2 <= WIDTH


def _x_axis(places: Sequence[tuple[float, str]], unit: str) -> Markup:
    """Ticks with their texts; a text that would touch the one before it is left out."""
    base = _TOP + _PLOT_H
    fitting: list[tuple[float, str]] = []
    for x, text in places:
        seen_at = min(x, WIDTH - _GLYPH * len(text) / 2)
        if not fitting or seen_at - fitting[-1][0] > _GLYPH * (len(text) + len(fitting[-1][1])) / 2 + 6:
            fitting.append((x, text))
    parts = [
        Markup(
            '<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" text-anchor="{}">{}</text>'
        ).format(
            *(_n(x), _n(x), base, base + 4, _n(x if _fits(x, text) else WIDTH - 1.0), base + 17),
            *("middle" if _fits(x, text) else "end", text),
        )
        for x, text in fitting
    ]
    parts.append(
        Markup('<text class="unit" x="{}" y="{}" text-anchor="end">{}</text>').format(
            WIDTH - _RIGHT, base + 34, cut(unit, _LABEL)
        )
    )
    return Markup("").join(parts)


def _draw_markers(marker: Markers, across: Callable[[float], float]) -> Markup:
    drawn = []
    for found in _as_markers(marker):
        x = across(found.at)
        left = x > _LEFT + _PLOT_W * 0.6
        drawn.append(
            Markup(
                '<line class="mark" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<text class="mark" x="{}" y="{}" text-anchor="{}">{}</text>'
            ).format(
                *(_n(x), _n(x), _TOP - 6, _TOP + _PLOT_H, _n(x - 5 if left else x + 5), _TOP + 4),
                *("end" if left else "start", cut(_marker_text(found), 40)),
            )
        )
    return Markup("").join(drawn)


def _as_markers(marker: Markers) -> Sequence[Marker]:
    if marker is None or isinstance(marker, Marker):
        return () if marker is None else (marker,)
    return (Marker("now", float(marker)),) if isinstance(marker, int | float) else marker


def _marker_text(marker: Marker) -> str:
    return f"{marker.label} {_exact(marker.at)}"


def _said_markers(marker: Markers) -> str:
    return "".join(f"; line at {_marker_text(found)}" for found in _as_markers(marker))


def _nothing(y: float = _TOP + _PLOT_H / 2) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="middle">nothing counted</text>').format(WIDTH / 2, _n(y))


def _column_position(edges: Sequence[float], value: float) -> float:
    """Position of a value among the columns, in columns from the left."""
    if value <= edges[0]:
        return 0.0
    for index, (low, high) in enumerate(pairwise(edges)):
        if value < high:
            return index + ((value - low) / (high - low) if math.isfinite(high) else 0.5)
    return len(edges) - 1.0


def _edge_ticks(edges: Sequence[float]) -> list[float]:
    """Round numbers where the columns are equally wide; else some of the edges."""
    steps = [b - a for a, b in pairwise(edges)]
    if all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps):
        return ticks(edges[0], edges[-1], 6)
    return list(edges[:: max(1, math.ceil(len(edges) / 9))])


def _whole_numbers(edges: Sequence[float]) -> bool:
    """Whether each column is one whole number: it is then named at its middle."""
    return all(edge == int(edge) for edge in edges[:-1]) and all(high - low == 1 for low, high in pairwise(edges))


def _between(low: float, high: float) -> str:
    if math.isinf(high):
        return f"{short(low)} or more"
    if low == int(low) and high == low + 1:
        return short(low)
    return f"{short(low)} to {short(high)}"


def _exact(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return f"{int(value):,}" if value == int(value) else f"{value:.6g}"


def _n(value: float) -> str:
    """A coordinate: two digits after the point at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


_SHARE_ROW: Final = 60
_INDENT: Final = 18


def shares(rows: Sequence[ShareRow], *, title: str) -> Markup:
    """Three bars per source: actual, and below it target and recipe."""
    parts = [_share_bars(row, 4 + index * _SHARE_ROW) for index, row in enumerate(rows)]
    said = f"{title}: " + "; ".join(f"{row.name} {_said_shares(row)}" for row in rows)
    table = [(row.name, row.unit, *row.percents()) for row in rows]
    return figure(
        title,
        svg(max(30, 6 + _SHARE_ROW * len(rows)), said, parts),
        SHARE_HEADINGS,
        table,
        note=SHARE_NOTE,
        legend=[("f0", "actual"), ("f7", "target"), ("f5", "recipe")],
    )


def _share_bars(row: ShareRow, y: int) -> Markup:
    x = row.depth * _INDENT
    wide = WIDTH - x
    bars = [("f0", 33, 9, row.actual), ("f7", 44, 4, row.target), ("f5", 49, 4, row.recipe or 0.0)]
    return Markup(
        '<g><title>{}</title><text x="{}" y="{}"><tspan class="strong">{}</tspan> of the {}</text>'
        '<text class="soft" x="{}" y="{}">{}</text><rect class="groove" x="{}" y="{}" width="{}" height="20" rx="3"/>{}</g>'
    ).format(
        plain(f"{row.name}, of the {row.unit}: {_said_shares(row, 2)}"),
        *(x, y + 12, cut(row.name, 34), plain(row.unit), x, y + 27, _said_shares(row), x, y + 33, wide),
        Markup("").join(
            Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="2"/>').format(
                tone, x, y + top, round(wide * min(1.0, share), 2), height
            )
            for tone, top, height, share in bars
        ),
    )


def _said_shares(row: ShareRow, digits: int = 1) -> str:
    recipe, target, actual = row.percents(digits)
    return f"actual {actual}, target {target}" + f", recipe {recipe}" * bool(recipe)


def ticks(low: float, high: float, about: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, both included where they are round: steps of 1, 2 or 5 times a power of ten.

    whole: whole numbers only.
    """
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    step = _step(span, about, whole)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def above(value: float, about: int = 5, *, whole: bool = False) -> float:
    """The first round number that is not below `value`: where an axis from zero ends."""
    if value <= 0:
        return 1.0
    step = _step(value, about, whole)
    return math.ceil(value / step - 1e-9) * step


def _step(span: float, about: int, whole: bool) -> float:
    step = 10.0 ** math.floor(math.log10(span / about))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= about)
    return max(1.0, step) if whole else step
