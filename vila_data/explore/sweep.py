"""The page of a sweep: curves of what is kept, the value in force, and what lies at each cut."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from vila_data.core.readable import share
from vila_data.core.store import Store
from vila_data.explore.charts import Mark, curve
from vila_data.explore.page import page
from vila_data.explore.thumbnail import Thumbnail
from vila_data.explore.whatif_table import moving, show_value

_UNITS: Final = ("images", "records")


@dataclass(frozen=True)
class Example:
    """An image or a record near a cut. image_index: None for a record; value: what the rule compares, for people."""

    record_id: str
    image_index: int | None
    value: str
    words: str
    pictures: tuple[Thumbnail, ...]


@dataclass(frozen=True)
class CutExamples:
    """What lies at one cut in one corpus, the nearest first. place: of the value in the sweep."""

    place: int
    corpus: str
    dropped: tuple[Example, ...]
    kept: tuple[Example, ...]


@dataclass(frozen=True)
class Row:
    """One corpus at one value, as shown. change: kept images and records, less those at the value in force."""

    corpus: str
    kept: dict[str, int]
    share: dict[str, str]
    change: dict[str, str]
    unknown: dict[str, int]
    unscored: int


@dataclass(frozen=True)
class Cut:
    """One value of the sweep with all that is shown of it. sets: (name, samples, images)."""

    place: int
    value: str
    in_force: bool
    rows: tuple[Row, ...]
    sets: tuple[tuple[str, int, int], ...]
    examples: tuple[CutExamples, ...]


def write_sweep(out: str, value: Mapping[str, Any], examples: Sequence[CutExamples]) -> None:
    """Write the page to a file or URL, atomically."""
    folder, name = os.path.split(out)
    Store(folder or ".").commit_bytes(sweep_page(value, examples).encode(), name)


def sweep_page(value: Mapping[str, Any], examples: Sequence[CutExamples]) -> str:
    """The HTML of a sweep. value: its JSON (workflow.whatif.sweep.SweepAnswer)."""
    shown, flat = moving(value)
    value = {**value, "corpora": shown}
    examples = [one for one in examples if one.corpus in shown]
    return page(
        "sweep.html",
        title=f"What if {value['key'].rsplit('.', 1)[1]} were another?",
        scripts=["sweep.js"],
        styles=["charts.css", "sweep.css"],
        run=value["run"].rstrip("/").rsplit("/", 1)[-1],
        key=value["key"],
        asked=value["asked"],
        untouched=value["untouched"],
        flat=flat,
        in_force=show_value(value["in_force"]),
        several=len(value["corpora"]) > 1,
        charts=_charts(value),
        cuts=_cuts(value, examples),
        start=_start(value, examples),
        with_examples=bool(examples),
        unscored={
            name: max(corpus["unscored"]) for name, corpus in value["corpora"].items() if any(corpus["unscored"])
        },
    )


def _charts(value: Mapping[str, Any]) -> list[tuple[str, list[Markup]]]:
    """(share or count, [images, records]); none where the values are no numbers."""
    values = value["values"]
    if len(values) < 2 or not all(_is_number(one) for one in values):
        return []
    key = value["key"].rsplit(".", 1)[1]
    mark = Mark("in force", value["in_force"]) if _is_number(value["in_force"]) else None
    if mark is not None and not min(values) <= mark.at <= max(values):
        mark = None
    found = []
    for kind in ("share", "count"):
        charts = []
        for unit in _UNITS:
            title = f"{unit.capitalize()} kept"
            y_unit = f"% of {unit}" if kind == "share" else unit
            charts.append(curve(values, _lines(value, unit, kind), title=title, x_unit=key, y_unit=y_unit, mark=mark))
        found.append((kind, charts))
    return found


def _lines(value: Mapping[str, Any], unit: str, kind: str) -> dict[str, list[float]]:
    lines = {}
    for name, corpus in value["corpora"].items():
        scale = 100 / max(1, corpus["entered"][unit]) if kind == "share" else 1
        lines[name] = [round(count * scale, 3) for count in corpus["kept"][unit]]
        unknown = corpus["unknown"][unit]
        if any(unknown):
            most = zip(corpus["kept"][unit], unknown, strict=True)
            lines[f"{name}, if all unknown pass"] = [round((kept + more) * scale, 3) for kept, more in most]
    return lines


def _cuts(value: Mapping[str, Any], examples: Sequence[CutExamples]) -> list[Cut]:
    by_place: dict[int, list[CutExamples]] = {}
    for one in examples:
        by_place.setdefault(one.place, []).append(one)
    return [
        Cut(
            place,
            show_value(step),
            step == value["in_force"],
            tuple(_row(name, corpus, place) for name, corpus in value["corpora"].items()),
            tuple(
                (name, found["samples"][place], found["images"][place])
                for name, found in value["sets"].items()
                if found["corpus"] in value["corpora"]
            ),
            tuple(by_place.get(place, ())),
        )
        for place, step in enumerate(value["values"])
    ]


def _row(name: str, corpus: Mapping[str, Any], place: int) -> Row:
    kept = {unit: corpus["kept"][unit][place] for unit in _UNITS}
    entered, before = corpus["entered"], corpus["in_force"]
    return Row(
        name,
        kept,
        {unit: share(kept[unit], entered[unit]) for unit in _UNITS},
        {unit: f"{kept[unit] - before[unit]:+,}" if kept[unit] != before[unit] else "same" for unit in _UNITS},
        {unit: corpus["unknown"][unit][place] for unit in _UNITS},
        corpus["unscored"][place],
    )


def _start(value: Mapping[str, Any], examples: Sequence[CutExamples]) -> int:
    """The value that is shown first: the one in force, else the nearest to it, else the middle one."""
    values, in_force = value["values"], value["in_force"]
    if in_force in values:
        return int(values.index(in_force))
    places = sorted({one.place for one in examples}) or list(range(len(values)))
    if _is_number(in_force) and all(_is_number(values[place]) for place in places):
        return min(places, key=lambda place: abs(values[place] - in_force))
    return places[len(places) // 2]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
