"""Tables on the terminal that `run`, `plan` and `inspect` print. Each shows what `--json` gives; nothing is computed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from vila_data.cli.search_table import plain
from vila_data.core.readable import many, share, short
from vila_data.core.readable import plain as plain_text
from vila_data.explore.rows import SHARE_HEADINGS, only_files, share_rows, speed_rows
from vila_data.runs.report import keys_to_change, omissions

_WIDTH_ELSEWHERE = 200


def console() -> Console:
    """Standard output: as wide as the terminal, and wide enough for every line in files and pipes."""
    found = Console()
    return found if found.is_terminal else Console(width=_WIDTH_ELSEWHERE)


def print_run(console: Console, value: dict[str, Any]) -> None:
    """A run: its funnel per corpus, and its sets."""
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
        console.print(f"last run: {times}", highlight=False, markup=False)


def print_set(console: Console, value: dict[str, Any]) -> None:
    """A shard set: a row per shard."""
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
    """A shard: a row per sample."""
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
        console.print(f"… and {value['n_faults'] - len(value['faults']):,} more errors", highlight=False, markup=False)


def print_recipes(console: Console, value: list[dict[str, str]]) -> None:
    """The catalog of recipes, one line each."""
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
        strangers = f"; {subset['ids_not_met']:,} listed ids are not in the set" if subset["ids_not_met"] else ""
        kept = f"{subset['kept']:,} of {subset['samples']:,} samples"
        console.print(f"subset of {subset['name']}: {kept}{strangers}", highlight=False, markup=False)
    for event in value["events"]:
        console.print(
            f"pack {event['pack']:,}: {event['source'] or 'epoch'} {event['kind']}: {event['followed']}",
            highlight=False,
            markup=False,
        )
    for name, count in value["unlisted"].items():
        console.print(f"and {count:,} more times: {name}", highlight=False, markup=False)
    packs = value["packs"]
    unfilled = packs.get("unfilled_tokens", {})
    reasons = "; unfilled tokens by cause: " * bool(unfilled) + ", ".join(
        f"{name} {n:,}" for name, n in unfilled.items()
    )
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
            f"best sequence length: {length['best']:,} tokens, {fill[str(length['best'])]:.2%} full; the current "
            f"{length['current']:,} tokens are {fill[str(length['current'])]:.2%} full",
            highlight=False,
            markup=False,
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"


_BARS: Final = " ▁▂▃▄▅▆▇█"
_WIDEST: Final = 32
_NAMES_SHOWN: Final = 5
_KEYS: Final = {
    "similarity": "similarity",
    "shorter_side": "shorter side, px",
    "aspect_ratio": "width / height",
    "image_bytes": "image bytes",
    "images_a_record": "images per record",
    "text_chars": "text characters",
}


def print_measures(console: Console, value: Mapping[str, Any]) -> None:
    """Distributions, names and speeds of a run, from run.json."""
    measures = value.get("measures")
    if measures:
        console.print(_distributions(measures))
        names = _names_table(measures)
        if names.row_count:
            console.print(names)
    if value.get("speed"):
        console.print(_speed_table(value))


def bar_line(counts: list[int], widest: int = _WIDEST) -> str:
    """Counts as a line of bars, one character per column; what is counted at all can be seen. Wide ones are summed."""
    step = max(1, -(-len(counts) // widest))
    sums = [sum(counts[at : at + step]) for at in range(0, len(counts), step)]
    most = max(sums, default=0) or 1
    return "".join(_BARS[-(-count * 8 // most)] for count in sums)


def _distributions(measures: Mapping[str, Any]) -> Table:
    """A row per histogram: of all that was measured, from the first filled column to the last."""
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
            yield f"set {name}", {"tokens per sequence": found["tokens"]}


def _names_table(measures: Mapping[str, Any]) -> Table:
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
    words = [f"{plain_text(name)} {count:,} ({share(count, total)})" for name, count in rows[:_NAMES_SHOWN]]
    more = [f"and {len(rows) - _NAMES_SHOWN:,} more"] if len(rows) > _NAMES_SHOWN else []
    return Text(", ".join(words + more))


def _speed_table(value: Mapping[str, Any]) -> Table:
    table = Table(title="speed of a single task", title_justify="left")
    for heading in ("stage", "tasks", "work", "task seconds", "rate", "done in"):
        table.add_column(heading, justify="right" if heading in ("tasks", "task seconds") else "left")
    for row in speed_rows(value):
        table.add_row(row.stage, row.tasks, row.work, row.seconds, row.rates, row.launch)
    return table
