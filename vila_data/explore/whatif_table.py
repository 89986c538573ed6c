"""Tables of `vila-data whatif`: the funnel and the sets of a run beside those that other rules would give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vila_data.core.readable import many, share

_UNKNOWN = "unknown:not_scored"


def print_whatif(console: Console, value: Mapping[str, Any]) -> None:
    """The JSON of `whatif`: a table a corpus that the setting touches, the others in a line, then the sets."""
    console.print(f"[bold]{escape(', '.join(value['asked']))}[/bold] beside the run's own rules", highlight=False)
    same = [name for name, corpus in value["corpora"].items() if corpus["old"] == corpus["new"]]
    for name, corpus in value["corpora"].items():
        if name not in same:
            console.print(_funnel(name, corpus))
        if corpus["unscored"]:
            console.print(_unscored(name, corpus["unscored"]), highlight=False, soft_wrap=True)
    if same:
        console.print(f"as before: {', '.join(same)}", highlight=False)
    if value["sets"]:
        console.print(_sets(value["sets"]))
    for note in value["notes"]:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def print_sweep(console: Console, value: Mapping[str, Any]) -> None:
    """The JSON of a sweep: a row a value, with what each corpus keeps."""
    beside = f", with {escape(', '.join(value['asked']))}" if value["asked"] else ""
    console.print(
        f"[bold]{value['key']}[/bold]{beside}; in force: {show_value(value['in_force'])}",
        highlight=False,
        soft_wrap=True,
    )
    shown, flat = moving(value)
    for name, corpus in shown.items():
        console.print(_curve(name, corpus, value))
        most = max(corpus["unscored"])
        if most:
            console.print(_unscored(name, most, "up to "), highlight=False, soft_wrap=True)
    if flat:
        console.print(f"the same at every value: {', '.join(flat)}", highlight=False)
    if value["untouched"]:
        console.print(f"not touched by this key: {', '.join(value['untouched'])}", highlight=False)


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


def _funnel(name: str, corpus: Mapping[str, Any]) -> Table:
    table = Table(title=name, title_justify="left")
    for heading in ("stage", "of", "fate", "now", "share", "then", "share", "difference"):
        table.add_column(heading, justify="left" if heading in ("stage", "of", "fate") else "right")
    for stage, units in corpus["new"].items():
        for unit, new in units.items():
            old = corpus["old"][stage][unit]
            if stage != "filter" and old == new:
                continue
            table.add_section()
            total = sum(new.values())
            for place, fate in enumerate(_ordered(old, new)):
                before, after = old.get(fate, 0), new.get(fate, 0)
                head = (stage, many(total, unit)) if place == 0 else ("", "")
                text = "unknown: not scored" if fate == _UNKNOWN else escape(fate.replace(":", ": ", 1))
                counts = (f"{before:,}", share(before, total), f"{after:,}", share(after, total))
                table.add_row(*head, text, *counts, f"{after - before:+,}" if after != before else "")
    return table


def _ordered(old: Mapping[str, int], new: Mapping[str, int]) -> list[str]:
    """Kept first, the unknown last, the others by how many there are."""
    most = {fate: max(old.get(fate, 0), new.get(fate, 0)) for fate in {*old, *new}}
    return sorted(most, key=lambda fate: (fate != "kept", fate == _UNKNOWN, -most[fate], fate))


def _sets(sets: Mapping[str, Any]) -> Table:
    table = Table(title="shard sets, now and then", title_justify="left")
    for heading in ("set", "samples", "then", "images", "then", "shards", "then"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name, found in sets.items():
        old, new = found["old"], found["new"]
        cells = [
            f"{old['samples']:,}",
            _range(new["samples"], new["samples_at_most"]),
            f"{old['images']:,}",
            _range(new["images"], new["images_at_most"]),
            f"{old['shards']:,}",
            "?" if new["shards"] is None else f"{new['shards']:,}",
        ]
        table.add_row(name, *cells)
    return table


def _curve(name: str, corpus: Mapping[str, Any], value: Mapping[str, Any]) -> Table:
    table = Table(title=name, title_justify="left")
    table.add_column(value["key"].rsplit(".", 1)[1])
    for unit in ("images", "records"):
        for heading in (f"{unit} kept", "share"):
            table.add_column(heading, justify="right")
    unknown = any(any(counts) for counts in corpus["unknown"].values())
    if unknown:
        table.add_column("images unknown", justify="right")
    for place, step in enumerate(value["values"]):
        cells = [show_value(step) + (" < in force" if step == value["in_force"] else "")]
        for unit in ("images", "records"):
            kept = corpus["kept"][unit][place]
            cells += [f"{kept:,}", share(kept, corpus["entered"][unit])]
        table.add_row(*cells, *([f"{corpus['unknown']['images'][place]:,}"] if unknown else []))
    return table


def _unscored(name: str, count: int, up_to: str = "") -> str:
    return (
        f"{name}: {up_to}{count:,} images are not scored, since an earlier rule dropped them before: a run would score them "
        "first; here they, and what hangs on them, are counted as unknown where the rules ask for a score"
    )


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
