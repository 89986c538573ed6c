"""Tables on the terminal. Each one shows what `--json` gives; nothing is computed here."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from vila_data.cli.search_table import plain
from vila_data.core.readable import many, share
from vila_data.explore.shares import SHARE_HEADINGS, share_rows
from vila_data.runs.report import keys_to_change, omissions

_WIDTH_ELSEWHERE = 200


def console() -> Console:
    """Standard output: as wide as the terminal, and wide enough for every line in files and pipes."""
    found = Console()
    return found if found.is_terminal else Console(width=_WIDTH_ELSEWHERE)


def print_run(console: Console, value: dict[str, Any]) -> None:
    """A run: its funnel a corpus, and its sets."""
    state = "finished" if value["finished"] else "not finished"
    console.print(f"[bold]{value['name']}[/bold] ({state}, recipe {value['recipe']})", highlight=False)
    for corpus, stages in value["funnel"].items():
        console.print(_funnel_table(corpus, stages))
    if value["sets"]:
        console.print(_sets_table(value["sets"]))
    if value.get("tokens"):
        _print_tokens(console, value["tokens"])
    if value.get("blend"):
        _print_blend(console, value["blend"])
    if value.get("seconds"):
        times = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in value["seconds"].items())
        console.print(f"last launch: {times}", highlight=False, markup=False)


def print_set(console: Console, value: dict[str, Any]) -> None:
    """A shard set: a row a shard."""
    table = Table(title=f"{value['set']}: {value['view']} of {value['corpus']}", title_justify="left")
    for heading in ("shard", "samples", "images", "MB", "sha256"):
        table.add_column(heading, justify="left" if heading in ("shard", "sha256") else "right")
    for shard in value["shards"]:
        table.add_row(
            shard["name"], f"{shard['samples']:,}", f"{shard['images']:,}", _mb(shard["bytes"]), shard["sha256"][:12]
        )
    table.add_section()
    table.add_row("all", f"{value['samples']:,}", f"{value['images']:,}", _mb(value["bytes"]), "")
    console.print(table)


def print_shard(console: Console, value: dict[str, Any]) -> None:
    """A shard: a row a sample."""
    table = Table(title=escape(value["shard"]), title_justify="left")
    for heading in ("key", "record", "members", "bytes", "text"):
        table.add_column(heading, justify="right" if heading in ("members", "bytes") else "left", overflow="ellipsis")
    for sample in value["samples"]:
        table.add_row(
            plain(sample["key"]),
            plain(sample["record_id"]),
            str(len(sample["members"])),
            f"{sum(sample['members'].values()):,}",
            plain(sample["text"]),
        )
    console.print(table)
    if value["more"]:
        console.print(f"… and {value['more']:,} more samples", highlight=False, markup=False)
    for fault in value["faults"]:
        console.print(plain(fault), highlight=False, markup=False)
    if value["n_faults"] > len(value["faults"]):
        console.print(f"… and {value['n_faults'] - len(value['faults']):,} more faults", highlight=False, markup=False)


def print_recipes(console: Console, value: list[dict[str, str]]) -> None:
    """The catalogue of recipes: a line each."""
    table = Table.grid(padding=(0, 2))
    for recipe in value:
        table.add_row(recipe["name"], recipe["summary"])
    console.print(table, highlight=False)


def print_tree(console: Console, value: dict[str, Any]) -> None:
    """A plan or recipe, given as {"label": str, "children": [...]}."""
    console.print(_tree(value), highlight=False)


def _tree(value: dict[str, Any], parent: Tree | None = None) -> Tree:
    label = escape(value["label"])
    node = Tree(label) if parent is None else parent.add(label)
    for child in value.get("children", ()):
        _tree(child, node)
    return node


def _funnel_table(corpus: str, stages: dict[str, Any]) -> Table:
    table = Table(title=corpus, title_justify="left")
    for heading in ("stage", "of", "fate", "count", "share"):
        table.add_column(heading, justify="right" if heading in ("count", "share") else "left")
    for stage, units in stages.items():
        for unit, fates in units.items():
            table.add_section()
            total = sum(fates.values())
            first = True
            for fate, count in sorted(fates.items(), key=lambda entry: (entry[0] != "kept", -entry[1], entry[0])):
                name = escape(fate.replace(":", ": ", 1))
                table.add_row(
                    stage if first else "", many(total, unit) if first else "", name, f"{count:,}", share(count, total)
                )
                first = False
    return table


def _sets_table(sets: dict[str, Any]) -> Table:
    table = Table(title="shard sets", title_justify="left")
    for heading in ("set", "shards", "samples", "images", "MB"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name, found in sets.items():
        table.add_row(
            name, f"{found['shards']:,}", f"{found['samples']:,}", f"{found['images']:,}", _mb(found["bytes"])
        )
    return table


def _print_tokens(console: Console, sets: dict[str, Any]) -> None:
    """Token files, and what of the samples is not in them."""
    table = Table(title="token files", title_justify="left")
    columns = ("samples", "sequences", "tokens", "text_tokens", "trained_tokens", "images")
    for heading in ("set", *columns):
        table.add_column(heading.replace("_", " "), justify="left" if heading == "set" else "right")
    for name, counts in sets.items():
        table.add_row(name, *(f"{counts[column]:,}" for column in columns))
    console.print(table)
    found = [(name, row) for name, counts in sets.items() for row in omissions(counts)]
    if not found:
        console.print("encoding cut nothing: every sample is in a sequence, with all its tokens and images")
        return
    table = Table(title="left out by encoding", title_justify="left")
    for heading in ("set", "what", "share", "count", "of"):
        figures = heading in ("share", "count", "of")
        table.add_column(heading, justify="right" if figures else "left", no_wrap=figures)
    for name, row in found:
        table.add_row(name, plain(row.what), share(row.count, row.of), f"{row.count:,}", many(row.of, row.unit))
    console.print(table)
    for what, keys in keys_to_change(row for _, row in found):
        console.print(f"to change {what}: {keys}", highlight=False, markup=False)


def _print_blend(console: Console, value: dict[str, Any]) -> None:
    """One epoch of a blend: shares, what happened to its sources, and the packs."""
    table = Table(title="blend, one epoch: shares of the whole blend", title_justify="left")
    for heading in SHARE_HEADINGS:
        table.add_column(heading, justify="left" if heading in SHARE_HEADINGS[:2] else "right")
    rows = share_rows(value)
    for row in rows:
        table.add_row("  " * row.depth + escape(row.name), row.unit, *row.percents())
    console.print(table)
    table = Table(title="blend, one epoch: amounts", title_justify="left")
    for heading in ("source", "samples", "images", "tokens", "passes"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for row, source in zip(rows, value["sources"], strict=True):
        table.add_row(
            "  " * row.depth + escape(row.name),
            *(f"{source[unit]:,}" for unit in ("samples", "images", "tokens")),
            "" if source["passes"] is None else f"{source['passes']:.2f}",
        )
    console.print(table)
    for warning in value.get("warnings", ()):
        console.print(Text.assemble(("warning: ", "bold yellow"), plain(warning["text"])))
    for subset in value["subsets"]:
        strangers = f"; {subset['ids_not_met']:,} listed ids are not in it" if subset["ids_not_met"] else ""
        kept = f"{subset['kept']:,} of {subset['samples']:,} samples"
        console.print(f"subset of {subset['name']}: {kept}{strangers}", highlight=False, markup=False)
    for event in value["events"]:
        console.print(
            f"pack {event['pack']:,}: {event['source'] or 'epoch'} {event['kind']}: {event['followed']}",
            highlight=False,
            markup=False,
        )
    for name, count in value["unlisted"].items():
        console.print(f"and {count:,} times more: {name}", highlight=False, markup=False)
    packs = value["packs"]
    unfilled = packs.get("unfilled_tokens", {})
    reasons = "; tokens not filled: " * bool(unfilled) + ", ".join(f"{name} {n:,}" for name, n in unfilled.items())
    console.print(
        f"{packs['packs']:,} packs, {packs['fill']:.2%} full, {packs['samples_per_pack']['mean']:.1f} samples and "
        f"{packs['images_per_pack']['mean']:.1f} images per pack{reasons}",
        highlight=False,
        markup=False,
    )
    length = value.get("sequence_length")
    if length:
        fill = length["fill"]
        console.print(
            f"a sequence of {length['best']:,} tokens would waste least: {fill[str(length['best'])]:.2%} full, beside "
            f"{fill[str(length['current'])]:.2%} at {length['current']:,}",
            highlight=False,
            markup=False,
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"
