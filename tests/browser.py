"""Headless Chromium over pages of the project: it notes each request, error and console message of a page.

Tests that use it are skipped where there is no Chromium (Debian's package chromium; CHROMIUM names another).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


@dataclass
class Opened:
    """A page that is open: `page` is Playwright's."""

    page: Any
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def assert_quiet(self) -> None:
        """Nothing on the console, no error, no dialog, and no request but for the page itself and what is inside it."""
        assert self.said == []
        away = [url for url in self.requests if not url.startswith("data:")]
        assert len(away) == 1 and away[0].startswith("file://"), away


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's browser, for as long as the block lasts."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, dark: bool = False, size: dict[str, int] | None = None) -> Iterator[Opened]:
    """A file open in a fresh context: no cookies, no cache; every request is noted, those to elsewhere fail."""
    context = browser.new_context(viewport=size or DESK, color_scheme="dark" if dark else "light")
    page = context.new_page()
    found = Opened(page)
    page.on("console", lambda message: found.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: found.said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (found.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: found.requests.append(request.url))
    page.goto(path.resolve().as_uri())
    yield found
    context.close()
