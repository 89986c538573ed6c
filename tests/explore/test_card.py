"""card.md: a card that Hugging Face's loader reads, the same bytes each time, in which nothing from the web is Markdown."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import vila_data as vd
from tests.explore.test_report_page import CUT, HOSTILE
from vila_data.explore.card import card, code, fenced, front_matter, words


@pytest.fixture(scope="module")
def facts(sample_run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    totals = json.loads((sample_run / "run.json").read_text())
    return totals, yaml.safe_load((sample_run / "recipe.lock.yaml").read_text())


def rendered(text: str) -> Any:
    """The tokens of the card's Markdown, with tables, and with links made of bare addresses as on the hub."""
    return MarkdownIt("gfm-like", {"linkify": False}).parse(text)


def test_the_hubs_loader_reads_it(sample_run: Path, facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    totals, _ = facts
    loaded = DatasetCard.load(sample_run / "card.md")
    data = loaded.data.to_dict()
    assert data == front_matter(totals)
    assert data["license"] == "unknown" and data["language"] == ["en"] and data["size_categories"] == ["n<1K"]
    for config in data["configs"]:
        (entry,) = config["data_files"]
        assert sorted(sample_run.glob(entry["path"])), entry
    assert loaded.text.lstrip().startswith("# sample")


def test_its_figures_are_the_runs(sample_run: Path, facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    totals, _ = facts
    text = (sample_run / "card.md").read_text()
    for name, stages in totals["funnel"].items():
        for stage, units in stages.items():
            for unit, fates in units.items():
                for fate, count in fates.items():
                    if fate != "kept":
                        kind, reason = fate.split(":")
                        row = f"| {words(name)}, {stage} | {kind}: {words(reason)} | {unit} | {count:,} |"
                        assert row in text, row
    for name, counts in totals["tokens"].items():
        row = " | ".join(f"{counts[key]:,}" for key in ("samples", "sequences", "tokens", "text_tokens"))
        assert f"| {words(name)} | {row} |" in text
    for source in totals["blend"]["sources"]:
        whole = source["of_whole"]
        row = " | ".join(f"{whole[key]:.1%}" for key in ("recipe", "target", "actual"))
        assert f"{words(source['label'])} | {source['unit']} | {row} |" in text
    for warning in totals["blend"]["warnings"]:
        assert f"\n- {words(warning['text'])}\n" in text
    assert not re.search(r"seconds|20\d\d-\d\d", text)


def test_figures_stand_to_the_right_and_words_to_the_left(sample_run: Path) -> None:
    lines = (sample_run / "card.md").read_text().splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("| ---")]
    assert len(rules) == 6
    for number in rules:
        row = [cell.strip() for cell in lines[number + 1].strip("|").split("|")]
        for rule, cell in zip(lines[number].strip("|").split("|"), row, strict=True):
            assert rule.strip() == ("---:" if re.match(r"-?[\d.]", cell) else "---"), (lines[number - 1], cell)


def test_what_encoding_left_out_is_a_share(facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    totals, lock = copy.deepcopy(facts)
    assert "Encoding cut nothing" in card(totals, lock)
    totals["tokens"]["docs"] |= CUT
    text = card(totals, lock)
    keys = words("pack.sequence_length or pack.tokens_per_image")
    assert f"| docs | {words('tokens truncated, in 4 samples')} | {keys} | 33.3% | 40 | 120 |" in text
    assert f"samples skipped{words(': too_long')} | {keys} | 15.0% | 3 | 20 |" in text
    assert "| set | left out by encoding | to change it | share | count | of |" in text


def test_nothing_is_said_of_no_texts_and_no_hosts(facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    totals, lock = copy.deepcopy(facts)
    totals["measures"]["languages"]["docs"] |= {"sampled": 0, "of": 0, "counts": {}}
    text = card(totals, lock)
    assert "Languages of docs" not in text and "Languages of pairs" in text
    assert "The images of chat are local files; nothing was downloaded." in text and "(no host)" not in text


def test_its_code_runs(sample_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(sample_run)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", (sample_run / "card.md").read_text(), re.S)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    exec(blocks[0], names)
    assert len(names["samples"]) == len(vd.open_shards("shards/docs"))
    exec(blocks[1], names)
    assert {"jpg", "txt", "json"} <= set(next(iter(names["rows"])))


def test_every_config_can_be_loaded(
    sample_run: Path, facts: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    import datasets

    for config in front_matter(facts[0])["configs"]:
        files = [str(sample_run / entry["path"]) for entry in config["data_files"]]
        rows = datasets.load_dataset(
            "webdataset", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path)
        )
        assert sum(1 for _ in rows) == facts[0]["sets"][config["config_name"]]["samples"]


def test_nothing_from_the_web_is_markdown(facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    totals, lock = copy.deepcopy(facts)
    nasty = [*HOSTILE, "https://evil.test", "www.evil.test", "a|b", "```\n# title", "**b**", "&lt;", "~~~", "x`y``z"]
    totals["name"] = nasty[0]
    for found in totals["measures"]["corpora"].values():
        found["hosts"]["top"] = [[host, 3, 1] for host in nasty]
    for text in nasty:
        totals["funnel"]["docs"]["filter"]["images"][f"dropped:{text}"] = 5
    lock["recipe"]["corpora"]["docs"]["files"] = nasty
    text = card(totals, lock)
    body = text.split("\n---\n", 1)[1]
    assert yaml.safe_load(text.split("---\n")[1])["pretty_name"] == nasty[0]
    clean = card(*facts).split("\n---\n", 1)[1]
    plain, dirty = rendered(clean), rendered(body)
    assert [token.type for token in dirty if token.type.startswith("h")] == [
        t.type for t in plain if t.type.startswith("h")
    ]
    assert len([token for token in dirty if token.type == "fence"]) == len([t for t in plain if t.type == "fence"])
    allowed = {"text", "code_inline", "softbreak", "text_special"}
    for token in dirty:
        assert token.type not in ("html_block",)
        assert {child.type for child in token.children or ()} <= allowed, token.content
    assert "evil.test" in body, "the hostile hosts are not in the card: this proves nothing"


@given(st.text(max_size=40))
def test_code_spans_and_words_stay_what_they_are(text: str) -> None:
    (_, inline, _) = rendered(f"x {code(text)} y")
    assert [child.type for child in inline.children] == ["text", "code_inline", "text"]
    tokens = rendered(f"x {words(text)} y")
    assert len(tokens) == 3 and {child.type for child in tokens[1].children} <= {"text", "text_special"}


@given(st.text("`\n ab~", max_size=60))
def test_fences_hold_what_is_in_them(text: str) -> None:
    tokens = rendered(fenced(text, "yaml"))
    assert [token.type for token in tokens] == ["fence"] and tokens[0].content.rstrip() == text.rstrip()


def test_little_is_said_of_an_empty_run(facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    totals, lock = copy.deepcopy(facts)
    for found in totals["sets"].values():
        found |= {"samples": 0, "images": 0, "shards": 0, "bytes": 0}
    totals |= {"tokens": {}, "blend": None}
    totals["measures"] |= {"sets": {}, "languages": {"docs": {"measured": False, "why": ""}}}
    lock["limit"] = 5
    text = card(totals, lock)
    assert "Every set is empty." in text and "not measured" in text and "Only the first 5 rows" in text
    assert "configs" not in front_matter(totals) and "language" not in front_matter(totals)
