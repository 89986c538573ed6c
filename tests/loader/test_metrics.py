"""What a loader says of itself: values that add up, a line, Prometheus metrics, and `vila-data bench`."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.loader.made_stream import opened


@pytest.mark.parametrize("workers", [0, 2])
def test_totals_are_those_of_the_batches(made_folder: Path, workers: int) -> None:
    with opened(made_folder, num_workers=workers, batch_size=3) as loader:
        batches = list(loader) + list(loader)
        found = loader.metrics()
    assert found.batches == len(batches) and found.packs == sum(batch.packs for batch in batches)
    assert found.samples == sum(len(batch.origins) for batch in batches)
    assert found.images == found.reads == sum(len(batch.pixels) for batch in batches)
    assert found.tokens == sum(batch.tokens for batch in batches)
    assert found.fill == pytest.approx(found.tokens / sum(batch.ids.numel() for batch in batches))
    assert [source.source for source in found.sources] == ["docs", "pairs", "chat"]
    assert sum(source.token_share for source in found.sources) == pytest.approx(1)
    assert sum(source.tokens for source in found.sources) == found.tokens
    docs = sum(1 for batch in batches for origin in batch.origins if origin.set == "docs")
    assert found.sources[0].samples == docs
    assert 0 < found.waited_s <= found.seconds and found.stage_seconds["decode"] > 0
    assert json.loads(json.dumps(found.as_dict()))["slowest_stage"] == found.slowest_stage


def test_a_line_comes_as_often_as_asked_for(made_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vila_data.loader"):
        batches = len(list(opened(made_folder, report_every_s=0.0)))
    lines = [line for line in caplog.messages if "samples/s" in line]
    assert len(lines) == batches and lines[-1].startswith("rank 0: ") and "tokens: docs " in lines[-1]


def test_prometheus_gives_the_totals_at_each_scrape(made_folder: Path) -> None:
    registry = CollectorRegistry()
    loader = opened(made_folder)
    loader.prometheus().register(registry)
    list(loader)
    text = generate_latest(registry).decode()
    assert f'vila_data_samples_total{{rank="0"}} {float(loader.metrics().samples)}' in text
    assert 'vila_data_faults_total{rank="0",stage="decode"} 0.0' in text
    assert 'vila_data_source_tokens_total{rank="0",source="chat"}' in text


def test_bench_prints_rates_stalls_and_the_slowest_stage(made_folder: Path) -> None:
    recipe, run = str(made_folder / "recipe.yaml"), str(made_folder / "run")
    command = [sys.executable, "-m", "vila_data.cli", "bench", recipe, "--run", run, "--seconds", "0.5"]
    command += ["--batch-size", "2", "--num-workers", "1", "--size-px", "64"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert f"slowest stage: {found['slowest_stage']}" in shown or "slowest stage: " in shown
    assert found["batches"] > 0 and found["samples_per_s"] == pytest.approx(found["samples"] / found["seconds"])
    assert 0 <= found["waited_share"] <= 1 and found["slowest_stage"] != "blocked"


def test_two_loaders_of_a_registry_make_one_valid_text(made_folder: Path) -> None:
    """The text format has each metric once: promtool and Go's parser refuse a second HELP line."""
    registry = CollectorRegistry()
    loader = opened(made_folder)
    training, validation = (loader.prometheus(loader=name).register(registry) for name in ("training", "validation"))
    text = generate_latest(registry).decode()
    heads = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))
    assert text.count("vila_data_reads_total{") == text.count("vila_data_replaced_workers_total{") == 2
    validation.unregister(registry)
    validation.unregister(registry)
    assert 'loader="validation"' not in generate_latest(registry).decode()
    training.unregister(registry)
    assert generate_latest(registry) == b""
