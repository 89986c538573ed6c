"""Formats by name: the one line to add for a new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vila_data.core.errors import UsageError
from vila_data.export.energon import Energon
from vila_data.export.format import Format
from vila_data.export.img2dataset import Img2dataset
from vila_data.export.llava import Llava
from vila_data.export.obelics import Obelics
from vila_data.export.open_flamingo import OpenFlamingo
from vila_data.export.vila_pickle import VilaPickle
from vila_data.export.wids import Wids
from vila_data.shard.config import View

_FORMATS: Final = (VilaPickle, Wids, Energon, Llava, OpenFlamingo, Obelics, Img2dataset)
FORMATS: Final[dict[str, tuple[Callable[[View], Format], tuple[View, ...]]]] = {
    made.name: (made, made.views) for made in _FORMATS
}
"""{name: (its maker for a view, the views that it takes)}."""


def open_format(name: str, view: View) -> Format | None:
    """The format for sets of a view; None where it does not take that view.

    Raises:
        UsageError: there is no format of that name.
    """
    if name not in FORMATS:
        raise UsageError(f"--to {name}: no such format; there are {', '.join(FORMATS)}")
    make, views = FORMATS[name]
    return make(view) if view in views else None


def formats_for(view: View) -> list[str]:
    """Names of the formats that take a view."""
    return [name for name, (_, views) in FORMATS.items() if view in views]
