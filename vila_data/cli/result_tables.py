"""Tables that `whatif`, `export` and `bench` print. Each shows what `--json` gives; nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vila_data.core.readable import many, share
from vila_data.explore.sweep_page import moving, show_value

_UNKNOWN = "unknown:not_scored"


def print_whatif(console: Console, value: Mapping[str, Any]) -> None:
    """The JSON of `whatif`: a table per corpus that the setting touches, the others in a line, then the sets."""
    console.print(
        f"[bold]{escape(', '.join(value['asked']))}[/bold] compared with the run's current rules", highlight=False
    )
    same = [name for name, corpus in value["corpora"].items() if corpus["old"] == corpus["new"]]
    for name, corpus in value["corpora"].items():
        if name not in same:
            console.print(_compared_funnel(name, corpus))
        if corpus["unscored"]:
            console.print(_unscored(name, corpus["unscored"]), highlight=False, soft_wrap=True)
    if same:
        console.print(f"unchanged: {', '.join(same)}", highlight=False)
    if value["sets"]:
        console.print(_compared_sets(value["sets"]))
    for note in value["notes"]:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def print_sweep(console: Console, value: Mapping[str, Any]) -> None:
    """The JSON of a sweep: a row per value, with what each corpus keeps."""
    beside = f", with {escape(', '.join(value['asked']))}" if value["asked"] else ""
    console.print(
        f"[bold]{value['key']}[/bold]{beside}; current value: {show_value(value['in_force'])}",
        highlight=False,
        soft_wrap=True,
    )
    shown, flat = moving(value)
    for name, corpus in shown.items():
        console.print(_sweep_table(name, corpus, value))
        most = max(corpus["unscored"])
        if most:
            console.print(_unscored(name, most, "up to "), highlight=False, soft_wrap=True)
    if flat:
        console.print(f"constant over the sweep: {', '.join(flat)}", highlight=False)
    if value["untouched"]:
        console.print(f"not affected by this key: {', '.join(value['untouched'])}", highlight=False)


def _compared_funnel(name: str, corpus: Mapping[str, Any]) -> Table:
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


def _compared_sets(sets: Mapping[str, Any]) -> Table:
    table = Table(title="shard sets, current and new", title_justify="left")
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


def _sweep_table(name: str, corpus: Mapping[str, Any], value: Mapping[str, Any]) -> Table:
    table = Table(title=name, title_justify="left")
    table.add_column(value["key"].rsplit(".", 1)[1])
    for unit in ("images", "records"):
        for heading in (f"{unit} kept", "share"):
            table.add_column(heading, justify="right")
    unknown = any(any(counts) for counts in corpus["unknown"].values())
    if unknown:
        table.add_column("images unknown", justify="right")
    for place, step in enumerate(value["values"]):
        cells = [show_value(step) + (" < current" if step == value["in_force"] else "")]
        for unit in ("images", "records"):
            kept = corpus["kept"][unit][place]
            cells += [f"{kept:,}", share(kept, corpus["entered"][unit])]
        table.add_row(*cells, *([f"{corpus['unknown']['images'][place]:,}"] if unknown else []))
    return table


def _unscored(name: str, count: int, up_to: str = "") -> str:
    return (
        f"{name}: {up_to}{count:,} images have no score because an earlier rule dropped them; a run would score them "
        "first. Here they, and everything that depends on them, count as unknown wherever a rule needs a score."
    )


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def print_export(console: Console, value: dict[str, Any]) -> None:
    """An export: a row per set, then what was left out or adapted, then sets that are not in it.

    One that is only looked at has no speed.
    """
    state = "" if value.get("finished", True) else " (not finished: rerun it)"
    table = Table(title=escape(f"{value['to']}: {value['out']}{state}"), title_justify="left")
    launched = any("launch_samples" in one for one in value["sets"])
    headings = ("set", "view", "samples", "exported", "left out", "images", "files", "MB")
    for heading in (*headings, "samples/s") if launched else headings:
        table.add_column(heading, justify="left" if heading in ("set", "view") else "right")
    for one in value["sets"]:
        table.add_row(
            one["name"],
            one["view"],
            f"{one['samples']:,}",
            f"{one['exported']:,}",
            f"{sum(one['left_out'].values()):,}",
            f"{one['images']:,}",
            f"{one['files']:,}",
            f"{one['bytes'] / 1e6:,.1f}",
            *([_speed(one)] if launched else []),
        )
    console.print(table)
    for one in value["sets"]:
        for what in ("left_out", "adapted"):
            for reason, count in one[what].items():
                console.print(
                    f"{one['name']}: {what.replace('_', ' ')}: {reason}: {count:,}", highlight=False, markup=False
                )
    for reason in dict.fromkeys(value["not_exported"].values()):
        names = ", ".join(name for name, found in value["not_exported"].items() if found == reason)
        console.print(f"not exported: {names}: {reason}", highlight=False, markup=False, soft_wrap=True)
    blend = value["blend"]
    if blend is not None and blend["file"] is not None:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in blend["shares"])
        console.print(
            f"{blend['file']}: the run's blend by samples: {shares}", highlight=False, markup=False, soft_wrap=True
        )
    elif blend is not None:
        console.print(
            f"the run's blend is not written: {blend['reason']}", highlight=False, markup=False, soft_wrap=True
        )


def _speed(one: dict[str, Any]) -> str:
    return f"{one['launch_samples'] / one['launch_seconds']:,.0f}" if one["launch_samples"] else "already done"


def print_bench(console: Console, value: dict[str, Any]) -> None:
    """Rates, where the workers' time went, and what the consumer waited."""
    table = Table(title=f"{value['seconds']:.1f} s of streaming", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("per second", justify="right")
    for name in ("batches", "packs", "samples", "images", "tokens"):
        table.add_row(name, f"{value[name]:,}", f"{value[f'{name}_per_s']:,.1f}")
    table.add_row("MB read", f"{value['read_bytes'] / 1e6:,.1f}", f"{value['read_bytes_per_s'] / 1e6:,.1f}")
    console.print(table)
    stages = Table(title="workers' time", title_justify="left")
    stages.add_column("stage")
    stages.add_column("seconds", justify="right")
    stages.add_column("share", justify="right")
    total = sum(value["stage_seconds"].values()) or 1.0
    for stage, seconds in value["stage_seconds"].items():
        mark = "  < slowest" if stage == value["slowest_stage"] else ""
        stages.add_row(f"{stage}{mark}", f"{seconds:.2f}", f"{seconds / total:.1%}")
    console.print(stages)
    step = f"with steps of {value['step_s'] * 1000:.0f} ms" if value["step_s"] else "no simulated training step"
    shares = ", ".join(f"{name} {share:.1%}" for name, share in value["sources"].items())
    for line in (
        f"consumer ({step}) waited {value['waited_share']:.2%} of the time; slowest stage: {value['slowest_stage']}",
        f"fill {value['fill']:.2%}; tokens: {shares}",
        f"cache hits {value['cache_hits']:,} of {value['reads']:,} reads; retries {value['retries']:,}; broken images or samples "
        f"{sum(value['faults'].values()):,}; workers restarted {value['replaced_workers']:,}",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    slowest = value["slowest_read"]
    if slowest["path"]:
        console.print(
            f"slowest read: {slowest['seconds'] * 1000:.1f} ms, {slowest['path']}", highlight=False, markup=False
        )
