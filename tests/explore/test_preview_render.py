"""The preview page in a browser: read, filtered, paged through, with a phone, in the dark, without a script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.browser import DESK, PHONE, chromium, opened
from tests.explore.made_page import BUDGET, JPEG, PAGE, RECORDS, document, html, image, jpeg, nothing, written
from vila_data.explore.preview.records import CorpusCounts, PreviewPage, PreviewRecord, TokenPiece, TrainingSequence
from vila_data.explore.preview.render import PageBudget, PageCounts, render_page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("page"))


@pytest.fixture
def page(browser: Any, path: Path) -> Iterator[Any]:
    with opened(browser, path) as found:
        yield found.page
        found.assert_quiet()


def left(page: Any) -> list[str]:
    """Names of the records that the filters leave."""
    names: list[str] = page.eval_on_selector_all(".item:not([hidden]) h3", "all => all.map((one) => one.textContent)")
    return names


def focused(page: Any) -> str:
    name: str = page.evaluate("document.activeElement.querySelector('h3')?.textContent || document.activeElement.id")
    return name


ALL = [record.record_id for record in RECORDS]


def test_it_opens_with_everything(page: Any) -> None:
    assert left(page) == ALL
    assert page.inner_text("#count") == "6 records"
    assert page.title() == "Preview of made"
    assert page.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    assert page.locator("img").count() == 7


def test_reading_order_and_places(page: Any) -> None:
    words = page.inner_text("#r1 .body")
    order = ["First sentence of a.", "0.310", "A red boat on the sea.", "404", "Last sentence of a.", "0.120"]
    places = [words.index(word) for word in order]
    assert places == sorted(places)
    assert "text 2 is more similar: 0.250" in words
    assert "next to: A red boat on the sea." in page.get_attribute("#r1 img >> nth=0", "alt")
    assert page.inner_text("#r2 .head").count("dropped: min_images") == 1 and "0 < 1" in page.inner_text("#r2 .head")
    assert "0.17 < 0.20" in page.inner_text("#r2 figure") and page.locator("#r2 img").count() == 1
    assert "meta.jsonl line 8: no JSON" in page.inner_text("#r3")
    assert page.locator("#r1 .missing").get_attribute("aria-label").endswith("no image")


def test_conversations_and_what_is_trained(page: Any) -> None:
    turns = page.locator("#r6 .turn")
    assert turns.count() == 5 and turns.nth(0).inner_text().startswith("system")
    assert turns.nth(1).locator("img").count() == 1 and turns.nth(3).locator("img").count() == 1
    assert [part.strip() for part in turns.nth(3).inner_text().split("\n") if part.strip()][0:2] == ["human", "And"]
    assert page.locator("#r6 mark.trained").count() == 1
    assert page.locator("#r6 mark.trained").text_content() == " in the loss:  A bus.</s> end of the loss "
    assert "600 tokens, 5 in the loss" in page.inner_text("#r6 summary")
    assert "USER:" in page.inner_text("#r6 .plain >> nth=0")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("corpus", "pairs", ["pair-1", "pair-2"]),
        ("fate", "dropped", ["doc-b", "pair-2"]),
        ("fate", "failed", ["doc-a", "bad-7"]),
        ("fate", "kept", ["doc-a", "pair-1", "chat-1"]),
        ("reason", "min_similarity", ["doc-b"]),
        ("reason", "min_images", ["doc-b", "pair-2"]),
        ("reason", "malformed_json", ["bad-7"]),
    ],
)
def test_filters(page: Any, field: str, value: str, expected: list[str]) -> None:
    page.select_option(f"#{field}", value)
    assert left(page) == expected
    assert page.inner_text("#count") == f"{len(expected)} of 6 records"
    assert page.inner_text("#more") == "Filters (1)"
    page.click("#reset")
    assert left(page) == ALL and page.inner_text("#more") == "Filters"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ("0.4", "", ["pair-1"]),
        ("", "0.2", ["doc-a", "doc-b"]),
        ("0.15", "0.2", ["doc-b"]),
        ("0.31", "0.31", ["doc-a"]),
        ("0.9", "", []),
    ],
)
def test_similarity_range(page: Any, low: str, high: str, expected: list[str]) -> None:
    page.fill("#low", low)
    page.fill("#high", high)
    assert left(page) == expected
    assert page.is_visible("#nothing") == (not expected)


def test_filters_together_and_nothing_left(page: Any) -> None:
    page.select_option("#corpus", "docs")
    page.select_option("#fate", "dropped")
    assert left(page) == ["doc-b"]
    page.fill("#words", "boat")
    assert left(page) == [] and page.is_visible("#nothing")
    page.click("#again")
    assert left(page) == ALL and not page.is_visible("#nothing")


def test_search(page: Any) -> None:
    page.keyboard.press("/")
    assert focused(page) == "words"
    page.keyboard.type("YELLOW car")
    assert left(page) == ["pair-1"]
    page.keyboard.press("Escape")
    assert focused(page) != "words"
    page.keyboard.press("r")
    assert left(page) == ALL


def test_paging_by_keyboard(page: Any) -> None:
    seen = []
    for key in ("j", "ArrowRight", "j", "k", "ArrowLeft", "k"):
        page.keyboard.press(key)
        seen.append(focused(page))
    assert seen == ["doc-a", "doc-b", "bad-7", "doc-b", "doc-a", "doc-a"]
    for _ in range(9):
        page.keyboard.press("j")
    assert focused(page) == "chat-1"
    top = page.evaluate(
        "document.activeElement.getBoundingClientRect().top - document.querySelector('.bar').offsetHeight"
    )
    assert top >= -2 or page.evaluate("innerHeight + scrollY >= document.body.scrollHeight - 2")


def test_paging_skips_what_is_filtered(page: Any) -> None:
    page.select_option("#fate", "dropped")
    page.locator("#more").focus()
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert focused(page) == "pair-2"
    page.click("#previous")
    assert focused(page) == "doc-b"
    page.click("#next")
    assert focused(page) == "pair-2"


def test_keys_are_left_to_fields_and_to_the_browser(page: Any) -> None:
    page.focus("#words")
    page.keyboard.type("jk/r?f")
    assert page.input_value("#words") == "jk/r?f"
    page.fill("#words", "")
    page.focus("#fate")
    page.keyboard.press("f")  # a select finds its option by letter
    assert page.input_value("#fate") in ("failed", "")
    assert page.is_visible("#fields")
    page.locator("#more").focus()
    prevented = """(keys) => keys.map((key) => !document.activeElement.dispatchEvent(
        new KeyboardEvent('keydown', {key, ctrlKey: true, bubbles: true, cancelable: true})))"""
    assert page.evaluate(prevented, ["f", "r", "j", "/"]) == [False] * 4


def test_help(page: Any) -> None:
    page.keyboard.press("?")
    assert page.is_visible("#keys") and "next record" in page.inner_text("#keys")
    page.keyboard.press("j")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    assert not page.is_visible("#keys")
    page.click("#help")
    page.click("#close")
    assert not page.is_visible("#keys")


def test_packs(page: Any) -> None:
    pack = page.locator(".pack >> nth=0")
    bars = pack.locator("svg.bars")
    assert bars.get_attribute("aria-label") == (
        "Pack 1: 2 samples, 2 images, 900 of 1,000 tokens (90.0% full), 411 in the loss"
    )
    widths = bars.locator("g >> nth=0").locator("rect")
    assert [widths.nth(i).get_attribute("width") for i in range(3)] == ["600.00", "300.00", "100.00"]
    assert widths.nth(2).get_attribute("class") == "pad"
    assert bars.locator("rect.pic").count() == 2 and bars.locator("rect.loss").count() == 4
    pack.locator("summary").click()
    assert "chat-1" in pack.inner_text() and "doc-a" in pack.inner_text()
    assert page.locator(".pack >> nth=1").locator("rect.pad").count() == 0
    page.click("a[href='#packs']")
    assert page.evaluate("location.hash") == "#packs"


def test_for_screen_readers(page: Any) -> None:
    assert page.evaluate("document.documentElement.lang") == "en"
    roles = {"banner": "header", "main": "main", "search": "search"}
    for tag in roles.values():
        assert page.locator(tag).count() == 1, tag
    assert page.locator("h1").count() == 1
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert page.evaluate("[...document.images].every((one) => one.alt.length > 5)")
    unnamed = """() => [...document.querySelectorAll('button, input, select')].filter((one) =>
        !(one.textContent.trim() || one.getAttribute('aria-label') || one.labels?.length)).length"""
    assert page.evaluate(unnamed) == 0
    assert page.get_attribute("#count", "aria-live") == "polite"
    names = page.eval_on_selector_all(
        "article", "all => all.map((one) => document.getElementById(one.getAttribute('aria-labelledby')).textContent)"
    )
    assert names[:6] == ALL and names[6:] == ["Pack 1", "Pack 2"]
    ids = page.eval_on_selector_all("[id]", "all => all.map((one) => one.id)")
    assert len(ids) == len(set(ids))
    page.keyboard.press("j")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle + document.activeElement.className")
    assert outline.startswith("solid")


OUTSIDE = """() => {
  const items = [...document.querySelectorAll('.item')];
  for (const item of items) item.style.contentVisibility = 'visible';
  return items.flatMap((item) => [...item.querySelectorAll('*')]
    .filter((one) => one.getBoundingClientRect().right > item.getBoundingClientRect().right + 1 ||
      one.matches('.text, .ids, .record-note, h3, .head') && one.scrollWidth > one.clientWidth + 1)
    .map((one) => one.className + ' ' + one.tagName));
}"""
"""What is cut off at the right side of its record, where content-visibility would hide it."""

CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, [r, g, b, a]) =>
      [r, g, b].map((value, i) => value * a / 255 + under[i] * (1 - a / 255)), [255, 255, 255]);
  };
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility({contentVisibilityAuto: false}) || node.closest('svg, script, style')) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(rgba(style.color)), light(behind(node))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), node.className + ' ' + node.tagName + ' ' + node.textContent.slice(0, 30)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(browser: Any, path: Path, dark: bool) -> None:
    with opened(browser, path, dark=dark) as found:
        found.page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        found.page.keyboard.press("?")
        values = found.page.evaluate(CONTRAST)
        assert len(values) > 80
        assert values[0][0] >= 4.5, values[:5]
        background = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) < 200) == dark
        found.assert_quiet()


def test_on_a_phone(browser: Any, path: Path) -> None:
    with opened(browser, path, size=PHONE) as found:
        page = found.page
        page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert not page.is_visible("#fields")
        assert page.evaluate("document.querySelector('.bar').offsetHeight") < 80
        page.click("#more")
        page.select_option("#fate", "dropped")
        assert left(page) == ["doc-b", "pair-2"]
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        small = "all => all.filter((one) => one.offsetHeight && one.offsetHeight < 36).map((one) => one.id)"
        assert page.eval_on_selector_all(".bar button, .bar select, .bar input", small) == []
        assert float(page.evaluate("getComputedStyle(document.querySelector('.text')).fontSize")[:-2]) >= 15
        found.assert_quiet()


def test_long_words_and_urls_are_broken_and_still_lead_there(browser: Any, tmp_path: Path) -> None:
    url = "https://images.test/" + "long-" * 100 + ".jpg"
    words = ("w" * 3_000, "A " + "b" * 400 + " c", "\u5b57" * 500)
    records = [
        document("d" * 200, words, (image(0, url=url, text_index=1),), source_url=url),
        replace(RECORDS[5], texts=tuple(word + "<image>" for word in words), note="n" * 900),
    ]
    for size in (PHONE, DESK):
        with opened(browser, written(tmp_path, replace(PAGE, records=records)), size=size) as found:
            found.page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
            assert found.page.evaluate(OUTSIDE) == []
            assert found.page.get_attribute("#r1 .from a", "href") == url
            assert found.page.get_attribute("#r1 figure a", "href") == url
            found.assert_quiet()


def test_without_a_script(browser: Any, path: Path) -> None:
    context = browser.new_context(viewport=DESK, java_script_enabled=False)
    page = context.new_page()
    page.goto(path.resolve().as_uri())
    words = page.locator("body").inner_text()
    for record in RECORDS:
        assert record.record_id in words
    assert "A red boat on the sea." in words and "0.17 < 0.20" in words and "90.0% full" in words
    assert not page.locator(".bar").is_visible() and page.locator("img >> nth=0").is_visible()
    context.close()


def test_in_print_there_are_no_controls(page: Any) -> None:
    page.emulate_media(media="print")
    assert not page.is_visible(".bar") and page.is_visible("#r1 h3")


def test_an_empty_page(browser: Any, tmp_path: Path) -> None:
    empty = PreviewPage(title="none", choice="0 of 3 records.", corpora=(), records=[])
    with opened(browser, written(tmp_path, empty)) as found:
        assert "No records match this selection" in found.page.inner_text("main")
        found.page.keyboard.press("j")
        found.page.keyboard.press("r")
        found.assert_quiet()


def test_it_opens_at_once_with_many_records(browser: Any, tmp_path: Path) -> None:
    texts = tuple(f"Sentence {n} of many." for n in range(30))
    records = [document(f"doc-{n}", texts, (image(0, text_index=3),)) for n in range(400)]
    with opened(browser, written(tmp_path, replace(PAGE, records=records))) as found:
        assert found.page.inner_text("#count") == "400 records"
        assert found.page.evaluate("getComputedStyle(document.querySelector('.item')).contentVisibility") == "auto"
        found.page.fill("#words", "doc-399")
        assert left(found.page) == ["doc-399"]
        found.assert_quiet()


def test_the_same_page_twice_and_counts() -> None:
    assert html() == html()
    counts = PageCounts()
    page = "".join(render_page(PAGE, PageBudget(64, 50), counts))
    assert (counts.images, counts.images_omitted, counts.images_broken, counts.characters_cut) == (7, 0, 0, 0)
    assert page.count("data:image/webp") == 7


def test_what_is_beyond_the_budget_is_counted() -> None:
    texts = tuple(f"{n} " + "word " * 50 for n in range(100))
    many = document("many", texts, tuple(image(n, text_index=n * 5) for n in range(20)))
    broken = document(
        "broken", ("One.",), (image(0, lambda: b"no jpeg"), image(1, lambda: JPEG[:60]), image(2, nothing))
    )
    counts = PageCounts()
    page = "".join(
        render_page(
            replace(PAGE, records=[many, broken], packs=()), PageBudget(32, 40, images=6, text_bytes=2_000), counts
        )
    )
    assert counts.images == 6 and counts.images_omitted == 14 and counts.images_broken == 2
    assert counts.characters_cut > 20_000
    assert "14 more images" in page and "more texts" in page and page.count("cannot be decoded") == 4
    assert page.count("<figure") == 9


def test_texts_whose_images_are_omitted_say_so() -> None:
    images = tuple(image(n, text_index=place) for n, place in enumerate((0, 1, 2, 2)))
    talk = PreviewRecord("talk", "a", "conversation", texts=("<image>\nOne?", "<image>\nTwo."), roles=("human", "gpt"))
    records = [document("many", ("One.", "Two.", "Three."), images), replace(talk, images=images[:2])]
    page = "".join(render_page(replace(PAGE, records=records, packs=()), PageBudget(32, 40, images=1), PageCounts()))
    first, second = page.split("<article")[1:]
    body = first[first.index("One.") :]
    assert body.index(">1 image omitted to limit the page size<") < body.index(">Two.<")
    assert body.index(">2 images omitted to limit the page size<") < body.index(">Three.<") and "3 more images" in body
    assert second.count("1 image omitted to limit the page size") == 1 and second.index("Two.") < second.index(
        "1 image omitted"
    )
    assert "omitted" not in html()


def test_empty_texts_are_not_free() -> None:
    sequence = TrainingSequence("set", tuple(TokenPiece("", image=n) for n in range(50_000)), 1, 1)
    records = [
        PreviewRecord("made", "texts", "document", texts=("",) * 50_000),
        PreviewRecord(
            "made", "turns", "conversation", texts=("",) * 50_000, roles=("human",) * 50_000, sequence=sequence
        ),
    ]
    page = PreviewPage("made", "2 of 2.", (CorpusCounts("made", 2, 2, 2),), records)
    bare = "".join(render_page(PreviewPage("made", "", (), []), PageBudget(360, 76), PageCounts()))
    html = "".join(render_page(page, PageBudget(360, 76), PageCounts()))
    assert len(html) - len(bare) < 6 * PageBudget(360, 76).text_bytes
    assert "more texts" in html and "the rest is not shown" in html


def test_bars_begin_at_zero() -> None:
    page = "".join(
        render_page(replace(PAGE, thresholds={"docs": 0.2}, records=_scored(0.4, 0.3, -0.1)), BUDGET, PageCounts())
    )
    assert re.findall(r'width="([\d.]+)" height="8" rx="4" class="fill"', page) == ["60.0", "45.0", "0.0"]
    assert set(re.findall(r'<rect x="([\d.]+)" width="2" height="8" class="tick"', page)) == {"30.0"}
    assert "from 0 to 0.400" in page
    page = "".join(
        render_page(replace(PAGE, thresholds={"docs": 0.2}, records=_scored(-0.2, -0.1)), BUDGET, PageCounts())
    )
    assert "from 0 to 1," in page and 'class="tick"' not in page
    page = "".join(render_page(replace(PAGE, thresholds={"docs": 0.4}, records=_scored(0.4)), BUDGET, PageCounts()))
    assert '<rect x="58.0" width="2" height="8" class="tick"' in page
    page = "".join(
        render_page(replace(PAGE, thresholds={"docs": 0.5}, records=_scored(0.4, 0.3)), BUDGET, PageCounts())
    )
    assert 'class="tick"' not in page  # it lies beyond the bar


def _scored(*similarities: float) -> list[PreviewRecord]:
    return [document("bars", ("One.",), tuple(image(n, similarity=one) for n, one in enumerate(similarities)))]


def test_images_keep_their_shape_and_odd_ones_are_shown(browser: Any, tmp_path: Path) -> None:
    shapes = [(600, 300), (300, 600), (2000, 20), (20, 2000), (5, 5), (1, 1)]
    jpegs = [jpeg(*shape) for shape in shapes]
    images = tuple(image(n, lambda n=n: jpegs[n], text_index=0) for n in range(len(shapes)))
    with opened(browser, written(tmp_path, replace(PAGE, records=[document("shapes", ("One.",), images)]))) as found:
        boxes = found.page.eval_on_selector_all("img", "all => all.map((one) => [one.offsetWidth, one.offsetHeight])")
        ratio = [width / height for width, height in boxes]
        assert ratio[0] == pytest.approx(2, rel=0.1) and ratio[1] == pytest.approx(0.5, rel=0.1)
        assert all(width <= 320 and height <= 320 for width, height in boxes)
        found.assert_quiet()
