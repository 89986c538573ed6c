"""A recipe, and a message, as others may see them: without folders of this machine, passwords and signed queries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from vila_data.core.readable import plain

_PRIVATE: Final = ("resources", "contact")
"""Says who ran it, or where: nothing about the data."""
_PLACES: Final = re.compile(
    r"""(?<![^\s'"(=])(?:[a-z][a-z0-9+.-]*://[^\s'"]*[^\s'":;,.)]|(?:~?/(?=\S)|[A-Za-z]:[\\/]|file:/)(?:[^:;'"\n]*[\\/])?[^\s:;'",)]*)""",
    re.IGNORECASE,
)
"""A URL, or a local path: its folders may have spaces in their names."""


def shown_recipe(recipe: Any) -> str:
    """The recipe as YAML, without keys that are not set, resources and contact; strings as `shown_value` gives them."""
    text: str = yaml.safe_dump(_shown(recipe), sort_keys=False, width=100, allow_unicode=True)
    return plain(text)


def shown_value(text: str) -> str:
    """A local path as its last part behind an ellipsis; a URL without user, password and query; else the text.

    Each link of a chained URL (``zip://…::s3://…``) is shown so.
    """
    if re.match(r"^[a-z0-9+]+(://[^\[]*?)?::", text):
        return "::".join(map(shown_value, text.split("::")))
    if re.match(r"^(/|~|(file|local):|[A-Za-z]:[\\/])", text, re.IGNORECASE):
        return "…/" + re.split(r"[\\/]", text.rstrip("/\\"))[-1]
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return "…"
    query = "?…" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


def shown_message(text: str, places: Iterable[str] = ()) -> str:
    """A message with each path and URL in it as `shown_value` gives it. places: those that it is known to name."""
    for place in sorted(filter(None, places), key=len, reverse=True):
        text = text.replace(place, shown_value(place))
    return _PLACES.sub(lambda found: shown_value(found.group()), text)


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(entry) for key, entry in value.items() if entry is not None and key not in _PRIVATE}
    if isinstance(value, list | tuple):
        return [_shown(entry) for entry in value]
    return shown_value(value) if isinstance(value, str) else value
