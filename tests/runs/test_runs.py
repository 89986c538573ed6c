"""The sample, from metadata to shards, through the public calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vila_data as vd
from tests.faults.kills import tree
from vila_data.explore.inspection import check, inspect

REPO = Path(vd.__file__).parent.parent
TRUTH = json.loads((REPO / "shards" / "sample" / "meta" / "truth.json").read_text())


@pytest.fixture(scope="module")
def local_run(sample_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, vd.RunReport]:
    out = tmp_path_factory.mktemp("local") / "run"
    return out, vd.run(sample_recipe, out, runner="local")


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vila_data.cli", *arguments], capture_output=True, text=True, check=False
    )


def test_every_image_ends_as_the_sample_says(local_run: tuple[Path, vd.RunReport]) -> None:
    _, report = local_run
    for corpus, key in (("docs", "documents"), ("pairs", "pairs")):
        found = dict(report.funnel[corpus]["download"]["images"])
        expected = dict(TRUTH["expected"]["image_outcomes"][key])
        assert found.pop("kept") == expected.pop("ok")
        assert found == {f"failed:{error}": count for error, count in expected.items()}
    assert report.funnel["docs"]["download"]["records"] == {"kept": 101, "failed:malformed_json": 1}


def test_the_funnel_sums(local_run: tuple[Path, vd.RunReport]) -> None:
    out, report = local_run
    for stages in report.funnel.values():
        assert sum(stages["download"]["records"].values()) == stages["select"]["records"]["kept"]
        for unit in ("records", "images"):
            assert sum(stages["filter"][unit].values()) == stages["download"][unit]["kept"]
    assert report.sets["docs"].samples == report.funnel["docs"]["filter"]["records"]["kept"]
    for name in ("docs", "docs_pairs"):
        assert report.sets[name].images == report.funnel["docs"]["filter"]["images"]["kept"]
    assert report.sets["pairs"].samples == report.funnel["pairs"]["filter"]["images"]["kept"]
    assert len(report.sets["docs"].shards) > 1
    assert list(check(out)) == []


def test_no_wrong_caption_is_kept_and_few_right_ones_are_lost(local_run: tuple[Path, vd.RunReport]) -> None:
    out, report = local_run
    kept = {sample.json["source"]["record_id"] for sample in vd.open_shards(out / "shards" / "pairs")}
    wrong = {number for number, facts in TRUTH["pairs"].items() if not facts["right"]}
    assert wrong and not kept & wrong
    assert report.funnel["pairs"]["filter"]["images"]["dropped:min_similarity"] >= len(wrong)


def test_duplicates_keep_their_first(local_run: tuple[Path, vd.RunReport]) -> None:
    out, report = local_run
    assert report.funnel["docs"]["filter"]["images"]["dropped:exact_duplicate"] >= 3
    for name in ("docs_pairs", "pairs"):
        hashes = [sample.json["sha256"] for sample in vd.open_shards(out / "shards" / name)]
        assert len(set(hashes)) == len(hashes)


def test_relaunching_changes_nothing(sample_recipe: Path, local_run: tuple[Path, vd.RunReport]) -> None:
    out, report = local_run
    before = {path: (out / path).stat().st_mtime_ns for path in tree(out)}
    again = vd.run(sample_recipe, out, runner="local")
    assert again.funnel == report.funnel
    assert {path: (out / path).stat().st_mtime_ns for path in tree(out)} == before


def test_ray_gives_the_same_bytes(sample_recipe: Path, local_run: tuple[Path, vd.RunReport], tmp_path: Path) -> None:
    vd.run(sample_recipe, tmp_path / "run", runner="ray")
    assert tree(tmp_path / "run") == tree(local_run[0])


def test_stage_by_stage_gives_the_same_bytes(
    sample_recipe: Path, local_run: tuple[Path, vd.RunReport], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(vd.UsageError, match=r"download is incomplete \(3 of 3 parts"):
        vd.run(sample_recipe, out, runner="local", only="score")
    with pytest.raises(vd.UsageError, match="do not exist yet"):
        vd.run(sample_recipe, out, runner="local", only="encode")
    for stage in ("download", "score", "filter", "shard", "encode", "blend"):
        vd.run(sample_recipe, out, runner="local", only=stage)
    assert tree(out) == tree(local_run[0])


def changed(recipe: Path, old: str, new: str) -> Path:
    text = recipe.read_text()
    assert old in text
    path = recipe.with_name(f"changed-{abs(hash(new))}.yaml")
    path.write_text(text.replace(old, new))
    return path


def test_a_new_threshold_needs_no_new_download(
    sample_recipe: Path, local_run: tuple[Path, vd.RunReport], tmp_path: Path
) -> None:
    """Tighten and loosen size and similarity in place: only what was never scored is scored."""
    strict = changed(sample_recipe, "min_side_px: 64", "min_side_px: 300")
    out = tmp_path / "run"
    few = vd.run(strict, out, runner="local")
    tars = {path: digest for path, digest in tree(out).items() if path.startswith("download/")}
    loose = vd.run(sample_recipe, out, runner="local")
    after = tree(out)
    assert few.sets["pairs"].samples < loose.sets["pairs"].samples
    assert {path: after[path] for path in tars} == tars
    fresh = tree(local_run[0])
    for path, digest in fresh.items():
        if path.startswith(("shards/", "score/")) and not path.endswith(".json"):
            assert after[path] == digest, path


def test_another_recipe_is_refused_and_told_how_to_go_on(
    sample_recipe: Path, local_run: tuple[Path, vd.RunReport]
) -> None:
    other = changed(sample_recipe, "shorter_side_px: 336", "shorter_side_px: 224")
    found = cli("run", str(other), "--out", str(local_run[0]), "--runner", "local")
    assert found.returncode == 2
    assert "download.resize.shorter_side_px: 336 in the run, 224 now" in found.stderr
    assert "Choose another --out" in found.stderr


def test_a_folder_that_is_no_run_is_left_alone(sample_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(vd.UsageError, match="is not empty and not a run"):
        vd.run(sample_recipe, tmp_path, runner="local")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_dry_run_writes_nothing_and_shows_what_is_committed(
    sample_recipe: Path, local_run: tuple[Path, vd.RunReport], tmp_path: Path
) -> None:
    nothing = tmp_path / "run"
    fresh = cli("run", str(sample_recipe), "--out", str(nothing), "--dry-run")
    assert fresh.returncode == 0, fresh.stderr
    assert "corpus docs (mmc4): 102 rows in 2 files" in fresh.stdout and "0 complete" in fresh.stdout
    assert not nothing.exists()
    done = json.loads(cli("plan", str(sample_recipe), "--out", str(local_run[0]), "--json").stdout)
    for corpus in (child for child in done["children"] if "corpus" in child):
        assert all(stage["committed"] == corpus["parts"] for stage in corpus["children"])


@pytest.mark.parametrize("place", ["", "shards/docs", "shards/pairs/pairs-000000.tar"])
def test_inspect_and_check_on_the_command_line(local_run: tuple[Path, vd.RunReport], place: str) -> None:
    path = str(local_run[0] / place)
    kind, value = inspect(path)
    shown = cli("inspect", path, "--json")
    assert json.loads(shown.stdout) == json.loads(json.dumps({"kind": kind, **value}))
    assert cli("inspect", path).stdout.strip()
    assert cli("check", path).returncode == 0


def test_inspect_recipe(sample_recipe: Path) -> None:
    found = json.loads(cli("inspect", str(sample_recipe), "--json").stdout)
    assert found["kind"] == "recipe" and len(found["children"]) == 10


def test_check_finds_a_flipped_byte_of_a_download(local_run: tuple[Path, vd.RunReport], tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(local_run[0], copy)
    tar = next((copy / "download" / "pairs").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    found = cli("check", str(copy))
    assert found.returncode == 1 and f"{tar.name}: sha256 does not match its receipt" in found.stdout


def test_limit_is_the_corpus_cut_short(sample_recipe: Path, tmp_path: Path) -> None:
    report = vd.run(sample_recipe, tmp_path / "run", runner="local", limit=30)
    assert all(sum(stages["select"]["records"].values()) == 30 for stages in report.funnel.values())


def test_memory_store(sample_recipe: Path, local_run: tuple[Path, vd.RunReport]) -> None:
    """The same shards on an object store as on a disk."""
    report = vd.run(sample_recipe, "memory://a-run", runner="local")
    assert report.sets == local_run[1].sets


def error_of(arguments: list[str]) -> tuple[int, str]:
    found = cli(*arguments)
    assert "Traceback" not in found.stderr, found.stderr
    return found.returncode, found.stderr


def test_bad_calls_are_one_message(sample_recipe: Path, tmp_path: Path) -> None:
    assert error_of(["run", str(tmp_path / "no.yaml"), "--out", str(tmp_path / "o")])[0] == 2
    cases: list[tuple[list[str], str]] = [
        (["--only", "everything"], "--only everything: unknown stage; choose one of"),
        (["--runner", "slurm"], "--runner must be local or ray, found slurm"),
        (["--limit", "0"], "--limit must be at least 1, found 0"),
    ]
    for extra, message in cases:
        code, text = error_of(["run", str(sample_recipe), "--out", str(tmp_path / "o"), *extra])
        assert code == 2 and message in text
    code, text = error_of(["inspect", str(tmp_path)])
    assert code == 2 and "not a recipe (.yaml), run" in text


def test_an_unreachable_store_is_one_message(sample_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    code, text = error_of(["run", str(sample_recipe), "--out", "s3://bucket/run", "--runner", "local"])
    assert code == 1 and text.startswith("vila-data: s3://bucket/run") and text.count("\n") <= 2


def test_no_space_left(sample_recipe: Path, tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: one message, no receipt; with space the run goes on."""
    out = tmp_path / "run"
    limited = [sys.executable, "-m", "vila_data.cli", "run", str(sample_recipe), "--out", str(out), "--runner", "local"]
    found = subprocess.run(
        ["bash", "-c", 'ulimit -f 300; exec "$@"', "-", *limited], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert str(out) in found.stderr and "large" in found.stderr.lower()
    assert not list(out.glob("download/*/part-*.tar"))
    assert list(out.glob("download/*/part-00000.json")) == []
    report: Any = vd.run(sample_recipe, out, runner="local")
    assert report.finished
