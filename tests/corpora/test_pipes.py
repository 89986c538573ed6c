"""Brace and `pipe:` addresses of tars, from the recipe to shards; what a pipe costs, and what becomes of one that fails."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import webdataset

import vila_data as vd
from tests.corpora.test_foreign_tars import damage, written
from tests.made_run import drawn
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, Record
from vila_data.corpora.config import Img2datasetConfig, Mmc4Config
from vila_data.corpora.img2dataset import Img2datasetSource
from vila_data.corpora.mmc4 import Mmc4Source
from vila_data.corpora.source import file_labels, open_binary

TARS, EACH = 3, 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tars as img2dataset leaves them, without the files beside them; the last has texts alone, as others write them."""
    (tmp_path / "data").mkdir()
    for tar in range(TARS):
        members = {}
        for number in range(EACH):
            key = f"{tar:05d}{number:04d}"
            about = {"caption": f"caption {key}", "url": f"https://a.test/{key}", "key": key, "status": "success"}
            members[f"{key}.jpg"] = drawn(10 * tar + number)
            members[f"{key}.txt"] = f"caption {key}".encode()
            if tar < TARS - 1:
                members[f"{key}.json"] = json.dumps(about).encode()
        written(tmp_path / "data" / f"{tar:05d}.tar", members)
    return tmp_path


def recipe(folder: Path, files: str, kind: str = "img2dataset", more: str = "") -> Path:
    path = folder / "recipe.yaml"
    corpora = {"mine": {"kind": kind, "files": [files]} | (json.loads(more) if more else {})}
    shards = {"mine": {"corpus": "mine", "view": "pairs"}}
    path.write_text(json.dumps({"version": 1, "name": "mine", "corpora": corpora, "shards": shards}))
    return path


def captions(run: Path) -> list[str]:
    return sorted(sample.json["caption"] for sample in vd.open_shards(run / "shards" / "mine"))


def bytes_of(run: Path) -> dict[str, bytes]:
    files = [path for room in ("download", "shards") for path in (run / room).rglob("*") if path.is_file()]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def test_a_pipe_is_read_once_and_a_relaunch_reads_none(folder: Path) -> None:
    log = folder / "log"
    command = f"pipe:echo read >> {log}; cat {folder}/data/{{00000..{TARS - 1:05d}}}.tar"
    path = recipe(folder, command)
    report = vd.run(path, folder / "one", runner="local")
    assert log.read_text().count("read") == TARS
    assert report.funnel["mine"]["select"]["records"] == {"kept": TARS * EACH}
    assert captions(folder / "one") == [f"caption {tar:05d}{n:04d}" for tar in range(TARS) for n in range(EACH)]
    vd.run(path, folder / "one", runner="local")
    assert log.read_text().count("read") == TARS
    vd.run(path, folder / "other", runner="local")
    assert bytes_of(folder / "other") == bytes_of(folder / "one")


def test_limited_runs_take_the_first_samples(folder: Path) -> None:
    path = recipe(folder, f"pipe:cat {folder}/data/{{00000..{TARS - 1:05d}}}.tar", more='{"part_records": 4}')
    report = vd.run(path, folder / "run", runner="local", limit=EACH + 2)
    assert report.funnel["mine"]["select"]["records"] == {"kept": EACH + 2}


def test_a_command_that_fails_commits_nothing_of_its_part(folder: Path) -> None:
    late = folder / "data" / "late.tar"
    path = recipe(folder, f"pipe:cat {folder}/data/00000.tar && cat {late}")
    with pytest.raises(vd.StorageError, match=r"^pipe:cat .*late\.tar: the command exited with status 1; rerun"):
        vd.run(path, folder / "run", runner="local")
    assert not list((folder / "run").rglob("part-00000.*"))
    late.write_bytes(b"")
    vd.run(path, folder / "run", runner="local")
    assert len(captions(folder / "run")) == EACH


def test_a_full_disk_is_said_and_not_how_the_command_ended() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(vd.StorageError, match=r"^pipe:head .*: File too large; rerun"):
            open_binary("pipe:head -c 9000000 /dev/zero").__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_more_samples_than_a_part_may_have(folder: Path) -> None:
    path = recipe(folder, f"pipe:cat {folder}/data/00000.tar", more=f'{{"part_records": {EACH - 1}}}')
    with pytest.raises(
        vd.DataError, match=rf"more than part_records \({EACH - 1}\) samples: set corpora\.mine\.part_rec"
    ):
        vd.run(path, folder / "run", runner="local")


@pytest.mark.parametrize("how", ["broken", "cut"])
def test_a_damaged_tar_is_read_as_far_as_it_can_be(tmp_path: Path, how: str) -> None:
    """Each damage has a fate. webdataset's reader, which is tarfile's, ends at a broken header in silence."""
    names = [f"{number:09d}" for number in range(6)]
    headers = written(tmp_path / "00000.tar", {f"{name}.txt": b"a text " * 90 for name in names})
    damage(tmp_path / "00000.tar", headers, how)
    file = f"pipe:cat {tmp_path}/00000.tar"
    source = Img2datasetSource(Img2datasetConfig(kind="img2dataset", files=(file,)))
    found = list(source.read(Part("mine", 0, file, "00000", 0, 10_000, 10_000, "x")))
    whole = [one.record_id for one in found if isinstance(one, Record)]
    assert whole == [f"00000-{name}" for row, name in enumerate(names) if (row != 2 if how == "broken" else row < 3)]
    if how == "broken":
        assert len(list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False))) == 2
    bad = [one for one in found if isinstance(one, BadRecord)]
    assert [one.reason for one in bad] == ["truncated_file"]
    assert f"at byte {headers[2 if how == 'broken' else 3]}" in bad[0].detail


def test_mmc4_from_a_pipe_is_that_from_the_file(tmp_path: Path) -> None:
    documents = {f"{n}.json": json.dumps({"text_list": [f"text {n}"], "image_info": []}).encode() for n in range(5)}
    path = tmp_path / "docs.tar"
    written(path, documents)
    found: list[Any] = []
    for file, rows in ((str(path), 5), (f"pipe:cat {path}", 10_000)):
        source = Mmc4Source(Mmc4Config(kind="mmc4", files=(file,)))
        assert source.scan(file, None).rows == rows
        found.append(list(source.read(Part("docs", 0, file, "docs", 0, rows, rows, "x"))))
    assert found[0] == found[1] and len(found[0]) == 5


def test_names_of_pipes() -> None:
    pipes = ["pipe:aws s3 cp s3://b/x.y/00007.tar -", "pipe:curl -s 'https://h/00007.tar' | tee c.tar", "pipe:make-it"]
    assert file_labels(pipes) == ["00007", "c", "pipe"]


def test_braces_name_every_file(folder: Path) -> None:
    """Also of other kinds; one that is not there is an error, as it would not be behind a star."""
    for name in ("a1", "a2"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"prompt": "x", "completion": "y"}))
    path = recipe(folder, "{a2,a1}.jsonl", kind="text")
    path.write_text(path.read_text().replace('"pairs"', '"conversations"'))
    loaded = vd.load_recipe(path)
    assert loaded.corpora["mine"].files == (str(folder / "a2.jsonl"), str(folder / "a1.jsonl"))
    path.write_text(path.read_text().replace("{a2,a1}", "a{1..3}"))
    with pytest.raises(vd.RecipeError, match=r"corpora\.mine\.files\.0: no file matches 'a3\.jsonl'"):
        vd.load_recipe(path)
    path.write_text(path.read_text().replace("a{1..3}", "a{1..3"))
    with pytest.raises(vd.RecipeError, match=r"corpora\.mine\.files\.0: .*Unbalanced braces"):
        vd.load_recipe(path)


def test_a_pipe_is_of_tars(folder: Path) -> None:
    path = recipe(folder, "pipe:cat rows.parquet", kind="coyo")
    with pytest.raises(vd.RecipeError, match="only kinds mmc4 and img2dataset can read from a pipe"):
        vd.load_recipe(path)
