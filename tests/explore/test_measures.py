"""Measures: what the columns say, counted again here row by row; counters of bounded size; speeds; a run that was killed."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vila_data as vd
from tests.faults.kills import tree
from tests.made_requests import counted_ranges
from vila_data.core.receipts import Receipt
from vila_data.core.store import Store
from vila_data.explore import languages as measures_language
from vila_data.explore import report as pages
from vila_data.explore.inspection import inspect
from vila_data.explore.languages import SAMPLED, sampled_texts
from vila_data.explore.measures import NO_HOST, Binned, TopNames, hosts_of
from vila_data.recipe.lock import read_lock
from vila_data.runs.report import Speeds
from vila_data.shard.manifest import read_manifest


@pytest.fixture(scope="module")
def totals(sample_run: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((sample_run / "run.json").read_text())
    return value


def rows(out: Path, pattern: str) -> list[dict[str, Any]]:
    found = [
        path
        for path in sorted(out.glob(pattern))
        if pattern.endswith(".records.parquet") or ".records." not in path.name
    ]
    return [row for path in found for row in pq.read_table(path).to_pylist()]


def joined(out: Path, corpus: str) -> list[dict[str, Any]]:
    """Images of a corpus, each with its fate and, where there are scores, its similarity."""
    fates: dict[tuple[str, int], str] = {}
    for path in sorted(out.glob(f"filter/{corpus}/part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            if row["image_index"] is not None:
                fates[row["record_id"], row["image_index"]] = row["fate"]
    images = rows(out, f"download/{corpus}/part-*.parquet")
    scores = {(row["record_id"], row["image_index"]): row for row in rows(out, f"score/{corpus}/clip/part-*.parquet")}
    for image in images:
        key = image["record_id"], image["image_index"]
        image["fate"] = fates[key]
        image["similarity"] = scores[key]["similarity"] if key in scores else None
    assert len(images) == len(fates) == len({(image["record_id"], image["image_index"]) for image in images})
    return images


def recounted(value: dict[str, Any], found: list[tuple[float, bool]]) -> None:
    """A histogram is the one that these values make; (value, kept)."""
    edges = [math.inf if edge is None else np.float32(edge) for edge in value["edges"]]
    columns = [
        sum(np.float32(low) <= np.float32(number) < high for number, _ in found)
        for low, high in itertools.pairwise(edges)
    ]
    kept = [
        sum(np.float32(low) <= np.float32(number) < high for number, is_kept in found if is_kept)
        for low, high in itertools.pairwise(edges)
    ]
    assert value["counts"] == columns and sum(columns) == len(found)
    assert value["kept"] == kept
    assert value["mean"] == pytest.approx(sum(number for number, _ in found) / len(found), rel=1e-4)


@pytest.mark.parametrize("corpus", ["docs", "pairs", "chat"])
def test_histograms_are_what_the_columns_hold(sample_run: Path, totals: dict[str, Any], corpus: str) -> None:
    images = joined(sample_run, corpus)
    found = totals["measures"]["corpora"][corpus]
    there = [image for image in images if image["status"] == "ok"]
    assert there
    sizes = [(min(i["original_width"], i["original_height"]), i["fate"] == "kept") for i in there]
    recounted(found["shorter_side"], sizes)
    recounted(found["aspect_ratio"], [(i["original_width"] / i["original_height"], i["fate"] == "kept") for i in there])
    recounted(found["image_bytes"], [(i["bytes"], i["fate"] == "kept") for i in there])
    scored = [(i["similarity"], i["fate"] == "kept") for i in images if i["similarity"] is not None]
    assert bool(scored) == (corpus != "chat") == (found["similarity"] is not None)
    if scored:
        recounted(found["similarity"], scored)
        assert found["similarity"]["marks"] == [["min_similarity", 0.5]]


@pytest.mark.parametrize("corpus", ["docs", "pairs", "chat", "text"])
def test_records_are_counted(sample_run: Path, totals: dict[str, Any], corpus: str) -> None:
    found = totals["measures"]["corpora"][corpus]
    fates = {
        (path.name, row["row"]): row["fate"]
        for path in sorted(sample_run.glob(f"filter/{corpus}/part-*.parquet"))
        for row in pq.read_table(path).to_pylist()
        if row["image_index"] is None
    }
    per_record: Counter[tuple[str, int]] = Counter()
    for path in sorted(sample_run.glob(f"filter/{corpus}/part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            per_record[path.name, row["row"]] += row["image_index"] is not None and row["fate"] == "kept"
    kept = [(float(per_record[key]), True) for key, fate in fates.items() if fate == "kept"]
    recounted(found["images_a_record"], kept)
    chars = [
        (row["text_chars"], fates[path.name.replace(".records", ""), row["row"]] == "kept")
        for path in sorted(sample_run.glob(f"download/{corpus}/part-*.records.parquet"))
        for row in pq.read_table(path).to_pylist()
        if row["status"] == "ok"
    ]
    recounted(found["text_chars"], chars)
    assert sum(found["images_a_record"]["kept"]) == totals["funnel"][corpus]["filter"]["records"]["kept"]


@pytest.mark.parametrize("corpus", ["docs", "pairs", "chat", "text"])
def test_hosts_and_failures_sum_to_the_funnel(sample_run: Path, totals: dict[str, Any], corpus: str) -> None:
    images = joined(sample_run, corpus)
    found, funnel = totals["measures"]["corpora"][corpus], totals["funnel"][corpus]
    hosts = Counter(urlsplit(image["url"]).hostname or NO_HOST for image in images)
    failed = Counter(urlsplit(image["url"]).hostname or NO_HOST for image in images if image["status"] == "failed")
    assert found["hosts"]["top"] == [[host, count, failed[host]] for host, count in found_order(hosts)]
    assert found["hosts"]["distinct"] == len(hosts) and not found["hosts"]["short_by"]
    assert sum(count for _, count, _ in found["hosts"]["top"]) == found["hosts"]["images"] == len(images)
    classes = {fate.split(":")[1]: n for fate, n in funnel["download"]["images"].items() if fate.startswith("failed")}
    assert found["failures"]["classes"] == classes and found["failures"]["images"] == sum(classes.values())
    assert {error: sum(n for _, n in entries) for error, entries in found["failures"]["top"].items()} == classes
    codes = Counter(str(i["http_code"]) for i in images if i["status"] == "failed" and i["http_code"] is not None)
    assert found["failures"]["http_codes"] == codes


def found_order(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def test_token_lengths_and_languages(sample_run: Path, totals: dict[str, Any]) -> None:
    for name, counts in totals["tokens"].items():
        lengths = [row["tokens"] for row in rows(sample_run, f"tokens/*/{name}/*/lengths.parquet") if row["tokens"]]
        found = totals["measures"]["sets"][name]["tokens"]
        recounted(found, [(length, True) for length in lengths])
        assert len(lengths) == counts["sequences"] and sum(lengths) == counts["tokens"]
    assert set(totals["measures"]["languages"]) == {"docs", "pairs", "chat", "text"}  # docs_pairs has the texts of docs
    for name, found in totals["measures"]["languages"].items():
        assert (
            found["measured"] and sum(found["counts"].values()) == found["sampled"] <= totals["sets"][name]["samples"]
        )
        assert next(iter(found["counts"])) == "en"


def test_the_texts_are_the_sets_own_and_the_same_each_time(sample_run: Path) -> None:
    store = Store(str(sample_run))
    manifest = read_manifest(store, "pairs")
    assert manifest is not None
    texts = list(sampled_texts(store, manifest, 17))
    assert texts == list(sampled_texts(store, manifest, 17)) and 0 < len(texts) <= SAMPLED
    assert Counter(texts) <= Counter(
        sample.json["caption"] for sample in vd.open_shards(sample_run / "shards" / "pairs")
    )


def test_texts_at_an_object_store_are_asked_for_together(sample_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, remote = Store(str(sample_run)), Store("memory://languages")
    for path in local.files("shards/text"):
        remote.commit_bytes(local.read(path), path)
    manifest = read_manifest(remote, "text")
    assert manifest is not None
    asked = counted_ranges(monkeypatch)
    texts = list(sampled_texts(remote, manifest, 17))
    assert texts == list(sampled_texts(local, manifest, 17))
    assert 0 < len(asked) <= len(manifest.shards) < len(texts)


def test_languages_without_their_library(sample_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures_language, "identifier_version", lambda: None)
    store = Store(str(sample_run))
    manifest = read_manifest(store, "pairs")
    assert manifest is not None
    found = measures_language.languages(store, manifest, 17)
    assert not found["measured"] and "pip install" in found["why"]


VALUES = st.lists(st.tuples(st.floats(-2, 200, width=32) | st.just(math.nan), st.booleans()), max_size=60)


@given(st.lists(VALUES, max_size=4))
def test_binned_counts_every_value_once(batches: list[list[tuple[float, bool]]]) -> None:
    binned = Binned((0, 1, 2, 5, 10, 100, math.inf))
    for batch in batches:
        binned.add(np.array([number for number, _ in batch], np.float64), np.array([kept for _, kept in batch], bool))
    known = [entry for batch in batches for entry in batch if not math.isnan(entry[0])]
    value = binned.value("u", "things", [("mark", 3.0)])
    if not known:
        assert value is None
        return
    assert value is not None and json.loads(json.dumps(value, allow_nan=False)) == value
    assert sum(value["counts"]) == len(known) and sum(value["kept"]) == sum(kept for _, kept in known)
    assert len(value["edges"]) == len(value["counts"]) + 1
    assert value["edges"][0] <= 3.0 and (value["edges"][-1] is None or value["edges"][-1] >= 3.0)


@given(
    st.lists(st.dictionaries(st.sampled_from([f"h{n}" for n in range(40)]), st.integers(1, 50)), max_size=12),
    st.integers(2, 50),
)
def test_top_names_are_never_above_and_short_by_no_more_than_said(batches: list[dict[str, int]], bound: int) -> None:
    true: Counter[str] = Counter()
    found = TopNames(bound)
    for batch in batches:
        found.add(batch.keys(), batch.values())
        true.update(batch)
    counted = dict(found.top())
    assert len(counted) <= bound and found.total == sum(true.values())
    for name, count in true.items():
        assert counted.get(name, 0) <= count <= counted.get(name, 0) + found.short_by
    if found.short_by == 0:
        assert counted == true and found.distinct == len(true)
    else:
        assert found.distinct is None and len(true) > bound


def test_hosts_of_urls() -> None:
    urls = {
        "https://Pictures.Example.ORG:8443/a.jpg?b=c": "pictures.example.org",
        "http://user:secret@host.test/x": "host.test",
        "http://user:p@ss@host.test/x": "host.test",
        "http://[2001:db8::1]:80/x": "[2001:db8::1]",
        "http://münchen.test": "münchen.test",
        "images/train/1.jpg": NO_HOST,
        "http://": NO_HOST,
        "": NO_HOST,
        "data:image/png;base64,//x": NO_HOST,
        "http://evil.test\\@good.test/": "evil.test",
        "http://a.test#@b.test": "a.test",
    }
    assert dict(zip(urls, hosts_of(pa.chunked_array([list(urls)])).to_pylist(), strict=True)) == urls


def test_speeds_count_what_this_launch_did() -> None:
    speeds = Speeds(["download", "score", "filter"])
    counts = {"images": 10, "records": 5, "bytes": 100}
    speeds.add("download", Receipt("i"), 2.0, counts)
    speeds.add("download", Receipt("i"), 1.0, counts)
    speeds.add("download", Receipt("i", earlier=True), 9.0, counts)
    found = speeds.value({"score": {"launch": "this", "tasks": 3, "task_seconds": 1.0, "images": 7}})
    assert found["download"] == {
        "launch": "this", "tasks": 2, "task_seconds": 3.0, "images": 20, "records": 10, "bytes": 200,
    }  # fmt: skip
    assert found["score"]["launch"] == "earlier" and set(found) == {"download", "score"}


def test_a_relaunch_keeps_the_speeds_and_draws_the_pages(sample_run: Path, sample_recipe: Path, tmp_path: Path) -> None:
    """As after a kill between the totals and the pages: the pages are there again, the card with the same bytes."""
    out = tmp_path / "run"
    shutil.copytree(sample_run, out)
    before = tree(out)
    first = json.loads((out / "run.json").read_text())
    assert {entry["launch"] for entry in first["speed"].values()} == {"this"}
    for name in ("report.html", "card.md"):
        (out / name).unlink()
    report = vd.run(sample_recipe, out, runner="local")
    assert tree(out) == before and (out / "report.html").stat().st_size < 1_000_000
    assert {entry["launch"] for entry in report.speed.values()} == {"earlier"}
    assert report.measures == first["measures"] == inspect(out)[1]["measures"]


def test_a_launch_that_dies_before_its_pages_and_the_next_one(
    sample_run: Path, sample_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(sample_run, out)
    for name in ("report.html", "card.md", "run.json"):
        (out / name).unlink()

    def die(totals: Any, lock: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pages, "PAGES", dict.fromkeys(pages.PAGES, die))
        with pytest.raises(KeyboardInterrupt):
            vd.run(sample_recipe, out, runner="local")
    assert (out / "run.json").exists() and not (out / "card.md").exists()
    vd.run(sample_recipe, out, runner="local")
    assert tree(out) == tree(sample_run) and (out / "report.html").exists()


def test_a_page_that_cannot_be_drawn_does_not_cost_the_run(
    sample_run: Path, sample_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(sample_run, out)

    def broken(totals: Any, lock: Any) -> str:
        raise ZeroDivisionError("a chart")

    monkeypatch.setattr(pages, "PAGES", {**pages.PAGES, "report.html": broken})
    with pytest.warns(UserWarning, match="report.html: could not be written: ZeroDivisionError.*finished and complete"):
        assert vd.run(sample_recipe, out, runner="local").finished
    assert (out / "card.md").exists() and not (out / "report.html").exists()


def test_no_shards_no_pages(sample_recipe: Path, tmp_path: Path) -> None:
    report = vd.run(sample_recipe, tmp_path / "run", runner="local", limit=5, only="download")
    assert report.measures is None and not (tmp_path / "run" / "report.html").exists()
    assert read_lock(Store(str(tmp_path / "run"))) is not None
