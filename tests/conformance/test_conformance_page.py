"""The page shows the kept results, the results are whole, and the environments are pinned."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest

from tests.conformance import make_environments as environments
from tests.conformance import test_clip_retrieval, test_energon, test_nemo_curator
from tests.conformance.conftest import python_of
from tests.conformance.table import PAGE, Row, Table, markdown, page_with, read_rows
from tests.conformance.test_ray_data import one_row

EVERYWHERE = ("webdataset", "wids", "datasets", "Ray Data", "Megatron-Energon", "NeMo Curator", "img2dataset", "LLaVA")
EVERYWHERE += ("VILA mmc4", "VILA coyo", "VILA wds", "OpenFlamingo")


def test_the_page_shows_the_kept_results() -> None:
    page = PAGE.read_text()
    assert page_with(markdown(read_rows()), page) == page


def test_every_client_read_everything_of_every_input() -> None:
    rows = read_rows()
    assert [row for row in rows if not row.whole] == []
    found = {(row.client, row.source) for row in rows}
    wanted = {(client, source) for client in EVERYWHERE for source in ("made", "sample", "real")}
    wanted |= {("clip-retrieval", source) for source in ("sample", "real")}
    assert wanted <= found
    versions = {row.version for row in rows if row.client == "webdataset"}
    assert {version.split(".")[0] for version in versions} == {"0", "1"}


def test_readings_that_lack_something_are_not_kept() -> None:
    table = Table()
    with pytest.raises(AssertionError), table.reading("client", "1", "half", "made", "docs", 4, 9) as row:
        row.samples_read, row.images_read = 4, 8
    assert table.rows == []
    row = Row("client", "1", "half", "made", "docs", 4, 9, 4, 8, 0.5, 1)
    assert "| client 1 | half | 4 of 4; 8 of 9 (1 left out by the export) |  |  | 0.5 |" in markdown([row])


@pytest.mark.parametrize("name", environments.names())
def test_environments_are_pinned(name: str) -> None:
    text = environments.pins_of(name).read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines and all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert "://" not in text


def test_the_versions_named_are_those_installed() -> None:
    for name, package, version in (
        ("clip-retrieval", "clip-retrieval", test_clip_retrieval.VERSION),
        ("energon", "megatron-energon", test_energon.VERSION),
        ("nemo-curator", "nemo-curator", test_nemo_curator.VERSION),
        ("webdataset", "webdataset", "1.0.2"),
    ):
        assert f"\n{package}=={version}\n" in environments.pins_of(name).read_text()


@pytest.mark.parametrize(("asked", "outcome"), [("", pytest.skip.Exception), ("all", pytest.fail.Exception)])
def test_a_missing_environment_is_never_passed_over(
    asked: str, outcome: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: Callable[[str], bool] = lambda name: False  # noqa: E731
    monkeypatch.setattr(environments, "is_made", missing)
    monkeypatch.setenv("VILA_DATA_CONFORMANCE", asked)
    with pytest.raises(outcome, match=r"make_environments\.py energon"):
        python_of("energon")


def test_the_decoder_shown_is_the_one_tested() -> None:
    assert inspect.getsource(one_row) in PAGE.read_text()
