"""Token files of a made run: rows in the shards' order, read back as they were encoded, and one error for what is wrong."""

from __future__ import annotations

import gc
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.encode.conftest import Made
from tests.encode.generated import encoded, labels_of
from tests.made_run import MadeRun, make_run
from vila_data.core.checksums import crc32c
from vila_data.core.errors import DataError, UsageError
from vila_data.core.layout import shard_stem
from vila_data.core.receipts import read_receipt, valid_receipt
from vila_data.core.store import Store
from vila_data.core.tables import LENGTHS, SHARD_INDEX, TOKENS, read_arrow
from vila_data.encode.config import PackConfig
from vila_data.encode.part import COUNTS, EncodeJob, encode_shard
from vila_data.encode.sequence import OK
from vila_data.encode.token_set import TokenSet, row_crc32c
from vila_data.encode.tokenizer import TextTokenizer
from vila_data.encode.tokens import (
    TokenManifest,
    check_tokens,
    encoding_fingerprint,
    finish_tokens,
    open_tokens,
    read_token_manifest,
)

CONFIG = PackConfig(tokenizer="made", sequence_length=120, tokens_per_image=16, max_images_per_document=3)
PAPER = CONFIG.model_copy(update={"semantics": "paper"})


@dataclass(frozen=True)
class Encoded:
    """A made run, all of whose sets have token files."""

    run: MadeRun
    tokenizer: TextTokenizer
    manifests: dict[str, TokenManifest]
    folders: dict[str, str]


def jobs_of(run: MadeRun, name: str, config: PackConfig, tokenizer: TextTokenizer) -> list[EncodeJob]:
    encoding = encoding_fingerprint(config, tokenizer)
    count = len(run.sets[name].shards)
    return [EncodeJob(name, index, tokenizer.fingerprint, encoding, f"inputs-{index}") for index in range(count)]


def encode_run(run: MadeRun, config: PackConfig, tokenizer: TextTokenizer) -> Encoded:
    manifests, folders = {}, {}
    for name in run.sets:
        jobs = jobs_of(run, name, config, tokenizer)
        receipts = [encode_shard(run.store, job, config, tokenizer) for job in jobs]
        folders[name] = jobs[0].folder
        manifests[name] = finish_tokens(run.store, name, jobs, receipts, folders[name], "inputs")
    return Encoded(run, tokenizer, manifests, folders)


@pytest.fixture(scope="module", params=["local", "memory"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, made: Made) -> Encoded:
    url = "memory://encode-made" if request.param == "memory" else str(tmp_path_factory.mktemp("made"))
    return encode_run(make_run(url), CONFIG, made("llama_first"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, made: Made) -> Encoded:
    """A run that is copied, not read."""
    return encode_run(make_run(str(tmp_path_factory.mktemp("whole") / "run")), CONFIG, made("llama_first"))


@pytest.fixture
def copied(whole: Encoded, tmp_path: Path) -> Encoded:
    """A run to spoil."""
    shutil.copytree(whole.run.store.url, tmp_path / "run")
    return replace(whole, run=replace(whole.run, store=Store(str(tmp_path / "run"))))


def samples_of(run: MadeRun, name: str) -> list[tuple[int, int, str, dict[str, Any]]]:
    """(shard, row, key, JSON) of each sample, read from the tars by the index."""
    found = []
    for shard in range(len(run.sets[name].shards)):
        stem = shard_stem(name, shard)
        with run.store.open_read(f"{stem}.parquet") as stream:
            rows = pq.read_table(stream).to_pylist()
        for number, row in enumerate(rows):
            data = run.store.read_range(f"{stem}.tar", row["offsets"][0], row["sizes"][0])
            found.append((shard, number, row["key"], json.loads(data)))
    return found


def test_rows_are_the_samples_in_order(done: Encoded) -> None:
    cut = left_out = 0
    for name in done.run.sets:
        tokens = open_tokens(done.run.store, name, CONFIG, done.tokenizer)
        samples = samples_of(done.run, name)
        lengths = tokens.lengths().to_pylist()
        assert [(row["shard"], row["row"]) for row in lengths] == [(shard, row) for shard, row, _, _ in samples]
        for (shard, row, key, value), length in zip(samples, lengths, strict=True):
            expected = encoded(value, CONFIG, done.tokenizer)
            found = tokens.sample(shard, row)
            assert found.key == key and found.record_id == value["source"]["record_id"]
            assert found.ids.dtype == found.labels.dtype == found.images.dtype == np.int32
            assert found.ids.tolist() == expected.ids
            assert found.labels.tolist() == labels_of(expected)
            assert tuple(found.images.tolist()) == expected.images
            assert found.trained.tolist() == [list(place) for place in expected.trained]
            assert found.offsets.dtype == found.sizes.dtype == np.int64
            assert found.tokens == expected.tokens == length["tokens"]
            assert length["images"] == len(expected.images)
            assert length["text_tokens"] == len(expected.ids) - len(expected.images)
            assert (length["images_left_out"], length["tokens_cut"]) == (expected.left_out, expected.cut)
            assert length["fate"] == expected.fate and (expected.fate == OK) == (length["tokens"] > 0)
            cut += expected.cut > 0
            left_out += expected.left_out
    assert cut and left_out, "nothing was cut: this shows too little"


def test_places_of_images_are_those_of_their_members(done: Encoded) -> None:
    """Image number i of a token file is the i-th picture of the sample, at the bytes that the index says."""
    images = 0
    for name in done.run.sets:
        tokens = open_tokens(done.run.store, name, CONFIG, done.tokenizer)
        for shard in range(tokens.manifest.shards):
            with done.run.store.open_read(f"{shard_stem(name, shard)}.parquet") as stream:
                index = pq.read_table(stream).to_pylist()
            for row, entry in enumerate(index):
                members = zip(entry["members"], entry["offsets"], entry["sizes"], entry["crc32c"], strict=True)
                pictures = [place for member, *place in members if member.endswith(".jpg")]
                sample = tokens.sample(shard, row)
                of_images = (sample.offsets, sample.sizes, sample.crc32c, sample.widths, sample.heights)
                for number, *place, width, height in zip(
                    sample.images, *(one.tolist() for one in of_images), strict=True
                ):
                    assert place == pictures[number]
                    jpeg = done.run.store.read_range(f"{shard_stem(name, shard)}.tar", *place[:2])
                    assert crc32c(jpeg) == place[2] and Image.open(io.BytesIO(jpeg)).size == (width, height)
                    assert (entry["widths"][number], entry["heights"][number]) == (width, height)
                    images += 1
    assert images > 20


def test_lengths_and_counts_agree(done: Encoded) -> None:
    for name, manifest in done.manifests.items():
        tokens = open_tokens(done.run.store, name, CONFIG, done.tokenizer)
        lengths = tokens.lengths()
        assert lengths.schema.equals(LENGTHS)
        counted = ("tokens", "text_tokens", "images", "images_left_out", "tokens_cut")
        totals = {column: sum(lengths.column(column).to_pylist()) for column in counted}
        assert manifest.counts["samples"] == lengths.num_rows == done.run.sets[name].samples
        for column in counted:
            assert manifest.counts[column] == totals[column]
        fates = lengths.column("fate").to_pylist()
        assert manifest.counts["sequences"] == fates.count(OK)
        failed = {key: count for key, count in manifest.counts.items() if key.startswith("failed:")}
        assert sum(failed.values()) == len(fates) - fates.count(OK)
        for row in lengths.to_pylist():
            sample = tokens.sample(row["shard"], row["row"])
            assert (row["widths"], row["heights"]) == (sample.widths.tolist(), sample.heights.tolist())
        trained = sum(int((tokens.sample(row["shard"], row["row"]).labels >= 0).sum()) for row in lengths.to_pylist())
        assert manifest.counts["trained_tokens"] == trained
        assert set(COUNTS) <= manifest.counts.keys()
        assert read_token_manifest(done.run.store, done.folders[name]) == manifest == tokens.manifest


def test_relaunched_bytes_are_the_same(done: Encoded) -> None:
    before = {path: done.run.store.read(path) for path in done.run.store.files("tokens")}
    receipts = [path for path in before if "/.receipts/" in path]
    for path in receipts[::2]:
        done.run.store.remove(path)
    encode_run(done.run, CONFIG, done.tokenizer)
    after = {path: done.run.store.read(path) for path in done.run.store.files("tokens")}
    assert before == after and len(receipts) >= len(done.run.sets)


def test_receipts_are_valid(done: Encoded) -> None:
    for name in done.run.sets:
        for job in jobs_of(done.run, name, CONFIG, done.tokenizer):
            assert valid_receipt(done.run.store, job.receipt(), job.inputs) is not None
            assert valid_receipt(done.run.store, job.receipt(), "other") is None
            receipt = read_receipt(done.run.store, job.receipt())
            assert receipt is not None and list(receipt.outputs) == [job.path()]


def test_other_settings_have_files_of_their_own(done: Encoded, made: Made) -> None:
    store, tokenizer = done.run.store, done.tokenizer
    known = encoding_fingerprint(CONFIG, tokenizer)
    others = [{"sequence_length": 121}, {"tokens_per_image": 15}, {"template": "plain"}, {"images_first": True}]
    for change in [*others, {"semantics": "paper"}, {"max_images_per_document": None}, {"max_images_per_pack": 2}]:
        other = CONFIG.model_copy(update=change)
        assert encoding_fingerprint(other, tokenizer) != known
        with pytest.raises(UsageError, match=f"found: tokenizer {tokenizer.fingerprint}, encoding {known}"):
            open_tokens(store, "docs", other, tokenizer)
    assert encoding_fingerprint(CONFIG.model_copy(update={"tokenizer": "elsewhere"}), tokenizer) == known
    stranger = made("byte_level")
    with pytest.raises(
        UsageError, match=rf"{stranger.fingerprint}.*found: tokenizer {tokenizer.fingerprint}.*--only encode"
    ):
        open_tokens(store, "docs", CONFIG, stranger)
    with pytest.raises(UsageError, match="found: none"):
        open_tokens(store, "nothing", CONFIG, tokenizer)


def test_files_of_an_earlier_layout_go(copied: Encoded) -> None:
    store, folder = copied.run.store, copied.folders["docs"]
    jobs = jobs_of(copied.run, "docs", CONFIG, copied.tokenizer)
    stray = EncodeJob("docs", len(jobs), copied.tokenizer.fingerprint, jobs[0].encoding, "inputs")
    store.commit_bytes(store.read(jobs[0].path()), stray.path())
    store.commit_bytes(store.read(jobs[0].receipt()), stray.receipt())
    receipts = [encode_shard(store, job, CONFIG, copied.tokenizer) for job in jobs]
    finish_tokens(store, "docs", jobs, receipts, folder, "inputs")
    assert not store.exists(stray.path()) and not store.exists(stray.receipt())
    assert open_tokens(store, "docs", CONFIG, copied.tokenizer).manifest == copied.manifests["docs"]


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.9])
def test_a_truncated_token_file(copied: Encoded, kept: float) -> None:
    path = jobs_of(copied.run, "docs", CONFIG, copied.tokenizer)[0].path()
    data = copied.run.store.read(path)
    copied.run.store.commit_bytes(data[: int(len(data) * kept) if kept < 1 else int(kept)], path)
    tokens = open_tokens(copied.run.store, "docs", CONFIG, copied.tokenizer)
    with pytest.raises(DataError, match=r"docs-000000\.arrow: not a token file"):
        tokens.sample(0, 0)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("trained", [3, 10_000], "trained spans"),
        ("trained", [9, 3], "trained spans"),
        ("trained", [-1, 3], "trained spans"),
        ("trained", [1, 2, 3], "reshape"),
        ("images", [0] * 40, "differ in number"),
        ("offsets", [], "differ in number"),
        ("ids", [5, 6], "differ in number"),
    ],
)
def test_a_damaged_row(copied: Encoded, column: str, value: list[int], message: str) -> None:
    def damage(rows: list[dict[str, Any]]) -> None:
        assert rows[0]["images"]
        rows[0][column] = value

    rewritten(copied, damage)
    tokens = open_tokens(copied.run.store, "docs", CONFIG, copied.tokenizer)
    assert len(tokens.sample(0, 1).ids) > 0
    with pytest.raises(DataError, match=rf"docs-000000\.arrow: row 0: .*{message}.*delete it and run the recipe again"):
        tokens.sample(0, 0)


@pytest.mark.parametrize(
    "column", [name for name in TOKENS.names if name not in ("images_left_out", "tokens_cut", "fate", "detail")]
)
def test_a_row_with_another_value_in_it(copied: Encoded, column: str) -> None:
    """Every value that a sequence is made of is under the row's checksum; loader and check both say so."""

    at = 1

    def damage(rows: list[dict[str, Any]]) -> None:
        nonlocal at
        at = next(number for number, row in enumerate(rows) if number and row["images"])
        value = rows[at][column]
        if isinstance(value, list):
            rows[at][column] = [*value[:-1], value[-1] ^ 1]
        else:
            rows[at][column] = value + ("x" if isinstance(value, str) else 1)

    rewritten(copied, damage, sign=False)
    tokens = open_tokens(copied.run.store, "docs", CONFIG, copied.tokenizer)
    assert len(tokens.sample(0, 0).ids) > 0
    with pytest.raises(
        DataError, match=rf"docs-000000\.arrow: row {at}: .*its checksum does not match.*delete it and run the recipe"
    ):
        tokens.sample(0, at)
    assert any("docs-000000.arrow: " in problem for problem in check_tokens(copied.run.store, copied.folders["docs"]))


def signed(row: dict[str, Any]) -> int:
    """A row's checksum, made from its values."""
    lists = [
        np.array(row[field.name], field.type.value_type.to_pandas_dtype())
        for field in TOKENS
        if pa.types.is_list(field.type)
    ]
    return row_crc32c(row["key"].encode(), row["record_id"].encode(), row["tokens"], *lists)


def rewritten(
    copied: Encoded, change: Callable[[list[dict[str, Any]]], None], schema: pa.Schema = TOKENS, sign: bool = True
) -> None:
    """Write the first token file of docs again, its rows changed."""
    store, path = copied.run.store, jobs_of(copied.run, "docs", CONFIG, copied.tokenizer)[0].path()
    with store.open_read(path) as stream:
        rows = read_arrow(stream).to_pylist()
    change(rows)
    if sign and schema is TOKENS:
        rows = [row | {"row_crc32c": signed(row)} for row in rows]
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema).combine_chunks())
    store.commit_bytes(stream.getvalue(), path)


@pytest.mark.parametrize("row", [-1, 10_000])
def test_a_row_that_is_not_there(done: Encoded, row: int) -> None:
    tokens = open_tokens(done.run.store, "docs", CONFIG, done.tokenizer)
    with pytest.raises(DataError, match=rf"docs-000000\.arrow: row {row}: there are \d+ rows"):
        tokens.sample(0, row)


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_changed_never_crash(copied: Encoded, data: st.DataObject) -> None:
    """A changed byte gives a sample or a DataError with the file's name, nothing else."""
    store = Store("memory://changed-tokens")
    path = jobs_of(copied.run, "docs", CONFIG, copied.tokenizer)[0].path()
    content = bytearray(copied.run.store.read(path))
    regions = [(0, len(content) - 1), (0, 1_500), (len(content) - 2_000, len(content) - 1)]  # schema, batch and footer
    at = data.draw(st.sampled_from(regions).flatmap(lambda region: st.integers(*region)))
    content[at] = data.draw(st.integers(0, 255))
    store.commit_bytes(bytes(content), path)
    tokens = TokenSet(store, copied.manifests["docs"], copied.folders["docs"])
    for row in range(3):
        try:
            sample = tokens.sample(0, row)
        except DataError as error:
            assert "docs-000000.arrow" in str(error)
        else:
            assert len(sample.labels) == len(sample.ids) and len(sample.offsets) == len(sample.images)


def test_files_of_an_earlier_version(copied: Encoded) -> None:
    earlier = pa.schema([field for field in TOKENS if field.name not in ("record_id", "offsets", "sizes")])
    rewritten(copied, lambda rows: [row.pop("record_id") for row in rows] and None, earlier)
    with pytest.raises(DataError, match=r"not a token file: 1 batches with columns key, ids, trained"):
        open_tokens(copied.run.store, "docs", CONFIG, copied.tokenizer).sample(0, 0)
    (problem,) = check_tokens(copied.run.store, copied.folders["docs"])
    assert "docs-000000.arrow: has different columns from this version" in problem


def test_a_copy_is_mapped_where_the_store_is_remote(copied: Encoded, tmp_path: Path) -> None:
    """Asked for once a file; what it gives is read in its place."""
    remote, folder = Store("memory://token-copies"), copied.folders["docs"]
    asked: list[str] = []

    def local_copy(path: str) -> Path:
        asked.append(path)
        return Path(copied.run.store.location(path))

    tokens = TokenSet(remote, copied.manifests["docs"], folder, local_copy=local_copy)
    here = open_tokens(copied.run.store, "docs", CONFIG, copied.tokenizer)
    for row in (0, 1, 0):
        assert tokens.sample(0, row).ids.tolist() == here.sample(0, row).ids.tolist()
    assert asked == [f"{folder}/docs-000000.arrow"], "a file is asked for when it is opened"


def test_the_number_of_mapped_files_is_bounded(copied: Encoded) -> None:
    """And none holds a descriptor, of which a process may have few."""
    first = jobs_of(copied.run, "docs", CONFIG, copied.tokenizer)[0]
    data = copied.run.store.read(first.path())
    for index in range(40):
        copied.run.store.commit_bytes(data, replace(first, index=index).path())

    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text().splitlines()
        return sum(copied.run.store.url in line for line in maps), len(list(Path("/proc/self/fd").iterdir()))

    tokens = TokenSet(copied.run.store, copied.manifests["docs"], copied.folders["docs"], open_files=5)
    mapped, descriptors = held()
    samples = [tokens.sample(index, 0).ids.tolist() for index in range(40)]
    assert samples == [samples[0]] * 40
    assert mapped == 0 and held() == (5, descriptors)
    del tokens
    gc.collect()
    assert held() == (0, descriptors)


def test_pages_of_mapped_files_can_be_let_go(copied: Encoded) -> None:
    store = copied.run.store
    tokens = TokenSet(store, copied.manifests["docs"], copied.folders["docs"])
    before = tokens.sample(0, 1)
    ids = before.ids.tolist()

    def resident_kb() -> int:
        found, inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split(" ", 1)[0]:
                inside = store.url in line
            elif inside and line.startswith("Rss:"):
                found += int(line.split()[1])
        return found

    assert resident_kb() > 0
    tokens.let_pages_go()
    assert resident_kb() == 0
    assert before.ids.tolist() == ids == tokens.sample(0, 1).ids.tolist()


def test_reading_samples_loads_nothing_heavy() -> None:
    probe = (
        "import sys, vila_data.encode.token_set, vila_data.encode.tokens; "
        "print(sorted({'torch', 'transformers', 'tokenizers', 'ray', 'PIL', 'cv2'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    probe = "import sys, vila_data.encode.token_set; print(sorted({'pydantic', 'pyarrow.parquet'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_missing_token_file(copied: Encoded) -> None:
    copied.run.store.remove(jobs_of(copied.run, "docs", CONFIG, copied.tokenizer)[0].path())
    with pytest.raises(DataError, match=r"docs-000000\.arrow: missing: run the recipe again"):
        open_tokens(copied.run.store, "docs", CONFIG, copied.tokenizer).sample(0, 0)


def test_a_check_of_token_files(copied: Encoded) -> None:
    """What no receipt covers: the lengths of a whole set, and its manifest."""
    store, folder = copied.run.store, copied.folders["docs"]
    assert [problem for each in copied.folders.values() for problem in check_tokens(store, each)] == []
    manifest = store.read(f"{folder}/manifest.json")
    store.commit_bytes(manifest.replace(b'"tokens": ', b'"tokens": 1'), f"{folder}/manifest.json")
    (problem,) = check_tokens(store, folder)
    assert problem.endswith("manifest.json: its counts do not equal the sums of the receipts")
    store.commit_bytes(manifest, f"{copied.folders['pairs']}/manifest.json")
    (problem,) = check_tokens(store, copied.folders["pairs"])
    assert problem.endswith("manifest.json: belongs to a different directory")
    store.remove(f"{folder}/manifest.json")
    assert list(check_tokens(store, folder)) == []


@pytest.mark.parametrize("column", ["key", "record_id", "offsets", "sizes", "crc32c", "widths", "heights", "images"])
def test_a_check_of_places(copied: Encoded, column: str) -> None:
    """Token files that are whole, but not of these shards."""

    def swap(rows: list[dict[str, Any]]) -> None:
        at = next(at for at, row in enumerate(rows) if at and row["images"])
        value = rows[at][column]
        rows[at][column] = "other" if isinstance(value, str) else [value[0] + 7, *value[1:]]

    rewritten(copied, swap)
    *lengths, problem = check_tokens(copied.run.store, copied.folders["docs"])
    assert len(lengths) == (column in ("widths", "heights"))  # lengths.parquet has them too
    assert "docs-000000.arrow: " in problem and problem.endswith(
        ("; delete it and run the recipe again", "; delete the file and rerun the recipe")
    )
    assert ("do not match the shard's index" in problem) == (column in ("key", "record_id"))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"name": "docs"}'])
def test_a_broken_manifest(copied: Encoded, text: str) -> None:
    copied.run.store.commit_bytes(text.encode(), f"{copied.folders['docs']}/manifest.json")
    (problem,) = check_tokens(copied.run.store, copied.folders["docs"])
    assert "manifest.json: is not a manifest of token files" in problem
    with pytest.raises(DataError, match=r"manifest\.json: is not a manifest of token files"):
        open_tokens(copied.run.store, "docs", CONFIG, copied.tokenizer)


def test_broken_lengths(copied: Encoded) -> None:
    path = f"{copied.folders['docs']}/lengths.parquet"
    tokens = open_tokens(copied.run.store, "docs", CONFIG, copied.tokenizer)
    data = copied.run.store.read(path)
    changed = tokens.lengths()
    at = LENGTHS.get_field_index("text_tokens")
    changed = changed.set_column(at, LENGTHS.field(at), pc.add(changed.column(at), 1).cast(LENGTHS.field(at).type))
    stream = io.BytesIO()
    pq.write_table(changed, stream)
    for broken in (data[:-9], stream.getvalue()):
        copied.run.store.commit_bytes(broken, path)
        (problem,) = check_tokens(copied.run.store, copied.folders["docs"])
        assert re.search(r"lengths\.parquet: (not the lengths|does not match its token files)", problem)
    copied.run.store.commit_bytes(data[:-9], path)
    with pytest.raises(DataError, match=r"lengths\.parquet: not the lengths.*delete it and run the recipe again"):
        tokens.lengths()
    copied.run.store.remove(path)
    with pytest.raises(DataError, match=r"lengths\.parquet: missing"):
        tokens.lengths()


@pytest.mark.parametrize("sign", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"{" + data[1:].replace(b'"', b"'"),
        lambda data: b"[1]".ljust(len(data)),
        lambda data: b"{}".ljust(len(data)),
    ],
)
def test_a_shard_whose_json_is_broken(copied: Encoded, change: Any, sign: bool) -> None:
    store, stem = copied.run.store, shard_stem("docs", 0)
    with store.open_read(f"{stem}.parquet") as stream:
        rows = pq.read_table(stream).to_pylist()
    tar, row = store.read(f"{stem}.tar"), rows[1]
    start, size = row["offsets"][0], row["sizes"][0]
    broken = change(tar[start : start + size])
    store.commit_bytes(tar[:start] + broken + tar[start + size :], f"{stem}.tar")
    if sign:
        row["crc32c"][0] = crc32c(broken)
        pq.write_table(pa.Table.from_pylist(rows, SHARD_INDEX), store.location(f"{stem}.parquet"))
    job = jobs_of(copied.run, "docs", CONFIG, copied.tokenizer)[0]
    why = "not a sample of shards/FORMAT.md" if sign else "its bytes differ from the index"
    with pytest.raises(DataError, match=rf"{row['members'][0]}: {why}.*run check"):
        encode_shard(store, job, CONFIG, copied.tokenizer)


def test_an_index_without_the_size_of_an_image(copied: Encoded) -> None:
    store, stem = copied.run.store, shard_stem("docs", 0)
    rows = pq.read_table(store.location(f"{stem}.parquet")).to_pylist()
    next(row for row in rows if row["widths"])["widths"].pop()
    pq.write_table(pa.Table.from_pylist(rows, SHARD_INDEX), store.location(f"{stem}.parquet"))
    job = jobs_of(copied.run, "docs", CONFIG, copied.tokenizer)[0]
    with pytest.raises(DataError, match=r"docs-000000\.parquet: not an entry for each image; run check"):
        encode_shard(store, job, CONFIG, copied.tokenizer)


def test_a_truncated_shard(copied: Encoded) -> None:
    store, stem = copied.run.store, shard_stem("docs", 0)
    store.commit_bytes(store.read(f"{stem}.tar")[:2000], f"{stem}.tar")
    job = jobs_of(copied.run, "docs", CONFIG, copied.tokenizer)[0]
    with pytest.raises(DataError, match="its bytes differ from the index"):
        encode_shard(store, job, CONFIG, copied.tokenizer)


def test_fidelity_modes_are_written_too(copied: Encoded) -> None:
    done = encode_run(copied.run, PAPER, copied.tokenizer)
    assert len(done.run.store.files(f"tokens/{done.tokenizer.fingerprint}/docs")) > 2
    for shard, row, _, value in samples_of(done.run, "docs"):
        sample = open_tokens(done.run.store, "docs", PAPER, done.tokenizer).sample(shard, row)
        assert sample.labels[0] == done.tokenizer.bos_id
        assert sample.ids.tolist() == encoded(value, PAPER, done.tokenizer).ids
