"""What the README shows is what the program prints, and its figures are those of benchmarks/results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import vila_data as vd

REPO = Path(vd.__file__).parent.parent
README = (REPO / "README.md").read_text()
RESULTS = REPO / "benchmarks" / "results"


def test_the_session_shown_is_real(sample_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    vd.run(sample_recipe, out, runner="local")
    command = [sys.executable, "-m", "vila_data.cli", "inspect", str(out)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    session = README.split("$ make demo\n", 1)[1].split("```", 1)[0]
    shown = [line.rstrip() for line in session.splitlines() if line.strip() and line != "…"]
    lines = {line.rstrip() for line in printed.splitlines()}
    assert len(shown) > 20
    assert [line for line in shown if line not in lines] == []


def test_every_file_that_is_named_is_there() -> None:
    named = re.findall(r"`((?:docs|shards|recipes|benchmarks|vila_data)/[\w/.-]+)`", README)
    assert named and [name for name in named if not (REPO / name).exists()] == []


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"^(\w+):", (REPO / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^make (\w+)", README, re.M)) <= targets


def test_figures_are_those_of_the_benchmarks() -> None:
    download = json.loads((RESULTS / "download.json").read_text())
    rates = download["images_per_s"]
    row = f"| {rates['builtin']:.0f} | {rates['img2dataset']:.0f} | {download['builtin_over_img2dataset']:.2f} |"
    assert row in README
    assert download["builtin_over_img2dataset"] >= 2.0


def test_the_share_of_waiting_is_that_of_the_benchmark() -> None:
    score = json.loads((RESULTS / "score.json").read_text())
    share = score["random-vit-b-32 on cpu"]["model_waits_for_input_share"]
    assert f"waits for its input {share:.1%} of the time" in README
    assert share < 0.05


def test_packing_is_that_of_the_benchmark() -> None:
    streams = json.loads((RESULTS / "packing.json").read_text())["streams"]
    rows = [line for line in README.splitlines() if line.startswith("| ") and "tokens an image" in line]
    assert len(rows) == 4
    for row in rows:
        name, *shown = (cell.strip() for cell in row.strip("|").split("|"))
        packers = streams[name]["packers"]
        ours = packers.pop("vila_data")
        packers.pop("LLaMA-Factory's rule, our blocks")
        whole = {peer: found["fill"] for peer, found in packers.items() if not found["dropped"] + found["split"]}
        best = max(whole, key=lambda peer: whole[peer])
        share = ours["share_of_whole_stream_bound"]
        expected = [f"{ours['fill']:.2%}", f"{whole[best]:.2%} ({best})", f"{share:.2%}"]
        assert shown == [*expected, f"{ours['samples_per_s'] / 1000:.0f}"]
        assert ours["fill"] > whole[best] and share >= 0.99 and ours["samples_per_s"] >= 500_000


def test_encoding_and_shares_are_those_of_the_benchmarks() -> None:
    (encode,) = json.loads((RESULTS / "encode.json").read_text()).values()
    least = min(found["stage_share_of_alone"] for name, found in encode.items() if name != "conditions")
    assert f"encoding runs at {least:.0%} or more" in README and least >= 0.7
    blend = json.loads((RESULTS / "blend.json").read_text())
    worst = max(found["worst_window_percent"] for name, found in blend.items() if name != "conditions")
    assert f"{worst:.2f} points of those asked for" in README and worst <= 0.5
