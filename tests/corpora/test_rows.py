"""Rows of JSON lists, lines and parquet: the same whatever the slices, and nothing lost beside a bad one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, Record
from vila_data.corpora import rows as rows_module
from vila_data.corpora.rows import RowSource, count_json, read_json
from vila_data.corpora.source import RowProblem, file_labels

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), max_size=12)
FOLDER = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(folder: Path, rows: list[Any], form: str, ascii_only: bool = True) -> str:
    texts = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    if form.startswith("lines"):
        data = "".join(text + "\n" for text in texts).encode("utf-8", "surrogatepass")
    else:
        indent = json.dumps(rows, indent=2, ensure_ascii=ascii_only) if "pretty" in form else f"[{', '.join(texts)}]"
        data = b"\xef\xbb\xbf" * ("bom" in form) + b" \n" + indent.encode("utf-8", "surrogatepass") + b"\n"
    path = folder / f"rows-{len(data)}.json{'.gz' if 'gz' in form else ''}"
    path.write_bytes(gzip.compress(data) if "gz" in form else data)
    rows_module._places.cache_clear()
    return str(path)


def sliced(file: str, rows: int, step: int) -> list[Any]:
    return [value for start in range(0, rows, step) for value in read_json(file, start, min(start + step, rows))]


@pytest.mark.parametrize("form", ["list", "list pretty", "list bom", "list gz", "lines", "lines gz"])
@FOLDER
@given(rows=ROWS, step=st.integers(1, 5), places=st.integers(1, 4), window=st.integers(1, 40), ascii_only=st.booleans())
def test_any_slices_give_the_same_rows(
    form: str, rows: list[Any], step: int, places: int, window: int, ascii_only: bool, tmp_path: Path
) -> None:
    """Also where a window ends inside a row, a string, a number, or a character of several bytes."""
    if not rows and form.startswith("lines"):
        return
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rows_module, "_STEP", places)
        patched.setattr(rows_module, "_WINDOW", window)
        file = written(tmp_path, rows, form, ascii_only)
        assert count_json(file, 2) == min(2, len(rows))
        assert count_json(file, None) == len(rows)
        assert count_json(file, 3) == min(3, len(rows))
        assert sliced(file, len(rows), step) == rows
        rows_module._places.cache_clear()
        assert list(read_json(file, max(0, len(rows) - 2), len(rows))) == rows[-2:]


BAD = ['{"a" 1}', "{'a': 1}", '{"a": [1, 2}', "{]", "nonsense", '{"a": "\x01"}', '{"b": tru}', "}", '{"s": "x" "]["}']


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("window", [3, 1 << 20])
def test_a_bad_row_of_a_list_is_one_problem(
    bad: str, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_WINDOW", window)
    path = tmp_path / "rows.json"
    path.write_text(f'[{{"n": 0}}, {bad}, {{"n": "}}, {{"}}, {bad}, {{"n": 2}}]')
    rows_module._places.cache_clear()
    assert count_json(str(path), None) == 5
    found = list(read_json(str(path), 0, 5))
    assert [found[0], found[2], found[4]] == [{"n": 0}, {"n": "}, {"}, {"n": 2}]
    assert all(isinstance(found[at], RowProblem) and found[at].reason == "malformed_json" for at in (1, 3))


@pytest.mark.parametrize(
    "cut", ['[{"n": 0}, {"n": 1}', '[{"n": 0}, {"n": 1}, {"n', '[{"n": 0}, {"n": 1}, {"n": "unclosed}, {}]']
)
def test_a_list_that_breaks_off_has_one_row_more(cut: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(cut)
    assert count_json(str(path), None) == 3
    *good, last = read_json(str(path), 0, 3)
    assert good == [{"n": 0}, {"n": 1}]
    assert isinstance(last, RowProblem) and last.reason == "truncated_file"


def test_gzip_that_breaks_off_has_one_row_more(tmp_path: Path) -> None:
    lines = [json.dumps({"n": n, "text": f"{n * n:x}" * 50}) for n in range(400)]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode())[:-200])
    rows = count_json(str(path), None)
    found = list(read_json(str(path), 0, rows))
    assert 100 < rows < 400
    assert [value["n"] for value in found[:-2]] == list(range(rows - 2))  # the last line may be cut as well
    assert isinstance(found[-1], RowProblem) and found[-1].reason == "truncated_file"


def test_bytes_that_are_no_utf8_are_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": "\xff"}\n\n{"n": 3}')
    found = list(read_json(str(path), 0, 4))
    assert (found[0], found[3]) == ({"n": 0}, {"n": 3})
    assert [found[at].reason for at in (1, 2)] == ["malformed_json"] * 2


def test_slices_of_a_long_list_are_read_from_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading 40 slices walks over each row twice at most: not from the beginning for each slice."""
    file = written(tmp_path, [{"n": n} for n in range(20_000)], "list")
    walked = 0
    original = rows_module.walk

    def counting(name: str, offset: int) -> Any:
        nonlocal walked
        for found in original(name, offset):
            walked += 1
            yield found

    monkeypatch.setattr(rows_module, "walk", counting)
    assert count_json(file, None) == 20_000
    assert [value["n"] for value in sliced(file, 20_000, 500)] == list(range(20_000))
    assert walked < 20_000 * 2 + 40 * 300


def read_number(record_id: str, row: dict[str, Any]) -> Record:
    if "n" not in row:
        raise RowProblem("missing_field", "n is missing")
    return Record(record_id, "document", (str(row["n"]),), ())


def part_of(file: str, start: int, stop: int) -> Part:
    return Part("c", 0, file, "rows", start, stop, stop - start, "inputs")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "jsonl.gz", "parquet"])
def test_ids_name_the_row_whatever_the_part(suffix: str, tmp_path: Path) -> None:
    rows = [{"n": n} if n != 5 else {"m": 1} for n in range(12)]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"n": range(12)}), path, row_group_size=5)
    else:
        lines = "\n".join(map(json.dumps, rows)) if suffix.startswith("jsonl") else json.dumps(rows)
        path.write_bytes(gzip.compress(lines.encode()) if suffix.endswith("gz") else lines.encode())
    source = RowSource(read_number)
    assert source.scan(str(path), None).rows == 12
    assert source.scan(str(path), 7).rows == 7
    whole = list(source.read(part_of(str(path), 0, 12)))
    assert [record.record_id for record in whole] == [f"rows-{n:09d}" for n in range(12)]
    parted = [record for start in range(0, 12, 4) for record in source.read(part_of(str(path), start, start + 4))]
    assert parted == whole
    if suffix != "parquet":
        assert whole[5] == BadRecord("rows-000000005", "missing_field", f"{path}: row 5: n is missing")


def test_a_row_that_is_no_object_is_a_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[1, "two", [3], {"n": 4}]')
    found = list(RowSource(read_number).read(part_of(str(path), 0, 4)))
    assert [getattr(record, "reason", None) for record in found] == ["wrong_type"] * 3 + [None]


def test_a_file_that_has_become_shorter_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\n')
    with pytest.raises(
        DataError, match=r"rows\.jsonl: ends at row 1, had 2 rows when it was scanned: the file has changed"
    ):
        list(RowSource(read_number).read(part_of(str(path), 0, 2)))


@pytest.mark.parametrize(
    ("name", "words"), [("rows.pkl", "pickle files are refused"), ("rows.csv", "rows are read from")]
)
def test_other_files_are_refused(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=words):
        RowSource(read_number).scan(str(tmp_path / name), None)


def test_what_is_no_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR0")
    with pytest.raises(DataError, match=r"rows\.parquet: not a parquet file"):
        RowSource(read_number).scan(str(tmp_path / "rows.parquet"), None)


def test_labels_of_files_never_repeat() -> None:
    assert file_labels(["x/a.json", "y/a.json", "z/a.json", "b.json"]) == ["a", "a~2", "a~3", "b"]
    found = file_labels(["x/a.json", "y/a.json", "z/a~2.json", "w/a.json"])
    assert len(set(found)) == 4 and found[:2] == ["a", "a~2"]
