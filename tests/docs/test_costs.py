"""The cost tables of docs/reproduce_vila.md are those of docs/costs.py, and its arithmetic is what the page says."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from tests.docs.generated import program

COSTS = program("costs")
A = COSTS.Assumptions()


def test_the_page_has_the_tables() -> None:
    text = COSTS.PAGE.read_text(encoding="utf-8")
    assert text == COSTS.with_tables(text), "run python docs/costs.py"
    assert text.count("| --- |") >= len(COSTS.TABLES)


def test_every_assumption_has_a_source() -> None:
    assert [field.name for field in fields(A)] == list(COSTS.SOURCES)
    for what, source in COSTS.SOURCES.values():
        assert what and source


def test_what_is_measured_is_read_from_the_results() -> None:
    assert A.cpu_images_s_a_core == COSTS.measured("download")["images_per_s"]["builtin"]
    named = [source for _, source in COSTS.SOURCES.values() if source.startswith("measured")]
    assert len(named) >= 8


def test_twice_the_images_cost_twice_the_bytes_and_core_hours() -> None:
    twice = replace(A, document_images=2 * A.document_images, pair_images=2 * A.pair_images)
    for one, two in zip(COSTS.stages(A), COSTS.stages(twice), strict=True):
        assert two.core_h == pytest.approx(2 * one.core_h) and two.gpu_h == pytest.approx(2 * one.gpu_h)
        assert two.network_bytes == pytest.approx(2 * one.network_bytes)


def test_more_machines_never_cost_hours_and_serial_work_stays() -> None:
    for stage in COSTS.stages(A):
        hours = [stage.hours(machines) for machines in COSTS.MACHINES]
        assert hours == sorted(hours, reverse=True) and hours[-1] >= stage.serial_h


def test_by_hand() -> None:
    """40M rows of COYO and 30M of MMC4 at 1,345 requests a second: 14.5 hours, and the longest part behind them."""
    download = COSTS.stages(A)[0]
    assert download.hours(1) == pytest.approx(70e6 / 1345 / 3600 + 10_000 * 4 * 1.2 / (1345 / 16) / 3600)
    assert download.core_h == pytest.approx(50e6 / A.cpu_images_s_a_core / 3600)
    assert COSTS.gpu_hours(A) > 50e6 / 312 / 3600  # 336 px cost more than 224


def test_the_page_says_what_the_code_assumes() -> None:
    text = COSTS.PAGE.read_text(encoding="utf-8")
    from vila_data.download.config import DownloadConfig

    config = DownloadConfig()
    assert (config.idle_timeout_s, config.retries, config.concurrency) == (5, 2, 256)
    assert "`idle_timeout_s` (5 s)" in text and "`concurrency: 256`" in text
    assert f"{COSTS.CORES} cores" in text and "`count: 40000000`" in text
    assert A.pair_images / A.pair_links_live == 40e6
