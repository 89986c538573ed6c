"""shards/FORMAT.md names what a run leaves behind, with the columns that it has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from tests.conftest import REPO
from vila_data.core import tables
from vila_data.core.fates import IMAGE_ERRORS, RECORD_REASONS
from vila_data.core.records import CHAT_KEYS
from vila_data.core.samples import SAMPLE_SCHEMA
from vila_data.encode.sequence import FATES as TOKEN_FATES
from vila_data.encode.token_set import TokenManifest
from vila_data.filter.rules import OUTCOMES, RECORD_OUTCOMES
from vila_data.recipe.lock import FORM
from vila_data.score.embeddings import METADATA
from vila_data.shard.manifest import ShardFacts

PAGE = (REPO / "shards" / "FORMAT.md").read_text(encoding="utf-8")
SAID = " ".join(PAGE.split())

TABLES = {
    "## Index": tables.SHARD_INDEX,
    "## `download/<corpus>/part-00000.parquet`": tables.DOWNLOAD_IMAGES,
    "## `download/<corpus>/part-00000.records.parquet`": tables.DOWNLOAD_RECORDS,
    "## `score/<corpus>/<scorer>/part-00000.parquet`": tables.SCORE_IMAGES,
    "## `score/<corpus>/<scorer>/embeddings/`": METADATA,
    "## `filter/<corpus>/part-00000.parquet`": tables.FATES,
    "# Token files": tables.TOKENS,
    "`lengths.parquet`, from which": tables.LENGTHS,
}


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading."""
    begun = PAGE.index(f"\n{heading}")
    table = re.search(r"^\|.*\n\| ---.*\n((?:\|.*\n)+)", PAGE[begun:], re.M)
    assert table is not None
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.group(1).splitlines()]


def type_name(type_: pa.DataType) -> str:
    return f"list of {type_.value_type}" if pa.types.is_list(type_) else str(type_)


@pytest.mark.parametrize("heading", TABLES)
def test_columns(heading: str) -> None:
    expected = [[f"`{field.name}`", type_name(field.type), "yes" * field.nullable] for field in TABLES[heading]]
    assert [row[:3] for row in rows(heading)] == expected
    assert all(row[3] for row in rows(heading) if row[0] not in ("`n_images`", "`url`"))


def test_every_schema_has_its_table() -> None:
    found = [value for value in vars(tables).values() if isinstance(value, pa.Schema)]
    assert len(found) == len(TABLES) - 1
    assert all(any(one is table for table in TABLES.values()) for one in found)


@pytest.mark.parametrize(
    "names", [IMAGE_ERRORS, RECORD_REASONS, OUTCOMES[2:], RECORD_OUTCOMES[2:], TOKEN_FATES], ids=lambda names: names[0]
)
def test_lists_of_reasons_are_whole(names: tuple[str, ...]) -> None:
    assert ", ".join(f"`{name}`" for name in names) in SAID


def patterns() -> dict[str, re.Pattern[str]]:
    """The lines of the tree as expressions over paths; a folder stands for what is in it."""
    tree = PAGE.split("OUT/\n", 1)[1].split("```", 1)[0]
    found = {}
    for line in tree.splitlines():
        path = line.split()[0]
        text = re.sub(r"<\w+>", "@", path)
        text = re.escape(text).replace("@", r"[\w-]+")
        text = re.sub(r"0{5,6}", lambda zeros: rf"\d{{{len(zeros.group())}}}", text)
        found[line] = re.compile(text + ("(.*/)?[^/]+" if path.endswith("/") else "") + "$")
    return found


def test_the_tree_names_every_file_of_a_run(home: Path) -> None:
    run = home / "runs" / "demo"
    files = [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()]
    tree = patterns()
    assert [file for file in files if not any(pattern.match(file) for pattern in tree.values())] == []
    absent = [line for line, pattern in tree.items() if not any(pattern.match(file) for file in files)]
    assert [line for line in absent if "optional" not in line] == []


def test_json_files_have_the_keys_that_are_named(home: Path) -> None:
    run = home / "runs" / "demo"
    manifest = json.loads((run / "shards" / "docs" / "manifest.json").read_text())
    named = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows("## `manifest.json`")))
    assert named == list(manifest)
    (of_shards,) = (row[1] for row in rows("## `manifest.json`") if row[0] == "`shards`")
    assert re.findall(r"`(\w+)`", of_shards) == list(ShardFacts.__annotations__) == list(manifest["shards"][0])
    totals = json.loads((run / "run.json").read_text())
    named = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows("## `run.json`")))
    assert set(totals) <= set(named)
    parts = json.loads((run / "download" / "docs" / "parts.json").read_text())
    for key in [*parts, *parts["parts"][0]]:
        assert f"`{key}`" in PAGE.split("# Tables of a part", 1)[1].split("\n## ", 1)[0], key
    for key in TokenManifest.__annotations__:
        assert f"`{key}`" in PAGE.split("# Token files", 1)[1], key


def test_versions() -> None:
    assert f"`schema` in manifests is {tables.SCHEMA_VERSION}, `schema` in samples is {SAMPLE_SCHEMA}, " in SAID
    assert f"`form` in `recipe.lock.yaml` is {FORM}. " in SAID


def test_examples_are_samples_of_the_schema() -> None:
    examples = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.S)]
    assert [list(example) for example in examples if "schema" not in example] == [list(CHAT_KEYS)]
    samples = [example for example in examples if "schema" in example]
    assert len(samples) == 2
    for example in samples:
        assert example["schema"] == SAMPLE_SCHEMA
        assert len(example.get("texts", [])) in (0, len(example["images"]))
