"""report.html: the numbers of run.json, quiet and readable in a browser, whatever the web put into its texts."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from rich.console import Console

from tests.browser import DESK, PHONE, chromium, opened
from vila_data.cli.tables import bar_line, print_measures, print_run
from vila_data.explore.recipe_text import shown_message, shown_recipe, shown_value
from vila_data.explore.report import report_page
from vila_data.recipe.recipe import Recipe

HOSTILE = (
    '"><script>alert(1)</script>',
    "<img src=https://evil.test/x onerror=alert(1)>",
    "</style><style>body{display:none}",
    "</svg><svg onload=alert(1)>",
    "\x00\x1b]0;title\x07 \u202egnp.exe",
    "[a](javascript:alert(1)) `b` | {{ 7*7 }} {% raw %}",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def facts(sample_run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    totals = json.loads((sample_run / "run.json").read_text())
    return totals, yaml.safe_load((sample_run / "recipe.lock.yaml").read_text())


def hostile(facts: tuple[dict[str, Any], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts with hostile names wherever one comes from the web, and where none should."""
    totals, lock = copy.deepcopy(facts)
    totals["name"] = lock["recipe"]["name"] = HOSTILE[0]
    for found in totals["measures"]["corpora"].values():
        found["hosts"]["top"] = [[host, 3, 1] for host in HOSTILE]
        found["failures"]["top"] = {HOSTILE[1]: [[host, 3] for host in HOSTILE]}
        found["failures"]["classes"] = dict.fromkeys(HOSTILE, 3)
        found["failures"]["images"] = 18
    for found in totals["measures"]["languages"].values():
        found["counts"] = dict.fromkeys(HOSTILE, 3)
    for text in HOSTILE:
        totals["funnel"]["docs"]["filter"]["images"][f"dropped:{text}"] = 5
    lock["recipe"]["corpora"]["docs"]["files"] = list(HOSTILE)
    for source in totals["blend"]["sources"]:
        source["label"] = HOSTILE[3]
    return totals, lock


def test_the_page_is_small_and_shows_the_funnel(sample_run: Path, facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    totals, _ = facts
    text = (sample_run / "report.html").read_text()
    assert len(text.encode()) < 1_000_000
    figures = [ElementTree.fromstring(figure) for figure in re.findall(r"<figure.*?</figure>", text, re.S)]
    flows = [figure for figure in figures if "".join(figure.find("figcaption").itertext()) in ("Records", "Images")]  # type: ignore[union-attr]
    expected = [
        (corpus, unit)
        for corpus in totals["funnel"]
        for unit in ("records", "images")
        if sum(totals["funnel"][corpus]["download"][unit].values())
    ]
    assert len(flows) == len(expected) == 7
    for figure, (corpus, unit) in zip(flows, expected, strict=True):
        shown: dict[str, dict[str, int]] = {}
        for row in figure.findall(".//tbody/tr"):
            stage, fate, count, _ = ["".join(cell.itertext()) for cell in row]
            if not stage.startswith("set "):
                shown.setdefault(stage, {})[fate.replace(": ", ":", 1)] = int(count.replace(",", ""))
        stages = {stage: units[unit] for stage, units in totals["funnel"][corpus].items() if unit in units}
        assert shown == stages
    assert "min_similarity 0.5" in text and "guessed" not in text
    for stage in ("download", "score", "filter", "shard", "encode"):
        assert f'<th scope="row">{stage}</th>' in text


def test_no_folder_of_this_machine_is_shown(sample_run: Path, sample_recipe: Path) -> None:
    lock = (sample_run / "recipe.lock.yaml").read_text()
    assert str(sample_recipe.parent) in lock, "there is no folder to hide: this proves nothing"
    for name in ("report.html", "card.md"):
        text = (sample_run / name).read_text()
        assert str(sample_recipe.parent) not in text and str(Path.home()) not in text
        assert "…/" in text


def test_what_is_shown_of_a_message() -> None:
    shown = {
        "/home/me/my data/a.jsonl: row 3: no text": "…/a.jsonl: row 3: no text",
        "/home/me/a.jsonl:12: texts and/or images": "…/a.jsonl:12: texts and/or images",
        "'/models/llama' is no folder (looked in ~/runs/x)": "'…/llama' is no folder (looked in …/x)",
        "s3://key:secret@bucket/a.jsonl: row 3: no such file: b / c": "s3://bucket/a.jsonl: row 3: no such file: b / c",
        "https://h.test/a?sig=secret: 403": "https://h.test/a?…: 403",
        "zip://a.jsonl::/home/me/b.zip: row 1": "zip://a.jsonl::…/b.zip: row 1",
        "caption is a int, not a text": "caption is a int, not a text",
    }
    assert {text: shown_message(text) for text in shown} == shown
    assert shown_message("/it's: here/a.jsonl: row 1", ["/it's: here/a.jsonl"]) == "…/a.jsonl: row 1"


def test_what_is_shown_of_a_recipe() -> None:
    shown = {
        "/home/me/data/a.jsonl": "…/a.jsonl",
        "file:///srv/x/": "…/x",
        "C:\\data\\b.parquet": "…/b.parquet",
        "s3://key:secret@bucket/c": "s3://bucket/c",
        "https://me@host.test/d.json?token=secret#f": "https://host.test/d.json?…",
        "openai/clip-vit-large-patch14-336": "openai/clip-vit-large-patch14-336",
        "http://[broken": "…",
        "http://[::1]:80/e": "http://[::1]:80/e",
        "LOCAL:///srv/x": "…/x",
        "zip://g.jsonl::/home/me/g.zip": "zip://g.jsonl::…/g.zip",
        "simplecache::s3://key:secret@bucket/h?sig=secret": "simplecache::s3://bucket/h?…",
    }
    assert {text: shown_value(text) for text in shown} == shown
    text = shown_recipe(
        {"download": {"contact": "me@host.test", "retries": 2, "resize": None}, "resources": {"scan": {}}}
    )
    assert yaml.safe_load(text) == {"download": {"retries": 2}}


def test_it_opens_quietly_and_fits(browser: Any, sample_run: Path) -> None:
    for size in (DESK, PHONE):
        with opened(browser, sample_run / "report.html", size=size) as found:
            assert found.page.title() == "sample"
            assert found.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert found.page.locator("svg[role=img]").count() > 20
            unnamed = "[...document.querySelectorAll('svg')].filter(s => !s.ariaLabel && s.ariaHidden != 'true').length"
            assert found.page.evaluate(unnamed) == 0
            found.page.locator("summary").last.click()
            assert found.page.locator("pre").is_visible()
            found.assert_quiet()


def test_no_table_is_broken_into_letters(browser: Any, sample_run: Path) -> None:
    cells = """[...document.querySelectorAll('.wide th, .wide td')].filter(c => c.checkVisibility()).map(c => {
      const range = document.createRange(); range.selectNodeContents(c);
      return new Set([...range.getClientRects()].map(r => Math.round(r.top))).size })"""
    with opened(browser, sample_run / "report.html", size=PHONE) as found:
        lines = found.page.evaluate(cells)
        assert len(lines) > 60 and max(lines) == 1


CUT = {
    "images_left_out": 7,
    "images": 93,
    "tokens": 80,
    "tokens_cut": 40,
    "samples": 20,
    "samples_cut": 1,
    "failed:too_long": 3,
    "failed:template_refused: System role <b>not</b> supported by this chat template, at length": 2,
}


def test_what_encoding_left_out_is_on_the_page(facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    totals, lock = copy.deepcopy(facts)
    assert "Encoding cut nothing" in report_page(totals, lock)
    totals["tokens"]["docs"] |= CUT
    text = report_page(totals, lock).split('id="left-out-title"')[1].split("</table>")[0]
    assert "<b>not" not in text
    rows = [re.findall(r">([^<]*)(?:</bdi>)?</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", text, re.S)]
    length = "pack.sequence_length or pack.tokens_per_image"
    refused = "template_refused: System role &lt;b&gt;not&lt;/b&gt; supported by this chat template, at length"
    assert rows[1:] == [
        ["docs", "tokens truncated, in 4 samples", "33.3%", "40", "120 tokens", length],
        ["docs", "images omitted", "7.0%", "7", "100 images", f"pack.max_images_per_document, {length}"],
        ["docs", "samples skipped", "25.0%", "5", "20 samples", ""],
        ["docs", "samples skipped: too_long", "15.0%", "3", "20 samples", length],
        [
            *("docs", f"samples skipped: {refused}", "10.0%", "2", "20 samples"),
            "the tokenizer&#39;s chat template, or pack.template",
        ],
    ]


def test_what_encoding_left_out_fits_a_terminal(facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    totals = copy.deepcopy(facts[0])
    totals["tokens"] = {"docs": totals["tokens"]["docs"] | CUT}
    console = Console(width=80, record=True, file=io.StringIO())
    print_run(console, totals)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text.split("token files")[1]
    assert re.search(r"│ docs │ tokens truncated, in 4 samples +│ 33.3% │ +40 │ +120 tokens │", text)
    assert "to change template_refused: the tokenizer's chat template, or pack.template" in text
    assert "to change tokens truncated: pack.sequence_length or pack.tokens_per_image" in text


def test_three_shares_and_their_warnings_are_shown(facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    totals, lock = copy.deepcopy(facts)
    source = totals["blend"]["sources"][0]
    source["of_whole"] = {"recipe": 0.161, "target": 0.7111, "actual": 0.711}
    totals["blend"]["warnings"] = [{"text": f"{source['label']} is 71.1%, not 16.1% <i>: exhausted"}]
    text = report_page(totals, lock)
    assert '<td class="n">16.10%</td><td class="n">71.11%</td><td class="n">71.10%</td>' in text
    assert "actual 71.1%, target 71.1%, recipe 16.1%" in text
    assert "is 71.1%, not 16.1% &lt;i&gt;: exhausted" in text
    console = Console(width=80, record=True, file=io.StringIO())
    print_run(console, totals)
    shown = console.export_text()
    assert re.search(r"│ 16.10% │ 71.11% │ 71.10% │", shown)
    assert re.search(r"warning: .* is 71.1%,\s+not\s+16.1%", shown)


def test_files_have_no_hosts(facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    totals, lock = facts
    assert totals["measures"]["corpora"]["chat"]["hosts"]["top"][0][0] == "(no host)"
    text = report_page(totals, lock)
    assert "(no host)" not in text.split('id="distributions"')[1].split("Failures by class and host")[-2]
    assert text.count("<figcaption>Hosts") == 2


def test_the_flow_of_all_corpora_gives_way_to_theirs_on_a_phone(browser: Any, sample_run: Path) -> None:
    for size, shown in ((DESK, True), (PHONE, False)):
        with opened(browser, sample_run / "report.html", size=size) as found:
            assert found.page.locator(".overview").is_visible() == shown
            assert found.page.locator("figure:has(figcaption:text-is('Images')) > svg").first.is_visible()


CONTRAST = """() => {
  const lum = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => { x /= 255; return x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4 });
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2] };
  const card = lum(getComputedStyle(document.querySelector('.card')).backgroundColor);
  const worst = {};
  for (const node of document.querySelectorAll('.chart svg text, .card p, .card td, .card th, .card dd, summary')) {
    const style = getComputedStyle(node), ink = lum(node.tagName == 'text' ? style.fill : style.color);
    const ratio = (Math.max(ink, card) + .05) / (Math.min(ink, card) + .05);
    if (!(ratio >= 4.5)) worst[node.textContent.slice(0, 40)] = ratio;
  }
  return worst; }"""


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out_from_their_card(browser: Any, sample_run: Path, dark: bool) -> None:
    with opened(browser, sample_run / "report.html", dark=dark) as found:
        assert found.page.evaluate(CONTRAST) == {}


def test_nothing_of_the_web_is_run_or_loaded(
    browser: Any, facts: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    text = report_page(*hostile(facts))
    for figure in re.findall(r"<figure.*?</figure>", text, re.S):
        ElementTree.fromstring(figure)
    (tmp_path / "report.html").write_text(text)
    with opened(browser, tmp_path / "report.html", size=PHONE) as found:
        assert found.page.title() == HOSTILE[0]
        assert found.page.locator("h2").first.is_visible()
        assert found.page.locator("script, img, iframe, link, object").count() == 0
        assert found.page.evaluate("[...document.querySelectorAll('a')].every(a => a.getAttribute('href')[0] == '#')")
        assert found.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        found.assert_quiet()


def test_runs_with_little_in_them(facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    totals, lock = copy.deepcopy(facts)
    totals |= {"blend": None, "tokens": {}, "speed": {}, "seconds": {}, "sets": {}}
    totals["measures"] |= {"sets": {}, "languages": {"docs": {"measured": False, "why": "it is not there"}}}
    for found in totals["measures"]["corpora"].values():
        found |= dict.fromkeys(
            ("similarity", "shorter_side", "aspect_ratio", "image_bytes", "images_a_record", "text_chars")
        )
        found["hosts"] |= {"images": 0, "top": [], "distinct": None}
        found["failures"] |= {"images": 0, "classes": {}, "http_codes": {}, "top": {}}
    for stages in totals["funnel"].values():
        for units in stages.values():
            for unit in units:
                units[unit] = {"kept": 0}
    text = report_page(totals, lock)
    assert "<h2" in text and "NaN" not in text


def test_inspect_shows_the_same(facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    totals, _ = facts
    console = Console(width=200, record=True, file=io.StringIO())
    print_measures(console, hostile(facts)[0])
    assert "\x1b]" not in console.export_text(clear=False)
    console.export_text()
    print_measures(console, totals)
    text = console.export_text()
    for name, found in totals["measures"]["corpora"].items():
        if found["similarity"] is not None:
            counted = sum(found["similarity"]["counts"])
            assert re.search(rf"{name} +│ similarity +│ +{counted} ", text)
    assert "min_similarity 0.5" in text and "http_status" in text and "this run" in text


def test_bar_lines() -> None:
    assert bar_line([0, 1, 1000, 500]) == " ▁█▄"
    assert bar_line([]) == "" and bar_line([0, 0]) == "  "
    assert len(bar_line(list(range(100)))) <= 32


def test_the_lock_is_a_recipe(facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """The page's values come from a checked recipe: names in it are plain."""
    with pytest.raises(ValueError, match="name"):
        Recipe.model_validate({**facts[1]["recipe"], "name": HOSTILE[0]}, strict=False)
