"""Whatever the web wrote into a run, nothing of it acts in a page, and nothing is loaded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.browser import chromium, opened
from tests.explore.hostile_strings import FAR, HIT, HOSTILE, LARGE, MARKUP, TEMPLATES, UNSEEN, URLS
from tests.explore.made_page import BUDGET, JPEG, html
from tests.explore.made_page import stored as stored_jpeg
from tests.made_run import Item, drawn, make_set, write_part, write_parts_list
from vila_data.core.layout import Part
from vila_data.core.records import ImageRef, Record
from vila_data.core.store import Store
from vila_data.core.tables import DOWNLOAD_RECORDS
from vila_data.core.tarcodec import TarWriter
from vila_data.explore.page import page_pieces
from vila_data.explore.preview import Choice, ListedRecord, preview
from vila_data.explore.preview.records import PreviewImage, PreviewPage, PreviewRecord
from vila_data.filter.part import filter_part
from vila_data.recipe.lock import lock_value, write_lock
from vila_data.recipe.recipe import Recipe
from vila_data.shard.config import ShardSet

TAGS = frozenset(
    re.findall(
        r"\w+",
        "html head meta title style body a header h1 h2 h3 p details summary div table thead tbody tr th td mark span "
        "main search label input button select option fieldset legend section article bdi figure img figcaption svg g "
        "rect defs pattern ul li dialog dl dt dd kbd script",
    )
)
SHORT = [text for text in HOSTILE if len(text) < 10_000]


class Parsed(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._in = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        self._in = tag

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        (self.scripts if self._in == "script" else self.words).append(data)


def assert_harmless(text: str) -> Parsed:
    """No tag, attribute or address that is not the page's own."""
    text.encode()
    found = Parsed(text)
    assert {tag for tag, _ in found.tags} <= TAGS
    assert len(found.scripts) == 1
    digest = base64.b64encode(hashlib.sha256(found.scripts[0].encode()).digest()).decode()
    policies = [attrs["content"] for tag, attrs in found.tags if tag == "meta" and "http-equiv" in attrs]
    assert len(policies) == 1 and f"script-src 'sha256-{digest}'" in str(policies[0])
    for tag, attrs in found.tags:
        assert not [name for name in attrs if name.startswith("on") or name in ("style", "srcset", "srcdoc", "action")]
        assert tag != "meta" or attrs.get("http-equiv") in (None, "Content-Security-Policy")
        if "src" in attrs:
            assert tag == "img" and re.fullmatch(r"data:image/webp;base64,[A-Za-z0-9+/=]+", str(attrs["src"]))
        if "href" in attrs:
            href = str(attrs["href"])
            assert tag == "a" and (re.fullmatch(r"#\w+", href) or re.fullmatch(r"https?://[!-~]+", href)), href
            assert href.startswith("#") or attrs["rel"] == "noopener noreferrer nofollow"
    return found


def filled(kind: Any, text: str, name: str = "") -> Any:
    """A value of a type, with `text` in place of every string in it."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is str or origin is typing.Literal:
        return text
    if origin is types.UnionType:
        return filled(args[0], text, name)
    if origin is tuple:
        return tuple(filled(arg, text, name) for arg in args if arg is not Ellipsis)
    if origin is dict:
        return {text: 0.2}
    if is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{field.name: filled(hints[field.name], text, field.name) for field in fields(kind)})
    if kind in (int, float, bool):
        return {int: 1, float: 0.25, bool: True}[kind]
    if name == "jpeg":
        return stored_jpeg
    assert origin is not None and origin.__name__ == "Sequence", (kind, name)
    return [filled(args[0], text, name)]


def hostile_page(texts: list[str]) -> PreviewPage:
    """A page with every string of every type in it replaced, one record of each kind a text."""
    first = filled(PreviewPage, texts[0])
    made: list[PreviewRecord] = []
    for text in texts:
        record: PreviewRecord = filled(PreviewRecord, text)
        image: PreviewImage = filled(PreviewImage, text)
        images = (replace(image, index=0, text_index=0), replace(image, index=1, text_index=None))
        made.append(replace(record, images=images, source_url=text))
        made.append(replace(record, kind="document", fate="kept", roles=(), texts=(text, text), images=images))
        made.append(replace(record, kind="pair", fate="dropped", roles=(), texts=(text,), images=images[:1]))
        made.append(replace(record, kind="conversation", roles=(text, "gpt"), texts=(f"<image>{text}", text)))
    source = filled(PreviewPage, texts[0]).packs[0].samples[0]
    pack = replace(first.packs[0], length=4, samples=(replace(source, source=0, images=((0, 1),), trained=((0, 1),)),))
    return replace(first, records=made, packs=(pack,), shard_sets=(texts[0],))


def test_the_suite_is_not_empty() -> None:
    assert len(HOSTILE) == len(set(HOSTILE)) >= 40
    assert sum(HIT in text for text in HOSTILE) >= 30 and sum(FAR in text for text in HOSTILE) >= 10


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_every_field_of_a_page(text: str) -> None:
    page = html(hostile_page([text]))
    assert_harmless(page)
    assert len(page) < 1_500_000 if text in LARGE else 200_000


def test_all_of_them_in_one_page_are_shown_verbatim() -> None:
    found = assert_harmless(html(hostile_page(list(HOSTILE))))
    words = "".join(found.words)
    for text in (*MARKUP, *TEMPLATES):
        assert words.count(text) >= 4, text
    for char in "\u202e\u200b\x00\ufeff\u2028":
        assert char not in words.replace(found.scripts[0], "")
        assert f"U+{ord(char):04X}" in words


def stored(text: str) -> str:
    """A text as a column can hold it: `download` puts U+FFFD for lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def hostile_items(texts: list[str]) -> list[Item]:
    """A record for each text, with the text wherever metadata can carry one."""
    items = []
    for number, text in enumerate(texts):
        url = stored(text)
        refs = (ImageRef(url, 1, 0.3, name=text), ImageRef(url, 0, 0.3, name=text))
        record = Record(f"{number} {url[:300]}", "document", (text, text, f"end {text}"), refs, text)
        items.append(Item(record, (drawn(number + 1), None), (0.1 if number % 3 else 0.4, None)))
    return items


def hostile_run(folder: Path) -> Store:
    """A run whose metadata was hostile: documents, rows that are no records, conversations."""
    store = Store(str(folder))
    recipe = {
        "version": 1,
        "name": "hostile",
        "corpora": {
            "docs": {"kind": "mmc4", "files": ["none.jsonl"]},
            "talk": {"kind": "llava", "files": ["none.json"], "image_root": "."},
        },
        "score": {"clip": {"backend": "onnx", "model": "none"}},
        "filter": {
            "images": {"min_similarity": 0.2},
            "documents": {"on_missing_image": "drop_image"},
        },
        "shards": {"docs": {"corpus": "docs", "view": "interleaved"}},
    }
    made = Recipe.model_validate(recipe, strict=False)
    write_lock(store, lock_value(made, None, {}, {}, {}))
    docs: list[Item | None] = [*hostile_items(list(HOSTILE)), None]
    part = write_part(store, "docs", 0, docs)
    write_parts_list(store, "docs", [part])
    _hostile_details(store, part)
    filter_part(store, part, made.rules_for("docs"), made.scores(), None, "test")
    make_set(store, [part], "docs", ShardSet(corpus="docs", view="interleaved"), max_bytes=50_000_000)
    talks = []
    for number, text in enumerate(SHORT):
        turns = (f"<image>\n{text}", text, text, text)
        roles = ("human", "gpt", "human", "gpt")
        record = Record(
            f"{number} {stored(text)}", "conversation", turns, (ImageRef(stored(text), 0),), text, roles, text
        )  # type: ignore[arg-type]
        talks.append(Item(record, (drawn(number),), (None,)))
    part = write_part(store, "talk", 0, talks)
    write_parts_list(store, "talk", [part])
    filter_part(store, part, made.rules_for("talk"), made.scores(), None, "test")
    return store


def _hostile_details(store: Store, part: Part) -> None:
    path = Path(store.location(part.records_table()))
    rows = pq.read_table(path).to_pylist()
    rows[-1] |= {"detail": "".join(MARKUP), "record_id": MARKUP[0]}
    pq.write_table(pa.Table.from_pylist(rows, schema=DOWNLOAD_RECORDS), path)


def hostile_tar(path: Path) -> Path:
    """A shard that somebody else wrote: hostile keys, JSON and members."""
    with open(path, "wb") as stream:
        tar = TarWriter(stream)
        for number, text in enumerate(SHORT):
            key = f"{number}<img src=x onerror=alert(1)>"
            value: dict[str, Any] = {"source": {"corpus": text, "record_id": text, "url": text}, "caption": text}
            value |= {"url": text, "width": text, "height": text, "similarity": 0.1}
            if number % 3 == 1:
                value |= {"conversations": [{"from": text, "value": text}], "system": text, "images": [f"{key}.0.jpg"]}
            if number % 3 == 2:
                value |= {
                    "texts": [text, None, text],
                    "images": [None, f"{key}.jpg", None],
                    "image_info": [{"url": text}],
                }
            tar.add(f"{key}.json", json.dumps(value).encode())
            tar.add(f"{key}.jpg", JPEG if number % 5 else f"<svg onload={HIT}>".encode())
        tar.finish()
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of hostile input: by hand, of a run, of its set, of a tar."""
    folder = tmp_path_factory.mktemp("hostile")
    store = hostile_run(folder / "run")
    tar = hostile_tar(folder / '"><img src=x onerror=alert(1)>{{ 7*7 }}.tar')
    texts = {"heading": MARKUP[1]}
    ids = [f"{number} {text[:300]}" for number, text in enumerate(HOSTILE[:20])]
    listed = tuple(ListedRecord("docs", record_id, 0, MARKUP[3]) for record_id in ids)
    made = {name: folder / f"{name}.html" for name in ("values", "run", "listed", "set", "tar", "worst")}
    made["values"].write_text(html(hostile_page(list(HOSTILE)), BUDGET))
    report = preview(store.url, made["run"], Choice(count=1_000, text="", **texts))
    assert report.records == len(HOSTILE) + 1 + len(SHORT)
    json.dumps(report.as_dict(), ensure_ascii=False).encode()
    preview(store.url, made["worst"], Choice(order="worst", text="script", corpus="docs"))
    preview(store.url, made["listed"], Choice(order="listed", listed=listed, **texts))
    preview(store.location("shards/docs"), made["set"], Choice(count=1_000))
    found = preview(tar, made["tar"], Choice(count=1_000))
    assert found.pictures_broken > 0
    json.dumps(found.as_dict(), ensure_ascii=False).encode()
    return made


NAMES = ("values", "run", "listed", "set", "tar", "worst")


@pytest.mark.parametrize("name", NAMES)
def test_pages_of_hostile_runs(pages: dict[str, Path], name: str) -> None:
    found = assert_harmless(pages[name].read_text())
    words = "".join(found.words)
    assert sum(text in words for text in MARKUP) > 10


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize("name", NAMES)
def test_nothing_acts_in_a_browser(browser: Any, pages: dict[str, Path], name: str) -> None:
    with opened(browser, pages[name]) as found:
        page = found.page
        page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        page.fill("#words", "script")
        page.keyboard.press("Escape")
        for key in ("j", "j", "k", "r", "j"):
            page.keyboard.press(key)
        page.hover(".item >> nth=0")
        tags = set(page.evaluate("[...new Set([...document.querySelectorAll('*')].map((one) => one.localName))]"))
        assert tags <= TAGS
        assert page.evaluate("document.scripts.length") == 1
        handlers = "[...document.querySelectorAll('*')].flatMap((one) => one.getAttributeNames())"
        assert not [one for one in page.evaluate(handlers) if one.startswith("on")]
        assert page.evaluate("window.hit") is None
        hrefs = page.evaluate("[...document.querySelectorAll('a')].map((one) => one.protocol)")
        assert set(hrefs) <= {"file:", "http:", "https:"}
        assert page.evaluate("document.querySelector('.item').offsetHeight") > 50
        words = page.evaluate("document.body.textContent")
        assert sum(text in words for text in MARKUP) > 10
        assert "49" not in page.title() and "{{ 7*7 }}" in (page.title() if name == "tar" else "{{ 7*7 }}")
        found.assert_quiet()


def test_hostile_pages_stay_within_a_phone(browser: Any, pages: dict[str, Path]) -> None:
    for name in NAMES:
        with opened(browser, pages[name], size={"width": 390, "height": 844}) as found:
            assert found.page.evaluate("document.documentElement.scrollWidth") <= 390, name


def test_a_policy_stands_behind_the_escaping(browser: Any, tmp_path: Path) -> None:
    """Were an escape missing, the policy would still stop it: a template that forgets is written here by hand."""
    text = "".join(page_pieces("base.html", title="open"))
    path = tmp_path / "open.html"
    bad = f"<script>{HIT}</script><img src={FAR}.gif onerror={HIT}><iframe src={FAR}></iframe><base href={FAR}/>"
    path.write_text(text.replace('<main id="main" tabindex="-1">', f'<main id="main" tabindex="-1">{bad}'))
    with opened(browser, path) as found:
        assert found.page.evaluate("window.hit") is None
        assert any("Content Security Policy" in line for line in found.said)
        with pytest.raises(AssertionError):
            found.assert_quiet()


def test_hostile_urls_are_never_links() -> None:
    page = html(hostile_page([*URLS, *UNSEEN]))
    hrefs = {str(attrs["href"]) for tag, attrs in assert_harmless(page).tags if tag == "a"}
    assert {href for href in hrefs if not href.startswith("#")} == {f"https://a.test/'><script>{HIT}</script>"}
