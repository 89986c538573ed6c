"""Rows of run.json that the report, the card and the terminal show: shares, speeds and hosts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vila_data.core.readable import many

_FIRST: Final = ("images", "samples", "records")


@dataclass(frozen=True)
class SpeedRow:
    """A stage: what its tasks did. A rate is that of one task at work; several at a time add up."""

    stage: str
    launch: str
    tasks: str
    work: str
    seconds: str
    rates: str


def speed_rows(totals: Mapping[str, Any]) -> list[SpeedRow]:
    """A row per stage that did something."""
    rows = []
    for stage, found in totals.get("speed", {}).items():
        seconds = found["task_seconds"]
        unit = next((name for name in _FIRST if found.get(name)), "images")
        work = [many(int(found.get(unit, 0)), unit)]
        rates = [f"{found.get(unit, 0) / seconds:,.0f} {unit}/s"] if seconds else []
        for key, name, scale in (("tokens", "tokens", 1.0), ("bytes", "MB", 1e6)):
            if found.get(key):
                amount = found[key] / scale
                work.append(f"{amount:,.1f} {name}" if scale > 1 else f"{int(amount):,} {name}")
                rates += [f"{amount / seconds:,.1f} {name}/s" if scale > 1 else f"{amount / seconds:,.0f} {name}/s"] * (
                    seconds > 0
                )
        launch = "this run" if found["launch"] == "this" else "an earlier run"
        rows.append(
            SpeedRow(stage, launch, f"{int(found['tasks']):,}", ", ".join(work), f"{seconds:,.2f}", ", ".join(rates))
        )
    return rows


_NO_HOST: Final = "(no host)"


def only_files(hosts: Mapping[str, Any]) -> bool:
    """Whether no URL of a corpus's images names a host. hosts: as run.json has them."""
    return bool(hosts["images"]) and [name for name, *_ in hosts["top"]] == [_NO_HOST]


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
    """A row per source. blend: that of run.json."""
    rows: dict[str, ShareRow] = {}
    for name, source in named_sources(blend):
        whole = source.get("of_whole")
        if whole is None:
            around = rows.get(source["path"].rpartition(".blend.")[0])
            target, actual = (around.target, around.actual) if around else (1.0, 1.0)
            whole = {"recipe": None, "target": target * source["asked"], "actual": actual * source["realised"]}
        rows[source["path"]] = ShareRow(source["path"].count(".blend."), name, source["unit"], **whole)
    return list(rows.values())


def named_sources(blend: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The blend's sources by their labels; before inner blends had any, by the names of what they blend."""
    for source in blend["sources"]:
        inside = [other["label"] for other in blend["sources"] if other["path"].startswith(f"{source['path']}.blend.")]
        yield (" + ".join(inside) if inside and source["label"] == source["path"] else source["label"]), source
