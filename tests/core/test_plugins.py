"""Names that installed packages add: found when they are needed, and refused in one sentence that names the package."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vila_data as vd
from vila_data.core import plugins
from vila_data.core.errors import RunError, UsageError
from vila_data.core.scores import NONE, Scores, ScoreTable
from vila_data.corpora.config import CORPORA
from vila_data.encode.image_tokens import POLICIES
from vila_data.export.formats import EXPORTERS, open_format
from vila_data.filter.named import RULES, revisions
from vila_data.filter.rules import parse_rules
from vila_data.score.kinds import SCORERS

Install = Callable[..., None]

MODULE = """
from typing import ClassVar, Literal
from vila_data.corpora.config import CorpusFiles
from vila_data.encode.image_tokens import ImageTokens
from vila_data.filter.named import ColumnRule

class Cards(CorpusFiles):
    makes = "pair"
    kind: Literal["cards"]

class Tiles(ImageTokens):
    policy: Literal["tiles"]
    side_px: int

wide = ColumnRule(("width", "n_images"), lambda columns: columns["width"] > 100 * columns["n_images"])
long = ColumnRule(("text_chars",), lambda columns: columns["text_chars"] > 9, revision=3)
scored = ColumnRule(("nsfw.score",), lambda columns: columns["nsfw.score"] < 0.5)
number = ColumnRule(("width",), lambda columns: columns["width"])
blind = ColumnRule((), lambda columns: True)

def function():
    pass
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a package with entry points where Python finds it, as pip would."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "extra.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "extra", raising=False)

    def put(group: str, *entries: str, package: str = "extra") -> None:
        info = folder / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("\n".join([f"[vila_data.{group}]", *entries, ""]))
        plugins._entries.cache_clear()

    plugins._entries.cache_clear()
    yield put
    plugins._entries.cache_clear()


def recipe(folder: Path, *, kind: str = "coyo", more: str = "") -> Path:
    (folder / "rows.jsonl").write_text('{"a": 1}\n')
    (folder / "rows.parquet").write_text("")
    file = "rows.parquet" if kind == "coyo" else "rows.jsonl"
    path = folder / "recipe.yaml"
    path.write_text(f"version: 1\nname: small\ncorpora:\n  one: {{kind: {kind}, files: [{file}]}}\n{more}\n")
    return path


def test_a_kind_and_a_policy_of_a_package(install: Install, tmp_path: Path) -> None:
    install("corpora", "cards = extra:Cards")
    install("image_tokens", "tiles = extra:Tiles", package="extra_tiles")
    pack = "pack: {tokenizer: none, sequence_length: 64, image_tokens: {policy: tiles, side_px: 56}}"
    found = vd.load_recipe(recipe(tmp_path, kind="cards", more=pack))
    assert type(found.corpora["one"]).__name__ == "Cards" and found.corpora["one"].files
    again = vd.Recipe.model_validate_json(found.model_dump_json())
    assert again == found and again.pack is not None and again.pack.images.side_px == 56  # type: ignore[attr-defined]
    assert CORPORA.names()[-1] == "cards" and POLICIES.names() == ["fixed", "tiles"]


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("cadrs", "", r"recipe\.yaml:4 corpora\.one\.kind: found 'cadrs'; did you mean cards"),
        ("cards", "corpora_: 1", r"recipe\.yaml:5 corpora_: unknown key"),
        (
            "cards, part_record: 3",
            "",
            r"recipe\.yaml:4 corpora\.one\.part_record: unknown key .*did you mean part_records",
        ),
    ],
)
def test_errors_in_a_recipe_know_the_names_of_packages(
    kind: str, more: str, said: str, install: Install, tmp_path: Path
) -> None:
    install("corpora", "cards = extra:Cards")
    with pytest.raises(vd.RecipeError, match=said):
        vd.load_recipe(recipe(tmp_path, kind=kind, more=more))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["nsfw = nowhere:Nsfw"], "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
        (["nsfw = extra:Gone"], "cannot be loaded: AttributeError: .*Gone"),
        (["nsfw = extra:function"], "must name a class below vila_data.score.scorer.Scorer, found <function"),
        (["nsfw = extra:Cards"], "must name a class below vila_data.score.scorer.Scorer, found <class"),
        (["nsfw = extra:Cards", "clip = extra:Cards"], "the name is vila_data's own: rename it there, or uninstall"),
    ],
)
def test_what_a_package_adds_wrongly(entries: list[str], said: str, install: Install, tmp_path: Path) -> None:
    install("scorers", *entries)
    wrong = entries[-1].split(" = ")
    start = re.escape(f"package extra 1.2: entry point {wrong[0]!r} of vila_data.scorers ({wrong[1]}): ")
    with pytest.raises(UsageError, match=start + said):
        vd.load_recipe(recipe(tmp_path, more="score: {nsfw: {}}"))
    assert SCORERS.find("clip") is not None, "what is ours is found without a look at packages"


def test_two_packages_with_one_name(install: Install) -> None:
    install("exporters", "mine = extra:Cards")
    install("exporters", "mine = extra:Cards", package="other")
    with pytest.raises(UsageError, match=r"package \w+ 1\.2: .*: package \w+ 1\.2 has the same name: uninstall one"):
        EXPORTERS.find("mine")


def test_an_exporter_that_is_none(install: Install) -> None:
    install("exporters", "mine = extra:Cards")
    with pytest.raises(UsageError, match=r"must name a class like vila_data\.export\.format\.Format"):
        open_format("mine", "pairs")
    with pytest.raises(UsageError, match=r"--to other: unknown format; choose one of vila-pickle, .*, mine"):
        open_format("other", "pairs")


def test_rules_of_packages(install: Install) -> None:
    install("rules", *(f"{name} = extra:{name}" for name in ("wide", "long", "scored", "number", "blind")))
    scores = Scores((ScoreTable("nsfw", "image", (("score", "number"),)),))
    texts = ("scored", "long", "bytes > 4", "wide")
    found = {rule.condition.text: rule for rule in parse_rules(texts, scores)}
    assert [found[text].unit for text in texts] == ["image", "record", "image", "image"]
    assert [found[text].rank for text in texts] == [1, 0, 0, 0] and found["scored"].scorers == {"nsfw"}
    columns = {"width": np.array([150.0, 150.0, 90.0]), "n_images": np.array([1.0, 2.0, 1.0])}
    null = {"width": np.array([False, True, True])}
    assert found["wide"].condition.holds(columns).tolist() == [True, False, False]
    assert found["wide"].condition.holds(columns, null, unknown=True).tolist() == [True, True, True]
    assert found["wide"].condition.holds(columns, null, unknown=False).tolist() == [True, False, False]
    assert revisions(texts) == {"long": 3, "scored": 1, "wide": 1} and revisions(["bytes > 4"]) == {}
    (number,) = parse_rules(("number",), NONE)
    with pytest.raises(RunError, match=r"rule number: must give bool \[3\], found float64 \[3\]"):
        number.condition.holds({"width": columns["width"]})
    for text, said in (
        ("scored", "rule scored reads 'nsfw.score', which is not there"),
        ("blind", "rule blind reads no column"),
        ("widee", "no column 'widee'"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_rules((text,), NONE)


def test_a_rule_may_not_have_the_name_of_a_column(install: Install) -> None:
    install("rules", "width = extra:wide")
    with pytest.raises(UsageError, match=r"package extra 1\.2: entry point 'width' .*: the name is vila_data's own"):
        RULES.find("anything")


def test_importing_and_loading_look_at_no_package(install: Install, tmp_path: Path) -> None:
    install("corpora", "coyo = nowhere:Coyo")
    probe = (
        "import sys, vila_data; assert 'vila_data.core.plugins' not in sys.modules; "
        "vila_data.load_recipe(sys.argv[1]); from vila_data.core.plugins import _entries; print(_entries.cache_info().misses)"
    )
    found = subprocess.run(
        [sys.executable, "-c", probe, str(recipe(tmp_path))], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "0"


def test_the_command_ends_with_status_2(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("corpora", "cards = nowhere:Cards")
    paths = f"{tmp_path / 'site'}:{Path(vd.__file__).parents[1]}"
    monkeypatch.setenv("PYTHONPATH", paths)
    command = [sys.executable, "-m", "vila_data.cli", "plan", str(recipe(tmp_path, kind="cards"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "package extra 1.2" in " ".join(done.stderr.split())
