"""A blend's shares: what was asked for beside what an epoch gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup

from vila_data.view.axes import cut, plain
from vila_data.view.charts import WIDTH, figure, svg

_ROW: Final = 46
_INDENT: Final = 18
_ASKED: Final = (
    "Asked: the weights in force, pack by pack; when a source ends, others take its share as the recipe says."
)


def shares(rows: Sequence[tuple[int, str, str, float, float]], *, title: str) -> Markup:
    """Two bars a source: asked, and realised.

    rows: (depth in the tree, source, what its weight counts, asked, realised), shares from 0 to 1 of the source above.
    """
    parts = []
    for index, (depth, name, unit, asked, realised) in enumerate(rows):
        x, y = depth * _INDENT, 4 + index * _ROW
        wide = WIDTH - x
        parts.append(
            Markup(
                '<g><title>{}</title><text x="{}" y="{}"><tspan class="strong">{}</tspan> of the {}</text>'
                '<text x="{}" y="{}" text-anchor="end">{}</text>'
                '<rect class="groove" x="{}" y="{}" width="{}" height="15" rx="3"/>'
                '<rect class="f0" x="{}" y="{}" width="{}" height="9" rx="3"/>'
                '<rect class="f7" x="{}" y="{}" width="{}" height="4" rx="2"/></g>'
            ).format(
                plain(f"{name}: {asked:.2%} of the {unit} asked, {realised:.2%} realised"),
                *(x, y + 12, cut(name, 34), plain(unit), WIDTH, y + 12, f"{realised:.1%} · asked {asked:.1%}"),
                *(x, y + 18, wide, x, y + 18, round(wide * min(1.0, realised), 2)),
                *(x, y + 29, round(wide * min(1.0, asked), 2)),
            )
        )
    said = f"{title}: " + ", ".join(f"{name} {realised:.1%}, asked {asked:.1%}" for _, name, _, asked, realised in rows)
    table = [(name, unit, f"{asked:.2%}", f"{realised:.2%}") for _, name, unit, asked, realised in rows]
    return figure(
        title,
        svg(max(30, 6 + _ROW * len(rows)), said, parts),
        ("source", "weight counts", "asked", "realised"),
        table,
        note=_ASKED,
        legend=[("f0", "realised"), ("f7", "asked")],
    )


def named_sources(blend: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The blend's sources by their labels; before inner blends had any, by the names of what they blend."""
    for source in blend["sources"]:
        inside = [other["label"] for other in blend["sources"] if other["path"].startswith(f"{source['path']}.blend.")]
        yield (" + ".join(inside) if inside and source["label"] == source["path"] else source["label"]), source
