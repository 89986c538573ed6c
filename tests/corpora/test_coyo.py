from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_data.core.errors import DataError
from vila_data.core.records import BadRecord, Record
from vila_data.core.store import Store
from vila_data.corpora import selection
from vila_data.corpora.config import CoyoConfig, Preselect
from vila_data.corpora.coyo import CoyoSource
from vila_data.runs.plan import plan_corpus, scan_here

COLUMNS = ("clip_similarity_vitb32", "clip_similarity_vitl14")


def write(path: Path, c: list[float], ids: list[int], row_group_size: int = 7) -> str:
    half = np.asarray(c) / 2
    table = pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "url": [f"http://a.example/{number}.jpg" for number in ids],
            "text": [f"caption {number}" for number in ids],
            COLUMNS[0]: half,
            COLUMNS[1]: half,
        }
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    return str(path)


def selected_ids(tmp_path: Path, files: list[str], rule: dict[str, Any], part_records: int = 5) -> list[int]:
    config = CoyoConfig(
        kind="coyo", files=tuple(files), part_records=part_records, preselect=Preselect(by=COLUMNS, **rule)
    )
    plan = plan_corpus(Store(str(tmp_path / "run")), "pairs", config, ["-"] * len(files), None, scan_here)
    source = CoyoSource(config)
    records = [record for part in plan.parts for record in source.read(part)]
    assert all(isinstance(record, Record) for record in records)
    return sorted(int(record.record_id) for record in records)


def expected(rows: list[tuple[float, int]], keep: int, min_sum: float | None) -> list[int]:
    eligible = [row for row in rows if min_sum is None or row[0] > min_sum]
    return sorted(number for _, number in sorted(eligible, key=lambda row: (-row[0], row[1]))[:keep])


scores = st.lists(
    st.sampled_from([0.0, 0.3, 0.5, 0.50002, 0.50004, 0.6, 0.61, 0.8]) | st.floats(0, 1), min_size=1, max_size=40
)


@settings(max_examples=60, deadline=None)
@given(first=scores, second=scores, count=st.integers(1, 60), min_sum=st.sampled_from([None, 0.5]))
def test_largest_over_the_corpus(
    tmp_path_factory: pytest.TempPathFactory, first: list[float], second: list[float], count: int, min_sum: float | None
) -> None:
    folder = tmp_path_factory.mktemp("coyo")
    ids = np.random.default_rng(len(first)).permutation(len(first) + len(second)).tolist()
    files = [
        write(folder / "0.parquet", first, ids[: len(first)]),
        write(folder / "1.parquet", second, ids[len(first) :]),
    ]
    halves = [float(value / 2 + value / 2) for value in (*first, *second)]
    rule = {"keep": "top_count", "count": count, "min_sum": min_sum}
    assert selected_ids(folder, files, rule) == expected(list(zip(halves, ids, strict=True)), count, min_sum)


def test_as_released_in_each_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    c = [rng.uniform(0, 1, 50).tolist(), rng.uniform(0.55, 0.65, 33).tolist()]
    ids = [list(range(50)), list(range(50, 83))]
    files = [write(tmp_path / f"{number}.parquet", c[number], ids[number]) for number in (0, 1)]
    rule = {"keep": "top_fraction", "fraction": 0.2, "min_sum": 0.6, "scope": "file"}
    want = expected(list(zip(c[0], ids[0], strict=True)), 10, 0.6) + expected(
        list(zip(c[1], ids[1], strict=True)), 6, 0.6
    )
    assert selected_ids(tmp_path, files, rule) == want


def test_files_unlike_each_other_are_read_again(tmp_path: Path) -> None:
    """All of one file lies above the cut, so its window misses the boundary bin."""
    low = np.linspace(0.1, 0.2, 200).tolist()
    high = np.linspace(0.9, 1.0, 200).tolist()
    files = [
        write(tmp_path / "0.parquet", low, list(range(200))),
        write(tmp_path / "1.parquet", high, list(range(200, 400))),
    ]
    rows = list(zip([*low, *high], range(400), strict=True))
    for count in (3, 150, 199, 200, 201, 399):
        assert selected_ids(tmp_path / str(count), files, {"keep": "top_count", "count": count}, 50) == expected(
            rows, count, None
        )


def test_scores_that_are_no_numbers_are_never_kept(tmp_path: Path) -> None:
    file = write(tmp_path / "0.parquet", [0.5, float("nan"), 0.7], [1, 2, 3])
    assert selected_ids(tmp_path, [file], {"keep": "top_count", "count": 3}) == [1, 3]


def test_bin_of_the_cut_holds_it() -> None:
    c = np.array([0.1, 0.10004, 0.10006, 0.2])
    assert selection.bins_of(c).tolist() == [1000, 1000, 1000, 2000]


def test_null_and_empty_fields_are_failed_records(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "url": ["u", None, "u"], "text": ["t", "t", " "]}), path)
    config = CoyoConfig(kind="coyo", files=(str(path),))
    plan = plan_corpus(Store(str(tmp_path / "run")), "pairs", config, ["-"], None, scan_here)
    good, null, empty = list(CoyoSource(config).read(plan.parts[0]))
    assert isinstance(good, Record)
    assert isinstance(null, BadRecord) and null.reason == "missing_field" and "row 1" in null.detail
    assert isinstance(empty, BadRecord) and empty.reason == "no_text"


def test_a_missing_column_names_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    pq.write_table(pa.table({"id": [1], "URL": ["u"], "text": ["t"]}), path)
    config = CoyoConfig(kind="coyo", files=(str(path),))
    with pytest.raises(DataError, match=r"no column url; the file has id, URL, text"):
        plan_corpus(Store(str(tmp_path / "run")), "pairs", config, ["-"], None, scan_here)


def test_no_parquet_at_all(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    path.write_bytes(b"nothing of the kind")
    config = CoyoConfig(kind="coyo", files=(str(path),))
    with pytest.raises(DataError, match=r"0\.parquet: not a parquet file"):
        plan_corpus(Store(str(tmp_path / "run")), "pairs", config, ["-"], None, scan_here)


def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "0.parquet", [], [])
    config = CoyoConfig(kind="coyo", files=(file,))
    with pytest.raises(DataError, match="contain no records"):
        plan_corpus(Store(str(tmp_path / "run")), "pairs", config, ["-"], None, scan_here)
