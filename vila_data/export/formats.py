"""Formats by name: the one line to add for a new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from vila_data.core.errors import UsageError
from vila_data.core.plugins import Registry
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
"""{name: (constructor, supported views)}."""


_MADE_OF: Final = ("name", "views", "revision", "cut", "write_part", "finish")
EXPORTERS: Final = Registry[Any](
    "exporters",
    {made.name: made for made in _FORMATS},
    "a class like vila_data.export.format.Format",
    lambda found: isinstance(found, type) and all(hasattr(found, part) for part in _MADE_OF),
)
"""FORMATS, and those that installed packages add."""


def views_of(name: str) -> tuple[View, ...]:
    """The views that a format supports.

    Raises:
        UsageError: the format does not exist.
    """
    found = EXPORTERS.find(name)
    if found is None:
        raise UsageError(f"--to {name}: unknown format; choose one of {', '.join(EXPORTERS.names())}")
    views: tuple[View, ...] = found.views
    return views


def open_format(name: str, view: View) -> Format | None:
    """The format for sets of a view; None if it does not support the view.

    Raises:
        UsageError: the format does not exist.
    """
    views, make = views_of(name), EXPORTERS.find(name)
    return make(view) if make is not None and view in views else None


def formats_for(view: View) -> list[str]:
    """Names of the formats that support a view."""
    return [name for name in EXPORTERS.names() if view in views_of(name)]
