from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.made_run import SETS, MadeRun
from vila_data.core.store import Store
from vila_data.core.tables import SHARD_INDEX
from vila_data.core.tarcodec import BLOCK, TarWriter, walk_file
from vila_data.shard.check import check_set, check_tar

Members = list[tuple[str, bytes]]

WIDS_LIES = "wids-meta.json: missing, or does not match the manifest"


class Copy:
    """A copy of a made set, to be damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(str(folder))

    @property
    def problems(self) -> list[str]:
        return [problem.replace(f"{self.folder}/", "") for problem in check_set(self.store, "")]

    def tar(self, number: int) -> Path:
        return self.folder / f"{self.folder.name}-{number:06d}.tar"

    def members(self, number: int) -> Members:
        data = self.tar(number).read_bytes()
        return [
            (one.name, data[one.offset : one.offset + one.size])
            for one in walk_file(io.BytesIO(data), "the copy's tar")
        ]

    def rewrite(self, number: int, members: Members) -> None:
        """Other members, with a manifest that believes in them."""
        with open(self.tar(number), "wb") as stream:
            tar = TarWriter(stream)
            for name, content in members:
                tar.add(name, content)
            tar.finish()
        self.sign(number)

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.folder / "manifest.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    def sign(self, number: int) -> None:
        """Make the manifest state the sizes and digests of what is there."""
        tar, table = self.tar(number).read_bytes(), self.tar(number).with_suffix(".parquet").read_bytes()

        def change(value: dict[str, Any]) -> None:
            shard = value["shards"][number]
            shard |= {"bytes": len(tar), "sha256": hashlib.sha256(tar).hexdigest()}
            shard |= {"index_bytes": len(table), "index_sha256": hashlib.sha256(table).hexdigest()}
            value["bytes"] = sum(one["bytes"] for one in value["shards"])

        self.edit(change)


@pytest.fixture(params=["docs", "pairs"])
def copy(made: MadeRun, tmp_path: Path, request: pytest.FixtureRequest) -> Copy:
    return copied(made, tmp_path, request.param)


@pytest.fixture
def docs(made: MadeRun, tmp_path: Path) -> Copy:
    return copied(made, tmp_path, "docs")


def copied(made: MadeRun, tmp_path: Path, name: str) -> Copy:
    shutil.copytree(made.store.location(f"shards/{name}"), tmp_path / name)
    return Copy(tmp_path / name)


@pytest.mark.parametrize("name", list(SETS))
def test_nothing_is_said_of_a_good_set(made: MadeRun, name: str) -> None:
    assert list(check_set(made.store, f"shards/{name}")) == []
    for shard in made.sets[name].shards:
        assert list(check_tar(made.store, f"shards/{name}/{shard.name}")) == []


def test_a_rewritten_copy_with_the_same_members_is_good(copy: Copy) -> None:
    copy.rewrite(1, copy.members(1))
    assert copy.problems == []


def test_a_folder_without_a_manifest(copy: Copy) -> None:
    (copy.folder / "manifest.json").unlink()
    assert copy.problems == ["manifest.json: missing: the shard set is not finished, or this is not a shard set"]
    (copy.folder / "manifest.json").write_text("{")
    (problem,) = copy.problems
    assert problem.startswith("manifest.json: not a manifest")


def test_a_missing_shard(copy: Copy) -> None:
    copy.tar(1).unlink()
    assert copy.problems == [f"{copy.tar(1).name}: missing"]


@pytest.mark.parametrize("suffix", [".parquet", ".tar.idx"])
def test_a_missing_index(copy: Copy, suffix: str) -> None:
    path = copy.tar(1).with_suffix(suffix)
    path.unlink()
    assert copy.problems == [f"{path.name}: missing"]


def test_a_foreign_tar(copy: Copy) -> None:
    shutil.copy(copy.tar(0), copy.folder / "other.tar")
    assert copy.problems == ["other.tar: not in the manifest"]


def test_a_tar_cut_at_a_member_boundary(copy: Copy) -> None:
    data = copy.tar(2).read_bytes()
    last = list(walk_file(io.BytesIO(data), "tar"))[-1]
    copy.tar(2).write_bytes(data[: last.offset - BLOCK])
    name = copy.tar(2).name
    size, end = len(data), last.offset - BLOCK
    assert copy.problems == [
        f"{name}: {end} bytes, but the manifest says {size}",
        f"{name}: ends at byte {end} without the end-of-archive marker: truncated",
    ]
    assert [problem.rsplit("/", 1)[-1] for problem in check_tar(copy.store, name)] == [
        f"{name}: ends at byte {end} without the end-of-archive marker: truncated"
    ]


def test_a_cut_tar_is_found_even_if_the_manifest_was_made_of_it(copy: Copy) -> None:
    data = copy.tar(0).read_bytes()
    first_of_last = [one for one in walk_file(io.BytesIO(data), "tar") if one.name.endswith(".json")][-1]
    copy.tar(0).write_bytes(data[: first_of_last.offset - BLOCK])
    copy.sign(0)
    wids, problem = copy.problems
    assert wids == WIDS_LIES and problem.endswith("without the end-of-archive marker: truncated")


def test_a_flipped_byte_in_an_image(copy: Copy) -> None:
    data = bytearray(copy.tar(0).read_bytes())
    picture = next(one for one in walk_file(io.BytesIO(data), "tar") if one.name.endswith(".jpg"))
    data[picture.offset + picture.size // 2] ^= 1
    copy.tar(0).write_bytes(data)
    name = copy.tar(0).name
    member = f"{name}: {picture.name}: crc32c does not match the index: bytes have changed"
    assert copy.problems == [f"{name}: sha256 does not match the manifest: bytes have changed", member]
    copy.sign(0)
    assert copy.problems == [member]


def test_a_flipped_byte_in_a_header(copy: Copy) -> None:
    data = bytearray(copy.tar(0).read_bytes())
    data[3] ^= 1
    copy.tar(0).write_bytes(data)
    assert copy.problems == [
        f"{copy.tar(0).name}: sha256 does not match the manifest: bytes have changed",
        f"{copy.tar(0).name}: header checksum is wrong at byte 0",
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".tar.idx"])
def test_a_flipped_byte_in_an_index(copy: Copy, suffix: str) -> None:
    path = copy.tar(1).with_suffix(suffix)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (problem,) = copy.problems
    assert problem.startswith(f"{path.name}: ")


@pytest.mark.parametrize("at", range(0, 100, 7))
def test_an_index_that_is_broken_though_the_manifest_was_made_of_it(docs: Copy, at: int) -> None:
    path = docs.tar(1).with_suffix(".parquet")
    data = bytearray(path.read_bytes())
    data[len(data) * at // 100] ^= 0xFF
    path.write_bytes(data)
    docs.sign(1)
    assert [problem for problem in docs.problems if not problem.startswith(f"{path.name}: ")] == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all, but long enough to look at" * 9])
def test_a_file_that_is_no_index(docs: Copy, content: bytes) -> None:
    path = docs.tar(1).with_suffix(".parquet")
    path.write_bytes(content)
    docs.sign(1)
    (problem,) = docs.problems
    assert problem.startswith(f"{path.name}: not an index: ")


def test_a_table_with_other_columns_is_no_index(docs: Copy) -> None:
    path = docs.tar(1).with_suffix(".parquet")
    pq.write_table(pa.table({"key": ["a"]}), path)
    docs.sign(1)
    (problem,) = docs.problems
    assert problem.startswith(f"{path.name}: not an index: ")


@pytest.mark.parametrize("what", ["samples", "images"])
def test_a_wrong_count_in_the_manifest(copy: Copy, what: str) -> None:
    facts = json.loads((copy.folder / "manifest.json").read_text())

    def change(value: dict[str, Any]) -> None:
        value["shards"][1][what] += 1
        value[what] += 1

    copy.edit(change)
    count = facts["shards"][1][what]
    told = f"{copy.tar(1).name}: {count} {what}, but the manifest says {count + 1}"
    assert copy.problems == [*([WIDS_LIES] if what == "samples" else []), told]


def test_a_wrong_total_in_the_manifest(copy: Copy) -> None:
    total = json.loads((copy.folder / "manifest.json").read_text())["images"]
    copy.edit(lambda value: value.update(images=total + 5))
    assert copy.problems == [f"manifest.json: images is {total + 5}, but its shards add up to {total}"]


def test_an_index_that_lies(copy: Copy) -> None:
    path = copy.tar(1).with_suffix(".parquet")
    table = pq.read_table(path)
    for column in ("key", "n_images", "members", "offsets", "sizes"):
        values = table.column(column).to_pylist()
        lie = {"key": values[1], "n_images": values[0], "members": values[1]}.get(column)
        values[0] = [one + 1 for one in values[0]] if column in ("offsets", "sizes") else lie
        if column == "n_images":
            values[0] += 1
        at = table.schema.get_field_index(column)
        pq.write_table(
            table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), path
        )
        copy.sign(1)
        assert copy.problems == [f"{path.name}: does not match the members of its tar"], column


@pytest.mark.parametrize("column", ["crc32c", "widths", "heights"])
def test_an_index_with_other_checksums_or_sizes(copy: Copy, column: str) -> None:
    path = copy.tar(1).with_suffix(".parquet")
    rows = pq.read_table(path).to_pylist()
    at = next(at for at, row in enumerate(rows) if row[column])
    rows[at][column][-1] += 1
    pq.write_table(pa.Table.from_pylist(rows, SHARD_INDEX), path)
    copy.sign(1)
    (problem,) = copy.problems
    if column == "crc32c":
        assert (
            problem
            == f"{copy.tar(1).name}: {rows[at]['members'][-1]}: crc32c does not match the index: bytes have changed"
        )
    else:
        assert problem.startswith(f"{path.name}: key {rows[at]['key']}: widths and heights")


def test_a_key_twice_in_one_tar(copy: Copy) -> None:
    members = copy.members(0)
    key = members[0][0].split(".")[0]
    again = [one for one in members if one[0].split(".")[0] == key]
    copy.rewrite(0, [*members, *again])
    assert any(f"duplicate key {key}" in problem for problem in copy.problems)
    assert any(f"duplicate key {key}" in problem for problem in check_tar(copy.store, copy.tar(0).name))


def test_a_key_in_two_tars(copy: Copy) -> None:
    copy.rewrite(1, copy.members(0))
    shutil.copy(copy.tar(0).with_suffix(".parquet"), copy.tar(1).with_suffix(".parquet"))
    shutil.copy(copy.tar(0).with_suffix(".tar.idx"), copy.tar(1).with_suffix(".tar.idx"))
    copy.sign(1)
    keys = {name.split(".")[0] for name, _ in copy.members(0)}
    twice = [problem for problem in copy.problems if "duplicate key" in problem]
    assert len(twice) == len(keys)
    assert all(copy.tar(0).name in problem and copy.tar(1).name in problem for problem in twice)


def test_members_that_are_not_adjacent(docs: Copy) -> None:
    members = docs.members(0)
    docs.rewrite(0, [*members[1:], members[0]])
    key = members[0][0].split(".")[0]
    assert any(f"duplicate key {key}" in problem for problem in docs.problems)


def test_a_member_twice_in_one_sample(copy: Copy) -> None:
    members = copy.members(0)
    copy.rewrite(0, [members[0], members[1], *members[1:]])
    assert any("duplicate member" in problem for problem in copy.problems)


BROKEN_JSON = [
    (b"{", "Expecting property name"),
    (b"\xff", "UnicodeDecodeError"),
    (b"[]", "TypeError"),
    (b'{"sample_id": "a"}', "KeyError('schema')"),
    (b'{"schema": 2}', "schema 2; this version reads 1"),
]
CHANGED_VALUES: list[tuple[str, dict[str, Any], str]] = [
    ("docs", {"images": 3}, "not iterable"),
    ("docs", {"images": ["other.0.jpg"], "texts": [None], "image_info": "first"}, "its JSON names 1 images"),
    ("docs", {"texts": []}, "zip() argument 2 is longer"),
    ("docs", {"texts": [3], "images": [None], "image_info": []}, "a text is 3"),
    ("docs", {"texts": [None], "images": [None], "image_info": []}, "not exactly one of texts and images"),
    ("docs", {"image_info": []}, "zip() argument 2 is shorter"),
    ("docs", {"image_info": [{}]}, "KeyError"),
    ("pairs", {"source": None}, "TypeError"),
    ("chat", {"conversations": [{"from": "human"}]}, "'value'"),
    ("chat", {"conversations": 3}, "not iterable"),
    ("chat", {"conversations": []}, "0 <image> placeholders"),
    ("chat", {"messages": 3}, "not iterable"),
    ("chat", {"messages": [{"role": "user", "content": [{}]}]}, "'type'"),
    ("chat", {"messages": [{"content": [{"type": "text"}]}, {"role": "user"}]}, "0 image entries in messages for"),
]


@pytest.mark.parametrize(("content", "problem"), BROKEN_JSON)
def test_a_json_that_is_none(copy: Copy, content: bytes, problem: str) -> None:
    members = copy.members(0)
    copy.rewrite(0, [(members[0][0], content), *members[1:]])
    assert any(f"{members[0][0]}: not a sample" in found and problem in found for found in copy.problems)


@pytest.mark.parametrize(("name", "changed", "problem"), CHANGED_VALUES)
def test_a_json_with_other_values(
    made: MadeRun, name: str, changed: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    copy = copied(made, tmp_path, name)
    members = copy.members(0)
    at, value = next(
        (at, value)
        for at, (member, data) in enumerate(members)
        if member.endswith(".json") and (value := json.loads(data)).get("image_info", True)
    )
    if changed.get("image_info") == "first":
        changed = changed | {"image_info": value["image_info"][:1]}
    members[at] = (members[at][0], json.dumps(value | changed).encode())
    copy.rewrite(0, members)
    assert any(value["sample_id"] in found and problem in found for found in copy.problems), copy.problems


def test_a_mark_in_a_conversation_that_never_had_images_is_text(made: MadeRun, tmp_path: Path) -> None:
    """In turns and in messages."""
    chat = copied(made, tmp_path, "chat")
    (name, data), *members = chat.members(0)
    value = json.loads(data) | {"images": [], "image_info": []}
    value |= {"conversations": [{"from": "human", "value": "<image>"}], "messages": [{"content": "<image>"}]}
    others = [one for one in members if not one[0].startswith(f"{value['sample_id']}.")]
    chat.rewrite(0, [(name, json.dumps(value).encode()), *others])
    assert [one for one in chat.problems if value["sample_id"] in one] == []


def test_an_image_that_is_missing(docs: Copy) -> None:
    members = docs.members(0)
    gone = next(name for name, _ in members if name.endswith(".jpg"))
    docs.rewrite(0, [one for one in members if one[0] != gone])
    assert any(f"key {gone.split('.')[0]}: its JSON names" in problem for problem in docs.problems)


def test_a_sample_without_json(copy: Copy) -> None:
    members = copy.members(0)
    copy.rewrite(0, members[1:])
    key = members[0][0].split(".")[0]
    assert any(problem.endswith(f"key {key}: {key}.json is missing") for problem in copy.problems)


def test_check_tar_says_what_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"x" * 2000)
    store = Store(str(tmp_path))
    (problem,) = check_tar(store, "x.tar")
    assert "no tar header at byte 0" in problem
    (problem,) = check_tar(store, "y.tar")
    assert "no such file" in problem
