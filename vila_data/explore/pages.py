"""The pages of a run: report.html to look at, card.md to hand on with the shards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

from jinja2 import TemplateError

from vila_data.core.store import Store
from vila_data.explore.card import card
from vila_data.explore.report_page import report_page

REPORT_HTML: Final = "report.html"
CARD_MD: Final = "card.md"
PAGES: Final[Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str]]] = {
    CARD_MD: card,
    REPORT_HTML: report_page,
}
"""Each is drawn from run.json and recipe.lock.yaml alone, so it can be drawn again at any time."""


def write_pages(store: Store, totals: Mapping[str, Any], lock: Mapping[str, Any]) -> None:
    """Draw and commit the pages of a finished run. totals, lock: the content of its run.json and recipe.lock.yaml.

    Everything that they show is committed before. A page that cannot be drawn is told in a warning and an old one of
    that name removed: the run is whole without it, and days of work shall not end in an error for the sake of a chart.

    Raises:
        StorageError: the store cannot be written.
    """
    for path, draw in PAGES.items():
        try:
            text = draw(totals, lock)
        except (ArithmeticError, LookupError, TypeError, ValueError, TemplateError) as error:
            store.remove(path)
            warnings.warn(f"{store.location(path)}: not drawn: {error!r}; the run is finished and whole", stacklevel=2)
            continue
        data = text.encode()
        if store.size(path) != len(data) or store.read(path) != data:
            store.commit_bytes(data, path)


def remove_pages(store: Store) -> None:
    """Delete the pages of a run that is finished no more."""
    for path in PAGES:
        store.remove(path)
