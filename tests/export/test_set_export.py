"""What holds for every format: nothing vanishes, kills and relaunches leave no trace, stores, strangers, damage."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.export.reading import APPLIES, Small, exported, folder_of, small_set, tree
from tests.made_run import MadeRun
from tests.made_s3 import served_s3
from vila_data.core.errors import DataError, StorageError, UsageError
from vila_data.core.receipts import Receipt
from vila_data.core.store import Store
from vila_data.explore.inspection import check, inspect
from vila_data.export.exporting import SetExport, export
from vila_data.export.format import RECEIPTS, DonePart, Part
from vila_data.export.formats import FORMATS

SETS_OF_FORMATS = dict(reversed(APPLIES))
"""One set for each format."""


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def killed_at(monkeypatch: pytest.MonkeyPatch, commit: int) -> None:
    """The commit of that number is the last thing that does not happen."""
    seen = 0
    whole = Store.commit_file

    def commit_file(store: Store, local: Path, path: str) -> None:
        nonlocal seen
        seen += 1
        if seen == commit:
            raise Killed
        whole(store, local, path)

    monkeypatch.setattr(Store, "commit_file", commit_file)


@pytest.mark.parametrize(("to", "name"), APPLIES)
def test_counts_and_receipts(made: MadeRun, tmp_path: Path, to: str, name: str) -> None:
    """Each file is in a receipt with its sha256; each sample is exported or left out; the same call, the same bytes."""
    report = exported(folder_of(made, name), to, tmp_path / "a", shards=5)
    (one,) = report.sets
    assert one.left_out == {} or to == "vila-pickle"
    assert one.images == made.sets[name].images - sum(one.left_out.values())
    files = tree(tmp_path / "a")
    receipts = [path for path in files if path.startswith(RECEIPTS)]
    outputs: dict[str, Any] = {}
    for path in receipts:
        outputs |= json.loads((tmp_path / "a" / path).read_text())["outputs"]
    rows = {path for path in outputs if path.endswith(".rows")}
    assert {path: facts["sha256"] for path, facts in outputs.items() if path not in rows} == {
        path: sha256 for path, sha256 in files.items() if path not in receipts and path != "export.json"
    }
    assert one.files == len(outputs) - len(rows)
    assert one.bytes == sum(facts["bytes"] for path, facts in outputs.items() if path not in rows)
    total = json.loads((tmp_path / "a" / "export.json").read_text())
    assert total["finished"] is True
    assert total["sets"][name]["exported"] == one.exported
    exported(folder_of(made, name), to, tmp_path / "b", shards=5)
    assert tree(tmp_path / "b") == files


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """{view: a set of 9 samples}."""
    folder = tmp_path_factory.mktemp("few")
    places = {"interleaved": (0, 1), "pairs": (0,), "conversations": (0,)}
    texts = {"interleaved": ("one", "two"), "pairs": ("one",), "conversations": ("ask", "answer")}
    return {
        view: small_set(folder / view, view, [Small(texts[view], places[view])] * 9)  # type: ignore[arg-type]
        for view in places
    }


@pytest.mark.parametrize(("to", "views"), [(to, views) for to, (_, views) in FORMATS.items()])
def test_killed_at_every_commit(few: dict[str, str], tmp_path: Path, to: str, views: tuple[str, ...]) -> None:
    """Whatever was the last file to get its name, a relaunch gives the bytes of an export that was left alone."""
    exported(few[views[0]], to, tmp_path / "alone", shards=2)
    wanted = tree(tmp_path / "alone")
    out = tmp_path / "out"
    for commit in range(1, 50):
        with pytest.MonkeyPatch.context() as monkeypatch:
            killed_at(monkeypatch, commit)
            try:
                exported(few[views[0]], to, out, shards=2)
                break
            except Killed:
                pass
        if (out / "export.json").exists():
            assert json.loads((out / "export.json").read_text())["finished"] is False
        exported(few[views[0]], to, out, shards=2)
        assert tree(out) == wanted
        shutil.rmtree(out)
    assert commit > len(wanted), "each file, and export.json twice"


def test_finished_parts_are_passed_over(made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(folder_of(made, "docs"), "open-flamingo", tmp_path, shards=6)
    wanted = tree(tmp_path)
    (tmp_path / "docs" / "000000003.tar").unlink()
    report = exported(folder_of(made, "docs"), "open-flamingo", tmp_path, shards=6)
    assert 0 < report.sets[0].launch_samples < report.sets[0].samples / 3
    assert tree(tmp_path) == wanted
    killed_at(monkeypatch, 3)  # export.json twice, and nothing else
    report = exported(folder_of(made, "docs"), "open-flamingo", tmp_path, shards=6)
    assert report.sets[0].launch_samples == 0


@pytest.mark.parametrize("to", ["llava", "energon"])
@pytest.mark.parametrize("gone", [0, 1])
def test_killed_while_lines_are_removed(
    few: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, gone: int
) -> None:
    """The set's receipt is there, its parts' lines too, or some of them: the relaunch ends with neither."""
    exported(few["conversations"], to, tmp_path / "alone", shards=2)
    whole, seen = Store.remove, 0

    def remove(store: Store, path: str) -> None:
        nonlocal seen
        seen += path.endswith(".rows")
        if seen > gone:
            raise Killed
        whole(store, path)

    monkeypatch.setattr(Store, "remove", remove)
    with pytest.raises(Killed):
        exported(few["conversations"], to, tmp_path / "out", shards=2)
    monkeypatch.undo()
    assert len(list((tmp_path / "out").rglob("*.rows"))) == 2 - gone
    report = exported(few["conversations"], to, tmp_path / "out", shards=2)
    assert report.sets[0].launch_samples == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "alone")
    assert list(check(tmp_path / "out")) == []


def test_no_room_for_the_sqlite_index(tmp_path: Path) -> None:
    """sqlite has an error of its own: the user still reads one sentence."""
    folder = small_set(tmp_path / "run", "conversations", [Small(("ask", "answer"), ())] * 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError, match=r"set\.json: the index cannot be written: d"):
            export(folder, "energon", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    export(folder, "energon", tmp_path / "out")
    exported(folder, "energon", tmp_path / "alone")
    assert tree(tmp_path / "out") == tree(tmp_path / "alone")


def test_what_is_held_of_a_part_does_not_grow(
    few: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receipt has an entry a picture where pictures are files: of 25 million it must not stay in memory."""
    held: list[DonePart] = []
    whole = SetExport.finish

    def finish(one: SetExport, done: Sequence[DonePart]) -> Receipt:
        held.extend(done)
        return whole(one, done)

    monkeypatch.setattr(SetExport, "finish", finish)
    exported(few["conversations"], "llava", tmp_path / "llava", shards=2)
    assert [(one.files, one.sizes) for one in held] == [(4, {}), (5, {})]
    exported(few["pairs"], "wids", tmp_path / "wids", shards=2)
    assert [len(one.sizes) for one in held[2:]] == [1, 1]


def test_file_urls(made: MadeRun, tmp_path: Path) -> None:
    """A folder's URL is as good as its path, for what is read and for what is written."""
    exported(folder_of(made, "pairs"), "wids", tmp_path / "path")
    export(f"file://{folder_of(made, 'pairs')}", "wids", f"file://{tmp_path}/url")
    assert tree(tmp_path / "url") == tree(tmp_path / "path")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["vila-pickle", "llava", "energon"])
def test_killed_process(made: MadeRun, tmp_path: Path, to: str) -> None:
    """A real process, killed when it has written a few parts, and again further on."""
    name = SETS_OF_FORMATS[to]
    shards = 14
    exported(folder_of(made, name), to, tmp_path / "alone", shards=shards)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vila_data.cli", "export", folder_of(made, name)]
    command += ["--to", to, "--out", str(out), "--shards", str(shards)]
    hits = 0
    for part in (1, 4, 8, 11):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            receipt = out / RECEIPTS / name / f"part-{part:05d}.json"
            while not receipt.exists() and process.poll() is None:
                pass
            process.kill()
            hits += process.wait() == -signal.SIGKILL and not (out / RECEIPTS / name / "set.json").exists()
    assert hits, "no kill hit the export at work: this proves nothing"
    subprocess.run(command, check=True, capture_output=True)
    assert tree(out) == tree(tmp_path / "alone")


@pytest.mark.parametrize("to", list(SETS_OF_FORMATS))
def test_object_store(made: MadeRun, tmp_path: Path, to: str) -> None:
    name = SETS_OF_FORMATS[to]
    exported(folder_of(made, name), to, tmp_path / "local", shards=3)
    url = f"memory://exports-{to}"
    export(folder_of(made, name), to, url, shards=3)
    export(folder_of(made, name), to, url, shards=3)
    memory = fsspec.filesystem("memory")
    root = f"/exports-{to}"
    memory.get(root, str(tmp_path / "copy"), recursive=True)
    assert tree(tmp_path / "copy") == tree(tmp_path / "local")
    memory.rm(root, recursive=True)


def test_s3_to_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from one bucket and written to another, many small pictures at once."""
    chats = [Small(("ask", "answer"), (0, 0, 0))] * 7
    folder = small_set(tmp_path / "run", "conversations", chats, max_bytes=1_000_000)
    exported(folder, "llava", tmp_path / "local")
    with served_s3(monkeypatch):
        s3 = fsspec.filesystem("s3")
        s3.mkdir("sets")
        s3.mkdir("exports")
        s3.put(folder, "sets/small", recursive=True)
        report = export("s3://sets/small", "llava", "s3://exports/llava")
        assert (report.sets[0].exported, report.sets[0].images) == (7, 21)
        s3.get("exports/llava", str(tmp_path / "copy"), recursive=True)
        s3.clear_instance_cache()
    assert tree(tmp_path / "copy") == tree(tmp_path / "local")


def test_folders_that_are_not_this_exports(made: MadeRun, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"mine: not empty, and not an export \(thesis.txt …\); choose another --out"):
        export(folder_of(made, "docs"), "vila-pickle", mine)
    out = tmp_path / "out"
    exported(folder_of(made, "docs"), "vila-pickle", out)
    before = tree(out)
    for to, name, shards in [
        ("open-flamingo", "docs", None),
        ("vila-pickle", "pairs", None),
        ("vila-pickle", "docs", 2),
    ]:
        with pytest.raises(UsageError, match=r"contains a different export \(vila-pickle of docs"):
            export(folder_of(made, name), to, out, shards=shards)
    assert tree(out) == before
    (out / "export.json").write_text("[]")
    with pytest.raises(DataError, match=r"export\.json: is not the receipt of an export"):
        export(folder_of(made, "docs"), "vila-pickle", out)


def test_check_and_inspect(made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage to any file is found, and mended by the same command once the file is gone."""
    exported(folder_of(made, "chat"), "llava", tmp_path)
    wanted = tree(tmp_path)
    kind, value = inspect(tmp_path)
    assert (kind, value["to"], value["finished"]) == ("export", "llava", True)
    assert [(one["name"], one["exported"]) for one in value["sets"]] == [("chat", made.sets["chat"].samples)]
    assert list(check(tmp_path)) == []
    picture = next((tmp_path / "chat" / "images").rglob("*.jpg"))
    data = picture.read_bytes()
    picture.write_bytes(data[:-1] + b"?")
    (tmp_path / "chat" / "chat.json").unlink()
    assert sorted(check(tmp_path)) == sorted(
        [
            f"{picture}: does not match its receipt; delete it and rerun the export",
            f"{tmp_path}/chat/chat.json: missing; delete it and rerun the export",
        ]
    )
    picture.unlink()
    exported(folder_of(made, "chat"), "llava", tmp_path)
    assert tree(tmp_path) == wanted
    killed_at(monkeypatch, 3)
    with pytest.raises(Killed):
        export(folder_of(made, "docs"), "obelics", tmp_path / "other")
    assert inspect(tmp_path / "other")[1]["finished"] is False
    assert "the export is not finished; rerun it" in next(check(tmp_path / "other"))


@pytest.mark.parametrize(
    "data", ["", "[]", "{}", '{"format": "wids", "finished": true, "sets": [], "not_exported": {}}']
)
def test_what_is_no_receipt_of_an_export(tmp_path: Path, data: str) -> None:
    (tmp_path / "export.json").write_text(data)
    for look in (inspect, lambda path: list(check(path))):
        with pytest.raises(DataError, match=r"export\.json: is not the receipt of an export: "):
            look(tmp_path)


def test_a_set_that_changes_is_another_export(made: MadeRun, tmp_path: Path) -> None:
    shutil.copytree(folder_of(made, "docs"), tmp_path / "docs")
    exported(tmp_path / "docs", "vila-pickle", tmp_path / "out")
    manifest = tmp_path / "docs" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"recipe": "recipe"', '"recipe": "other"'))
    with pytest.raises(UsageError, match="contains a different export"):
        export(tmp_path / "docs", "vila-pickle", tmp_path / "out")


@pytest.mark.parametrize("then", ["gone", "other"])
def test_a_set_that_changes_meanwhile(
    made: MadeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """A run that lays the set out anew takes its manifest away first: no export ends with shards of two orders."""
    shutil.copytree(folder_of(made, "docs"), tmp_path / "docs")
    manifest = tmp_path / "docs" / "manifest.json"
    whole = SetExport.write

    def write(one: SetExport, part: Part) -> DonePart:
        found = whole(one, part)
        manifest.unlink(missing_ok=True)
        if then == "other":
            manifest.write_text("{}")
        return found

    monkeypatch.setattr(SetExport, "write", write)
    with pytest.raises(DataError, match=r"docs: the set changed during the export; delete \S+ and export again"):
        export(tmp_path / "docs", "open-flamingo", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "export.json").read_text())["finished"] is False


@pytest.mark.parametrize("to", ["vila-pickle", "energon"])
def test_damaged_picture(made: MadeRun, tmp_path: Path, to: str) -> None:
    """A changed byte stops the export where it is; no part with it gets a receipt."""
    shutil.copytree(folder_of(made, "docs"), tmp_path / "docs")
    tar = tmp_path / "docs" / made.sets["docs"].shards[1].name
    data = bytearray(tar.read_bytes())
    at = data.index(b"\xff\xd8\xff") + 60
    data[at] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DataError, match=r"docs-000001\.tar: docs-\S+\.0\.jpg: is missing or does not match its sha256"):
        export(tmp_path / "docs", to, tmp_path / "out")
    assert len(list((tmp_path / "out" / RECEIPTS).rglob("part-*.json"))) == 1
    assert json.loads((tmp_path / "out" / "export.json").read_text())["finished"] is False


def test_a_shard_with_other_members(made: MadeRun, tmp_path: Path) -> None:
    shutil.copytree(folder_of(made, "docs"), tmp_path / "docs")
    manifest = tmp_path / "docs" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"view": "interleaved"', '"view": "conversations"'))
    with pytest.raises(DataError, match="is a sample of view interleaved, but the set has view conversations"):
        export(tmp_path / "docs", "energon", tmp_path / "out")


def test_an_empty_set(tmp_path: Path) -> None:
    folder = small_set(tmp_path / "run", "pairs", [])
    with pytest.raises(UsageError, match=r"small: empty: none of its records were kept; see the run's funnel"):
        export(folder, "wids", tmp_path / "out")
    assert not (tmp_path / "out").exists()
