"""Every page of docs/training under every launcher, with 1 rank and 2: does it train what one process trains in one batch?

    python -m tests.examples.loops [--only TEXT] [--keep FOLDER]

Each program accumulates 5 batches, validates and saves after every second step, is killed before its fourth step, started
again, and runs beyond the end of the epoch, whose last group has 4 batches and whose last pack is alone. `tests/examples/recorder.py`
notes samples and gradients. They are compared with one process that takes the packs of a step as a single batch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.examples import tiny_llava
from tests.examples.trainings import environment, ranks
from tests.loader.made_stream import BLEND, made, write_recipe

REPO = Path(__file__).resolve().parents[2]
PAGES = REPO / "docs" / "training"
PACKS, ACCUMULATE = 47, 5
STEPS_AN_EPOCH = 5
LAST = STEPS_AN_EPOCH + 2
KILLED, SAVED = 4, 2
TOLERANCE = 2e-4
HELD_BATCHES = 5

SPAWN = """
import os, runpy, socket, sys
import torch.multiprocessing as mp


def work(rank, ranks, port, arguments):
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()})
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (int(sys.argv[1]), port, sys.argv[2:]), nprocs=int(sys.argv[1]))
"""


BY_HAND = """
import os, socket, subprocess, sys

ranks = int(sys.argv[1])
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
common = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
started = []
for rank in range(ranks):
    here = {name: str(value) for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
    started.append(subprocess.Popen([sys.executable, *sys.argv[2:]], env=os.environ | here))
sys.exit(max(process.wait() for process in started))
"""


@dataclass(frozen=True)
class Loop:
    """A page's program and what starts it."""

    name: str
    page: str
    launcher: str = "python"

    def command(self, count: int, program: Path, arguments: Sequence[str]) -> list[str]:
        told = [str(program), *arguments]
        if self.launcher == "torchrun":
            return [*ranks(count), *told]
        script = {"mp.spawn": SPAWN, "python": BY_HAND if count > 1 and self.page == "plain_loop" else None}
        if text := script.get(self.launcher):
            starter = program.with_name("starter.py")
            starter.write_text(text)
            return [sys.executable, str(starter), str(count), *told]
        return [sys.executable, *told]


LOOPS = (
    Loop("plain", "plain_loop"),
    Loop("torchrun", "plain_loop", "torchrun"),
    Loop("mp.spawn", "plain_loop", "mp.spawn"),
    Loop("Lightning, its own launcher", "lightning"),
    Loop("Lightning, torchrun", "lightning", "torchrun"),
    Loop("HF Trainer", "hf_trainer", "torchrun"),
    Loop("accelerate", "accelerate", "torchrun"),
    Loop("Ray Train", "ray_train"),
)


@dataclass(frozen=True)
class Made:
    """A run with an epoch of 47 packs, and a model."""

    folder: Path
    llava: Path

    @staticmethod
    def at(folder: Path) -> Made:
        if not (folder / "run").exists():
            made(folder)
        write_recipe(folder / "recipe.yaml", blend={**BLEND, "total_packs": PACKS})
        (folder / "llava").mkdir(exist_ok=True)
        return Made(folder, tiny_llava.write(folder / "llava"))


def program(page: str, folder: Path, batch_size: int, accumulate: int, last: int) -> Path:
    """The page's program with other numbers, and the recorder in it."""
    (text,) = re.findall(r"^```python\n(.*?)^```$", (PAGES / f"{page}.md").read_text(), re.M | re.S)
    changes = [
        (r"^( *)accumulate = 1\b", rf"\1accumulate = {accumulate}"),
        (r'"gradient_accumulation_steps": 1\b', f'"gradient_accumulation_steps": {accumulate}'),
        (r'(save|eval)_steps": 4\b', r'\1_steps": 2'),
        (r'"logging_steps": 1\b', '"logging_steps": 1, "max_grad_norm": 0.0'),
        (r"max_steps=12\b", f"max_steps={last}"),
        (r"^epochs = 1\b", "epochs = 2"),
        (r"max_epochs=1\b", "max_epochs=2"),
        (r"step % 4\b", "step % 2"),
        (r"every_n_train_steps=4\b", "every_n_train_steps=2"),
        (r"val_check_interval=4\b", "val_check_interval=2"),
        (r'batch_size(=|": )2\b', rf"batch_size\g<1>{batch_size}"),
        (r"^    import vila_data as vd$", "    import recorder\n    import vila_data as vd"),
    ]
    made = 0
    for pattern, new in changes:
        text, count = re.subn(pattern, new, text, flags=re.M)
        made += count
    assert made >= 3, f"{page}: the numbers that this script changes are not there"
    path = folder / f"{page}_loop.py"
    path.write_text(f"import recorder\n{text}")
    return path


def started(
    command: Sequence[str], out: Path, stop: int, status: int, seconds: float
) -> subprocess.CompletedProcess[str]:
    """A program that the recorder watches."""
    out.mkdir(parents=True)
    modules = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", str(REPO))])
    variables = {"LOOPS_OUT": str(out), "LOOPS_STOP": str(stop), "LOOPS_STATUS": str(status), "PYTHONPATH": modules}
    variables |= {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, env=environment() | variables, cwd=out, capture_output=True, text=True, timeout=seconds
    )


@dataclass
class Noted:
    """What a training noted. samples: of each step, over all ranks; norms: of each step's gradients, by rank; held: of each validation."""

    samples: list[list[tuple[int, str]]]
    norms: list[list[list[float]]]
    held: list[list[str]]

    @staticmethod
    def of(folder: Path, count: int) -> Noted:
        samples: list[list[tuple[int, str]]] = []
        norms: list[list[list[float]]] = []
        rounds: list[list[str]] = []
        for rank in range(count):
            number, rounds_here = 0, -1
            step = 0
            for line in (folder / f"{rank}.jsonl").read_text().splitlines():
                found = json.loads(line)
                if "step" in found:
                    step, number = found["step"], 0
                    while len(samples) < step:
                        samples.append([])
                        norms.append([])
                    samples[step - 1] += [tuple(one) for one in found["samples"]]
                    norms[step - 1].append(found["norms"])
                else:
                    if not number:
                        rounds_here += 1
                    number += 1
                    while len(rounds) <= rounds_here:
                        rounds.append([])
                    if number <= HELD_BATCHES:
                        rounds[rounds_here] += [key for _, key in found["held"]]
        return Noted(samples, norms, rounds)


def far(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of two lists of norms, as a share of the largest norm."""
    if len(one) != len(other):
        return float("inf")
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) / max(other)


def reference(made: Made, work: Path) -> Noted:
    """One process, one batch per step."""
    path = program("plain_loop", work, 2 * ACCUMULATE, 1, LAST)
    done = started([sys.executable, str(path), *told(made, work)], work / "noted", LAST, 0, 300)
    assert done.returncode == 0, done.stderr[-3000:]
    return Noted.of(work / "noted", 1)


def told(made: Made, work: Path) -> list[str]:
    recipe = str(made.folder / "recipe.yaml")
    return [recipe, recipe, str(made.folder / "run"), str(made.llava), str(work / "out")]


def compared(loop: Loop, count: int, made: Made, work: Path, expected: Noted) -> dict[str, str]:
    """Column of the table -> "yes", or what is wrong."""
    work.mkdir(parents=True)
    path = program(loop.page, work, 2 // count, ACCUMULATE, LAST)
    arguments = told(made, work)
    if loop.page == "lightning":
        arguments.append(str(count))
    ends_itself = loop.page in ("hf_trainer", "ray_train")
    if loop.page == "ray_train":
        arguments += [str(count), str(LAST)]
    command = loop.command(count, path, arguments)
    began = time.monotonic()
    first = started(command, work / "first", KILLED, 3, 300)
    second = started(command, work / "second", 0 if ends_itself else LAST - SAVED, 0, 300)
    seconds = time.monotonic() - began
    if first.returncode == 0 or second.returncode:
        return {"ran": f"{first.returncode}, {second.returncode}: {(second.stderr or first.stderr)[-1500:]}"}
    noted = [work / phase / f"{rank}.jsonl" for phase in ("first", "second") for rank in range(count)]
    if absent := [str(path) for path in noted if not path.exists()]:
        return {"ran": f"{absent} absent: {(first.stderr + second.stderr)[-1500:]}"}
    before, after = Noted.of(work / "first", count), Noted.of(work / "second", count)
    samples, norms = before.samples[:SAVED] + after.samples, before.norms[:SAVED] + after.norms
    found: dict[str, str] = {}
    if len(samples) != LAST:
        return {"ran": f"{len(samples)} steps, not {LAST}"}
    epoch = [one for step in samples[:STEPS_AN_EPOCH] for one in step]
    whole = [one for step in expected.samples[:STEPS_AN_EPOCH] for one in step]
    once = sorted(epoch) == sorted(whole) and max(Counter(epoch).values()) == 1 and {one[0] for one in epoch} == {0}
    found["epoch: each sample once"] = "yes" if once else f"no: {len(epoch)} of {len(whole)}"
    sames = [sorted(one) == sorted(other) for one, other in zip(samples, expected.samples, strict=True)]
    found["resumed: same samples per step"] = "yes" if all(sames) else f"no: {sames}"
    again = sorted(before.samples[SAVED]) == sorted(after.samples[0])
    if not again:
        found["resumed: same samples per step"] = "no: another step after the checkpoint"
    distances = [max(far(one, other[0]) for one in step) for step, other in zip(norms, expected.norms, strict=True)]
    equal = max(distances) < TOLERANCE and all(len(step) == count for step in norms)
    found["gradients"] = f"{max(distances):.0e}" if equal else f"no: {[f'{one:.0e}' for one in distances]}"
    over = max(distances[STEPS_AN_EPOCH - 1 : STEPS_AN_EPOCH + 1])
    found["over the epoch's end"] = f"{over:.0e}" if over < TOLERANCE else f"no: {over:.0e}"
    held = [*before.held, *after.held]
    rounds = [sorted(one) for one in held if one]
    full = [one for one in rounds if len(one) == max(map(len, rounds))]
    same = len(full) >= 3 and all(one == full[0] for one in full)
    partial = all(set(one) <= set(full[0]) for one in rounds)  # Lightning's sanity check has two batches
    found["validation: same each time"] = (
        f"yes, {len(rounds)}" if same and partial else f"no: {[len(one) for one in rounds]}"
    )
    found["seconds"] = f"{seconds:.0f}"
    return found


def wrong(found: dict[str, str]) -> dict[str, str]:
    """What of a row is not as it should be."""
    return {name: value for name, value in found.items() if name == "ran" or value.startswith("no")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        (folder / "made").mkdir(parents=True, exist_ok=True)
        (folder / "reference").mkdir()
        made_run = Made.at(folder / "made")
        expected = reference(made_run, folder / "reference")
        head: list[str] = []
        for loop in LOOPS:
            for count in (1, 2):
                if options.only not in f"{loop.name} {count}":
                    continue
                row = compared(loop, count, made_run, folder / f"{loop.name}-{count}", expected)
                if not head and "ran" not in row:
                    head = ["loop", "ranks", *row]
                    print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|", flush=True)
                print(f"| {loop.name} | {count} | " + " | ".join(row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
