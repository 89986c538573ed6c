"""VILA's pickle folders, opened by an unpickler that permits nothing but plain values."""

from __future__ import annotations

import base64
import io
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from tests.export.reading import Small, captions, contents, documents, exported, folder_of, jpeg, small_set
from tests.made_run import MadeRun
from vila_data.core.errors import UsageError
from vila_data.export.open_flamingo import NOT_KNOWN, PLACED


class Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise AssertionError(f"the pickle names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise AssertionError(f"the pickle names {pid}")


def load(path: Path) -> list[dict[str, Any]]:
    stream = io.BytesIO(path.read_bytes())
    value = Plain(stream).load()
    assert not stream.read()
    assert isinstance(value, list)
    return value


def folder_files(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """{stem: list}, of a folder that holds pickles and their counts alone."""
    found = {path.stem: load(path) for path in sorted(folder.glob("*.pkl"))}
    counts = {path.stem: int(path.read_text()) for path in sorted(folder.glob("*.count"))}
    assert counts == {stem: len(rows) for stem, rows in found.items()}
    assert len(list(folder.iterdir())) == 2 * len(found)
    return found


def test_documents(made: MadeRun, tmp_path: Path) -> None:
    exported(folder_of(made, "docs"), "vila-pickle", tmp_path)
    parts = folder_files(tmp_path / "docs")
    assert len(parts) == len(made.sets["docs"].shards)
    rows = [row for part in parts.values() for row in part]
    for row, content in zip(rows, contents(folder_of(made, "docs")), strict=True):
        assert row["text_list"] == list(content.texts)
        assert row["url"] == content.source_url
        assert len(row["similarity_matrix"]) == len(row["image_info"]) == len(content.images)
        by_index = {picture.image_index: picture for picture in content.images}
        for info, sims, index in zip(row["image_info"], row["similarity_matrix"], sorted(by_index), strict=True):
            picture = by_index[index]
            at = info["matched_text_index"]
            assert base64.b64decode(info["image_base64"], validate=True) == picture.jpeg
            assert (info["raw_url"], at, info["matched_sim"]) == (picture.url, picture.text_index, picture.similarity)
            assert len(sims) == len(row["text_list"])
            assert sims.pop(at) == picture.similarity
            assert set(sims) <= {NOT_KNOWN}
    assert any(
        [info["matched_text_index"] for info in row["image_info"]]
        != sorted(info["matched_text_index"] for info in row["image_info"])
        for row in rows
    ), "no document whose published order is not the reading order: this proves nothing"


@pytest.mark.parametrize(("name", "over"), [("pairs", 0), ("docs_pairs", 2)])
def test_pairs_by_four(made: MadeRun, tmp_path: Path, name: str, over: int) -> None:
    """Every pair but the last few, in files that VILA's groups of four fit."""
    everything = contents(folder_of(made, name))
    assert len(everything) % 4 == over, "with no pair over this proves nothing"
    report = exported(folder_of(made, name), "vila-pickle", tmp_path)
    assert report.sets[0].left_out == ({"incomplete_group_of_four": over} if over else {})
    parts = folder_files(tmp_path / name)
    assert list(parts) == [f"part-{index:05d}" for index in range(len(made.sets[name].shards))]
    assert all(rows and len(rows) % 4 == 0 for rows in parts.values())
    rows = [row for part in parts.values() for row in part]
    for row, content in zip(rows, everything[: len(rows)], strict=True):
        (picture,) = content.images
        assert base64.b64decode(row["image"], validate=True) == picture.jpeg
        assert (row["id"], row["url"], row["text"]) == (content.key, picture.url, content.texts[0])
        assert row["clip_sim"] == picture.similarity


@pytest.mark.parametrize(("name", "shards"), [("docs", 8), ("docs_pairs", 8), ("docs", 36)])
def test_as_many_files_as_there_are_processes(made: MadeRun, tmp_path: Path, name: str, shards: int) -> None:
    exported(folder_of(made, name), "vila-pickle", tmp_path, shards=shards)
    lengths = [len(rows) for rows in folder_files(tmp_path / name).values()]
    step = 4 if name == "docs_pairs" else 1
    assert len(lengths) == shards
    assert max(lengths) - min(lengths) <= step
    assert sum(lengths) == made.sets[name].samples // step * step


def test_more_files_than_samples(made: MadeRun, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--shards 17: set pairs has \d+ samples in groups of 4, enough for at most 1\d files"
    ):
        exported(folder_of(made, "pairs"), "vila-pickle", tmp_path / "out", shards=17)
    assert not (tmp_path / "out").exists(), "the folder is taken before the call is known to be right"


@pytest.mark.parametrize("count", [1, 3, 4])
def test_fewer_pairs_than_four(tmp_path: Path, count: int) -> None:
    folder = small_set(tmp_path / "run", "pairs", [Small((f"caption {n}",), (0,)) for n in range(count)])
    report = exported(folder, "vila-pickle", tmp_path / "out")
    assert report.sets[0].exported == count // 4 * 4
    assert sum(map(len, folder_files(tmp_path / "out" / "small").values())) == count // 4 * 4


@settings(max_examples=15, deadline=None)
@given(documents.flatmap(lambda one: documents.map(lambda other: [one, other])))
def test_any_documents(records: list[Small]) -> None:
    """VILA's own indexing works on each row: a sentence a picture, a row of the matrix a picture."""
    with tempfile.TemporaryDirectory() as made:
        folder = small_set(Path(made) / "run", "interleaved", records)
        report = exported(folder, "vila-pickle", Path(made) / "out")
        assert report.sets[0].left_out.get("no_image", 0) == sum(not record.places for record in records)
        rows = [row for part in folder_files(Path(made) / "out" / "small").values() for row in part]
        by_id = {row["record_id"]: row for row in rows}
        for number, record in enumerate(records):
            if not record.places:
                continue
            row = by_id[f"record-{number}"]
            trailing = len(record.texts) in record.places
            assert row["text_list"] == [*record.texts, *([""] if trailing else [])]
            assert [info["matched_text_index"] for info in row["image_info"]] == list(record.places)
            for place, sims, info in zip(record.places, row["similarity_matrix"], row["image_info"], strict=True):
                assert sims == [PLACED if column == place else NOT_KNOWN for column in range(len(row["text_list"]))]
                assert info["matched_sim"] is None
            pictures = [base64.b64decode(info["image_base64"]) for info in row["image_info"]]
            assert pictures == [jpeg(number * 10 + i) for i in range(len(record.places))]


@settings(max_examples=10, deadline=None)
@given(captions)
def test_any_caption(record: Small) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = small_set(Path(made) / "run", "pairs", [record] * 4)
        exported(folder, "vila-pickle", Path(made) / "out")
        rows = [row for part in folder_files(Path(made) / "out" / "small").values() for row in part]
        assert [row["text"] for row in rows] == list(record.texts) * 4
