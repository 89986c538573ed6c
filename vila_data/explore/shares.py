"""A blend's shares: those of the recipe, those in effect over an epoch, and those of its packs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from vila_data.core.readable import cut, plain
from vila_data.explore.charts import WIDTH, figure, svg

_ROW: Final = 60
_INDENT: Final = 18
SHARE_HEADINGS: Final = ("source", "weight counts", "recipe", "target", "actual")
SHARE_NOTE: Final = (
    "Recipe: the weights as written, averaged over the epoch. Target: the weights in effect at each pack; when a source "
    "is exhausted, the others take its share. Actual: what the packs hold. All are shares of the whole blend: a nested "
    "source's share, in its own unit, times that of the blend it is in."
)


@dataclass(frozen=True)
class ShareRow:
    """A source's shares of the whole blend. depth: how many blends it is inside; recipe: None in a run.json of an
    earlier version, which does not say it."""

    depth: int
    name: str
    unit: str
    recipe: float | None
    target: float
    actual: float

    def percents(self, digits: int = 2) -> tuple[str, str, str]:
        """Recipe, target and actual in percent."""
        recipe = "" if self.recipe is None else f"{self.recipe:.{digits}%}"
        return recipe, f"{self.target:.{digits}%}", f"{self.actual:.{digits}%}"


def share_rows(blend: Mapping[str, Any]) -> list[ShareRow]:
    """A row a source. blend: that of run.json."""
    rows: dict[str, ShareRow] = {}
    for name, source in named_sources(blend):
        whole = source.get("of_whole")
        if whole is None:
            around = rows.get(source["path"].rpartition(".blend.")[0])
            target, actual = (around.target, around.actual) if around else (1.0, 1.0)
            whole = {"recipe": None, "target": target * source["asked"], "actual": actual * source["realised"]}
        rows[source["path"]] = ShareRow(source["path"].count(".blend."), name, source["unit"], **whole)
    return list(rows.values())


def shares(rows: Sequence[ShareRow], *, title: str) -> Markup:
    """Three bars a source: actual, and below it target and recipe."""
    parts = [_bars(row, 4 + index * _ROW) for index, row in enumerate(rows)]
    said = f"{title}: " + "; ".join(f"{row.name} {_said(row)}" for row in rows)
    table = [(row.name, row.unit, *row.percents()) for row in rows]
    return figure(
        title,
        svg(max(30, 6 + _ROW * len(rows)), said, parts),
        SHARE_HEADINGS,
        table,
        note=SHARE_NOTE,
        legend=[("f0", "actual"), ("f7", "target"), ("f5", "recipe")],
    )


def _bars(row: ShareRow, y: int) -> Markup:
    x = row.depth * _INDENT
    wide = WIDTH - x
    bars = [("f0", 33, 9, row.actual), ("f7", 44, 4, row.target), ("f5", 49, 4, row.recipe or 0.0)]
    return Markup(
        '<g><title>{}</title><text x="{}" y="{}"><tspan class="strong">{}</tspan> of the {}</text>'
        '<text class="soft" x="{}" y="{}">{}</text><rect class="groove" x="{}" y="{}" width="{}" height="20" rx="3"/>{}</g>'
    ).format(
        plain(f"{row.name}, of the {row.unit}: {_said(row, 2)}"),
        *(x, y + 12, cut(row.name, 34), plain(row.unit), x, y + 27, _said(row), x, y + 33, wide),
        Markup("").join(
            Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="2"/>').format(
                tone, x, y + top, round(wide * min(1.0, share), 2), height
            )
            for tone, top, height, share in bars
        ),
    )


def _said(row: ShareRow, digits: int = 1) -> str:
    recipe, target, actual = row.percents(digits)
    return f"actual {actual}, target {target}" + f", recipe {recipe}" * bool(recipe)


def named_sources(blend: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The blend's sources by their labels; before inner blends had any, by the names of what they blend."""
    for source in blend["sources"]:
        inside = [other["label"] for other in blend["sources"] if other["path"].startswith(f"{source['path']}.blend.")]
        yield (" + ".join(inside) if inside and source["label"] == source["path"] else source["label"]), source
