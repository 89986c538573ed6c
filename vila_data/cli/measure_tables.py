"""A run's measures on the terminal: histograms as small bars in a table, names with counts, speeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vila_data.core.readable import many, plain, share, short
from vila_data.explore.hosts import only_files
from vila_data.explore.speed_rows import speed_rows

_BARS: Final = " ▁▂▃▄▅▆▇█"
_WIDEST: Final = 32
_NAMES_SHOWN: Final = 5
_KEYS: Final = {
    "similarity": "similarity",
    "shorter_side": "shorter side, px",
    "aspect_ratio": "width / height",
    "image_bytes": "image bytes",
    "images_a_record": "images a record",
    "text_chars": "text characters",
}


def print_measures(console: Console, value: Mapping[str, Any]) -> None:
    """Distributions, names and speeds of a run, from run.json."""
    measures = value.get("measures")
    if measures:
        console.print(_distributions(measures))
        names = _names(measures)
        if names.row_count:
            console.print(names)
    if value.get("speed"):
        console.print(_speed(value))


def bar_line(counts: list[int], widest: int = _WIDEST) -> str:
    """Counts as a line of bars, a character a column; what is counted at all can be seen. Wide ones are summed."""
    step = max(1, -(-len(counts) // widest))
    sums = [sum(counts[at : at + step]) for at in range(0, len(counts), step)]
    most = max(sums, default=0) or 1
    return "".join(_BARS[-(-count * 8 // most)] for count in sums)


def _distributions(measures: Mapping[str, Any]) -> Table:
    """A row a histogram: of all that was measured, from the first filled column to the last."""
    table = Table(title="distributions", title_justify="left")
    for heading in ("of", "what", "counted", "kept", "from", "", "to", "mean", "of kept", "marks"):
        left = heading in ("of", "what", "", "to", "marks")
        table.add_column(heading, justify="left" if left else "right")
    for name, found in _histograms(measures):
        table.add_section()
        for what, one in found.items():
            marks = ", ".join(f"{label} {short(at)}" for label, at in one["marks"])
            last = "∞" if one["edges"][-1] is None else short(one["edges"][-1])
            table.add_row(
                *(name, what, f"{sum(one['counts']):,}", f"{sum(one['kept']):,}", short(one["edges"][0])),
                *(bar_line(one["counts"]), last, *(_mean(one[key]) for key in ("mean", "mean_kept")), marks),
            )
    return table


def _mean(value: float | None) -> str:
    return "" if value is None else short(value)


def _histograms(measures: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, found in measures["corpora"].items():
        yield name, {what: found[key] for key, what in _KEYS.items() if found[key] is not None}
    for name, found in measures["sets"].items():
        if found["tokens"] is not None:
            yield f"set {name}", {"tokens a sequence": found["tokens"]}


def _names(measures: Mapping[str, Any]) -> Table:
    table = Table(title="hosts, failures, languages", title_justify="left")
    for heading in ("of", "what", "most frequent"):
        table.add_column(heading)
    for name, found in measures["corpora"].items():
        table.add_section()
        hosts, failures = found["hosts"], found["failures"]
        if only_files(hosts):
            table.add_row(name, "no hosts", f"files {hosts['images']:,} (100.0%)")
        elif hosts["images"]:
            what = many(hosts["distinct"], "hosts") if hosts["distinct"] is not None else "hosts"
            table.add_row(name, what, _counts([(host, count) for host, count, _ in hosts["top"]], hosts["images"]))
        if failures["images"]:
            table.add_row(
                name,
                many(failures["images"], "failures"),
                _counts(list(failures["classes"].items()), failures["images"]),
            )
    table.add_section()
    for name, found in measures["languages"].items():
        if found["measured"]:
            table.add_row(
                f"set {name}",
                f"languages of {many(found['sampled'], 'texts')}",
                _counts(list(found["counts"].items()), found["sampled"]),
            )
        else:
            table.add_row(f"set {name}", "languages", Text(f"not measured: {found['why']}"))
    return table


def _counts(rows: list[tuple[str, int]], total: int) -> Text:
    """Names and counts; a name from the web is text, no markup and no control characters."""
    words = [f"{plain(name)} {count:,} ({share(count, total)})" for name, count in rows[:_NAMES_SHOWN]]
    more = [f"and {len(rows) - _NAMES_SHOWN:,} more"] if len(rows) > _NAMES_SHOWN else []
    return Text(", ".join(words + more))


def _speed(value: Mapping[str, Any]) -> Table:
    table = Table(title="speed of one task at work", title_justify="left")
    for heading in ("stage", "tasks", "work", "task seconds", "rate", "done in"):
        table.add_column(heading, justify="right" if heading in ("tasks", "task seconds") else "left")
    for row in speed_rows(value):
        table.add_row(row.stage, row.tasks, row.work, row.seconds, row.rates, row.launch)
    return table
