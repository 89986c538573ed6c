"""report.html and card.md of a finished run, made from run.json and recipe.lock.yaml alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import TemplateError
from markupsafe import Markup

from vila_data.core.readable import many, share, short, size_text
from vila_data.core.store import Store
from vila_data.explore.card import card
from vila_data.explore.charts import Marker, bars, histogram, shares
from vila_data.explore.flow import flow, overview, stages
from vila_data.explore.page import page
from vila_data.explore.recipe_text import shown_recipe
from vila_data.explore.rows import only_files, share_rows, speed_rows
from vila_data.runs.report import omissions

_TITLES: Final = {
    "shorter_side": "Image size",
    "aspect_ratio": "Image aspect ratio",
    "image_bytes": "Bytes per image",
    "images_a_record": "Images per record",
    "text_chars": "Text per record",
}
_PACK_COLUMNS: Final = 64


@dataclass(frozen=True)
class CorpusView:
    """What the page shows of one corpus: its flows and similarity first, then the rest."""

    name: str
    kind: str
    first: list[Markup]
    rest: list[Markup]
    failures: list[tuple[str, str, int]]
    duplicates: str


def report_page(totals: Mapping[str, Any], lock: Mapping[str, Any]) -> str:
    """The page's HTML. totals: run.json; lock: recipe.lock.yaml."""
    measures = totals["measures"]
    return page(
        "report.html",
        title=totals["name"],
        styles=("charts.css", "report.css"),
        totals=totals,
        tiles=_tiles(totals),
        overview=overview(totals),
        left_out=[(name, row) for name, counts in totals["tokens"].items() for row in omissions(counts)],
        corpora=[_corpus(name, totals, lock) for name in totals["funnel"]],
        lengths=[
            _histogram(value["tokens"], f"Tokens per sequence: {name}") for name, value in measures["sets"].items()
        ],
        blend=_blend(totals["blend"]) if totals["blend"] else [],
        share_warnings=totals["blend"].get("warnings", []) if totals["blend"] else [],
        speed=speed_rows(totals),
        limit=lock["limit"],
        fingerprints=lock["fingerprints"],
        recipe=shown_recipe(lock["recipe"]),
    )


def _tiles(totals: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, what it is, what to compare it with)."""
    entered, kept = {"records": 0, "images": 0}, {"records": 0, "images": 0}
    for funnel in totals["funnel"].values():
        for unit in entered:
            found = stages(funnel, unit)
            entered[unit] += found[0].entered if found else 0
            kept[unit] += found[-1].went_on if found else 0
    sets, tokens = totals["sets"].values(), totals["tokens"].values()
    tiles = [
        (
            f"{kept[unit]:,}",
            f"{unit} kept",
            f"of {entered[unit]:,}" + f" ({share(kept[unit], entered[unit])})" * bool(entered[unit]),
        )
        for unit in ("records", "images")
    ]
    size = sum(found["bytes"] for found in sets)
    shards = sum(found["shards"] for found in sets)
    tiles.append((f"{sum(found['samples'] for found in sets):,}", "samples", f"in {many(len(sets), 'sets')}"))
    tiles.append((size_text(size), "in shards", many(shards, "tars")))
    if tokens:
        images = sum(counts["images"] for counts in tokens)
        tiles.append(
            (short(sum(counts["tokens"] for counts in tokens)), "tokens", f"including {many(images, 'images')}")
        )
    if totals["blend"]:
        packs = totals["blend"]["packs"]
        tiles.append((f"{packs['packs']:,}", "packs per epoch", f"{packs['fill']:.1%} full"))
    return tiles


def _corpus(name: str, totals: Mapping[str, Any], lock: Mapping[str, Any]) -> CorpusView:
    measured, funnel = totals["measures"]["corpora"][name], totals["funnel"][name]
    sets = {key: found for key, found in totals["sets"].items() if found["corpus"] == name}
    first = []
    for unit in ("records", "images"):
        found = stages(funnel, unit)
        if found and (unit == "records" or found[0].entered):
            key = "samples" if unit == "records" else "images"
            ends = [(entry_name, entry[key], entry["samples"]) for entry_name, entry in sets.items()]
            first.append(flow(found, title=unit.capitalize(), unit=unit, sets=ends))
    shown = dict(_TITLES)
    if measured["similarity"]:
        first.append(_histogram(measured["similarity"], "Similarity", kept=True))
    elif measured["text_chars"]:
        first.append(_histogram(measured["text_chars"], shown.pop("text_chars")))
    rest = [
        _histogram(measured[key], title, kept=measured[key]["of"] == "images")
        for key, title in shown.items()
        if measured[key] is not None and not (key == "images_a_record" and _always_the_same(measured[key]))
    ]
    failures = [(error, host, count) for error, hosts in measured["failures"]["top"].items() for host, count in hosts]
    rest += _names(measured)
    rest += [
        _languages(key, found)
        for key in sets
        if (found := totals["measures"]["languages"].get(key)) and (not found["measured"] or found["sampled"])
    ]
    kind = lock["recipe"]["corpora"][name]["kind"]
    return CorpusView(name, kind, first, rest, failures, _duplicates(measured, funnel))


def _always_the_same(value: Mapping[str, Any]) -> bool:
    return [count > 0 for count in value["counts"]].count(True) == 1


def _names(measured: Mapping[str, Any]) -> list[Markup]:
    """Hosts and failures as bars."""
    found = []
    hosts, failed = measured["hosts"], measured["failures"]
    if hosts["images"] and not only_files(hosts):
        rows = [(host, count) for host, count, _ in hosts["top"][:10]]
        of = f"{hosts['distinct']:,}" if hosts["distinct"] is not None else "very many"
        about = "Hosts" if hosts["distinct"] == len(rows) else f"Most frequent hosts (of {of})"
        about += f" (counts short by {hosts['short_by']:,} at most)" * bool(hosts["short_by"])
        found.append(bars(rows, title=about, of="images", total=hosts["images"]))
    if failed["images"]:
        found.append(bars(list(failed["classes"].items()), title="Failures by class", tone="failed-fill", of="images"))
    if failed.get("formats"):
        rows = list(failed["formats"].items())[:8]
        found.append(bars(rows, title="Unsupported formats", tone="failed-fill", of="images"))
    if failed["http_codes"]:
        codes = [(f"HTTP {code}", count) for code, count in failed["http_codes"].items()]
        found.append(bars(codes[:8], title="HTTP status of failed downloads", tone="failed-fill", of="images"))
    return found


def _languages(name: str, found: Mapping[str, Any]) -> Markup:
    if not found["measured"]:
        return Markup('<div class="chart"><p><b>Languages</b>: not measured; {}</p></div>').format(found["why"])
    title = f"Languages ({found['sampled']:,} of {found['of']:,} texts of {name})"
    return bars(list(found["counts"].items())[:8], title=title, of="texts", total=found["sampled"])


def _duplicates(measured: Mapping[str, Any], funnel: Mapping[str, Any]) -> str:
    if not measured["hosts"]["images"]:
        return ""
    if measured["duplicates"]["rule"] != "drop":
        return "Exact duplicates were not checked (filter.images.exact_duplicates: keep)."
    images = funnel.get("filter", {}).get("images", {})
    count, total = images.get("dropped:exact_duplicate", 0), sum(images.values())
    if not total:
        return ""
    return f"Exact duplicates: {count:,} of {total:,} images ({share(count, total)}) were dropped; near duplicates were not checked."


def _histogram(value: Mapping[str, Any] | None, title: str, kept: bool = False) -> Markup:
    if value is None:
        return Markup('<div class="chart"><p><b>{}</b>: nothing was counted.</p></div>').format(title)
    edges = [math.inf if edge is None else edge for edge in value["edges"]]
    mean = value["mean_kept"] if kept else value["mean"]
    note = "" if mean is None else f"mean {'of the kept ' if kept else ''}{short(mean)}"
    return histogram(
        edges,
        value["counts"],
        title=title,
        unit=value["unit"],
        of=value["of"],
        marker=[Marker(label, at) for label, at in value["marks"]],
        kept=value["kept"] if kept else None,
        note=note,
    )


def _blend(blend: Mapping[str, Any]) -> list[Markup]:
    """Shares, and how full the packs are."""
    found = [shares(share_rows(blend), title="Shares of an epoch")]
    for key, title in (("samples_per_pack", "Samples per pack"), ("images_per_pack", "Images per pack")):
        counted = {int(number): count for number, count in blend["packs"][key]["histogram"].items()}
        if counted:
            found.append(_pack_histogram(counted, title, blend["packs"][key]["mean"]))
    return found


def _pack_histogram(counted: Mapping[int, int], title: str, mean: float) -> Markup:
    low, high = min(counted), max(counted) + 1
    step = max(1, math.ceil((high - low) / _PACK_COLUMNS))
    edges: Sequence[int] = range(low, high + step, step)
    counts = [sum(counted.get(number, 0) for number in range(edge, edge + step)) for edge in edges[:-1]]
    return histogram(edges, counts, title=title, unit=title.lower(), of="packs", note=f"mean {mean:.1f}")


REPORT_HTML: Final = "report.html"
CARD_MD: Final = "card.md"
PAGES: Final[Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str]]] = {
    CARD_MD: card,
    REPORT_HTML: report_page,
}
"""Each is drawn from run.json and recipe.lock.yaml alone, so it can be drawn again at any time."""


def write_pages(store: Store, totals: Mapping[str, Any], lock: Mapping[str, Any]) -> None:
    """Write the pages of a finished run.

    Everything that they show is already committed. If a page cannot be made, a warning says so and an old page of
    that name is removed: the run is complete without it, and days of work must not end in an error because of a chart.

    Raises:
        StorageError: the store cannot be written.
    """
    for path, draw in PAGES.items():
        try:
            text = draw(totals, lock)
        except (ArithmeticError, LookupError, TypeError, ValueError, TemplateError) as error:
            store.remove(path)
            warnings.warn(
                f"{store.location(path)}: could not be written: {error!r}; the run itself is finished and complete",
                stacklevel=2,
            )
            continue
        data = text.encode()
        if store.size(path) != len(data) or store.read(path) != data:
            store.commit_bytes(data, path)


def remove_pages(store: Store) -> None:
    """Delete the pages of a run that is no longer finished."""
    for path in PAGES:
        store.remove(path)
