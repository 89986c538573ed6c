"""The page of a sweep: what it shows, in a browser, and what it never runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.browser import DESK, PHONE, chromium, opened
from tests.made_run import drawn
from vila_data.explore.sweep_page import CutExamples, Example, sweep_page
from vila_data.explore.thumbnail import data_uri

HOSTILE = (
    "<script>window.ran = 1</script>",
    '<img src=x onerror="window.ran = 1">',
    '"><svg onload=window.ran=1>',
    "</style></script><iframe src=https://elsewhere.test></iframe>",
    "{{ 7 * 7 }}{% for x in y %}",
    "javascript:window.ran=1",
    "\u202eright to left\u202c and \x00 a zero byte",
)
VALUES = [0.1, 0.2, 0.3, 0.4]


def value(**changed: Any) -> dict[str, Any]:
    """The JSON of a sweep over two corpora."""
    corpus = {
        "entered": {"images": 200, "records": 100},
        "in_force": {"images": 150, "records": 80},
        "kept": {"images": [190, 150, 90, 10], "records": [95, 80, 50, 9]},
        "unknown": {"images": [0] * 4, "records": [0] * 4},
        "unscored": [0] * 4,
    }
    flat = corpus | {"kept": {"images": [150] * 4, "records": [80] * 4}}
    return {
        "run": "/somewhere/runs/web",
        "key": "filter.images.min_similarity",
        "asked": ["filter.documents.min_images=2"],
        "in_force": 0.2,
        "values": VALUES,
        "corpora": {"docs": corpus, "pairs": corpus, "same": flat},
        "untouched": ["chat"],
        "sets": {
            "docs": {"corpus": "docs", "view": "interleaved", "samples": [95, 80, 50, 9], "images": [190, 150, 90, 10]}
        },
        "page": "sweep.html",
    } | changed


def example(number: int, words: str = "", name: str = "") -> Example:
    picture = data_uri(drawn(number), 160, 60)
    return Example(
        name or f"record-{number}", number % 3, f"{0.1 + number / 1000:.4f}", words or f"Words {number}", (picture,)
    )


def examples() -> list[CutExamples]:
    return [
        CutExamples(
            place,
            corpus,
            tuple(example(place * 20 + shift + n) for n in range(3)),
            tuple(example(place * 20 + shift + 5 + n) for n in range(2)),
        )
        for place in range(4)
        for corpus, shift in (("docs", 0), ("pairs", 10))
    ]


def hostile_page() -> str:
    made = [
        replace(one, dropped=tuple(example(n, words, f"id {words}") for n, words in enumerate(HOSTILE)))
        for one in examples()
    ]
    return sweep_page(value(run=f"/runs/{HOSTILE[0]}", asked=list(HOSTILE), untouched=[HOSTILE[1]]), made)


class Elements(HTMLParser):
    """All elements of a page, with the text beside them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.html"
    path.write_text(sweep_page(value(), examples()))
    return path


def test_the_same_bytes_each_time() -> None:
    assert sweep_page(value(), examples()) == sweep_page(value(), examples())


def test_counts_are_in_the_page() -> None:
    elements = Elements(sweep_page(value(), examples()))
    words = re.sub(r"\s+", " ", elements.words)
    for text in (
        "current value: 0.2",
        "Constant over the sweep: same.",
        "Not affected by this key: chat.",
        "docs 95 samples",
    ):
        assert text in words, text
    assert "+40" in words and "-60" in words  # images beside those at the current value
    assert "/somewhere" not in elements.words
    assert sum(tag == "img" for tag, _ in elements.tags) == 4 * 2 * 5


def test_hostile_texts_stay_texts() -> None:
    elements = Elements(hostile_page())
    assert [tag for tag, _ in elements.tags].count("script") == 1
    assert not {"iframe", "object", "embed", "link", "form"} & {tag for tag, _ in elements.tags}
    for tag, attributes in elements.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/webp;base64,")), attributes
    for words in HOSTILE[:6]:
        assert words in elements.words


def test_hostile_texts_in_a_browser(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "sweep.html"
    path.write_text(hostile_page())
    with opened(browser, path) as found:
        assert found.page.evaluate("window.ran") is None
        assert found.page.locator(".cut:visible .words").first.inner_text() == HOSTILE[0]
        found.assert_quiet()


def test_one_cut_at_a_time_and_the_one_in_force_first(browser: Any, page: Path) -> None:
    with opened(browser, page) as found:
        visible = found.page.locator(".cut:visible")
        assert visible.count() == 1 and visible.locator("h3").first.inner_text() == "min_similarity = 0.2 current"
        assert found.page.locator("#all tr.chosen").count() == 2  # a row a corpus
        found.assert_quiet()


def test_the_keyboard_walks_over_the_cuts(browser: Any, page: Path) -> None:
    with opened(browser, page) as found:
        shown = found.page.locator("#chosen")
        assert shown.get_attribute("aria-live") == "polite"
        found.page.keyboard.press("ArrowRight")
        assert shown.inner_text().startswith("0.3: docs keeps 90 images, 50 records")
        found.page.locator("#place").focus()
        found.page.keyboard.press("End")
        assert found.page.locator("#place").get_attribute("aria-valuetext") == "0.4"
        assert found.page.locator("#after").is_disabled()
        found.page.keyboard.press("Home")
        assert found.page.locator("#before").is_disabled() and found.page.url.endswith("#cut-0")
        found.page.locator("#all a", has_text="0.4").click()
        assert found.page.locator(".cut:visible").get_attribute("id") == "cut-3"
        found.assert_quiet()


def test_shares_or_counts(browser: Any, page: Path) -> None:
    with opened(browser, page) as found:
        units = found.page.locator(".pair:visible text.unit")
        assert units.first.text_content() == "% of images"
        found.page.get_by_role("radio", name="count").check()
        assert units.first.text_content() == "images"
        assert found.page.locator(".pair:visible svg[role=img]").count() == 2
        found.assert_quiet()


@pytest.mark.parametrize(("size", "dark"), [(DESK, False), (PHONE, True)])
def test_it_fits_and_has_names(browser: Any, page: Path, size: dict[str, int], dark: bool) -> None:
    with opened(browser, page, dark=dark, size=size) as found:
        assert found.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        nameless = found.page.evaluate(
            "[...document.querySelectorAll('button,input,svg[role=img],[role=region]')]"
            ".filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent.trim())).length"
        )
        assert nameless == 0
        found.assert_quiet()


def test_without_scripts_everything_is_there(browser: Any, page: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    found = context.new_page()
    found.goto(page.resolve().as_uri())
    assert found.locator(".cut:visible").count() == 4
    assert found.locator("#choose:visible").count() == 0
    context.close()


def test_a_key_that_is_no_threshold(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "sweep.html"
    changed = value(key="filter.documents.on_missing_image", values=list("abcd"), in_force="b")
    path.write_text(sweep_page(changed, []))
    with opened(browser, path) as found:
        assert found.page.locator(".chart").count() == 0
        assert "not a numeric threshold" in found.page.locator(".cut:visible").inner_text()
        found.assert_quiet()


def test_what_is_unknown_is_said_and_drawn() -> None:
    corpus = value()["corpora"]["docs"] | {
        "unknown": {"images": [7, 0, 0, 0], "records": [3, 0, 0, 0]},
        "unscored": [7, 0, 0, 0],
    }
    words = Elements(sweep_page(value(corpora={"docs": corpus}), examples())).words
    assert "docs: up to 7 images have no score" in words and "docs, if every unscored image passes" in words
