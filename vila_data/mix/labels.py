"""What a blend's sources are called wherever somebody reads of them; no order, seed or state depends on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from vila_data.mix.config import BlendSource, InnerBlend, Location

_LONGEST: Final = 48


def labels(blend: InnerBlend) -> dict[str, str]:
    """{a source's place, as ``sources.0.blend.sources.1``: its label}, in the recipe's order; no label is there twice.

    A shard set's is its name, a blend's the names of the sets in it, as many as fit; where that is not one source's
    alone, its place stands behind it.
    """
    found = {".".join(map(str, place)): source for place, source in _sources(blend, ())}
    names = {path: _name(source) for path, source in found.items()}
    counts = Counter(names.values())
    sets = Counter(source.name for source in found.values() if source.blend is None)
    alone = {path: (counts if source.blend else sets)[names[path]] == 1 for path, source in found.items()}
    return {path: name if alone[path] else f"{name} ({path})" for path, name in names.items()}


def _sources(blend: InnerBlend, location: Location) -> Iterator[tuple[Location, BlendSource]]:
    for index, source in enumerate(blend.sources):
        here = (*location, "sources", index)
        yield here, source
        if source.blend is not None:
            yield from _sources(source.blend, (*here, "blend"))


def _name(source: BlendSource) -> str:
    if source.blend is None:
        return source.name
    names = list(dict.fromkeys(leaf.source.name for leaf in source.blend.leaves()))
    shown = len(names)
    while shown > 1 and len(" + ".join(names[:shown])) > _LONGEST:
        shown -= 1
    more = f" and {len(names) - shown} more" if shown < len(names) else ""
    return " + ".join(names[:shown]) + more
