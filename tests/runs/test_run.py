"""An opened run gives everything that is in its directory by name, and says what is wrong with a path."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import vila_data as vd
from tests.made_run import MadeRun, make_run
from vila_data.cli import app
from vila_data.core.errors import DataError, UsageError, VilaDataError
from vila_data.core.store import Store
from vila_data.core.tables import DOWNLOAD_RECORDS
from vila_data.explore.inspection import check, inspect
from vila_data.explore.preview import preview
from vila_data.explore.search.query import Query, build_index, search
from vila_data.explore.sweep import sweep
from vila_data.explore.whatif import whatif
from vila_data.export.exporting import export
from vila_data.recipe.lock import FORM, LOCK
from vila_data.runs.run import Run, run_above


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """What the run was made of."""
    return make_run(str(tmp_path_factory.mktemp("truth")))


def test_parts_receipts_and_tables_are_those_of_the_run(run_folder: Path, truth: MadeRun) -> None:
    run = vd.open_run(run_folder)
    for corpus, parts in truth.parts.items():
        assert run.parts(corpus) == run.committed("filter", corpus) == tuple(parts)
        receipts = run.receipts("download", corpus)
        assert len(receipts) == len(parts) and None not in receipts
        for part in parts:
            records = run.part_table(part, "records")
            assert records.schema.equals(DOWNLOAD_RECORDS) and records.num_rows == part.stop - part.start
            fates = run.part_table(part, "fates", ["image_index", "fate"])
            images = run.part_table(part, "images", ["status"]).num_rows
            assert fates.num_rows == images + records.num_rows and fates.column_names == ["image_index", "fate"]
            assert run.scores(part) is None  # the recipe has no score.clip
    assert run.committed("score", "web") == ()
    assert run.evidence("alt").record(1, 3) == truth.pairs[38].record


def test_what_is_committed_is_what_has_a_receipt(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    run = vd.open_run(tmp_path / "run")
    lost = run.parts("web")[1]
    (tmp_path / "run" / lost.receipt("filter")).unlink()
    assert run.committed("filter", "web") == (run.parts("web")[0], run.parts("web")[2])
    assert [receipt is None for receipt in run.receipts("filter", "web")] == [False, True, False]
    (tmp_path / "run" / "download" / "web" / "parts.json").unlink()
    by_name = vd.open_run(tmp_path / "run")
    assert by_name.parts("web") == ()
    assert [part.index for part in by_name.committed("filter", "web")] == [0, 2]
    assert by_name.part_table(by_name.committed("filter", "web")[1], "fates").num_rows > 0


def test_sets_and_token_files(run_folder: Path, truth: MadeRun) -> None:
    run = vd.open_run(run_folder)
    for name, manifest in truth.sets.items():
        assert run.manifest(name) == manifest
        samples = run.open_set(name)
        tokens = run.tokens(name)
        assert len(samples) == manifest.samples == tokens.lengths(["tokens"]).num_rows > 0
        assert tokens.sample(0, 0).key == samples[0].key


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda run: run.parts("webb"), r"the run has no corpus 'webb'; did you mean web"),
        (lambda run: run.tokens("x"), r"the run has no shard set 'x'; one of: chat, docs, docs_pairs, pairs"),
        (lambda run: run.open_set("docs"), r"set 'docs' is not finished; finish the run first: vila-data run RECIPE --out"),
        (lambda run: run.tokens("docs"), r"set 'docs' has no token files of tokenizer"),
        (lambda run: run.recipe_with(["filter.images.min_side=3"]), r"recipe.lock.yaml:\d+ .*did you mean min_side_px"),
    ],
)  # fmt: skip
def test_a_name_that_is_not_there_is_said(
    run_folder: Path, tmp_path: Path, ask: Callable[[Run], Any], said: str
) -> None:
    (tmp_path / LOCK).write_bytes((run_folder / LOCK).read_bytes())
    run = vd.open_run(tmp_path)
    assert run.totals is None and run.parts("web") == () and run.funnel("web") == {}
    with pytest.raises(UsageError, match=said):
        ask(run)


def test_damaged_tables_and_totals_name_their_file(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    run = vd.open_run(tmp_path / "run")
    part = run.parts("web")[0]
    (tmp_path / "run" / part.fates_table()).write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"filter/web/part-00000.parquet: not a whole Parquet table: .*; run check"):
        run.part_table(part, "fates")
    with pytest.raises(DataError, match=r"records.parquet: not a whole Parquet table: no column 'none'"):
        run.part_table(part, "records", ["none"])
    for text in ("{", "[]"):
        (tmp_path / "run" / "run.json").write_text(text)
        with pytest.raises(DataError, match=r"run.json: not the totals of a run: .*; delete it and rerun the recipe"):
            _ = run.totals
        assert CliRunner().invoke(app, ["inspect", str(tmp_path / "run")]).exit_code == 1


def places(folder: Path, run_folder: Path) -> dict[str, tuple[Path, str]]:
    """Paths that are not runs, and what is said of each."""
    (folder / "recipe.yaml").write_text("version: 1\n")
    (folder / "empty").mkdir()
    shutil.copytree(run_folder / "shards" / "docs", folder / "alone")
    (folder / "lost").mkdir()
    (folder / "lost" / "run.json").write_text("{}")
    inside = f"is part of the run {run_folder}; pass that directory"
    return {
        "nothing": (folder / "none", "does not exist; create a run with vila-data run RECIPE --out"),
        "recipe": (folder / "recipe.yaml", "is a recipe, not a run; pass the directory"),
        "empty": (folder / "empty", r"is not a run \(it has no recipe.lock.yaml\); pass the directory of a run"),
        "lock lost": (folder / "lost", "has no recipe.lock.yaml, although it has run.json; restore that file"),
        "set": (folder / "alone", r"is a shard set, not a run .*; pass the directory of its run"),
        "set inside": (run_folder / "shards" / "docs", inside),
        "sets": (run_folder / "shards", inside),
        "table": (run_folder / "filter" / "web" / "part-00000.parquet", inside),
    }


def test_what_is_not_a_run_is_refused_by_one_sentence(run_folder: Path, tmp_path: Path) -> None:
    for path, said in places(tmp_path, run_folder).values():
        if path.suffix != ".yaml":
            with pytest.raises(UsageError, match=f"{path} {said}") as found:
                vd.stream(path)
            assert "\n" not in str(found.value)
        for ask in (vd.open_run, lambda path: whatif(path, ["x=1"]), lambda path: search(path, Query("x"))):
            with pytest.raises(UsageError, match=f"{path} {said}"):
                ask(path)


VERBS: dict[str, Callable[[str], Any]] = {
    "open_run": vd.open_run,
    "stream": vd.stream,
    "stream with a recipe": lambda path: vd.stream(Path(path).parent / "recipe.yaml", path),
    "inspect": inspect,
    "check": lambda path: list(check(path)),
    "preview": lambda path: preview(path, f"{path}.html"),
    "preview of a set": lambda path: preview(f"{path}/shards/docs", f"{path}.html"),
    "whatif": lambda path: whatif(path, ["filter.images.min_side_px=3"]),
    "sweep": lambda path: sweep(path, "filter.images.min_side_px=3,4"),
    "search": lambda path: search(path, Query("a boat")),
    "index": build_index,
    "export": lambda path: export(path, "wids", f"{path}.wids"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("change", ["older", "newer", "broken"])
def test_every_verb_refuses_a_run_of_another_version(run_folder: Path, tmp_path: Path, verb: str, change: str) -> None:
    if verb == "index":
        pytest.importorskip("faiss")
    shutil.copytree(run_folder, tmp_path / "run")
    shutil.copy(run_folder.parent / "recipe.yaml", tmp_path)
    lock = yaml.safe_load((run_folder / LOCK).read_text())
    assert lock["form"] == FORM
    lock["form"] += {"older": -1, "newer": 1, "broken": 0}[change]
    said = f"form {lock['form']}, this version of vila-data reads form {FORM}: make the run again with another --out"
    if change == "broken":
        del lock["recipe"]["corpora"]
        said = "not a recipe lock: .*missing required key 'corpora'; restore it"
    (tmp_path / "run" / LOCK).write_text(yaml.safe_dump(lock))
    with pytest.raises(DataError, match=f"{LOCK}: {said}"):
        VERBS[verb](str(tmp_path / "run"))


def test_the_run_above_a_directory(run_folder: Path, tmp_path: Path) -> None:
    store = Store("memory://opened/run")
    store.commit_bytes((run_folder / LOCK).read_bytes(), LOCK)
    for above, url in ((str(run_folder), run_folder), (store.url, store.url)):
        found = run_above(Store(f"{url}/tokens/a/docs/b"))
        assert found is not None and found.url.rstrip("/").endswith(str(above).rsplit("/", 2)[-1])
        assert found.recipe == vd.open_run(run_folder).recipe
    assert run_above(Store(str(tmp_path))) is None and run_above(Store("memory://elsewhere")) is None


def test_opening_a_run_is_light_and_leaves_the_functions_of_the_package(run_folder: Path) -> None:
    probe = (
        "import sys, vila_data as vd; vd.open_run(sys.argv[1]).parts('web'); assert callable(vd.run); "
        "print(sorted({'torch', 'ray', 'transformers', 'tokenizers', 'onnxruntime'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", probe, str(run_folder)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_an_opened_run_serves_every_verb(run_folder: Path, tmp_path: Path) -> None:
    """What is opened once need not be opened again."""
    run = vd.open_run(run_folder)
    assert vd.open_run(run) is run
    assert preview(run, tmp_path / "a.html").as_dict() | {"out": ""} == preview(
        run_folder, tmp_path / "b.html"
    ).as_dict() | {"out": ""}
    asked = ["filter.images.min_side_px=60"]
    assert whatif(run, asked) == whatif(str(run_folder), asked)


def test_errors_of_the_package_are_its_own(run_folder: Path) -> None:
    with pytest.raises(VilaDataError, match="found two runs"):
        vd.stream(vd.open_run(run_folder), run_folder)


@pytest.mark.parametrize("path", [None, 3, b"runs/demo", ["runs/demo"]])
def test_what_is_not_a_path(path: Any) -> None:
    with pytest.raises(UsageError, match=r"^open_run: expected the path or URL of a run directory, found "):
        vd.open_run(path)


@pytest.mark.parametrize("damaged", [b"", b"[]", b'{"inputs": "x", "rows": 1}', b'{"parts": [{"n": 1}]}', b"\xff"])
def test_a_damaged_list_of_parts(damaged: bytes, run_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    opened = vd.open_run(copy)
    (corpus, *_) = opened.recipe.corpora
    path = copy / "download" / corpus / "parts.json"
    assert path.is_file() and opened.parts(corpus)
    path.write_bytes(damaged)
    with pytest.raises(
        DataError, match=r"parts\.json: is not the list of a corpus's parts: .*; delete it and run the recipe"
    ):
        vd.open_run(copy).parts(corpus)
