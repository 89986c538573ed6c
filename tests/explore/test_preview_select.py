"""Which records a preview shows: over the whole run, in little memory, whatever the order of its files."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.made_preview import MadePreview, chosen, fates, ids, make, similarities
from tests.made_requests import counted_ranges
from vila_data.build import run as launch
from vila_data.core.errors import DataError, UsageError
from vila_data.core.store import Store
from vila_data.explore.preview import Choice, ListedRecord, build, preview
from vila_data.explore.preview.records import (
    Columns,
    Highlight,
    PreviewRecord,
    RecordLocation,
    TrainingSequence,
)
from vila_data.explore.preview.run_source import RunSource
from vila_data.explore.preview.select import select
from vila_data.recipe.recipe import load_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MadePreview:
    return make(str(tmp_path_factory.mktemp("run")))


# What is chosen


@pytest.mark.parametrize("order", ["worst", "best"])
@pytest.mark.parametrize("count", [1, 7, 500])
def test_worst_and_best_are_over_the_whole_run(run: MadePreview, tmp_path: Path, order: Any, count: int) -> None:
    report = preview(run.store.url, tmp_path / "page.html", Choice(order=order, count=count))
    of = min if order == "worst" else max
    values = {name: np.float32(of(found)) for name, found in similarities(run).items() if found}
    expected = sorted(values.values(), reverse=order == "best")[:count]
    assert [values[name] for name in ids(report)] == expected
    assert len(expected) == min(count, len(values)) and len(values) > 60
    assert (report.of, report.matching) == (151, 151)


def test_random_takes_as_many_of_each_corpus(run: MadePreview, tmp_path: Path) -> None:
    report = preview(run.store.url, tmp_path / "page.html", Choice(count=60))
    assert {name: counts["shown"] for name, counts in report.corpora.items()} == {"web": 20, "alt": 20, "talk": 20}
    assert list(report.ids) == chosen(run, Choice(count=60)) == chosen(run, Choice(count=60))
    other = chosen(run, Choice(count=60, seed=1))
    assert 0 < len(set(other) & set(report.ids)) < 60
    assert set(report.ids) < set(chosen(run, Choice(count=90)))
    everything = chosen(run, Choice(count=1000))
    assert len(everything) == 151 == len(set(everything))
    shown = Counter(corpus for corpus, _ in chosen(run, Choice(count=130)))
    assert shown == {"web": 41, "alt": 45, "talk": 44}


def test_random_does_not_depend_on_the_order_of_files(run: MadePreview, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [Choice(count=40), Choice(count=9, order="worst"), Choice(count=9, order="best", seed=3)]
    expected = [chosen(run, choice) for choice in choices]
    parts = RunSource.parts
    monkeypatch.setattr(RunSource, "parts", lambda self, corpus: list(reversed(parts(self, corpus))))
    assert [chosen(run, choice) for choice in choices] == expected


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        ("kept", None),
        ("dropped", None),
        ("failed", None),
        ("dropped", "min_similarity"),
        (None, "min_side_px"),
        (None, "aspect_ratio"),
        ("failed", "timeout"),
        (None, "malformed_json"),
        ("dropped", "min_images"),
    ],
)
def test_by_fate_and_reason(run: MadePreview, fate: str | None, reason: str | None) -> None:
    found = chosen(run, Choice(fate=fate, reason=reason, count=500))
    expected = set()
    for corpus in run.items:
        for name, rows in fates(run, corpus).items():
            for image, what, why in rows:
                if fate in (None, what) and reason in (None, why) and not (fate == "kept" and image is not None):
                    expected.add((corpus, name))
    assert set(found) == expected and len(found) == len(expected)
    assert expected


def test_a_reason_that_cannot_be_is_refused(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with pytest.raises(UsageError, match=r"min_imges: no such reason; this run has min_images, .*http_status"):
        preview(finished, page, Choice(reason="min_imges"))
    with pytest.raises(UsageError, match="kept records have no reason"):
        Choice(fate="kept", reason="min_images")
    assert not page.exists()
    assert preview(finished, page, Choice(reason="max_images")).records == 0  # a reason, though nothing has it


@pytest.fixture(scope="module")
def finished(sample_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the sample's first rows, without shards."""
    recipe = load_recipe(sample_recipe).model_copy(update={"shards": {}, "pack": None, "blend": None})
    out = tmp_path_factory.mktemp("choose") / "run"
    launch(recipe, out, runner="local", limit=40)
    return out


def test_by_corpus_and_text(run: MadePreview, tmp_path: Path) -> None:
    found = chosen(run, Choice(text="RED BOAT", count=500))
    every = [(name, one) for name, items in run.items.items() for one in items if one is not None]
    expected = {
        (name, one.record.record_id)
        for name, one in every
        if any("red boat" in text.casefold() for text in (*one.record.texts, one.record.system or ""))
    }
    assert set(found) == expected and 0 < len(expected) < len(every)
    page = tmp_path / "page.html"
    some = preview(run.store.url, page, Choice(text="red boat", corpus="alt", count=3, order="worst"))
    assert some.records == 3 and some.matching == len([1 for name, _ in expected if name == "alt"])
    assert set(some.ids) <= expected
    assert chosen(run, Choice(text="line 3")) == [("web", "bad-5")]
    assert chosen(run, Choice(text="no such words")) == []


@pytest.mark.parametrize("what", ["run", "set", "shard"])
def test_by_text_at_an_object_store(
    run: MadePreview, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same records, and fewer requests than records."""
    below = {"run": "", "set": "shards/docs", "shard": "shards/docs/docs-000000.tar"}[what]
    remote = Store(f"memory://searched-{what}")
    for path in run.store.files(""):
        remote.commit_bytes(run.store.read(path), path)
    choice = Choice(text="red boat", count=500)
    here = preview(f"{run.store.url}/{below}", tmp_path / "page.html", choice)
    source = build._source(f"{remote.url}/{below}")
    asked = counted_ranges(monkeypatch)
    found = select(source, choice, lambda records: None)
    requests, files = len(asked), len({span.path for span in asked})
    assert 0 < requests <= 2 * files < here.of
    shown = [source.record(location, about, None).record_id for location, about in found.locations]
    assert shown == [record_id for _, record_id in here.ids] and 0 < here.matching < here.of


def test_listed_records_in_their_order_with_their_notes(run: MadePreview, tmp_path: Path) -> None:
    listed = (
        ListedRecord("alt", "pair-0050", 0, "score 0.9"),
        ListedRecord("web", "doc-0003", 2, "image two"),
        ListedRecord("web", "bad-5"),
        ListedRecord("web", "doc-0003", 0, "again"),
    )
    page = tmp_path / "page.html"
    report = preview(run.store.url, page, Choice(order="listed", listed=listed, heading="Found: “boat”", packs=3))
    assert ids(report) == ["pair-0050", "doc-0003", "bad-5", "doc-0003"]
    text = page.read_text()
    assert "<h1>Found: “boat”</h1>" in text
    assert [text.count(note) for note in ("score 0.9", "image two", ">again<")] == [1, 1, 1]
    assert text.count(" highlighted") == 3
    for entry in (ListedRecord("web", "doc-9999"), ListedRecord("none", "doc-0001")):
        with pytest.raises(DataError, match=r"doc-9999|none"):
            preview(run.store.url, page, Choice(order="listed", listed=(entry,)))
    assert preview(run.store.url, page, Choice(order="listed", count=0)).records == 0


class Made:
    """A source of drawn columns."""

    title, thresholds, notes = "made", {}, ()  # type: ignore[var-annotated]

    def __init__(self, corpora: Sequence[Sequence[Columns]]) -> None:
        self.columns_of = corpora
        self.corpora = tuple(f"c{number}" for number in range(len(corpora)))

    def parts(self, corpus: int) -> Sequence[int]:
        return range(len(self.columns_of[corpus]))

    def columns(self, corpus: int, part: int, fate: str | None, reason: str | None) -> Columns:
        return self.columns_of[corpus][part]

    def record_ids(self, corpus: int, part: int) -> pa.ChunkedArray:
        raise NotImplementedError

    def texts(self, corpus: int, part: int, rows: Sequence[int]) -> Iterator[Sequence[str]]:
        raise NotImplementedError

    def record(
        self, location: RecordLocation, highlight: Highlight, sequence: TrainingSequence | None
    ) -> PreviewRecord:
        raise NotImplementedError

    def sequences(self, locations: Sequence[RecordLocation]) -> dict[RecordLocation, TrainingSequence]:
        return {}


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from([True, True, False]), st.sampled_from([np.nan, 0.1, 0.2, 0.3, -0.5, 0.6])),
            max_size=20,
        )
    )
    low = np.array([value for _, value in rows], np.float64)
    return Columns(np.array([allowed for allowed, _ in rows], np.bool_), low, low + 0.25)


@given(st.lists(st.lists(columns(), max_size=4), max_size=3), st.integers(1, 9), st.sampled_from(["worst", "best"]))
@settings(max_examples=200)
def test_choosing_equals_sorting_everything(corpora: list[list[Columns]], count: int, order: Any) -> None:
    ranked = sorted(
        (rank, RecordLocation(corpus, part, row))
        for corpus, parts in enumerate(corpora)
        for part, one in enumerate(parts)
        for row, rank in enumerate((one.low if order == "worst" else -one.high).tolist())
        if one.allowed[row] and rank == rank
    )
    scored = any(not np.isnan(one.low).all() for parts in corpora for one in parts)
    if not scored:
        with pytest.raises(UsageError, match="needs similarity scores"):
            select(Made(corpora), Choice(count=count, order=order), lambda records: None)
        return
    found = select(Made(corpora), Choice(count=count, order=order), lambda records: None)
    assert [location for location, _ in found.locations] == [location for _, location in ranked[:count]]
    assert sum(found.matching) == sum(int(one.allowed.sum()) for parts in corpora for one in parts)


def test_the_best_of_a_part_are_anywhere_in_it() -> None:
    low = np.array([0.5, 0.1, 0.9, 0.2, 0.8, 0.3, 0.1, 0.7])
    source = Made([[Columns(np.ones(8, np.bool_), low, low)]])
    rows = {
        order: [
            location.row for location, _ in select(source, Choice(count=3, order=order), lambda records: None).locations
        ]
        for order in ("worst", "best")
    }
    assert rows == {"worst": [1, 6, 3], "best": [2, 4, 7]}


@given(st.lists(st.lists(columns(), max_size=4), max_size=3), st.integers(1, 30), st.integers(0, 5))
def test_a_random_choice_is_allowed_distinct_and_as_large_as_can_be(
    corpora: list[list[Columns]], count: int, seed: int
) -> None:
    found = select(Made(corpora), Choice(count=count, seed=seed), lambda records: None)
    locations = [location for location, _ in found.locations]
    assert len(locations) == len(set(locations)) == min(count, sum(found.matching))
    assert all(corpora[location.corpus][location.part].allowed[location.row] for location in locations)
    shown = [sum(location.corpus == number for location in locations) for number in range(len(corpora))]
    short = [n for n, matching in zip(shown, found.matching, strict=True) if n < matching]
    assert max(shown, default=0) - min(short, default=max(shown, default=0)) <= 1


def test_three_million_rows_are_chosen_from_in_little_memory() -> None:
    generator = np.random.default_rng(0)

    class Large(Made):
        def columns(self, corpus: int, part: int, fate: str | None, reason: str | None) -> Columns:
            low = generator.random(10_000)
            low[part] = -1 - part
            return Columns(np.ones(10_000, np.bool_), low, low)

    tracemalloc.start()
    found = select(Large([[None] * 300]), Choice(order="worst", count=200), lambda records: None)  # type: ignore[list-item]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [location for location, _ in found.locations] == [RecordLocation(0, 299 - n, 299 - n) for n in range(200)]
    assert found.records == (3_000_000,) and peak < 4_000_000


def test_seeded_draws_are_even() -> None:
    ones = np.ones(20_000, np.bool_)
    source = Made([[Columns(ones, ones.astype(float), ones.astype(float))] * 5])
    rows = np.array(
        [location.part * 20_000 + location.row for location, _ in select(source, Choice(count=5_000), print).locations]
    )
    counts = np.histogram(rows, 20, (0, 100_000))[0]
    assert abs(counts - 250).max() < 75  # 5 standard deviations
