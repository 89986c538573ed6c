"""The page of a sweep: curves of what is kept, the current value, and examples on both sides of each threshold."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from markupsafe import Markup

from vila_data.core.errors import DataError
from vila_data.core.readable import share
from vila_data.core.records import Record
from vila_data.core.store import Store
from vila_data.explore.charts import Marker, curve
from vila_data.explore.page import page
from vila_data.explore.thumbnail import Thumbnail, data_uri
from vila_data.filter.whatif_cuts import AtCut, NearestToCuts
from vila_data.runs.progress import Progress
from vila_data.runs.run import Run
from vila_data.shard.downloaded_records import DownloadedRecords

_UNITS: Final = ("images", "records")


@dataclass(frozen=True)
class Example:
    """An image or a record near a cut. image_index: None for a record; value: what the rule compares, for people."""

    record_id: str
    image_index: int | None
    value: str
    words: str
    images: tuple[Thumbnail, ...]


@dataclass(frozen=True)
class CutExamples:
    """What lies at one cut in one corpus, the nearest first. place: of the value in the sweep."""

    place: int
    corpus: str
    dropped: tuple[Example, ...]
    kept: tuple[Example, ...]


@dataclass(frozen=True)
class Row:
    """One corpus at one value, as shown. change: kept images and records, less those at the current value."""

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
        title=f"Sweep: {value['key'].rsplit('.', 1)[1]}",
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
    marker = Marker("current", value["in_force"]) if _is_number(value["in_force"]) else None
    if marker is not None and not min(values) <= marker.at <= max(values):
        marker = None
    found = []
    for kind in ("share", "count"):
        charts = []
        for unit in _UNITS:
            title = f"{unit.capitalize()} kept"
            y_unit = f"% of {unit}" if kind == "share" else unit
            charts.append(
                curve(values, _lines(value, unit, kind), title=title, x_unit=key, y_unit=y_unit, marker=marker)
            )
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
            lines[f"{name}, if every unscored image passes"] = [round((kept + more) * scale, 3) for kept, more in most]
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
    """The value that is shown first: the current one, else the nearest to it, else the middle one."""
    values, in_force = value["values"], value["in_force"]
    if in_force in values:
        return int(values.index(in_force))
    places = sorted({one.place for one in examples}) or list(range(len(values)))
    if _is_number(in_force) and all(_is_number(values[place]) for place in places):
        return min(places, key=lambda place: abs(values[place] - in_force))
    return places[len(places) // 2]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_EXAMPLES: Final = 320
"""Of a page, about."""
_PER_SIDE: Final = 4
_CUTS: Final = 60
"""Cuts with examples."""
_SIDE_PX: Final = 160
_IMAGES_PER_RECORD: Final = 3
_TEXT: Final = 220
_MAX_IMAGE_BYTES: Final = 3_600_000
"""Size limit of the images on a page; later examples show their text alone."""


def cuts_to_show(values: Sequence[Any], in_force: Any, corpora: int) -> list[int]:
    """Places of the values at which examples are shown: all that are numbers, or some spread evenly, including the current one."""
    places = [place for place, value in enumerate(values) if _is_number(value)]
    most = max(2, min(_CUTS, _EXAMPLES // (2 * max(1, corpora))))
    if len(places) <= most:
        return places
    chosen = {places[round(number * (len(places) - 1) / (most - 1))] for number in range(most)}
    return sorted(chosen | {place for place in places if values[place] == in_force})


def examples_per_side(cuts: int, corpora: int) -> int:
    """How many examples per side of a threshold, so that a page stays small."""
    return max(1, min(_PER_SIDE, _EXAMPLES // max(1, 2 * cuts * corpora)))


def examples_of(
    run: Run, key: str, nearest: Mapping[str, NearestToCuts], shown: Sequence[int], watch: Progress
) -> list[CutExamples]:
    """The examples of each corpus at each shown cut, their images made small."""
    if not nearest:
        return []
    readers = {corpus: _ExampleReader(run.evidence(corpus), key) for corpus in nearest}
    budget = _ImageBudget(_MAX_IMAGE_BYTES)
    watch.stage("examples", len(shown), 0)
    result = []
    for number, place in enumerate(shown):
        for corpus, found in nearest.items():
            dropped, kept = (
                tuple(readers[corpus].example(item, budget) for item in side[number])
                for side in (found.dropped, found.kept)
            )
            result.append(CutExamples(place, corpus, dropped, kept))
        watch.advance("examples", sum(len(one.dropped) + len(one.kept) for one in result[-len(nearest) :]))
    return result


class _ImageBudget:
    """Bytes left for images on the page."""

    def __init__(self, size: int) -> None:
        self._left = size

    def spend(self, images: Iterator[Thumbnail]) -> tuple[Thumbnail, ...]:
        """The images that fit."""
        taken = []
        for image in images:
            if len(image.uri) > self._left:
                break
            self._left -= len(image.uri)
            taken.append(image)
        return tuple(taken)


class _ExampleReader:
    """Examples of one corpus, read by range."""

    def __init__(self, evidence: DownloadedRecords, key: str) -> None:
        self._evidence = evidence
        self._thumbnail = lru_cache(maxsize=256)(self._read_thumbnail)
        self._unit = {"min_similarity": "similarity", "min_side_px": "px"}.get(key.rsplit(".", 1)[1], "images kept")

    def example(self, item: AtCut, budget: _ImageBudget) -> Example:
        """An item with its words and images."""
        record = self._evidence.record(item.part, item.row)
        if record is None:
            raise DataError(
                f"part {item.part}, row {item.row}: is not a record but has an image; run vila-data check on the run"
            )
        of_record = item.image_index < 0
        indexes = range(min(len(record.images), _IMAGES_PER_RECORD)) if of_record else (item.image_index,)
        thumbnails = (self._thumbnail(item.part, item.row, index) for index in indexes)
        value = f"{item.value:.4f}" if self._unit == "similarity" else f"{item.value:,.0f} {self._unit}"
        return Example(
            record.record_id,
            None if of_record else item.image_index,
            value,
            _words(record, item.text_index),
            budget.spend(image for image in thumbnails if image is not None),
        )

    def _read_thumbnail(self, part: int, row: int, image_index: int) -> Thumbnail | None:
        jpeg = self._evidence.jpeg(part, row, image_index)
        return None if jpeg is None else data_uri(jpeg, _SIDE_PX, 60)


def _words(record: Record, text_index: int) -> str:
    """The sentence that an image stands before, or what a record begins with."""
    texts = record.texts
    if text_index >= 0 and texts:
        text = texts[min(text_index, len(texts) - 1)]
    else:
        text = " ".join(text for text in texts[:4] if text)
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def moving(value: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A sweep's corpora that keep more at one value than at another, and the names of the others; all where none does."""
    shown = {
        name: corpus
        for name, corpus in value["corpora"].items()
        if any(len({corpus["in_force"][unit], *corpus["kept"][unit]}) > 1 for unit in corpus["kept"])
        or any(any(counts) for counts in corpus["unknown"].values())
    }
    if not shown:
        return dict(value["corpora"]), []
    return shown, [name for name in value["corpora"] if name not in shown]


def show_value(value: Any) -> str:
    """A recipe's value as YAML has it, for people."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
