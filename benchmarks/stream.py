"""Samples, pictures and packed tokens a second on the same cores: vila_data beside what others load with, in one run.

    python benchmarks/stream.py [--photos DIR] [--data DIR] [--repeats 3] [--json benchmarks/results/stream.json]

The same samples lie in each one's best format (benchmarks/stream_data.py); all lie in the page cache. Each contestant
runs in a process of its own, held with its workers and threads to one core, or to two where it is said; contestants
take turns, medians are given. Rates leave out what comes before the first batch, with workers before the ninth.

raw      every member's bytes of every sample, nothing decoded
decoded  pictures of the pairs, both sides resized to 336 and to 224: uint8 RGB batches. "pillow" and "spdl" are what the
         peers document; "simplejpeg" is the same peer with libjpeg-turbo put in by hand, the bare loop has nothing else
packed   tokens of sequences of 4,096, with their pictures at 336, padding not counted. Megatron-Energon packs as its
         documentation shows; its samples hold ready token ids, so nobody tokenises

The peers that need an environment of their own run in benchmarks/make_peers_env.sh's; SPDL's decoder needs FFmpeg's
shared libraries (Debian: apt-get install libavdevice59 libavfilter8).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stream_data import REPO, digest, made_run

HERE = Path(__file__).resolve().parent
PEERS = REPO / ".venvs/peers/bin/python"
OURS = "vila_data"
RAW = {"docs": 16, "pairs": 24, "text": 40}  # passes over each set at most
LIMIT_S = {"raw": 1.0, "decoded": 2.0, "packed": 2.5}  # of one run
SIZES = (336, 224)
UNITS = {"raw": "samples", "decoded": "images", "packed": "tokens"}
COMPARED = 48  # pictures whose pixels are compared
PACKS, TEXT_PACKS = 160, 400
VERSIONS = ("torch", "numpy", "pyarrow", "webdataset", "datasets", "simplejpeg", "opencv-python-headless", "pillow")
PEER_VERSIONS = ("megatron-energon", "spdl_core", "spdl_io", "webdataset", "torch", "simplejpeg", "pillow")


@dataclass(frozen=True)
class Contestant:
    """What runs: a function of a module's CONTESTANTS, in the project's or the peers' environment."""

    label: str
    module: str
    function: str
    values: dict[str, Any]
    peers: bool = False


@dataclass(frozen=True)
class Race:
    """Contestants that do the same work on the same number of cores; `unit` is what is counted."""

    name: str
    unit: str
    cores: int
    contestants: tuple[Contestant, ...]
    each: dict[str, list[Any]]


def races(images: int) -> list[Race]:
    raw_each = {"set": [[name, passes] for name, passes in RAW.items()]}
    raw = (
        Contestant(OURS, "stream_ours", "raw", {}),
        Contestant("webdataset", "stream_peers", "raw_webdataset", {}),
        Contestant("tarfile", "stream_peers", "raw_tarfile", {}),
        Contestant("HF datasets, parquet", "stream_peers", "raw_hf_parquet", {}),
        Contestant("HF datasets, webdataset", "stream_peers", "raw_hf_webdataset", {"only": "pairs"}),
        Contestant("Megatron-Energon", "stream_energon", "raw", {}, peers=True),
        Contestant("SPDL", "stream_spdl", "raw", {}, peers=True),
    )
    return [
        Race("raw", "samples", 1, raw, raw_each),
        decoded(1, images, list(SIZES)),
        decoded(2, 5 * images // 3, [SIZES[0]]),
        packed("mixed", 1, PACKS),
        packed("mixed", 2, 2 * PACKS),
        packed("text", 1, TEXT_PACKS),
    ]


def decoded(cores: int, images: int, sizes: list[int]) -> Race:
    shared = {"images": images, "workers": 0 if cores == 1 else cores}

    def peer(label: str, module: str, function: str, decoder: str) -> Contestant:
        return Contestant(label, module, function, {**shared, "decoder": decoder}, module != "stream_peers")

    found = [
        Contestant(OURS, "stream_ours", "decoded", {**shared, "rows": 4}),
        peer("bare loop, vila_data's decoder", "stream_peers", "bare_loop", OURS),
        peer("webdataset, pillow", "stream_peers", "decoded_webdataset", "pillow"),
        peer("webdataset, simplejpeg", "stream_peers", "decoded_webdataset", "simplejpeg"),
        peer("SPDL, spdl", "stream_spdl", "decoded", "spdl"),
        peer("SPDL, simplejpeg", "stream_spdl", "decoded", "simplejpeg"),
    ]
    if cores == 1:
        found += [
            peer("bare loop, simplejpeg", "stream_peers", "bare_loop", "simplejpeg"),
            peer("HF datasets, pillow", "stream_peers", "decoded_hf", "pillow"),
            peer("Megatron-Energon, pillow", "stream_energon", "decoded", "pillow"),
        ]
    return Race("decoded", "images", cores, tuple(found), {"size": sizes})


def packed(blend: str, cores: int, packs: int) -> Race:
    shared = {"size": SIZES[0], "rows": 4, "packs": packs, "workers": 0 if cores == 1 else cores}
    found = [Contestant(OURS, "stream_ours", "packed", {**shared, "fit": "resize"})]
    for decoder in ("pillow", "simplejpeg") if (blend, cores) == ("mixed", 1) else ("simplejpeg",):
        label = f"Megatron-Energon, {decoder}" if blend == "mixed" else "Megatron-Energon"
        found.append(Contestant(label, "stream_energon", "packed", {**shared, "decoder": decoder}, peers=True))
    return Race("packed", "tokens", cores, tuple(found), {"blend": [blend]})


def run(
    contestant: Contestant, cores: int, folder: Path, each: dict[str, list[Any]], peers: Path, limit_s: float = 0
) -> dict[str, Any]:
    """The child's results by choice of `each`; an error ends the benchmark."""
    values = {"folder": str(folder), "started": time.time(), "each": each, "limit_s": limit_s, **contestant.values}
    if (only := values.pop("only", None)) is not None:
        values["each"] = {key: [one for one in choices if one[0] == only] for key, choices in each.items()}
    python = str(peers) if contestant.peers else sys.executable
    chosen = sorted(os.sched_getaffinity(0))[-cores:]
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO)}
    if contestant.peers:
        del environment["PYTHONPATH"]
    done = subprocess.run(
        [python, str(HERE / "stream_child.py"), contestant.module, contestant.function, json.dumps(values)],
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, chosen),
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if done.returncode or line is None:
        sys.exit(f"{contestant.label} ({contestant.function}) failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return result


def held(race: Race, folder: Path, repeats: int, peers: Path) -> dict[str, Any]:
    """Medians by choice and contestant, and all runs."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for turn in range(repeats):
        for contestant in race.contestants:
            for choice, found in run(contestant, race.cores, folder, race.each, peers, LIMIT_S[race.name]).items():
                runs.setdefault(choice, {}).setdefault(contestant.label, []).append(found)
                rate = found["per_s"][race.unit]
                where = f"{race.name} {choice}, {race.cores} core(s)"
                print(f"{turn + 1}/{repeats} {where}: {contestant.label} {rate:,.0f} {race.unit}/s", file=sys.stderr)
    return {
        choice: {label: summary(found, race) for label, found in found_by.items()} for choice, found_by in runs.items()
    }


def summary(found: list[dict[str, Any]], race: Race) -> dict[str, Any]:
    """One contestant's medians, and its single rates by wall clock."""
    medians = {
        f"{race.unit}_{per}": round(statistics.median(one[per][race.unit] for one in found), 1)
        for per in ("per_s", "per_cpu_s")
    }
    result = {
        **medians,
        "all_per_s": [round(one["per_s"][race.unit], 1) for one in found],
        "start_up_s": round(statistics.median(one["start_up_s"] for one in found), 2),
    }
    if race.name == "packed":
        result["fill"] = round(found[0]["total"]["tokens"] / found[0]["total"]["positions"], 4)
    return result


def psnr(folder: Path, peers: Path) -> dict[str, dict[str, Any]]:
    """Mean PSNR, dB, of each decoder's pixels against a full decode with an antialiased bicubic resize, and against ours."""
    from stream_decoders import DECODERS, reference
    from stream_peers import jpegs

    held_jpegs = jpegs(str(folder))[:COMPARED]
    result: dict[str, dict[str, Any]] = {}
    for size in SIZES:
        found = {name: [decode(one, size) for one in held_jpegs] for name, decode in DECODERS.items()}
        with tempfile.TemporaryDirectory() as out:
            for label, module, apart in ((OURS, "stream_ours", False), ("spdl", "stream_spdl", True)):
                values = {"images": len(held_jpegs), "out": f"{out}/{label}.npy"}
                run(Contestant(label, module, "pixels", values, apart), 1, folder, {"size": [size]}, peers)
                found[label] = list(np.load(f"{out}/{label}.npy"))
        wanted = [reference(one, size) for one in held_jpegs]
        result[str(size)] = {
            name: {"to_reference": decibels(ones, wanted), "to_vila_data": decibels(ones, found[OURS])}
            for name, ones in found.items()
        }
    return result


def decibels(found: list[Any], wanted: list[Any]) -> float | str:
    errors = [np.mean((a.astype(np.float64) - b) ** 2) for a, b in zip(found, wanted, strict=True)]
    if not any(errors):
        return "equal"
    return round(float(np.mean([10 * np.log10(255**2 / max(error, 1e-3)) for error in errors])), 1)


def goals(found: dict[str, Any]) -> dict[str, Any]:
    """What the project set itself (`least`), and what came out on one core by wall clock and by CPU time."""

    def documented(label: str) -> bool:
        return "bare loop" not in label and "simplejpeg" not in label

    def over(race: str, others: Callable[[str], bool], least: float | None = None) -> dict[str, Any]:
        value: dict[str, Any] = {} if least is None else {"least": least}
        unit = race.split()[0]
        for per in ("per_s", "per_cpu_s"):
            value[per] = {}
            for choice, contestants in found[f"{race}, 1 core"].items():
                rates = {label: one[f"{UNITS[unit]}_{per}"] for label, one in contestants.items()}
                chosen = {label: rate for label, rate in rates.items() if label != OURS and others(label)}
                if chosen:
                    best = max(chosen, key=chosen.__getitem__)
                    value[per][choice] = {"ratio": round(rates[OURS] / chosen[best], 2), "beside": best}
        return value

    return {
        "raw over webdataset": over("raw", lambda label: label == "webdataset", 3.0),
        "raw over the fastest peer": over("raw", lambda _: True),
        "decoded over the fastest peer as documented": over("decoded", documented, 1.5),
        "decoded over the fastest peer with libjpeg-turbo put in": over("decoded", lambda one: "bare loop" not in one),
        "decoded over the bare loop": over("decoded", lambda label: "bare loop" in label, 0.85),
        "packed over Megatron-Energon as documented": over("packed mixed", documented, 2.0),
        "packed over Megatron-Energon with libjpeg-turbo put in": over("packed mixed", lambda _: True),
        "packed text over Megatron-Energon": over("packed text", lambda _: True, 2.0),
    }


def conditions(made: dict[str, Any], folder: Path, arguments: argparse.Namespace, load: float) -> dict[str, Any]:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    asked = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {PEER_VERSIONS!r}}}))"
    peers = subprocess.run([str(arguments.peers), "-c", asked], capture_output=True, text=True, check=True).stdout
    return {
        "samples": made,
        "manifests_sha256": digest(folder),
        "repeats": arguments.repeats,
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu.partition(":")[2].strip(),
        "load_average_1m_before": round(load, 2),
        "load_average_1m_after": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "peers_versions": json.loads(peers),
    }


def compare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    made = made_run(folder, arguments.photos)
    load = os.getloadavg()[0]
    found: dict[str, Any] = {}
    for race in races(arguments.images):
        name = race.name if race.name != "packed" else f"packed {race.each['blend'][0]}"
        if race.cores <= len(os.sched_getaffinity(0)):
            key = f"{name}, {race.cores} core{'s' if race.cores > 1 else ''}"
            found[key] = held(race, folder, arguments.repeats, arguments.peers)
    return {
        "goals": goals(found),
        **found,
        "psnr_db": psnr(folder, arguments.peers),
        "conditions": conditions(made, folder, arguments, load),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of .jpg photographs; without it textures are drawn")
    parser.add_argument(
        "--data", type=Path, help="where the samples lie or are to be made; without it they are deleted"
    )
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", type=Path, default=PEERS, help="python of benchmarks/make_peers_env.sh")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not arguments.peers.exists():
        sys.exit(f"{arguments.peers}: no python of the peers: run benchmarks/make_peers_env.sh")
    with tempfile.TemporaryDirectory(prefix="vila-bench-") as scratch:
        result = compare(arguments.data or Path(scratch) / "run", arguments)
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
