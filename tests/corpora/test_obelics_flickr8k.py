"""OBELICS documents and Flickr8k captions: what rows give, and what bad ones fail with."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, ImageRef, Record
from vila_data.corpora.config import Flickr8kConfig, ObelicsConfig
from vila_data.corpora.flickr8k import Flickr8kSource
from vila_data.corpora.kinds import open_corpus
from vila_data.corpora.obelics import obelics_row
from vila_data.corpora.source import RowProblem


def part_of(path: Path, start: int, stop: int) -> Part:
    return Part("c", 0, str(path), "meta", start, stop, stop - start, "in")


@given(
    st.lists(st.one_of(st.just("image"), st.text(min_size=1, max_size=5).map(lambda text: f"text {text}")), max_size=8)
)
def test_the_order_of_a_page_can_be_told_from_its_record(entries: list[str]) -> None:
    images = [f"http://a.example/{at}" if entry == "image" else None for at, entry in enumerate(entries)]
    texts = [None if entry == "image" else entry for entry in entries]
    try:
        record = obelics_row("r", {"images": images, "texts": texts})
    except RowProblem as problem:
        assert problem.reason == "no_text" and not any(texts)
        return
    again: list[tuple[str | None, str | None]] = []
    left = list(record.images)
    for index in range(len(record.texts) + 1):
        while left and left[0].matched_text_index == index:
            again.append((left.pop(0).url, None))
        if index < len(record.texts):
            again.append((None, record.texts[index]))
    assert again == list(zip(images, texts, strict=True))
    assert not left


def test_obelics_rows_and_bad_ones(tmp_path: Path) -> None:
    general = json.dumps({"url": "https://page.example/7"})
    rows: list[dict[str, Any]] = [
        {"images": ["u", None, "v"], "texts": [None, "t", None], "general_metadata": general},
        {"images": [None, "u"], "texts": ["t", None], "metadata": json.dumps([None, {"document_url": "https://m"}])},
        {"images": [None], "texts": ["t"], "url": "https://own"},
        {"images": [None], "texts": ["t"], "metadata": "no JSON"},
        {"images": ["u"], "texts": [None, "t"]},
        {"images": ["u", "v"], "texts": ["t", None]},
        {"images": ["u"], "texts": [None]},
        {"images": [3], "texts": ["t"]},
        {"texts": ["t"]},
        {"images": [None, None], "texts": ["t", None]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = list(open_corpus(ObelicsConfig(kind="obelics", files=("x",))).read(part_of(path, 0, len(rows))))
    good = [record for record in found if isinstance(record, Record)]
    assert [record.source_url for record in good] == [
        "https://page.example/7",
        "https://m",
        "https://own",
        None,
        None,
    ]
    assert good[0].images == (ImageRef("u", 0), ImageRef("v", 1))
    assert [record.reason for record in found if isinstance(record, BadRecord)] == [
        "wrong_type",
        "wrong_type",
        "no_text",
        "wrong_type",
        "missing_field",
    ]


def test_obelics_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = [
        {"images": ["u", None], "texts": [None, f"t{n}"], "metadata": "[]", "general_metadata": "{}"} for n in range(5)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    source = open_corpus(ObelicsConfig(kind="obelics", files=("x",)))
    assert source.scan(str(path), None).rows == 5
    found = [record for at in (0, 3) for record in source.read(part_of(path, at, min(at + 3, 5)))]
    assert [(record.record_id, record.texts) for record in found if isinstance(record, Record)] == [
        (f"meta-{n:09d}", (f"t{n}",)) for n in range(5)
    ]


CAPTION = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip)


@given(st.lists(st.tuples(st.sampled_from(["1.jpg", "2.jpg"]), CAPTION), min_size=1, max_size=8), st.integers(1, 4))
def test_captions_as_csv_by_any_slices(tmp_path_factory: Any, rows: list[tuple[str, str]], step: int) -> None:
    path = tmp_path_factory.mktemp("captions") / "captions.csv"
    stream = io.StringIO()
    csv.writer(stream).writerows([("image", "caption"), *rows])
    path.write_text(stream.getvalue(), newline="")
    source = Flickr8kSource(Flickr8kConfig(kind="flickr8k", files=("x",), image_root="/images"))
    assert source.scan(str(path), None).rows == len(rows)
    assert source.scan(str(path), 2).rows == min(2, len(rows))
    found = [
        record
        for start in range(0, len(rows), step)
        for record in source.read(part_of(path, start, min(start + step, len(rows))))
    ]
    assert found == [
        Record(f"meta-{at:09d}", "pair", (caption,), (ImageRef(name, 0, file=f"/images/{name}"),))
        for at, (name, caption) in enumerate(rows)
    ]


def test_captions_as_tabbed_lines(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text('1.jpg#0\tA child , in pink .\n1.jpg#1\tA "girl"\r\n2.jpg.1#0\tTwo\n3.jpg#0\t \n4.jpg#0\n\r\n')
    source = Flickr8kSource(Flickr8kConfig(kind="flickr8k", files=("x",), image_root="/images"))
    found = list(source.read(part_of(path, 0, source.scan(str(path), None).rows)))
    good = [record for record in found if isinstance(record, Record)]
    assert [(record.images[0].url, record.texts[0]) for record in good] == [
        ("1.jpg", "A child , in pink ."),
        ("1.jpg", 'A "girl"'),
        ("2.jpg.1", "Two"),
    ]
    bad = [record for record in found if isinstance(record, BadRecord)]
    assert [(record.record_id, record.reason) for record in bad] == [
        ("meta-000000003", "no_text"),
        ("meta-000000004", "missing_field"),
    ]
    assert bad[0].detail == f"{path}: row 3: caption is empty"


def test_csv_with_gaps_and_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("number,Image, Caption\n1,a.jpg,One\n\n2,b.jpg\n3,../c.jpg,Three\n")
    source = Flickr8kSource(Flickr8kConfig(kind="flickr8k", files=("x",), image_root="/images"))
    found = list(source.read(part_of(path, 0, source.scan(str(path), None).rows)))
    assert isinstance(found[0], Record) and found[0].texts == ("One",)
    assert isinstance(found[1], BadRecord) and found[1].reason == "missing_field"
    assert isinstance(found[2], Record) and found[2].images[0].error == "bad_url"


def test_what_is_no_captions_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("1.jpg,A child\n")
    source = Flickr8kSource(Flickr8kConfig(kind="flickr8k", files=("x",), image_root="/images"))
    with pytest.raises(DataError, match=r"captions\.csv: no captions: neither CSV with the header"):
        source.scan(str(path), None)
