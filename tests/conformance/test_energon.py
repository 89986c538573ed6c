"""Megatron-Energon over sets as we write them and after its own `energon prepare`: lint, loader, restore in mid-epoch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import Client, program, python_of
from tests.conformance.shard_sets import OpenedSet, cases
from tests.conformance.table import Table
from vila_data.core.store import Store
from vila_data.shard.check import check_set
from vila_data.shard.read import ShardSetReader, open_shards

pytestmark = pytest.mark.slow

VERSION = "7.4.1"
CLASSES = {"interleaved": "InterleavedSample", "pairs": "CaptioningSample", "conversations": "InterleavedSample"}
PREPARE = {
    "prepared for access by key": ["--tar-index-only"],
    "prepared afresh": ["--non-interactive", "--force-overwrite", "--split-ratio", "1,0,0", "--skip-dataset-yaml"],
}


def wanted(reader: ShardSetReader) -> list[list[Any]]:
    """What the loader should give: [key, class, texts and image sizes in reading order]."""
    samples: list[list[Any]] = []
    for sample in reader:
        value = sample.json
        if reader.manifest.view == "pairs":
            pieces = [[value["height"], value["width"]], value["caption"]]
        elif reader.manifest.view == "conversations":
            pieces = [turn["value"] for turn in value["conversations"]]
            pieces += [[one["height"], one["width"]] for one in value["image_info"]]
        else:
            sizes = iter([one["height"], one["width"]] for one in value["image_info"])
            pieces = [text if text is not None else next(sizes) for text in value["texts"]]
        samples.append([sample.key, CLASSES[reader.manifest.view], pieces])
    return sorted(samples)


def images_of(samples: list[list[Any]]) -> int:
    return sum(isinstance(piece, list) for _, _, pieces in samples for piece in pieces)


def energon(*arguments: object) -> None:
    program("energon", python_of("energon").with_name("energon"), *arguments)


def prepare(folder: Path, *options: str) -> None:
    energon("prepare", *options, "--no-progress", "--num-workers", "2", folder)
    assert (folder / ".nv-meta" / "index.sqlite").stat().st_size > 0


@pytest.fixture
def copied(opened: OpenedSet, tmp_path: Path) -> Path:
    """A copy of the set, that Energon may write to."""
    return Path(shutil.copytree(opened.folder, tmp_path / opened.case.name))


@pytest.mark.parametrize("opened", cases(), indirect=True)
def test_energon_reads_every_sample_as_written(opened: OpenedSet, client: Client, table: Table) -> None:
    facts, case = opened.manifest, opened.case
    with table.reading(
        "Megatron-Energon", VERSION, "loader, 2 workers", case.source, case.name, facts.samples, facts.images
    ) as row:
        found = client("energon", "read_energon.py", opened.folder, 2)
        assert found["version"] == VERSION
        assert sorted(found["samples"]) == wanted(open_shards(opened.folder))
        row.samples_read, row.images_read = len(found["samples"]), images_of(found["samples"])


@pytest.mark.parametrize("how", list(PREPARE))
@pytest.mark.parametrize("opened", cases(sources=("made",)), indirect=True)
def test_energon_reads_every_sample_after_prepare(
    opened: OpenedSet, copied: Path, how: str, client: Client, table: Table
) -> None:
    facts, case = opened.manifest, opened.case
    with table.reading(
        "Megatron-Energon", VERSION, f"loader, {how}", case.source, case.name, facts.samples, facts.images
    ) as row:
        prepare(copied, *PREPARE[how])
        found = client("energon", "read_energon.py", copied, 2)
        assert sorted(found["samples"]) == wanted(open_shards(opened.folder))
        row.samples_read, row.images_read = len(found["samples"]), images_of(found["samples"])
    # prepare writes the tars' indexes anew: they are still those that we wrote
    assert list(check_set(Store(str(copied)), "")) == []


@pytest.mark.parametrize("opened", cases("pairs", sources=("made",)), indirect=True)
def test_energon_prepares_bare_tars_by_itself(opened: OpenedSet, tmp_path: Path, client: Client) -> None:
    """Without what we write for it: a captioning set from the names of the members."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for tar in opened.tars:
        shutil.copy(tar, bare)
    fields = '{"image": "jpg", "caption": "txt"}'
    prepare(bare, "--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CaptioningSample", "--field-map", fields)  # fmt: skip
    found = client("energon", "read_energon.py", bare, 0)
    assert sorted(found["samples"]) == wanted(open_shards(opened.folder))


@pytest.mark.parametrize("opened", cases(names=("docs", "docs_pairs"), sources=("made", "sample")), indirect=True)
def test_energon_lint_finds_nothing(opened: OpenedSet, copied: Path) -> None:
    energon("lint", copied)


@pytest.mark.parametrize("opened", cases("conversations", sources=("made",)), indirect=True)
def test_energon_lint_knows_no_crude_data(opened: OpenedSet) -> None:
    """Its `lint` has no cookers and so refuses every crude set, whoever wrote it; the loader above reads them."""
    lint = [str(python_of("energon").with_name("energon")), "lint", str(opened.folder)]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "No cookers registered, but got crude dataset." in done.stderr


@pytest.mark.parametrize("opened", cases(names=("docs", "chat", "gimp", "flickr")), indirect=True)
def test_energon_restores_in_mid_epoch(opened: OpenedSet, client: Client, table: Table, tmp_path: Path) -> None:
    """Shuffled, two workers: what is read before the state is saved and after it is restored in another process is the epoch."""
    facts, case = opened.manifest, opened.case
    state, some = tmp_path / "state", facts.samples * 3 // 7
    reading = "loader, state saved in mid-epoch and restored in another process"
    with table.reading(
        "Megatron-Energon", VERSION, reading, case.source, case.name, facts.samples, facts.images
    ) as row:
        whole = client("energon", "read_energon.py", opened.folder, 2, "--shuffle", 16)["samples"]
        first = client("energon", "read_energon.py", opened.folder, 2, "--shuffle", 16, "--take", some, "--save", state)
        rest = client("energon", "read_energon.py", opened.folder, 2, "--shuffle", 16, "--restore", state)
        read = first["samples"] + rest["samples"]
        assert len(first["samples"]) == some and read == whole
        assert [key for key, *_ in read] != [sample.key for sample in opened.ours]
        assert sorted(read) == wanted(open_shards(opened.folder))
        row.samples_read, row.images_read = len(read), images_of(read)
