"""One page of HTML in one file: it runs no script but its own and loads nothing from anywhere.

Texts, names and URLs in it come from the web. They are escaped by the template engine, and the page's content security
policy names its own style and script by their sha256, so that nothing else is run even where an escape were missing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vila_data.core.readable import many, plain, share


def page(template: str, *, title: str, scripts: Sequence[str] = (), styles: Sequence[str] = (), **values: Any) -> str:
    """The HTML of a template that extends base.html.

    scripts, styles: files of the templates folder, put into the page; style.css always is.
    values: what the template shows; strings in it are escaped.
    """
    return "".join(page_pieces(template, title=title, scripts=scripts, styles=styles, **values))


def page_pieces(
    template: str, *, title: str, scripts: Sequence[str] = (), styles: Sequence[str] = (), **values: Any
) -> Iterator[str]:
    """The same in pieces, for a page that should not be held whole; iterables among the values are read as it goes."""
    style = "\n".join(_source(name) for name in ("style.css", *styles))
    script = "\n".join(_source(name) for name in scripts)
    return (
        _environment()
        .get_template(template)
        .generate(title=title, policy=_policy(style, script), style=Markup(style), script=Markup(script), **values)
    )


def web_address(text: str | None) -> str | None:
    """The text where it is an http or https URL with a host, which alone become links; else None."""
    try:
        parts = urlsplit(text or "")
    except ValueError:
        return None
    return text if parts.scheme in ("http", "https") and parts.hostname else None


def _policy(style: str, script: str) -> str:
    sources = {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": _digest(style),
        "script-src": _digest(script) if script else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in sources.items())


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _source(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vila_data.explore"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["web_address"] = web_address
    environment.filters["plain"] = plain
    environment.filters["many"] = many
    environment.filters["share"] = share
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    return environment
